import numpy as np
import pytest
from scipy import stats

from trialrun.core.intervals import mean_interval, t_cdf, t_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 29, 500])
@pytest.mark.parametrize("probability", [0.5, 0.6, 0.9, 0.975, 0.9995])
def test_quantiles_agree_with_scipy(freedom, probability):
    assert t_quantile(probability, freedom) == pytest.approx(
        stats.t.ppf(probability, freedom), rel=1e-9, abs=1e-12
    )


@pytest.mark.parametrize("t", [-40.0, -1.3, 0.0, 0.2, 2.0, 15.0])
def test_distribution_function_agrees_with_scipy(t):
    for freedom in (1, 4, 30):
        assert t_cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), rel=1e-9, abs=1e-14)


def test_intervals_cover_the_true_mean_at_the_stated_rate():
    draws = np.random.default_rng(0).normal(3.0, 2.0, size=(4000, 5))
    intervals = [mean_interval(row) for row in draws]
    covered = np.mean([i.low < 3.0 < i.high for i in intervals])
    assert covered == pytest.approx(0.95, abs=0.012)


def test_overlapping_replicates_widen_the_interval():
    plain, split = (mean_interval([1.0, 2.0, 4.0, 5.0], resplit=r) for r in (0.0, 0.5))
    ratio = (split.high - split.mean) / (plain.high - plain.mean)
    assert ratio == pytest.approx(np.sqrt((1 / 4 + 0.5) * 4))


def test_one_seed_resolves_nothing():
    interval = mean_interval([4.0])
    assert (interval.mean, interval.low, interval.high) == (4.0, -np.inf, np.inf)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_empty_and_non_finite_values_are_refused(values):
    with pytest.raises(ValueError, match="values must"):
        mean_interval(values)
