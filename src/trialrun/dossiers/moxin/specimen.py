"""Smallest working instances of moxin, for the conformance suite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from trialrun.core.seeds import rng
from trialrun.dossiers.moxin._specimens_training import SPECIMENS_TRAINING
from trialrun.dossiers.specimen import BlockSpecimen, FunctionSpecimen
from trialrun.pretraining.moxin import (
    LengthFilter,
    MinHashDedup,
    Normalise,
    Pipeline,
    QualityFilter,
    bands_for,
    contamination,
    grade,
)

_HERE = "trialrun.pretraining.moxin"
_WORDS = np.array([f"{a}{b}" for a in "bdfgklmnpr" for b in ("at", "en", "ol", "umbers")])


def _text(seed: int, name: str, words: int = 30) -> str:
    return " ".join(_WORDS[rng(seed, name).integers(0, len(_WORDS), words)])


def _corpus(seed: int) -> dict[str, Any]:
    texts = [_text(seed, f"text {i}") for i in range(8)]
    return {"texts": [*texts, texts[2].upper(), f"{texts[5]} more", "tiny"]}


def _length_filter() -> Pipeline:
    return Pipeline([Normalise(), LengthFilter(least=20), MinHashDedup(threshold=0.7)])


def _kept(pipeline: Pipeline, inputs: Mapping[str, Any]) -> Any:
    return np.array([int(document.id) for document in pipeline(inputs["texts"])])


def _twice(seed: int) -> tuple[Any, Any]:
    texts = _corpus(seed)["texts"]
    once = _length_filter()
    return _kept(once, {"texts": texts}), _kept(once, {"texts": texts + texts})


def _recased(seed: int) -> tuple[Any, Any]:
    texts = _corpus(seed)["texts"]
    shouted = [f"{text.upper()} !" for text in texts]
    return tuple(MinHashDedup().find(some).stands_for for some in (texts, shouted))  # type: ignore


def _sides(seed: int) -> dict[str, Any]:
    good = [_text(seed, f"good {i}", 12) for i in range(6)]
    bad = [f"click {text} $$$ buy" for text in good]
    return {"good": good, "bad": bad}


def _scores(quality: QualityFilter, inputs: Mapping[str, Any]) -> Any:
    if not hasattr(quality, "weights_"):
        quality = quality.fit(**inputs)
    return quality.score(inputs["good"] + inputs["bad"])


def _quality(seed: int) -> QualityFilter:
    return QualityFilter(bits=10, epochs=2, seed=seed).fit(**_sides(seed))


def _quiz(seed: int) -> dict[str, Any]:
    items = [_text(seed, f"item {i}", 16) for i in range(4)]
    texts = [f"{_text(seed, 'around')} {items[1].upper()}", _text(seed, "none"), items[3][:60]]
    return {"documents": texts, "benchmarks": {"quiz": items}, "n": 5}


def _covered(inputs: Mapping[str, Any]) -> Any:
    return np.array([item.share for item in contamination(**inputs).items])


def _turned(seed: int) -> tuple[Any, Any]:
    inputs = _quiz(seed)
    return _covered(inputs), _covered({**inputs, "documents": inputs["documents"][::-1]})


def _release(seed: int) -> dict[str, Any]:
    licences = ("Apache-2.0", "CC-BY-4.0", "NONE", "llama2", "OpenMDW-1.0")
    names = ("model_card", "training_code", "datasets", "final_parameters")
    drawn = rng(seed, "licences").integers(0, len(licences), len(names))
    said = {n: {"licence": licences[i], "evidence": "a file"} for n, i in zip(names, drawn)}
    return {"manifest": {"release": "x", "components": said}}


def _counts(inputs: Mapping[str, Any]) -> Any:
    found = grade(**inputs)
    return np.array([found.level, *(finding.counts for finding in found.findings)])


SPECIMENS = (
    BlockSpecimen(
        entry=f"{_HERE}:Pipeline",
        make=lambda _: _length_filter(),
        inputs=_corpus,
        run=_kept,
        bad=(
            ("at least one step", lambda: Pipeline([])),
            ("step 0 must be callable", lambda: Pipeline(cast(Any, ["dedup"]))),
            ("documents must be an iterable", lambda: list(_length_filter()("one text"))),
        ),
        invariances=(("repeating the corpus changes nothing", _twice),),
    ),
    FunctionSpecimen(
        entry=f"{_HERE}:MinHashDedup",
        run=lambda inputs: MinHashDedup(threshold=0.7).find(inputs["texts"]).stands_for,
        inputs=_corpus,
        bad=(
            ("threshold must be at least", lambda: MinHashDedup(threshold=0.0)),
            ("link must be one of", lambda: MinHashDedup(link="all")),
            ("got an empty collection", lambda: MinHashDedup().find([])),
        ),
        invariances=(("case and punctuation do not matter", _recased),),
    ),
    FunctionSpecimen(
        entry=f"{_HERE}:bands_for",
        run=lambda inputs: bands_for(**inputs).probability(np.linspace(0, 1, 11)),
        inputs=lambda seed: {"threshold": 0.5 + 0.01 * (seed % 40)},
        bad=(
            ("threshold must be", lambda: bands_for(1.0)),
            ("hashes must be at least 1", lambda: bands_for(0.8, 0)),
        ),
    ),
    BlockSpecimen(
        entry=f"{_HERE}:QualityFilter",
        make=_quality,
        inputs=_sides,
        run=_scores,
        bad=(
            ("bits must be at least 8", lambda: QualityFilter(bits=2)),
            ("good must hold at least one text", lambda: QualityFilter().fit([], ["a"])),
            ("has learnt nothing yet", lambda: QualityFilter().score(["a"])),
        ),
        save=lambda quality, folder: quality.save(folder),
        load=QualityFilter.load,
    ),
    FunctionSpecimen(
        entry=f"{_HERE}:contamination",
        run=_covered,
        inputs=_quiz,
        bad=(
            ("benchmarks must be a mapping", lambda: contamination(["a"], {})),
            ("got an empty collection", lambda: contamination([], {"quiz": ["a"]})),
        ),
        invariances=(("the order of documents does not matter", _turned),),
    ),
    FunctionSpecimen(
        entry=f"{_HERE}:grade",
        run=_counts,
        inputs=_release,
        bad=(
            ("components must be a table", lambda: grade({"release": "x"})),
            (
                "there is no component 'weights'",
                lambda: grade({"release": "x", "components": {"weights": {}}}),
            ),
        ),
    ),
    *SPECIMENS_TRAINING,
)
