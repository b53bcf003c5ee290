"""The measuring code of the training claims: corpora with the fault they say, equal work."""

from collections import Counter

import numpy as np
import pytest

from trialrun.claims.contract import Context
from trialrun.dossiers.moxin import training
from trialrun.dossiers.moxin._lm_sizes import FULL, QUICK, SMOKE
from trialrun.dossiers.moxin._sizes import BUDGETS
from trialrun.dossiers.moxin.corpus import (
    COPIES_PER_PAGE,
    PAGE,
    REPEATED,
    apart,
    draw_pages,
    pages,
    passes_rules,
    with_copies,
    with_rubbish,
)


def _context(tmp_path, seed=0):
    return Context(budget=BUDGETS["smoke"], seed=seed, prepared_root=tmp_path)


def test_copies_are_of_a_few_pages_half_of_them_exact():
    originals = draw_pages(40, seed=0, purpose="test")
    stream = with_copies(originals, seed=0)
    assert len(stream) == (1 + COPIES_PER_PAGE) * 40
    known = set(originals)
    edited = [page for page in stream if page not in known]
    assert abs(len(edited) - 80) <= REPEATED
    counts = Counter(page for page in stream if page in known)
    assert sum(count > 1 for count in counts.values()) == REPEATED
    assert stream == with_copies(originals, seed=0)
    assert stream != with_copies(originals, seed=1)


def test_even_copies_leave_every_page_as_frequent_as_any_other():
    originals = draw_pages(12, seed=0, purpose="test")
    lines = [set(page.splitlines()) for page in originals]
    nearest = [
        max(range(12), key=lambda i: len(lines[i] & set(page.splitlines())))
        for page in with_copies(originals, seed=0, evenly=True)
    ]
    assert Counter(nearest) == dict.fromkeys(range(12), 1 + COPIES_PER_PAGE)


def test_a_third_of_the_stream_is_good_and_nothing_else_is():
    good, other = apart(30, 30, seed=0)
    assert not set(good) & set(other)
    stream = with_rubbish(good, seed=0)
    assert len(stream) == 90
    assert sum(page in set(good) for page in stream) == 30
    bad = [page for page in stream if page not in set(good)]
    assert np.mean([passes_rules(page) for page in bad]) < 0.5
    assert np.mean([passes_rules(page) for page in good]) > 0.8


def test_held_out_pages_are_of_other_files():
    assert not set(pages()) & set(pages(held_out=True))
    assert PAGE / 2 < np.median([len(page) for page in pages()]) < 2 * PAGE


@pytest.mark.parametrize("sizes", [SMOKE, QUICK, FULL])
def test_every_schedule_sees_the_same_tokens_at_the_same_rates(sizes):
    plans = {k: training._plan(sizes, k) for k in ("long", "phased", "short", "long-twice")}
    assert len({plan.tokens for plan in plans.values()}) == 1
    rates = {k: [plan.rate(i) for i in range(plan.steps)] for k, plan in plans.items()}
    for kind in ("phased", "short", "long-twice"):
        np.testing.assert_allclose(rates[kind], rates["long"], rtol=1e-9)
    assert [p.context for p in plans["phased"].phases] == [sizes.short, sizes.long]


def test_arms_of_a_seed_start_from_the_same_weights():
    one, other = (training._model(SMOKE, seed=4) for _ in range(2))
    assert all((a == b).all() for a, b in zip(one.parameters(), other.parameters()))


def test_the_thinned_control_keeps_as_many_pages_as_deduplication(tmp_path):
    found = {
        arm: training.duplicates(_context(tmp_path), arm=arm).extra["pages"]
        for arm in ("deduplicated", "thinned", "duplicated", "clean")
    }
    assert found["thinned"] == found["deduplicated"]
    assert found["duplicated"] == 5 * found["clean"]


def test_rolling_arms_differ_only_where_a_key_is_missing_or_too_many(tmp_path):
    arms = training.ARMS["rolling"]
    found = {name: arm(_context(tmp_path)).points for name, arm in arms.items()}
    for name in ("rolling", "full", "static"):
        assert max(found[name].values()) < 1e-12
    for name in ("one-key-fewer", "one-key-more"):
        assert min(found[name].values()) > 1e-3


def test_only_the_trimmed_caches_stay(tmp_path):
    arms = training.ARMS["rolling-memory"]
    found = {name: arm(_context(tmp_path)).points["value"] for name, arm in arms.items()}
    assert found == {"rolling": 1.0, "full": 8.0, "static": 1.0, "never-trimmed": 8.0}
