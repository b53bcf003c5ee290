"""Checks of symbol sequences, and what every exact predictor shares.

Symbols are the integers 0 .. K-1. Arrays come in as numpy arrays, nested lists or torch tensors;
torch in gives torch out, anything else gives numpy out.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

HALF = math.log(0.5)


def as_symbols(x: Any, symbols: int, *, axes: str = "(batch, time)") -> Int[Tensor, "batch time"]:
    """Check a batch of symbol sequences and return it as an int64 tensor.

    Raises
    ------
    ValueError
        For floats, another rank, an empty batch or symbols outside 0 .. symbols - 1.
    """
    given = x if isinstance(x, Tensor) else np.asarray(x)
    numeric = given.dtype.kind in "iub" if isinstance(given, np.ndarray) else _is_whole(given.dtype)
    if given.ndim != 2:
        hint = ": add the batch axis with x[None, :]" if given.ndim == 1 else ""
        raise ValueError(f"x must have shape {axes}, got shape {tuple(given.shape)}{hint}")
    if 0 in given.shape:
        raise ValueError(
            f"x must hold at least one sequence of one symbol, got shape {tuple(given.shape)}"
        )
    if not numeric:
        raise ValueError(
            f"x must hold integers 0 to {symbols - 1}, got dtype {given.dtype}: "
            "number the symbols from 0 first"
        )
    low, high = int(given.min()), int(given.max())
    if low < 0 or high >= symbols:
        raise ValueError(
            f"x must hold symbols 0 to {symbols - 1}, got {low if low < 0 else high}: "
            f"number the symbols from 0, or set symbols={max(high + 1, symbols)}"
        )
    return torch.as_tensor(
        given.astype(np.int64) if isinstance(given, np.ndarray) else given
    ).long()


def _is_whole(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex)


def like(given: Any, value: Tensor) -> Any:
    """Return ``value`` as a tensor when ``given`` was one, and as a numpy array otherwise."""
    return value if isinstance(given, Tensor) else value.cpu().numpy()


def whole(name: str, value: Any, *, low: int, what: str = "") -> int:
    """Return ``value`` as an int, or raise a sentence unless it is a whole number >= ``low``."""
    right = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not right or value < low:
        raise ValueError(f"{name} must be a whole number of at least {low}{what}, got {value!r}")
    return int(value)


def positive(name: str, value: Any) -> float:
    """Return ``value`` as a float, or raise a sentence unless it is positive and finite."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def counts_before(x: Int[Tensor, "batch time"], symbols: int) -> Int[Tensor, "batch symbols edges"]:
    """Count every symbol before each edge of time; the last edge is the end of the sequence."""
    batch, time = x.shape
    counts = torch.zeros(batch, symbols, time + 1, dtype=torch.int64, device=x.device)
    counts[:, :, 1:].scatter_(1, x[:, None, :], 1)
    return counts.cumsum_(2)


def log_rising(length: int, start: float, device: torch.device) -> Float[Tensor, " edges"]:
    """Tabulate log(start (start+1) ... (start+n-1)) for n = 0 .. length."""
    n = torch.arange(length + 1, dtype=torch.float64, device=device)
    return torch.lgamma(n + start) - math.lgamma(start)


def logaddexp(a: float, b: float) -> float:
    """Add two probabilities given by their logarithms."""
    high, low = (a, b) if a >= b else (b, a)
    return high + math.log1p(math.exp(low - high))


class ExactPredictor:
    """What the exact predictors share: checks, streaming, code lengths and settings on disk.

    A subclass gives ``_probabilities`` and ``_log_prob`` (batched), and ``_begin``, ``_mix`` and
    ``_advance`` (streaming).
    """

    def __init__(self, symbols: int, alpha: float) -> None:
        self.symbols = whole("symbols", symbols, low=2)
        self.alpha = positive("alpha", alpha)
        self._begun = False
        self._mixed: np.ndarray | None = None

    def predict(self, x: Any) -> Any:
        """Give the probability of every symbol at every time from the symbols before it.

        Parameters
        ----------
        x : integer array or tensor of shape (batch, time)
            Symbols 0 .. symbols - 1.

        Returns
        -------
        float64 array or tensor of shape (batch, time, symbols)
            Entry ``[b, t]`` depends on ``x[b, :t]`` alone and sums to one; the first is uniform.
            A tensor if ``x`` was one, on its device; a numpy array otherwise.

        Raises
        ------
        ValueError
            For floats, a wrong rank, an empty input, or symbols out of range.
        """
        tokens = as_symbols(x, self.symbols)
        self._check_length(tokens.shape[1])
        return like(x, self._probabilities(tokens))

    def log_prob(self, x: Any) -> Any:
        """Give the log-probability of every sequence of a batch, in nats.

        Parameters
        ----------
        x : integer array or tensor of shape (batch, time)

        Returns
        -------
        float64 array or tensor of shape (batch,)
            Minus this, divided by ``log(2)``, is the ideal code length in bits.

        Raises
        ------
        ValueError
            As `predict`.
        """
        tokens = as_symbols(x, self.symbols)
        self._check_length(tokens.shape[1])
        return like(x, self._log_prob(tokens))

    def next(self) -> np.ndarray:
        """Give the probability of every symbol at the next step of the stream.

        Returns
        -------
        float64 array of shape (symbols,)
        """
        if not self._begun:
            self.reset()
        if self._mixed is None:
            self._mixed = self._mix()
        return self._mixed.copy()

    def update(self, symbol: int) -> float:
        """Take in the stream's next symbol.

        Returns
        -------
        float
            The log-probability that the symbol had been given, in nats.

        Raises
        ------
        ValueError
            If ``symbol`` is not a whole number from 0 to symbols - 1.
        """
        right = isinstance(symbol, int | np.integer) and not isinstance(symbol, bool)
        if not right or not 0 <= symbol < self.symbols:
            raise ValueError(
                f"symbol must be a whole number from 0 to {self.symbols - 1}, got {symbol!r}"
            )
        given = float(self.next()[symbol])
        self._advance(int(symbol))
        self._mixed = None
        return math.log(given)

    def reset(self) -> None:
        """Forget the stream and start a new one."""
        self._begin()
        self._mixed = None
        self._begun = True

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"symbols": self.symbols, "alpha": self.alpha}

    def save(self, folder: str | Path) -> None:
        """Write the settings to ``predictor.json`` in ``folder``; see `load_predictor`.

        The place in a stream is not saved.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"predictor": type(self).__name__, "settings": self.settings()}, indent=1)
        (target / "predictor.json").write_text(text + "\n", encoding="utf-8")

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.settings().items())
        return f"{type(self).__name__}({inside})"

    def _check_length(self, length: int) -> None:
        """Raise if sequences of ``length`` symbols are too long; only some predictors mind."""

    def _probabilities(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _log_prob(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _begin(self) -> None:
        raise NotImplementedError

    def _mix(self) -> np.ndarray:
        raise NotImplementedError

    def _advance(self, symbol: int) -> None:
        raise NotImplementedError
