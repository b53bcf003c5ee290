"""The closed form is the minimum, whatever the solver; known worlds come out exactly."""

from functools import partial
from itertools import combinations, product

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.gaussian_process.kernels import RBF
from sklearn.metrics.pairwise import rbf_kernel

from tests.naive.ssl_interplay import (
    naive_eigenvalues,
    naive_gram,
    naive_loss,
    naive_t,
    naive_vcreg_loss,
)
from trialrun.core.seeds import rng
from trialrun.representation.ssl_interplay import (
    KernelVCReg,
    VCRegLoss,
    interplay_path,
    interplay_spectrum,
    jitter,
    plot_interplay,
    switch_points,
    vcreg_loss,
)

GAMMA = 0.8


def material(views, seed=0, width=2):
    """Return views in groups of unequal size, of at least 2 where there is more than one."""
    groups = np.sort(np.arange(views) % max(1, views // 3))
    rows = rng(seed, "rows").normal(size=(views, width))
    return rows + rng(seed, "inputs").normal(size=(views, width))[groups], groups


def fitted(rows, groups, **settings):
    told = {"gamma": GAMMA, "n_components": 4, "reg": 1e-2, **settings}
    return KernelVCReg(**told).fit(rows, groups=groups)


@pytest.mark.parametrize("views", [1, 7, 63])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("pairs", ["all", "distinct"])
@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_eigenvalues_and_loss_match_the_slow_twin(views, center, pairs, beta):
    rows, groups = material(views)
    if views == 1 and pairs == "distinct":
        with pytest.raises(ValueError, match="at least 2 views"):
            fitted(rows, groups, pairs=pairs)
        return
    if views == 1 and center:
        assert fitted(rows, groups, center=True).collapsed_.all()
        return
    gram = naive_gram(rows.tolist(), GAMMA)
    found = fitted(rows, groups, center=center, pairs=pairs, beta=beta)
    slow = naive_eigenvalues(gram, groups.tolist(), beta, 1e-2, pairs == "distinct", center)
    known = min(4, len(slow))
    np.testing.assert_allclose(found.eigenvalues_[:known], slow[:known], atol=1e-8)
    assert np.isneginf(found.eigenvalues_[known:]).all()
    psi = found.transform(rows)
    direct = naive_loss(
        psi.tolist(), gram, found.coef_.tolist(), groups.tolist(), beta, 1e-2, pairs == "distinct"
    )
    assert found.loss_ == pytest.approx(direct, abs=1e-9)
    if center:
        np.testing.assert_allclose(psi.mean(axis=0), 0, atol=1e-10)


def test_no_change_of_the_minimum_makes_it_better():
    rows, groups = material(63)
    found, gram = fitted(rows, groups), rbf_kernel(rows, gamma=GAMMA)
    random = rng(0, "changes")
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(5):
            coef = found.coef_ + size * random.normal(size=found.coef_.shape)
            psi, t = gram @ coef, np.array(naive_t(groups, False))
            moment = psi.T @ psi / 63
            loss = 2 * np.trace(psi.T @ (psi - t @ psi)) / 63
            loss += ((moment - np.eye(4)) ** 2).sum() + 2e-2 * np.trace(coef.T @ gram @ coef)
            assert loss > found.loss_


def test_an_optimiser_from_a_random_start_reaches_the_closed_form():
    rows, groups = material(63)
    found = fitted(rows, groups, reg=0.05)
    w, v = np.linalg.eigh(rbf_kernel(rows, gamma=GAMMA))
    basis = torch.from_numpy(v * np.sqrt(np.maximum(w, 0)))  # the kernel's features of the views
    t = torch.tensor(naive_t(groups, False), dtype=torch.float64)

    def value(flat):
        weights = torch.tensor(flat.reshape(63, 4), requires_grad=True)
        psi = basis @ weights
        moment = psi.T @ psi / 63
        loss = 2 * (psi * (psi - t @ psi)).sum() / 63 + 0.1 * (weights**2).sum()
        loss = loss + ((moment - torch.eye(4, dtype=torch.float64)) ** 2).sum()
        loss.backward()
        return loss.item(), weights.grad.numpy().ravel()

    best = minimize(value, rng(0, "start").normal(size=252), jac=True, method="L-BFGS-B",
                    options={"maxiter": 5000, "ftol": 1e-14, "gtol": 1e-9})  # fmt: skip
    assert best.fun == pytest.approx(found.loss_, abs=1e-6)
    psi = basis.numpy() @ best.x.reshape(63, 4)
    spectrum = np.linalg.eigvalsh(psi.T @ psi / 63)[::-1]
    np.testing.assert_allclose(spectrum, np.maximum(found.eigenvalues_, 0), atol=1e-3)
    assert found.collapsed_.any()
    assert not found.collapsed_.all()


def test_collapsed_components_are_exactly_zero():
    rows, groups = material(63)
    found = fitted(rows, groups, reg=0.1)
    z = found.transform(rows)
    assert found.collapsed_.tolist() == (~z.any(axis=0)).tolist()
    assert (fitted(rows, groups, reg=10.0).transform(rows) == 0).all()
    assert fitted(rows, groups, reg=10.0).loss_ == 4.0


@pytest.mark.parametrize("pairs", ["all", "distinct"])
@pytest.mark.parametrize("center", [False, True])
def test_landmarks_at_every_view_are_the_exact_solver(pairs, center):
    rows, groups = material(63)
    settings = {"pairs": pairs, "center": center, "reg": 1e-2}
    exact = fitted(rows, groups, **settings)
    low = fitted(rows, groups, solver="nystroem", landmarks=63, tol=1e-13, **settings)
    np.testing.assert_allclose(low.eigenvalues_, exact.eigenvalues_, atol=1e-8)
    new = rng(1, "new").normal(size=(5, 2))
    np.testing.assert_allclose(np.abs(low.transform(new)), np.abs(exact.transform(new)), atol=1e-5)


@pytest.mark.parametrize("kernel", ["rbf", "laplacian"])
def test_random_features_approach_the_exact_solver(kernel):
    rows, groups = material(63)
    exact = fitted(rows, groups, kernel=kernel)
    error = [
        np.abs(
            fitted(rows, groups, kernel=kernel, solver="random_features", landmarks=count,
                   random_state=0).eigenvalues_ - exact.eigenvalues_
        ).max()
        for count in (20, 1000)
    ]  # fmt: skip
    assert error[1] < 0.1
    assert error[1] < error[0]


def test_many_views_are_cut_between_inputs_without_a_trace(monkeypatch):
    rows, groups = material(63)
    order = rng(0, "order").permutation(63)
    whole = fitted(rows, groups, solver="nystroem", landmarks=20, pairs="distinct", random_state=0)
    monkeypatch.setattr("trialrun.representation._interplay_kernels.ROWS_AT_ONCE", 5)
    parts = fitted(rows, groups, solver="nystroem", landmarks=20, pairs="distinct", random_state=0)
    np.testing.assert_allclose(parts.eigenvalues_, whole.eigenvalues_, atol=1e-9)
    np.testing.assert_allclose(
        parts.transform(rows[order]), whole.transform(rows)[order], atol=1e-9
    )


@pytest.mark.parametrize("solver", ["exact", "nystroem"])
def test_a_tiny_reg_does_not_depend_on_where_the_range_is_cut(solver):
    rows, groups = material(63)
    found = [
        fitted(rows, groups, reg=reg, tol=tol, solver=solver, landmarks=63, center=True,
               random_state=0).eigenvalues_
        for reg in (1e-6, 1e-5) for tol in (1e-13, 1e-11)
    ]  # fmt: skip
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)
    np.testing.assert_allclose(found[2], found[3], atol=1e-5)
    # The two ways to solve meet where one takes over from the other.
    either = [fitted(rows, groups, reg=reg, tol=1e-13).eigenvalues_ for reg in (0.99e-8, 1.01e-8)]
    np.testing.assert_allclose(*either, atol=1e-4)


def test_without_reg_the_range_of_the_kernel_decides_alone():
    rows, groups = material(63, width=3)
    settings = {"kernel": "polynomial", "gamma": 1.0, "kernel_params": {"degree": 1, "coef0": 0}}
    found = fitted(rows, groups, reg=0.0, **settings)
    assert np.isneginf(found.eigenvalues_[3:]).all()  # three linear functions and no more
    basis = np.linalg.qr(rows)[0]
    t = np.array(naive_t(groups, False))
    slow = np.linalg.eigvalsh(basis.T @ t @ basis)[::-1]
    np.testing.assert_allclose(found.eigenvalues_[:3], slow, atol=1e-10)


def test_the_constant_takes_a_component_unless_centred():
    rows, groups = material(63)
    plain = fitted(rows, groups, gamma=0.05, reg=1e-3)
    first = plain.transform(rows)[:, 0]
    assert first.std() < 0.1 * abs(first.mean())
    centred = fitted(rows, groups, gamma=0.05, reg=1e-3, center=True).transform(rows)
    np.testing.assert_allclose(centred.mean(axis=0), 0, atol=1e-10)


def test_reg_carries_the_factor_two():
    spectrum = interplay_spectrum([0.9], [2.5], reg=0.5)
    scale = np.linspace(0, 1, 100001)  # psi = scale f, t = .9, |f|^2 = .4
    loss = 2 * scale**2 * (1 - 0.9) + (scale**2 - 1) ** 2 + 2 * 0.5 * 0.4 * scale**2
    assert spectrum.loss == pytest.approx(loss.min(), abs=1e-8)
    assert spectrum.eigenvalues[0] == pytest.approx(scale[loss.argmin()] ** 2, abs=1e-4)


def test_views_groups_callables_and_gram_matrices_are_one_thing():
    random = rng(0, "views")
    views = random.normal(size=(9, 3, 2))
    rows, groups = views.reshape(27, 2), np.repeat(np.arange(9), 3)
    plain = fitted(rows, groups)
    z = plain.transform(rows)
    by_views = KernelVCReg(gamma=GAMMA, n_components=4, reg=1e-2).fit(views=views)
    gram = rbf_kernel(rows, gamma=GAMMA)
    given = fitted(gram, groups, kernel="precomputed")
    function = RBF(np.sqrt(0.5 / GAMMA))
    called = fitted(rows, groups, kernel=lambda a, b: float(function(a[None], b[None])[0, 0]))
    np.testing.assert_allclose(by_views.transform(rows), z, atol=1e-10)
    for other in (given.transform(gram), called.transform(rows)):
        np.testing.assert_allclose(other @ other.T, z @ z.T, atol=1e-7)


def test_what_cannot_be_is_refused(no_annotation_checks, tmp_path):
    with pytest.raises(ValueError, match="augment must be None"):
        KernelVCReg(augment=jitter).fit(np.eye(3), groups=[0, 0, 1])
    with pytest.raises(ValueError, match="got both"):
        KernelVCReg().fit(np.eye(3), views=np.zeros((1, 1, 3)))
    with pytest.raises(ValueError, match="symmetric"):
        KernelVCReg(kernel="precomputed").fit([[1.0, 0.5], [0.0, 1.0]])
    with pytest.raises(ValueError, match="cannot be saved"):
        KernelVCReg(kernel=lambda a, b: float(a @ b)).fit(np.eye(3)).save(tmp_path)
    with pytest.raises(ValueError, match="norms must be above 0"):
        switch_points([0.5], [0.0])


def test_the_illustration_switches_at_one_two_and_four():
    t, norms = np.array([0.9, 0.75, 0.5]), np.array([0.4, 0.25, 0.125])
    for reg, best in [(0.99, 0), (1.01, 1), (1.99, 1), (2.01, 2)]:
        assert abs(interplay_spectrum(t, 1 / norms, reg=reg).functions[best, 0]) == 1.0
    assert interplay_spectrum(t, 1 / norms, reg=3.99).alive == 1
    assert interplay_spectrum(t, 1 / norms, reg=4.01).alive == 0
    assert interplay_spectrum(t, 1 / norms, reg=4.0, n_components=1).loss == pytest.approx(1.0)


def parities(d):
    """Return the cube's corners and, by column, all products of coordinates, with their sizes."""
    corners = np.array(list(product([-1.0, 1.0], repeat=d)))
    sets = [s for size in range(d + 1) for s in combinations(range(d), size)]
    table = np.column_stack([corners[:, list(s)].prod(axis=1) for s in sets])
    return corners, table, np.array([len(s) for s in sets])


def test_all_256_parities_of_the_cube_have_their_eigenvalues():
    corners, table, size = parities(8)
    p, beta, reg, gamma = 0.1, 0.7, 1e-3, 0.1
    differ = (corners[:, None, :] != corners[None]).sum(axis=2)
    turned = p**differ * (1 - p) ** (8 - differ)  # chance of a view, given the corner
    t = turned @ turned.T
    gram = rbf_kernel(corners, gamma=gamma)
    nu = np.tanh(2 * gamma) ** size * ((1 + np.exp(-4 * gamma)) / 2) ** 8
    exact = 1 - beta + beta * (1 - 2 * p) ** (2 * size) - reg / nu
    found = interplay_spectrum(t, gram / 256, beta=beta, reg=reg)
    scale = reg / nu.min()
    np.testing.assert_allclose(found.eigenvalues, np.sort(exact)[::-1], atol=1e-10 * max(1, scale))
    # The first 9 functions: the constant, and the 8 coordinates, of which any rotation will do.
    overlap = found.functions[:, :9].T @ table[:, :9] / 16
    np.testing.assert_allclose(np.linalg.svd(overlap)[1], 1, atol=1e-8)


def test_sampled_views_of_the_cube_converge_at_the_root_of_their_number():
    corners, _, _ = parities(4)
    p = 0.15
    errors = []
    for n in (400, 6400):
        found = []
        for seed in range(8):
            random = rng(seed, "cube", n)
            views = np.repeat(corners[random.integers(16, size=n)][:, None], 2, axis=1)
            views = views * np.where(random.random(views.shape) < p, -1.0, 1.0)
            model = KernelVCReg(kernel="polynomial", gamma=1.0, n_components=4, reg=0.0,
                                kernel_params={"degree": 1, "coef0": 0}, pairs="distinct",
                                solver="nystroem", landmarks=40, random_state=0)  # fmt: skip
            found.append(np.mean(model.fit(views=views).invariance_) - (1 - 2 * p) ** 2)
        errors.append(np.sqrt(np.mean(np.square(found))))
    assert 2.0 < errors[0] / errors[1] < 8.0  # 16 times the views: 4 times closer


def test_a_path_ends_in_collapse_and_solves_each_reg_as_fit_does():
    X = rng(0, "X").normal(size=(30, 2))
    model = KernelVCReg(gamma=GAMMA, n_components=4, random_state=0)
    path = interplay_path(X, partial(jitter, scale=0.3), regs=[10.0, 1e-4, 1e-2], model=model)
    alone = KernelVCReg(gamma=GAMMA, n_components=4, random_state=0, reg=1e-2,
                        augment=partial(jitter, scale=0.3)).fit(X)  # fmt: skip
    np.testing.assert_allclose(path.eigenvalues[1], alone.eigenvalues_, atol=1e-10)
    assert path.loss[1] == pytest.approx(alone.loss_)
    assert path.regimes[0] in ("augmentation", "agreement")
    assert path.regimes[-1] == "collapse"
    assert path.alive.tolist() == sorted(path.alive, reverse=True)
    assert model.augment is None
    figure = plot_interplay(path)
    assert "mu" in figure.axes[0].get_ylabel()


@pytest.mark.parametrize("cross", ["halves", "pairs", "plain"])
@pytest.mark.parametrize("batch", [2, 7, 63])
def test_the_batch_loss_matches_the_slow_twin(cross, batch):
    first, second = torch.randn(
        2, batch, 3, generator=torch.Generator().manual_seed(batch), dtype=torch.float64
    )
    fast = vcreg_loss(first, second, beta=0.7, cross=cross)
    slow = naive_vcreg_loss(first.tolist(), second.tolist(), 0.7, cross)
    assert float(fast) == pytest.approx(slow, rel=1e-10)
    first.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: vcreg_loss(z, second, cross=cross), (first,))


def test_the_batch_loss_is_unbiased_unless_it_squares_one_covariance():
    # Views are psi = +-a e_0 or +-b e_1 with equal chance: few enough to sum over all batches.
    kinds = torch.tensor([[1.0, 0.3], [0.0, 2.0], [-0.5, 1.0]], dtype=torch.float64)
    noise = torch.tensor([[0.1, 0.0], [0.0, -0.2], [0.3, 0.0]], dtype=torch.float64)
    first, second = kinds + noise, kinds - noise
    exact = float(vcreg_loss(first, second, cross="plain"))  # the population is these three
    means = {}
    for cross in ("halves", "pairs", "plain"):
        batches = list(product(range(3), repeat=4))
        total = sum(
            float(vcreg_loss(first[list(b)], second[list(b)], cross=cross)) for b in batches
        )
        means[cross] = total / len(batches)
    assert means["halves"] == pytest.approx(exact, abs=1e-12)
    assert means["pairs"] == pytest.approx(exact, abs=1e-12)
    assert means["plain"] > exact + 0.1


def test_the_loss_module_is_the_function_and_refuses_one_input():
    z = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    assert VCRegLoss(0.5, cross="pairs")(z, z) == vcreg_loss(z, z, beta=0.5, cross="pairs")
    with pytest.raises(ValueError, match="at least 2 inputs"):
        vcreg_loss(z[:1], z[:1])
