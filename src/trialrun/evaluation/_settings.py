"""What `NTKEval` is given, checked before anything runs."""

from __future__ import annotations

from math import isfinite
from numbers import Integral, Real
from typing import Any

import torch

from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.core.shapes import check_range
from trialrun.evaluation._estimators import check_name, needs_both


def check_whole(name: str, value: Any, *, low: int) -> None:
    """Raise unless ``value`` is a whole number, ``low`` at least."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UsageError(f"{name} must be a whole number, got {value!r}")
    check_range(name, int(value), low=low)


def check_rate(value: Any) -> None:
    """Raise unless a learning rate is a finite number, 0 at least."""
    if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value):
        raise UsageError(f"rate must be a finite number, got {value!r}")
    check_range("rate", float(value), low=0.0)


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
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise UsageError(
            f"model must be a decoder alone, and {type(model).__name__} has an encoder: choose a "
            f"causal language model"
        )
    if not callable(checker):
        raise UsageError(f"checker must be a function, got {checker!r}")


def check_in_place(model: Any, returned: Any) -> None:
    """Raise if a training function returned another model than the one it was given."""
    if isinstance(returned, torch.nn.Module) and all(m is not model for m in returned.modules()):
        raise UsageError(
            f"train must change the model it is given in place, and returned another "
            f"{type(returned).__name__}, which would not be measured: train the model itself"
        )
