"""Estimates of a change of probability from draws of the model before, after, or both.

For one prompt let p be the law of answers before and q after, c an answer's correctness and d =
log q - log p. Sought is the change E_q[c] - E_p[c]:

- importance: mean of (e^d - 1) c over draws of p; unbiased, its spread follows the size of the
  change, and a few draws carry it all once the change is large;
- self-normalised: sum of e^d c over sum of e^d, less mean of c; less spread, biased towards none;
- independent: mean of c over draws of q less mean of c over draws of p, the plain difference of
  two accuracies;
- mixture: draws of both, each weighted by (q - p) / (a p + b q) with a and b the shares of either;
  unbiased, and no weight exceeds 1 / min(a, b) (the balance heuristic of veach1995mis).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import UsageError

ESTIMATORS = ("mixture", "importance", "self-normalised", "independent", "exact")
ESS_FLOOR = 0.2
"""Least effective sample size, as a share of the draws, of the two estimators that can collapse."""

_CAN_COLLAPSE = ("importance", "self-normalised")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Draws:
    """Answers drawn for every prompt from one law, with both laws' log-probabilities.

    Attributes
    ----------
    before, after : float64 arrays of shape (prompts, draws)
        Log-probability of the whole answer under either law, in nats.
    correct : bool array of shape (prompts, draws)
    """

    before: Floats
    after: Floats
    correct: NDArray[np.bool_]

    @property
    def ratio(self) -> Floats:
        """Return log q - log p of every draw."""
        return self.after - self.before


class Estimate(NamedTuple):
    """A change for every prompt, and the effective share of the draws behind it.

    ``ess`` is the effective sample size as a share of the draws, in (0, 1].
    """

    change: Floats
    ess: float


class MeanError(NamedTuple):
    """A mean over prompts with its standard error, prompts being the independent units."""

    mean: float
    se: float


def over_prompts(change: Floats) -> MeanError:
    """Average a change over prompts; draws of one prompt share it and do not count singly.

    Examples
    --------
    >>> over_prompts(np.array([0.0, 0.2]))
    MeanError(mean=0.1, se=0.1)
    """
    spread = float(change.std(ddof=1)) if len(change) > 1 else float("nan")
    return MeanError(float(change.mean()), spread / np.sqrt(len(change)).item())


def effective_share(log_weights: Floats) -> float:
    """Return (sum w)^2 / sum w^2 over the number of weights, from logarithms of the weights.

    Examples
    --------
    >>> effective_share(np.log([1.0, 1.0])), effective_share(np.array([0.0, -800.0]))
    (1.0, 0.5)
    """
    weights = np.exp(log_weights - log_weights.max())
    return float(weights.sum() ** 2 / (weights**2).sum() / weights.size)


def importance(base: Draws) -> Estimate:
    """Weigh draws of the law before by how much likelier they became."""
    change = (np.expm1(base.ratio) * base.correct).mean(1)
    return Estimate(change, effective_share(base.ratio))


def self_normalised(base: Draws) -> Estimate:
    """Weigh as `importance` does and divide by the sum of the weights, prompt by prompt."""
    weights = np.exp(base.ratio - base.ratio.max(1, keepdims=True))
    after = (weights * base.correct).sum(1) / weights.sum(1)
    return Estimate(after - base.correct.mean(1), effective_share(base.ratio))


def independent(base: Draws, tuned: Draws) -> Estimate:
    """Subtract one accuracy from the other; no weights, so every draw counts."""
    return Estimate(tuned.correct.mean(1) - base.correct.mean(1), 1.0)


def mixture(base: Draws, tuned: Draws) -> Estimate:
    """Weigh draws of both laws by the difference of the laws over their mixture."""
    share = base.ratio.shape[1] / (base.ratio.shape[1] + tuned.ratio.shape[1])
    ratio = np.concatenate([base.ratio, tuned.ratio], axis=1)
    correct = np.concatenate([base.correct, tuned.correct], axis=1)
    # (e^d - 1) / (share + (1 - share) e^d), with the larger of 1 and e^d divided out.
    shrunk = np.exp(-np.abs(ratio))
    falls = ratio < 0
    below = np.where(falls, share + (1 - share) * shrunk, share * shrunk + (1 - share))
    weights = np.where(falls, shrunk - 1.0, 1.0 - shrunk) / below
    log_mixed = np.log(below) + np.maximum(ratio, 0.0)
    ess = min(effective_share(-log_mixed), effective_share(ratio - log_mixed))
    return Estimate((weights * correct).mean(1), ess)


def estimate(name: str, base: Draws, tuned: Draws | None) -> Estimate:
    """Apply the estimator called ``name``.

    Parameters
    ----------
    name : str
        One of `ESTIMATORS` but ``exact``, which needs no draws.
    base, tuned : Draws
        From the law before and after; ``tuned`` only for ``mixture`` and ``independent``.

    Raises
    ------
    UsageError
        If the name is unknown, or draws are missing.

    Examples
    --------
    >>> same = Draws(*np.zeros((2, 1, 3)), np.ones((1, 3), dtype=bool))
    >>> estimate("mixture", same, same)
    Estimate(change=array([0.]), ess=1.0)
    """
    check_name(name)
    if name == "importance":
        return importance(base)
    if name == "self-normalised":
        return self_normalised(base)
    if tuned is None or name == "exact":
        raise UsageError(f"estimator {name!r} needs draws of both laws: use importance")
    return mixture(base, tuned) if name == "mixture" else independent(base, tuned)


def check_name(name: str) -> None:
    """Raise unless ``name`` is an estimator's."""
    if name not in ESTIMATORS:
        raise UsageError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {name!r}")


def needs_both(name: str) -> bool:
    """Tell whether an estimator draws from the law after as well."""
    return name in ("mixture", "independent")


def check_ess(name: str, ess: float, where: str) -> None:
    """Refuse an estimate that a few draws decide.

    Raises
    ------
    UsageError
        With the remedy, if a weighting estimator's effective share is below `ESS_FLOOR`.
    """
    if name in _CAN_COLLAPSE and ess < ESS_FLOOR:
        raise UsageError(
            f"estimator {name!r} is left with an effective sample size of {ess:.3f} of its draws "
            f"for {where}, below the floor of {ESS_FLOOR}: use estimator='mixture', or a smaller "
            f"training step"
        )


def check_reach(name: str, log_weights: Floats, where: str) -> None:
    """Refuse weights of draws that miss what the law after says.

    Weights are 1 on average where draws reach all of the law after. Where it has left for answers
    that were never drawn, all are alike small: their effective sample size is high, and tells
    nothing.

    Raises
    ------
    UsageError
        With the remedy, if a weighting estimator's mean weight is below `ESS_FLOOR`.
    """
    peak = float(log_weights.max())
    mean = float(np.exp(min(0.0, peak + np.log(np.exp(log_weights - peak).mean()))))
    if name in _CAN_COLLAPSE and mean < ESS_FLOOR:
        raise UsageError(
            f"estimator {name!r} drew answers that hold {mean:.3f} of the changed model's "
            f"probability for {where}, below the floor of {ESS_FLOOR}: use estimator='mixture', or "
            f"a smaller training step"
        )
