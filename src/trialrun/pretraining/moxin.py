"""A pre-training recipe that a small lab can run (zhao2024moxin).

Data: `Pipeline`, `Normalise`, `LengthFilter`, `MinHashDedup`, `QualityFilter`, `QualityTop`,
`contamination`. Openness: `grade`, `read_manifest`, `from_hub` and the command ``trialrun
openness``. The paper was read in a digest and its repository's README and scripts; the repository
holds neither deduplication nor a quality filter nor context phases, so these are written from what
the paper says of its data sets (SlimPajama, DCLM) and from the methods' own definitions. Ours: the
fast signatures, the three ways of linking pairs, spans in the contamination report, evidence in
openness grading.

Names that need torch are loaded when they are asked for, so that workers of the data pipeline never
load it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from trialrun.pretraining._contamination import (
    Contamination,
    ContaminationReport,
    DropContaminated,
    ItemOverlap,
    contamination,
)
from trialrun.pretraining._dedup import Duplicates, MinHashDedup
from trialrun.pretraining._documents import Document, Pipeline, read_jsonl
from trialrun.pretraining._hub import from_hub
from trialrun.pretraining._minhash import Bands, MinHasher, bands_for
from trialrun.pretraining._normalise import LengthFilter, Normalise, fold
from trialrun.pretraining._quality import QualityFilter, QualityTop
from trialrun.pretraining._sharded import DropDuplicates, WriteKeys, join_keys
from trialrun.pretraining.openness import Grade, Manifest, grade, parse_manifest, read_manifest

_TRAINING: dict[str, str] = {}

__all__ = [
    "Bands",
    "Contamination",
    "ContaminationReport",
    "Document",
    "DropContaminated",
    "DropDuplicates",
    "Duplicates",
    "Grade",
    "ItemOverlap",
    "LengthFilter",
    "Manifest",
    "MinHashDedup",
    "MinHasher",
    "Normalise",
    "Pipeline",
    "QualityFilter",
    "QualityTop",
    "WriteKeys",
    "bands_for",
    "contamination",
    "fold",
    "from_hub",
    "grade",
    "join_keys",
    "parse_manifest",
    "read_jsonl",
    "read_manifest",
]


def __getattr__(name: str) -> Any:
    if name not in _TRAINING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_TRAINING[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_TRAINING})
