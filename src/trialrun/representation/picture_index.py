"""Search a folder of pictures with "like this picture, but ..." (saito2023pic2word).

An index is a folder of two files: ``index.safetensors`` with the embeddings, not normalised, and
``index.json`` with the pictures' names, the model they were made with and a digest of its weights,
so that a query made with other weights is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split
import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.representation._pic2word_clip import STAR, weights_digest
from trialrun.representation._pic2word_compose import compose, text_only, unit
from trialrun.representation._pic2word_load import Loaded
from trialrun.representation._pic2word_pictures import (
    INDEX,
    SHEET,
    embed_pictures,
    find_pictures,
    open_picture,
)
from trialrun.representation._pic2word_run import check_whole
from trialrun.representation._pic2word_sheet import contact_sheet
from trialrun.representation.pic2word import ImageToWord
from trialrun.representation.retrieval import DECIMALS

FORMAT = "trialrun-picture-index-1"
_TABLE, _TOLD = INDEX


class Hit(NamedTuple):
    """One picture found."""

    rank: int
    score: float
    path: Path


@dataclass(frozen=True)
class PictureIndex:
    """Embeddings of a folder's pictures.

    Parameters
    ----------
    root : Path
        The folder.
    names : tuple of str
        Pictures, relative to it.
    features : Tensor (pictures, embed)
        Not normalised, so that a mapper can be trained on them.
    model : str
    pretrained : str or None
        What `load_clip` was asked for.
    weights : str
        Digest of the model's weights.
    skipped : tuple of (str, str)
        Pictures that could not be read, and why.
    """

    root: Path
    names: tuple[str, ...]
    features: Tensor
    model: str
    pretrained: str | None
    weights: str
    skipped: tuple[tuple[str, str], ...] = ()

    def save(self, folder: str | Path) -> None:
        """Write the index to ``folder``, both files whole or not at all.

        Raises
        ------
        UsageError
            If ``folder`` is a file.
        """
        place = Path(folder)
        if place.exists() and not place.is_dir():
            raise UsageError(f"{place} is a file: name a folder to write the index to")
        place.mkdir(parents=True, exist_ok=True)
        told = {
            "format": FORMAT, "root": str(self.root), "model": self.model,
            "pretrained": self.pretrained, "weights": self.weights, "names": self.names,
            "skipped": self.skipped,
        }  # fmt: skip
        text = json.dumps(told, ensure_ascii=False, indent=1).encode()  # fails before it writes
        parts = [place / f"{name}.part" for name in (_TABLE, _TOLD)]
        save_file({"features": self.features.contiguous()}, parts[0])
        parts[1].write_bytes(text)
        for part in parts:
            part.replace(part.with_suffix(""))

    @classmethod
    def load(cls, folder: str | Path) -> PictureIndex:
        """Read what `save` wrote.

        Raises
        ------
        UsageError
            If ``folder`` holds no index, or a damaged one.
        """
        place = Path(folder)
        try:
            told = json.loads((place / _TOLD).read_text(encoding="utf-8"))
            features = load_file(place / _TABLE)["features"]
            if told["format"] != FORMAT or len(told["names"]) != len(features):
                raise KeyError("format or number of pictures")
            return cls(
                Path(told["root"]), tuple(told["names"]), features, told["model"],
                told["pretrained"], told["weights"], tuple((n, w) for n, w in told["skipped"]),
            )  # fmt: skip
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(
                f"{place} holds no index: make one with trialrun index FOLDER --out {place}"
            ) from error
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise UsageError(f"{place} holds a damaged index, make it anew: {error}") from error

    @cached_property
    def _table(self) -> Tensor:
        return unit(self.features)

    def search(
        self, query: Float[Tensor, embed], *, top: int = 12, without: Sequence[str | Path] = ()
    ) -> tuple[Hit, ...]:
        """Return the ``top`` pictures for a query vector, best first.

        Pictures ``without`` (those asked with) are left out. Ties go by name.

        Raises
        ------
        ValueError
            If ``top`` is below 1, or the query is not finite or of another width.
        """
        check_whole("top", top, low=1)
        if not bool(torch.isfinite(query).all()):
            raise UsageError("query must be finite, got numbers that are not")
        if query.shape[-1] != self.features.shape[1]:
            raise UsageError(
                f"query must have {self.features.shape[1]} numbers as the index has, got "
                f"{query.shape[-1]}"
            )
        out = {Path(path).resolve() for path in without}
        scores = (self._table @ unit(query.cpu())).numpy()
        best = np.round(scores, DECIMALS)
        wanted = min(top + len(out), len(best))
        # Only what can be among the first is sorted; stable, so that ties go by name.
        chosen = np.flatnonzero(best >= np.partition(best, -wanted)[-wanted])
        hits: list[Hit] = []
        for i in chosen[np.argsort(-best[chosen], kind="stable")].tolist():
            path = self.root / self.names[i]
            if path.resolve() not in out:
                hits.append(Hit(len(hits) + 1, float(scores[i]), path))
            if len(hits) == top:
                break
        return tuple(hits)


def build_index(
    loaded: Loaded,
    folder: str | Path,
    *,
    model: str,
    pretrained: str | None = None,
    batch_size: int = 64,
    tick: Callable[[int], None] | None = None,
) -> PictureIndex:
    """Encode every picture under a folder.

    Parameters
    ----------
    loaded : Loaded
        From `load_clip`.
    folder : path
    model, pretrained : str
        What `load_clip` was asked for, so that a query can load it again.
    batch_size : int
    tick : callable, optional
        Told the number of pictures done.

    Raises
    ------
    UsageError
        If there is no picture, or none that can be read.
    """
    check_whole("batch_size", batch_size, low=1)
    root = Path(folder).resolve()
    paths = [root / path.relative_to(folder) for path in find_pictures(folder)]
    done = embed_pictures(loaded.clip, loaded.preprocess, paths, batch_size=batch_size, tick=tick)
    names = [path.relative_to(root).as_posix() for path in paths]
    kept = tuple(names[i] for i in done.kept)
    return PictureIndex(
        root, kept, done.features, model, pretrained, weights_digest(loaded.clip), done.skipped
    )


class Found(NamedTuple):
    """The hits of one sentence."""

    prompt: str
    hits: tuple[Hit, ...]


def ask(
    index: PictureIndex,
    loaded: Loaded,
    prompts: str | Sequence[str],
    *,
    images: Sequence[str | Path] = (),
    mapper: ImageToWord | None = None,
    top: int = 12,
) -> tuple[Found, ...]:
    """Search an index with sentences, in which each ``*`` stands for a picture.

    Parameters
    ----------
    index : PictureIndex
    loaded : Loaded
        The model that the index was made with.
    prompts : str or sequence of str
    images : sequence of path
        One for each ``*``; left out of the hits.
    mapper : ImageToWord, optional
        Needed where there is a picture.
    top : int

    Raises
    ------
    UsageError
        If the model has other weights than the index's, a picture cannot be read, or a mapper is
        missing or belongs to another model.
    ValueError
        If there is no prompt, or one has another number of ``*`` than there are pictures.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise ValueError("prompts must hold at least one sentence, got none")
    check_whole("top", top, low=1)
    if weights_digest(loaded.clip) != index.weights:
        raise UsageError(
            f"the index was made with other weights of {index.model!r} than this model has: "
            "make the index anew, or name the model it was made with"
        )
    if images and mapper is None:
        raise UsageError(
            "a picture in a sentence needs a mapper: name one trained for this model (--mapper)"
        )
    if mapper is not None:
        got = (mapper.image_width, mapper.word_width)
        wanted = (loaded.clip.embed_dim, loaded.clip.text_width)
        if got != wanted:
            raise UsageError(
                f"the mapper turns {got[0]} numbers into {got[1]}, but this model needs "
                f"{wanted[0]} into {wanted[1]}: it belongs to another model"
            )
    if not images:
        starred = [prompt for prompt in prompts if STAR in prompt]
        if starred:
            raise UsageError(
                f"prompt {starred[0]!r} holds {starred[0].count(STAR)} {STAR!r}, but 0 images "
                "came: name one for each (--image)"
            )
        queries = text_only(loaded.clip, list(prompts), star="removed")
    else:
        assert mapper is not None
        pixels = [loaded.preprocess(_readable(path)) for path in images]
        queries = torch.stack(
            [compose(loaded.clip, None, mapper, pixels, prompt) for prompt in prompts]
        )
    found = [index.search(query.cpu(), top=top, without=images) for query in unit(queries)]
    return tuple(Found(prompt, hits) for prompt, hits in zip(prompts, found))


def _readable(path: str | Path) -> Any:
    try:
        return open_picture(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read as a picture: {error}") from error


def _there(path: Path) -> Any:
    try:
        return open_picture(path)
    except OSError:
        return None


def check_sheet(path: str | Path) -> None:
    """Raise a UsageError unless a contact sheet can have this name."""
    if Path(path).suffix.lower() != ".png":
        raise UsageError(f"the contact sheet must be a .png file, got {str(path)!r}")


def draw_hits(
    found: Sequence[Found], images: Sequence[str | Path], path: str | Path, *, columns: int = 6
) -> None:
    """Draw hits on a contact sheet and write it to ``path``, a PNG file.

    A picture that has gone since it was indexed is marked as missing.
    """
    check_sheet(path)
    need("PIL", extra="pictures")
    from PIL.PngImagePlugin import PngInfo

    asked = [_readable(image) for image in images]
    rows = [
        (
            one.prompt,
            asked,
            [(_there(h.path), f"{h.rank}  {h.score:.3f}  {h.path.name}") for h in one.hits],
        )
        for one in found
    ]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    told = PngInfo()
    told.add_text(SHEET, "1")
    contact_sheet(rows, columns=columns).save(path, pnginfo=told)
