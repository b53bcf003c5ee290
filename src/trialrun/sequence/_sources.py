"""Sources that switch: draws of symbols together with their true next-symbol probabilities.

Every sequence has its own switch points. ``shared=True`` gives all sequences of a batch the same
ones, which makes averages over the batch vary more than their standard error says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trialrun.core.seeds import rng
from trialrun.sequence._alphabet import positive, whole


class Sample(NamedTuple):
    """Sequences and the truth behind them.

    Attributes
    ----------
    x : int64 tensor of shape (batch, time)
        The symbols.
    theta : float64 tensor of shape (batch, time, symbols)
        The probability of every symbol at every time, given the hidden switch points.
    """

    x: Int[Tensor, "batch time"]
    theta: Float[Tensor, "batch time symbols"]


class _Source:
    """What the sources share: a symmetric or given Dirichlet prior, and drawing from it."""

    max_length: int | None = None

    def __init__(self, symbols: int, prior: float | Sequence[float], shared: bool) -> None:
        self.symbols = whole("symbols", symbols, low=2)
        if isinstance(prior, Sequence | np.ndarray):
            self.prior = tuple(positive("prior", value) for value in prior)
        else:
            self.prior = (positive("prior", prior),) * self.symbols
        if len(self.prior) != self.symbols:
            raise ValueError(
                f"prior must give one number for each of {self.symbols} symbols, got "
                f"{len(self.prior)}: set symbols={len(self.prior)}"
            )
        self.shared = bool(shared)

    def sample(self, batch: int, length: int, seed: int) -> Sample:
        """Draw sequences.

        Parameters
        ----------
        batch : int
            Number of sequences, at least 1.
        length : int
            Symbols per sequence, at least 1.
        seed : int
            The same seed gives the same draw on every machine.

        Returns
        -------
        Sample
            ``x`` of shape (batch, length) and ``theta`` of shape (batch, length, symbols).

        Raises
        ------
        ValueError
            If a number is out of range, or ``length`` is beyond what the source can draw.
        """
        whole("batch", batch, low=1)
        whole("length", length, low=1)
        if self.max_length is not None and length > self.max_length:
            raise ValueError(
                f"length must be at most {self.max_length} for {self!r}, got {length}: "
                f"use depth={(length - 1).bit_length()} or more"
            )
        random = rng(seed, "source")
        begins = self._begins(1 if self.shared else batch, length, random)
        begins = np.broadcast_to(begins, (batch, length))
        segment = begins.ravel().cumsum().reshape(batch, length) - 1
        theta = random.dirichlet(self.prior, size=int(segment[-1, -1]) + 1)[segment]
        edges = theta.cumsum(axis=2)[:, :, :-1]
        x = (random.random((batch, length))[:, :, None] >= edges).sum(axis=2)
        return Sample(torch.from_numpy(x), torch.from_numpy(theta))

    def _begins(
        self, batch: int, length: int, random: np.random.Generator
    ) -> Bool[np.ndarray, "batch length"]:
        """Say at which times a segment begins; the first always does."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}(symbols={self.symbols})"


class PTWSource(_Source):
    """Draw from the prior of `PTW`: fair coins split segments at their midpoints.

    One of the two sources of genewein2023mbml.

    Parameters
    ----------
    depth : int
        Depth of the tree; sequences may be ``2**depth`` symbols long.
    symbols : int, default=2
        Size of the alphabet.
    prior : float or sequence of floats, default=0.5
        Dirichlet parameters of a segment's symbol probabilities.
    shared : bool, default=False
        Give all sequences of a batch the same switch points. Averages over such a batch have a
        larger error than their spread shows.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Examples
    --------
    >>> sample = PTWSource(depth=4).sample(batch=3, length=16, seed=0)
    >>> tuple(sample.x.shape), tuple(sample.theta.shape)
    ((3, 16), (3, 16, 2))
    """

    def __init__(
        self,
        depth: int,
        symbols: int = 2,
        *,
        prior: float | Sequence[float] = 0.5,
        shared: bool = False,
    ) -> None:
        super().__init__(symbols, prior, shared)
        self.depth = whole("depth", depth, low=0)
        self.max_length = 2**self.depth

    def __repr__(self) -> str:
        return f"PTWSource(depth={self.depth}, symbols={self.symbols})"

    def _begins(self, batch: int, length: int, random: np.random.Generator) -> np.ndarray:
        begins = np.zeros((batch, length), dtype=bool)
        begins[:, 0] = True
        reached = np.ones((batch, 1), dtype=bool)
        for height in range(self.depth, 0, -1):
            nodes = -(-length // 2**height)
            split = reached[:, :nodes] & (random.random((batch, nodes)) < 0.5)
            middles = begins[:, 2 ** (height - 1) :: 2**height]
            middles |= split[:, : middles.shape[1]]
            reached = split.repeat(2, axis=1)
        return begins


class LINSource(_Source):
    """Draw from the prior of `LIN`: a segment ends after its n-th symbol w.p. 1 / (2 n).

    One of the two sources of genewein2023mbml; the prior is that of willems1996lin.

    Parameters
    ----------
    symbols : int, default=2
        Size of the alphabet.
    prior : float or sequence of floats, default=0.5
        Dirichlet parameters of a segment's symbol probabilities.
    shared : bool, default=False
        Give all sequences of a batch the same switch points; see `PTWSource`.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Examples
    --------
    >>> tuple(LINSource().sample(batch=2, length=5, seed=0).x.shape)
    (2, 5)
    """

    def __init__(
        self, symbols: int = 2, *, prior: float | Sequence[float] = 0.5, shared: bool = False
    ) -> None:
        super().__init__(symbols, prior, shared)

    def _begins(self, batch: int, length: int, random: np.random.Generator) -> np.ndarray:
        begins = np.ones((batch, length), dtype=bool)
        chance = random.random((length, batch))
        size = np.ones(batch)
        for t in range(1, length):
            ends = chance[t] < 0.5 / size
            begins[:, t] = ends
            size = np.where(ends, 1.0, size + 1.0)
        return begins


class RegularShiftSource(_Source):
    """Draw segments of one fixed length.

    Parameters
    ----------
    period : int
        Symbols per segment, at least 1.
    symbols : int, default=2
        Size of the alphabet.
    prior : float or sequence of floats, default=0.5
        Dirichlet parameters of a segment's symbol probabilities.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Examples
    --------
    >>> theta = RegularShiftSource(2).sample(batch=1, length=4, seed=0).theta[0, :, 0]
    >>> bool(theta[0] == theta[1] != theta[2])
    True
    """

    def __init__(
        self, period: int, symbols: int = 2, *, prior: float | Sequence[float] = 0.5
    ) -> None:
        super().__init__(symbols, prior, shared=False)
        self.period = whole("period", period, low=1)

    def _begins(self, batch: int, length: int, random: np.random.Generator) -> np.ndarray:
        del random
        return np.broadcast_to(np.arange(length) % self.period == 0, (batch, length))


class RandomShiftSource(_Source):
    """Draw segments of geometric length: a new one begins at every step with one probability.

    Parameters
    ----------
    rate : float in [0, 1]
        Probability that a segment begins at a step after the first.
    symbols : int, default=2
        Size of the alphabet.
    prior : float or sequence of floats, default=0.5
        Dirichlet parameters of a segment's symbol probabilities.
    shared : bool, default=False
        Give all sequences of a batch the same switch points; see `PTWSource`.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Examples
    --------
    >>> theta = RandomShiftSource(0.0).sample(batch=1, length=9, seed=0).theta
    >>> bool((theta == theta[:, :1]).all())
    True
    """

    def __init__(
        self,
        rate: float,
        symbols: int = 2,
        *,
        prior: float | Sequence[float] = 0.5,
        shared: bool = False,
    ) -> None:
        super().__init__(symbols, prior, shared)
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise ValueError(f"rate must be a probability from 0 to 1, got {rate!r}")
        self.rate = float(rate)

    def _begins(self, batch: int, length: int, random: np.random.Generator) -> np.ndarray:
        begins = random.random((batch, length)) < self.rate
        begins[:, 0] = True
        return begins
