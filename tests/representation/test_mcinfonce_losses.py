"""Losses, heads, credible sets and the world: parity with the slow twin, edges, bad input."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.naive import mcinfonce as naive
from tests.torchvision_stand_in import run_with_backbones
from trialrun.core.seeds import split
from trialrun.representation.mcinfonce import (
    ELKLoss,
    HIBLoss,
    MCInfoNCELoss,
    VMFEncoder,
    VMFWorld,
    VonMisesFisher,
    credible_coverage,
    credible_retrieval,
    log_likelihood_kernel,
    procrustes,
)

KERNEL = partial(MCInfoNCELoss, average="kernel")


def posteriors(size, negatives, dim=4, seed=0):
    random = torch.Generator().manual_seed(seed)
    made = []
    for shape in ((size,), (size,), (size, negatives)):
        mu = torch.randn(*shape, dim, dtype=torch.float64, generator=random).requires_grad_()
        kappa = (torch.rand(shape, dtype=torch.float64, generator=random) * 20).requires_grad_()
        made.append((mu, kappa))
    return made


def build(made):
    return [VonMisesFisher(mu, kappa) for mu, kappa in made]


def draws_of(loss, ref, pos, neg):
    random = torch.Generator().manual_seed(split(loss.seed, "eval"))
    shape = (loss.n_samples,)
    return [post.rsample(shape, generator=random) for post in (ref, pos, neg) if post is not None]


@pytest.mark.parametrize(("size", "negatives"), [(1, 1), (7, 3), (3, 63)])
@pytest.mark.parametrize("make", [MCInfoNCELoss, KERNEL, HIBLoss])
def test_losses_and_gradients_match_the_slow_twin(size, negatives, make):
    made = posteriors(size, negatives)
    loss = make(n_samples=5, seed=3).double().eval()
    inputs = [value for pair in made for value in pair]
    fast = loss(*build(made))
    fast_grads = torch.autograd.grad(fast, inputs)
    draws = draws_of(loss, *build(made))
    if make is MCInfoNCELoss:
        slow = naive.naive_mcinfonce(*draws, 16.0)
    elif make is KERNEL:
        slow = naive.naive_kernel(*draws, 16.0)
    else:
        slow = naive.naive_hib(*draws, 2.0, 1.0)
    torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-7)
    for fast_grad, slow_grad in zip(fast_grads, torch.autograd.grad(slow, inputs)):
        torch.testing.assert_close(fast_grad, slow_grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", [2, 7, 63])
def test_rolled_negatives_are_the_positives_of_other_rows(size):
    ref, pos, _ = build(posteriors(size, 1))
    count = min(3, size - 1)
    loss = MCInfoNCELoss(8.0, 4, rolled=count).double().eval()
    r, p = draws_of(loss, ref, pos, None)
    n = torch.stack([p.roll(shift, 1) for shift in range(1, count + 1)], 2)
    torch.testing.assert_close(
        loss(ref, pos), naive.naive_mcinfonce(r, p, n, 8.0), rtol=1e-6, atol=1e-8
    )
    rolls = [[(row - shift) % size for shift in range(1, count + 1)] for row in range(size)]
    as_list = [list(zip(q.mu.tolist(), q.kappa.tolist())) for q in (ref, pos)]
    slow = naive.naive_elk(*as_list, [[as_list[1][i] for i in row] for row in rolls])
    assert float(ELKLoss(rolled=count)(ref, pos).detach()) == pytest.approx(slow, rel=1e-9)


def test_elk_is_contrasted_with_a_true_negative_where_similarities_rolled_would_not_be():
    # All pairs are equally alike, so that rolled similarities would give log 2 whatever happens.
    mu = torch.eye(4, dtype=torch.float64)
    post = VonMisesFisher(mu, torch.full((4,), 30.0, dtype=torch.float64))
    assert float(ELKLoss()(post, post)) < 0.01


@pytest.mark.parametrize("kappas", [(0.0, 3.0), (5.0, 5.0), (1e6, 2e6)])
def test_the_likelihood_kernel_matches_the_slow_twin_and_does_not_cancel(kappas):
    a, b = torch.eye(3, dtype=torch.float64)[:2]
    b = (a + 1e-3 * b) / (a + 1e-3 * b).norm()
    p, q = (VonMisesFisher(m, k) for m, k in zip((a, b), kappas))
    found = float(log_likelihood_kernel(p, q))
    if kappas[0] == 5.0:
        assert found == pytest.approx(naive.naive_log_elk(a.tolist(), 5.0, b.tolist(), 5.0))
    if kappas[0] == 0.0:
        assert found == pytest.approx(0.0, abs=1e-12)
    if kappas[0] == 1e6:
        # Gaussians on the tangent plane: variances 1e-6 and 5e-7 add up.
        gap, variance = math.atan2(float(b[1]), float(b[0])), 1.5e-6
        flat = math.log(4 * math.pi / (2 * math.pi * variance)) - gap**2 / (2 * variance)
        assert found == pytest.approx(flat, abs=1e-3)


def test_with_points_the_loss_is_infonce_with_the_mean_or_the_sum_of_negatives():
    made = posteriors(5, 4)
    ref, pos, neg = (VonMisesFisher(mu.detach(), math.inf) for mu, _ in made)
    near = 16 * (ref.mu * pos.mu).sum(-1)
    far = 16 * (neg.mu @ ref.mu[..., None]).squeeze(-1)
    near, far = near.exp(), far.exp()
    for average, total in (("probability", far.mean(-1)), ("kernel", far.sum(-1))):
        exact = -(near / (near + total)).log().mean()
        loss = MCInfoNCELoss(16.0, 2, average=average).double()
        torch.testing.assert_close(loss(ref, pos, neg), exact, rtol=1e-6, atol=1e-8)


def test_more_negatives_of_one_kind_do_not_shift_the_loss_nor_overflow_it():
    post = VonMisesFisher(torch.eye(3), torch.full((3,), math.inf))
    one = post[torch.arange(3).roll(1)][:, None]
    many = VonMisesFisher(one.mu.expand(3, 50, 3), math.inf)
    for kappa in (1.0, 1e6):
        loss = MCInfoNCELoss(kappa, 2)
        torch.testing.assert_close(loss(post, post, one), loss(post, post, many))
        assert bool(torch.isfinite(loss(post, one[:, 0], post[:, None])))


def test_training_goes_on_along_one_stream_and_eval_repeats():
    ref, pos, _ = build(posteriors(4, 1))
    loss = MCInfoNCELoss(seed=1)
    assert loss(ref, pos) != loss(ref, pos)
    loss.eval()
    assert loss(ref, pos) == loss(ref, pos)


@pytest.mark.parametrize("learnable", [False, True])
def test_a_temperature_that_is_set_is_the_one_in_use(learnable):
    ref, pos, _ = build(posteriors(4, 1))
    raised = MCInfoNCELoss(1.0, learnable=learnable).eval()
    raised.set_kappa(16.0)
    assert raised(ref, pos) == MCInfoNCELoss(16.0).eval()(ref, pos)
    with pytest.raises(ValueError, match="kappa must be a finite number above 0"):
        raised.set_kappa(0.0)


def test_a_learned_temperature_gets_a_gradient():
    ref, pos, _ = build(posteriors(4, 1))
    loss = MCInfoNCELoss(learnable=True)
    loss(ref, pos).backward()
    assert math.isfinite(loss.log_kappa.grad)
    assert not list(MCInfoNCELoss().parameters())


@pytest.mark.parametrize("head", ["norm", "mlps"])
def test_calibrated_heads_start_within_the_range_asked_for(head):
    encoder = VMFEncoder(nn.Identity(), 4, width=10, head=head, hidden=(32,), kappa=(16.0, 32.0))
    x = 5 * torch.randn(500, 10, generator=torch.Generator().manual_seed(0))
    kappa = encoder.calibrate(x)(x).kappa
    if head == "mlps":
        assert float(kappa.min()) == pytest.approx(16.0, rel=1e-3)
        assert float(kappa.max()) == pytest.approx(32.0, rel=1e-3)
    else:
        assert float(kappa.median()) == pytest.approx(math.sqrt(16 * 32), rel=0.01)


def test_one_linear_layer_gives_direction_and_length():
    encoder = VMFEncoder(nn.Identity(), 3, width=6)
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
    out, post = encoder.head.linear(x), encoder(x)
    torch.testing.assert_close(post.mu * post.kappa[:, None], out)
    with pytest.raises(ValueError, match="parameters_of needs head='mlps'"):
        encoder.parameters_of("mu")


def test_phases_train_one_part_alone():
    encoder = VMFEncoder(nn.Linear(5, 6), 3, width=6, head="mlps", hidden=(8,))
    mu, kappa = encoder.parameters_of("mu"), encoder.parameters_of("kappa")
    assert len(mu) + len(kappa) == len(list(encoder.parameters()))
    assert not {id(p) for p in mu} & {id(p) for p in kappa}


def test_negatives_of_pictures_are_folded_into_the_batch(no_annotation_checks):
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 6))
    encoder = VMFEncoder(backbone, 3, width=6, example_dims=3)
    assert encoder(torch.zeros(2, 5, 3, 2, 2) + 1).batch_shape == (2, 5)
    with pytest.raises(ValueError, match="batch axis before its 3 axes"):
        encoder(torch.ones(3, 2, 2))
    with pytest.raises(ValueError, match=r"backbone must return shape \(rows, 6\)"):
        VMFEncoder(nn.Identity(), 3, width=6)(torch.ones(2, 3, 6))


def test_negatives_without_example_dims_are_told_what_is_missing():
    encoder = VMFEncoder(nn.Sequential(nn.Flatten(), nn.Linear(12, 6)), 3, width=6)
    with pytest.raises(RuntimeError) as caught:
        encoder(torch.ones(2, 5, 3, 2, 2))
    assert "pass example_dims" in "".join(caught.value.__notes__)


@pytest.mark.slow  # starts a process that loads timm
def test_a_timm_network_takes_the_head_and_trains():
    said = run_with_backbones("""
import timm, torch
from trialrun.representation.mcinfonce import MCInfoNCELoss, VMFEncoder
backbone = timm.create_model("resnet18", num_classes=0)
encoder = VMFEncoder(backbone, 8, kappa=32.0, example_dims=3)
x = torch.randn(4, 3, 32, 32)
post = encoder.calibrate(x)(x)
MCInfoNCELoss(16.0, 4)(post, encoder(x + 0.1), encoder(torch.randn(4, 2, 3, 32, 32))).backward()
print(post, all(p.grad is not None for p in encoder.parameters()))
""")
    assert said.strip() == "VonMisesFisher(batch (4,), dim 8) True"


def test_positives_of_the_published_generator_are_flatter_than_vmf():
    z = VonMisesFisher(torch.eye(10, dtype=torch.float64)[:1], 0.0).mu.expand(20_000, 10)
    random = torch.Generator().manual_seed(0)
    means = {}
    for positives, constant in (
        ("vmf", "exact"),
        ("reference", "exact"),
        ("reference", "published"),
    ):
        world = VMFWorld(10, positives=positives, constant=constant)
        means[positives, constant] = float((world.positive_latents(z, random) * z).sum(-1).mean())
    assert means["vmf", "exact"] == pytest.approx(0.796, abs=0.003)
    assert means["reference", "exact"] == pytest.approx(0.60, abs=0.01)
    assert means["reference", "published"] == pytest.approx(0.55, abs=0.01)
    assert VMFWorld(10)._constant("exact") == pytest.approx(11.15, abs=0.005)
    assert VMFWorld(64, x_dim=80)._constant("exact") == pytest.approx(2.99, abs=0.005)


def test_in_64_dimensions_the_published_constant_accepts_nearly_anything():
    world = VMFWorld(64, x_dim=80, positives="reference", constant="published")
    z = torch.eye(64, dtype=torch.float64)[:1].expand(20_000, 64)
    near = world.positive_latents(z, torch.Generator().manual_seed(0))
    assert float((near * z).sum(-1).mean()) == pytest.approx(0.03, abs=0.01)


@pytest.mark.parametrize("posterior", ["vmf", "gaussian", "laplace"])
def test_the_worlds_posterior_is_bayes_posterior(posterior):
    # Of inputs shown for latents near one place, the stated posteriors must hold these latents.
    world = VMFWorld(3, kappa=(5.0, 30.0), posterior=posterior)
    random = torch.Generator().manual_seed(0)
    kappa = torch.full((20_000,), 12.0, dtype=torch.float64)
    z = world._uniform((20_000,), random)
    shown = world.around(z, kappa, random)
    drawn = world.around(shown, kappa, random)
    levels = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    truth, stated = ((a * b).sum(-1).quantile(levels) for a, b in ((z, shown), (drawn, shown)))
    torch.testing.assert_close(truth, stated, atol=0.01, rtol=0.0)
    mean = float((drawn * shown).sum(-1).mean())
    matched = float(VonMisesFisher(shown[:1], 12.0).mean_resultant_length)
    assert mean == pytest.approx(matched, abs=0.01)


def test_the_input_hides_no_two_things_in_one_place():
    world = VMFWorld(3)
    found = world.inputs(400, seed=0)
    apart = torch.cdist(found.x, found.x) + 10 * torch.eye(400)
    assert float(apart.min()) > 1e-3


def test_the_kernel_form_is_lowest_at_the_truth_with_several_negatives():
    # Positives drawn around their reference; with a mean over negatives 0.6 would beat 1.
    random, kappa = torch.Generator().manual_seed(0), 20.0
    world = VMFWorld(4, kappa=(kappa, kappa), kappa_pos=kappa)
    z = world._uniform((1500,), random)
    latents = (z, world.positive_latents(z, random), world.negative_latents(z, 8, random))
    shown = [
        world.around(latent, torch.full(latent.shape[:-1], kappa, dtype=torch.float64), random)
        for latent in latents
    ]
    loss = MCInfoNCELoss(kappa, 48, average="kernel", seed=1).eval()
    with torch.no_grad():
        low, true, high = (
            float(loss(*(VonMisesFisher(mu.float(), share * kappa) for mu in shown)))
            for share in (0.6, 1.0, 1.7)
        )
    assert true < low
    assert true < high


def test_the_likelihood_kernel_of_many_rolls_is_that_of_each():
    ref, pos, _ = build(posteriors(6, 1))
    far = torch.stack([log_likelihood_kernel(ref, pos[torch.arange(6).roll(s)]) for s in (1, 2)], 1)
    near = log_likelihood_kernel(ref, pos)
    exact = -(near.exp() / (near.exp() + far.exp().mean(1))).log().mean()
    torch.testing.assert_close(ELKLoss(rolled=2)(ref, pos), exact)


@pytest.mark.parametrize("length", [1e-30, 1.0, 1e30])
def test_directions_of_any_length_are_kept_in_float32(length):
    mu = torch.tensor([[3.0, 4.0]]) * length
    mu.requires_grad_()
    post = VonMisesFisher(mu, 1.0)
    torch.testing.assert_close(post.mu, torch.tensor([[0.6, 0.8]]))
    (grad,) = torch.autograd.grad(post.mu[0, 0], mu)
    torch.testing.assert_close(grad * length, torch.tensor([[0.128, -0.096]]))
    ids, _ = credible_retrieval(VonMisesFisher(torch.tensor([[3.0, 4.0]]), 100.0), mu.detach())
    assert ids[0].tolist() == [0]


@pytest.mark.parametrize("head", ["norm", "mlps"])
def test_inputs_of_zeros_have_a_defined_direction(head):
    encoder = VMFEncoder(nn.Identity(), 3, width=6, head=head, hidden=(8,))
    post = encoder(torch.zeros(2, 6))
    assert post.mu.tolist() == [[1.0, 0.0, 0.0]] * 2
    (post.mu.sum() + post.kappa.sum()).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in encoder.parameters())


def test_two_networks_calibrated_on_one_number_still_learn_kappa():
    encoder = VMFEncoder(nn.Identity(), 3, width=6, head="mlps", hidden=(8,), kappa=16.0)
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    kappa = encoder.calibrate(x)(x).kappa
    assert float(kappa.median()) == pytest.approx(16.0, rel=1e-3)
    assert float(kappa.std()) > 0


def _mlps(x):
    return VMFEncoder(nn.Identity(), 3, width=6, head="mlps", hidden=(8,)).calibrate(x)


POST = VonMisesFisher(torch.eye(4), 5.0)
POINTS = VonMisesFisher(torch.eye(4), math.inf)
NAN = torch.full((4, 4), math.nan)
REFUSED = [
    ("neg must hold at least 1", lambda: MCInfoNCELoss()(POST, POST, POST[:, None][:, :0])),
    ("one dtype", lambda: MCInfoNCELoss()(POST, VonMisesFisher(torch.eye(4).double(), 5.0))),
    ("needs finite kappa", lambda: ELKLoss()(POINTS, POST)),
    ("needs finite kappa", lambda: log_likelihood_kernel(POST, POINTS)),
    ("same dim", lambda: log_likelihood_kernel(POST, VonMisesFisher(torch.eye(4)[:, :3] + 1, 5.0))),
    ("needs finite kappa", lambda: HIBLoss(beta=0.1)(POINTS, POST)),
    ("b must be a finite number", lambda: HIBLoss(b=math.nan)),
    ("kappa must be a tensor or a number", lambda: VonMisesFisher(torch.eye(4), "a")),
    (
        "gallery must hold finite rows.*see row 0",
        lambda: credible_retrieval(POST, 0 * torch.eye(4)),
    ),
    ("gallery must hold finite rows", lambda: credible_retrieval(POST, NAN)),
    ("latents must hold finite rows", lambda: credible_coverage(POST, NAN)),
    ("at least 1 draw", lambda: credible_coverage(POST, torch.ones(4, 0, 4))),
    ("found must hold finite numbers", lambda: procrustes(NAN, torch.eye(4))),
    ("one floating-point dtype", lambda: procrustes(torch.eye(4), torch.eye(4).double())),
    (
        "a length above 0",
        lambda: VMFEncoder(nn.Identity(), 3, width=6).calibrate(torch.zeros(5, 6)),
    ),
    ("got no rows", lambda: VMFEncoder(nn.Identity(), 3, width=6).calibrate(torch.zeros(0, 6))),
    ("got no rows", lambda: _mlps(torch.zeros(0, 6))),
    ("features that differ", lambda: _mlps(torch.zeros(5, 6))),
    ("must be a torch tensor, got ndarray", lambda: credible_retrieval(POST, np.eye(4))),
    (
        r"gallery_kappa must have shape \(4,\)",
        lambda: credible_retrieval(POST, torch.eye(4), gallery_kappa=torch.ones(3)),
    ),
    (
        "gallery_kappa must be a torch tensor, got float",
        lambda: credible_retrieval(POST, torch.eye(4), gallery_kappa=5.0),
    ),
    (
        "gallery_kappa must be at least 0",
        lambda: credible_retrieval(POST, torch.eye(4), gallery_kappa=-torch.ones(4)),
    ),
    (
        "n_samples must be a whole number of at least 100",
        lambda: credible_retrieval(POST, torch.eye(4), gallery_kappa=torch.ones(4), n_samples=1),
    ),
    ("got NaN", lambda: _mlps(torch.full((5, 6), math.nan))),
    ("low at most high", lambda: VMFWorld(3, kappa=(64.0, 8.0))),
    (r"kappa must be \(low, high\), got 5.0", lambda: VMFWorld(3, kappa=5.0)),
]


@pytest.mark.parametrize(("said", "call"), REFUSED)
def test_wrong_input_is_refused_in_a_sentence(said, call, no_annotation_checks):
    with pytest.raises(ValueError, match=said):
        call()


def test_the_snippets_of_the_docs_run_as_pasted():
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    section = text.split("## representation · mcinfonce")[1].split("\n## ")[0]
    names: dict = {}
    snippets = [part.split("```")[0] for part in section.split("```python\n")[1:]]
    for snippet in snippets:
        exec(snippet, names)
    assert len(snippets) == 3
    assert 0 <= names["held"] <= 1
