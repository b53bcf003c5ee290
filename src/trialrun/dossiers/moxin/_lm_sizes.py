"""How big the language models and corpora of each budget are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LmSizes:
    """Settings of the claims that train a byte model.

    Parameters
    ----------
    layers, width, heads : int
        Of the model; keys and values have one head.
    steps, batch : int
        Steps of ``batch`` sequences of ``short`` bytes, for duplicates and quality.
    pages : int
        Good pages of a corpus, before copies or rubbish.
    short, long : int
        Context lengths of the two phases, in bytes.
    phase_steps : int
        Steps of 3 ``long`` sequences' worth of bytes, for phases.
    scored : int
        Held-out windows.
    window : int
        Sliding window of the rolling cache's model, in tokens.
    """

    layers: int = 2
    width: int = 64
    heads: int = 2
    steps: int
    batch: int = 16
    pages: int
    short: int = 64
    long: int = 512
    phase_steps: int
    scored: int
    window: int = 16


SMOKE = LmSizes(
    layers=1, width=16, heads=2, steps=2, batch=4, pages=24, long=128, phase_steps=4, scored=2,
    window=4,
)  # fmt: skip
QUICK = LmSizes(steps=160, pages=120, phase_steps=40, scored=96)
FULL = LmSizes(steps=240, pages=300, phase_steps=140, scored=160)
GPU = LmSizes(
    layers=8, width=512, heads=8, steps=2000, batch=128, pages=4000, short=256, long=2048,
    phase_steps=2000, scored=512, window=64,
)  # fmt: skip
