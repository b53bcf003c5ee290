"""What a contamination report says: one entry for each benchmark item, with spans."""

from __future__ import annotations

from dataclasses import dataclass

_SHOWN = 48  # characters of a run that a table quotes


@dataclass(frozen=True)
class ItemOverlap:
    """One benchmark item and what of it was found.

    ``spans`` are runs of units (words, or characters) of the folded item, each from its first to
    one past its last; ``share`` is how much of the item they cover. ``documents`` names the first
    few; ``times`` counts all. ``judged`` is False for an item too short to say anything. ``text``
    is the folded item, ``unit`` what its spans count: "word" or "character".
    """

    benchmark: str
    item: int
    units: int
    spans: tuple[tuple[int, int], ...]
    share: float
    documents: tuple[str, ...]
    times: int
    judged: bool
    text: str = ""
    unit: str = "word"

    @property
    def found(self) -> bool:
        """Return whether any of it was found."""
        return bool(self.spans)


@dataclass(frozen=True)
class ContaminationReport:
    """Every item of every benchmark, and how many documents were read.

    ``documents`` counts them all; ``touched`` those that hold some item's n-gram.
    """

    items: tuple[ItemOverlap, ...]
    documents: int
    touched: int

    def found(self, least: float = 0.0) -> list[ItemOverlap]:
        """Return the items of which something, and at least the share ``least``, was found."""
        return [item for item in self.items if item.found and item.share >= least]

    def rates(self) -> dict[str, float]:
        """Return, for each benchmark, the share of its judged items that were found."""
        judged: dict[str, list[bool]] = {}
        for item in self.items:
            judged.setdefault(item.benchmark, [])
            if item.judged:
                judged[item.benchmark].append(item.found)
        return {name: sum(found) / max(1, len(found)) for name, found in judged.items()}

    def as_text(self, most: int = 20) -> str:
        """Return a table of the benchmarks and the ``most`` covered items, for reading."""
        lines = [f"{self.documents} documents, {self.touched} share an n-gram with a benchmark"]
        for name, rate in self.rates().items():
            mine = [item for item in self.items if item.benchmark == name]
            short = sum(not item.judged for item in mine)
            note = f"; {short} too short to judge" if short else ""
            lines.append(f"{name}: {rate:.1%} of {len(mine) - short} items found{note}")
        for item in sorted(self.found(), key=lambda item: -item.share)[:most]:
            where = ", ".join(name or "?" for name in item.documents)
            more = "" if item.times <= len(item.documents) else f" and {item.times} in all"
            lines.append(
                f"  {item.benchmark}[{item.item}] {item.share:.0%} of {item.units}: "
                f"{_quoted(item)} in {where}{more}"
            )
        return "\n".join(lines)


def _quoted(item: ItemOverlap) -> str:
    start, stop = max(item.spans, key=lambda span: span[1] - span[0])
    if item.unit == "character":
        run = item.text[start:stop]
        return repr(run[:_SHOWN] + (" ..." if len(run) > _SHOWN else ""))
    words = item.text.split()[start:stop]
    return repr(" ".join(words[:8]) + (" ..." if len(words) > 8 else ""))
