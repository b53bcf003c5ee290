"""Time moxin against its slow twin.

Run as ``python benchmarks/bench_moxin.py``.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the slow twin

from _bench import compare, emit
from tests.naive.moxin import naive_moxin
from trialrun.pretraining.moxin import moxin


def main() -> None:
    """Time both on one list of texts and print the ratio."""
    texts = [f"text number {number % 300}" for number in range(600)]
    row = compare(
        "moxin against plain loops",
        lambda: moxin(texts),
        lambda: naive_moxin(texts),
        faster=True,
    )
    emit([row], limit="reads every text once; linear in the number of texts")


if __name__ == "__main__":
    main()
