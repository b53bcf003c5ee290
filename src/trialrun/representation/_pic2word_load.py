"""Find a CLIP by name: open_clip's, a transformers folder or hub id, or a tiny CLIP's folder.

Pictures are prepared here with Pillow and numpy, as each model says (size, crop, mean and standard
deviation), so that no torchvision is needed.
"""

from __future__ import annotations

import json
import os
import warnings
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
_NO_FILE = (OSError, ValueError, KeyError, RuntimeError)
_SLIVER = 16
_LOST = ("missing_keys", "mismatched_keys")


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
        ``crop`` brings the shorter side to ``size`` and keeps the middle, rounded as torchvision
        rounds; ``squash`` stretches. Where one side is more than 16 times the other, the middle is
        cut out before it is resized, so that a sliver takes no more room than a picture.
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
            if max(width, height) > _SLIVER * short:
                picture = _middle(picture, _SLIVER * short)
            short = min(picture.size)
            wide, high = (
                self.size if side == short else int(self.size * side / short)
                for side in picture.size
            )
        if (wide, high) != picture.size:
            picture = picture.resize((wide, high), Image.Resampling.BICUBIC)
        left, top = round((wide - self.size) / 2), round((high - self.size) / 2)
        picture = picture.crop((left, top, left + self.size, top + self.size))
        pixels = np.asarray(picture, dtype=np.float32) / 255
        pixels = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _middle(picture: Any, long: int) -> Any:
    width, height = picture.size
    left, top = max(0, (width - long) // 2), max(0, (height - long) // 2)
    return picture.crop((left, top, left + min(width, long), top + min(height, long)))


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
        kind = transformers.AutoConfig.from_pretrained(name).model_type
        if kind != "clip":
            raise UsageError(
                f"{name!r} must be a CLIP (model_type clip), got {kind!r}: its weights do not fit"
            )
        model, told = transformers.CLIPModel.from_pretrained(name, output_loading_info=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        file = transformers.utils.cached_file(
            name,
            "preprocessor_config.json",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except UsageError:
        raise
    except _NO_FILE as error:
        first = str(error).partition("\n")[0]
        raise UsageError(
            f"{name!r} cannot be loaded as a transformers CLIP ({_fetched()}): {first}"
        ) from error
    wrong = sorted(str(key) for part in _LOST for key in told.get(part) or ())
    if wrong:
        raise UsageError(
            f"{name!r} lacks {len(wrong)} of a CLIP's weights, which would be random, the first "
            f"{wrong[0]}: fetch the model anew"
        )
    mean, std = _told(file) if file else (_MEAN, _STD)
    clip = as_clip(model.eval(), tokenizer)
    try:
        _ = clip.star_id
    except ValueError as error:
        raise UsageError(
            f"{name!r} has no tokenizer that goes with its text tower, save the model's own beside "
            f"it: {error}"
        ) from error
    prepare = Preprocess(model.config.vision_config.image_size, mean, std)
    return Loaded(clip, prepare, clip.tokenizer)


def _told(file: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of channels that a model's own file names."""
    try:
        held = json.loads(Path(file).read_text(encoding="utf-8"))
        mean = tuple(float(value) for value in held.get("image_mean") or _MEAN)
        std = tuple(float(value) for value in held.get("image_std") or _STD)
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError("image_mean and image_std")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{file} must be JSON with image_mean and image_std of three numbers: {error}"
        ) from error
    return mean, std


def _fetched() -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "the network is off: HF_HUB_OFFLINE=0, or --online in a command, allows it"
    return "what is not here is fetched over the network"


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
            f"weights {pretrained!r} of {plain} cannot be loaded ({_fetched()}, and a file of "
            f"weights serves as well): {first}"
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
        If there is no such model, it is no CLIP, its weights cannot be loaded or some of them are
        not there, or there is no such device.
    MissingExtra
        If open_clip or transformers is needed and not installed.
    """
    _check_device(device)
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
        if pretrained is None:
            warnings.warn(
                f"{text} has random weights, which serve for tests only: name others, as in "
                f"load_clip({text!r}, 'openai')",
                stacklevel=2,
            )
    loaded.clip.model.to(device)
    return loaded


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UsageError(f"device must be cpu or cuda, got {device!r}") from error
    if kind not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device must be cpu or cuda, got {device!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r} is not there: no CUDA GPU is at hand, use cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"device {device!r} is not there: use cpu")
