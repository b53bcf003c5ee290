"""Losses: agreement with the slow twins and with trl, and what must never be trained."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.naive.moxin_training import (
    naive_advantages,
    naive_answer,
    naive_dpo,
    naive_grpo,
    naive_sft,
)
from trialrun.core.errors import UsageError
from trialrun.pretraining._chat import Example, collate, encode_chat
from trialrun.pretraining._losses import (
    IGNORED,
    answer_logps,
    dpo_loss,
    group_advantages,
    grpo_loss,
    sft_loss,
    token_logps,
)


def _chat(time, *, batch=3, words=7, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, time + 1, words, generator=draw, dtype=torch.float64) * 3
    labels = torch.randint(0, words, (batch, time + 1), generator=draw)
    labels[torch.rand(batch, time + 1, generator=draw) < 0.4] = IGNORED
    labels[:, -1] = 1
    return logits.to(dtype).requires_grad_(), labels


def _policy(time, *, groups=2, samples=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    batch = groups * samples
    old = -torch.rand(batch, time, generator=draw, dtype=torch.float64)
    logps = (old + 0.3 * torch.randn(old.shape, generator=draw, dtype=torch.float64)).detach()
    reference = old + 0.3 * torch.randn(old.shape, generator=draw, dtype=torch.float64)
    trained = torch.rand(batch, time, generator=draw) < 0.7
    trained[:, 0] = True
    rewards = torch.randn(groups, samples, generator=draw, dtype=torch.float64)
    return logps.requires_grad_(), old, reference, group_advantages(rewards).flatten(), trained


@pytest.mark.parametrize("time", [1, 7, 63])
def test_chat_loss_and_gradient_match_the_slow_twin(time):
    logits, labels = _chat(time)
    fast, slow = sft_loss(logits, labels), naive_sft(logits, labels)
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(fast, logits), torch.autograd.grad(slow, logits), atol=1e-12, rtol=1e-10
    )


@pytest.mark.parametrize("time", [1, 7, 63])
def test_answers_are_means_over_trained_tokens(time):
    logits, labels = _chat(time, seed=1)
    torch.testing.assert_close(answer_logps(logits, labels), naive_answer(logits, labels))


def test_half_precision_logits_are_raised_before_the_softmax():
    logits, labels = _chat(63, dtype=torch.bfloat16)
    exact = sft_loss(logits.double(), labels)
    torch.testing.assert_close(sft_loss(logits, labels).double(), exact, atol=1e-6, rtol=1e-6)


def test_pieces_with_a_common_count_sum_to_the_whole():
    logits, labels = _chat(9, batch=4)
    count = int((labels[:, 1:] != IGNORED).sum())
    parts = [sft_loss(logits[i : i + 1], labels[i : i + 1], count=count) for i in range(4)]
    torch.testing.assert_close(sum(parts), sft_loss(logits, labels))


def test_what_is_not_trained_gets_no_gradient():
    logits, labels = _chat(9)
    (gradient,) = torch.autograd.grad(sft_loss(logits, labels), logits)
    trained = labels[:, 1:] != IGNORED
    assert not gradient[:, :-1][~trained].any()
    assert not gradient[:, -1].any()
    assert gradient[:, :-1][trained].abs().sum(-1).min() > 0


@pytest.mark.parametrize("beta", [0.1, 5.0])
@pytest.mark.parametrize("size", [1, 7, 63])
def test_preference_loss_matches_the_slow_twin(size, beta):
    draw = torch.Generator().manual_seed(size)
    four = [-torch.rand(size, generator=draw, dtype=torch.float64) for _ in range(4)]
    four[0].requires_grad_()
    four[1].requires_grad_()
    fast, slow = dpo_loss(*four, beta=beta).loss, naive_dpo(*four, beta)
    torch.testing.assert_close(fast, slow, atol=1e-13, rtol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(fast, four[:2]), torch.autograd.grad(slow, four[:2])
    )


def test_preference_loss_stays_finite_where_a_plain_sigmoid_would_not():
    far = torch.tensor([-500.0], requires_grad=True)
    near = torch.tensor([0.0])
    loss = dpo_loss(far, near, near, near, beta=5.0).loss
    assert loss.item() == 2500.0
    assert torch.autograd.grad(loss, far)[0].item() == -5.0


def test_a_longer_answer_weighs_no_more_once_normalised():
    # The same log ratio per token, over 2 and over 60 tokens.
    labels = [torch.tensor([[IGNORED] + [1] * n]) for n in (2, 60)]
    logits = [torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0))]
    logits.append(logits[0][:, :1].expand(1, 61, 5).contiguous())
    logits[0] = logits[0][:, :1].expand(1, 3, 5).contiguous()
    short, long = (answer_logps(a, b) for a, b in zip(logits, labels))
    torch.testing.assert_close(short, long)


@given(
    st.integers(1, 4),
    st.integers(2, 6),
    st.sampled_from([0.0, 1e-4]),
    st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_advantages_match_the_slow_twin_and_centre_each_group(groups, samples, floor, seed):
    draw = torch.Generator().manual_seed(seed)
    rewards = torch.randint(0, 3, (groups, samples), generator=draw).double()
    found = group_advantages(rewards, floor=floor)
    torch.testing.assert_close(found, naive_advantages(rewards, floor))
    assert found.sum(1).abs().max() < 1e-9


@pytest.mark.parametrize("mean", ["sequences", "tokens"])
@pytest.mark.parametrize("time", [1, 7, 63])
def test_policy_loss_and_gradient_match_the_slow_twin(time, mean):
    logps, *rest = _policy(time)
    fast = grpo_loss(logps, *rest, clip=0.1, kl=0.05, mean=mean).loss
    slow = naive_grpo(logps, *rest, 0.1, 0.05, mean)
    torch.testing.assert_close(fast, slow, atol=1e-13, rtol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(fast, logps), torch.autograd.grad(slow, logps), atol=1e-13, rtol=1e-10
    )


def test_the_kl_estimate_is_never_negative_and_exact_for_small_gaps():
    gap = torch.logspace(-9, 1, 60, dtype=torch.float64)
    zero, ones = torch.zeros(1, 60, dtype=torch.float64), torch.ones(1, 60, dtype=torch.bool)
    found = grpo_loss(zero, zero, gap[None], torch.zeros(1, dtype=torch.float64), ones, kl=1.0)
    assert found.kl >= 0
    small = grpo_loss(
        zero[:, :1], zero[:, :1], gap[None, :1] * 1e3, torch.zeros(1), ones[:, :1], kl=1.0
    )
    assert abs(float(small.kl) / (1e-6**2 / 2) - 1) < 1e-3


def test_infinities_at_untrained_places_reach_neither_loss_nor_gradient():
    logps, old, reference, advantages, trained = _policy(7)
    wild = torch.where(trained, logps.detach(), torch.tensor(float("inf"), dtype=torch.float64))
    wild.requires_grad_()
    found = grpo_loss(wild, old, reference, advantages, trained, kl=0.1)
    torch.testing.assert_close(
        found.loss, grpo_loss(logps, old, reference, advantages, trained, kl=0.1).loss
    )
    (gradient,) = torch.autograd.grad(found.loss, wild)
    assert torch.isfinite(gradient).all()
    assert not gradient[~trained].any()


def test_a_group_that_agrees_pulls_nowhere():
    logps, old, _, _, trained = _policy(5)
    flat = group_advantages(torch.full((2, 3), 0.1)).flatten()
    loss = grpo_loss(logps, old, None, flat, trained, kl=0.0).loss
    assert not torch.autograd.grad(loss, logps)[0].any()


CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long"},
]


def _bytes(text):
    return text.encode()


def _trained(example):
    return bytes(i for i in example.labels if i != IGNORED)


def test_only_the_assistant_is_trained_and_its_end_token_with_it():
    example = encode_chat(CHAT, _bytes, end=0)
    assert _trained(example) == b"Hello\x00So long\x00"
    assert bytes(example.ids).startswith(
        b"<|system|>\nBe kind.\n<|user|>\nHi\n<|assistant|>\nHello"
    )
    assert len(example.ids) == len(example.labels)
    assert _trained(encode_chat(CHAT, _bytes, end=0, last_only=True)) == b"So long\x00"


def test_padding_is_masked_and_never_trained_whatever_the_pad_token():
    example = encode_chat(CHAT[1:3], _bytes, end=0)
    batch = collate([example, Example(example.ids * 2, example.labels * 2)], pad=0)
    short = len(example.ids)
    assert (batch.labels[0, short:] == IGNORED).all()
    assert not batch.attention_mask[0, short:].any()
    assert batch.attention_mask.sum() == 3 * short
    # The end token is the pad token here, and the answer's own stays trained.
    assert batch.labels[0, short - 1] == 0


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (
            "must have a role among",
            lambda: encode_chat([{"role": "bot", "content": "x"}], _bytes, end=0),
        ),
        ("content of type NoneType", lambda: encode_chat([{"role": "user"}], _bytes, end=0)),
        ("hold no token to train", lambda: encode_chat(CHAT[:2], _bytes, end=0)),
        ("within 10 tokens", lambda: encode_chat(CHAT, _bytes, end=0, context=10)),
        (
            "must end with the assistant",
            lambda: encode_chat(CHAT[:2], _bytes, end=0, last_only=True),
        ),
        ("at least one sequence", lambda: collate([], pad=0)),
        (
            "length must be at least 3",
            lambda: collate([Example([1] * 3, [1] * 3)], pad=0, length=2),
        ),
        (
            "row 1 has none",
            lambda: token_logps(torch.zeros(2, 3, 4), torch.tensor([[0, 1, 1], [2, -100, -100]])),
        ),
        ("count must be at least 1", lambda: sft_loss(*_chat(3), count=0)),
        ("at least one pair", lambda: dpo_loss(*[torch.zeros(0)] * 4)),
        ("at least 2 samples", lambda: group_advantages(torch.zeros(3, 1))),
        ("must be finite", lambda: group_advantages(torch.tensor([[0.0, float("nan")]]))),
        ("without a reference", lambda: grpo_loss(*_policy(3)[:2], None, *_policy(3)[3:])),
        ("mean must be", lambda: grpo_loss(*_policy(3), mean="rows")),
        (
            "row 0 has none",
            lambda: grpo_loss(*_policy(3)[:4], torch.zeros(6, 3, dtype=torch.bool)),
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_gets_one_clear_sentence(words, call):
    with pytest.raises(UsageError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_ratio_that_would_overflow_leaves_the_policy_loss_finite():
    logps = torch.zeros(2, 1, requires_grad=True)
    old = torch.full((2, 1), -200.0)
    trained = torch.ones(2, 1, dtype=torch.bool)
    for advantages in (torch.zeros(2), torch.tensor([1.0, -1.0])):
        found = grpo_loss(logps, old, None, advantages, trained, kl=0.0)
        (gradient,) = torch.autograd.grad(found.loss, logps)
        assert bool(found.loss.isfinite())
        assert bool(gradient.isfinite().all())
    assert found.loss.item() == pytest.approx((torch.tensor(20.0).exp().item() - 1.2) / 2)


@pytest.mark.usefixtures("unchecked")
def test_empty_batches_wrong_labels_and_integer_masks_are_refused():
    with pytest.raises(UsageError, match="labels must hold at least one row"):
        sft_loss(torch.zeros(0, 3, 4), torch.zeros(0, 3, dtype=torch.long))
    for label in (4, -1):
        with pytest.raises(UsageError, match=rf"labels must be in 0\.\.3, .* got {label}"):
            sft_loss(torch.zeros(1, 2, 4), torch.tensor([[0, label]]))
    x = torch.zeros(2, 3)
    with pytest.raises(UsageError, match=r"trained must be a bool tensor, got torch\.int64"):
        grpo_loss(x, x, x, torch.ones(2), torch.ones(2, 3, dtype=torch.long))
    x = torch.zeros(0, 3)
    with pytest.raises(UsageError, match="trained must hold at least one row"):
        grpo_loss(x, x, x, torch.ones(0), torch.ones(0, 3, dtype=torch.bool))
