import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trialrun.catalogue import Rule
from trialrun.claims import judge
from trialrun.core.errors import UsageError

SEEDS = 5
NOISES = {
    "normal": lambda g, n: g.normal(size=n),
    "laplace": lambda g, n: g.laplace(size=n),
    "heavy tails (t, 3)": lambda g, n: g.standard_t(3, size=n),
    "skewed (exponential)": lambda g, n: g.exponential(size=n),
    "coarse (accuracy on 50 items)": lambda g, n: g.binomial(50, 0.6, size=n) * 2.0,
}


def rule(kind, direction="higher", margin=0.0, **more):
    against = "" if kind in ("threshold", "ordering") else "other"
    return Rule(kind, "score", "points", direction, margin, against, **more)


def rate_of_holds(kind, noise, *, effect=0.0, margin=0.0, runs=3000):
    """Simulate two arms of equal noise whose true difference is ``effect``."""
    generator = np.random.default_rng(7)
    draw = NOISES[noise]
    held = 0
    for _ in range(runs):
        ours, other = draw(generator, SEEDS) + effect, draw(generator, SEEDS)
        if kind == "ratio":
            ours, other = np.exp(ours / 10), np.exp(other / 10)
        held += (
            judge.apply_rule(rule(kind, margin=margin), {"v": ours}, {"v": other}).word
            == judge.HOLDS
        )
    return held / runs


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("kind", "margin"), [("paired_difference", 0.0), ("ratio", 1.0)])
def test_a_null_effect_holds_in_at_most_five_percent_of_runs(kind, margin, noise):
    assert rate_of_holds(kind, noise, margin=margin) <= 0.05


@pytest.mark.parametrize("noise", ["normal", "laplace", "heavy tails (t, 3)"])
def test_an_effect_equal_to_the_margin_holds_in_at_most_five_percent_of_runs(noise):
    assert rate_of_holds("paired_difference", noise, effect=1.0, margin=1.0) <= 0.05


@pytest.mark.parametrize("kind", ["noninferior", "equivalent"])
def test_a_loss_as_large_as_the_margin_is_called_level_in_at_most_five_percent_of_runs(kind):
    assert rate_of_holds(kind, "normal", effect=-1.0, margin=1.0) <= 0.05


def test_a_mean_on_the_threshold_holds_in_at_most_five_percent_of_runs():
    draws = np.random.default_rng(1).normal(2.0, 1.0, size=(3000, SEEDS))
    held = [judge.threshold(row, rule("threshold", margin=2.0))[0] == judge.HOLDS for row in draws]
    assert np.mean(held) <= 0.05


def test_a_sweep_without_a_trend_is_called_ordered_in_at_most_five_percent_of_runs():
    generator = np.random.default_rng(2)
    sweep_rule = rule("ordering", points=("a", "b", "c"))
    held = 0
    for _ in range(3000):
        sweep = {point: generator.normal(size=SEEDS) for point in "abc"}
        held += judge.apply_rule(sweep_rule, sweep, None).word == judge.HOLDS
    assert held / 3000 <= 0.05


def test_a_large_effect_is_found():
    assert rate_of_holds("paired_difference", "normal", effect=4.0) >= 0.95


@pytest.mark.parametrize(
    ("low", "high", "margin", "word"),
    [
        (1.1, 2.0, 1.0, judge.HOLDS),
        (0.1, 2.0, 1.0, judge.DIRECTION_ONLY),
        (0.1, 0.5, 1.0, judge.DIRECTION_ONLY),
        (-0.1, 2.0, 1.0, judge.NOT_RESOLVED),
        (-0.1, 0.5, 1.0, judge.DOES_NOT_HOLD),
        (-0.1, 0.5, 0.0, judge.NOT_RESOLVED),
        (-2.0, -0.1, 1.0, judge.DOES_NOT_HOLD),
        (0.0, 0.0, 0.0, judge.NOT_RESOLVED),
    ],
)
def test_the_words_follow_from_the_interval(low, high, margin, word):
    assert judge._word_beyond(low, high, margin) == word


values = st.lists(st.floats(-1e3, 1e3), min_size=SEEDS, max_size=SEEDS)


@given(values, values, st.floats(0, 10))
def test_a_rule_and_its_mirror_image_give_the_same_word(ours, other, margin):
    up = judge.paired_difference(ours, other, rule("paired_difference", "higher", margin))[0]
    down = judge.paired_difference(
        [-a for a in ours], [-b for b in other], rule("paired_difference", "lower", margin)
    )[0]
    assert up == down


@given(values, values, st.floats(0.01, 10))
def test_equivalence_implies_noninferiority_both_ways(ours, other, margin):
    if judge.equivalent(ours, other, rule("equivalent", margin=margin))[0] == judge.HOLDS:
        for direction in ("higher", "lower"):
            one_sided = rule("noninferior", direction, margin)
            assert judge.noninferior(ours, other, one_sided)[0] == judge.HOLDS


def test_one_failing_point_decides():
    ours = {"a": [5.0, 5.1, 5.2], "b": [0.0, 0.1, -0.1]}
    other = {"a": [1.0, 1.1, 1.0], "b": [3.0, 3.1, 3.0]}
    assert judge.apply_rule(rule("paired_difference"), ours, other).word == judge.DOES_NOT_HOLD
    only_a = rule("paired_difference", points=("a",))
    assert judge.apply_rule(only_a, ours, other).word == judge.HOLDS


def test_a_control_that_passes_breaks_the_check(claim):
    good, bad = {"value": [9.0, 9.1, 9.2]}, {"value": [1.0, 1.1, 1.0]}
    arms = {"ours": good, "plain": bad, "rival": bad, "control": good}
    assert judge.judge(claim, arms).verdict == judge.BROKEN_CHECK
    arms["control"] = bad
    judged = judge.judge(claim, arms)
    assert (judged.verdict, judged.rival.word) == (judge.HOLDS, "ahead")


def test_a_control_that_is_as_noisy_as_ours_is_not_taken_for_a_failure(claim):
    arms = {
        "ours": {"value": [3.0, 3.1, 2.9, 3.0, 3.1]},
        "plain": {"value": [0.0, 0.1, 0.0, 0.1, 0.0]},
        "rival": {"value": [0.0] * 5},
        "control": {"value": [9.0, -5.0, 8.0, -6.0, 7.0]},
    }
    judged = judge.judge(claim, arms)
    assert (judged.ours.word, judged.control.word) == (judge.HOLDS, judge.NOT_RESOLVED)
    assert judged.verdict == judge.NOT_RESOLVED
    assert "control was not shown to fail" in judged.reason


@pytest.mark.parametrize("points", [("a",), ("a", "b", "c")])
def test_a_control_that_does_what_ours_does_is_seldom_passed_over(claim, points):
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(2000):
        arms = {
            arm: {p: generator.normal(level, 1.0, size=SEEDS) for p in points}
            for arm, level in (("ours", 3.0), ("control", 3.0), ("plain", 0.0), ("rival", 0.0))
        }
        held += judge.judge(claim, arms).verdict == judge.HOLDS
    assert held / 2000 <= 0.05


def test_splitting_one_table_anew_does_not_make_false_holds_more_frequent():
    # Effects of 36 domains are fixed and average to nothing; each seed draws the tested half.
    generator = np.random.default_rng(3)
    rates = {}
    for resplit in (0.0, 1.0):
        held = 0
        for _ in range(1000):
            effects = generator.normal(size=36)
            effects -= effects.mean()
            seeds = [generator.permutation(36)[:18] for _ in range(15)]
            ours = [effects[half].mean() for half in seeds]
            split_rule = rule("paired_difference", resplit=resplit)
            held += judge.paired_difference(ours, [0.0] * 15, split_rule)[0] == judge.HOLDS
        rates[resplit] = held / 1000
    assert rates[1.0] <= 0.05


def test_an_unmeasured_arm_is_named(claim):
    with pytest.raises(UsageError, match="lacks measurements of rival, control"):
        judge.judge(claim, {"ours": {"value": [1.0]}, "plain": {"value": [1.0]}})


def test_a_ratio_of_a_negative_number_is_refused():
    with pytest.raises(UsageError, match="positive"):
        judge.ratio([1.0, -1.0], [1.0, 1.0], rule("ratio", margin=1.5))


def test_a_ratio_margin_on_the_wrong_side_is_refused():
    with pytest.raises(UsageError, match="below 1"):
        judge.ratio([1.0, 2.0], [1.0, 1.0], rule("ratio", "lower", margin=1.5))


def test_unmeasured_points_are_named():
    with pytest.raises(UsageError, match="needs the points 512, measured: 64"):
        judge.apply_rule(rule("threshold", points=("512",)), {"64": [1.0, 2.0]}, None)
