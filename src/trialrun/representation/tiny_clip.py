"""A CLIP small enough to train in a minute on one core: ours, not a published model.

A small convolutional network and a small causal transformer over whole words, laid out and named
like ``open_clip.CLIP``, so that whatever works on that works on this (saito2023pic2word is tried on
it). Trained by the symmetric contrastive loss in which pictures that share a sentence are all right
answers to it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from trialrun.core.errors import UsageError
from trialrun.representation._tiny_clip_model import TinyClip, standardised
from trialrun.representation._tiny_clip_parts import WordTokenizer
from trialrun.representation._tiny_clip_training import fit_tiny_clip, shared_sentence_loss

__all__ = [
    "CONFIG",
    "FORMAT",
    "TinyClip",
    "WordTokenizer",
    "fit_tiny_clip",
    "load_tiny_clip",
    "save_tiny_clip",
    "shared_sentence_loss",
    "standardised",
]

FORMAT = "trialrun-tiny-clip-1"
CONFIG = "tiny_clip.json"
_WEIGHTS = "weights.safetensors"


def save_tiny_clip(model: TinyClip, tokenizer: WordTokenizer, folder: str | Path) -> None:
    """Write the model and its words to a folder, which `load_clip` and the command line take."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    config = {"format": FORMAT, "model": model.settings, "words": list(tokenizer.words)}
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(state, place / _WEIGHTS)
    (place / CONFIG).write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")


def load_tiny_clip(folder: str | Path) -> tuple[TinyClip, WordTokenizer]:
    """Read what `save_tiny_clip` wrote; in eval mode.

    Raises
    ------
    UsageError
        If the folder holds no such model, or a damaged one.
    """
    place = Path(folder)
    try:
        config: Any = json.loads((place / CONFIG).read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise UsageError(f"{place} must be in the format {FORMAT}, got {config['format']!r}")
        model = TinyClip(**config["model"])
        model.load_state_dict(load_file(place / _WEIGHTS))
    except FileNotFoundError as error:
        raise UsageError(
            f"{place} holds no tiny CLIP: expected {CONFIG} and {_WEIGHTS}, as written by "
            "save_tiny_clip"
        ) from error
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, UsageError):
            raise
        first = str(error).partition("\n")[0]
        raise UsageError(f"{place} holds a damaged model, save it anew: {first}") from error
    tokenizer = WordTokenizer(config["words"], context_length=model.context_length)
    return model.eval(), tokenizer
