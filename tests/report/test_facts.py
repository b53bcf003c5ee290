"""Which of several points the overview names."""

from trialrun.catalogue import Rule
from trialrun.claims.judge import DIRECTION_ONLY, DOES_NOT_HOLD, Finding
from trialrun.core.intervals import Interval
from trialrun.report.facts import weakest_point

HIGHER = Rule("paired_difference", "score", "points", "higher", 1.0, "other")
LOWER = Rule("threshold", "loss", "nats", "lower", 0.15)


def test_a_refuted_claim_names_the_point_that_refutes_it():
    found = {"noisy": Interval(-0.8, -3.2, 1.7, 15), "sure": Interval(-1.3, -2.4, -0.3, 15)}
    assert weakest_point(Finding(DOES_NOT_HOLD, found), HIGHER) == "sure"
    above = {"inside": Interval(0.13, 0.10, 0.16, 5), "above": Interval(0.165, 0.156, 0.175, 5)}
    assert weakest_point(Finding(DOES_NOT_HOLD, above), LOWER) == "above"


def test_another_verdict_names_the_point_nearest_to_failing():
    found = {"large": Interval(9.0, 4.0, 14.0, 15), "small": Interval(2.0, 0.1, 3.9, 15)}
    assert weakest_point(Finding(DIRECTION_ONLY, found), HIGHER) == "small"
