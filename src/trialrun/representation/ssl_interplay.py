"""Self-supervised learning in closed form, and its regimes (cabannes2023interplay).

The digest of the paper was read, and a third party's account of its illustration; the closed form
was worked out anew and is checked against direct minimisation. No author code was used. The loss is

    beta E|psi(v) - psi(v')|^2 + |E[psi psi^T] - I|^2 + 2 reg sum_i |psi_i|_H^2

over views v, v' of one input; beta = 1 is the spectral contrastive loss up to a constant. Mind the
factor 2 on ``reg``. Its minimum is psi_i = sqrt(max(mu_i, 0)) f_i for the top eigenpairs
(mu_i, f_i) of (1 - beta) I + beta T - reg K^-1, and has the value k - sum_i max(mu_i, 0)^2.

Ours: solving for 1/(c - mu), so that no threshold on K's range is needed (see
``_interplay_solvers``); centring by an intercept that costs nothing; the primal form for landmarks
and random features.
"""

from __future__ import annotations

from trialrun.representation import _ssl_interplay_stack  # noqa: F401

# isort: split
from trialrun.representation._interplay_estimator import KernelVCReg
from trialrun.representation._interplay_loss import VCRegLoss, vcreg_loss
from trialrun.representation._interplay_path import InterplayPath, interplay_path, plot_interplay
from trialrun.representation._interplay_spectrum import (
    Spectrum,
    Switch,
    interplay_spectrum,
    switch_points,
)
from trialrun.representation._interplay_views import jitter

__all__ = [
    "InterplayPath",
    "KernelVCReg",
    "Spectrum",
    "Switch",
    "VCRegLoss",
    "interplay_path",
    "interplay_spectrum",
    "jitter",
    "plot_interplay",
    "switch_points",
    "vcreg_loss",
]
