"""Phases of pre-training: context length, token budget, mixture of sources, learning rate.

zhao2024moxin (project page) trains at 2k, then at 4k tokens of context, then on a mixture with
high-quality data; token counts and rates per phase were not read, so they are the user's to give.
A batch is told in tokens, so that a longer context means fewer sequences a step and the same work
for the optimiser.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trialrun.core.errors import UsageError
from trialrun.core.shapes import check_range

SHAPES = ("constant", "linear", "cosine")
OBJECTIVES = ("text", "chat", "preference")


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Learning rate within a phase: a linear rise, then a straight or a cosine way down.

    Parameters
    ----------
    peak : float
        Highest learning rate, above 0.
    end : float or None
        Rate it falls to, reached just after the last step and at most ``peak``; None means 0.
        A ``constant`` rate has none.
    warmup : float
        Share of the phase's steps spent rising from 0, in [0, 1).
    shape : str
        ``constant``, ``linear`` or ``cosine``.

    Raises
    ------
    ValueError
        If a value is out of range.

    Examples
    --------
    >>> Rate(peak=1.0, warmup=0.5).at(0, 4), Rate(peak=1.0, shape="linear").at(3, 4)
    (0.5, 0.25)
    """

    peak: float
    end: float | None = None
    warmup: float = 0.0
    shape: str = "cosine"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.peak) and self.peak > 0):
            raise UsageError(f"peak must be a positive number, got {self.peak!r}")
        if self.shape not in SHAPES:
            raise UsageError(f"shape must be one of {', '.join(SHAPES)}, got {self.shape!r}")
        if self.end is not None and (self.shape == "constant" or not 0 <= self.end <= self.peak):
            raise UsageError(
                f"end must be in 0..{self.peak}, and left out for a constant rate, got {self.end!r}"
            )
        if not 0 <= self.warmup < 1:
            raise UsageError(f"warmup must be in [0, 1), got {self.warmup!r}")

    def at(self, step: int, steps: int) -> float:
        """Return the rate of ``step`` (from 0) in a phase of ``steps``."""
        rising = round(self.warmup * steps)
        if step < rising:
            return self.peak * (step + 1) / rising
        if self.shape == "constant":
            return self.peak
        way = (step - rising) / (steps - rising)
        left = 1 - way if self.shape == "linear" else 0.5 * (1 + math.cos(math.pi * way))
        end = self.end or 0.0
        return end + (self.peak - end) * left


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of training at one context length on one mixture (zhao2024moxin).

    Parameters
    ----------
    name : str
        Shown in the log.
    context : int
        Tokens in a sequence, at least 2 for ``text``: each predicts the next.
    tokens : int
        Budget of the phase in tokens.
    batch_tokens : int
        Tokens a step, over all processes: a multiple of ``context``.
    mixture : mapping of source name to weight
        Shares of the sequences; weights need not sum to 1.
    rate : Rate
    objective : str
        ``text`` (next token), ``chat`` (assistant's tokens only) or ``preference``
        (length-normalised DPO).
    reference : str or None
        Folder of the frozen model that ``preference`` compares with.
    beta : float
        Strength of ``preference``.

    Raises
    ------
    ValueError
        If a value is out of range, or the mixture is empty or sums to zero.

    Examples
    --------
    >>> phase = Phase(name="2k", context=2048, tokens=10**6, batch_tokens=8192,
    ...               mixture={"web": 3, "code": 1}, rate=Rate(peak=3e-4))
    >>> phase.steps, phase.sequences, phase.shares
    (123, 4, {'web': 0.75, 'code': 0.25})
    """

    name: str
    context: int
    tokens: int
    batch_tokens: int
    mixture: Mapping[str, float | int]
    rate: Rate
    objective: str = "text"
    reference: str | None = None
    beta: float = 5.0

    def __post_init__(self) -> None:
        check_range("context", self.context, low=2, unit="tokens")
        check_range("batch_tokens", self.batch_tokens, low=self.context, unit="tokens")
        check_range("tokens", self.tokens, low=self.batch_tokens, unit="tokens (one step)")
        if self.batch_tokens % self.context:
            raise UsageError(
                f"batch_tokens must be a multiple of the context {self.context}, got "
                f"{self.batch_tokens}"
            )
        if not self.mixture:
            raise UsageError(f"mixture of phase {self.name!r} must name at least one source")
        for source, weight in self.mixture.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise UsageError(f"mixture[{source!r}] must be a number from 0 up, got {weight!r}")
        if not sum(self.mixture.values()) > 0:
            raise UsageError(
                f"mixture of phase {self.name!r} must have a weight above 0, and all are 0: give "
                f"at least one source a positive weight"
            )
        if self.objective not in OBJECTIVES:
            raise UsageError(
                f"objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}"
            )
        if (self.reference is None) == (self.objective == "preference"):
            raise UsageError(
                f"reference must be given for objective 'preference' and for no other, got "
                f"{self.reference!r} for {self.objective!r}"
            )
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise UsageError(f"beta must be a positive number, got {self.beta!r}")
        object.__setattr__(self, "mixture", dict(self.mixture))

    @property
    def sequences(self) -> int:
        """Return the sequences of a step, over all processes."""
        return self.batch_tokens // self.context

    @property
    def steps(self) -> int:
        """Return the steps of the phase: the budget, rounded up to whole steps."""
        return -(-self.tokens // self.batch_tokens)

    @property
    def shares(self) -> dict[str, float]:
        """Return each source's share of the sequences; sources of weight 0 are left out."""
        total = sum(self.mixture.values())
        return {name: w / total for name, w in self.mixture.items() if w > 0}


@dataclass(frozen=True)
class Place:
    """Where a global step falls: which phase, and which step of it (both from 0)."""

    phase: int
    step: int


@dataclass(frozen=True)
class Phases:
    """Phases one after another.

    Parameters
    ----------
    phases : sequence of Phase
        At least one.

    Raises
    ------
    ValueError
        If there is none, or two share a name.

    Examples
    --------
    >>> short = Phase(name="a", context=2, tokens=8, batch_tokens=4, mixture={"web": 1},
    ...               rate=Rate(peak=1.0, shape="constant"))
    >>> plan = Phases([short])
    >>> plan.steps, plan.place(1), plan.rate(1)
    (2, Place(phase=0, step=1), 1.0)
    """

    phases: Sequence[Phase]
    _ends: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.phases:
            raise UsageError("phases must hold at least one phase, got none")
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise UsageError(f"phases must have different names, got {', '.join(names)}")
        object.__setattr__(self, "phases", tuple(self.phases))
        ends, done = [], 0
        for phase in self.phases:
            done += phase.steps
            ends.append(done)
        object.__setattr__(self, "_ends", tuple(ends))

    @property
    def steps(self) -> int:
        """Return the steps of all phases."""
        return self._ends[-1]

    @property
    def tokens(self) -> int:
        """Return the tokens of all steps."""
        return sum(phase.steps * phase.batch_tokens for phase in self.phases)

    def place(self, step: int) -> Place:
        """Return the phase of a global step, and the step within it."""
        if not 0 <= step < self.steps:
            raise UsageError(f"step must be in 0..{self.steps - 1}, got {step}")
        start = 0
        for index, end in enumerate(self._ends):
            if step < end:
                return Place(index, step - start)
            start = end
        raise AssertionError("unreachable")

    def rate(self, step: int) -> float:
        """Return the learning rate of a global step."""
        place = self.place(step)
        phase = self.phases[place.phase]
        return phase.rate.at(place.step, phase.steps)
