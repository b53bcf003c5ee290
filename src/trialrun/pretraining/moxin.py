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
load it; ``import *`` asks for all of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from trialrun.pretraining._chat import JsonLines, collate, encode_chat
    from trialrun.pretraining._deepen import LayerMap, deepen, deepen_model, layer_map
    from trialrun.pretraining._deepen_files import deepen_checkpoint
    from trialrun.pretraining._losses import (
        answer_logps,
        dpo_loss,
        group_advantages,
        grpo_loss,
        sft_loss,
        token_logps,
    )
    from trialrun.pretraining._mixing import Mixture, TokenSource, write_tokens
    from trialrun.pretraining._phases import Phase, Phases, Rate
    from trialrun.pretraining._recipe import ModelPlan, Recipe, read_recipe
    from trialrun.pretraining._rolling import (
        bytes_needed,
        cache_bytes,
        compact,
        prefill,
        reach,
        rolling_cache,
    )
    from trialrun.pretraining._sources import byte_vocabulary, hub_vocabulary
    from trialrun.pretraining._training import Optimiser, Saving, train
    from trialrun.pretraining.train import run_recipe

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
    "JsonLines",
    "LayerMap",
    "LengthFilter",
    "Manifest",
    "MinHashDedup",
    "MinHasher",
    "Mixture",
    "ModelPlan",
    "Normalise",
    "Optimiser",
    "Phase",
    "Phases",
    "Pipeline",
    "QualityFilter",
    "QualityTop",
    "Rate",
    "Recipe",
    "Saving",
    "TokenSource",
    "WriteKeys",
    "answer_logps",
    "bands_for",
    "byte_vocabulary",
    "bytes_needed",
    "cache_bytes",
    "collate",
    "compact",
    "contamination",
    "deepen",
    "deepen_checkpoint",
    "deepen_model",
    "dpo_loss",
    "encode_chat",
    "fold",
    "from_hub",
    "grade",
    "group_advantages",
    "grpo_loss",
    "hub_vocabulary",
    "join_keys",
    "layer_map",
    "parse_manifest",
    "prefill",
    "reach",
    "read_jsonl",
    "read_manifest",
    "read_recipe",
    "rolling_cache",
    "run_recipe",
    "sft_loss",
    "token_logps",
    "train",
    "write_tokens",
]


def __getattr__(name: str) -> Any:
    if name not in _TRAINING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_TRAINING[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_TRAINING})
