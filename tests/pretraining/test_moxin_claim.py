"""The measuring code of the claims on contamination and openness."""

import string

import pytest

from trialrun.claims.contract import Context
from trialrun.dossiers.moxin import data
from trialrun.dossiers.moxin._sizes import BUDGETS

BARE = str.maketrans("", "", string.punctuation)


@pytest.fixture(scope="module")
def ctx():
    return Context(budget=BUDGETS["smoke"], seed=3)


def test_items_share_no_thirteen_words_with_a_document_before_planting(ctx):
    items, texts = data.material(ctx)
    assert len(items) == len(texts) == 20
    joined = [f" {' '.join(text.lower().translate(BARE).split())} " for text in texts]
    for item in items:
        words = item.lower().translate(BARE).split()
        for start in range(len(words) - 12):
            run = " ".join(words[start : start + 13])
            assert not any(f" {run} " in text for text in joined)


def test_material_is_the_same_for_every_arm_and_differs_by_seed(ctx):
    assert data.material(ctx) == data.material(ctx)
    other = data.material(Context(budget=BUDGETS["smoke"], seed=4))
    assert data.material(ctx) != other


def test_conditions_change_what_they_say():
    item = " ".join(f"word{i}" for i in range(40))
    draw = data.rng(0, "x")
    recased, half, edited = (data.CONDITIONS[c](item, draw) for c in ("recased", "half", "edited"))
    assert recased.replace(" ,", "").lower().split() == item.split()
    assert half in item
    assert len(half.split()) == 20
    changed = [i for i, (a, b) in enumerate(zip(item.split(), edited.split())) if a != b]
    assert changed == [10, 30]
    shuffled = data._shuffled(item, draw)
    assert sorted(shuffled.split()) == sorted(item.split())
    assert shuffled != item


def test_the_bag_of_words_is_the_plain_loops(ctx):
    items, texts = data.material(ctx)
    texts = [*texts, items[2].upper(), " ".join(items[5].split()[:30])]
    wanted = [set(item.lower().translate(BARE).split()) for item in items]
    bags = [set(text.lower().translate(BARE).split()) for text in texts]
    loops = [any(len(w & bag) >= 0.8 * len(w) for bag in bags) for w in wanted]
    assert data.by_bag(items, texts) == loops
    assert loops[2]


def test_an_arm_that_finds_everything_fails_by_what_it_should_leave_alone(ctx):
    found = data.planted(ctx, find=lambda items, texts: [True] * len(items))
    assert found.points["verbatim"] == 100
    assert found.points["left alone"] == 0


@pytest.mark.parametrize(
    ("arm", "strict", "doubted"),
    [
        ("moxin-7b", 4, 2),
        ("as-stated", 1, 1),
        ("complete", 1, 1),
        ("weights-only", 4, 4),
        ("closed-weights", 4, 4),
        ("licence-tag", 1, 1),
        ("tag-of-closed-weights", 4, 4),
        ("tag-of-weights-only", 1, 1),
    ],
)
def test_every_arm_of_openness_reads_its_own_manifest(ctx, arm, strict, doubted):
    points = data.ARMS["openness"][arm](ctx).points
    assert points == {"strict": strict, "benefit of the doubt": doubted}


def test_a_substring_finds_what_stands_there_verbatim_and_nothing_else(ctx):
    found = data.planted(ctx, find=data.by_substring)
    assert found.points["verbatim"] == found.points["left alone"] == 100
    assert found.points["recased"] == found.points["edited"] == 0
