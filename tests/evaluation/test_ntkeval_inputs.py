"""What a user can get wrong with NTKEval, and hosts that are easily misread."""

import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from tests.conformance.watch import annotations_unchecked
from tests.evaluation.test_ntkeval import (
    CELLS,
    END,
    gpt2,
    llama,
    made_kernel,
    next_logits,
    probe_of,
    tokenizer_of,
)
from tests.naive import ntkeval as naive
from trialrun.core.errors import UsageError
from trialrun.evaluation.ntkeval import Example, GradientStep, LoRAStep, NTKEval, Skill

STEP = GradientStep(rate=0.1)
TEXTS = [Example("1+1=", "2"), Example("1+1+1+1=", "0")] * 2


def encoder_decoder():
    sizes = {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    return T5ForConditionalGeneration(T5Config(vocab_size=8, decoder_start_token_id=0, **sizes))


def asks(*examples, **settings):
    return probe_of(skills={"a": [*examples] * 4}, **settings)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Example("5+7=", "12", "12"), r"answers must be a tuple of texts, got '12'"),
        (lambda: Example("5+7=", 12), r"answer must be text, got 12: wrap it"),
        (lambda: Example(5, "12"), r"prompt must be text, got 5"),
        (
            lambda: probe_of(skills={"a": Skill("a", 3, 4)}),
            r"must be sequences of Example, got int",
        ),
        (
            lambda: asks(Example("1+1=", "2."), estimator="exact"),
            r"'2\.' holds a token that ends answers: leave it out",
        ),
        (
            lambda: asks(Example("1+1=", "2.3"), max_new_tokens=4).kernel(STEP),
            r"holds a token that ends answers",
        ),
        (
            lambda: asks(Example("x+1=", "2"), tokenizer=tokenizer_of("0123+-=.xyz")),
            r"token 8 .* vocabulary has 8: give the model's own tokenizer",
        ),
        (lambda: probe_of(llama().model).kernel(STEP), r"LlamaModel gives no logits"),
        (lambda: probe_of(encoder_decoder()), r"has an encoder: choose a causal"),
        (lambda: probe_of().kernel("lora"), r"train must be a function .* got 'lora'"),
        (lambda: probe_of().kernel(lambda m, _: llama(1)), r"in place, and returned another Llama"),
        (lambda: probe_of().kernel_icl(shots=2.5), r"shots must be a whole number, got 2.5"),
        (lambda: probe_of().kernel_icl(2, separator=3), r"separator must be text, got 3"),
        (lambda: GradientStep(rate=0.1, steps=2.5), r"steps must be a whole number"),
        (lambda: GradientStep(rate=0.1, batch=0), r"batch must be at least 1, got 0"),
        (lambda: GradientStep(rate="fast"), r"rate must be a finite number, got 'fast'"),
        (lambda: LoRAStep(rank=2.5), r"rank must be a whole number"),
        (
            lambda: probe_of().linear("add", "add", rate=float("nan")),
            r"rate must be a finite number, got nan",
        ),
        (lambda: made_kernel(np.eye(4), CELLS).specificity(2.5), r"permutations must be a whole"),
    ],
)
def test_bad_input_gets_one_clear_sentence(call, message):
    with annotations_unchecked(), pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_model_wrapped_by_adapters_is_padded_as_it_is_alone(make):
    peft = pytest.importorskip("peft")
    plain = make()
    expected = NTKEval(
        plain, {"a": TEXTS}, estimator="exact", tokenizer=tokenizer_of(), max_new_tokens=2
    ).right_before()
    adapters = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    wrapped = peft.get_peft_model(plain, adapters).double()
    found = probe_of(wrapped, skills={"a": TEXTS}, estimator="exact").right_before()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_exact_sums_count_every_token_that_ends_an_answer():
    model = llama()
    other = 6  # "="
    model.generation_config.eos_token_id = [END, other]
    probe = probe_of(model, estimator="exact")
    example = probe.skills[0].test[0]
    prompt, right = (tokenizer_of()(t)["input_ids"] for t in (example.prompt, example.answer))
    logs = [
        naive.answer_log_prob(next_logits(model), prompt, (*right, end)) for end in (END, other)
    ]
    assert probe.right_before()[0] == pytest.approx(np.exp(logs).sum(), abs=1e-12)


@pytest.mark.parametrize("estimator", ["importance", "self-normalised"])
def test_weights_that_are_all_alike_small_are_refused(estimator):
    model = llama()
    with torch.no_grad():
        model.model.norm.weight.zero_()  # logits are constant: every token alike likely
    bias = torch.full((8,), 0.0, dtype=torch.float64)
    bias[1] = -12.0

    def shifted(sign):
        return lambda _m, _i, out: out + sign * bias

    model.lm_head.register_forward_hook(shifted(1.0))

    def train(host, _lesson):
        host.lm_head.register_forward_hook(shifted(-2.0))

    probe = probe_of(model, estimator=estimator, samples=16, max_new_tokens=1)
    made = probe.draws("add", train).base
    assert np.ptp(made.ratio) < 1e-9  # an effective sample size of all draws
    with pytest.raises(UsageError, match=r"hold 0\.0\d+ of the changed model's .*'mixture'"):
        probe.kernel(train)
    mixed = probe_of(model, samples=16, max_new_tokens=1).kernel(train)
    assert np.isfinite(mixed.mean).all()


def test_rounding_has_neither_parts_nor_relabellings():
    mean = np.array([0.1, 0.2, 0.3, 0.5])[:, None] + np.array([0.0, 0.4, 0.1, 0.3])
    assert set(made_kernel(mean, CELLS).anova().shares.values()) == {0.0}
    names = tuple((n, "") for n in "abcde")
    assert made_kernel(1e-13 * np.eye(5), names).specificity(120).p == pytest.approx(1 / 120)
