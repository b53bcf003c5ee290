"""Corpora with a known fault, made from pages of the standard library's source.

The pages are real text; the copies and the rubbish are made, so that it is known what a cleaner
should take out. Rubbish is of four kinds found in crawled text: boilerplate, words out of order,
encoded blobs and pieces of tables.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from trialrun.core.seeds import rng
from trialrun.material.stdlib_text import load_stdlib_text

PAGE = 1500
REPEATED = 8
COPIES_PER_PAGE = 4
RUBBISH_PER_PAGE = 2
_EDITS = 0.003


@lru_cache(maxsize=2)
def pages(*, held_out: bool = False) -> tuple[str, ...]:
    """Return the standard library's source, cut at line ends into pages of about ``PAGE`` bytes."""
    text = load_stdlib_text()
    lines = (text.held_out if held_out else text.train).tobytes().splitlines(keepends=True)
    found: list[str] = []
    page: list[bytes] = []
    size = 0
    for line in lines:
        page.append(line)
        size += len(line)
        if size >= PAGE:
            found.append(b"".join(page).decode("utf-8", errors="replace"))
            page, size = [], 0
    return tuple(found)


def draw_pages(count: int, *, seed: int, purpose: str) -> list[str]:
    """Draw different pages; draws for different purposes may share some."""
    known = pages()
    return [known[i] for i in rng(seed, "pages", purpose).choice(len(known), count, replace=False)]


def apart(count: int, other: int, *, seed: int) -> tuple[list[str], list[str]]:
    """Draw two sets of pages with none in common."""
    both = draw_pages(count + other, seed=seed, purpose="apart")
    return both[:count], both[count:]


def with_copies(originals: Sequence[str], *, seed: int, evenly: bool = False) -> list[str]:
    """Add four copies a page: of ``REPEATED`` pages only, or ``evenly`` of every page.

    Every second copy is exact; the others have a few characters changed.
    """
    draw = rng(seed, "copies")
    count = COPIES_PER_PAGE * len(originals)
    sources = originals if evenly else originals[:REPEATED]
    copies = [sources[i % len(sources)] for i in range(count)]
    edited = [
        page if i // len(sources) % 2 else _edited(page, draw) for i, page in enumerate(copies)
    ]
    return _mixed([*originals, *edited], draw)


def _edited(page: str, draw: Generator) -> str:
    letters = list(page)
    for place in draw.choice(len(letters), max(1, int(_EDITS * len(letters))), replace=False):
        letters[place] = chr(97 + int(draw.integers(26)))
    return "".join(letters)


def _mixed(texts: Sequence[str], draw: Generator) -> list[str]:
    return [texts[i] for i in draw.permutation(len(texts))]


def with_rubbish(good: Sequence[str], *, seed: int) -> list[str]:
    """Add two pages of rubbish for every good one, of the four kinds in turn."""
    draw = rng(seed, "rubbish")
    kinds: tuple[Callable[[Sequence[str], Generator], str], ...] = (
        _boilerplate,
        _shuffled,
        _blob,
        _table,
    )
    rubbish = [kinds[i % 4](good, draw) for i in range(RUBBISH_PER_PAGE * len(good))]
    return _mixed([*good, *rubbish], draw)


_PHRASES = (
    "Home | About | Contact | Terms of service | Privacy policy",
    "Click here to subscribe to our newsletter and never miss an offer",
    "All rights reserved. No part of this site may be reproduced",
    "This site uses cookies. By continuing to browse you agree to our use of cookies",
    "Share this page: Facebook Twitter Email Print",
    "You must be logged in to post a comment",
    "Add to cart - free delivery on orders over {n} - only {n} left in stock",
    "Page {n} of {n} - next - previous - last updated {n} days ago",
)


def _boilerplate(_good: Sequence[str], draw: Generator) -> str:
    lines: list[str] = []
    while sum(map(len, lines)) < PAGE:
        line = _PHRASES[int(draw.integers(len(_PHRASES)))]
        lines.append(line.replace("{n}", str(draw.integers(1, 500))))
    return "\n".join(lines) + "\n"


def _shuffled(good: Sequence[str], draw: Generator) -> str:
    words = good[int(draw.integers(len(good)))].split()
    return " ".join(words[i] for i in draw.permutation(len(words))) + "\n"


def _blob(_good: Sequence[str], draw: Generator) -> str:
    return base64.encodebytes(draw.bytes(PAGE * 3 // 4)).decode("ascii")


def _table(_good: Sequence[str], draw: Generator) -> str:
    rows: list[str] = []
    while sum(map(len, rows)) < PAGE:
        rows.append(" | ".join(f"{x:.{int(draw.integers(4))}f}" for x in draw.normal(0, 900, 7)))
    return "\n".join(rows) + "\n"


def passes_rules(page: str) -> bool:
    """Keep a page by hand: enough letters, words of usual length, few repeated lines."""
    solid = [c for c in page if not c.isspace()]
    words = page.split()
    lines = [line for line in page.splitlines() if line.strip()]
    if not solid or not lines:
        return False
    letters = sum(c.isalpha() for c in solid) / len(solid)
    length = len(solid) / len(words)
    return letters >= 0.5 and 2 <= length <= 15 and 1 - len(set(lines)) / len(lines) <= 0.3


def as_bytes(texts: Sequence[str]) -> NDArray[np.uint8]:
    """Return texts one after another as the bytes a byte model reads."""
    return np.frombuffer("".join(texts).encode("utf-8", errors="replace"), dtype=np.uint8)
