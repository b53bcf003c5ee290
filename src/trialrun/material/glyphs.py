"""Letters of 22 scripts, each drawn by many drawers: a set for few-shot learning and out-of-domain.

One class a character, one drawer a font at a weight and a named shape. The letters come from the
Noto Sans fonts of the package manimgx-fonts (SIL OFL 1.1; 3.5 MB, with the extra ``pictures``);
nothing of them is copied into this package. Unlike people's handwriting, drawers are regular: a
drawer changes every letter in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng
from trialrun.material import _glyph_shapes as shapes
from trialrun.material._rasters import (
    Indices,
    Pixels,
    check_fractions,
    check_limit,
    check_names,
    check_size,
    file_name,
    folder_of,
    kept,
    parts,
    read,
    spread,
)


@dataclass(frozen=True, eq=False)
class GlyphSet:
    """Characters by several drawers.

    Attributes
    ----------
    images : uint8 array of shape (characters, drawers, size, size)
        Ink dark (0) on white (255).
    characters : tuple of str
    scripts : tuple of str
        The script of each character.
    drawers : tuple of str
        Weight and shape, such as ``bold-slanted``.
    """

    images: Pixels
    characters: tuple[str, ...]
    scripts: tuple[str, ...]
    drawers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.characters)

    def split(
        self, fractions: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0
    ) -> tuple[Indices, ...]:
        """Return sorted, disjoint indices of characters, as many arrays as fractions.

        Every script is split by the same fractions. By default: base, validation and novel.

        Raises
        ------
        UsageError
            If the fractions don't add up to 1, or there are too few characters for them.

        Examples
        --------
        >>> glyphs = load_glyphs(("greek",), size=8, drawers=("bold-upright",))
        >>> base, validation, novel = glyphs.split()
        >>> len(base) + len(validation) + len(novel) == len(glyphs)
        True
        """
        check_fractions(fractions, len(self))
        return parts(self.scripts, fractions, rng(seed, "glyph split"))

    def take(self, indices: Sequence[int] | Indices) -> GlyphSet:
        """Return the set of some characters, in the order given.

        Raises
        ------
        IndexError
            If there is no such character.
        """
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        return replace(
            self,
            images=self.images[chosen],
            characters=tuple(self.characters[index] for index in chosen),
            scripts=tuple(self.scripts[index] for index in chosen),
        )


def _drawers(drawers: Sequence[str] | None, scripts: Sequence[str]) -> tuple[str, ...]:
    if drawers is None:
        return shapes.FOR_EVERY_SCRIPT
    chosen = check_names("drawers", drawers, shapes.DRAWERS)
    upright = [script for script in scripts if script not in shapes.WITH_ITALICS]
    if upright and set(chosen) & set(shapes.ITALICS):
        raise UsageError(
            f"drawers with italics need scripts of {', '.join(shapes.WITH_ITALICS)}, "
            f"got {upright[0]}"
        )
    return chosen


def load_glyphs(
    scripts: Sequence[str] = shapes.SCRIPTS,
    *,
    size: int = 32,
    drawers: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
) -> GlyphSet:
    """Load the letters of some scripts, each by every drawer.

    Letters that Unicode takes apart, and letters that look like an earlier one at the regular
    weight, are left out.

    Parameters
    ----------
    scripts : names of latin, greek, cyrillic, armenian, ...
    size : int, 8 to 512
        Side of a picture in pixels.
    drawers : names, optional
        ``regular``, ``medium``, ``semibold`` or ``bold``, a hyphen, then ``upright``, ``slanted``,
        ``leaning``, ``narrow``, ``wide``, or ``italic`` (Latin, Greek and Cyrillic only). None is
        the 20 that every script has.
    limit : int, optional
        Load only so many characters, drawn evenly over scripts.
    seed : int
        Which characters ``limit`` leaves.
    cache : path, optional
        Where drawn pictures are kept; None is the user's cache folder. A set with a limit is read
        from there too but not written.

    Raises
    ------
    UsageError
        If a script or drawer is unknown, or a size or limit out of range.
    MissingExtra
        If a package of the extra ``pictures`` is missing.
    NotRunnable
        If manimgx-fonts is of another version than the pinned one.

    Examples
    --------
    >>> glyphs = load_glyphs(("thai", "lao"), size=16, drawers=("bold-upright",), limit=6)
    >>> glyphs.images.shape
    (6, 1, 16, 16)
    """
    chosen = check_names("scripts", scripts, shapes.SCRIPTS)
    check_size(size)
    by = _drawers(drawers, chosen)
    built = shapes.versions()
    every = tuple((letter, script) for script in chosen for letter in shapes.characters(script))
    check_limit(limit, len(every), "characters")
    rows = np.arange(len(every))
    if limit is not None:
        rows = spread([script for _, script in every], limit, rng(seed, "glyph limit"))
    wanted = [every[row] for row in rows]
    folder, size = folder_of(cache), int(size)
    text = "".join(letter for letter, _ in every)
    pictures = []
    for drawer in by:
        path = folder / file_name(f"glyphs-{drawer}", size, (*built, text))
        shape = (len(every), size, size)
        found = read(path, shape)
        if found is None and limit is None:
            found = kept(path, shape, partial(shapes.draw, every, drawer, size))
        pictures.append(shapes.draw(wanted, drawer, size) if found is None else found[rows])
    letters, scripts_ = zip(*wanted)
    return GlyphSet(np.stack(pictures, axis=1), letters, scripts_, by)
