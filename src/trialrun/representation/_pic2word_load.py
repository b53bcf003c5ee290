"""Find a CLIP by name: open_clip's, a transformers folder or hub id, or a tiny CLIP's folder.

Pictures are prepared here with Pillow and numpy, as each model says (size, crop, mean and standard
deviation), so that no torchvision is needed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split
import numpy as np
import torch
from torch import Tensor

from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.representation._pic2word_adapters import as_clip
from trialrun.representation._pic2word_clip import Clip
from trialrun.representation.tiny_clip import CONFIG, load_tiny_clip

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_NO_FILE = (OSError, ValueError, KeyError)


@dataclass(frozen=True)
class Preprocess:
    """Turn a PIL picture into the pixels a CLIP wants: resize, crop, scale, standardise.

    Parameters
    ----------
    size : int
        Height and width of the result, in pixels.
    mean, std : three floats
        Of the channels, on a scale of 0 to 1; CLIP's own by default.
    mode : {"crop", "squash"}
        ``crop`` brings the shorter side to ``size`` and keeps the middle; ``squash`` stretches.
    """

    size: int
    mean: Sequence[int | float] = _MEAN
    std: Sequence[int | float] = _STD
    mode: str = "crop"

    def __call__(self, picture: Any) -> Tensor:
        """Return a tensor (3, size, size)."""
        need("PIL", extra="pictures")
        from PIL import Image

        picture = picture.convert("RGB")
        width, height = picture.size
        if self.mode == "squash":
            wide, high = self.size, self.size
        else:
            short = min(width, height)
            wide, high = (max(self.size, round(side * self.size / short)) for side in picture.size)
        if (wide, high) != picture.size:
            picture = picture.resize((wide, high), Image.Resampling.BICUBIC)
        left, top = (wide - self.size) // 2, (high - self.size) // 2
        picture = picture.crop((left, top, left + self.size, top + self.size))
        pixels = np.asarray(picture, dtype=np.float32) / 255
        pixels = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


class Loaded(NamedTuple):
    """What `load_clip` returns, to be taken apart: ``clip, preprocess, tokenizer = ...``."""

    clip: Clip
    preprocess: Preprocess
    tokenizer: Any


def _from_tiny(folder: Path) -> Loaded:
    model, tokenizer = load_tiny_clip(folder)
    half = (0.5, 0.5, 0.5)
    return Loaded(as_clip(model, tokenizer), Preprocess(model.size, half, half), tokenizer)


def _from_transformers(name: str) -> Loaded:
    transformers = need("transformers", extra="backbones")
    try:
        model = transformers.CLIPModel.from_pretrained(name).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except _NO_FILE as error:
        first = str(error).partition("\n")[0]
        raise UsageError(
            f"{name!r} cannot be loaded as a transformers CLIP (the network is off unless "
            f"HF_HUB_OFFLINE=0): {first}"
        ) from error
    size, mean, std = model.config.vision_config.image_size, _MEAN, _STD
    told = Path(name) / "preprocessor_config.json"
    if told.is_file():
        held = json.loads(told.read_text(encoding="utf-8"))
        mean, std = held.get("image_mean", mean), held.get("image_std", std)
    clip = as_clip(model, tokenizer)
    return Loaded(clip, Preprocess(size, tuple(mean), tuple(std)), clip.tokenizer)


def _from_open_clip(name: str, pretrained: str | None) -> Loaded:
    library = need("open_clip", extra="backbones")
    known = library.list_models()
    plain = name.replace("/", "-")
    if plain not in known:
        near = [other for other in known if other.lower() == plain.lower()]
        hint = f"did you mean {near[0]}?" if near else "open_clip.list_models() lists them"
        raise UsageError(f"{name!r} is neither a folder, a hub id nor a model of open_clip: {hint}")
    # Without this, OpenAI's weights would run with another activation than they were trained with,
    # and open_clip only warns of it.
    tag = library.pretrained.get_pretrained_cfg(plain, pretrained) if pretrained else {}
    quick = bool(tag.get("quick_gelu")) or plain.endswith("-quickgelu")
    try:
        model = library.create_model(plain, pretrained=pretrained, force_quick_gelu=quick).eval()
    except (RuntimeError, OSError) as error:
        first = str(error).partition("\n")[0]
        raise UsageError(
            f"weights {pretrained!r} of {plain} cannot be loaded (the network is off unless "
            f"HF_HUB_OFFLINE=0 or --online): {first}"
        ) from error
    told = getattr(model.visual, "preprocess_cfg", {})
    size = told.get("size", getattr(model.visual, "image_size", 224))
    size = size if isinstance(size, int) else size[0]
    mode = "squash" if told.get("resize_mode") == "squash" else "crop"
    clip = as_clip(model, library.get_tokenizer(plain))
    prepare = Preprocess(size, told.get("mean", _MEAN), told.get("std", _STD), mode)
    return Loaded(clip, prepare, clip.tokenizer)


def load_clip(
    name: str | Path, pretrained: str | None = None, *, device: str = "cpu", trained: bool = False
) -> Loaded:
    """Load a CLIP with its picture preparation and its tokenizer.

    Parameters
    ----------
    name : str or Path
        A folder saved by `save_tiny_clip`; a folder of transformers' ``CLIPModel`` or a hub id
        ``organisation/name``; or a model of open_clip such as ``ViT-L-14``.
    pretrained : str, optional
        For open_clip: the name of the weights (``openai``) or a file of them. None gives random
        weights, which serve for tests only.
    device : str
    trained : bool
        Refuse an open_clip model without ``pretrained``.

    Returns
    -------
    Loaded
        ``(clip, preprocess, tokenizer)``.

    Raises
    ------
    UsageError
        If there is no such model, or its weights cannot be loaded.
    MissingExtra
        If open_clip or transformers is needed and not installed.
    """
    text, folder = str(name), Path(name)
    if folder.is_dir():
        if (folder / CONFIG).is_file():
            loaded = _from_tiny(folder)
        elif (folder / "config.json").is_file():
            loaded = _from_transformers(text)
        else:
            raise UsageError(
                f"{folder} holds no CLIP: expected config.json (transformers) or {CONFIG}"
            )
    elif "/" in text and not text.startswith(("ViT-", "RN", ".", "/")):
        loaded = _from_transformers(text)
    else:
        if trained and pretrained is None:
            raise UsageError(
                f"{text!r} needs the name of its weights (--pretrained openai) or a file of them; "
                "for a transformers CLIP or a tiny CLIP name its folder"
            )
        loaded = _from_open_clip(text, pretrained)
    loaded.clip.model.to(device)
    return loaded
