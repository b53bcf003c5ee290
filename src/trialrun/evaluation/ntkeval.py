"""Choose the texts worth keeping.

A draft made by ``trialrun new``: it shows the form. Put the pipeline in place of these two steps.
Say here where it comes from: paper key, what was read, what is ours, what differs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trialrun.core.errors import UsageError
from trialrun.core.shapes import check_range


def ntkeval(texts: Sequence[str], *, least_words: int = 1) -> np.ndarray:
    """Return the places of texts that are long enough and were not seen before.

    Parameters
    ----------
    texts : sequence of str
    least_words : int, at least 1
        Words, separated by white space, that a text must have.

    Returns
    -------
    ndarray of int, shape (kept,)
        Places in ``texts``, rising.

    Raises
    ------
    ValueError
        If texts is one text, or least_words is below 1.

    Examples
    --------
    >>> ntkeval(["one", "one two", "one two"], least_words=2).tolist()
    [1]
    """
    if isinstance(texts, str):
        raise UsageError(f"texts must be a sequence of texts, got one text: {texts[:20]!r}")
    check_range("least_words", least_words, low=1, unit="words")
    first: dict[str, int] = {}
    for place, text in enumerate(texts):
        if len(text.split()) >= least_words:
            first.setdefault(text, place)
    return np.array(sorted(first.values()), dtype=np.int64)
