"""Measure the claims on contamination and openness.

Contamination: items are windows of words from held-out files of the standard library, documents
windows from its other files; an item is planted into a document under one of four conditions. Items
that share 13 words with a document on their own are set aside first, by a plain search that has
nothing to do with the method.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib.resources import as_file, files

import numpy as np

from trialrun.claims.contract import Arm, Context, Measurement
from trialrun.core.seeds import rng
from trialrun.dossiers.moxin._sizes import sizes_of
from trialrun.material.stdlib_text import load_stdlib_text
from trialrun.pretraining._licences import open_for
from trialrun.pretraining.moxin import contamination, grade, read_manifest
from trialrun.pretraining.openness import UNGRADED, Manifest

N = 13
ITEM_WORDS, DOCUMENT_WORDS = 40, 300
EVERY = 20  # one word in so many is changed in the condition "edited"
_POOL = 4  # candidates drawn for each item and document needed
_TAGGED = ("final_parameters", "model_architecture")  # whose licence stands on a release's front
_BARE = str.maketrans("", "", string.punctuation)

Found = Callable[[Sequence[str], Sequence[str]], list[bool]]
"""Says of every item whether it stands in the documents."""


@lru_cache(maxsize=2)
def _words(held_out: bool) -> tuple[str, ...]:
    text = load_stdlib_text()
    raw = text.held_out if held_out else text.train
    # ASCII only, so that the plain search below needs no Unicode of its own.
    return tuple(w for w in bytes(raw).decode("ascii", "ignore").split() if w.translate(_BARE))


def _windows(ctx: Context, *, held_out: bool, count: int, width: int) -> list[str]:
    words = _words(held_out)
    draw = rng(ctx.seed, "windows", int(held_out))
    starts = draw.permutation(len(words) // width - 1)[:count] * width
    return [" ".join(words[start : start + width]) for start in starts.tolist()]


def _runs(text: str) -> set[tuple[str, ...]]:
    words = [w for w in text.lower().translate(_BARE).split() if w]
    return {tuple(words[i : i + N]) for i in range(len(words) - N + 1)}


def material(ctx: Context) -> tuple[list[str], list[str]]:
    """Return items and documents that have no 13 words in common; twice as many as are planted."""
    count = 2 * sizes_of(ctx).items
    texts = _windows(ctx, held_out=False, count=count, width=DOCUMENT_WORDS)
    known = set().union(*map(_runs, texts))
    pool = _windows(ctx, held_out=True, count=_POOL * count, width=ITEM_WORDS)
    items: list[str] = []
    seen: set[tuple[str, ...]] = set()
    for item in pool:
        runs = _runs(item)
        if runs and not runs & known and not runs & seen:
            items.append(item)
            seen |= runs
    return items[:count], texts


def _recased(item: str, _draw: np.random.Generator) -> str:
    return "\n".join(f"{word.upper()} ," for word in item.split())


def _part(item: str, draw: np.random.Generator) -> str:
    words = item.split()
    start = int(draw.integers(0, len(words) // 2 + 1))
    return " ".join(words[start : start + len(words) // 2])


def _edited(item: str, _draw: np.random.Generator, *, every: int = EVERY) -> str:
    words = item.split()
    words[every // 2 :: every] = ["replacement"] * len(words[every // 2 :: every])
    return " ".join(words)


def _shuffled(item: str, draw: np.random.Generator) -> str:
    words = item.split()
    return " ".join(words[i] for i in draw.permutation(len(words)))


CONDITIONS: dict[str, Callable[[str, np.random.Generator], str]] = {
    "verbatim": lambda item, _: item,
    "recased": _recased,
    "half": _part,
    "edited": _edited,
}


def by_grams(items: Sequence[str], texts: Sequence[str], *, n: int) -> list[bool]:
    """Look for runs of n words."""
    return [item.found for item in contamination(texts, {"items": list(items)}, n=n).items]


def by_substring(items: Sequence[str], texts: Sequence[str]) -> list[bool]:
    """Look for the whole item, character by character."""
    return [any(item in text for text in texts) for item in items]


def _bags(texts: Sequence[str], columns: dict[str, int], *, grow: bool) -> np.ndarray:
    """Return which words each text has, one column a word; ``grow`` adds words to the columns."""
    bags = [set(text.lower().translate(_BARE).split()) for text in texts]
    if grow:
        for word in sorted(set().union(*bags)):
            columns.setdefault(word, len(columns))
    table = np.zeros((len(texts), len(columns)), np.float32)
    for row, bag in enumerate(bags):
        table[row, [columns[word] for word in bag if word in columns]] = 1
    return table


def by_bag(items: Sequence[str], texts: Sequence[str], *, least: float = 0.8) -> list[bool]:
    """Look for a document that has most of the item's words, in any order."""
    columns: dict[str, int] = {}
    wanted = _bags(items, columns, grow=True)
    common = wanted @ _bags(texts, columns, grow=False).T
    return (common >= least * wanted.sum(axis=1, keepdims=True)).any(axis=1).tolist()


def planted(ctx: Context, *, find: Found, shuffle: bool = False) -> Measurement:
    """Measure the share of planted items found, by condition, and of the others left alone."""
    items, texts = material(ctx)
    half = len(items) // 2
    points, spared = {}, []
    for condition, change in CONDITIONS.items():
        found = _search(ctx, items, texts, change, find, shuffle)
        points[condition] = 100 * float(np.mean(found[:half]))
        spared.append(100 * (1 - float(np.mean(found[half:]))))
    points["left alone"] = float(np.mean(spared))
    often = _search(ctx, items, texts, partial(_edited, every=10), find, shuffle)
    return Measurement(points, len(items), {"every_10th_word": 100 * float(np.mean(often[:half]))})


def _search(
    ctx: Context,
    items: Sequence[str],
    texts: Sequence[str],
    change: Callable[[str, np.random.Generator], str],
    find: Found,
    shuffle: bool,
) -> list[bool]:
    draw = rng(ctx.seed, "planting")
    grown = list(texts)
    for place, item in enumerate(items[: len(items) // 2]):
        there = _shuffled(item, draw) if shuffle else item
        words = grown[place].split()
        at = int(draw.integers(0, len(words)))
        grown[place] = " ".join([*words[:at], change(there, draw), *words[at:]])
    return find(items, grown)


def _manifest(release: str) -> Manifest:
    name = f"release-{release}.yaml"
    with as_file(files("trialrun") / "dossiers" / "moxin" / name) as path:
        return read_manifest(path)


def openness(_ctx: Context, *, release: str) -> Measurement:
    """Measure the class of a release as a number: 1, 2, 3, or 4 for none."""
    manifest = _manifest(release)
    strict, doubted = grade(manifest), grade(manifest, trusting=True)
    return Measurement(
        {"strict": float(strict.level), "benefit of the doubt": float(doubted.level)},
        len(strict.findings),
        {
            "components_counted": float(sum(f.counts for f in strict.findings)),
            "not_inspected": float(sum(f.status == "not inspected" for f in strict.findings)),
        },
    )


def by_licence_tag(_ctx: Context, *, release: str) -> Measurement:
    """Measure what a look at one licence says: that of the weights, or else of the code.

    Where it is open for anything, the release passes for class I; where it is not, for none.
    """
    shown = _manifest(release).components
    tags = [shown[name].licence for name in _TAGGED if name in shown and shown[name].licence]
    level = 1.0 if tags and open_for(tags[0]) else float(UNGRADED)
    return Measurement({"strict": level, "benefit of the doubt": level}, 1)


ARMS: dict[str, dict[str, Arm]] = {
    "contamination": {
        "13-gram": partial(planted, find=partial(by_grams, n=N)),
        "substring": partial(planted, find=by_substring),
        "bag-of-words": partial(planted, find=by_bag),
        "shuffled-words": partial(planted, find=partial(by_grams, n=N), shuffle=True),
        "8-gram": partial(planted, find=partial(by_grams, n=8)),
    },
    "openness": {
        "moxin-7b": partial(openness, release="moxin-7b"),
        "as-stated": partial(openness, release="as-stated"),
        "complete": partial(openness, release="complete"),
        "weights-only": partial(openness, release="weights-only"),
        "closed-weights": partial(openness, release="closed-weights"),
        "licence-tag": partial(by_licence_tag, release="moxin-7b"),
        "tag-of-closed-weights": partial(by_licence_tag, release="closed-weights"),
        "tag-of-weights-only": partial(by_licence_tag, release="weights-only"),
    },
}
