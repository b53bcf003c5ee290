"""Time svasp against its slow twin.

Run as ``python benchmarks/bench_svasp.py``.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the slow twin

from _bench import compare, emit
from tests.naive.svasp import naive_svasp
from trialrun.fewshot.svasp import Svasp


@torch.no_grad()
def main() -> None:
    """Time both on one batch and print the ratio."""
    torch.set_num_threads(1)
    block, x = Svasp(channels=8), torch.ones(2, 20, 8)
    row = compare(
        "svasp against plain loops",
        lambda: block(x),
        lambda: naive_svasp(x, block.gain),
        faster=True,
    )
    emit([row], limit="reads and writes every number once; linear in batch, time and channels")


if __name__ == "__main__":
    main()
