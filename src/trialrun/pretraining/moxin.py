"""A pre-training recipe that a small lab can run (zhao2024moxin).

Data: `Pipeline`, `Normalise`, `LengthFilter`, `MinHashDedup`, `QualityFilter`, `QualityTop`,
`contamination`. Openness: `grade`, `read_manifest`, `from_hub` and the command ``trialrun
openness``. Training: `deepen_model` and its kin, `rolling_cache`, `Phases`, `sft_loss`,
`dpo_loss`, `grpo_loss`, `train`, `run_recipe`.

The paper was read in a digest, its repository's README and scripts as they are. The repository
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

_TRAINING = {
    "JsonLines": "trialrun.pretraining._chat",
    "LayerMap": "trialrun.pretraining._deepen",
    "Mixture": "trialrun.pretraining._mixing",
    "ModelPlan": "trialrun.pretraining._recipe",
    "Optimiser": "trialrun.pretraining._training",
    "Phase": "trialrun.pretraining._phases",
    "Phases": "trialrun.pretraining._phases",
    "Rate": "trialrun.pretraining._phases",
    "Recipe": "trialrun.pretraining._recipe",
    "Saving": "trialrun.pretraining._training",
    "TokenSource": "trialrun.pretraining._mixing",
    "answer_logps": "trialrun.pretraining._losses",
    "byte_vocabulary": "trialrun.pretraining._sources",
    "bytes_needed": "trialrun.pretraining._rolling",
    "cache_bytes": "trialrun.pretraining._rolling",
    "collate": "trialrun.pretraining._chat",
    "compact": "trialrun.pretraining._rolling",
    "deepen": "trialrun.pretraining._deepen",
    "deepen_checkpoint": "trialrun.pretraining._deepen_files",
    "deepen_model": "trialrun.pretraining._deepen",
    "dpo_loss": "trialrun.pretraining._losses",
    "encode_chat": "trialrun.pretraining._chat",
    "group_advantages": "trialrun.pretraining._losses",
    "grpo_loss": "trialrun.pretraining._losses",
    "hub_vocabulary": "trialrun.pretraining._sources",
    "layer_map": "trialrun.pretraining._deepen",
    "prefill": "trialrun.pretraining._rolling",
    "reach": "trialrun.pretraining._rolling",
    "read_recipe": "trialrun.pretraining._recipe",
    "rolling_cache": "trialrun.pretraining._rolling",
    "run_recipe": "trialrun.pretraining.train",
    "sft_loss": "trialrun.pretraining._losses",
    "token_logps": "trialrun.pretraining._losses",
    "train": "trialrun.pretraining._training",
    "write_tokens": "trialrun.pretraining._mixing",
}
"""Names that need torch, and where they are."""

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
