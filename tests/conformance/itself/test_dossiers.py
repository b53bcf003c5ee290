"""Checks of dossiers, on sound and faulty words, trials and twins."""

from dataclasses import replace

import pytest

from tests.conformance import dossier_checks
from tests.conformance.harness import Broken, Unwritten
from tests.conformance.itself import toys
from tests.conformance.itself.cards import CARD, CLAIM, WORDS
from trialrun.catalogue import Accepts, Text
from trialrun.catalogue.card import NotTested
from trialrun.claims.contract import Budget, Trial


def _arm(context):
    raise NotImplementedError


def _trial(**changes):
    arms = dict.fromkeys(CLAIM.arms, _arm)
    budgets = {"smoke": Budget(seeds=2), "quick": Budget(seeds=3), "full": Budget(seeds=5)}
    return replace(Trial(budgets=budgets, arms={"better": arms}), **changes)


def test_a_sound_trial_passes():
    dossier_checks.no_orphan_claims(CARD, _trial())
    dossier_checks.no_orphan_arms(CARD, _trial(), "better")
    dossier_checks.preparations_are_used(CARD, _trial())
    dossier_checks.budgets_exist(CARD, _trial())


@pytest.mark.parametrize(
    ("check", "changes", "said"),
    [
        ("no_orphan_claims", {"arms": {}}, "does not measure better"),
        ("no_orphan_claims", {"arms": {"better": {}, "worse": {}}}, "does not claim worse"),
        ("no_orphan_arms", {"arms": {"better": {"ours": _arm}}}, "no arm control"),
        (
            "no_orphan_arms",
            {"arms": {"better": dict.fromkeys((*CLAIM.arms, "idle"), _arm)}},
            "name the arm idle",
        ),
        (
            "no_orphan_arms",
            {"arms": {"better": dict.fromkeys(CLAIM.arms, lambda context: None)}},
            "cannot load",
        ),
        ("preparations_are_used", {"prepare": {"model": _arm}}, "nothing needs"),
        ("preparations_are_used", {"needs": {"better": ("model",)}}, "not prepared"),
        ("preparations_are_used", {"needs": {"worse": ()}}, "no claim or arm"),
        ("budgets_exist", {"budgets": {"quick": Budget(seeds=2)}}, "smoke, full"),
        (
            "budgets_exist",
            {"budgets": dict.fromkeys(("smoke", "quick", "full"), Budget(seeds=3))},
            "five seeds",
        ),
    ],
)
def test_a_trial_that_does_not_fit_its_card_is_found(check, changes, said):
    more = ("better",) if check == "no_orphan_arms" else ()
    with pytest.raises(Broken, match=said):
        getattr(dossier_checks, check)(CARD, _trial(**changes), *more)


def _notes(folder, lang, *, answers):
    title = "# 笔记\n\n这一篇讲的是一个简单而有用的方法，先给出一句话的小结。\n"
    if lang == "en":
        title = "# Notes\n\nOne sentence that says what this is about, in so many words.\n"
    body = "".join(f"\n## {q}\n\n{a}\n" for q, a in zip(dossier_checks.QUESTIONS[lang], answers))
    (folder / f"notes.{lang}.md").write_text(title + body, encoding="utf-8")


ANSWER = {
    "en": "An answer of a length that says something.",
    "zh": "这是一个足够长的回答，说明了一些事情。",
}


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_notes_need_every_question_answered_in_their_language(lang, tmp_path):
    _notes(tmp_path, lang, answers=[ANSWER[lang]] * 6)
    dossier_checks.notes_answer_the_questions(tmp_path, lang)
    dossier_checks.notes_are_in_their_language(tmp_path, lang)
    with pytest.raises(Unwritten, match="pointer"):
        dossier_checks.notes_point_to_the_verdicts(tmp_path, "toys", lang)
    _notes(tmp_path, lang, answers=[ANSWER[lang]] * 5)
    with pytest.raises(Broken, match="lacks the heading"):
        dossier_checks.notes_answer_the_questions(tmp_path, lang)
    _notes(tmp_path, lang, answers=[ANSWER[lang]] * 5 + [" "])
    with pytest.raises(Unwritten, match=dossier_checks.QUESTIONS[lang][-1]):
        dossier_checks.notes_answer_the_questions(tmp_path, lang)
    other = {"en": "zh", "zh": "en"}[lang]
    _notes(tmp_path, lang, answers=[ANSWER[other] * 5] * 6)
    with pytest.raises(Broken, match="Chinese"):
        dossier_checks.notes_are_in_their_language(tmp_path, lang)


def test_a_card_half_in_one_language_is_found():
    with pytest.raises(Broken, match="not Chinese"):
        dossier_checks.card_is_bilingual(replace(CARD, idea=Text("A sentence.", "A sentence.")))


def test_entries_and_specimens_must_match():
    specimen = toys.block()
    listed = replace(CARD, entry=(specimen.entry,))
    dossier_checks.one_specimen_per_entry(listed, [specimen])
    for card, specimens in [(CARD, [specimen]), (listed, []), (listed, [specimen, specimen])]:
        with pytest.raises(Broken):
            dossier_checks.one_specimen_per_entry(card, specimens)


def _twin(root, source, test="from tests.naive.toys import centre\n"):
    for path, text in [("tests/naive/toys.py", source), ("tests/toys/test_toys.py", test)]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")


def test_a_slow_twin_must_exist_share_nothing_and_be_used(tmp_path):
    with pytest.raises(Unwritten):
        dossier_checks.twin_shares_nothing(CARD, tmp_path)
    plain = "def centre(x):\n    return x\n"
    _twin(tmp_path, plain)
    dossier_checks.twin_shares_nothing(CARD, tmp_path)
    dossier_checks.twin_is_compared(CARD, tmp_path)
    for line in ("from trialrun.core import seeds", "import trialrun", "from tests.x import y"):
        _twin(tmp_path, f"{line}\n{plain}")
        with pytest.raises(Broken, match="nothing of ours"):
            dossier_checks.twin_shares_nothing(CARD, tmp_path)
    _twin(tmp_path, plain, test="import numpy\n")
    with pytest.raises(Broken, match="imports"):
        dossier_checks.twin_is_compared(CARD, tmp_path)


def test_extras_material_and_benchmarks_that_are_missing_are_found(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        "[project.optional-dependencies]\nshift = []\n", encoding="utf-8"
    )
    dossier_checks.extras_exist(replace(CARD, extras=("shift",)), tmp_path)
    with pytest.raises(Broken, match="no such extra: nothing"):
        dossier_checks.extras_exist(replace(CARD, extras=("shift", "nothing")), tmp_path)
    with pytest.raises(Unwritten, match="bench_toys"):
        dossier_checks.benchmark_exists(CARD, tmp_path)
    accepting = replace(CARD, accepts=(Accepts("table", (".csv",), WORDS, ("better",)),))
    with pytest.raises(Broken, match="no check_on"):
        dossier_checks.own_material_is_checked(accepting, _trial())
    dossier_checks.own_material_is_checked(accepting, _trial(check_on=_arm))


def test_an_unfinished_card_is_told_from_a_finished_one():
    gap = NotTested(WORDS, WORDS)
    whole = replace(CARD, entry=("trialrun.toys.toys:centre",), not_tested=(gap,))
    dossier_checks.finished(whole)
    for change, part in [
        ({"papers": ()}, "papers"),
        ({"claims": ()}, "claims"),
        ({"not_tested": ()}, "not_tested"),
        ({"idea": Text("To be written.", "待写。")}, "title and idea"),
    ]:
        with pytest.raises(Unwritten, match=part):
            dossier_checks.finished(replace(whole, **change))
