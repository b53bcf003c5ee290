import numpy as np
import pytest

from tests.naive.ssl_interplay import naive_ssl_interplay
from trialrun.core.seeds import rng
from trialrun.representation.ssl_interplay import SslInterplay


@pytest.mark.parametrize("features", [1, 7, 63])
def test_predictions_match_the_slow_twin(features):
    random = rng(features, "X")
    X, y = random.normal(size=(30, features)), np.arange(30) % 3
    queries = random.normal(size=(20, features))
    slow = naive_ssl_interplay(X.tolist(), y.tolist(), queries.tolist())
    assert SslInterplay().fit(X, y).predict(queries).tolist() == slow
