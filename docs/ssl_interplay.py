"""Draw the regime map of half-moons: ``python docs/ssl_interplay.py`` writes the picture beside it.

At every lambda: mu of six components, who decided them, and how far they agree between views.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from trialrun.representation.ssl_interplay import (
    KernelVCReg,
    interplay_path,
    jitter,
    plot_interplay,
)


def half_moons(n: int, random: np.random.Generator) -> np.ndarray:
    """Return n points on two interleaved half circles, with noise."""
    turn = np.pi * random.random(n)
    points = np.column_stack([np.cos(turn), np.sin(turn)])
    points[1::2] = [1.0, 0.5] - points[1::2]
    return points + 0.1 * random.normal(size=points.shape)


def main() -> None:
    """Solve along a path of lambda and save the picture."""
    X = half_moons(80, np.random.default_rng(0))
    model = KernelVCReg(gamma=5.6, n_components=6, pairs="distinct", random_state=0)
    regs = np.logspace(-5, -0.6, 34)
    path = interplay_path(X, partial(jitter, scale=0.2), regs=regs, model=model)
    figure = plot_interplay(path)
    figure.savefig(Path(__file__).with_name("ssl_interplay.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
