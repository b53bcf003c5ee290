"""Trained predictors: causality, what memory they have, learning, and keeping."""

import json

import numpy as np
import pytest
import torch

from tests.naive import mbml as naive
from trialrun.core.errors import UsageError
from trialrun.sequence._attending import CausalAttention, alibi_bias, sincos
from trialrun.sequence._recurrent import StackRNN
from trialrun.sequence.mbml import (
    ARCHITECTURES,
    KT,
    PTW,
    MetaPredictor,
    NetShape,
    PTWSource,
    RegularShiftSource,
    Training,
    load_predictor,
    regret,
    train_meta,
)

SMALL = NetShape(width=8, heads=2, window=3, reach=16, features=4)
KINDS = [(name, SMALL) for name in ARCHITECTURES] + [
    ("transformer", NetShape(width=8, heads=2, layers=2, positions="alibi")),
    ("transformer", NetShape(width=8, heads=2, layers=2, positions="relative")),
    ("lstm", NetShape(width=8, layers=2)),
    ("snail", NetShape(width=8, layers=2, reach=5, features=3)),
]
every_kind = pytest.mark.parametrize(("kind", "shape"), KINDS)


@every_kind
@pytest.mark.parametrize("time", [1, 7, 63])
def test_a_net_never_reads_what_it_predicts(kind, shape, time):
    net = MetaPredictor(kind, 3, shape, seed=0)
    x = np.random.default_rng(time).integers(0, 3, (2, time))
    given = net.predict(x)
    np.testing.assert_allclose(given.sum(2), 1, rtol=1e-12)
    for cut in {0, time // 2, time - 1}:
        other = x.copy()
        other[:, cut:] = (other[:, cut:] + 1) % 3
        np.testing.assert_allclose(
            net.predict(other)[:, : cut + 1], given[:, : cut + 1], rtol=1e-5, atol=1e-7
        )


@every_kind
def test_only_the_window_net_forgets_what_lies_before_its_window(kind, shape):
    net = MetaPredictor(kind, 2, shape, seed=1)
    x = np.zeros((1, 16), dtype=int)
    flipped = x.copy()
    flipped[0, 16 - 1 - 4] = 1  # the last prediction's window of 3 holds the three after it
    same = np.array_equal(net.predict(x)[0, -1], net.predict(flipped)[0, -1])
    assert same == (kind == "mlp-window")


@every_kind
def test_every_weight_gets_a_finite_gradient(kind, shape):
    net = MetaPredictor(kind, 2, shape, seed=0).net.double()
    net(
        torch.randint(0, 2, (4, 9), generator=torch.Generator().manual_seed(0))
    ).square().sum().backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name


@pytest.mark.parametrize("time", [1, 7, 21])
def test_relative_attention_matches_the_slow_twin_with_gradients(time):
    torch.manual_seed(0)
    attention = CausalAttention(6, 1, "relative").double()
    torch.nn.init.normal_(attention.content_bias)
    torch.nn.init.normal_(attention.distance_bias)
    x = torch.randn(1, time, 6, dtype=torch.float64, requires_grad=True)
    fast = attention(x)
    q, k, v = attention.qkv(x)[0].split(6, dim=1)
    r = attention.distance(sincos(torch.arange(time).double(), 6))
    scores = naive.relative_scores(
        q, k, r, attention.content_bias[0, 0], attention.distance_bias[0, 0]
    )
    rows = [torch.stack([s for s in row if torch.is_tensor(s)]) for row in scores]
    mixed = torch.stack([row.softmax(0) @ v[: len(row)] for row in rows])
    slow = attention.out(mixed)[None]
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
    weights = [x, attention.content_bias, attention.distance_bias, attention.distance.weight]
    for a, b in zip(
        torch.autograd.grad(fast.square().sum(), weights),
        torch.autograd.grad(slow.square().sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_alibi_slopes_halve_in_steps_and_only_look_back():
    bias = alibi_bias(8, 4, torch.device("cpu"))
    assert bias[:, 3, 2].tolist() == [-(2.0 ** -(h + 1)) for h in range(8)]
    assert bias[0, 3].tolist() == [-1.5, -1.0, -0.5, 0.0]


def test_a_stack_that_only_pushes_then_pops_gives_back_what_came_first():
    stack = StackRNN(width=4, cells=4, cell_width=1).double()
    with torch.no_grad():
        for weight in stack.parameters():
            weight.zero_()
        stack.read.weight.copy_(torch.eye(4))
        stack.keep.weight[3, 4] = 1.0  # state 3 shows the top of the stack
        stack.act.weight[0, 0] = stack.act.weight[1, 1] = 1e4  # inputs 0 and 1 push and pop
        stack.value.weight[0, 2] = 1.0  # what is pushed is input 2
    x = torch.tensor([[[9, 0, 0.5, 0], [9, 0, -0.3, 0], [0, 9, 0, 0], [0, 9, 0, 0.0]]]).double()
    tops = stack(x)[0, :, 3]
    pushed = torch.tanh(torch.tanh(torch.tensor([0.5, -0.3], dtype=torch.float64)))
    torch.testing.assert_close(tops[1:], torch.tanh(torch.stack([*pushed, pushed[0]])))


def test_the_same_seed_trains_the_same_net_and_leaves_global_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    shape = NetShape(width=8, heads=2, dropout=0.2)
    nets = [
        train_meta("transformer", PTWSource(3), steps=4, shape=shape, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    one, again, other = (net.net.embed.weight for net in nets)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_few_steps_teach_a_gru_to_beat_counting():
    source = RegularShiftSource(8)
    seen = []
    net = train_meta(
        "gru",
        source,
        steps=250,
        length=32,
        shape=NetShape(width=24),
        training=Training(batch=32, rate=1e-2),
        on_step=lambda step, loss: seen.append((step, loss)),
    )
    sample = source.sample(400, 32, seed=99)
    excess = regret(net, sample).excess_over(regret(KT(), sample))
    assert excess.mean + 3 * excess.stderr < 0
    assert [step for step, _ in seen] == [0, 100, 200]
    assert seen[-1][1] < seen[0][1]


@every_kind
def test_a_kept_net_predicts_bit_for_bit_the_same(kind, shape, tmp_path):
    net = MetaPredictor(kind, 3, shape, seed=2)
    x = np.random.default_rng(0).integers(0, 3, (3, 11))
    net.save(tmp_path)
    kept = load_predictor(tmp_path)
    assert isinstance(kept, MetaPredictor)
    np.testing.assert_array_equal(kept.predict(x), net.predict(x))
    np.testing.assert_allclose(
        net.log_prob(x),
        np.log(np.take_along_axis(net.predict(x), x[:, :, None], 2)).sum((1, 2)),
        rtol=1e-10,
    )


def test_a_hand_edited_predictor_is_refused(tmp_path):
    PTW(4).save(tmp_path)
    assert load_predictor(tmp_path).settings() == PTW(4).settings()
    spot = tmp_path / "predictor.json"
    spot.write_text(json.dumps({"predictor": "Oracle", "settings": {}}))
    with pytest.raises(UsageError, match=r"must name one of KT, .* got 'Oracle'"):
        load_predictor(tmp_path)
    spot.write_text("{")
    with pytest.raises(UsageError, match="must be a predictor's settings"):
        load_predictor(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    MetaPredictor("rnn", 2, SMALL).save(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(UsageError, match=r"weights\.safetensors"):
        MetaPredictor.load(tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: train_meta("cnn", PTWSource(3), steps=1),
            "architecture must be one of rnn, .*cnn",
        ),
        (lambda: train_meta("rnn", PTWSource(3), steps=-1), "steps must be a whole number"),
        (lambda: train_meta("rnn", PTWSource(3), steps=1, length=9), "length must be at most 8"),
        (lambda: NetShape(width=0), "width must be a whole number of at least 1, got 0"),
        (lambda: NetShape(dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: NetShape(positions="rotary"), "positions must be one of sincos, .* 'rotary'"),
        (
            lambda: MetaPredictor("transformer", 2, NetShape(width=10, heads=4)),
            "width must be a multiple of heads, got width=10 and heads=4",
        ),
        (lambda: Training(rate=0.0), "rate must be positive, got 0.0"),
        (lambda: MetaPredictor("rnn", 2, SMALL).predict([[0, 2]]), "symbols 0 to 1, got 2"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
