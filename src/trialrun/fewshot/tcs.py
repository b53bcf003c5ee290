"""TCS: train a student in a frozen teacher's coordinate system (zhou2024tcs, wang2021lshfm).

Read: the digest of arXiv:2412.09388, a third-party summary of it, and what the authors' group made
public of the earlier LSH feature mimicking; not the full paper, and no code of TCS was found. From
the paper: one pass of a frozen self-supervised teacher over the training images, the principal axes
of its features as a fixed coordinate system for the student's classifier, axes taken away while the
student learns, few-shot use, and a hashing loss in those coordinates where the teacher knows the
task.

Ours, because no source at hand tells: the number of axes by default, the adapter between widths
and its start at the identity, what an axis is scored by and when axes go (three scores are
offered), a median bias in the teacher's coordinates, and packed bits. The head folds into one
linear layer, up to rounding.
"""

from __future__ import annotations

from trialrun.fewshot import _tcs_stack  # noqa: F401

# isort: split
from trialrun.fewshot._tcs_cache import cache_features, pass_features
from trialrun.fewshot._tcs_coords import FewRowsWarning, TailoredCoordinates
from trialrun.fewshot._tcs_distill import Distilled, distill
from trialrun.fewshot._tcs_file import read_features
from trialrun.fewshot._tcs_head import Tailoring, TCSHead
from trialrun.fewshot._tcs_items import few_shots, labels_of
from trialrun.fewshot._tcs_layers import features_of, layer_named
from trialrun.fewshot._tcs_losses import ELSHLoss, LSHLoss

__all__ = [
    "Distilled",
    "ELSHLoss",
    "FewRowsWarning",
    "LSHLoss",
    "TCSHead",
    "TailoredCoordinates",
    "Tailoring",
    "cache_features",
    "distill",
    "features_of",
    "few_shots",
    "labels_of",
    "layer_named",
    "pass_features",
    "read_features",
]
