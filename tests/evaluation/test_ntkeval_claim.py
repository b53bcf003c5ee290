"""The dossier's measuring code: worlds, oracles, and controls that destroy what they say."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from trialrun.blocks.bytelm import Schedule, save_model
from trialrun.catalogue.card import parse_card
from trialrun.claims.contract import Context
from trialrun.core.errors import NotRunnable, UsageError
from trialrun.dossiers.ntkeval import _own, claim
from trialrun.dossiers.ntkeval._errors import (
    Shift,
    answer_laws,
    displacement,
    divergence,
    independent_spread,
    relative_errors,
    save_truth,
)
from trialrun.dossiers.ntkeval.worlds import (
    ALPHABET,
    END,
    HIDDEN,
    TOLD,
    _sequences,
    make_skills,
    make_tokenizer,
    make_told_host,
)
from trialrun.evaluation.ntkeval import Example, GradientStep, NTKEval

SMOKE = claim.TRIAL.budgets["smoke"]
STEP = GradientStep(rate=1e-2, steps=3, optimiser="adamw")


def small_host(seed=0):
    return make_told_host(
        SMOKE.told_shape, Schedule(steps=60, batch=32, rate=1e-2), most=1, wanted=1.0, seed=seed
    )


def test_the_trial_has_the_cards_claims_and_arms():
    card = parse_card(Path(claim.__file__).with_name("card.toml").read_text())
    assert {c.id: set(c.arms) for c in card.claims} == {
        name: set(arms) for name, arms in claim.TRIAL.arms.items()
    }


@pytest.mark.parametrize("cells", [TOLD, HIDDEN])
def test_training_texts_are_right_and_hold_one_cell_each(cells):
    texts = ["".join(ALPHABET[i] for i in row) for row in _sequences(cells, 3, 0)(50).tolist()]
    known = {
        e.prompt + e.answer: cell
        for cell, skill in make_skills(cells, train=20, test=20, seed=0).items()
        for e in [*skill.train, *skill.test]
    }
    for text in texts:
        parts = text.split(END)[:-1]
        assert len(parts) == 3
        marks = {part[0] == "<" or part[0] in "pm" for part in parts}
        assert len(marks) == 1
        if cells is TOLD:
            assert len({known.get(p, "unknown") for p in parts} - {"unknown"}) <= 1


def test_hidden_questions_do_not_tell_their_operation_and_shots_do_not_give_them_away():
    skills = make_skills(HIDDEN, train=16, test=24, seed=0)
    larger, smaller = (skills[name, "infix"] for name in ("larger", "smaller"))
    assert [e.prompt for e in larger.test] == [e.prompt for e in smaller.test]
    assert all(a.answer != b.answer for a, b in zip(larger.test, smaller.test, strict=True))
    shown = {e.prompt for skill in skills.values() for e in skill.train}
    assert not shown & {e.prompt for skill in skills.values() for e in skill.test}


def test_random_answers_are_wrong_and_in_the_right_notation():
    right = make_skills(TOLD, train=20, test=20, seed=0)
    wrong = make_skills(TOLD, train=20, test=20, seed=0, random_answers=True)
    for cell in right:
        for a, b in zip(right[cell].train, wrong[cell].train, strict=True):
            assert a.prompt == b.prompt
            assert b.answer != a.answer
            assert b.answer in ALPHABET[:10]
        assert [e.answer for e in right[cell].test] == [e.answer for e in wrong[cell].test]


def test_divergence_is_zero_for_the_same_law_and_that_of_plain_enumeration():
    model = small_host()
    prompts = torch.tensor([make_tokenizer()("3+4=")["input_ids"]])
    before = answer_laws(model, prompts)
    end = ALPHABET.index(END)
    assert divergence(before, before, end) == pytest.approx(0.0, abs=1e-12)
    skill = make_skills(TOLD, train=8, test=8, seed=0)["add", "infix"]
    probe = NTKEval(model, {"x": skill}, tokenizer=make_tokenizer(), max_new_tokens=2)
    by = displacement(model, STEP, probe.lesson("x/infix"))
    Shift(by, 1.0)(model, None)
    after = answer_laws(model, prompts)
    total = 0.0
    for i in range(len(ALPHABET)):
        q, p = after[0][0, i], before[0][0, i]
        if i == end:
            total += float(q.exp() * (q - p))
            continue
        for j in range(len(ALPHABET)):
            both_q, both_p = q + after[1][0, i, j], p + before[1][0, i, j]
            total += float(both_q.exp() * (both_q - both_p))
    assert divergence(after, before, end) == pytest.approx(total, rel=1e-6)


def test_truth_reaches_each_size_and_the_estimators_are_measured_against_it(tmp_path):
    model = small_host()
    save_model(model, tmp_path / "host")
    skill = make_skills(TOLD, train=6, test=6, seed=0)["add", "infix"]
    save_truth(model, skill, STEP, tmp_path)
    sizes = json.loads((tmp_path / "truth.json").read_text())["sizes"]
    scales = [kept["scale"] for kept in sizes.values()]
    assert scales == sorted(scales)
    settings = {"sizes": (0.05,), "repeats": 12, "samples": 64, "seed": 0, "device": "cpu"}
    found = {
        arm: relative_errors(tmp_path, arm=arm, **settings)["0.05"]
        for arm in ("independent", "importance", "mixture", "always-zero", "shuffled-weights")
    }
    assert 0.4 < found["independent"] < 1.8
    assert max(found["importance"], found["mixture"]) < found["independent"]
    truth = sizes["0.05"]
    spread = independent_spread(truth["before"], truth["after"], 64)
    assert found["always-zero"] == pytest.approx(abs(truth["change"]) / spread)


def test_arms_read_what_the_preparations_left(tmp_path):
    ctx = Context(budget=SMOKE, seed=0, prepared_root=tmp_path)
    for name, prepare in claim.TRIAL.prepare.items():
        ctx.prepared(name).mkdir()
        prepare(ctx, ctx.prepared(name))
    for name in ("tuning-format", "icl-skill"):
        found = {arm: run(ctx).points["value"] for arm, run in claim.TRIAL.arms[name].items()}
        assert all(-1 <= value <= 1 for value in found.values())
    assert claim.TRIAL.arms["icl-skill"]["skill"](ctx).extra["right_before"] >= 0


@pytest.mark.parametrize(
    ("text", "number"),
    [(" 7", "7"), ("-3 or 4", "-3"), ("It is 12.", "12"), ("none", ""), ("3-4", "3")],
)
def test_the_first_number_is_what_counts(text, number):
    assert _own.first_number(text) == number
    assert _own.right_number(text, Example("", f" {number}")) is True


def test_own_controls_answer_with_other_problems_answers():
    ctx = Context(budget=replace(SMOKE), seed=3, model="unused")
    right, wrong = (_own.make_cells(ctx, random_answers=r) for r in (False, True))
    assert set(right) == {(o, f) for o in ("add", "subtract") for f in ("bare", "question")}
    for cell in right:
        pairs = zip(right[cell].train, wrong[cell].train, strict=True)
        assert all(a.prompt == b.prompt and a.answer != b.answer for a, b in pairs)
        assert not {e.prompt for e in right[cell].train} & {e.prompt for e in right[cell].test}


def test_a_model_that_cannot_serve_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(NotRunnable, match="no model could be read from"):
        claim._check_on(Context(budget=SMOKE, seed=0, model=str(tmp_path / "nothing")))
    save_model(small_host(), tmp_path / "host")
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "host")
    with pytest.raises(UsageError, match="no end token"):
        claim._check_on(Context(budget=SMOKE, seed=0, model=str(tmp_path / "host")))


def test_a_users_model_gives_kernels_of_both_kinds(tmp_path):
    words = sorted(set("Question: State the final answer to following arithmetic problem\nAnswer"))
    letters = [*dict.fromkeys([*"0123456789 +-=.", *words])]
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({c: i for i, c in enumerate(letters)}, "."))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token=".").save_pretrained(tmp_path)
    config = LlamaConfig(
        vocab_size=len(letters),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=400,
        eos_token_id=letters.index("."),
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    ctx = Context(budget=SMOKE, seed=0, model=str(tmp_path), prepared_root=tmp_path)
    claim._check_on(ctx)
    for how in ("tuning", "in context"):
        kernel = _own.measure(ctx, how=how, random_answers=False)
        assert kernel.mean.shape == (4, 4)
        assert np.isfinite(kernel.mean).all()
    kept = tmp_path / "kept"
    kept.mkdir()
    lines, scope = claim._keep(ctx, kept).splitlines(), {}
    exec("\n".join(lines[:2]), scope)
    assert scope["kernel"].labels[0] == "add/bare"
