"""FAMNet: few-shot medical segmentation by frequency-aware matching (bo2024famnet).

Read: the digest and a description of the method with its equations; the paper itself and its
weights were not at hand, and no author code was used. Ours: a plain `PrototypeSegmenter` as rival,
``layout="grid"``, the choice of band weights, clamped logarithms in both losses, encoders of any
kind, batches, the all-slice protocol, and a supervoxel step in numpy. What differs from the
authors' scripts: features are not brought up to the mask's size (see `_famnet_bands`).
"""

from __future__ import annotations

from trialrun.fewshot._famnet_bands import (
    foreground_tokens,
    masked_average,
    radial_masks,
    split_bands,
    split_token_bands,
)
from trialrun.fewshot._famnet_encoders import Loaded, ResNet50Dilated, SmallEncoder
from trialrun.fewshot._famnet_episodes import Augmentation, Episode, EpisodeSampler
from trialrun.fewshot._famnet_folders import Folder, Volume, read_folder
from trialrun.fewshot._famnet_layouts import LAYOUTS, Layout
from trialrun.fewshot._famnet_match import Bands, FrequencyAwareMatching, MultiSpectralFusion
from trialrun.fewshot._famnet_model import FAMNet, famnet_loss
from trialrun.fewshot._famnet_overlay import overlay, write_png
from trialrun.fewshot._famnet_prepare import prepare_volume
from trialrun.fewshot._famnet_prototype import PrototypeSegmenter, prototype_map
from trialrun.fewshot._famnet_return import write_nifti
from trialrun.fewshot._famnet_supervoxels import supervoxels
from trialrun.fewshot._famnet_training import SCHEDULES, Schedule, TrainingRun, train_episodes
from trialrun.fewshot._famnet_volumes import (
    EncodedVolume,
    VolumeResult,
    dice_score,
    encode_volume,
    evaluate_volume,
)

__all__ = [
    "LAYOUTS",
    "SCHEDULES",
    "Augmentation",
    "Bands",
    "EncodedVolume",
    "Episode",
    "EpisodeSampler",
    "FAMNet",
    "Folder",
    "FrequencyAwareMatching",
    "Layout",
    "Loaded",
    "MultiSpectralFusion",
    "PrototypeSegmenter",
    "ResNet50Dilated",
    "Schedule",
    "SmallEncoder",
    "TrainingRun",
    "Volume",
    "VolumeResult",
    "dice_score",
    "encode_volume",
    "evaluate_volume",
    "famnet_loss",
    "foreground_tokens",
    "masked_average",
    "overlay",
    "prepare_volume",
    "prototype_map",
    "radial_masks",
    "read_folder",
    "split_bands",
    "split_token_bands",
    "supervoxels",
    "train_episodes",
    "write_nifti",
    "write_png",
]
