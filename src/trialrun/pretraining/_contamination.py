"""What of a benchmark stands in the training text (brown2020gpt3 for the 13-gram rule).

Every run of n words that an item and a document share is found, exactly and wherever it stands.
Words are compared once folded: case, punctuation and spacing do not matter. Memory holds the
benchmarks, not the documents. Written from the definition.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trialrun.core.errors import UsageError
from trialrun.pretraining._checks import check_real, check_whole
from trialrun.pretraining._documents import Stream, as_documents
from trialrun.pretraining._normalise import fold
from trialrun.pretraining._overlap import ContaminationReport, ItemOverlap
from trialrun.pretraining._shingles import UNITS, Hashes, mix, rolling

_NAMED = 5  # documents named for an item


class _Gram(NamedTuple):
    """Where an n-gram stands: places in the list of items, and in each of them."""

    items: NDArray[np.int64]
    places: NDArray[np.int64]


@dataclass
class _Tally:
    """What has been found of one item so far."""

    covered: NDArray[np.bool_]
    names: list[str] = field(default_factory=list)
    times: int = 0


class _Index:
    """All n-grams of one length, sorted by hash."""

    def __init__(self, size: int, coded: Mapping[int, NDArray[np.int64]]):
        self.size = size
        hashes, items, places = [], [], []
        for item, codes in coded.items():
            found = _hashes(codes, size)
            hashes.append(found)
            items.append(np.full(len(found), item))
            places.append(np.arange(len(found)))
        joined = np.concatenate(hashes)
        order = np.argsort(joined, kind="stable")
        self.hashes = joined[order]
        self.items, self.places = np.concatenate(items)[order], np.concatenate(places)[order]

    def of(self, codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[_Gram]]:
        """Return the places in a document whose n-gram is an item's, and where it is in items."""
        found = _hashes(codes, self.size)
        low = np.searchsorted(self.hashes, found)
        hit = np.flatnonzero(self.hashes[np.minimum(low, len(self.hashes) - 1)] == found)
        high = np.searchsorted(self.hashes, found[hit], side="right")
        grams = [
            _Gram(self.items[a:b], self.places[a:b])
            for a, b in zip(low[hit].tolist(), high.tolist())
        ]
        return hit, grams


def _hashes(codes: NDArray[np.int64], size: int) -> Hashes:
    return rolling(mix(codes.astype(np.uint64)), size)


class Contamination:
    """Benchmarks, made ready to be looked for (brown2020gpt3).

    Parameters
    ----------
    benchmarks : mapping of str to sequence of str
        Items by benchmark: the question, or question and answer, as they would be trained on.
    n : int
        Units that item and document must share in a row.
    least : int
        An item of fewer than ``n`` units is looked for whole if it has at least these many;
        shorter ones are not judged, and the report says so.
    unit : {"word", "character"}
        Take characters for scripts without spaces, and n about 30.

    Raises
    ------
    ValueError
        If there is no benchmark or no item, or a number is out of range.

    Examples
    --------
    >>> item = "What is the capital of the country whose flag has a red maple leaf on it?"
    >>> look = Contamination({"quiz": [item]}, n=8)
    >>> report = look.report(["Unrelated.", f"We saw: {item.upper()} And so on."])
    >>> report.rates(), report.items[0].documents
    ({'quiz': 1.0}, ('1',))
    """

    def __init__(
        self,
        benchmarks: Mapping[str, Sequence[str]],
        *,
        n: int = 13,
        least: int = 8,
        unit: str = "word",
    ):
        check_whole("n", n, low=2)
        check_whole("least", least, low=2)
        if unit not in UNITS:
            raise UsageError(f"unit must be one of {', '.join(UNITS)}, got {unit!r}")
        if not isinstance(benchmarks, Mapping) or not benchmarks:
            raise UsageError(
                "benchmarks must be a mapping of names to lists of items with at least one name, "
                f"got {benchmarks!r:.60}"
            )
        self.n, self.least, self.unit = n, min(least, n), unit
        self._names: list[tuple[str, int]] = []
        self._texts: list[str] = []
        for name, items in benchmarks.items():
            for place, item in enumerate(_items(name, items)):
                self._names.append((name, place))
                self._texts.append(fold(item))
        self._index()

    def _units(self, folded: str) -> list[str]:
        return folded.split() if self.unit == "word" else list(folded)

    def _index(self) -> None:
        # Units are numbered; 0 stands for every unit that no item has, and is in no item's n-gram,
        # so that a document's n-gram with an unknown unit cannot be taken for an item's.
        self._vocabulary: dict[str, int] = {}
        self._coded = [
            np.array(
                [
                    self._vocabulary.setdefault(u, len(self._vocabulary) + 1)
                    for u in self._units(text)
                ],
                np.int64,
            )
            for text in self._texts
        ]
        sizes: dict[int, dict[int, NDArray[np.int64]]] = {}
        for place, codes in enumerate(self._coded):
            if len(codes) >= self.least:
                sizes.setdefault(min(self.n, len(codes)), {})[place] = codes
        self._indexes = [_Index(size, coded) for size, coded in sorted(sizes.items())]

    def _codes(self, text: str) -> NDArray[np.int64]:
        get = self._vocabulary.get
        return np.array([get(unit, 0) for unit in self._units(fold(text))], np.int64)

    def _hits(self, text: str) -> Iterator[tuple[int, int, int, int]]:
        """Yield (item, place in it, place in the document, size) of every shared n-gram."""
        codes = self._codes(text)
        for index in self._indexes:
            hit, grams = index.of(codes)
            for place, gram in zip(hit.tolist(), grams):
                here = codes[place : place + index.size]
                for item, there in zip(gram.items.tolist(), gram.places.tolist()):
                    # Hashes may collide; the report may not.
                    if np.array_equal(self._coded[item][there : there + index.size], here):
                        yield item, there, place, index.size

    def report(self, documents: Stream) -> ContaminationReport:
        """Return what of every item stands in ``documents``, which are read once.

        Raises
        ------
        UsageError
            If there is no document.
        """
        tallies: dict[int, _Tally] = {}
        read = touched = 0
        for document in as_documents(documents):
            read += 1
            here: set[int] = set()
            for item, place, _, size in self._hits(document.text):
                tally = tallies.setdefault(item, _Tally(np.zeros(len(self._coded[item]), bool)))
                tally.covered[place : place + size] = True
                here.add(item)
            touched += bool(here)
            for item in here:
                tallies[item].times += 1
                if len(tallies[item].names) < _NAMED:
                    tallies[item].names.append(str(getattr(document, "id", "")))
        if not read:
            raise UsageError("documents must hold at least one text, got an empty collection")
        items = tuple(self._overlap(i, tallies.get(i)) for i in range(len(self._coded)))
        return ContaminationReport(items, read, touched)

    def _overlap(self, place: int, tally: _Tally | None) -> ItemOverlap:
        units = len(self._coded[place])
        covered = tally.covered if tally else np.zeros(units, bool)
        edges = np.flatnonzero(np.diff(np.r_[0, covered.astype(np.int8), 0])).tolist()
        benchmark, item = self._names[place]
        return ItemOverlap(
            benchmark=benchmark,
            item=item,
            units=units,
            spans=tuple(zip(edges[::2], edges[1::2])),
            share=float(covered.mean()) if units else 0.0,
            documents=tuple(tally.names) if tally else (),
            times=tally.times if tally else 0,
            judged=units >= self.least,
            text=self._texts[place],
            unit=self.unit,
        )

    def share(self, text: str) -> float:
        """Return the share of a document's units, given its ``text``, that stand in an item."""
        units = len(self._units(fold(text)))
        covered = np.zeros(units, bool)
        for _, _, place, size in self._hits(text):
            covered[place : place + size] = True
        return float(covered.mean()) if units else 0.0


def _items(name: str, items: Any) -> list[str]:
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        raise UsageError(f"benchmark {name!r} must be a list of items, got {type(items).__name__}")
    found = list(items)
    if not found:
        raise UsageError(f"benchmark {name!r} must have at least one item, got an empty list")
    for place, item in enumerate(found):
        if not isinstance(item, str):
            kind = type(item).__name__
            raise UsageError(f"benchmark {name!r}, item {place} must be a string, got {kind}")
    return found


def contamination(
    documents: Stream,
    benchmarks: Mapping[str, Sequence[str]],
    *,
    n: int = 13,
    least: int = 8,
    unit: str = "word",
) -> ContaminationReport:
    """Report what of each benchmark item stands in the documents (brown2020gpt3).

    Parameters
    ----------
    documents : iterable of str or documents
    benchmarks, n, least, unit
        See `Contamination`.

    Returns
    -------
    ContaminationReport

    Raises
    ------
    ValueError
        If there are no documents or no benchmarks, or a number is out of range.

    Examples
    --------
    >>> item = "one two three four five six seven eight nine ten"
    >>> report = contamination([f"zero, {item}, eleven"], {"count": [item, "too short"]}, n=8)
    >>> [(i.found, i.judged, i.spans) for i in report.items]
    [(True, True, ((0, 10),)), (False, False, ())]
    """
    return Contamination(benchmarks, n=n, least=least, unit=unit).report(documents)


class DropContaminated:
    """Leave out documents that share text with a benchmark.

    Parameters
    ----------
    look : Contamination
    most : float in [0, 1]
        Share of a document's units that may stand in an item; at 0 one shared n-gram is too many.

    Raises
    ------
    ValueError
        If ``look`` is no `Contamination`, or the share lies outside its range.

    Examples
    --------
    >>> look = Contamination({"quiz": ["one two three four five six seven eight"]}, n=8)
    >>> texts = ["seven, eight", "One, two, three, four, five, six, seven, eight"]
    >>> [d.id for d in DropContaminated(look)(texts)]
    ['0']
    """

    def __init__(self, look: Contamination, *, most: float = 0.0):
        if not isinstance(look, Contamination):
            raise UsageError(
                "look must be a Contamination, which is made from benchmarks, "
                f"got {type(look).__name__}"
            )
        check_real("most", most, low=0, high=1)
        self.look, self.most = look, most

    def __call__(self, stream: Stream, *_task: int) -> Iterator[Any]:
        """Yield the documents of ``stream`` that share little enough."""
        for document in as_documents(stream):
            if self.look.share(document.text) <= self.most:
                yield document
