"""What `NTKEval` is given, checked before anything runs."""

from __future__ import annotations

from typing import Any

import torch

from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.core.shapes import check_range
from trialrun.evaluation._estimators import check_name, needs_both


def check_whole(name: str, value: Any, *, low: int) -> None:
    """Raise unless ``value`` is a whole number, ``low`` at least."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} must be a whole number, got {value!r}")
    check_range(name, value, low=low)


def check_settings(
    estimator: str, samples: Any, max_new_tokens: Any, batch_tokens: Any, seed: Any
) -> None:
    """Raise unless the estimator is known, the counts suit it, and the seed is one."""
    check_name(estimator)
    check_whole("samples", samples, low=2 if needs_both(estimator) else 1)
    check_whole("max_new_tokens", max_new_tokens, low=1)
    check_whole("batch_tokens", batch_tokens, low=1)
    split(seed)


def check_parts(model: Any, checker: Any) -> None:
    """Raise unless the model and the checker can be what they are given as."""
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "get_input_embeddings"):
        raise UsageError(
            f"model must be a transformers causal language model, got {type(model).__name__}"
        )
    if not callable(checker):
        raise UsageError(f"checker must be a function, got {checker!r}")
