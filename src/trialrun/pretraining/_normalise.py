"""Bring texts to one form, and drop those that are too short or too long.

Two forms are made. `Normalise` changes the document: Unicode composition, line ends, runs of
blanks. `fold` makes the form in which texts are *compared*: lower case, no punctuation or symbols,
single spaces (SlimPajama's recipe, from memory of it); it is never stored.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from trialrun.core.errors import UsageError
from trialrun.pretraining._checks import check_whole
from trialrun.pretraining._documents import Stream, as_documents

FORMS = ("NFC", "NFKC", "NFD", "NFKD")
_BLANKS = re.compile(r"[^\S\n]+")
_ENDS = re.compile(r" ?\n ?")
_EMPTY_LINES = re.compile(r"\n{3,}")
# str.split() takes these four for white space, bytes.split() does not.
_SEPARATORS = "\x1c\x1d\x1e\x1f"
_ASCII = bytes.maketrans(
    (string.ascii_uppercase + _SEPARATORS).encode(), (string.ascii_lowercase + "    ").encode()
)
_PUNCTUATION = string.punctuation.encode()


class _Unwritten(dict[int, int | None]):
    """Characters that are not compared, looked up when first met: categories P and S."""

    def __missing__(self, code: int) -> int | None:
        kept = None if unicodedata.category(chr(code))[0] in "PS" else code
        self[code] = kept
        return kept


_FOLDING = _Unwritten()


def fold(text: str) -> str:
    """Return the form in which texts are compared.

    NFC, lower case, without punctuation and symbols (Unicode categories P and S), one space in
    place of any run of white space, none at the ends.

    Examples
    --------
    >>> fold("  It's  a\\tTEST, isn't it? ")
    'its a test isnt it'
    """
    if text.isascii():
        return b" ".join(text.encode().translate(_ASCII, _PUNCTUATION).split()).decode()
    lowered = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())
    return " ".join(lowered.translate(_FOLDING).split())


def with_text(document: Any, text: str) -> Any:
    """Return the document with another text; a datatrove document stays one."""
    return document if text == document.text else replace(document, text=text)


class Normalise:
    """Bring every text to one Unicode form with tidy white space.

    Line ends become ``\\n``, runs of blanks one space, three or more line ends two; blanks at the
    ends of lines and of the text go. Idempotent.

    Parameters
    ----------
    form : {"NFC", "NFKC", "NFD", "NFKD"}
        NFC keeps what was written; the K forms also replace look-alikes (ligatures, full-width
        letters) and lose distinctions that code and mathematics need.

    Raises
    ------
    UsageError
        If the form is none of these.

    Examples
    --------
    >>> [d.text for d in Normalise()(["cafe\\u0301  au lait \\r\\n"])]
    ['café au lait']
    """

    def __init__(self, form: str = "NFC"):
        if form not in FORMS:
            raise UsageError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
        self.form = form

    def __call__(self, stream: Stream, *_task: int) -> Iterator[Any]:
        """Yield each document in its normal form."""
        for document in as_documents(stream):
            yield with_text(document, self.normal(document.text))

    def normal(self, text: str) -> str:
        """Return one text in its normal form."""
        if not text.isascii():
            # The form is not known to the type checker's Literal, but it was checked.
            text = unicodedata.normalize(self.form, text)  # type: ignore[arg-type]
        lines = text.replace("\r\n", "\n").replace("\r", "\n")
        return _EMPTY_LINES.sub("\n\n", _ENDS.sub("\n", _BLANKS.sub(" ", lines))).strip()


class LengthFilter:
    """Keep texts whose length lies in a range.

    Parameters
    ----------
    least : int
        Characters a text must have, without punctuation and repeated white space, which is how
        SlimPajama counts its 200 (from memory).
    most : int or None
        Characters it may have.

    Raises
    ------
    ValueError
        If a bound is negative or no whole number, or ``most`` lies below ``least``.

    Examples
    --------
    >>> [d.text for d in LengthFilter(least=3)(["?!.,", "word"])]
    ['word']
    """

    def __init__(self, least: int = 200, most: int | None = None):
        check_whole("least", least, low=0)
        if most is not None:
            check_whole("most", most, low=least)
        self.least, self.most = least, most

    def __call__(self, stream: Stream, *_task: int) -> Iterator[Any]:
        """Yield the documents whose length is in the range."""
        for document in as_documents(stream):
            length = len(fold(document.text))
            if length >= self.least and (self.most is None or length <= self.most):
                yield document
