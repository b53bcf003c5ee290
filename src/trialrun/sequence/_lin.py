"""Willems' weighting of all segmentations, and a log-spaced approximation of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from trialrun.sequence._alphabet import as_symbols, like, whole
from trialrun.sequence._starts import Live, Starts, log_after


class LIN(Starts):
    """Predict by a Bayes mixture over all segmentations, short segments and long ones alike.

    A segment ends after its n-th symbol with probability 1 / (2 n), so lengths are heavy-tailed;
    `LINSource` draws from this very prior (willems1996lin; genewein2023mbml).

    Parameters
    ----------
    symbols : int, default=2
        Size of the alphabet, at least 2.
    alpha : float, default=0.5
        Concentration of the symmetric Dirichlet prior inside a segment, positive.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Notes
    -----
    Exact, so a sequence of ``time`` symbols costs O(time ** 2) steps, and the stream's t-th
    symbol O(t); see `PrunedLIN` for long sequences.

    Examples
    --------
    >>> p = LIN()
    >>> p.predict([[0, 0, 0, 0, 1, 1]])[0, -1].round(3).tolist()
    [0.508, 0.492]
    >>> for symbol in (0, 0, 0, 0, 1):
    ...     nats = p.update(symbol)
    >>> p.next().round(3).tolist()
    [0.508, 0.492]
    """

    def __init__(self, symbols: int = 2, *, alpha: float = 0.5) -> None:
        super().__init__(symbols, alpha)

    def start_posterior(self, x: Any) -> Any:
        """Give, at every time, the filtered distribution of where the running segment began.

        Parameters
        ----------
        x : integer array or tensor of shape (batch, time)

        Returns
        -------
        float64 array or tensor of shape (batch, time, time)
            Entry ``[b, t, h]`` is the probability, given ``x[b, : t + 1]``, that the segment of
            symbol t began at h. Rows sum to one and are zero beyond the diagonal.

        Raises
        ------
        ValueError
            As `predict`.
        """
        tokens = as_symbols(x, self.symbols)
        rows = [torch.softmax(step.weights, dim=1) for step in self._walk(tokens, mix=False)]
        return like(x, torch.stack(rows, dim=1))

    def switch_posterior(self, x: Any) -> Any:
        """Give the probability, given the whole sequence, that a segment begins at each time.

        Parameters
        ----------
        x : integer array or tensor of shape (batch, time)

        Returns
        -------
        float64 array or tensor of shape (batch, time)
            Entry 0 is one; the sum over time is the expected number of segments.

        Raises
        ------
        ValueError
            As `predict`.
        """
        tokens = as_symbols(x, self.symbols)
        born = torch.stack([s.born for s in self._walk(tokens, mix=False)], dim=1)
        after = log_after(tokens, self.symbols, self.alpha)
        return like(x, torch.exp(born + after - after[:, :1]))

    def _life(self, start: int) -> float:
        del start
        return math.inf

    def _live(self, device: torch.device) -> Live:
        del device
        return lambda t: slice(0, t)


class PrunedLIN(Starts):
    """Approximate `LIN` by following only O(keep * log t) starts: an approximation, by name.

    A start h, written as an odd number times ``2**v``, is followed for ``keep * 2**v`` symbols
    and then dropped; start 0 is never dropped. The weights that stay are renormalised, so this
    is a proper predictor of its own. Ours: neither genewein2023mbml nor willems1996lin has it.

    Parameters
    ----------
    symbols : int, default=2
        Size of the alphabet, at least 2.
    keep : int, default=16
        How many times its spacing a start is followed, at least 1. When ``keep`` reaches the
        length of the sequence, this is `LIN` exactly.
    alpha : float, default=0.5
        Concentration of the symmetric Dirichlet prior inside a segment, positive.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Notes
    -----
    The bound: for every segmentation whose segments are no longer than their starts are followed,
    the code is no longer than minus the log of that segmentation's weight in `LIN`. A segment of
    n symbols that is too long can be cut at starts of doubling spacing into at most
    ``2 + log2(1 + n / keep)`` that are not. A stream's t-th symbol costs O(keep * log t).

    Examples
    --------
    >>> x = [[0, 0, 0, 1, 1, 1, 1]]
    >>> bool(abs(PrunedLIN(keep=7).log_prob(x) - LIN().log_prob(x)).max() < 1e-12)
    True
    """

    def __init__(self, symbols: int = 2, *, keep: int = 16, alpha: float = 0.5) -> None:
        super().__init__(symbols, alpha)
        self.keep = whole("keep", keep, low=1)

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"keep": self.keep, **super().settings()}

    def _life(self, start: int) -> float:
        return self.keep * float(start & -start) if start else math.inf

    def _live(self, device: torch.device) -> Live:
        kept: list[int] = []

        def live(t: int) -> Tensor:
            kept.append(t - 1)
            kept[:] = [h for h in kept if t - h <= self._life(h)]
            return torch.tensor(kept, device=device)

        return live
