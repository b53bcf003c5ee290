import pytest

from tests.naive.ntkeval import naive_ntkeval
from trialrun.core.seeds import rng
from trialrun.evaluation.ntkeval import ntkeval


@pytest.mark.parametrize("length", [0, 1, 7, 63])
@pytest.mark.parametrize("least_words", [1, 2])
def test_kept_places_match_the_slow_twin(length, least_words):
    numbers = rng(length, "texts").integers(1, 5, size=length)
    texts = ["word " * number for number in numbers]
    kept = ntkeval(texts, least_words=least_words)
    assert kept.tolist() == naive_ntkeval(texts, least_words=least_words)
