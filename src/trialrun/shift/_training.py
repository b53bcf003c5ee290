"""Adam on minibatches, drawn from a seed of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from trialrun.core.errors import UsageError
from trialrun.core.shapes import check_range


class Training(BaseEstimator):
    """Settings of the optimiser.

    Parameters
    ----------
    steps : int, at least 1, default=400
        Updates in all, whatever the size of the table.
    batch_size : int or None, default=256
        Examples per update; None, or more than there are, takes all of them every time.
    learning_rate : float, above 0, default=0.01
        Start of AdamW's rate, which falls to 0 along a half cosine.
    weight_decay : float, at least 0, default=0.0001
    device : str, default="cpu"
        Where to train; the fitted network ends on the CPU.

    Examples
    --------
    >>> Training(steps=100).batch_size
    256
    """

    def __init__(
        self, *, steps=400, batch_size=256, learning_rate=0.01, weight_decay=1e-4, device="cpu"
    ):
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.device = device

    def check(self) -> None:
        """Raise ``ValueError`` naming the first setting out of range."""
        check_range("training steps", self.steps, low=1)
        if self.batch_size is not None:
            check_range("training batch_size", self.batch_size, low=1, unit="example(s)")
        check_range("training weight_decay", self.weight_decay, low=0)
        if not self.learning_rate > 0:
            raise UsageError(f"training learning_rate must be above 0, got {self.learning_rate!r}")


def batches(n_rows: int, batch_size: int | None, seed: int) -> Iterator[Tensor]:
    """Yield row numbers forever: shuffled passes over the table, the last short batch dropped."""
    if batch_size is None or batch_size >= n_rows:
        everything = torch.arange(n_rows)
        while True:
            yield everything
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(n_rows, generator=generator)
        for start in range(0, n_rows - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def minimise(
    parts: Iterable[nn.Module],
    loss_of: Callable[..., Tensor],
    tensors: tuple[Tensor, ...],
    training: Training,
    seed: int,
) -> float:
    """Lower ``loss_of(*rows of tensors)`` by changing ``parts``; return the last batch's loss.

    Raises
    ------
    ValueError
        If the loss stops being finite.
    """
    parts = list(parts)
    tensors = tuple(tensor.to(training.device) for tensor in tensors)
    for part in parts:
        part.to(training.device).train()
    parameters = [parameter for part in parts for parameter in part.parameters()]
    optimiser = torch.optim.AdamW(
        parameters, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
    )
    rows = batches(len(tensors[0]), training.batch_size, seed)
    whole = training.batch_size is None or training.batch_size >= len(tensors[0])
    for step in range(training.steps):
        rate = 0.5 * (1 + math.cos(math.pi * step / training.steps))
        optimiser.param_groups[0]["lr"] = training.learning_rate * rate
        chosen = next(rows).to(training.device)
        batch = tensors if whole else tuple(tensor[chosen] for tensor in tensors)
        loss = loss_of(*batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    last = float(loss.detach())
    if not math.isfinite(last):
        raise UsageError(
            f"training ended with the loss {last}: lower Training(learning_rate=...), now "
            f"{training.learning_rate}, or look for huge values in X or y"
        )
    for part in parts:
        part.to("cpu").eval()
    return last
