"""`KernelVCReg`, the closed form as a scikit-learn transformer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from trialrun.core.errors import UsageError
from trialrun.representation._interplay_checks import check_kernel, read_labels
from trialrun.representation._interplay_kernels import NAMED, Kernel
from trialrun.representation._interplay_problem import (
    Problem,
    in_chunks,
    make_problem,
    read_settings,
)
from trialrun.representation._interplay_saving import read, write
from trialrun.representation._interplay_views import Array, Groups, draw_views, read_views


class _Rows(NamedTuple):
    """Views as rows, and the input of every row."""

    views: Array
    labels: NDArray


class _FitTransform:
    """``fit_transform`` outside scikit-learn's wrapper, which asks for X by place."""

    def fit_transform(
        self, X: Any = None, y: Any = None, *, views: Any = None, groups: Any = None
    ) -> Any:
        """Fit, and return psi at every row of X, shape (n, n_components).

        Takes what ``fit`` takes; ``y`` is ignored. With ``views`` the rows are the views, input by
        input, shape (inputs * views, n_components); with ``augment``, psi is taken at X itself.
        """
        model: Any = self
        model.fit(X, y, views=views, groups=groups)
        return model.transform(X if views is None else read_views(views)[0])


class KernelVCReg(_FitTransform, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Learn the representation that joint-embedding SSL aims at, exactly, for a kernel.

    Minimises beta E|psi(v) - psi(v')|^2 + |E[psi psi^T] - I|^2 + 2 reg sum |psi_i|_H^2 over the
    kernel's functions, v and v' being views of one input (cabannes2023interplay).

    Parameters
    ----------
    augment : callable or None, default=None
        ``augment(X, generator)`` returns one random view of every row, shape (n, width). None: no
        augmentation (a warning says so), or views given to ``fit``.
    n_views : int, default=4
        Views drawn of every input. An input is seen through its views only.
    kernel : {"rbf", "laplacian", "polynomial", "precomputed"} or callable, default="rbf"
        A callable takes two rows and returns a number. With "precomputed", X is the Gram matrix
        between views in ``fit``, and (rows, views) in ``transform``.
    gamma : float or None, default=None
        Inverse length scale of the named kernels; None is 1 / n_features.
    kernel_params : dict or None, default=None
        More settings of the kernel, such as degree and coef0 of "polynomial".
    n_components : int, default=6
        Components k. Those with mu <= 0 are exactly 0 in ``transform``: they have collapsed.
    beta : float, at least 0, default=1.0
        Weight of agreement between views; 1 is the spectral contrastive loss.
    reg : float, at least 0, default=1e-4
        lambda, with the factor 2 of the loss above. The eigenvalues of K / N set its scale.
    center : bool, default=False
        False is the paper: the loss uses E[psi psi^T], and the constant function, on which views
        agree wholly, takes up to one component. True adds an intercept without penalty and makes
        every component's mean 0, so that the loss holds a covariance.
    pairs : {"all", "distinct"}, default="all"
        Whether a view may be paired with itself. With m views of every input "all" adds 1/m of
        the identity to (1 - 1/m) of what "distinct" estimates without bias.
    solver : {"exact", "nystroem", "random_features"}, default="exact"
        Exact takes O(N^2) memory for N views, and O(N^2) to O(N^3) time; the others take
        O(N landmarks^2) time and O(landmarks^2) memory.
    landmarks : int, default=1000
        Landmark views, or random features (rbf and laplacian).
    tol : float, default=1e-8
        Share of the largest eigenvalue below which a landmark direction is dropped, and, only
        where ``reg`` is all but 0, a direction of the kernel.
    random_state : int, RandomState or None, default=None
        For views, landmarks and random features.

    Attributes
    ----------
    eigenvalues_ : ndarray of shape (k,)
        mu, largest first; minus infinity beyond the kernel's rank.
    loss_ : float
        The minimum, k - sum max(mu, 0)^2.
    collapsed_ : ndarray of bool, shape (k,)
        mu <= 0.
    invariance_ : ndarray of shape (k,)
        <f, T f> of each unit function: 1 where all views of an input agree.
    norms_ : ndarray of shape (k,)
        |f|_H^2 of each unit function.
    coef_, offset_ : ndarray of shapes (width, k) and (k,)
        The map on the solver's features.
    features_ : object
        The function of rows that ``coef_`` stands on: the kernel with views or landmarks, or
        random cosines.
    gamma_ : float

    Raises
    ------
    ValueError
        In fit, for a setting out of range, views or groups of the wrong shape, or a kernel that
        is not positive semi-definite.

    Examples
    --------
    >>> from functools import partial
    >>> from trialrun.representation.ssl_interplay import jitter
    >>> X = np.linspace(-1, 1, 20)[:, None]
    >>> ssl = KernelVCReg(augment=partial(jitter, scale=0.1), gamma=4.0, n_components=3,
    ...                   reg=0.2, random_state=0)
    >>> ssl.fit_transform(X).shape, ssl.collapsed_.tolist()
    ((20, 3), [False, False, True])
    """

    _lost_augment = False

    def __init__(
        self,
        *,
        augment=None,
        n_views=4,
        kernel="rbf",
        gamma=None,
        kernel_params=None,
        n_components=6,
        beta=1.0,
        reg=1e-4,
        center=False,
        pairs="all",
        solver="exact",
        landmarks=1000,
        tol=1e-8,
        random_state=None,
    ):
        self.augment = augment
        self.n_views = n_views
        self.kernel = kernel
        self.gamma = gamma
        self.kernel_params = kernel_params
        self.n_components = n_components
        self.beta = beta
        self.reg = reg
        self.center = center
        self.pairs = pairs
        self.solver = solver
        self.landmarks = landmarks
        self.tol = tol
        self.random_state = random_state

    def _rows(self, X: Any, views: Any, groups: Any, random: np.random.Generator) -> _Rows:
        if X is not None and views is not None:
            raise UsageError("fit takes either X or views, got both")
        if X is None and views is None:
            raise UsageError("fit takes X, or views of shape (inputs, views, features): got none")
        ready = views is not None or groups is not None
        if ready and self.augment is not None:
            raise UsageError("augment must be None where fit is given ready-made views or groups")
        check_kernel(self.kernel, (*NAMED, "precomputed"))
        given = isinstance(self.kernel, str) and self.kernel == "precomputed"
        if given and self.augment is not None:
            raise UsageError("augment must be None with kernel='precomputed': X holds no rows")
        if given and views is not None:
            raise UsageError(
                "views must be None with kernel='precomputed': pass the Gram matrix between views "
                "as X, and groups"
            )
        if X is not None and groups is None and self.augment is None and not given:
            lost = (
                "augment was not saved with this model" if self._lost_augment else "augment is None"
            )
            warnings.warn(
                f"augment {lost}, so fit sees every input as its only view, and agreement between "
                "views says nothing: set augment, or give views or groups",
                UserWarning,
                stacklevel=4,
            )
        if views is not None:
            if groups is not None:
                raise UsageError("groups go with X: views already say which input is whose")
            rows, labels = read_views(views)
            return _Rows(validate_data(self, rows, dtype=np.float64), labels)
        X = validate_data(self, X, dtype=np.float64)
        if given and X.shape[0] != X.shape[1]:
            raise UsageError(
                f"X must be a square Gram matrix with kernel='precomputed', got shape {X.shape}"
            )
        if groups is not None:
            labels = read_labels(groups)
            if labels.shape != (len(X),):
                raise UsageError(
                    f"groups must hold one label per row of X, shape ({len(X)},), got shape "
                    f"{labels.shape}"
                )
            return _Rows(X, labels)
        if self.augment is None:
            return _Rows(X, np.arange(len(X)))
        rows, labels = read_views(draw_views(X, self.augment, self.n_views, random))
        if rows.shape[1] != X.shape[1]:
            raise UsageError(
                f"augment must keep the {X.shape[1]} features of X, got {rows.shape[1]}"
            )
        return _Rows(rows, labels)

    def _problem(self, X: Any, views: Any = None, groups: Any = None) -> Problem:
        """Check everything and make the views ready for any regularisation."""
        read_settings(self)
        random = np.random.default_rng(check_random_state(self.random_state).randint(2**31 - 1))
        rows = self._rows(X, views, groups, random)
        kernel = Kernel.read(self.kernel, self.gamma, self.kernel_params, rows.views.shape[1])
        return make_problem(
            rows.views, Groups(rows.labels, self.pairs), kernel, solver=self.solver,
            landmarks=self.landmarks, beta=self.beta, center=self.center, tol=self.tol,
            random=random,
        )  # fmt: skip

    def fit(
        self,
        X: Any = None,
        y: Any = None,  # noqa: ARG002
        *,
        views: Any = None,
        groups: Any = None,
    ) -> Any:
        """Find the minimum of the loss.

        Parameters
        ----------
        X : array of shape (n, n_features)
            Inputs; with ``groups``, the views themselves.
        y : ignored
        views : array of shape (inputs, views, n_features)
            Ready-made views, in place of X.
        groups : array of shape (n,)
            The input of every row of X.
        """
        problem = self._problem(X, views, groups)
        found = problem.solver.solve(self.reg, self.n_components)
        alive = np.maximum(found.eigenvalues, 0.0)
        readout = problem.readout(found, np.sqrt(alive))
        strongest = np.abs(readout.coef).argmax(axis=0)
        signs = readout.coef[strongest, np.arange(len(strongest))]
        turn = np.where(signs < 0, -1.0, 1.0)
        self.features_, self.coef_ = readout.features, readout.coef * turn
        self.offset_ = readout.offset * turn
        self.eigenvalues_ = found.eigenvalues
        self.invariance_, self.norms_ = found.invariance, found.norms
        self.collapsed_ = ~(found.eigenvalues > 0)
        self.loss_ = float(self.n_components - (alive**2).sum())
        self.gamma_ = float(1 / self.n_features_in_ if self.gamma is None else self.gamma)
        return self

    @property
    def _n_features_out(self) -> int:
        return int(self.coef_.shape[1])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = isinstance(self.kernel, str) and self.kernel == "precomputed"
        return tags

    def transform(self, X: Any) -> Array:
        """Return psi at every row of X (n, n_features), shape (n, n_components), in float64."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return in_chunks(self.features_, X, self.coef_) - self.offset_

    def save(self, folder: Path | str) -> None:
        """Write what ``transform`` needs into ``folder``, as JSON and safetensors.

        Two settings of use to ``fit`` alone are left out: ``augment``, and a ``random_state`` that
        is a generator.

        Raises
        ------
        ValueError
            If the kernel is a function, or its ``kernel_params`` hold what JSON cannot.
        """
        check_is_fitted(self)
        write(self, Path(folder))

    @classmethod
    def load(cls, folder: Path | str) -> KernelVCReg:
        """Read back what `save` wrote into ``folder``; ``augment`` is not among it.

        ``fit`` warns until ``augment`` is set again.
        """
        return read(cls, Path(folder))
