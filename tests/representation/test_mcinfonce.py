"""The distribution: parity with the slow twin and with mpmath, gradients, edges."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import ive
from torch.distributions import kl_divergence

from tests.naive import mcinfonce as naive
from trialrun.representation.mcinfonce import VonMisesFisher, log_ive
from trialrun.representation.mcinfonce._bessel import log_mean_exp, shortfall, sphere_bessel
from trialrun.representation.mcinfonce._cosines import half_gap_slope

DIMS = [2, 3, 4, 7, 10, 63, 1000]
KAPPAS = torch.tensor([0.0, 1e-6, 1e-3, 0.5, 3.0, 10.0, 100.0, 1e4, 1e6, 1e8], dtype=torch.float64)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def directions(*shape, seed=0):
    raw = torch.randn(shape, dtype=torch.float64, generator=stream(seed))
    return raw / raw.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("dim", DIMS)
def test_bessel_parts_agree_with_forty_digits(dim):
    found = sphere_bessel(dim, KAPPAS)
    with mpmath.workdps(40):
        nu = mpmath.mpf(dim) / 2 - 1
        for i, kappa in enumerate(KAPPAS.tolist()):
            if kappa == 0:
                exact = (0.0, 0.0, 1.0, 1 / dim)
            else:
                k = mpmath.mpf(kappa)
                first, second = mpmath.besseli(nu, k), mpmath.besseli(nu + 1, k)
                length = second / first
                log_mean = mpmath.log(first) + mpmath.loggamma(nu + 1) - nu * mpmath.log(k / 2) - k
                slope = 1 - length**2 - (dim - 1) / k * length
                exact = (float(log_mean), float(length), float(1 - length), float(slope))
            for part, value, limit in zip(found, exact, (1e-13, 1e-14, 1e-12, 1e-4)):
                assert float(part[i]) == pytest.approx(value, rel=limit, abs=1e-14)


@pytest.mark.parametrize("order", [0.0, 0.5, 1.0, 4.0, 30.5])
def test_log_ive_agrees_with_scipy_and_has_the_ratio_as_slope(order):
    kappa = torch.tensor([0.1, 1.0, 7.0, 63.0, 500.0], dtype=torch.float64, requires_grad=True)
    found = log_ive(order, kappa)
    torch.testing.assert_close(found.exp(), torch.tensor(ive(order, kappa.detach().numpy())))
    (slope,) = torch.autograd.grad(found.sum(), kappa)
    x = kappa.detach().numpy()
    ratio = ive(order + 1, x) / ive(order, x) + order / x - 1
    torch.testing.assert_close(slope, torch.tensor(ratio), rtol=1e-9, atol=1e-12)


def test_the_normaliser_can_be_differentiated_twice():
    kappa = torch.tensor([0.3, 2.0, 40.0, 900.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k: log_mean_exp(k, 5), kappa)
    assert torch.autograd.gradcheck(lambda k: shortfall(k, 5), kappa)
    assert torch.autograd.gradgradcheck(lambda k: log_mean_exp(k, 5), kappa)


@pytest.mark.parametrize("dim", [2, 3, 7, 63])
@pytest.mark.parametrize("kappa", [0.5, 7.0, 63.0])
def test_density_length_and_cdf_match_the_slow_twin(dim, kappa):
    mu, z = directions(2, dim)
    post = VonMisesFisher(mu, kappa)
    slow = naive.naive_log_prob(mu.tolist(), kappa, z.tolist())
    assert float(post.log_prob(z)) == pytest.approx(slow, rel=1e-11)
    length = naive.naive_length(dim, kappa)
    assert float(post.mean_resultant_length) == pytest.approx(length, rel=1e-11)
    cosine = torch.tensor(length, dtype=torch.float64)
    slow = naive.naive_cosine_cdf(dim, kappa, length, cells=20_000)
    assert float(post.cosine_cdf(cosine)) == pytest.approx(slow, abs=1e-3)


@pytest.mark.parametrize("dim", [2, 3, 10])
def test_the_density_integrates_to_one_and_its_entropy_is_the_integral(dim):
    mu = directions(dim)
    post = VonMisesFisher(mu, 4.0)
    side = torch.zeros(dim, dtype=torch.float64)
    side[0] = 1.0
    side = side - (side @ mu) * mu
    side = side / side.norm()
    ring = 2 * math.pi ** ((dim - 1) / 2) / math.gamma((dim - 1) / 2)

    def at(angle, what):
        log = float(post.log_prob(math.cos(angle) * mu + math.sin(angle) * side))
        return ring * math.sin(angle) ** (dim - 2) * math.exp(log) * what(log)

    assert quad(at, 0, math.pi, args=(lambda _: 1.0,))[0] == pytest.approx(1.0)
    entropy = quad(at, 0, math.pi, args=(lambda log: -log,))[0]
    assert float(post.entropy()) == pytest.approx(entropy)


@pytest.mark.parametrize("dim", [2, 3, 4, 10, 128])
@pytest.mark.parametrize("kappa", [0.0, 0.5, 20.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_have_the_moments_and_quantiles_of_the_density(dim, kappa, dtype):
    post = VonMisesFisher(directions(dim).to(dtype), kappa)
    draws = post.sample((4000,), generator=stream(1))
    assert draws.dtype == dtype
    torch.testing.assert_close(draws.norm(dim=-1), torch.ones(4000, dtype=dtype))
    gap = 0.5 * (draws - post.mu).square().sum(-1).double()
    mean = (
        float(1 - post.mean_resultant_length.double()) if kappa < 1e3 else 0.5 * (dim - 1) / kappa
    )
    assert float(gap.mean()) == pytest.approx(mean, abs=5 * float(gap.std()) / 4000**0.5)
    for probability in (0.05, 0.5, 0.95):
        inside = float((gap <= post.gap_quantile(probability).double()).double().mean())
        assert inside == pytest.approx(probability, abs=5 * (0.25 / 4000) ** 0.5)
    spread = (draws - post.mean).square().mean(0)
    torch.testing.assert_close(spread.sum(), post.variance.sum(), rtol=0.08, atol=0.0)


@pytest.mark.parametrize(("dim", "kappa"), [(2, 3.0), (3, 0.7), (4, 20.0), (10, 20.0)])
def test_gradients_of_an_expectation_match_finite_differences(dim, kappa):
    mu, along = directions(2, dim)
    curve = directions(dim, dim, seed=3)

    def expected(center, k):
        # Quadrature over the angle; the mean over the ring has a closed form for this function.
        center = center / center.norm()
        nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(200))
        angle = 0.5 * math.pi * (nodes + 1)
        cos, sin = torch.cos(angle), torch.sin(angle)
        mass = weights * sin ** (dim - 2) * torch.exp(k * (cos - 1))
        mass = mass / mass.sum()
        line, square = along @ center, center @ curve @ center
        rest = (torch.trace(curve) - square) / (dim - 1)
        return (mass * (cos * line + cos**2 * square + sin**2 * rest)).sum()

    def function(z):
        return z @ along + ((z @ curve) * z).sum(-1)

    step = 1e-5
    by_kappa = (expected(mu, kappa + step) - expected(mu, kappa - step)) / (2 * step)
    unit = torch.eye(dim, dtype=torch.float64)
    by_mu = torch.stack(
        [
            (expected(mu + step * e, kappa) - expected(mu - step * e, kappa)) / (2 * step)
            for e in unit
        ]
    )
    center = mu.expand(60_000, dim).clone().requires_grad_()
    k = torch.full((60_000,), kappa, dtype=torch.float64, requires_grad=True)
    value = function(VonMisesFisher(center, k).rsample(generator=stream(2)))
    grads = torch.autograd.grad(value.sum(), (center, k))
    for found, exact in zip(grads, (by_mu, by_kappa)):
        error = 5 * found.std(0) / 60_000**0.5
        assert bool(((found.mean(0) - exact).abs() < error + 1e-8).all())


@pytest.mark.parametrize("kappa", [0.2, 5.0, 300.0])
def test_in_three_dimensions_the_slope_is_that_of_the_inverse_in_closed_form(kappa):
    u = torch.linspace(0.001, 0.999, 63, dtype=torch.float64)
    k = torch.full_like(u, kappa, requires_grad=True)
    y = -torch.log1p(u * torch.expm1(-2 * k)) / (2 * k)
    (exact,) = torch.autograd.grad(y.sum(), k)
    y = y.detach()
    torch.testing.assert_close(half_gap_slope(3, k, y) * y * (1 - y), exact, rtol=1e-9, atol=1e-16)


@pytest.mark.parametrize("dim", [2, 5, 33, 64, 400])
def test_the_slope_scales_the_gap_for_large_kappa_and_is_finite_at_both_ends(dim):
    y = torch.tensor([0.0, 1e-300, 1e-9, 0.3, 0.5, 0.7, 1.0], dtype=torch.float64)
    for kappa in (0.0, 1e-3, 1.0):
        slope = half_gap_slope(dim, torch.tensor(kappa, dtype=torch.float64), y[:-1])
        assert bool(torch.isfinite(slope).all())
        assert bool((slope <= 0).all())
    kappa = torch.tensor(1e9, dtype=torch.float64)
    typical = VonMisesFisher(directions(dim), 1e9).gap_quantile(0.5) / 2
    torch.testing.assert_close(half_gap_slope(dim, kappa, typical), -1 / kappa, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("dim", [2, 3, 10])
@pytest.mark.parametrize("kappa", [0.0, 1e-8, 1e3, 1e6, 1e7])
def test_float32_draws_and_gradients_are_never_nan(dim, kappa):
    mu = torch.eye(dim).repeat(200, 1)
    mu = torch.cat([mu, -mu]).requires_grad_()
    k = torch.full((len(mu),), kappa, requires_grad=True)
    post = VonMisesFisher(mu, k)
    draws = post.rsample((8,), generator=stream())
    (draws * draws.roll(1, 1)).sum().backward()
    for value in (draws, mu.grad, k.grad, post.log_prob(draws), post.entropy()):
        assert bool(torch.isfinite(value).all())


def test_a_point_is_its_mean_and_a_mixture_of_kappas_keeps_its_gradients():
    mu = directions(3, 4).requires_grad_()
    kappa = torch.tensor([0.0, 5.0, math.inf], dtype=torch.float64, requires_grad=True)
    post = VonMisesFisher(mu, kappa)
    draws = post.rsample((6,), generator=stream())
    torch.testing.assert_close(draws[:, 2], mu[2].expand(6, 4).detach())
    draws.sum().backward()
    assert bool(torch.isfinite(kappa.grad).all())
    assert bool(torch.isfinite(mu.grad).all())
    assert post.entropy()[2] == -math.inf
    assert post.log_prob(mu)[2] == math.inf
    assert post.log_prob(-mu)[2] == -math.inf
    assert float(post.mean_resultant_length[2].detach()) == 1.0
    assert float(post.gap_quantile(0.95)[2]) == 0.0
    assert float(post.variance[2].detach().abs().max()) == 0.0
    assert float(post.kl_to_uniform()[0]) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("dim", [2, 3, 9])
def test_divergence_is_the_mean_difference_of_log_densities(dim):
    first, second = directions(2, dim)
    p, q = VonMisesFisher(first, 6.0), VonMisesFisher(second, 2.5)
    draws = p.sample((40_000,), generator=stream())
    terms = p.log_prob(draws) - q.log_prob(draws)
    exact = float(kl_divergence(p, q))
    assert float(terms.mean()) == pytest.approx(exact, abs=5 * float(terms.std()) / 200)
    assert float(kl_divergence(p, p)) == pytest.approx(0.0, abs=1e-14)
    point = VonMisesFisher(first, math.inf)
    assert float(kl_divergence(p, point)) == math.inf
    with pytest.raises(ValueError, match="same dim"):
        kl_divergence(p, VonMisesFisher(directions(dim + 1), 1.0))


def test_draws_come_from_the_generator_alone_and_follow_it():
    post = VonMisesFisher(directions(7, 5), 3.0)
    state = torch.get_rng_state()
    first, again = (post.sample((63,), generator=stream(4)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    assert not torch.equal(post.sample(), post.sample())


def test_indexing_expanding_and_moments_keep_shapes():
    post = VonMisesFisher(directions(4, 3, 6), torch.arange(1.0, 4.0, dtype=torch.float64))
    assert post.batch_shape == (4, 3)
    assert post[1:3].batch_shape == (2, 3)
    assert post.expand((2, 4, 3)).sample((5,)).shape == (5, 2, 4, 3, 6)
    assert post.mean.shape == post.variance.shape == (4, 3, 6)
    empty = VonMisesFisher(torch.zeros(0, 6), torch.zeros(0))
    assert empty.rsample((3,)).shape == (3, 0, 6)


def test_the_loop_of_the_slow_twin_draws_the_same_law():
    torch.manual_seed(0)
    post = VonMisesFisher(directions(5), torch.tensor(8.0, dtype=torch.float64))
    cosines = (naive.naive_draws(post.mu, post.kappa, 4000) * post.mu).sum(-1)
    mean = float(post.mean_resultant_length)
    assert float(cosines.mean()) == pytest.approx(mean, abs=5 * float(cosines.std()) / 4000**0.5)
