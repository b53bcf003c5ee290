"""Student-t intervals without scipy, so that judging needs numpy at most.

The quantile is found by bisection on the distribution function, which is the regularised
incomplete beta function evaluated by its continued fraction (DLMF 8.17.22). Tested against scipy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from trialrun.core.shapes import check_range

_TINY = 1e-300


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` values with its two-sided confidence interval.

    With one value the interval is unbounded: a single seed resolves nothing.
    """

    mean: float
    low: float
    high: float
    n: int

    def flipped(self) -> Interval:
        """Return the interval of the negated quantity."""
        return Interval(-self.mean, -self.high, -self.low, self.n)


def _continued_fraction(a: float, b: float, x: float) -> float:
    # Modified Lentz evaluation; converges fast for x < (a + 1) / (a + b + 2).
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > _TINY else _TINY)
    value = d
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 + term * d
            c = 1.0 + term / c
            d = 1.0 / (d if abs(d) > _TINY else _TINY)
            c = c if abs(c) > _TINY else _TINY
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value


def _incomplete_beta(a: float, b: float, x: float) -> float:
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _continued_fraction(a, b, x) / a
    return 1.0 - front * _continued_fraction(b, a, 1.0 - x) / b


def t_cdf(t: float, freedom: int) -> float:
    """Return P(T <= t) for Student's t with ``freedom`` degrees of freedom.

    Examples
    --------
    >>> t_cdf(0.0, 4)
    0.5
    """
    tail = 0.5 * _incomplete_beta(freedom / 2.0, 0.5, freedom / (freedom + t * t))
    return 1.0 - tail if t >= 0 else tail


@lru_cache(maxsize=256)
def t_quantile(probability: float, freedom: int) -> float:
    """Return t with P(T <= t) = ``probability``, for probabilities in [0.5, 1).

    Raises
    ------
    ValueError
        If the probability or the degrees of freedom are out of range.

    Examples
    --------
    >>> round(t_quantile(0.975, 4), 3)
    2.776
    """
    check_range("freedom", freedom, low=1, unit="degrees")
    if not 0.5 <= probability < 1.0:
        raise ValueError(f"probability must be in [0.5, 1), got {probability!r}")
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < probability:
        high *= 2.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (middle, high) if t_cdf(middle, freedom) < probability else (low, middle)
    return 0.5 * (low + high)


def mean_interval(
    values: Sequence[float], *, confidence: float = 0.95, resplit: float = 0.0
) -> Interval:
    """Return the mean of ``values`` with its two-sided Student-t interval.

    Parameters
    ----------
    values : sequence of float, shape (n,)
        Independent replicates, usually one per seed.
    confidence : float in (0.5, 1)
    resplit : float, at least 0
        Where replicates are random splits of one table, the ratio of held-out to training units.
        Such replicates overlap, and the variance of their mean is taken as
        (1/n + resplit) times their own (nadeau2003inference). 0 is for independent replicates.

    Raises
    ------
    ValueError
        If there is no value, or one is not finite.

    Examples
    --------
    >>> interval = mean_interval([1.0, 2.0, 3.0])
    >>> round(interval.low, 3), round(interval.high, 3)
    (-0.484, 4.484)
    """
    numbers = [float(value) for value in values]
    if not numbers:
        raise ValueError("values must hold at least one number, got none")
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"values must be finite, got {numbers}")
    n = len(numbers)
    mean = math.fsum(numbers) / n
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    variance = math.fsum((number - mean) ** 2 for number in numbers) / (n - 1)
    half = t_quantile(0.5 + confidence / 2.0, n - 1) * math.sqrt(variance * (1.0 / n + resplit))
    return Interval(mean, mean - half, mean + half, n)
