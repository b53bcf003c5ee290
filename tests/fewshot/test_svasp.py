"""The attack, the loss and the heads of svasp: parity with the slow twin, and the traps."""

import copy

import pytest
import torch
from torch import nn

from tests.naive import svasp as naive
from tests.torchvision_stand_in import run_with_backbones
from trialrun.fewshot.svasp import (
    Conv4,
    DomainLogits,
    InductiveGNNHead,
    LossWeights,
    ProtoNetHead,
    ResNet10,
    Style,
    StyleAttack,
    SVasPLoss,
    TransductiveGNNHead,
    adain,
    forward_with_styles,
    soft_cross_entropy,
    style_of,
    svasp_loss,
)


def _random(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Net(nn.Module):
    """Three smooth stages, batch normalisation among them, then pooling."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.a = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Softplus())
            self.b = nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.Softplus())
            self.c = nn.Sequential(nn.Conv2d(5, 6, 3, padding=1), nn.Softplus())
            self.classifier_weights = torch.randn(7, 6, dtype=torch.float64)
        self.double()

    def forward(self, x):
        return self.c(self.b(self.a(x))).mean((2, 3))


def _classifier(net):
    head = nn.Linear(6, 7, bias=False).double()
    with torch.no_grad():
        head.weight.copy_(net.classifier_weights)
    return head


@pytest.mark.parametrize("size", [(1, 2), (7, 1), (3, 21)])
def test_style_and_adain_match_the_slow_twin_with_gradients(size):
    f = _random(1, 2, 3, *size).requires_grad_()
    mean, std = _random(2, 2, 3), _random(3, 2, 3)
    fast = adain(f, mean, std)
    slow = torch.stack([naive.naive_adain(f[i], mean[i], std[i]) for i in range(2)])
    torch.testing.assert_close(fast, slow)
    weight = _random(4, *fast.shape)
    torch.testing.assert_close(
        torch.autograd.grad((fast * weight).sum(), f)[0],
        torch.autograd.grad((slow * weight).sum(), f)[0],
    )
    torch.testing.assert_close(tuple(style_of(f[0][None])), tuple(
        part[None] for part in naive.naive_style(f[0])))  # fmt: skip


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize(
    ("settings", "sign", "normalise"),
    [
        ({"preset": "code"}, -1, True),
        ({"preset": "paper", "gradient_at": "start"}, 1, True),
        ({"preset": "paper", "normalise": False, "crop_decay": 0.5, "start": "none"}, 1, False),
        ({"preset": "styleadv"}, -1, False),
    ],
)
def test_the_attack_matches_the_slow_twin(batch, settings, sign, normalise):
    net, attack = Net(), StyleAttack(stages=("a", "b"), **settings)
    classifier = _classifier(net)
    x, crops = _random(5, batch, 3, 6, 6), _random(6, 2, batch, 3, 6, 6)
    y = torch.arange(batch) % 7
    steps = attack.steps(net, classifier, x, crops, y, seed=3)
    net.eval()
    shapes = {"a": (batch, 4), "b": (batch, 5)}
    draws = [attack.draws(stage, shape, seed=3) for stage, shape in shapes.items()]
    draws = [(d.mean_start.double(), d.std_start.double(), d.mean_eps, d.std_eps) for d in draws]
    parts = [net.a, net.b, net.c, lambda f: f.mean((2, 3))]
    used = crops if attack.settings.crop_decay else crops[:0]
    styles, mixed = naive.naive_attack(
        parts, classifier, 2, x, used, y, draws, attack.settings.crop_decay, sign, normalise,
        attack.gradient_at == "start",
    )  # fmt: skip
    for step, style, gradient in zip(steps, styles, mixed):
        torch.testing.assert_close(list(step.gradient), gradient, rtol=1e-8, atol=1e-13)
        torch.testing.assert_close([step.style.mean, step.style.std], style)


def test_a_picture_is_attacked_alike_alone_and_in_a_batch():
    net = Net()
    classifier, x, y = _classifier(net), _random(5, 4, 3, 6, 6), torch.tensor([0, 3, 3, 6])
    attack = StyleAttack(stages=("a", "b", "c"), eps=(0.1,), start="none", preset="paper")
    crops = _random(6, 2, 4, 3, 6, 6)
    many = attack(net, classifier, x, crops, y)
    one = attack(net, classifier, x[1:2], crops[:, 1:2], y[1:2])
    torch.testing.assert_close([s.mean[1:2] for s in many], [s.mean for s in one])


def test_an_attack_raises_the_loss_and_random_steps_of_the_same_size_raise_it_less():
    net = Net()
    classifier, x, y = _classifier(net), _random(5, 40, 3, 6, 6), torch.arange(40) % 7
    net.eval()

    def loss_after(preset):
        attack = StyleAttack(stages=("a",), eps=(0.05,), start="none", preset=preset, crop_decay=0)
        styles = attack(net, classifier, x, None, y)
        features = forward_with_styles(net, x, styles)
        return float(nn.functional.cross_entropy(classifier(features), y)), styles[0]

    clean = float(nn.functional.cross_entropy(classifier(net(x)), y).detach())
    (adversarial, style), (noise, random) = loss_after("code"), loss_after("noise")
    own = style_of(net.a(x))
    assert torch.allclose((style.mean - own.mean).norm(), (random.mean - own.mean).norm())
    assert adversarial - clean > 3 * abs(noise - clean)


def test_attacking_leaves_no_trace_even_when_the_network_raises(no_annotation_checks):
    net = Net()
    net.b.eval()  # a part that the user froze keeps its own mode
    classifier, x, y = _classifier(net), _random(5, 2, 3, 6, 6), torch.tensor([0, 1])
    before = copy.deepcopy(net.state_dict())
    attack = StyleAttack(stages=("a", "b"), crop_decay=0)

    def state():
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())
        return hooks, [m.training for m in net.modules()], torch.is_grad_enabled()

    found = state()
    attack(net, classifier, x, None, y)
    assert state() == found
    with pytest.raises(RuntimeError):
        attack(net, nn.Linear(3, 3).double(), x, None, y)
    assert state() == found
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    style = Style(torch.zeros(2, 9), torch.ones(2, 9), "a")
    with pytest.raises(ValueError, match=r"mean must have shape \(2, 4\)"):
        forward_with_styles(net, x, [style])
    assert state() == found
    assert all(p.grad is None for p in net.parameters())


def test_the_constant_start_is_constant_and_the_gaussian_one_is_not():
    constant = StyleAttack(stages=("a",), preset="styleadv").draws("a", (3, 4), seed=0)
    assert (constant.mean_start == 16 / 255).all()
    assert (constant.std_start == 16 / 255).all()
    gaussian = StyleAttack(stages=("a",), start_std=2.0).draws("a", (300, 40), seed=0)
    assert abs(float(gaussian.mean_start.std()) - 2) < 0.05
    assert not torch.equal(gaussian.mean_start, gaussian.std_start)


def test_step_sizes_of_mean_and_std_are_drawn_apart_and_evenly():
    attack = StyleAttack(stages=("a",), eps=(0.8, 0.08, 0.008))
    drawn = [attack.draws("a", (1, 1), seed=seed)[2:] for seed in range(300)]
    for kind in range(2):
        counts = [sum(pair[kind] == size for pair in drawn) for size in attack.eps]
        assert min(counts) > 70
    assert len(set(drawn)) == 9


def test_swaps_are_applied_with_the_stated_probability():
    net, x = Net().eval(), _random(5, 2, 3, 6, 6)
    style = Style(_random(6, 2, 4), _random(7, 2, 4).abs(), "a")
    clean, moved = net(x), forward_with_styles(net, x, [style])
    hits = 0
    for seed in range(60):
        out = forward_with_styles(net, x, [style], 0.8, seed=seed)
        assert torch.equal(out, clean) or torch.equal(out, moved)
        hits += torch.equal(out, moved)
    assert 38 <= hits <= 58


def test_a_zero_gradient_is_no_division_by_zero():
    net = Net()
    blind = nn.Linear(6, 7).double()
    nn.init.zeros_(blind.weight)
    x = _random(5, 2, 3, 6, 6)
    style = StyleAttack(stages=("a",), start="none")(net, blind, x, x[None], torch.tensor([0, 1]))
    torch.testing.assert_close(style[0].mean, style_of(net.eval().a(x)).mean)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": ("a", "layer9")}, "stages must name submodules of Net, got 'layer9'"),
        ({"stages": ()}, "stages must list at least one name"),
        ({"stages": "a"}, "stages must list at least one name"),
        ({"stages": ("a", "a")}, "stages must differ"),
        ({"eps": ()}, "eps must list at least one step size"),
        ({"eps": (-1,)}, "eps must be at least 0"),
        ({"preset": "official"}, "preset must be one of code, paper, styleadv, noise"),
        ({"sign": "both"}, "sign must be one of"),
        ({"crop_decay": -0.1}, "crop_decay must be at least 0"),
        ({"crop_decay": 0.1}, "crops must be given with crop_decay 0.1"),
        ({"stages": ("b", "a")}, "in the order in which they run, a, b, got b, a"),
        ({"preset": "noise", "stages": ("b", "a")}, "in the order in which they run"),
        ({"preset": "noise", "sign": "plus"}, "looks at no gradient, so sign would do nothing"),
        ({"preset": "noise", "crop_decay": 0.1}, "so crop_decay would do nothing"),
        ({"preset": "noise", "gradient_at": "start"}, "so gradient_at would do nothing"),
    ],
)
def test_bad_settings_are_named(change, message, no_annotation_checks):
    net = Net()
    with pytest.raises(ValueError, match=message):
        StyleAttack(**{"stages": ("a",), "crop_decay": 0, **change})(
            net, _classifier(net), _random(5, 2, 3, 6, 6), None, torch.tensor([0, 1])
        )


def test_stages_that_have_no_style_are_refused_with_a_remedy(no_annotation_checks):
    x, y = _random(5, 2, 3, 6, 6), torch.tensor([0, 1])
    shrunk = nn.Sequential(nn.Conv2d(3, 6, 6), nn.Flatten()).double()
    attack = StyleAttack(stages=("0",), crop_decay=0)
    with pytest.raises(ValueError, match="at least two positions per channel"):
        attack(shrunk, nn.Linear(6, 2).double(), x, None, y)
    with pytest.raises(ValueError, match=r"stage 1 must give a feature map .* got \(2, 6\)"):
        StyleAttack(stages=("1",), crop_decay=0)(shrunk, nn.Linear(6, 2).double(), x, None, y)
    again = nn.Sequential(nn.Conv2d(3, 3, 1)).double()
    twice = nn.Sequential(again[0], again[0], nn.Flatten())
    with pytest.raises(ValueError, match="stage 0 ran twice"):
        attack(twice, nn.Linear(108, 2).double(), x, None, y)
    net = Net()
    with pytest.raises(ValueError, match="one logit for every class in y, up to 9"):
        StyleAttack(stages=("a",), crop_decay=0)(
            net, _classifier(net), x, None, torch.tensor([0, 9])
        )
    with pytest.raises(ValueError, match="crops must have shape"):
        StyleAttack(stages=("a",))(net, _classifier(net), x, x[None, :1], y)
    with pytest.raises(ValueError, match="x must have 3 channels, got 1"):
        Conv4()(torch.zeros(1, 1, 32, 32))


def test_a_stage_that_never_runs_is_an_error():
    class Idle(Net):
        def __init__(self):
            super().__init__()
            self.spare = nn.Conv2d(3, 3, 1)

    net = Idle()
    with pytest.raises(ValueError, match="must run in a forward pass, but spare did not"):
        forward_with_styles(
            net, _random(5, 1, 3, 6, 6), [Style(torch.zeros(1, 3), torch.ones(1, 3), "spare")]
        )


def _logits(batch, crops):
    way, classes = 3, 5
    fsl = [_random(i, batch, way).requires_grad_() for i in (1, 2)]
    cls = [_random(3, batch, classes), _random(4, crops * batch, classes)]
    dom = [_random(5, crops * batch, 2), _random(6, batch, 2), _random(7, batch, 2)]
    rest = [part.requires_grad_() for part in (*cls, *dom)]
    return [*fsl, *rest], torch.arange(batch) % classes, torch.arange(batch) % way


@pytest.mark.parametrize(("batch", "crops"), [(1, 1), (7, 2), (63, 2)])
def test_the_loss_and_its_gradients_match_the_slow_twin(batch, crops):
    logits, y, y_query = _logits(batch, crops)
    fast = svasp_loss(*logits[:4], DomainLogits(*logits[4:]), y, y_query, lambda_crop=0.2)
    slow = naive.naive_loss(*logits, y, y_query, 0.2)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(torch.autograd.grad(fast, logits), torch.autograd.grad(slow, logits))


def test_soft_cross_entropy_survives_probabilities_that_underflow():
    logits = torch.tensor([[0.0, -1e4]], requires_grad=True)
    loss = soft_cross_entropy(logits, torch.tensor([[0.0, 0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(5000)
    assert logits.grad.isfinite().all()


def test_parts_of_weight_nothing_are_left_out():
    logits, y, y_query = _logits(4, 2)
    parts = SVasPLoss(weights=LossWeights(dom=0, crop=0, fsl_adv=0, fsl_kl=0)).parts(
        *logits[:4], None, y, y_query
    )
    torch.testing.assert_close(parts.total, parts.fsl + parts.cls)
    with pytest.raises(ValueError, match=r"cls_crop must be given .* LossWeights\(crop=0\)"):
        SVasPLoss()(*logits[:3], None, DomainLogits(*logits[4:]), y, y_query)
    with pytest.raises(ValueError, match="dom_logits must be given"):
        SVasPLoss()(*logits[:4], None, y, y_query)
    with pytest.raises(ValueError, match="cls_crop must have a whole number of rows"):
        SVasPLoss()(*logits[:3], logits[3][:3], DomainLogits(*logits[4:]), y, y_query)
    with pytest.raises(ValueError, match="y must hold classes from 0 to 4, got 2 to 5"):
        SVasPLoss()(*logits[:4], DomainLogits(*logits[4:]), y + 2, y_query)


@pytest.mark.parametrize(("way", "shot", "queries"), [(2, 1, 1), (5, 7, 63)])
def test_prototypes_match_the_slow_twin(way, shot, queries):
    support, query = _random(1, way, shot, 4), _random(2, queries, 4)
    torch.testing.assert_close(
        ProtoNetHead()(support, query), naive.naive_prototype_logits(support, query)
    )


def test_the_inductive_graph_head_matches_the_slow_twin():
    head = InductiveGNNHead(6, way=3).double()
    support, query = _random(1, 3, 2, 6), _random(2, 2, 6)
    slow = naive.naive_inductive_gnn(dict(head.state_dict()), support, query)
    torch.testing.assert_close(head(support, query), slow)


def test_only_the_transductive_head_lets_other_queries_in():
    support, query = _random(1, 5, 1, 6), _random(2, 10, 6)
    other = torch.cat([query[:1], 5 + _random(3, 9, 6)])
    inductive, transductive = InductiveGNNHead(6).double(), TransductiveGNNHead(6).double()
    torch.testing.assert_close(inductive(support, query)[0], inductive(support, other)[0])
    moved = (transductive(support, query)[0] - transductive(support, other)[0]).abs().max()
    assert moved > 1e-3
    together = TransductiveGNNHead(6, queries_per_graph=5).double()
    assert together(support, query).shape == (10, 5)
    with pytest.raises(ValueError, match="queries must fill graphs of 5, got 7"):
        together(support, query[:7])


@pytest.mark.parametrize("make", [InductiveGNNHead, TransductiveGNNHead])
def test_episodes_in_one_call_do_not_mix(make):
    head = make(6).double()
    support, query = _random(1, 3, 5, 2, 6), _random(2, 3, 4, 6)
    torch.testing.assert_close(head(support, query)[1], head(support[1], query[1]))


def test_resnet10_has_the_published_size():
    net = ResNet10()
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 512)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 12  # nine of 3 x 3 and the stem make ten layers with the output
    assert [net.get_submodule(f"layer{i}").conv2.out_channels for i in (1, 2, 3, 4)] == [
        64,
        128,
        256,
        512,
    ]


def test_a_real_timm_resnet_is_attacked_and_left_as_it_was():
    said = run_with_backbones(
        """
import copy, timm, torch
from trialrun.fewshot.svasp import FewShotModel, StyleAttack, EpisodicTraining, Pictures
from trialrun.fewshot.svasp import evaluate_episodes, train_episodes
import numpy as np
torch.manual_seed(0); torch.set_num_threads(1)
net = timm.create_model("resnet10t", num_classes=0)
model = FewShotModel(net, classes=6)
x = torch.rand(4, 3, 48, 48); y = torch.arange(4)
before = copy.deepcopy(net.state_dict())
attack = StyleAttack(stages=["layer1", "layer2", "layer3"])
styles = attack(net, model.classifier, x, torch.rand(2, 4, 3, 48, 48), y)
print([tuple(s.mean.shape) for s in styles], net.training)
same = all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values()))
hooks = sum(len(m._forward_hooks) for m in net.modules())
print(same, hooks)
pictures = Pictures((torch.rand(18, 3, 48, 48) * 255).byte(), np.repeat(np.arange(6), 3))
log = train_episodes(model, pictures, attack=attack,
                     training=EpisodicTraining(way=3, shot=1, query=2, episodes=1))
print(len(log.losses), np.isfinite(log.losses).all())
acc, ci = evaluate_episodes(model, pictures, way=3, shot=1, query=2, episodes=5)
print(0 <= acc <= 100)
"""
    )
    lines = said.split("\n")
    assert lines[0] == "[(4, 64), (4, 128), (4, 256)] True"
    assert lines[1:4] == ["True 0", "1 True", "True"]


def test_queries_of_each_class_in_turn_need_no_labels():
    logits, y, y_query = _logits(6, 2)
    dom = DomainLogits(*logits[4:])
    given = svasp_loss(*logits[:4], dom, y, y_query)
    assert torch.equal(svasp_loss(*logits[:4], dom, y), given)
    with pytest.raises(ValueError, match="y_query must be given: 5 queries"):
        svasp_loss(logits[0][:5], logits[1][:5], *logits[2:4], dom, y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_styles_far_from_nothing_survive_half_precision(dtype):
    f = (300 + _random(0, 2, 3, 8, 8, dtype=torch.float32)).to(dtype)
    mean, std = torch.ones(2, 3), torch.full((2, 3), 0.8)
    found = adain(f, mean, std)
    assert found.dtype == dtype
    right = adain(f.double(), mean.double(), std.double())
    torch.testing.assert_close(found.double(), right, atol=0.02, rtol=0.01)
    flat = torch.full((1, 1, 4, 4), 300.0, dtype=dtype)  # nothing to scale
    assert (adain(flat, mean[:1, :1], std[:1, :1]) == 1).all()
    assert style_of(f).mean.dtype == torch.float32
    assert (
        adain(torch.full((1, 1, 8, 8), 1000.3), mean[:1, :1], std[:1, :1]) - 1
    ).abs().max() < 0.1


def test_small_steps_are_not_lost_in_half_precision():
    net = Net().bfloat16().eval()
    net.a[1].bias.data.fill_(4.0)
    attack = StyleAttack(stages=("a",), eps=(0.008,), start="none", crop_decay=0)
    x, y = _random(5, 2, 3, 6, 6).bfloat16(), torch.tensor([0, 1], dtype=torch.int32)
    step = attack.steps(net, nn.Linear(6, 7).bfloat16(), x, None, y)[0]
    moved = (step.style.mean - style_of(net.a(x)).mean).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.008), atol=1e-5, rtol=0)


def test_an_attack_works_inside_inference_mode():
    net = Net()
    classifier, y = _classifier(net), torch.tensor([0, 1])
    attack, x = StyleAttack(stages=("a", "b")), _random(5, 2, 3, 6, 6)
    outside = attack(net, classifier, x, x[None], y)
    with torch.inference_mode():
        inside = attack(net, classifier, x.clone(), x.clone()[None], y.clone())
        assert torch.is_inference_mode_enabled()
    for a, b in zip(outside, inside):
        assert torch.equal(a.mean, b.mean)
        assert torch.equal(a.std, b.std)


def test_labels_out_of_range_are_refused_also_where_no_gradient_is_taken(no_annotation_checks):
    net, x = Net(), _random(5, 2, 3, 6, 6)
    noise = StyleAttack(stages=("a",), preset="noise")
    with pytest.raises(ValueError, match=r"y must hold classes from 0 to 6, .* got 0 to 9"):
        noise(net, _classifier(net), x, None, torch.tensor([0, 9]))
    with pytest.raises(ValueError, match="y must hold classes from 0, got -1"):
        noise(net, nn.Identity(), x, None, torch.tensor([0, -1]))
    with pytest.raises(ValueError, match="y must hold integers"):
        noise(net, nn.Identity(), x, None, torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("offset", [300.0, 30000.0])
def test_prototypes_do_not_mind_a_shift(offset):
    support, query = _random(1, 5, 2, 64, dtype=torch.float32), _random(2, 40, 64).float()
    support, query = (part + offset for part in (support, query))
    right = ProtoNetHead()(support.double(), query.double())
    torch.testing.assert_close(ProtoNetHead()(support, query).double(), right, rtol=1e-3, atol=0.05)
    assert torch.equal(ProtoNetHead().nearest(support, query), right.argmax(-1))
    if offset == 300:
        half, asked = support.half(), query.half()
        right = ProtoNetHead()(half.double(), asked.double())
        assert ProtoNetHead()(half, asked).dtype == torch.float16
        assert torch.equal(ProtoNetHead().nearest(half, asked), right.argmax(-1))


def test_queries_taken_in_turns_are_scored_alike(monkeypatch):
    head = InductiveGNNHead(6).double()
    support, query = _random(1, 5, 2, 6), _random(2, 9, 6)
    with torch.no_grad():
        whole = head(support, query)
        monkeypatch.setattr("trialrun.fewshot._svasp_graphs._NUMBERS", 60_000)
        torch.testing.assert_close(head(support, query), whole)
