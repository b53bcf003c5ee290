"""One training run of the mapper: its settings, its optimiser, and how it is taken up again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.core.shapes import check_range

_WARMUP = 10_000
_OBJECTIVES = ("contrastive", "mse")


def check_whole(name: str, value: Any, *, low: int) -> None:
    """Raise a ValueError that names the argument unless it is a whole number from ``low`` on."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise ValueError(f"{name} must be at least {low} and a whole number, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class WordTraining:
    """How the mapper is trained; the defaults are the paper's for ViT but for two.

    Parameters
    ----------
    epochs : int
        Passes over the embeddings.
    batch_size : int
        Pictures in a batch, all of them one another's negatives (the paper: 128 on each of 8).
    lr : float
        Highest learning rate.
    weight_decay : float
        AdamW's, on matrices; none on biases.
    warmup : int, optional
        Steps of linear warm-up before the cosine. The paper's 10,000 where that is at most a tenth
        of all steps, and a tenth otherwise, which is ours.
    betas, eps : AdamW's
    objective : {"contrastive", "mse"}
        ``mse`` pulls the two unit vectors together with no negatives: a rival, not the paper.
    bfloat16 : bool
        Run the towers in bfloat16 (the paper trains in mixed precision).

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    epochs: int = 30
    batch_size: int = 1024
    lr: int | float = 1e-4
    weight_decay: int | float = 0.1
    warmup: int | None = None
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    objective: str = "contrastive"
    bfloat16: bool = False

    def __post_init__(self) -> None:
        check_whole("epochs", self.epochs, low=1)
        check_whole("batch_size", self.batch_size, low=2)
        check_range("lr", self.lr, low=0)
        check_range("weight_decay", self.weight_decay, low=0)
        if self.warmup is not None:
            check_whole("warmup", self.warmup, low=0)
        if self.objective not in _OBJECTIVES:
            raise ValueError(
                f"objective must be one of {', '.join(_OBJECTIVES)}, got {self.objective!r}"
            )

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of ``step`` out of ``steps``."""
        warmup = min(_WARMUP, steps // 10) if self.warmup is None else self.warmup
        if step < warmup:
            return self.lr * (step + 1) / warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class Run:
    """One training run: optimiser, order of pictures and, if asked for, a checkpoint.

    ``told`` is what else makes a run this run and no other: prompt, and digests of the pictures'
    embeddings, of the targets and of the CLIP. A checkpoint of another one is refused.
    """

    def __init__(
        self, mapper: nn.Module, training: WordTraining, n: int, seed: int, told: Mapping[str, Any]
    ) -> None:
        self.mapper, self.training, self.n = mapper, training, n
        self.seed = seed
        shapes = {name: list(weight.shape) for name, weight in mapper.named_parameters()}
        dropout = [part.p for part in mapper.modules() if isinstance(part, nn.Dropout)]
        every = asdict(training) | {"n": n, "seed": seed, "mapper": shapes, "dropout": dropout}
        self.told = json.dumps(every | dict(told), sort_keys=True)
        self.batch = min(training.batch_size, n)
        self.per_epoch = n // self.batch
        self.steps = training.epochs * self.per_epoch
        matrices = [w for w in mapper.parameters() if w.ndim > 1]
        biases = [w for w in mapper.parameters() if w.ndim <= 1]
        self.weights = [*matrices, *biases]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": float(training.weight_decay)},
                {"params": biases, "weight_decay": 0.0},
            ],
            lr=float(training.lr),
            betas=training.betas,
            eps=training.eps,
            fused=True,
        )
        self._order = torch.empty(0, dtype=torch.long)
        self._epoch = -1

    def rows(self, step: int) -> Tensor:
        """Return the pictures of one step; each epoch has an order of its own."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(split(self.seed, "order", epoch))
            self._order, self._epoch = torch.randperm(self.n, generator=generator), epoch
        return self._order[place * self.batch : (place + 1) * self.batch]

    def update(self, loss: Tensor, step: int) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.training.rate(step, self.steps)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()

    def save(self, path: Path, step: int, losses: list[Tensor]) -> None:
        """Write weights, AdamW's state and the step in one move."""
        tensors = {f"weight.{k}": v for k, v in self.mapper.state_dict().items()}
        for i, weight in enumerate(self.weights):
            held = self.optimiser.state[weight]
            tensors |= {f"adam.{i}.{name}": value for name, value in held.items()}
        tensors["losses"] = joined(losses)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".part")
        plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        save_file(plain, beside, metadata={"step": str(step), "run": self.told})
        beside.replace(path)

    def _differing(self, told: str) -> list[str]:
        try:
            there = json.loads(told)
        except ValueError:
            return []
        own = json.loads(self.told)
        return sorted(name for name in own if there.get(name) != own[name])

    def resume(self, path: Path) -> list[Tensor]:
        """Take up what `save` left; return the losses so far."""
        try:
            with safe_open(path, framework="pt") as file:
                told = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise UsageError(f"{path} is damaged, delete it to begin anew: {error}") from error
        if told.get("run") != self.told:
            other = ", ".join(self._differing(told.get("run", ""))) or "layout"
            raise UsageError(
                f"{path} belongs to another run (other {other}): name another checkpoint or delete "
                "this one"
            )
        named = {k.removeprefix("weight."): v for k, v in tensors.items() if "weight." in k[:7]}
        self.mapper.load_state_dict(named)
        for i, weight in enumerate(self.weights):
            prefix = f"adam.{i}."
            self.optimiser.state[weight] = {
                k.removeprefix(prefix): v if k.endswith(".step") else v.to(weight.device)
                for k, v in tensors.items()
                if k.startswith(prefix)
            }
        return list(tensors["losses"].unbind())


def joined(losses: list[Tensor]) -> Tensor:
    """Return losses as one tensor on the CPU."""
    return torch.stack([loss.cpu() for loss in losses]).float()
