"""Models read from disk or hub, all of whose weights were there.

transformers draws a weight that a checkpoint lacks at random and says so in a table of its log; a
run would go on with layers that nobody trained. Here the first such weight is named instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trialrun.pretraining import _stack  # noqa: F401  isort: skip
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from trialrun.core.errors import UsageError

BROKEN = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)
"""What transformers raises for configs and weights that make no model."""


def load_model(where: Path | str, *, dtype: torch.dtype | None = None, local: bool = False) -> Any:
    """Read a causal language model with safetensors weights, and refuse one that lacks some.

    Parameters
    ----------
    where : path or str
        A folder saved by transformers, or a hub id.
    dtype : torch.dtype or None
        None keeps that of the config.
    local : bool
        Take folders only.

    Raises
    ------
    UsageError
        If it cannot be read, or a weight of the model is missing or of another shape.
    """
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where,
            use_safetensors=True,
            local_files_only=local,
            output_loading_info=True,
            **options,
        )
    except BROKEN as error:
        remedy = "" if local else ", or a hub id that can be reached"
        raise UsageError(
            f"no model could be read from {str(where)!r}: give a folder saved by transformers with "
            f"safetensors weights of the shapes its config says{remedy}"
        ) from error
    model, found = loaded
    lost = sorted(found["missing_keys"])
    if lost:
        raise UsageError(
            f"the model at {str(where)!r} lacks {len(lost)} of its weights, {lost[0]} first, which "
            f"would start at random: download or save it again"
        )
    return model
