"""SVasP: adversarial styles steadied by crops, for few-shot learning across domains (li2025svasp).

Read: the digest of arXiv:2412.09073 and the project's notes on the published code (ResNet-10 with
a graph head); the full paper was not, and no author code was used. Written from the equations:
style statistics, the ensemble of crop gradients, the step, the loss and its weights, the order of
the passes. The published code subtracts the crops' gradient, the text adds it: ``preset="code"``
and ``preset="paper"``. Ours: hooks that restyle the stages of any network, seeded streams for
everything random, heads that say whether they are inductive, episodes as numbers of rows, and the
baseline ``preset="noise"``. Not here: the vision-transformer variant, which the code does not have.
"""

from __future__ import annotations

from trialrun.fewshot import _svasp_stack  # noqa: F401

# isort: split

from trialrun.fewshot._svasp_attack import StyleAttack
from trialrun.fewshot._svasp_ensemble import PRESETS, Preset, StyleStep, mix_gradients
from trialrun.fewshot._svasp_episode import EpisodicTraining, episode_loss
from trialrun.fewshot._svasp_folders import (
    bscd_fsl,
    fwt_list,
    mini_imagenet,
    picture_folder,
)
from trialrun.fewshot._svasp_graphs import InductiveGNNHead, TransductiveGNNHead
from trialrun.fewshot._svasp_heads import (
    CosineHead,
    ProtoNetHead,
)
from trialrun.fewshot._svasp_loss import SVasPLoss, svasp_loss
from trialrun.fewshot._svasp_measures import gradient_agreement, loss_rise
from trialrun.fewshot._svasp_model import FewShotModel
from trialrun.fewshot._svasp_nets import Conv4, ResNet10
from trialrun.fewshot._svasp_picture_folder import PictureFolder
from trialrun.fewshot._svasp_pictures import jitter, pseudo_queries, random_crops
from trialrun.fewshot._svasp_sheet import attacked_pixels, draw_styles
from trialrun.fewshot._svasp_style import Moments, Style, adain, forward_with_styles, style_of
from trialrun.fewshot._svasp_terms import (
    DomainLogits,
    LossWeights,
    SVasPParts,
    soft_cross_entropy,
)
from trialrun.fewshot._svasp_training import TrainingLog, train_episodes, train_supervised
from trialrun.fewshot._svasp_tuning import fine_tune
from trialrun.fewshot.episodes import (
    Episodes,
    EpisodeSampler,
    EpisodeScore,
    Features,
    Pictures,
    episode_accuracies,
    evaluate_episodes,
    extract_features,
)

__all__ = [
    "PRESETS",
    "Conv4",
    "CosineHead",
    "DomainLogits",
    "EpisodeSampler",
    "EpisodeScore",
    "Episodes",
    "EpisodicTraining",
    "Features",
    "FewShotModel",
    "InductiveGNNHead",
    "LossWeights",
    "Moments",
    "PictureFolder",
    "Pictures",
    "Preset",
    "ProtoNetHead",
    "ResNet10",
    "SVasPLoss",
    "SVasPParts",
    "Style",
    "StyleAttack",
    "StyleStep",
    "TrainingLog",
    "TransductiveGNNHead",
    "adain",
    "attacked_pixels",
    "bscd_fsl",
    "draw_styles",
    "episode_accuracies",
    "episode_loss",
    "evaluate_episodes",
    "extract_features",
    "fine_tune",
    "forward_with_styles",
    "fwt_list",
    "gradient_agreement",
    "jitter",
    "loss_rise",
    "mini_imagenet",
    "mix_gradients",
    "picture_folder",
    "pseudo_queries",
    "random_crops",
    "soft_cross_entropy",
    "style_of",
    "svasp_loss",
    "train_episodes",
    "train_supervised",
]
