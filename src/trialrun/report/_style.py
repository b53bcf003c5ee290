"""How plots look: colours told apart by colour-blind readers, and a mark for each arm's part."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from trialrun.catalogue import Claim, Rule
from trialrun.report.facts import ArmFacts
from trialrun.report.words import ROLE_WORDS, better_words

INK, MUTED, GRID, CARD = "#1b1f24", "#6b7280", "#d8dce2", "#ffffff"
OURS, CONTROL, RIVAL, BASELINE = "#0072b2", "#d55e00", "#00856a", "#4d4d4d"
SHOWN = ("#8a63a8", "#9a6f00", "#3b8ea5", "#b0527a", "#7a7a00")
_MARKERS = ("v", "P", "X", "<", ">", "p", "h")

SETTINGS = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": CARD,
    "font.family": ["sans-serif"],
    "font.size": 8.5,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "savefig.facecolor": CARD,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}


def arm_styles(claim: Claim, arms: Sequence[ArmFacts]) -> dict[str, dict[str, Any]]:
    """Return each arm's colour, marker and line; the control is dashed and hollow."""
    fixed = {
        claim.rule.against: (BASELINE, "s"),
        claim.baseline: (BASELINE, "s"),
        claim.rival: (RIVAL, "^"),
        claim.control: (CONTROL, "D"),
        claim.ours: (OURS, "o"),
    }
    styles, spare = {}, 0
    for arm in arms:
        if arm.name in fixed:
            colour, marker = fixed[arm.name]
        else:
            colour, marker = SHOWN[spare % len(SHOWN)], _MARKERS[spare % len(_MARKERS)]
            spare += 1
        hollow = arm.name == claim.control
        styles[arm.name] = {
            "color": colour,
            "marker": marker,
            "markerfacecolor": CARD if hollow else colour,
            "linestyle": (0, (4, 2)) if hollow else "-",
            "linewidth": 2.0 if arm.name == claim.ours else 1.4,
            "zorder": 4 if arm.name == claim.ours else 3,
        }
    return styles


def arm_label(arm: ArmFacts) -> str:
    """Return an arm's name with its main part in the claim."""
    return (
        arm.name
        if arm.roles in (("shown",), (arm.name,))
        else f"{arm.name} ({ROLE_WORDS[arm.roles[0]].en})"
    )


def axis_words(rule: Rule) -> str:
    """Return metric, unit and the better direction, wrapped for an axis."""
    words = f"{rule.metric} ({rule.unit}, {better_words(rule).en})"
    return "\n".join(textwrap.wrap(words, 66))
