"""The search for the top components finds what the dense solution has, or says that it does not."""

from itertools import product

import numpy as np
import pytest
from sklearn.metrics.pairwise import rbf_kernel

from tests.naive.ssl_interplay import naive_eigenvalues
from trialrun.core.seeds import rng
from trialrun.representation import _interplay_search, _interplay_solvers
from trialrun.representation._interplay_factor import Factor
from trialrun.representation._interplay_landmarks import Landmarks, Reduced
from trialrun.representation._interplay_search import Operator, search
from trialrun.representation._interplay_solvers import ExactProblem
from trialrun.representation._interplay_views import Groups
from trialrun.representation.ssl_interplay import KernelVCReg

N = 480
REGS = (1e-6, 1e-4, 1e-2, 1e-1)


def world(width, views, seed=0):
    """Return rows in no order, and the input of every row."""
    random = rng(seed, "world", width)
    points = np.repeat(random.normal(size=(N // views, width)), views, axis=0)
    rows = points + 0.2 * random.normal(size=points.shape)
    order = random.permutation(N)
    return rows[order], np.repeat(np.arange(N // views), views)[order]


def both(gram, groups, reg, k, *, beta=1.0, pairs="all"):
    """Return what the search and what the dense solution find; the search must not give up."""
    problem = ExactProblem(gram, Groups(groups, pairs), beta=beta, tol=1e-8)
    found = problem._searched(reg, k)
    assert found is not None
    fast = problem._measured(found.f.T, found.alpha.T, reg)
    return fast, problem._resolvent(reg, k)


def check(gram, fast, slow, size=None):
    """Compare eigenvalues, and spans up to the last clear gap."""
    np.testing.assert_allclose(fast.eigenvalues, slow.eigenvalues, rtol=1e-10, atol=1e-10)
    size = len(fast.eigenvalues) if size is None else size
    span = [np.linalg.qr(gram @ found.coef[:, :size])[0] for found in (fast, slow)]
    np.testing.assert_allclose(np.linalg.svd(span[0].T @ span[1])[1], 1, atol=1e-8)


@pytest.mark.parametrize("reg", REGS)
@pytest.mark.parametrize("width", [2, 5, 20])
@pytest.mark.parametrize(
    ("views", "beta", "pairs"), [(4, 1.0, "all"), (2, 0.5, "distinct"), (1, 1.0, "all")]
)
def test_the_search_is_the_dense_solution(width, views, beta, pairs, reg):
    rows, groups = world(width, views)
    gram = rbf_kernel(rows, gamma=1 / width)
    check(gram, *both(gram, groups, reg, 4, beta=beta, pairs=pairs))


@pytest.mark.parametrize("k", [1, 40, 60])
@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_one_component_and_many_are_found(k, beta):
    rows, groups = world(5, 4)
    gram = rbf_kernel(rows, gamma=0.2)
    check(gram, *both(gram, groups, 1e-3, k, beta=beta))


@pytest.mark.parametrize("reg", [1e-5, *REGS[1:]])
def test_repeated_views_and_unequal_groups_do_not_matter(reg):
    rows, _ = world(2, 4)
    rows[N // 2 :] = rows[: N // 2]
    groups = np.minimum(np.arange(N) // 3, 100)  # the last input has very many views
    gram = rbf_kernel(rows, gamma=0.5)
    check(gram, *both(gram, groups, reg, 5))


@pytest.mark.parametrize("reg", [1e-3, 1e-1])
def test_a_centred_kernel_is_searched_too(reg):
    rows, groups = world(20, 4)
    gram = rbf_kernel(rows, gamma=0.05)
    gram = gram - gram.mean(axis=0) - gram.mean(axis=1)[:, None] + gram.mean()
    fast, slow = both(gram, groups, reg, 5)
    check(gram, fast, slow)
    np.testing.assert_allclose((gram @ fast.coef).mean(axis=0), 0, atol=1e-10)


@pytest.mark.parametrize("k", [4, 6, 9, 12])
@pytest.mark.parametrize("reg", [1e-5, 1e-3, 1e-1])
def test_eigenvalues_that_coincide_come_with_their_multiplicity(k, reg):
    corners = np.array(list(product([-1.0, 1.0], repeat=9)))  # 1 constant, 9 coordinates, 36 pairs
    gram, groups = rbf_kernel(corners, gamma=0.2), np.arange(512)
    nu = np.tanh(0.4) ** np.repeat([0, 1, 2], [1, 9, 36]) * ((1 + np.exp(-0.8)) / 2) ** 9
    problem = ExactProblem(gram, Groups(groups), beta=1.0, tol=1e-8)
    found = problem._searched(reg, k)
    assert found is not None
    fast = problem._measured(found.f.T, found.alpha.T, reg)
    np.testing.assert_allclose(fast.eigenvalues, (1 - reg / nu)[:k], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(fast.coef.T @ gram @ gram @ fast.coef / 512, np.eye(k), atol=1e-8)


def test_collapse_is_the_same_and_exact():
    rows, groups = world(5, 4)
    found = KernelVCReg(gamma=0.2, reg=0.05).fit(rows, groups=groups)
    slow = naive_eigenvalues(rbf_kernel(rows, gamma=0.2), groups, 1.0, 0.05)[:6]
    np.testing.assert_allclose(found.eigenvalues_, slow, atol=1e-8)
    assert found.collapsed_.tolist() == (~(slow > 0)).tolist()
    assert found.collapsed_.any()
    assert not found.transform(rows)[:, found.collapsed_].any()


def test_a_kernel_of_low_rank_has_no_more_components_than_that():
    rows, groups = world(3, 4)
    linear = {"kernel": "polynomial", "gamma": 1.0, "kernel_params": {"degree": 1, "coef0": 0}}
    found = KernelVCReg(**linear, reg=1e-3).fit(rows, groups=groups)
    slow = naive_eigenvalues(rows @ rows.T, groups, 1.0, 1e-3, cut=1e-10)
    assert len(slow) == 3
    np.testing.assert_allclose(found.eigenvalues_[:3], slow, atol=1e-10)
    assert np.isneginf(found.eigenvalues_[3:]).all()


@pytest.mark.parametrize("reg", [1e-6, 1e-4, 1e-1])
@pytest.mark.parametrize("rank", ["exact", "numerical"])
@pytest.mark.parametrize("pairs", ["all", "distinct"])
def test_a_kernel_of_low_rank_needs_neither_search_nor_factor(rank, reg, pairs, monkeypatch):
    for name in ("search", "Factor"):
        monkeypatch.setattr(_interplay_solvers, name, None)
    rows, groups = world(1 if rank == "numerical" else 2, 4)
    gram = rbf_kernel(rows, gamma=1.0) if rank == "numerical" else (rows @ rows.T + 1) ** 2
    fast, slow = both(gram, groups, reg, 4, pairs=pairs)
    check(gram, fast, slow)
    if rank == "exact":  # 6 monomials
        problem = ExactProblem(gram, Groups(groups, pairs), beta=1.0, tol=1e-8)
        found = problem.solve(reg, 9)
        np.testing.assert_allclose(found.eigenvalues[:4], slow.eigenvalues, rtol=1e-10)
        assert np.isfinite(found.eigenvalues[:6]).all()
        assert np.isneginf(found.eigenvalues[6:]).all()


def test_new_rows_are_mapped_as_the_dense_solution_maps_them(monkeypatch):
    rows, groups = world(5, 4)
    new = rng(1, "new").normal(size=(7, 5))
    settings = {"gamma": 0.2, "reg": 1e-3, "n_components": 4}
    fast = KernelVCReg(**settings).fit(rows, groups=groups)
    again = KernelVCReg(**settings, random_state=3).fit(rows, groups=groups)
    assert (fast.coef_ == again.coef_).all()
    gram = rbf_kernel(rows, gamma=0.2)
    given = KernelVCReg(kernel="precomputed", reg=1e-3, n_components=4).fit(gram, groups=groups)
    monkeypatch.setattr(_interplay_solvers, "SMALL", N)
    slow = KernelVCReg(**settings).fit(rows, groups=groups)
    np.testing.assert_allclose(fast.transform(new), slow.transform(new), atol=1e-7)
    np.testing.assert_allclose(
        given.transform(rbf_kernel(new, rows, gamma=0.2)), slow.transform(new), atol=1e-7
    )


def routes(reg, width=5):
    rows, groups = world(width, 4)
    gram = rbf_kernel(rows, gamma=1 / width)
    operator, landmarks = Operator(gram, Groups(groups), 1.0, reg), Landmarks(gram)
    landmarks.grow(operator.weight)
    return operator, Reduced(operator, landmarks), ExactProblem(
        gram, Groups(groups), beta=1.0, tol=1e-8
    )  # fmt: skip


@pytest.mark.parametrize("reg", [1e-7, 1e-5, 1e-3, 1e-1])
def test_the_factor_in_either_precision_leads_to_the_same_digits(reg):
    operator, reduced, problem = routes(reg)
    factor = Factor(operator)
    assert factor.factor.dtype == (np.float64 if reg < 3e-7 else np.float32)
    found = search(operator, reduced.start(16), 4, factor)
    assert found is not None
    fast = problem._measured(found.f.T, found.alpha.T, reg)
    check(operator.gram, fast, problem._resolvent(reg, 4))


def test_corrections_that_mislead_are_found_out_and_not_believed():
    operator, reduced, _ = routes(1e-4, width=20)

    def useless(rho, mu):
        return rng(0, "useless", len(mu)).normal(size=rho.shape)

    assert search(operator, reduced.start(16), 4, useless) is None
    assert search(operator, reduced.start(16), 4, lambda rho, mu: 0 * rho + 1e-300) is None


def test_what_the_search_does_not_find_is_solved_whole(monkeypatch):
    rows, groups = world(5, 4)
    gram = rbf_kernel(rows, gamma=0.2)
    problem = ExactProblem(gram, Groups(groups), beta=1.0, tol=1e-8)
    monkeypatch.setattr(_interplay_search, "STEPS", 1)
    assert problem._searched(1e-3, 4) is None
    found = problem.solve(1e-3, 4).eigenvalues
    np.testing.assert_allclose(found, problem._resolvent(1e-3, 4).eigenvalues)
