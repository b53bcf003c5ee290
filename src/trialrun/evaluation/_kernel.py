"""The kernel: how training on (or showing) one skill changes another, with what follows from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import permutations as all_permutations
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.core.seeds import rng
from trialrun.evaluation._estimators import MeanError
from trialrun.evaluation._settings import check_whole

Floats = NDArray[np.float64]
Factor = tuple[str, str]
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Specificity:
    """How much more a skill changes itself than others.

    Attributes
    ----------
    difference : MeanError
        Mean of the diagonal less mean of the rest, with its standard error over prompts.
    z : float
        The difference in standard errors.
    p : float
        Share of the relabellings of skills whose difference is at least as large. It cannot fall
        below 1 over their number.
    relabellings : int
        How many were tried; all there are where those are fewer than asked for.
    """

    difference: MeanError
    z: float
    p: float
    relabellings: int


@dataclass(frozen=True)
class TwoWay:
    """A kernel over skills times formats, split by what trained and asked cells share.

    Attributes
    ----------
    skill, form : MeanError
        Change where the skill (the format) is the same, less change where it differs; the other
        factor is averaged over.
    cell : MeanError
        Interaction: what only the very same skill in the very same format has.
    shares : dict of str to float
        Shares of the squares of the kernel, once its row and column means are taken out, that
        ``skill``, ``format``, ``cell`` and ``rest`` account for; they add up to 1, or are all 0.
    """

    skill: MeanError
    form: MeanError
    cell: MeanError
    shares: dict[str, float]

    def signed_share(self, part: str) -> float:
        """Return a share with its effect's sign: negative where sharing the factor hurts.

        Parameters
        ----------
        part : {"skill", "format", "cell"}
        """
        effects = {"skill": self.skill, "format": self.form, "cell": self.cell}
        if part not in effects:
            raise UsageError(f"part must be one of {', '.join(effects)}, got {part!r}")
        return float(np.sign(effects[part].mean)) * self.shares[part]


@dataclass(frozen=True)
class KernelResult:
    """Change of the probability of a right answer, for every pair of skills.

    Attributes
    ----------
    labels : tuple of str
        The skills, in the order of rows and columns.
    factors : tuple of (name, format)
        The same as pairs.
    how : {"tuning", "in context"}
    estimator : str
    before : float64 array of shape (skills,)
        Probability of a right answer before anything changed.
    mean, se, ess : float64 arrays of shape (skills, skills)
        Row: trained on or shown; column: asked. Mean change over the asked prompts, its standard
        error over prompts, and the effective sample size as a share of the draws.
    changes : tuple of float64 arrays of shape (skills, prompts)
        For every asked skill, each prompt's change under every row.
    draws : int
        Draws per prompt and row; 0 for exact sums.
    """

    labels: tuple[str, ...]
    factors: tuple[Factor, ...]
    how: str
    estimator: str
    before: Floats
    mean: Floats
    se: Floats
    ess: Floats
    changes: tuple[Floats, ...]
    draws: int

    def centred(self) -> Floats:
        """Return the kernel less its row means, which a gain of format alone would raise."""
        return self.mean - self.mean.mean(1, keepdims=True)

    def specificity(self, permutations: int = 2000, seed: int = 0) -> Specificity:
        """Test whether a skill changes itself more than others.

        Row and column means cancel in the difference. Under the null the columns' labels can be
        exchanged; all relabellings are tried where they are at most ``permutations``, which then
        makes the test exact.

        Parameters
        ----------
        permutations : int, at least 1
        seed : int

        Raises
        ------
        ValueError
            If there are fewer than two skills, or no permutation is asked for.
        """
        check_whole("permutations", permutations, low=1)
        size = len(self.labels)
        if size < 2:
            raise UsageError(f"specificity needs at least two skills, got {size}")
        weights = np.eye(size) / size - (1 - np.eye(size)) / (size * (size - 1))
        found = self._contrast(weights)
        orders = self._orders(permutations, seed)
        tried = np.array([(weights[:, order] * self.mean).sum() for order in orders])
        # Rounding must not make the observed labelling smaller than itself.
        level = found.mean - _ROUNDING * float(np.abs(self.mean).max())
        z = found.mean / found.se if found.se else float(np.sign(found.mean)) * np.inf
        return Specificity(found, float(z), float((tried >= level).mean()), len(orders))

    def _orders(self, permutations: int, seed: int) -> list[list[int]]:
        size = len(self.labels)
        if size <= 8 and factorial(size) <= permutations:
            return [list(order) for order in all_permutations(range(size))]
        draw = rng(seed, "relabel")
        return [
            list(range(size)),
            *(draw.permutation(size).tolist() for _ in range(permutations - 1)),
        ]

    def anova(self) -> TwoWay:
        """Split the kernel by whether trained and asked cells share the skill or the format.

        Raises
        ------
        ValueError
            Unless every one of two or more skills comes in every one of two or more formats.
        """
        names = list(dict.fromkeys(name for name, _ in self.factors))
        forms = list(dict.fromkeys(form for _, form in self.factors))
        crossed = len(self.factors) == len(names) * len(forms)
        if not crossed or len(names) < 2 or len(forms) < 2:
            raise UsageError(
                f"the two-way split needs every skill in every format, two of each at least, got "
                f"{', '.join(self.labels)}: name skills by (skill, format)"
            )
        same_name, same_form = (_same([f[i] for f in self.factors]) for i in (0, 1))
        by_name, by_form = same_name - 1 / len(names), same_form - 1 / len(forms)
        shapes = {"skill": by_name, "format": by_form, "cell": by_name * by_form}
        middle = self.mean - self.mean.mean(0) - self.mean.mean(1, keepdims=True)
        middle = middle + self.mean.mean()
        # Entries that row and column means explain leave rounding, which has no parts.
        middle[np.abs(middle) <= _ROUNDING * np.abs(self.mean).max()] = 0.0
        total = float((middle**2).sum())
        shares, effects = {}, {}
        for part, shape in shapes.items():
            norm = float((shape**2).sum())
            effects[part] = self._contrast(shape / norm)
            shares[part] = effects[part].mean ** 2 * norm / total if total else 0.0
        shares["rest"] = max(0.0, 1.0 - sum(shares.values())) if total else 0.0
        return TwoWay(effects["skill"], effects["format"], effects["cell"], shares)

    def _contrast(self, weights: Floats) -> MeanError:
        """Weigh the kernel's entries; the error respects that rows share a column's prompts."""
        each = [weights[:, j] @ change for j, change in enumerate(self.changes)]
        variance = sum(float(e.var(ddof=1)) / len(e) for e in each)
        return MeanError(float((weights * self.mean).sum()), float(np.sqrt(variance)))

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw the kernel as a heatmap and return the matplotlib figure.

        Parameters
        ----------
        path : str, Path or None
            File to write, PNG or SVG by its ending.

        Raises
        ------
        MissingExtra
            Without matplotlib (the extra ``plots``).
        """
        need("matplotlib", extra="plots")
        from matplotlib.figure import Figure

        size = len(self.labels)
        figure = Figure(figsize=(2.6 + 0.9 * size, 1.8 + 0.7 * size), layout="constrained")
        axes = figure.subplots()
        reach = float(np.abs(self.mean).max()) or 1.0
        picture = axes.imshow(self.mean, cmap="RdBu", vmin=-reach, vmax=reach)
        for i, j in np.ndindex(size, size):
            dark = abs(self.mean[i, j]) > 0.6 * reach
            words = f"{100 * self.mean[i, j]:+.1f}\n± {100 * self.se[i, j]:.1f}"
            colour = "white" if dark else "black"
            axes.text(j, i, words, ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(size), self.labels, rotation=30, ha="right")
        axes.set_yticks(range(size), self.labels)
        axes.set_xlabel("asked")
        axes.set_ylabel("trained on" if self.how == "tuning" else "shown")
        axes.set_title("change in P(right), points ± s.e.")
        figure.colorbar(picture, ax=axes)
        if path is not None:
            figure.savefig(path)
        return figure

    def to_json(self, path: str | Path) -> None:
        """Write everything to a JSON file at ``path``; `from_json` reads it back bit for bit."""
        plain = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }
        plain["changes"] = [change.tolist() for change in self.changes]
        Path(path).write_text(json.dumps(plain, ensure_ascii=False, indent=1) + "\n", "utf-8")

    @classmethod
    def from_json(cls, path: str | Path) -> KernelResult:
        """Read what `to_json` wrote to ``path``.

        Raises
        ------
        ValueError
            If the file holds no kernel.
        """
        try:
            plain = json.loads(Path(path).read_text("utf-8"))
            return cls(
                labels=tuple(plain["labels"]),
                factors=tuple((name, form) for name, form in plain["factors"]),
                how=plain["how"],
                estimator=plain["estimator"],
                before=np.array(plain["before"], dtype=np.float64),
                mean=np.array(plain["mean"], dtype=np.float64),
                se=np.array(plain["se"], dtype=np.float64),
                ess=np.array(plain["ess"], dtype=np.float64),
                changes=tuple(np.array(c, dtype=np.float64) for c in plain["changes"]),
                draws=plain["draws"],
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{path} must hold a kernel, got {type(error).__name__}: {error}: give a file that "
                f"to_json wrote"
            ) from error


def _same(words: list[str]) -> Floats:
    return np.array([[float(a == b) for b in words] for a in words])
