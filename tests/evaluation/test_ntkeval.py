"""NTKEval against its slow twin, and what is special about it."""

import gc
import math
from itertools import product

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tests.conformance.watch import annotations_unchecked
from tests.naive import ntkeval as naive
from trialrun.core.errors import UsageError
from trialrun.evaluation._encoding import Encoder
from trialrun.evaluation._estimators import effective_share, over_prompts
from trialrun.evaluation._passes import Reader
from trialrun.evaluation.ntkeval import (
    Draws,
    Example,
    GradientStep,
    KernelResult,
    LoRAStep,
    NTKEval,
    Skill,
    estimate,
    exact_match,
    left_untouched,
)

LETTERS = "0123+-=."
END = LETTERS.index(".")


def tokenizer_of(letters=LETTERS):
    words = Tokenizer(models.WordLevel({c: i for i, c in enumerate(letters)}, "."))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=".")


def llama(seed=0, dtype=torch.float64, **more):
    config = LlamaConfig(
        vocab_size=len(LETTERS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=96,
        eos_token_id=END,
        bos_token_id=None,
        initializer_range=0.4,
        **more,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(dtype).eval()


def gpt2(seed=0, dtype=torch.float64, **more):
    config = GPT2Config(
        vocab_size=len(LETTERS),
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=96,
        eos_token_id=END,
        bos_token_id=None,
        initializer_range=0.4,
        **more,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).to(dtype).eval()


def next_logits(model):
    def read(ids):
        with torch.no_grad():
            return model(input_ids=torch.tensor([ids])).logits[0, -1].tolist()

    return read


def sums(sign, digits=4):
    return [
        Example(f"{a}{sign}{b}=", str((a + b if sign == "+" else a - b) % 4))
        for a, b in product(range(digits), repeat=2)
    ]


def probe_of(model=None, **settings):
    skills = settings.pop("skills", {"add": sums("+"), "subtract": sums("-")})
    more = {"samples": 8, "tokenizer": tokenizer_of(), "max_new_tokens": 2, **settings}
    return NTKEval(llama() if model is None else model, skills, **more)


def random_draws(prompts, count, seed=0):
    rng = np.random.default_rng(seed)
    before = rng.normal(-2, 1, size=(prompts, count))
    return Draws(before, before + rng.normal(0, 1, before.shape), rng.random(before.shape) < 0.5)


# The estimators.


@pytest.mark.parametrize("count", [1, 7, 63])
def test_estimators_match_the_slow_twin(count):
    base, tuned = random_draws(3, count, 1), random_draws(3, count, 2)
    for i in range(3):
        first = list(zip(base.before[i], base.after[i], base.correct[i], strict=True))
        second = list(zip(tuned.before[i], tuned.after[i], tuned.correct[i], strict=True))
        expected = {
            "importance": naive.importance(*zip(*first, strict=True)),
            "self-normalised": naive.self_normalised(*zip(*first, strict=True)),
            "independent": naive.independent(base.correct[i], tuned.correct[i]),
            "mixture": naive.mixture(first, second),
        }
        for name, value in expected.items():
            assert estimate(name, base, tuned).change[i] == pytest.approx(value, abs=1e-12)
    weights = [math.exp(r) for r in base.ratio.ravel()]
    assert estimate("importance", base, None).ess == pytest.approx(naive.effective_share(weights))


@pytest.mark.parametrize(("first", "second"), [(1, 1), (2, 1), (1, 3)])
@pytest.mark.parametrize("name", ["importance", "independent", "mixture"])
def test_unbiased_estimators_average_to_the_change_over_all_outcomes(name, first, second):
    p, q, right = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5]), np.array([0, 1, 1])
    total = 0.0
    for drawn in product(range(3), repeat=first + second):
        a, b = list(drawn[:first]), list(drawn[first:])
        base, tuned = (
            Draws(np.log(p)[[d]], np.log(q)[[d]], right[[d]].astype(bool)) for d in (a, b)
        )
        total += p[a].prod() * q[b].prod() * estimate(name, base, tuned).change[0]
    assert total == pytest.approx(float(((q - p) * right).sum()), abs=1e-12)


def test_mixture_weights_stay_bounded_where_the_laws_have_nothing_in_common():
    far = np.array([[-800.0, -3.0]])
    base = Draws(far[:, ::-1], far, np.array([[True, True]]))
    tuned = Draws(far, far[:, ::-1], np.array([[True, True]]))
    made = estimate("mixture", base, tuned)
    assert np.isfinite(made.change).all()
    assert abs(made.change[0]) <= 2.0
    assert 0.49 < made.ess <= 1.0


def test_effective_share_does_not_overflow():
    assert effective_share(np.array([900.0, 900.0, -900.0])) == pytest.approx(2 / 3)


def test_standard_error_is_over_prompts_as_in_the_twin():
    values = np.random.default_rng(0).normal(size=63)
    assert over_prompts(values) == pytest.approx(naive.mean_error(values.tolist()))


# Passes.


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_scores_match_the_slow_twin_whatever_the_padding(make, batch_tokens):
    model = make()
    reader = Reader(model, Encoder(tokenizer_of(), model, 4), batch_tokens)
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(0, 7, size=n).tolist()) for n in (1, 7, 63, 7)]
    answers = [[(1,), (2, 3, END), (0, 1, 2, 3), (1,)] for _ in prompts]
    found = reader.score(prompts, answers)
    for prompt, given, logs in zip(prompts, answers, found, strict=True):
        expected = [naive.answer_log_prob(next_logits(model), prompt, ids) for ids in given]
        np.testing.assert_allclose(logs, expected, rtol=1e-10)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_draws_match_the_slow_twin(make):
    model = make()
    rng = np.random.default_rng(1)
    prompts = [tuple(rng.integers(0, 7, size=n).tolist()) for n in (1, 5, 9)]
    uniforms = rng.random((3, 7, 5))
    reader = Reader(model, Encoder(tokenizer_of(), model, 5), 60)
    lengths = set()
    for prompt, numbers, drawn in zip(
        prompts, uniforms, reader.draw(prompts, uniforms), strict=True
    ):
        for u, answer in zip(numbers, drawn, strict=True):
            ids, log_prob = naive.draw(next_logits(model), prompt, u, {END})
            assert answer.ids == ids
            assert answer.log_prob == pytest.approx(log_prob, abs=1e-10)
            lengths.add(len(ids))
    assert len(lengths) > 1  # some ended early and left the batch


def test_single_precision_stays_close_to_double():
    wide = llama()
    narrow = llama().float()
    prompts, answers = [(1, 4, 2, 6)], [[(1, END), (3, END)]]
    scores = [
        Reader(m, Encoder(tokenizer_of(), m, 2), 4096).score(prompts, answers)[0]
        for m in (wide, narrow)
    ]
    np.testing.assert_allclose(scores[1], scores[0], atol=2e-5)


# The kernel.


def test_exact_kernel_is_the_sum_over_every_answer_there_is():
    model = llama()
    probe = probe_of(model, estimator="exact")
    kernel = probe.kernel(GradientStep(rate=0.05))
    example = probe.skills[0].test[0]
    prompt = tokenizer_of()(example.prompt)["input_ids"]

    def right():
        every = naive.all_answers(next_logits(model), prompt, 2, {END}, len(LETTERS))
        text = {ids: "".join(LETTERS[i] for i in ids if i != END) for ids in every}
        return sum(p for ids, p in every.items() if exact_match(text[ids], example))

    before = right()
    with left_untouched(model):
        GradientStep(rate=0.05)(model, probe.lesson("add"))
        after = right()
    assert kernel.changes[0][0, 0] == pytest.approx(after - before, abs=1e-12)


@pytest.mark.parametrize("estimator", ["mixture", "importance", "independent", "self-normalised"])
def test_drawn_kernels_come_near_the_exact_one(estimator):
    step = GradientStep(rate=0.003)
    exact = probe_of(estimator="exact").kernel(step)
    drawn = probe_of(estimator=estimator, samples=800).kernel(step)
    assert (np.abs(drawn.mean - exact.mean) < 0.02).all()
    assert (drawn.ess > 0.2).all()


def test_in_context_kernel_scores_the_same_answers_after_the_shots():
    model = llama()
    probe = probe_of(model, estimator="exact")
    kernel = probe.kernel_icl(shots=2, separator="-")
    assert kernel.how == "in context"
    again = probe_of(model, estimator="mixture", samples=2000).kernel_icl(shots=2, separator="-")
    assert (np.abs(again.mean - kernel.mean) < 0.03).all()


def test_a_step_of_no_length_changes_nothing():
    for estimator in ("mixture", "importance", "exact"):
        kernel = probe_of(estimator=estimator).kernel(GradientStep(rate=0.0))
        np.testing.assert_allclose(kernel.mean, 0.0, atol=1e-12)
        np.testing.assert_allclose(kernel.ess, 1.0)


def test_half_precision_scores_both_models_alike():
    model = llama(dtype=torch.bfloat16)
    kernel = probe_of(model).kernel(GradientStep(rate=0.0))
    assert (kernel.mean == 0.0).all()


def test_dropout_is_off_and_the_mode_is_put_back():
    model = gpt2(resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5)
    step = GradientStep(rate=0.01)
    resting = probe_of(model, estimator="exact").kernel(step)
    model.train()
    np.testing.assert_array_equal(
        probe_of(model, estimator="exact").kernel(step).mean, resting.mean
    )
    assert all(module.training for module in model.modules())


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    first, second, other = (
        probe_of(seed=seed).kernel(GradientStep(rate=0.05)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.mean, second.mean)
    assert not np.array_equal(first.mean, other.mean)


def test_weights_that_a_few_draws_carry_are_refused_with_the_remedy():
    wild = GradientStep(rate=0.5)
    with pytest.raises(UsageError, match=r"effective sample size of 0\.\d+ .* estimator='mixture'"):
        probe_of(estimator="importance", samples=64).kernel(wild)
    assert (probe_of(estimator="mixture", samples=64).kernel(wild).ess > 0.4).all()


# First order.


def test_linear_prediction_is_what_small_steps_approach():
    probe = probe_of(estimator="exact")
    gaps = []
    for rate in (1e-3, 1e-4):
        kernel = probe.kernel(GradientStep(rate=rate))
        linear = probe.linear("add", "subtract", rate=rate)
        gaps.append(abs(kernel.mean[0, 1] - linear.mean) / rate)
        assert linear.se == pytest.approx(kernel.se[0, 1], rel=0.2)
    assert gaps[1] < 0.2 * gaps[0]


def test_linear_prediction_from_draws_comes_near_the_exact_one():
    exact = probe_of(estimator="exact").linear("add", "add", rate=1.0)
    drawn = [probe_of(samples=4000, seed=s).linear("add", "add", rate=1.0).mean for s in range(6)]
    assert np.mean(drawn) == pytest.approx(exact.mean, rel=0.2)


# Leaving no trace.


def state_of(model):
    return {
        "bits": {n: t.detach().clone() for n, t in model.state_dict().items()},
        "objects": [id(m) for m in model.modules()] + [id(p) for p in model.parameters()],
        "flags": [p.requires_grad for p in model.parameters()],
        "grads": [p.grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "hooks": [len(m._forward_hooks) for m in model.modules()],
        "types": [p.dtype for p in model.parameters()],
        "config": model.config.to_dict(),
    }


def assert_untouched(model, before):
    after = state_of(model)
    bits, was = after.pop("bits"), dict(before).pop("bits")
    assert bits.keys() == was.keys()
    assert all(torch.equal(bits[n], was[n]) for n in bits)
    assert after == {k: v for k, v in before.items() if k != "bits"}


def scribbles(model, lesson):
    model.train()
    model.config.use_cache = False
    model.lm_head.register_forward_hook(lambda *_: None)
    model.model.layers[0].mlp = torch.nn.Identity()
    for weight in model.parameters():
        weight.data = torch.zeros_like(weight.data).half()
        weight.grad = torch.ones_like(weight.data)
        weight.requires_grad_(False)
    model.left_behind = torch.nn.Linear(1, 1)
    torch.rand(1)
    raise RuntimeError("midway")


@pytest.mark.parametrize(
    "train",
    [LoRAStep(steps=2, rate=0.01, rank=2), GradientStep(rate=0.1, steps=2, optimiser="adamw")],
)
def test_training_leaves_no_trace(train):
    model = llama(dtype=torch.float32)
    before, random = state_of(model), torch.get_rng_state()
    kernel = probe_of(model, estimator="exact").kernel(train)
    assert np.abs(kernel.mean).max() > 0
    assert_untouched(model, before)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_training_function_that_raises_leaves_no_trace():
    model = llama()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    before, random = state_of(model), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="midway"):
        probe_of(model).kernel(scribbles)
    assert_untouched(model, before)
    assert torch.equal(torch.get_rng_state(), random)


def test_adapters_of_the_users_own_come_off_as_well():
    peft = pytest.importorskip("peft")
    model = llama(dtype=torch.float32)
    before = state_of(model)

    def train(host, lesson):
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
        adapted = peft.get_peft_model(host, config)
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "lora_B" in name:
                    weight.add_(0.1)

    assert np.abs(probe_of(model, estimator="exact").kernel(train).mean).max() > 0
    assert_untouched(model, before)


def test_no_second_copy_of_the_weights_is_made_for_adapters():
    model = llama(dtype=torch.float32)
    shape = model.model.embed_tokens.weight.shape
    counts = []

    class Counting(LoRAStep):
        def __call__(self, host, lesson):
            super().__call__(host, lesson)
            gc.collect()
            alive = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
            stores = {o.untyped_storage().data_ptr() for o in alive if o.shape == shape}
            counts.append(len(stores))

    gc.collect()
    alive = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
    plain = len({o.untyped_storage().data_ptr() for o in alive if o.shape == shape})
    probe_of(model).kernel(Counting(steps=1, rank=1))
    assert counts == [plain, plain]


# What follows from a kernel.


def made_kernel(mean, factors, prompts=9, seed=0):
    mean = np.asarray(mean, dtype=float)
    size = len(mean)
    noise = np.random.default_rng(seed).normal(0, 0.01, size=(size, size, prompts))
    noise -= noise.mean(2, keepdims=True)
    changes = tuple(mean[:, [j]] + noise[:, j] for j in range(size))
    se = np.stack([c.std(1, ddof=1) / math.sqrt(prompts) for c in changes], axis=1)
    labels = tuple("/".join(f) for f in factors)
    ones = np.ones_like(mean)
    return KernelResult(labels, factors, "tuning", "exact", ones[0], mean, se, ones, changes, 0)


CELLS = tuple(product(("add", "subtract"), ("bare", "words")))


def test_specificity_and_the_split_match_the_slow_twin():
    mean = np.random.default_rng(3).normal(size=(4, 4))
    kernel = made_kernel(mean, CELLS)
    assert kernel.specificity().difference.mean == pytest.approx(naive.specificity(mean.tolist()))
    split = kernel.anova()
    skill, form = naive.two_way(mean.tolist(), CELLS)
    assert split.skill.mean == pytest.approx(skill)
    assert split.form.mean == pytest.approx(form)
    assert sum(split.shares.values()) == pytest.approx(1.0)


def test_row_and_column_effects_alone_are_neither_specific_nor_split():
    mean = np.array([0.1, 0.2, 0.3, 0.5])[:, None] + np.array([0.0, 0.4, 0.1, 0.3])
    kernel = made_kernel(mean, CELLS)
    found = kernel.specificity()
    assert found.difference.mean == pytest.approx(0.0, abs=1e-12)
    assert found.p == 1.0
    split = kernel.anova()
    assert abs(split.skill.mean) + abs(split.form.mean) + abs(split.cell.mean) < 1e-12
    np.testing.assert_allclose(kernel.centred().mean(1), 0.0, atol=1e-12)


@pytest.mark.parametrize("which", [0, 1])
def test_the_split_finds_the_factor_that_matters(which):
    mean = [[0.2 if a[which] == b[which] else -0.1 for b in CELLS] for a in CELLS]
    split = made_kernel(mean, CELLS).anova()
    part = ("skill", "format")[which]
    assert split.shares[part] == pytest.approx(1.0)
    assert split.signed_share(part) == pytest.approx(1.0)
    reversed_split = made_kernel(-np.array(mean), CELLS).anova()
    assert reversed_split.signed_share(part) == pytest.approx(-1.0)


def test_relabelling_is_exhaustive_where_it_can_be():
    names = tuple((n, "") for n in "abcde")
    strong = made_kernel(np.eye(5), names)
    assert strong.specificity(permutations=200).relabellings == 120
    assert strong.specificity(permutations=200).p == pytest.approx(1 / 120)
    assert strong.specificity(permutations=50).relabellings == 50


def test_relabelling_is_calibrated_without_an_effect():
    names = tuple((n, "") for n in "abcde")
    rng = np.random.default_rng(0)
    p = [made_kernel(rng.normal(size=(5, 5)), names).specificity(120).p for _ in range(200)]
    assert np.mean(np.array(p) <= 0.05) <= 0.1
    assert 0.35 < np.mean(p) < 0.65


def test_a_kernel_survives_json_and_makes_a_picture(tmp_path):
    kernel = probe_of().kernel(GradientStep(rate=0.05))
    kernel.to_json(tmp_path / "kernel.json")
    back = KernelResult.from_json(tmp_path / "kernel.json")
    for name, value in vars(kernel).items():
        np.testing.assert_array_equal(np.array(getattr(back, name)), np.array(value))
    figure = kernel.plot(tmp_path / "kernel.png")
    assert (tmp_path / "kernel.png").read_bytes()[:4] == b"\x89PNG"
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == list(kernel.labels)


# Bad input.


def raising(answer, example):
    raise KeyError("key")


MERGING = {**{c: i for i, c in enumerate("0123+=.")}, "=1": 7}


def merging_tokenizer():
    words = Tokenizer(models.BPE(MERGING, [("=", "1")]))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=".")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: probe_of(checker=raising).kernel(), r"raised KeyError .* return False"),
        (lambda: probe_of(checker=lambda a, e: 1).kernel(), r"must return True or False, got 1"),
        (lambda: probe_of(skills={"add": sums("+")[:1]}), r"at least 1 training examples, got 0"),
        (lambda: probe_of(skills={}), r"got an empty mapping"),
        (lambda: probe_of(skills={"add": "1+1=2"}), r"a Skill or a sequence of Example, got str"),
        (lambda: probe_of(skills={"add": [("1+1=", "2")] * 4}), r"must hold Example, got tuple"),
        (lambda: probe_of(skills={3: sums("+")}), r"must be a name or \(name, format\), got 3"),
        (lambda: probe_of().kernel_icl(shots=9), r"at most the 8 .* lower shots or give more"),
        (lambda: probe_of().kernel_icl(shots=0), r"shots must be at least 1"),
        (lambda: probe_of(max_new_tokens=95), r"prompt of 4 tokens .* exceed the model's 96"),
        (lambda: probe_of(samples=2.5), r"samples must be a whole number, got 2.5"),
        (lambda: probe_of(model=torch.nn.Linear(2, 2)), r"causal language model, got Linear"),
        (lambda: probe_of(estimator="exact").draws("add"), r"got 'exact': use 'mixture'"),
        (lambda: probe_of().right_before(), r"needs estimator='exact', got 'mixture'"),
        (lambda: probe_of().kernel().anova(), r"every skill in every format, two of each"),
        (
            lambda: probe_of(skills={"add": sums("+")}).kernel().specificity(),
            r"at least two skills, got 1",
        ),
        (
            lambda: probe_of(skills={"a": [Example("1+1=", "222")] * 4}, estimator="exact"),
            r"'222' takes 3 tokens and max_new_tokens is 2: raise it",
        ),
        (
            lambda: probe_of(
                skills={"a": [Example("1+0=", "1")] * 4}, tokenizer=merging_tokenizer()
            ).kernel(),
            r"merges the end of the prompt .* let the answer begin with it",
        ),
        (lambda: KernelResult.from_json("/nowhere.json"), r"must hold a kernel, got FileNotFound"),
        (
            lambda: probe_of().kernel(GradientStep(rate=float("inf"))),
            r"finite probabilities|rate must be",
        ),
    ],
)
def test_bad_input_gets_one_clear_sentence(call, message):
    with annotations_unchecked(), pytest.raises(ValueError, match=message):
        call()


def test_a_frozen_model_is_told_to_use_adapters():
    model = llama().requires_grad_(False)
    with pytest.raises(UsageError, match="use LoRAStep"):
        probe_of(model).kernel(GradientStep(rate=0.1))


def test_a_skill_keeps_its_own_split():
    skill = Skill("add", sums("+")[:3], sums("+")[3:6])
    probe = probe_of(skills={("add", "bare"): skill})
    assert probe.skills[0].label == "add/bare"
    assert len(probe.skills[0].train) == 3
