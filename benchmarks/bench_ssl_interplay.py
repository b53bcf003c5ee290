"""Time ssl_interplay against scikit-learn's own.

Run as ``python benchmarks/bench_ssl_interplay.py``.
"""

import numpy as np
from sklearn.neighbors import NearestCentroid

from _bench import compare, emit
from trialrun.core.seeds import rng
from trialrun.representation.ssl_interplay import SslInterplay


def main() -> None:
    """Time fit and predict of both on one table and print the ratio."""
    X, y = rng(0, "X").normal(size=(2000, 50)), np.arange(2000) % 5
    row = compare(
        "ssl_interplay against NearestCentroid",
        lambda: SslInterplay().fit(X, y).predict(X),
        lambda: NearestCentroid().fit(X, y).predict(X),
    )
    emit([row], limit="one product of matrices; linear in rows, features and classes")


if __name__ == "__main__":
    main()
