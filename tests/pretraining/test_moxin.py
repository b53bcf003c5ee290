import pytest

from tests.naive.moxin import naive_moxin
from trialrun.core.seeds import rng
from trialrun.pretraining.moxin import moxin


@pytest.mark.parametrize("length", [0, 1, 7, 63])
@pytest.mark.parametrize("least_words", [1, 2])
def test_kept_places_match_the_slow_twin(length, least_words):
    numbers = rng(length, "texts").integers(1, 5, size=length)
    texts = ["word " * number for number in numbers]
    kept = moxin(texts, least_words=least_words)
    assert kept.tolist() == naive_moxin(texts, least_words=least_words)
