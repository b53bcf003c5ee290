"""Predictors that count: KT over the whole past, and KT over the last few symbols."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from trialrun.sequence._alphabet import ExactPredictor, counts_before, log_rising, whole


class KT(ExactPredictor):
    """Predict by the counts of the whole past: Bayes-optimal when nothing ever switches.

    P(s) = (n_s + alpha) / (n + symbols * alpha), the Krichevsky-Trofimov estimator
    (genewein2023mbml uses it inside every segment).

    Parameters
    ----------
    symbols : int, default=2
        Size of the alphabet, at least 2.
    alpha : float, default=0.5
        Concentration of the symmetric Dirichlet prior, positive.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Examples
    --------
    >>> KT().predict([[0, 0, 1]])[0, :, 0].round(3).tolist()
    [0.5, 0.75, 0.833]
    >>> stream = KT()
    >>> for symbol in (0, 0, 1):
    ...     nats = stream.update(symbol)
    >>> stream.next().tolist()
    [0.625, 0.375]
    """

    def __init__(self, symbols: int = 2, *, alpha: float = 0.5) -> None:
        super().__init__(symbols, alpha)

    def _probabilities(self, x: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time symbols"]:
        before = counts_before(x, self.symbols)[:, :, :-1].double()
        seen = torch.arange(x.shape[1], dtype=torch.float64, device=x.device)
        return ((before + self.alpha) / (seen + self.symbols * self.alpha)).mT.contiguous()

    def _log_prob(self, x: Int[Tensor, "batch time"]) -> Float[Tensor, " batch"]:
        batch, time = x.shape
        counts = torch.zeros(batch, self.symbols, dtype=torch.int64, device=x.device)
        counts.scatter_add_(1, x, torch.ones_like(x))
        of_symbol = log_rising(time, self.alpha, x.device)
        of_all = log_rising(time, self.symbols * self.alpha, x.device)
        return of_symbol[counts].sum(1) - of_all[time]

    def _begin(self) -> None:
        self._counts = np.zeros(self.symbols)

    def _mix(self) -> np.ndarray:
        return (self._counts + self.alpha) / (self._counts.sum() + self.symbols * self.alpha)

    def _advance(self, symbol: int) -> None:
        self._counts[symbol] += 1


class KTWindow(ExactPredictor):
    """Predict by the counts of the last ``window`` symbols: the simple rival.

    Not in genewein2023mbml; the least one can do about a source that switches.

    Parameters
    ----------
    window : int
        How many symbols back are counted, at least 1.
    symbols : int, default=2
        Size of the alphabet, at least 2.
    alpha : float, default=0.5
        Concentration of the symmetric Dirichlet prior, positive.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Examples
    --------
    >>> KTWindow(1).predict([[0, 0, 1]])[0, :, 0].tolist()
    [0.5, 0.75, 0.75]
    """

    def __init__(self, window: int, symbols: int = 2, *, alpha: float = 0.5) -> None:
        super().__init__(symbols, alpha)
        self.window = whole("window", window, low=1, what=" symbol")

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"window": self.window, **super().settings()}

    def _probabilities(self, x: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time symbols"]:
        before = counts_before(x, self.symbols)
        edge = torch.arange(x.shape[1], device=x.device)
        start = (edge - self.window).clamp(min=0)
        inside = (before[:, :, :-1] - before.index_select(2, start)).double()
        seen = (edge - start).double()
        return ((inside + self.alpha) / (seen + self.symbols * self.alpha)).mT.contiguous()

    def _log_prob(self, x: Int[Tensor, "batch time"]) -> Float[Tensor, " batch"]:
        before = counts_before(x, self.symbols)
        edge = torch.arange(x.shape[1], device=x.device)
        start = (edge - self.window).clamp(min=0)
        own = before[:, :, :-1].gather(1, x[:, None, :])
        old = before.index_select(2, start).gather(1, x[:, None, :])
        seen = (edge - start).double()
        inside = (own - old)[:, 0].double()
        return ((inside + self.alpha) / (seen + self.symbols * self.alpha)).log().sum(1)

    def _begin(self) -> None:
        self._counts = np.zeros(self.symbols)
        self._recent: deque[int] = deque()

    def _mix(self) -> np.ndarray:
        return (self._counts + self.alpha) / (len(self._recent) + self.symbols * self.alpha)

    def _advance(self, symbol: int) -> None:
        if len(self._recent) == self.window:
            self._counts[self._recent.popleft()] -= 1
        self._recent.append(symbol)
        self._counts[symbol] += 1
