"""Draw the judge's power curve: how often a true effect is found, by its size and the seeds.

Run with ``python docs/power.py``; it writes ``power.svg`` and ``power.csv`` beside itself. Effects
are in units of one arm's standard deviation between seeds, arms are independent and normal, the
rule is a paired difference with margin zero. At effect 0 the curve is the rate of false "holds".
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from trialrun.catalogue import Rule
from trialrun.claims.judge import HOLDS, apply_rule

RUNS = 2000
SEEDS = (3, 5, 10, 20)
EFFECTS = np.arange(0.0, 5.01, 0.25)
RULE = Rule("paired_difference", "score", "sd", "higher", 0.0, "other")


def rate(effect: float, seeds: int) -> float:
    """Return the share of simulated runs that end in "holds"."""
    draws = np.random.default_rng(seeds).normal(size=(RUNS, 2, seeds))
    held = 0
    for ours, other in draws:
        held += apply_rule(RULE, {"v": ours + effect}, {"v": other}).word == HOLDS
    return held / RUNS


def main() -> None:
    """Simulate, write the table and draw the figure."""
    here = Path(__file__).parent
    curves = {seeds: [rate(effect, seeds) for effect in EFFECTS] for seeds in SEEDS}
    with (here / "power.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["effect_in_sd", *(f"seeds_{seeds}" for seeds in SEEDS)])
        for row, effect in enumerate(EFFECTS):
            writer.writerow([effect, *(curves[seeds][row] for seeds in SEEDS)])
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for seeds, curve in curves.items():
        axes.plot(EFFECTS, curve, marker="o", markersize=3, label=f"{seeds} seeds")
    axes.axhline(0.05, color="0.5", linewidth=0.8, linestyle=":")
    axes.set_xlabel("true effect, in standard deviations between seeds")
    axes.set_ylabel('share of runs judged "holds"')
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(here / "power.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
