"""Checks of estimators, on a sound toy and on toys broken in one way each."""

import pytest

from tests.conformance import estimator_checks
from tests.conformance.harness import Broken
from tests.conformance.itself import toy_estimators


def test_a_sound_estimator_passes():
    estimator_checks.stores_what_it_is_given(toy_estimators.estimator())
    estimator_checks.fit_learns(toy_estimators.estimator())
    estimator_checks.expected_failures_are_known(toy_estimators.estimator())


@pytest.mark.parametrize(
    ("check", "kind", "said"),
    [
        (
            estimator_checks.stores_what_it_is_given,
            toy_estimators.EagerCentroids,
            "constructor works",
        ),
        (estimator_checks.stores_what_it_is_given, toy_estimators.LearnedEarly, "sets"),
        (
            estimator_checks.stores_what_it_is_given,
            toy_estimators.PositionalCentroids,
            "keyword only",
        ),
        (estimator_checks.fit_learns, toy_estimators.SilentFit, "return self"),
        (estimator_checks.fit_learns, toy_estimators.SelfChanging, "changed its settings"),
    ],
)
def test_a_broken_estimator_is_found(check, kind, said):
    with pytest.raises(AssertionError, match=said):
        check(toy_estimators.estimator(kind))


def test_an_expected_failure_that_passes_is_found():
    def fails(estimator):
        raise ValueError("as announced")

    estimator_checks.run_library_check(None, fails, "check", "a reason")
    with pytest.raises(Broken, match="passes"):
        estimator_checks.run_library_check(None, lambda estimator: None, "check", "a reason")
    with pytest.raises(ValueError, match="announced"):
        estimator_checks.run_library_check(None, fails, "check", None)


@pytest.mark.parametrize(
    "expected", [{"check_of_nothing": "a reason long enough"}, {"check_estimator_cloneable": ""}]
)
def test_expected_failures_need_a_check_and_a_reason(expected):
    with pytest.raises(Broken):
        estimator_checks.expected_failures_are_known(
            toy_estimators.estimator(expected_failed_checks=expected)
        )
