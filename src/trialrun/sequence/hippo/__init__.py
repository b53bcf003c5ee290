"""HiPPO memory and the state space layers built on it: S4 and S4D (gu2020hippo, gu2022s4).

What was read: notes on the released code of HiPPO and S4 and a digest of a series of posts on state
space models; gu2020hippo, gu2022s4, gu2022s4d and gu2022train from memory. No code was used. The
matrices follow the definitions, and tests check them against integrals of the bases.

Ours, not theirs: whole-sequence LegS as one scan over time for each coefficient; the S4 kernel on a
circle just inside the unit circle, which needs neither powers of the state matrix nor a fixed
length; the S4D kernel as one small matrix product per channel, with exponents in float64, in memory
that grows with the root of the length times the state; steps and sequences from the same weights;
sampling that is uneven, given per step, for `S4D` by a parallel scan; `HiPPO.reconstruct` for all
measures that have a basis.

What differs: windows have length 1 (the S4 code halves A and B of legt and fout); the gate of
`HiPPORNN` is torch's GRU cell; bidirectional and multi-head variants are not built.
"""

from __future__ import annotations

from trialrun.sequence import _stack  # noqa: F401

# isort: split
from trialrun.blocks.scan import linear_scan
from trialrun.sequence.hippo._groups import parameter_groups
from trialrun.sequence.hippo._layer import SSMLayer
from trialrun.sequence.hippo._memory import HiPPO, HiPPOState
from trialrun.sequence.hippo._nplr import NPLR, nplr
from trialrun.sequence.hippo._rnn import HiPPORNN
from trialrun.sequence.hippo._s4 import S4
from trialrun.sequence.hippo._s4d import S4D
from trialrun.sequence.hippo._transition import (
    MEASURES,
    METHODS,
    Transition,
    discretise,
    transition,
)

__all__ = [
    "MEASURES",
    "METHODS",
    "NPLR",
    "S4",
    "S4D",
    "HiPPO",
    "HiPPORNN",
    "HiPPOState",
    "SSMLayer",
    "Transition",
    "discretise",
    "linear_scan",
    "nplr",
    "parameter_groups",
    "transition",
]
