"""Meta-training: fit a net to predict the next symbol over draws of a source, and keep it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.sequence._alphabet import as_symbols, like, whole
from trialrun.sequence._nets import NetShape, NextSymbolNet
from trialrun.sequence._sources import Sample

_PAPER_LENGTH = 256


@runtime_checkable
class Source(Protocol):
    """Anything that draws sequences; ``max_length`` is None where there is no limit."""

    symbols: int
    max_length: int | None

    def sample(self, batch: int, length: int, seed: int) -> Sample:
        """Draw ``batch`` sequences of ``length`` symbols."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a net is trained.

    Parameters
    ----------
    batch : int, default=64
        Fresh sequences per step.
    rate : float, default=3e-3
        Peak learning rate of Adam; it rises over the first 5 % of steps and then falls to zero
        along half a cosine. (The paper: 1e-4, constant, batch 128, 100k steps.)
    clip : float, default=1.0
        Largest norm of the gradient.

    Raises
    ------
    ValueError
        If a number is not positive.
    """

    batch: int = 64
    rate: float = 3e-3
    clip: float = 1.0

    def __post_init__(self) -> None:
        whole("batch", self.batch, low=1)
        for name in ("rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")

    def factor(self, step: int, steps: int) -> float:
        """Return the fraction of the peak rate at a step."""
        rise = max(1, steps // 20)
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


class MetaPredictor:
    """A trained net as a predictor: the same ``predict`` as the exact ones, and on disk.

    Parameters
    ----------
    architecture : str
        See `train_meta`.
    symbols : int
        Size of the alphabet.
    shape : NetShape
        Sizes of the net.
    seed : int
        Seed of the initial weights; the global random state is left alone.

    Raises
    ------
    ValueError
        For an unknown architecture or a size out of range.

    Examples
    --------
    >>> net = MetaPredictor("lstm", 2, NetShape(width=8), seed=0)
    >>> net.predict([[0, 1, 1]]).shape
    (1, 3, 2)
    """

    def __init__(self, architecture: str, symbols: int, shape: NetShape, *, seed: int = 0) -> None:
        self.architecture, self.symbols, self.shape = architecture, symbols, shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(split(seed, "weights"))
            self.net = NextSymbolNet(architecture, symbols, shape).eval()

    @property
    def device(self) -> torch.device:
        """Return where the weights lie."""
        return self.net.embed.weight.device

    def to(self, device: str) -> MetaPredictor:
        """Move the weights to a device; inputs may lie anywhere."""
        self.net.to(device)
        return self

    @torch.no_grad()
    def log_predict(self, x: Any) -> Any:
        """Give the log-probability of every symbol at every time; see `predict`."""
        tokens = as_symbols(x, self.symbols)
        rows = max(1, 65_536 // tokens.shape[1])
        self.net.eval()
        logits = torch.cat([self.net(part.to(self.device)) for part in tokens.split(rows)])
        return like(x, torch.log_softmax(logits.double(), dim=2).to(tokens.device))

    def predict(self, x: Any) -> Any:
        """Give the probability of every symbol at every time from the symbols before it.

        Parameters
        ----------
        x : integer array or tensor of shape (batch, time)
            Symbols 0 .. symbols - 1.

        Returns
        -------
        float64 array or tensor of shape (batch, time, symbols)
            Entry ``[b, t]`` depends on ``x[b, :t]`` alone and sums to one.

        Raises
        ------
        ValueError
            For floats, a wrong rank, an empty input, or symbols out of range.
        """
        logs = self.log_predict(x)
        return logs.exp() if isinstance(logs, Tensor) else torch.from_numpy(logs).exp().numpy()

    def log_prob(self, x: Any) -> Any:
        """Give the log-probability of every sequence of a batch, in nats; shape (batch,)."""
        tokens = as_symbols(x, self.symbols)
        logs = torch.as_tensor(self.log_predict(tokens))
        return like(x, logs.gather(2, tokens[:, :, None]).sum((1, 2)))

    def save(self, folder: str | Path) -> None:
        """Write ``predictor.json`` and ``weights.safetensors`` to ``folder``."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        weights = {k: v.detach().cpu().contiguous() for k, v in self.net.state_dict().items()}
        save_file(weights, target / "weights.safetensors")
        settings = {
            "architecture": self.architecture,
            "symbols": self.symbols,
            "shape": asdict(self.shape),
        }
        text = json.dumps({"predictor": "MetaPredictor", "settings": settings}, indent=1)
        (target / "predictor.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> MetaPredictor:
        """Read what `save` wrote.

        Raises
        ------
        UsageError
            If the folder does not hold a trained net.
        """
        spot = Path(folder)
        try:
            kept = json.loads((spot / "predictor.json").read_text(encoding="utf-8"))["settings"]
            made = cls(kept["architecture"], kept["symbols"], NetShape(**kept["shape"]))
            made.net.load_state_dict(load_file(spot / "weights.safetensors"))
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise UsageError(
                f"{spot} must hold a net's predictor.json and weights.safetensors, got "
                f"{type(error).__name__}: {error}: give a folder that MetaPredictor.save wrote"
            ) from error
        return made


def train_meta(
    architecture: str,
    source: Source,
    *,
    steps: int = 2000,
    length: int | None = None,
    shape: NetShape | None = None,
    training: Training | None = None,
    seed: int = 0,
    device: str = "cpu",
    on_step: Callable[[int, float], None] | None = None,
) -> MetaPredictor:
    """Train a net to predict the next symbol over fresh draws of a source, by log loss.

    Minimising the log loss over a source is meta-learning: the best net is the source's Bayes
    predictor, which infers the switch points it cannot see (genewein2023mbml).

    Parameters
    ----------
    architecture : str
        ``rnn``, ``lstm``, ``gru``, ``stack-rnn``, ``snail``, ``transformer``, or the memoryless
        ``mlp-window``.
    source : object with ``sample``, ``symbols`` and ``max_length``
        Where sequences come from, such as `PTWSource`.
    steps : int, default=2000
        Gradient steps; 0 gives the untrained net.
    length : int, optional
        Symbols per training sequence; 256 as in the paper, or the source's limit if less.
    shape : NetShape, optional
        Sizes of the net; SNAIL's reach and the stack follow ``length`` unless given.
    training : Training, optional
        Batch, learning rate and clipping.
    seed : int, default=0
        Fixes the weights, the draws and the dropout; global random state is left alone.
    device : str, default="cpu"
        Where to train; the predictor comes back on the CPU.
    on_step : callable, optional
        Called with the step's number and its log loss in nats per symbol, every 100 steps.

    Returns
    -------
    MetaPredictor

    Raises
    ------
    ValueError
        For an unknown architecture or a number out of range.

    Examples
    --------
    >>> from trialrun.sequence.mbml import PTWSource
    >>> net = train_meta("gru", PTWSource(3), steps=2, shape=NetShape(width=4))
    >>> net.predict([[0, 1]]).shape
    (1, 2, 2)
    """
    whole("steps", steps, low=0)
    if length is None:
        length = min(_PAPER_LENGTH, source.max_length or _PAPER_LENGTH)
    whole("length", length, low=2)
    shape = shape or NetShape(reach=length)
    training = training or Training()
    predictor = MetaPredictor(architecture, source.symbols, shape, seed=seed)
    net = predictor.net.to(device).train()
    adam = torch.optim.Adam(net.parameters(), lr=training.rate)
    forked = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=forked):
        torch.manual_seed(split(seed, "dropout"))
        for step in range(steps):
            x = source.sample(training.batch, length, split(seed, "draw", step)).x.to(device)
            for group in adam.param_groups:
                group["lr"] = training.rate * training.factor(step, steps)
            loss = F.cross_entropy(net(x).flatten(0, 1), x.flatten())
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), training.clip)
            adam.step()
            if on_step is not None and step % 100 == 0:
                on_step(step, loss.item())
    predictor.net.to("cpu").eval()
    return predictor
