"""Time ntkeval against its slow twin.

Run as ``python benchmarks/bench_ntkeval.py``.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the slow twin

from _bench import compare, emit
from tests.naive.ntkeval import naive_ntkeval
from trialrun.evaluation.ntkeval import ntkeval


def main() -> None:
    """Time both on one list of texts and print the ratio."""
    texts = [f"text number {number % 300}" for number in range(600)]
    row = compare(
        "ntkeval against plain loops",
        lambda: ntkeval(texts),
        lambda: naive_ntkeval(texts),
        faster=True,
    )
    emit([row], limit="reads every text once; linear in the number of texts")


if __name__ == "__main__":
    main()
