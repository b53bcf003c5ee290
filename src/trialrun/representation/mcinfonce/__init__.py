"""MCInfoNCE: contrastive learning of posteriors on the sphere (kirchhof2023mcinfonce).

What was read: a digest of the paper, and notes on the released code (the equations and settings
restated there; the code itself was not used). wood1994, ulrich1984, figurnov2018, oh2019hib and
shi2019pfe from memory.

Ours, not theirs: Bessel functions in log space for any dimension and concentration (theirs is a
polynomial fit); draws whose gradient by kappa is exact (theirs goes through an accepted proposal,
which is biased); refused draws alone are drawn again (theirs draws whole batches again where a
number failed); credible sets by the exact quantile (theirs by 10,000 draws); several rolled
negatives; ``average="kernel"``.

What differs: `HIBLoss` follows its own paper's distance form with learned slope and offset, and
`ELKLoss` rolls posteriors, not similarities. `VMFWorld` makes latents uniform, as the theory
assumes; see its module for what is kept of the published generator.
"""

from __future__ import annotations

from trialrun.representation.mcinfonce import _stack  # noqa: F401

# isort: split
from trialrun.representation.mcinfonce._bessel import log_ive
from trialrun.representation.mcinfonce._credible import (
    CredibleSets,
    credible_coverage,
    credible_retrieval,
    procrustes,
)
from trialrun.representation.mcinfonce._heads import HEADS, VMFEncoder
from trialrun.representation.mcinfonce._losses import (
    ELKLoss,
    HIBLoss,
    MCInfoNCELoss,
    log_likelihood_kernel,
)
from trialrun.representation.mcinfonce._vmf import VonMisesFisher
from trialrun.representation.mcinfonce._world import (
    POSITIVES,
    POSTERIORS,
    PUBLISHED_CONSTANTS,
    Inputs,
    Pairs,
    VMFWorld,
)

__all__ = [
    "HEADS",
    "POSITIVES",
    "POSTERIORS",
    "PUBLISHED_CONSTANTS",
    "CredibleSets",
    "ELKLoss",
    "HIBLoss",
    "Inputs",
    "MCInfoNCELoss",
    "Pairs",
    "VMFEncoder",
    "VMFWorld",
    "VonMisesFisher",
    "credible_coverage",
    "credible_retrieval",
    "log_ive",
    "log_likelihood_kernel",
    "procrustes",
]
