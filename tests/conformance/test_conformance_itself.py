"""The suite on trial: every check passes a sound toy and fails the toy broken in that one way."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.conformance import (
    alone_checks,
    block_checks,
    docstring_checks,
    dossier_checks,
    entry_checks,
    estimator_checks,
    patch_checks,
    record_checks,
    toys,
)
from tests.conformance.harness import ROOT, Broken, NotApplicable, Unwritten
from tests.conformance.tally import PROPERTY, UNWRITTEN, Tally
from tests.conformance.values import assert_close, difference
from tests.conformance.waivers import read_waivers, require_known
from trialrun.catalogue import Card, Claim, Paper, Rule, Text
from trialrun.claims.check import Checked
from trialrun.claims.contract import Budget, Trial
from trialrun.claims.judge import judge
from trialrun.claims.records import append_record, plain_judgement, sealed

WORDS = Text("A sentence.", "一句话。")
PAPER = Paper("snell2017", "Prototypes", "J. Snell", 2017, "arXiv:1703.05175", "full text")
CLAIM = Claim(
    id="better",
    title=WORDS,
    says=WORDS,
    figure="",
    figure_read="none",
    paper_scale=WORDS,
    here_scale=WORDS,
    ours="ours",
    baseline="plain",
    rival="rival",
    control="control",
    rule=Rule("paired_difference", "score", "points", "higher", 1.0, "plain"),
)
CARD = Card("toys", "toys", "block", WORDS, WORDS, "", (), (), (PAPER,), (CLAIM,), (), ())


# --- every kind


@pytest.mark.parametrize("specimen", [toys.of(toys.centre), toys.block(), toys.patch()])
@pytest.mark.parametrize(
    "check",
    [
        entry_checks.same_seed_same_bits,
        entry_checks.inputs_are_left_alone,
        entry_checks.no_file_and_no_network,
        entry_checks.bad_calls_are_given,
    ],
)
def test_sound_toys_pass_the_general_checks(specimen, check):
    check(specimen)


@pytest.mark.parametrize("function", [toys.with_global_numpy, toys.with_global_random_put_back])
def test_a_draw_from_a_global_generator_is_found(function):
    with pytest.raises(Broken, match=r"global random state|different output"):
        entry_checks.same_seed_same_bits(toys.of(function))


def test_changed_inputs_are_found():
    with pytest.raises(Broken, match="changed its inputs"):
        entry_checks.inputs_are_left_alone(toys.of(toys.centre_in_place))


def test_a_written_file_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Broken, match="for writing"):
        entry_checks.no_file_and_no_network(toys.of(toys.with_a_file))


def test_a_connection_is_found():
    specimen = toys.of(toys.with_the_network)
    calls = iter([toys.centre, toys.with_the_network])
    with pytest.raises(Broken, match="network"):
        entry_checks.no_file_and_no_network(
            replace(specimen, run=lambda inputs: next(calls)(inputs["x"]))
        )


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (("x must", lambda: None), "raised nothing"),
        (("x must", lambda: toys.centre(np.zeros(3))), ""),
        (("another", lambda: toys.centre(np.zeros(3))), "something else"),
        (("no", lambda: toys.centre(np.zeros(3))), "matches nearly anything"),
        (("bad", lambda: _raise(ValueError("bad"))), "too little"),
        (("buried", lambda: _raise(ValueError("a long story to begin with\nburied"))), "else"),
    ],
)
def test_a_bad_call_must_be_refused_in_a_clear_sentence(bad, said):
    specimen = toys.of(toys.centre, bad=(bad,))
    if not said:
        entry_checks.bad_call_is_refused(specimen, 0)
        return
    with pytest.raises(Broken, match=said):
        entry_checks.bad_call_is_refused(specimen, 0)


def test_another_error_than_value_error_passes_through():
    specimen = toys.of(toys.centre, bad=(("wrong type", lambda: _raise(TypeError("wrong type"))),))
    with pytest.raises(TypeError):
        entry_checks.bad_call_is_refused(specimen, 0)


def _raise(error):
    raise error


def test_an_invariance_that_does_not_hold_is_found():
    entry_checks.invariance_holds(toys.of(toys.centre), 0)
    false = (("doubling does not matter", lambda seed: (np.ones(3), 2 * np.ones(3))),)
    with pytest.raises(Broken, match="doubling"):
        entry_checks.invariance_holds(toys.of(toys.centre, invariances=false), 0)


def test_an_invariance_of_nothing_is_found():
    empty = (("of nothing at all", lambda seed: (np.ones(0), np.ones(0))),)
    with pytest.raises(Broken, match="nothing to compare"):
        entry_checks.invariance_holds(toys.of(toys.centre, invariances=empty), 0)


def test_round_trip_passes_safetensors_and_finds_pickles_and_lost_state(tmp_path):
    for name in ("sound", "pickled", "other"):
        (tmp_path / name).mkdir()
    sound = toys.block(save=toys.save_gain, load=toys.load_gain)
    entry_checks.round_trip(sound, tmp_path / "sound")
    with pytest.raises(Broken, match="pickle"):
        entry_checks.round_trip(replace(sound, save=toys.save_pickled), tmp_path / "pickled")
    with pytest.raises(Broken, match="different output"):
        entry_checks.round_trip(replace(sound, load=toys.load_other), tmp_path / "other")


def test_saving_outside_the_folder_is_found(tmp_path):
    def save(module, folder):
        toys.save_gain(module, folder)
        (folder.parent / "beside.json").write_text("{}", encoding="utf-8")

    with pytest.raises(Broken, match=r"beside\.json"):
        entry_checks.round_trip(toys.block(save=save, load=toys.load_gain), tmp_path)


@pytest.mark.parametrize("name", ["weights.pt", "weights.pkl", "archive.npz"])
def test_files_that_may_run_code_are_found(name, tmp_path):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(Broken, match="expected"):
        entry_checks.holds_no_pickle(tmp_path, "a toy")


def test_an_entry_outside_its_family_is_found():
    with pytest.raises(Broken, match="must lie under"):
        entry_checks.entry_lives_in_its_family(CARD, "trialrun.core.seeds:split")
    core = replace(CARD, family="core")
    entry_checks.entry_lives_in_its_family(core, "trialrun.core.seeds:split")
    with pytest.raises(Broken, match="comes from"):
        entry_checks.entry_lives_in_its_family(core, "trialrun.core.shapes:Sequence")


# --- values


def test_differences_are_found_in_every_kind_of_container():
    x = torch.ones(2)
    for a, b in [
        ({"a": [x]}, {"a": [x + 1]}),
        (x, x.double()),
        (np.array([0.0]), np.array([-0.0])),
        ((x, 1), (x, 2)),
        (toys.Gain(seed=0), toys.Gain(seed=1)),
        (np.random.default_rng(0), np.random.default_rng(1)),
        (torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)),
        ([x], [x, x]),
        (np.array(["a"], dtype=object), np.array(["b"], dtype=object)),
        (CLAIM, replace(CLAIM, id="other")),
    ]:
        assert difference(a, b), (a, b)
    assert not difference({"a": (x, float("nan"))}, {"a": (x.clone(), float("nan"))})


def test_close_values_pass_and_shapes_do_not_broadcast():
    assert_close(torch.ones(2), torch.ones(2) + 1e-7, "ones")
    with pytest.raises(Broken):
        assert_close(np.ones((2, 1)), np.ones(2), "shapes")


# --- docstrings


def _clumsy(x, depth):
    """Returns the thing."""


def _incomplete(x, depth):
    """Return the thing.

    Parameters
    ----------
    x : int

    Examples
    --------
    >>> 1 + 1
    3
    """


def test_a_sound_docstring_passes_and_its_faults_are_found():
    for check in (
        docstring_checks.first_lines_are_imperative,
        docstring_checks.parameters_are_described,
        docstring_checks.errors_are_described,
        docstring_checks.examples_run,
    ):
        check(toys.centre)
    docstring_checks.paper_is_named(CARD, toys.centre)
    for check, thing, said in [
        (docstring_checks.first_lines_are_imperative, _clumsy, "open with an order"),
        (docstring_checks.parameters_are_described, _incomplete, "'depth'"),
        (docstring_checks.errors_are_described, _incomplete, "no Raises"),
        (docstring_checks.examples_run, _incomplete, "fails"),
        (docstring_checks.examples_run, _clumsy, "no runnable example"),
    ]:
        with pytest.raises(Broken, match=said):
            check(thing)
    with pytest.raises(Broken, match="names none"):
        docstring_checks.paper_is_named(CARD, _clumsy)
    with pytest.raises(Unwritten, match="papers"):
        docstring_checks.paper_is_named(replace(CARD, papers=()), toys.centre)


@pytest.mark.parametrize(
    ("line", "good"),
    [
        ("Return the mean.", True),
        ("Process a batch.", True),
        ("Bias the logits.", True),
        ("Returns the mean.", False),
        ("The mean.", False),
        ("Computing the mean.", False),
        ("Return the mean", False),
        ("return the mean.", False),
    ],
)
def test_orders_are_told_from_descriptions(line, good):
    assert docstring_checks.is_imperative(line) is good


# --- blocks


def test_a_sound_block_passes(tmp_path):
    sound = toys.block()
    block_checks.keeps_dtype(sound)
    block_checks.one_is_a_row_of_many(sound)
    block_checks.eval_is_deterministic(sound)
    block_checks.gradients_are_finite(sound)
    block_checks.state_round_trip(sound, tmp_path)


@pytest.mark.parametrize(
    ("check", "kind", "said"),
    [
        (block_checks.keeps_dtype, toys.WideningGain, "made float64 of float32"),
        (block_checks.one_is_a_row_of_many, toys.BatchCentredGain, "row 0"),
        (block_checks.eval_is_deterministic, toys.NoisyGain, "from call to call"),
        (block_checks.gradients_are_finite, toys.IdleGain, "idle gets no gradient"),
        (block_checks.gradients_are_finite, toys.RootGain, "not finite"),
    ],
)
def test_a_broken_block_is_found(check, kind, said):
    with pytest.raises(Broken, match=said):
        check(toys.block(kind))


def test_state_kept_outside_the_state_is_found(tmp_path):
    with pytest.raises(Broken, match="outside its state"):
        block_checks.state_round_trip(toys.block(toys.SecretGain), tmp_path)


def test_a_block_without_floats_does_not_count_as_checked():
    counter = toys.block(make=lambda seed: object(), inputs=lambda seed: {"x": np.arange(3)})
    with pytest.raises(NotApplicable):
        block_checks.keeps_dtype(counter)


# --- estimators


def test_a_sound_estimator_passes():
    estimator_checks.stores_what_it_is_given(toys.estimator())
    estimator_checks.fit_learns(toys.estimator())
    estimator_checks.expected_failures_are_known(toys.estimator())


@pytest.mark.parametrize(
    ("check", "kind", "said"),
    [
        (estimator_checks.stores_what_it_is_given, toys.EagerCentroids, "constructor works"),
        (estimator_checks.stores_what_it_is_given, toys.LearnedEarly, "sets"),
        (estimator_checks.stores_what_it_is_given, toys.PositionalCentroids, "keyword only"),
        (estimator_checks.fit_learns, toys.SilentFit, "return self"),
        (estimator_checks.fit_learns, toys.SelfChanging, "changed its settings"),
    ],
)
def test_a_broken_estimator_is_found(check, kind, said):
    with pytest.raises(AssertionError, match=said):
        check(toys.estimator(kind))


def test_an_expected_failure_that_passes_is_found():
    def fails(estimator):
        raise ValueError("as announced")

    estimator_checks.run_library_check(None, fails, "check", "a reason")
    with pytest.raises(Broken, match="passes"):
        estimator_checks.run_library_check(None, lambda estimator: None, "check", "a reason")
    with pytest.raises(ValueError, match="announced"):
        estimator_checks.run_library_check(None, fails, "check", None)


@pytest.mark.parametrize(
    "expected", [{"check_of_nothing": "a reason long enough"}, {"check_estimator_cloneable": ""}]
)
def test_expected_failures_need_a_check_and_a_reason(expected):
    with pytest.raises(Broken):
        estimator_checks.expected_failures_are_known(
            toys.estimator(expected_failed_checks=expected)
        )


# --- patches

PATCH_CHECKS = [
    patch_checks.identity_changes_nothing,
    patch_checks.attaching_changes_something,
    patch_checks.leaving_restores,
    patch_checks.detaching_restores,
    patch_checks.exception_restores,
    patch_checks.attaching_twice_is_refused,
    patch_checks.detaching_unattached_is_refused,
    patch_checks.other_hosts_are_untouched,
    patch_checks.weights_stay_named,
    patch_checks.generate_works,
    patch_checks.keeps_its_settings,
]


@pytest.mark.parametrize("check", PATCH_CHECKS)
def test_a_sound_patch_passes(check):
    check(toys.patch())


@pytest.mark.parametrize(
    ("check", "kind", "said"),
    [
        (patch_checks.leaving_restores, toys.LeavesAFlag, "trace on leaving"),
        (patch_checks.detaching_restores, toys.LeavesAHook, "trace after detach"),
        (patch_checks.leaving_restores, toys.LeavesOtherWeights, "other weights"),
        (patch_checks.exception_restores, toys.StaysAfterAnError, "after an exception"),
        (patch_checks.exception_restores, toys.Swallows, "swallowed"),
        (patch_checks.attaching_twice_is_refused, toys.Stacks, "twice raised nothing"),
        (patch_checks.detaching_unattached_is_refused, toys.DetachesAnything, "raised nothing"),
        (patch_checks.other_hosts_are_untouched, toys.ReachesOthers, "not attached to"),
        (patch_checks.weights_stay_named, toys.Renames, "while attached"),
        (patch_checks.keeps_its_settings, toys.KeepsNothing, "'strength'"),
    ],
)
def test_a_broken_patch_is_found(check, kind, said):
    with pytest.raises(Broken, match=said):
        check(toys.patch(kind))


def test_an_identity_that_changes_something_is_found():
    with pytest.raises(Broken, match="identity"):
        patch_checks.identity_changes_nothing(toys.patch(identity=toys.Louder))


def test_a_patch_that_does_nothing_is_found():
    with pytest.raises(Broken, match="does nothing"):
        patch_checks.attaching_changes_something(toys.patch(make=lambda: toys.Louder(1.0)))


def test_reload_must_give_the_patched_output(tmp_path):
    for name in ("sound", "forgets"):
        (tmp_path / name).mkdir()
    patch_checks.reload_gives_the_same(toys.patch(), tmp_path / "sound")
    forgets = toys.patch(reload=toys._reload(lambda: toys.Louder(3.0)))
    with pytest.raises(Broken, match="once reloaded"):
        patch_checks.reload_gives_the_same(forgets, tmp_path / "forgets")


# --- dossiers


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


# --- records


def _record(**changes):
    values = {"ours": 5.0, "plain": 1.0, "rival": 2.0, "control": 1.0}
    arms = {
        name: {"points": {"value": [v + 0.1 * s for s in range(5)]}, "n": 10}
        for name, v in values.items()
    }
    judged = judge(CLAIM, {name: arm["points"] for name, arm in arms.items()})
    record = {
        "slug": "toys",
        "claim": "better",
        "budget": "full",
        "seeds": [0, 1, 2, 3, 4],
        "verdict": judged.verdict,
        "reason": "",
        "arms": arms,
        "judgement": plain_judgement(judged),
        "on": None,
        "model": None,
    }
    return sealed({**record, **changes})


def _on_file(tmp_path, **changes):
    path = tmp_path / "records.jsonl"
    append_record(path, _record(**changes))
    return path


def test_a_sound_record_passes(tmp_path):
    path = _on_file(tmp_path)
    record_checks.records_are_whole(path)
    record_checks.record_exists(path, CARD, CLAIM, "full")
    record_checks.record_fits_the_card(path, CARD, CLAIM, "full")
    record_checks.verdict_follows_from_the_values(path, CARD, CLAIM, "full")
    record_checks.control_fails(path, CARD, CLAIM)


def test_missing_records_are_still_to_be_written(tmp_path):
    path = tmp_path / "records.jsonl"
    with pytest.raises(Unwritten):
        record_checks.records_are_whole(path)
    with pytest.raises(Unwritten):
        record_checks.record_exists(_on_file(tmp_path), CARD, CLAIM, "quick")


def test_edited_and_torn_lines_are_found(tmp_path):
    path = _on_file(tmp_path)
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace("5.1", "9.1"), encoding="utf-8")
    with pytest.raises(Broken, match="checksum"):
        record_checks.records_are_whole(path)
    path.write_text(whole + whole[:40], encoding="utf-8")
    with pytest.raises(Broken, match="torn"):
        record_checks.records_are_whole(path)


def test_a_verdict_that_the_values_do_not_give_is_found(tmp_path):
    path = _on_file(tmp_path, verdict="does not hold")
    with pytest.raises(Broken, match="the values say 'holds'"):
        record_checks.verdict_follows_from_the_values(path, CARD, CLAIM, "full")


def test_a_control_that_holds_is_found(tmp_path):
    judgement = _record()["judgement"]
    judgement["control"]["word"] = "holds"
    path = _on_file(tmp_path, judgement=judgement)
    with pytest.raises(Broken, match="the check is broken"):
        record_checks.control_fails(path, CARD, CLAIM)


def test_a_record_of_other_arms_or_too_few_seeds_is_found(tmp_path):
    path = _on_file(tmp_path, seeds=[0, 1])
    with pytest.raises(Broken, match="2 seeds"):
        record_checks.record_fits_the_card(path, CARD, CLAIM, "full")
    path = _on_file(tmp_path, arms={"ours": {}})
    with pytest.raises(Broken, match="has arms"):
        record_checks.record_fits_the_card(path, CARD, CLAIM, "full")
    path = _on_file(tmp_path, verdict="not tested", reason="a unit failed")
    with pytest.raises(Broken, match="a unit failed"):
        record_checks.record_exists(path, CARD, CLAIM, "full")


def test_a_smoke_run_with_lost_units_or_strange_numbers_is_found(tmp_path):
    sound = _record(budget="smoke", verdict="not tested")
    record_checks.smoke_is_sound(CARD, Checked((sound,), tmp_path, ()))
    lost = SimpleNamespace(key="better--ours--0", error="out of luck")
    with pytest.raises(Broken, match="out of luck"):
        record_checks.smoke_is_sound(CARD, Checked((sound,), tmp_path, (lost,)))
    with pytest.raises(Broken, match="no record"):
        record_checks.smoke_is_sound(CARD, Checked((), tmp_path, ()))
    for points, n in [({"value": [None, 1.0]}, 10), ({"value": [1.0]}, 0), ({}, 10)]:
        arms = {**sound["arms"], "ours": {"points": points, "n": n}}
        with pytest.raises(Broken, match="better/ours"):
            record_checks.smoke_is_sound(CARD, Checked(({**sound, "arms": arms},), tmp_path, ()))


# --- processes of their own


def _package(root, body):
    home = root / "src" / "trialrun_toy"
    home.mkdir(parents=True)
    (home / "__init__.py").write_text(body, encoding="utf-8")
    (root / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    return root


NEED = "from trialrun.core.extras import need\nneed('sklearn', extra='{}')\n"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (NEED.format("shift"), ""),
        ("import json\n", ""),
        ("import sklearn\n", "raised ModuleNotFoundError"),
        (NEED.format("nothing"), "none of the card's extras"),
        (NEED.format("sequence"), "does not bring sklearn"),
    ],
)
def test_a_missing_package_must_be_explained(body, said, tmp_path):
    card = replace(CARD, family="shift", extras=("shift", "sequence"))
    root = _package(tmp_path, body)
    if not said:
        alone_checks.missing_package_is_explained(card, "trialrun_toy", ["sklearn"], root)
        return
    with pytest.raises(Broken, match=said):
        alone_checks.missing_package_is_explained(card, "trialrun_toy", ["sklearn"], root)


def test_packages_are_tried_alone_if_named_and_not_brought_by_others(tmp_path):
    card = replace(CARD, extras=("attention",))
    _package(tmp_path, "import trialrun_toy.inner\n")
    inner = tmp_path / "src" / "trialrun_toy" / "inner.py"
    inner.write_text("import transformers, safetensors\n", encoding="utf-8")
    found = alone_checks.scenarios(card, "trialrun_toy", tmp_path)
    assert {"torch", "transformers", "safetensors"} <= set(found[0])
    assert found[1:] == [["transformers"]]
    assert alone_checks.scenarios(CARD, "trialrun_toy", tmp_path) == [[]]


def test_slow_and_large_specimens_are_found(monkeypatch):
    used = {"entry": "x:y", "seconds": 0.1, "megabytes": 1.0, "error": ""}
    for change, said in [
        ({}, ""),
        ({"seconds": 2.5}, r"2\.50 s"),
        ({"megabytes": 301.0}, "301 MB"),
        ({"error": "its process died"}, "died"),
    ]:
        row = {**used, **change}
        monkeypatch.setattr(alone_checks, "run_alone", lambda *_, row=row: [row])
        if said:
            with pytest.raises(Broken, match=said):
                alone_checks.specimens_are_small("toys")
        else:
            alone_checks.specimens_are_small("toys")


def test_measuring_notices_time_and_memory():
    script = (
        "import json, time, numpy as np\n"
        "from tests.conformance import measure, toys\n"
        "def run(inputs):\n"
        "    end = time.process_time() + 0.3\n"
        "    block = np.ones(20_000_000)\n"
        "    while time.process_time() < end: pass\n"
        "    return block[:1]\n"
        "print(json.dumps(measure._in_a_fork(toys.of(toys.centre, run=run))))\n"
    )
    used = alone_checks.run_alone(["-c", script])
    assert used["error"] == ""
    assert 0.3 <= used["seconds"] < 1.5
    assert 150 < used["megabytes"] < 260


# --- waivers and counts

WAIVER = """
[[waiver]]
check = "toys/Gain/compiles"
reason = "the compiler does not know this operation yet"
owner = "someone"
date = 2026-11-21
"""


def test_a_waiver_needs_a_reason_an_owner_a_date_and_a_check():
    assert read_waivers(WAIVER)["toys/Gain/compiles"].owner == "someone"
    for old, new in [
        ("the compiler does not know this operation yet", "FIXME, some day, when there is time"),
        ("the compiler does not know this operation yet", "short"),
        ('"someone"', '" "'),
        ("2026-11-21", '"soon"'),
        ('owner = "someone"\n', ""),
    ]:
        with pytest.raises(AssertionError):
            read_waivers(WAIVER.replace(old, new))
    with pytest.raises(AssertionError, match="twice"):
        read_waivers(WAIVER * 2)
    with pytest.raises(AssertionError, match="no such check"):
        require_known(read_waivers(WAIVER), {"toys/Gain/other"})


def _report(outcome, when="call", **said):
    properties = [(PROPERTY, "toys"), (f"{PROPERTY} plan", ["block", False, 2, 3])]
    return SimpleNamespace(user_properties=[*properties, *said.items()], outcome=outcome, when=when)


def test_the_tally_counts_what_ran_and_finds_a_method_below_its_floor():
    tally = Tally()
    for outcome in ("passed", "skipped", "failed"):
        tally.add(_report("passed", when="setup"))
        tally.add(_report(outcome))
    assert tally.counts["toys"]["ran"] == 2
    assert tally.counts["toys"]["failed"] == 1
    assert tally.too_few() == []
    below = Tally()
    for outcome in ("passed", "skipped", "skipped"):
        below.add(_report(outcome))
    assert below.too_few() == ["toys: 1 checks ran, a block needs 2"]
    part = Tally()
    part.add(_report("passed"))
    assert part.too_few() == []


def test_the_tally_lists_what_a_draft_has_still_to_write():
    tally = Tally()
    tally.add(_report("skipped", **{UNWRITTEN: "claims"}))
    assert tally.lines()[-1] == "toys, to be written: claims"


PLUGIN_RUN = """
import pytest
@pytest.mark.parametrize("outcome", ["pass", "pass", "skip"])
def test_toy(outcome, record_property):
    record_property("conformance", "toys")
    record_property("conformance plan", ["block", False, {floor}, 3])
    if outcome == "skip":
        pytest.skip("not applicable")
"""


@pytest.mark.parametrize(("floor", "status"), [(2, 0), (3, 1)])
def test_counts_add_up_over_workers_and_decide_the_exit_status(floor, status, tmp_path):
    (tmp_path / "test_toy.py").write_text(PLUGIN_RUN.format(floor=floor), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "tests.conformance.tally"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("toys "))
    assert row.split() == ["toys", "block", "2", "0", "0", "1", "0", str(floor)]
    assert json.dumps("TOO FEW" in done.stdout) == json.dumps(status == 1)
