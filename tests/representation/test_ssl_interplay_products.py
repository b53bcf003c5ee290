"""Products, panels and the Krylov space that the search for the top components stands on."""

from itertools import product

import numpy as np
import pytest
from sklearn.metrics.pairwise import rbf_kernel

from trialrun.core.seeds import rng
from trialrun.dossiers.ssl_interplay.worlds import half_moons
from trialrun.representation import _interplay_solvers
from trialrun.representation._interplay_factor import Factor
from trialrun.representation._interplay_landmarks import FAR, Landmarks
from trialrun.representation._interplay_panels import WIDTH, Panels
from trialrun.representation._interplay_products import eigh, times
from trialrun.representation._interplay_search import Operator, _Space
from trialrun.representation._interplay_solvers import ExactProblem
from trialrun.representation._interplay_views import Groups

LAYOUTS = {
    "rows": np.ascontiguousarray,
    "columns": np.asfortranarray,
    "gaps": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
}


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("left", "right"), list(product(LAYOUTS, LAYOUTS)))
def test_a_product_is_numpys_however_the_matrices_lie_in_memory(left, right, turned, kind):
    random = rng(0, "product")
    a = LAYOUTS[left](random.normal(size=(5, 7)).astype(kind))
    b = LAYOUTS[right](random.normal(size=(4, 7) if turned else (7, 4)).astype(kind))
    found = times(a, b, turned=turned)
    assert found.dtype == kind
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, a @ (b.T if turned else b), rtol=1e-5, atol=1e-5)


def test_a_product_with_no_functions_is_empty():
    assert times(np.empty((0, 7)), np.ones((7, 3))).shape == (0, 3)
    assert times(np.ones((3, 7)), np.empty((0, 7)), turned=True).shape == (3, 0)


def test_eigenvalues_come_smallest_first():
    a = rng(0, "symmetric").normal(size=(6, 6))
    values, vectors = eigh(a + a.T)
    np.testing.assert_allclose(values, np.sort(values))
    np.testing.assert_allclose((a + a.T) @ vectors, vectors * values, atol=1e-12)


def definite(n, kind):
    a = rng(0, "definite", n).normal(size=(n, n))
    return (a @ a.T / n + np.eye(n)).astype(kind)


@pytest.mark.parametrize("n", [1, WIDTH - 1, WIDTH, WIDTH + 1, 3 * WIDTH + 5])
@pytest.mark.parametrize(("kind", "close"), [(np.float32, 1e-4), (np.float64, 1e-12)])
@pytest.mark.parametrize("columns", [1, 8])
def test_panels_solve_what_the_matrix_solves(n, kind, close, columns):
    matrix = definite(n, kind)
    right = rng(1, "right").normal(size=(n, columns)).astype(kind)
    before = right.copy()
    found = Panels(matrix.copy(order="F")).solve(right)
    assert found.dtype == kind
    assert (right == before).all()
    np.testing.assert_allclose(found, np.linalg.solve(matrix.astype(float), right), atol=close)


def test_panels_of_a_matrix_that_is_not_positive_definite_are_refused():
    matrix = definite(100, float)
    matrix[70, 70] = -1.0
    with pytest.raises(np.linalg.LinAlgError):
        Panels(np.asfortranarray(matrix))


def world(width, reg, n=480):
    random = rng(0, "world", width)
    points = np.repeat(random.normal(size=(n // 4, width)), 4, axis=0)
    gram = rbf_kernel(points + 0.2 * random.normal(size=points.shape), gamma=1 / width)
    groups = Groups(np.repeat(np.arange(n // 4), 4))
    return Operator(gram, groups, 1.0, reg), ExactProblem(gram, groups, beta=1.0, tol=1e-8)


@pytest.mark.parametrize("reg", [1e-5, 1e-3, 1e-1])
@pytest.mark.parametrize("width", [2, 20])
def test_the_krylov_space_of_the_factor_holds_the_top_functions(width, reg):
    operator, problem = world(width, reg)
    start = Factor(operator).start(8, 24)
    assert start.dtype == float
    assert start.shape[0] <= 24
    basis = np.linalg.qr((start @ operator.gram).T)[0]
    top = np.linalg.qr(operator.gram @ problem._resolvent(reg, 6).coef)[0]
    outside = np.linalg.norm(top - basis @ (basis.T @ top), axis=0)
    assert outside.max() < 1e-2
    random = np.linalg.qr(rng(0, "none").normal(size=(480, 24)))[0]
    assert np.linalg.norm(top - random @ (random.T @ top), axis=0).min() > 0.9


def test_a_correction_of_the_factor_is_an_inverse_in_its_true_size():
    operator, _ = world(20, 1e-2)
    rho = 1e-9 * rng(0, "rho").normal(size=(3, 480))
    alpha = Factor(operator)(rho, np.zeros(3))
    f = alpha @ operator.gram
    back = operator.shift * f - (operator.t_beta(f) - operator.weight * alpha)
    np.testing.assert_allclose(back, rho, atol=1e-3 * np.abs(rho).max())


@pytest.mark.parametrize(("ratio", "near"), [(0.2, True), (0.9, True), (3.0, False), (30.0, False)])
def test_landmarks_are_near_when_what_they_miss_is_small(ratio, near):
    operator, _ = world(20, 1e-2)
    landmarks = Landmarks(operator.gram)
    landmarks.grow(operator.weight)
    missing = operator.gram - landmarks.rows.T @ landmarks.rows
    assert landmarks.missing == pytest.approx(np.trace(missing))
    norm = np.linalg.eigvalsh(missing)[-1]
    assert landmarks.near(norm / (ratio * FAR)) is near


def test_a_residual_that_rounding_holds_up_is_accepted_without_a_factor(monkeypatch):
    """A smooth kernel at a small reg: what is left is in alpha, where K all but deletes it."""

    def none(operator):
        raise AssertionError("the landmarks' corrections were not enough")

    monkeypatch.setattr(_interplay_solvers, "Factor", none)
    points = np.repeat(half_moons(250, 0, "benchmark").points, 4, axis=0)
    rows = points + 0.1 * rng(0, "jitter").normal(size=points.shape)
    gram, groups = rbf_kernel(rows, gamma=5.6), Groups(np.repeat(np.arange(250), 4))
    problem = ExactProblem(gram, groups, beta=1.0, tol=1e-8)
    found = problem._searched(1e-6, 6)
    assert found is not None
    fast, slow = problem._measured(found.f.T, found.alpha.T, 1e-6), problem._resolvent(1e-6, 6)
    np.testing.assert_allclose(fast.eigenvalues, slow.eigenvalues, rtol=1e-10)


@pytest.mark.parametrize("width", [2, 20])
def test_the_space_stays_orthonormal_and_its_alpha_stay_true(width):
    operator, _ = world(width, 1e-5)
    space, random = _Space(operator, 200), rng(0, "space")
    alpha = random.normal(size=(6, 480))
    for _ in range(12):  # powers of K, each all but in the span of those before
        space.add(alpha)
        alpha = space.f[max(space.size - 6, 0) : space.size].copy()
    f, alpha = space.f[: space.size], space.alpha[: space.size]
    assert space.size > 12
    np.testing.assert_allclose(f @ f.T, np.eye(space.size), atol=1e-12)
    np.testing.assert_allclose(alpha @ operator.gram, f, atol=1e-8)
