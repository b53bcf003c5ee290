"""First-order prediction of a kernel entry: a derivative taken forwards along a gradient step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from trialrun.core.errors import UsageError
from trialrun.evaluation._encoding import TokenPair
from trialrun.evaluation._estimators import over_prompts
from trialrun.evaluation._passes import at_rest
from trialrun.evaluation._steps import Lesson, answer_loss, pair_log_probs

Floats = NDArray[np.float64]


class LinearPrediction(NamedTuple):
    """The change that a step makes to first order, with its standard error over prompts."""

    mean: float
    se: float


class _At(torch.nn.Module):
    """A model run at given weights; it shares the model's own and holds no copy."""

    def __init__(self, model: Any, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self._held = (model, weights)

    def parameters(self, recurse: bool = True) -> Any:
        return self._held[0].parameters(recurse)

    def forward(self, **given: Any) -> Any:
        model, weights = self._held
        return functional_call(model, weights, (), given)


def _gradient(model: Any, lesson: Lesson, batch_tokens: int) -> dict[str, Tensor]:
    """Return the gradient of the answers' mean loss, summed over batches that fit."""
    weights = {n: w for n, w in model.named_parameters() if w.requires_grad}
    if not weights:
        raise UsageError("linear: no weight of the model requires a gradient: call requires_grad_")
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for part in _batches(lesson.tokens, batch_tokens):
        share = len(part) / len(lesson.tokens)
        loss = share * answer_loss(model, part, lesson.pad)
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, found):
            if gradient is not None:
                total[name] += gradient
    return total


def _batches(pairs: Sequence[TokenPair], batch_tokens: int) -> Iterator[list[TokenPair]]:
    longest = max(len(pair.prompt) + len(pair.answer) for pair in pairs)
    size = max(1, batch_tokens // longest)
    for start in range(0, len(pairs), size):
        yield list(pairs[start : start + size])


def directional_change(
    model: Any,
    lesson: Lesson,
    pairs: Sequence[Sequence[TokenPair]],
    correct: Sequence[Floats],
    *,
    rate: float,
    exact: bool,
    batch_tokens: int,
) -> LinearPrediction:
    """Return the mean change of the probability of a right answer along one gradient step.

    Parameters
    ----------
    pairs : one sequence of prompt and answer for each question
        All right answers where ``exact``, otherwise draws of the model.
    correct : one array for each question
        1.0 where an answer is right.
    """
    with at_rest(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        # Fused attention has no forward derivative; the plain form has one.
        gradient = _gradient(model, lesson, batch_tokens)
        weights = {name: w.detach() for name, w in model.named_parameters() if name in gradient}
        direction = {name: -rate * g for name, g in gradient.items()}
        flat = [pair for given in pairs for pair in given]
        values, slopes = [], []
        for part in _batches(flat, batch_tokens):

            def log_probs(w: dict[str, Tensor], part: list[TokenPair] = part) -> Tensor:
                return pair_log_probs(_At(model, w), part, lesson.pad)

            value, slope = jvp(log_probs, (weights,), (direction,))[:2]
            values.append(value.detach().double().cpu())
            slopes.append(slope.detach().double().cpu())
    value, slope = torch.cat(values).numpy(), torch.cat(slopes).numpy()
    changes, start = [], 0
    for given, right in zip(pairs, correct):
        here = slice(start, start + len(given))
        start += len(given)
        # d p = p d log p, summed over right answers; for draws p is in the drawing already.
        moved = right * slope[here]
        changes.append(float((np.exp(value[here]) * moved).sum() if exact else moved.mean()))
    return LinearPrediction(*over_prompts(np.array(changes)))
