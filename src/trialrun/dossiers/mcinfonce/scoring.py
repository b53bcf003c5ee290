"""How an arm's posteriors are scored, in the generated worlds and on pictures."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from trialrun.dossiers.mcinfonce.pictures import Stock, Views, standardised
from trialrun.dossiers.mcinfonce.training import raw_length
from trialrun.representation.mcinfonce import (
    Inputs,
    VMFEncoder,
    VonMisesFisher,
    credible_coverage,
    procrustes,
)

LEVEL = 0.95


class Scored(NamedTuple):
    """Inputs to align on and inputs to score, the same for all arms of a world."""

    aligning: Inputs
    scored: Inputs


def rank_correlation(a: Tensor, b: Tensor, *, shared: bool = False) -> float:
    """Return Spearman's correlation of two vectors; 0 where one is constant.

    Equal values have one rank if ``shared``, else ranks in the order of their rows, a matter
    of chance.
    """
    if bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return 0.0
    ranks = [_shared_ranks(values) if shared else values.argsort().argsort() for values in (a, b)]
    return float(torch.corrcoef(torch.stack([rank.double() for rank in ranks]))[0, 1])


def _shared_ranks(values: Tensor) -> Tensor:
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - 0.5 * counts.double())[place]


@torch.no_grad()
def estimate(encoder: VMFEncoder, rows: Scored, arm: str) -> VonMisesFisher:
    """Return an arm's posteriors of the inputs to score, in the aligned space."""
    encoder = copy.deepcopy(encoder).cpu()
    truth = rows.scored.posterior
    turn = procrustes(encoder(rows.aligning.x).mu.double(), rows.aligning.posterior.mu)
    post = encoder(rows.scored.x)
    kappa = post.kappa.double()
    if arm == "infonce":
        kappa = raw_length(encoder, rows.scored.x).double()
    elif arm.startswith("constant"):
        # The best constant for an absolute error of logs is the median of the truth itself.
        kappa = truth.kappa.median().expand_as(truth.kappa)
    return VonMisesFisher(post.mu.double() @ turn, kappa)


def score(encoder: VMFEncoder, rows: Scored, arm: str) -> dict[str, float]:
    """Measure rank, coverage and error of an arm's concentrations.

    ``coverage`` is the largest error, in points, over thirds of the inputs by true concentration.
    """
    post, truth = estimate(encoder, rows, arm), rows.scored.posterior
    inside = credible_coverage(post, rows.scored.latents, 1 - LEVEL)
    shares = [100 * float(inside[third].mean()) for third in truth.kappa.argsort().chunk(3)]
    return {
        "rank": rank_correlation(post.kappa, truth.kappa),
        "coverage": max(abs(share - 100 * LEVEL) for share in shares),
        "error": float((post.kappa.log() - truth.kappa.log()).abs().mean()),
        "mean cosine of mu": float((post.mu * truth.mu).sum(-1).mean()),
        "coverage, low kappa": shares[0],
        "coverage, middle": shares[1],
        "coverage, high kappa": shares[2],
    }


def sharpness(x: Tensor) -> Tensor:
    """Return the mean square difference of neighbouring pixels of each picture."""
    down, across = x.diff(dim=-2).square(), x.diff(dim=-1).square()
    return down.flatten(1).mean(1) + across.flatten(1).mean(1)


def reject_area(wrong: Tensor, confidence: Tensor) -> float:
    """Return the mean error, in percent, of the most confident 1, 2, ... of all answers."""
    ordered = wrong[confidence.argsort(descending=True, stable=True)].double()
    counts = torch.arange(1, len(ordered) + 1, dtype=torch.float64)
    return 100 * float((ordered.cumsum(0) / counts).mean())


@torch.no_grad()
def score_pictures(encoder: VMFEncoder, views: Views, gallery: Stock, arm: str) -> dict[str, float]:
    """Measure whether concentrations follow what is left of a picture, and retrieval by means.

    A view is answered right if the nearest whole picture of the gallery is of its main class.
    Concentrations are ranked in steps of 1 %: an encoder that gives all pictures one concentration
    would else be scored on its rounding.
    """
    encoder = copy.deepcopy(encoder).cpu().eval()
    post = encoder(views.x)
    kappa = raw_length(encoder, views.x) if arm == "infonce" else post.kappa
    steps = (100 * kappa.log()).round()
    nearest = (post.mu @ encoder(standardised(gallery.images)).mu.T).argmax(1)
    wrong = gallery.labels[nearest] != views.label
    return {
        "rank": rank_correlation(steps, views.left, shared=True),
        "rank with the share of the main class": rank_correlation(steps, views.share, shared=True),
        "recall@1": 100 * float((~wrong).double().mean()),
        "error-versus-reject area": reject_area(wrong, kappa),
        "mean cosine of any two views": float((post.mu @ post.mu.T).mean()),
        "median concentration": float(kappa.median()),
        "spread of log concentrations": float(kappa.log().std()),
    }
