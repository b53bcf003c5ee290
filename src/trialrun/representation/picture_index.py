"""Search a folder of pictures with "like this picture, but ..." (saito2023pic2word).

An index is a folder of two files: ``index.safetensors`` with the embeddings, not normalised, and
``index.json`` with the pictures' names, the model they were made with and a digest of its weights,
so that a query made with other weights is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split
import torch

from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.representation._pic2word_clip import STAR, weights_digest
from trialrun.representation._pic2word_compose import compose, text_only, unit
from trialrun.representation._pic2word_load import Loaded
from trialrun.representation._pic2word_pictures import (
    SHEET,
    embed_pictures,
    find_pictures,
    open_picture,
)
from trialrun.representation._pic2word_run import check_whole
from trialrun.representation._pic2word_sheet import contact_sheet
from trialrun.representation._picture_index import Hit, PictureIndex
from trialrun.representation.pic2word import ImageToWord

__all__ = [
    "Found",
    "Hit",
    "PictureIndex",
    "ask",
    "build_index",
    "check_sheet",
    "draw_hits",
]


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
            "a picture in a sentence needs a mapper: name one trained for this model (--mapper), "
            "or train one on pictures alone with fit_image_to_word"
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


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the files' names, with their folder where another hit has the same name."""
    plain = [path.name for path in paths]
    return [
        f"{path.parent.name}/{name}" if plain.count(name) > 1 else name
        for path, name in zip(paths, plain)
    ]


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
            [
                (_there(h.path), f"{h.rank}  {h.score:.3f}  {name}")
                for h, name in zip(one.hits, _names([h.path for h in one.hits]))
            ],
        )
        for one in found
    ]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    told = PngInfo()
    told.add_text(SHEET, "1")
    contact_sheet(rows, columns=columns).save(path, pnginfo=told)
