"""Checks of estimators: their constructors, and scikit-learn's own checks."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import SkipTest

from sklearn.utils.estimator_checks import estimator_checks_generator

from tests.conformance.harness import EstimatorSpecimen, name_of, require

_SHORTEST_REASON = 15


def stores_what_it_is_given(specimen: EstimatorSpecimen) -> None:
    """The constructor takes keywords, keeps the very objects, and looks at none of them."""
    kind = type(specimen.make(0))
    parameters = inspect.signature(kind).parameters.values()
    loose = [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    require(not loose, f"{kind.__name__} must take its settings by keyword only: {loose}")
    # Objects that nothing can be done with: a constructor that works on them cannot get by.
    given = {p.name: object() for p in parameters}
    try:
        made = kind(**given)
    except Exception as error:
        raise AssertionError(f"{kind.__name__}'s constructor works: {error!r}") from error
    kept = made.get_params(deep=False)
    changed = [name for name, value in given.items() if kept.get(name) is not value]
    require(not changed, f"{kind.__name__} does not store {changed} as given")
    extra = sorted(set(vars(made)) - set(given))
    require(not extra, f"{kind.__name__}'s constructor sets {extra}")


def fit_learns(specimen: EstimatorSpecimen) -> None:
    """Fit returns the estimator, with learned names that end in an underscore."""
    made = specimen.make(0)
    before = made.get_params(deep=False)
    fitted = made.fit(**specimen.inputs(0))
    require(fitted is made, f"{name_of(specimen)}.fit must return self")
    learned = [n for n in vars(made) if n.endswith("_") and not n.startswith("_")]
    require(learned, f"{name_of(specimen)}.fit learned nothing that ends in an underscore")
    after = made.get_params(deep=False)
    changed = [name for name in before if after[name] is not before[name]]
    require(not changed, f"{name_of(specimen)}.fit changed its settings {changed}")


def _label(check: Callable[[Any], None]) -> str:
    if not isinstance(check, partial):
        return check.__name__
    words = ",".join(f"{k}={v}" for k, v in check.keywords.items())
    return check.func.__name__ + (f"({words})" if words else "")


def _base_name(label: str) -> str:
    return label.partition("(")[0]


def library_checks(specimen: EstimatorSpecimen) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield scikit-learn's checks of one estimator by name, with expected failures turned round."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generator warns of what it leaves out
        pairs = list(estimator_checks_generator(specimen.check()))
    for estimator, check in pairs:
        label = _label(check)
        reason = specimen.expected_failed_checks.get(_base_name(label))
        yield label, partial(run_library_check, estimator, check, label, reason)


def run_library_check(
    estimator: Any, check: Callable[[Any], None], label: str, reason: str | None
) -> None:
    """Run one of scikit-learn's checks; one that is expected to fail must really fail."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if reason is None:
            check(estimator)
            return
        try:
            check(estimator)
        except SkipTest:
            raise
        except Exception:  # any failure is what was announced
            return
    require(False, f"{label} passes: take it out of expected_failed_checks")


def expected_failures_are_known(specimen: EstimatorSpecimen) -> None:
    """Every expected failure names a check that exists, with a reason."""
    known = {_base_name(label) for label, _ in library_checks(specimen)}
    for name, reason in specimen.expected_failed_checks.items():
        require(name in known, f"{name_of(specimen)}: scikit-learn runs no check {name!r} on it")
        require(
            len(reason) >= _SHORTEST_REASON and "fixme" not in reason.lower(),
            f"{name_of(specimen)}: {name} needs a reason, got {reason!r}",
        )
