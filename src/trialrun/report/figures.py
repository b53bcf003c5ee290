"""Numbers and intervals as text, with the digits that the interval's width supports."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from trialrun.catalogue import Text
from trialrun.core.intervals import Interval


def plain_number(value: float) -> str:
    """Return a card's number as a person would type it.

    Examples
    --------
    >>> plain_number(5.0), plain_number(0.95)
    ('5', '0.95')
    """
    return f"{value:.10g}"


def _decimals(interval: Interval) -> int:
    half = (interval.high - interval.low) / 2
    size = math.floor(math.log10(abs(interval.mean))) if interval.mean else 0
    if not math.isfinite(half) or half <= 0:
        return max(0, 2 - size)
    return max(0, min(1 - math.floor(math.log10(half)), 4 - size, 8))


def _writer(numbers: Sequence[float], decimals: int, signed: bool) -> Callable[[float], str]:
    largest = max((abs(n) for n in numbers if math.isfinite(n)), default=0.0)
    sign = "+" if signed else ""
    if largest >= 1e6 or 0 < largest < 1e-4:
        return lambda n: f"{n:{sign}.2e}"
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return lambda n: f"{round(n, decimals) + 0.0:{sign}.{decimals}f}"


def number(value: float, *, signed: bool = False) -> str:
    """Return one number with three significant digits."""
    size = math.floor(math.log10(abs(value))) if value else 0
    return _writer([value], max(0, 2 - size), signed)(value)


def mean_text(interval: Interval, *, signed: bool = False) -> str:
    """Return an interval's mean with the digits that its width supports."""
    numbers = [interval.mean, interval.low, interval.high]
    return _writer(numbers, _decimals(interval), signed)(interval.mean)


def range_text(interval: Interval, *, signed: bool = False, lang: str = "en") -> str:
    """Return an interval's ends in brackets, or that one seed gives none."""
    if not math.isfinite(interval.low):
        return "(一个种子，无区间)" if lang == "zh" else "(one seed, no interval)"
    numbers = [interval.mean, interval.low, interval.high]
    write = _writer(numbers, _decimals(interval), signed)
    high = write(interval.high) if math.isfinite(interval.high) else "inf"
    return f"[{write(interval.low)}, {high}]"


def interval_text(interval: Interval, *, signed: bool = False, lang: str = "en") -> str:
    """Return mean and ends.

    Examples
    --------
    >>> interval_text(Interval(0.41, -0.62, 1.44, 5), signed=True)
    '+0.4 [-0.6, +1.4]'
    """
    return f"{mean_text(interval, signed=signed)} {range_text(interval, signed=signed, lang=lang)}"


def spread_text(interval: Interval) -> str:
    """Return mean ± half the interval, for narrow columns."""
    half = (interval.high - interval.low) / 2
    if not math.isfinite(half):
        return mean_text(interval)
    write = _writer([interval.mean, half], _decimals(interval), False)
    return f"{write(interval.mean)} ±{write(half)}"


def seconds_text(seconds: float) -> Text:
    """Return a time span in seconds, or minutes from ten minutes on."""
    if seconds >= 600:
        return Text(f"{seconds / 60:.0f} min", f"{seconds / 60:.0f} 分钟")
    digits = 1 if seconds < 10 else 0
    return Text(f"{seconds:.{digits}f} s", f"{seconds:.{digits}f} 秒")
