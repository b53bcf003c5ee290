"""Time hippo against its slow twin.

Run as ``python benchmarks/bench_hippo.py``.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the slow twin

from _bench import compare, emit
from tests.naive.hippo import naive_hippo
from trialrun.sequence.hippo import Hippo


@torch.no_grad()
def main() -> None:
    """Time both on one batch and print the ratio."""
    torch.set_num_threads(1)
    block, x = Hippo(channels=8), torch.ones(2, 20, 8)
    row = compare(
        "hippo against plain loops",
        lambda: block(x),
        lambda: naive_hippo(x, block.gain),
        faster=True,
    )
    emit([row], limit="reads and writes every number once; linear in batch, time and channels")


if __name__ == "__main__":
    main()
