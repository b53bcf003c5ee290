"""MinHash, bands, groups and deduplication, against the slow twin."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.naive.moxin import (
    naive_bucket_pairs,
    naive_fold,
    naive_jaccard,
    naive_kept,
    naive_probability,
    naive_shingles,
    naive_signature,
    naive_union,
)
from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng
from trialrun.pretraining._components import all_pairs, nearest_kept, star_pairs, union
from trialrun.pretraining._dedup import first_of_equal
from trialrun.pretraining._shingles import UNITS, jaccard, mix, rolling, shingles
from trialrun.pretraining.moxin import (
    Bands,
    Document,
    DropDuplicates,
    MinHashDedup,
    MinHasher,
    WriteKeys,
    bands_for,
    fold,
    join_keys,
)

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnpr" for b in "aeiou" for c in ("", "n", "st", "lp")]
ODD = [
    "",
    "?!",
    "short",
    "It's  a\tTEST,\nisn't it? Yes: one that is long enough.",
    "重复的文本会损害模型。重复的文本会损害模型！",
    "हिन्दी में एक वाक्य, जिसमें मात्राएँ हैं।",
    "Cafe\u0301 con leche \u2013 mañana",
    "a" * 40,
]


def text(seed, words=120):
    return " ".join(np.array(WORDS)[rng(seed, "text").integers(0, len(WORDS), words)])


def edited(words, share, seed):
    """Replace a share of the words of a text, one by one."""
    kept = words.split()
    draw = rng(seed, "edit")
    for place in draw.permutation(len(kept))[: round(share * len(kept))]:
        kept[place] = "zq" + WORDS[draw.integers(len(WORDS))]
    return " ".join(kept)


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_folding_matches_the_slow_twin_and_is_idempotent(words):
    assert fold(words) == naive_fold(words)
    assert fold(fold(words)) == fold(words)


@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=60))
@settings(max_examples=200, deadline=None)
def test_the_fast_path_for_ascii_folds_alike(words):
    assert fold(words) == naive_fold(words)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("ngram", [1, 2, 7, 13, 63])
def test_shingles_are_those_of_the_slow_twin(unit, ngram):
    grams = shingles(ODD, ngram=ngram, unit=unit)
    expected = [naive_shingles(words, ngram, unit) for words in ODD]
    assert grams.counts.tolist() == [len(e) for e in expected]
    flat = [gram for e in expected for gram in e]
    named = dict(zip(flat, grams.hashes.tolist()))
    assert [named[gram] for gram in flat] == grams.hashes.tolist()  # equal grams, equal hashes
    assert len(set(named.values())) == len(named)  # and no others


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 13, 63])
def test_rolling_hashes_are_the_polynomial_written_out(size):
    codes = rng(size, "codes").integers(0, 2**63, 80).astype(np.uint64)
    base = 0x9E3779B97F4A7C15
    for start, found in enumerate(rolling(codes, size).tolist()):
        value = 0
        for code in codes[start : start + size].tolist():
            value = (value * base + code) % 2**64
        assert found == value
    assert len(rolling(codes, size)) == 80 - size + 1
    assert len(rolling(codes[: size - 1], size)) == 0


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("ngram", [1, 7])
def test_jaccard_matches_the_slow_twin(unit, ngram):
    for one in ODD:
        for other in ODD:
            a, b = (np.unique(shingles([t], ngram=ngram, unit=unit).hashes) for t in (one, other))
            assert jaccard(a, b) == naive_jaccard(one, other, ngram, unit)


@pytest.mark.parametrize("hashes", [1, 7, 64, 130])
@pytest.mark.parametrize("words", [1, 3, 63])
def test_signatures_match_the_slow_twin(hashes, words):
    hasher = MinHasher(hashes=hashes, ngram=2, unit="word", seed=3)
    texts = [text(seed, words) for seed in range(5)]
    signatures = hasher.signatures(texts)
    for row, words_ in zip(signatures.tolist(), texts):
        grams = shingles([words_], ngram=2, unit="word").hashes
        values = mix(grams ^ hasher._salt).tolist()
        assert row == naive_signature(values, hashes, hasher._walks.tolist())


def test_signatures_do_not_depend_on_the_company():
    texts = [text(seed) for seed in range(70)] + ODD
    hasher = MinHasher()
    whole = hasher.signatures(texts)
    for place in (0, 31, 32, 69, 75):
        np.testing.assert_array_equal(whole[place], hasher.signatures([texts[place]])[0])


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_the_estimated_similarity_is_unbiased(share):
    one = text(1, 200)
    other = edited(one, share, 2)
    exact = naive_jaccard(one, other, 13, "character")
    found = []
    for seed in range(60):
        hasher = MinHasher(hashes=128, seed=seed)
        found.append(hasher.similarity(*hasher.signatures([one, other]))[0])
    error = math.sqrt(exact * (1 - exact) / 128 / 60)
    assert abs(np.mean(found) - exact) < 4 * error
    assert np.std(found) < 1.3 * math.sqrt(exact * (1 - exact) / 128)


def test_short_texts_keep_an_unbiased_similarity():
    # Four shingles for 64 bins: nearly every bin is filled by its walk.
    one, other = "one two three four five", "one two three four six"
    exact = naive_jaccard(one, other, 2, "word")
    found = []
    for seed in range(400):
        hasher = MinHasher(hashes=64, ngram=2, unit="word", seed=seed)
        found.append(hasher.similarity(*hasher.signatures([one, other]))[0])
    assert abs(np.mean(found) - exact) < 4 * np.std(found) / math.sqrt(400)


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (7, 3), (9, 13), (63, 2)])
def test_the_s_curve_matches_the_slow_twin(count, rows):
    grid = np.linspace(0, 1, 21)
    curve = Bands(count, rows).probability(grid)
    expected = [naive_probability(s, count, rows) for s in grid]
    np.testing.assert_allclose(curve, expected, atol=1e-14)
    assert Bands(count, rows).probability(Bands(count, rows).middle) == pytest.approx(0.5)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("hashes", [16, 128])
def test_bands_are_those_that_datasketch_chooses(threshold, hashes):
    lsh = pytest.importorskip("datasketch.lsh")
    bands = bands_for(threshold, hashes)
    assert (bands.count, bands.rows) == lsh._optimal_param(threshold, hashes, 0.5, 0.5)


def test_more_weight_on_misses_finds_more():
    plain, eager = bands_for(0.8), bands_for(0.8, misses=0.9)
    assert eager.probability(0.8) > plain.probability(0.8) + 0.2


def test_pairs_become_candidates_as_often_as_the_s_curve_says():
    """At each planted similarity the rate of candidates is within 0.03 of the curve."""
    one = text(5, 300)
    dedup = MinHashDedup(threshold=0.7)
    for share in (0.005, 0.015, 0.03):
        found, expected = [], []
        for edit in range(4):
            other = edited(one, share, edit)
            exact = naive_jaccard(one, other, 13, "character")
            expected.append(float(dedup.bands.probability(exact)))
            for seed in range(300):
                hasher = MinHasher(hashes=128, seed=seed)
                keys = hasher.keys(hasher.signatures([one, other]), dedup.bands)
                found.append(bool((keys[0] == keys[1]).any()))
        assert abs(np.mean(found) - np.mean(expected)) < 0.03 + 2 * np.std(found) / 1200**0.5


@pytest.mark.parametrize("count", [1, 7, 63])
@pytest.mark.parametrize("edges", [0, 5, 80])
def test_groups_match_the_slow_twin(count, edges):
    for seed in range(5):
        pairs = rng(seed, count, edges).integers(0, count, (edges, 2))
        assert union(count, pairs).tolist() == naive_union(count, pairs.tolist())
        plain = {tuple(p) for p in pairs.tolist() if p[0] != p[1]}
        kept = nearest_kept(count, np.array(sorted(plain)).reshape(-1, 2).astype(int))
        assert kept.tolist() == naive_kept(count, plain)
        half = union(count, pairs[: edges // 2])
        assert union(count, pairs, half).tolist() == naive_union(count, pairs.tolist())


def test_a_long_chain_is_one_group():
    order = rng(0, "chain").permutation(5000)
    pairs = np.stack([order[:-1], order[1:]], axis=1)
    assert not union(5000, pairs).any()


@pytest.mark.parametrize("count", [1, 7, 63])
def test_bucket_pairs_match_the_slow_twin(count):
    keys = rng(count, "keys").integers(0, 12, (count, 3)).astype(np.uint64)
    expected = naive_bucket_pairs(keys.tolist())
    found = {tuple(sorted(p)) for band in keys.T for p in all_pairs(band, 64).pairs.tolist()}
    assert found == expected
    stars = np.concatenate([star_pairs(band) for band in keys.T])
    assert union(count, stars).tolist() == naive_union(count, expected)


def test_large_buckets_stay_linear_and_say_what_was_left_out():
    pairs, left_out = all_pairs(np.zeros(1000, np.uint64), 64)
    assert len(pairs) == 64 * 1000 - 64 * 65 // 2
    assert len(pairs) + left_out == 1000 * 999 // 2


@pytest.mark.parametrize("link", ["kept", "verified"])
def test_near_copies_beyond_a_buckets_neighbours_go_too(link):
    """One page and 200 near-copies: each is compared with the first, however many stand between."""
    page = text(2, 400)
    copies = [f"{page} {WORDS[place]}" for place in range(200)]
    found = MinHashDedup(threshold=0.8, link=link).find([page, *copies, text(9)])
    assert found.kept.tolist() == [0, 201]
    whole = 201 * 200 // 2
    near = 64 * 201 - 64 * 65 // 2
    assert found.left_out == whole - near - (200 - 64)


def test_first_of_equal_rows():
    rows = np.array([[5, 1], [2, 2], [5, 1], [0, 9], [2, 2]], np.uint64)
    first, copy_of = first_of_equal(rows)
    assert first.tolist() == [0, 1, 3]
    assert copy_of.tolist() == [0, 1, 0, 2, 1]


def corpus(seed=0, groups=20):
    """Texts with near-copies in among them, and the similar pairs by the slow twin."""
    texts = []
    for group in range(groups):
        base = text(1000 * seed + group)
        texts += [base, edited(base, 0.01, group), edited(base, 0.4, group + 1)]
    texts += [texts[0].upper(), texts[3] + "!"]
    order = rng(seed, "order").permutation(len(texts))
    return [texts[i] for i in order]


@pytest.mark.parametrize("link", ["component", "verified", "kept"])
def test_groups_of_texts_are_those_of_exact_similarity(link):
    texts = corpus()
    similar = {
        (a, b)
        for b in range(len(texts))
        for a in range(b)
        if naive_jaccard(texts[a], texts[b], 13, "character") >= 0.7
    }
    # Similarities are either about 0.88 or far below, so that 512 hashes decide every pair.
    dedup = MinHashDedup(threshold=0.7, hashes=512, link=link)
    found = dedup.find(texts)
    expected = naive_kept if link == "kept" else naive_union
    assert found.stands_for.tolist() == expected(len(texts), similar)
    assert found.copies == 2
    assert len(found.kept) == len(set(found.stands_for.tolist()))


def test_a_chain_is_cut_only_where_kept_is_asked_for():
    words = text(9, 300).split()
    chain = [" ".join(words[i : i + 150]) for i in range(0, 60, 6)]  # each like the next
    ends = naive_jaccard(chain[0], chain[-1], 13, "character")
    assert ends < 0.5 < naive_jaccard(chain[0], chain[1], 13, "character")
    groups = {
        link: MinHashDedup(threshold=0.7, hashes=512, link=link).find(chain)
        for link in ("component", "verified", "kept")
    }
    assert len(groups["component"].kept) == len(groups["verified"].kept) == 1
    kept = groups["kept"]
    assert len(kept.kept) > 1
    for place, stands in enumerate(kept.stands_for.tolist()):
        assert naive_jaccard(chain[place], chain[stands], 13, "character") >= 0.7


def test_verification_throws_out_false_candidates():
    one = text(3, 300)
    half = edited(one, 0.05, 1)  # similarity about 0.6
    loose = Bands(64, 2)
    by_candidates, by_similarity = (
        MinHashDedup(threshold=0.9, link=link) for link in ("component", "verified")
    )
    by_candidates.bands = by_similarity.bands = loose
    assert len(by_candidates.find([one, half]).kept) == 1
    assert len(by_similarity.find([one, half]).kept) == 2


def test_the_order_of_the_corpus_decides_who_stays_and_nothing_else():
    texts = corpus()
    dedup = MinHashDedup(threshold=0.7, hashes=512)
    turned = dedup.find(texts[::-1])
    last = len(texts) - 1
    groups = {frozenset(np.flatnonzero(dedup.find(texts).stands_for == k)) for k in range(last + 1)}
    mirrored = {frozenset(last - np.flatnonzero(turned.stands_for == k)) for k in range(last + 1)}
    assert groups == mirrored


@pytest.mark.parametrize("link", ["component", "kept"])
def test_spooling_to_disk_changes_nothing_and_leaves_nothing(tmp_path, link):
    texts = corpus()
    documents = [Document(t, str(i), {"n": i}) for i, t in enumerate(texts)]
    plain = list(MinHashDedup(threshold=0.7, link=link)(documents))
    spooled = list(MinHashDedup(threshold=0.7, link=link, spool=tmp_path)(iter(documents)))
    assert plain == spooled
    assert list(tmp_path.iterdir()) == []


def test_workers_change_nothing():
    texts = [text(seed) for seed in range(1100)] + [text(3).upper()]
    one, two = (MinHashDedup(jobs=jobs).find(texts) for jobs in (1, 2))
    np.testing.assert_array_equal(one.stands_for, two.stands_for)
    assert one.stands_for[-1] == 3


def test_tasks_that_join_keys_drop_what_one_process_drops(tmp_path):
    texts = corpus()
    shards = [texts[0:9], [], texts[9:40], texts[40:]]
    dedup = MinHashDedup(threshold=0.7)
    for rank, shard in enumerate(shards):
        assert [d.text for d in WriteKeys(tmp_path, dedup)(shard, rank, 4)] == shard
    dropped = join_keys(tmp_path)
    left = [
        d.text
        for rank, shard in enumerate(shards)
        for d in DropDuplicates(tmp_path)(shard, rank, 4)
    ]
    kept = dedup.find(texts).kept
    assert left == [texts[i] for i in kept]
    assert dropped == len(texts) - len(kept)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: MinHashDedup(threshold=0), "threshold must be at least"),
        (lambda: MinHashDedup(threshold=1.5), "threshold must be at least .* got 1.5"),
        (lambda: MinHashDedup(threshold=float("nan")), "threshold must be"),
        (lambda: MinHashDedup(threshold="0.8"), "threshold must be a number, got '0.8'"),
        (lambda: MinHashDedup(link="all"), "link must be one of component, verified, kept"),
        (lambda: MinHashDedup(unit="byte"), "unit must be one of character, word"),
        (lambda: MinHashDedup(hashes=0), "hashes must be at least 1"),
        (lambda: MinHashDedup(hashes=12.5), "hashes must be a whole number"),
        (lambda: MinHashDedup(ngram=0), "ngram must be at least 1"),
        (lambda: MinHashDedup(jobs=0), "jobs must be at least 1"),
        (lambda: MinHashDedup().find([]), "at least one text, got an empty collection"),
        (lambda: MinHashDedup().find("one text"), "put a single text into a list"),
        (lambda: MinHashDedup().find(["a", 3]), "document 1 must be a string"),
        (lambda: MinHashDedup().find(None), "got NoneType"),
        (lambda: list(MinHashDedup(spool="/none")(["a"])), "spool must be a folder that exists"),
        (lambda: list(MinHashDedup()(["a"], 0, 2)), "use WriteKeys .* then DropDuplicates"),
        (lambda: WriteKeys("x", MinHashDedup(link="kept")), "link='component' only"),
        (lambda: bands_for(0.8, 128, misses=2), "misses must be"),
        (lambda: bands_for(0.8, 12.5), "hashes must be a whole number, got 12.5"),
        (lambda: bands_for("0.8"), "threshold must be a number"),
        (lambda: MinHasher(hashes=8).keys(np.zeros((1, 8), np.uint64), Bands(3, 3)), "need 9"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(unchecked, call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_joining_says_what_is_missing(tmp_path):
    with pytest.raises(UsageError, match="run WriteKeys over every task first"):
        join_keys(tmp_path)
    with pytest.raises(UsageError, match="run join_keys"):
        list(DropDuplicates(tmp_path)(["a"]))
    list(WriteKeys(tmp_path, MinHashDedup())(["a"], 0, 2))
    with pytest.raises(UsageError, match=r"00001\.keys\.json is missing, one of 2 tasks"):
        join_keys(tmp_path)
    list(WriteKeys(tmp_path, MinHashDedup(threshold=0.5))(["a"], 1, 2))
    with pytest.raises(UsageError, match="use one MinHashDedup"):
        join_keys(tmp_path)


def test_keys_of_other_signatures_are_not_joined_though_they_are_as_many(tmp_path):
    for rank, seed in enumerate((0, 1)):
        list(WriteKeys(tmp_path, MinHashDedup(seed=seed))(["a"], rank, 2))
    with pytest.raises(UsageError, match="other settings"):
        join_keys(tmp_path)


def test_keys_that_an_earlier_run_left_are_not_joined(tmp_path):
    for rank in range(3):
        list(WriteKeys(tmp_path, MinHashDedup())([f"text {rank}"], rank, 3))
    for rank in range(2):
        list(WriteKeys(tmp_path, MinHashDedup())([f"text {rank}"], rank, 2))
    with pytest.raises(UsageError, match="another number of tasks"):
        join_keys(tmp_path)
    left = (tmp_path / "00002.keys.json").read_text()
    (tmp_path / "00002.keys.json").write_text(left.replace('"tasks": 3', '"tasks": 2'))
    with pytest.raises(UsageError, match="which is none of 2 tasks"):
        join_keys(tmp_path)
    with pytest.raises(ValueError, match=r"rank must be .* at most 1, got 2"):
        list(WriteKeys(tmp_path, MinHashDedup())(["a"], 2, 2))


def test_a_task_that_was_cut_short_is_not_joined_or_dropped_by(tmp_path):
    step = WriteKeys(tmp_path, MinHashDedup())
    list(step(["a", "a"], 0, 1))
    assert join_keys(tmp_path) == 1
    next(iter(step(["b", "c"], 0, 1)))
    with pytest.raises(UsageError, match="holds no keys"):
        join_keys(tmp_path)
    with pytest.raises(UsageError, match="run join_keys"):
        list(DropDuplicates(tmp_path)(["b", "c"]))


@pytest.mark.parametrize("texts", [["one"], ["one", "two", "three"]])
def test_a_stream_that_is_not_the_one_whose_keys_were_written_is_noticed(tmp_path, texts):
    list(WriteKeys(tmp_path, MinHashDedup())(["one", "two"]))
    join_keys(tmp_path)
    assert [d.text for d in DropDuplicates(tmp_path)(["one", "two"])] == ["one", "two"]
    with pytest.raises(UsageError, match=f"has {len(texts)} documents and had 2"):
        list(DropDuplicates(tmp_path)(texts))
    with pytest.raises(UsageError, match="written by 1 tasks, and here are 2"):
        list(DropDuplicates(tmp_path)(["one", "two"], 0, 2))


@pytest.mark.parametrize("content", ["[]", "{", '{"tasks": 1}'])
def test_what_says_nothing_of_keys_is_refused(tmp_path, content):
    list(WriteKeys(tmp_path, MinHashDedup())(["one"]))
    (tmp_path / "00000.keys.json").write_text(content)
    with pytest.raises(UsageError, match=r"run (WriteKeys for )?it"):
        join_keys(tmp_path)


def test_keys_that_are_not_those_spoken_of_are_refused(tmp_path):
    list(WriteKeys(tmp_path, MinHashDedup())(["one"]))
    np.save(tmp_path / "00000.keys.npy", np.zeros((2, 3), np.uint64))
    with pytest.raises(UsageError, match=r"is not the file that 00000\.keys\.json speaks of"):
        join_keys(tmp_path)
    (tmp_path / "00000.keys.npy").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot be read"):
        join_keys(tmp_path)


def test_documents_that_cannot_be_spooled_are_named(tmp_path):
    step = MinHashDedup(spool=tmp_path)
    with pytest.raises(UsageError, match="document 'x' cannot be spooled"):
        list(step([Document("a", "x", {"no": object()})]))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_stream_gives_an_empty_stream():
    assert list(MinHashDedup()(iter([]))) == []


def test_spooled_memory_does_not_grow_with_the_texts(tmp_path):
    page = text(0, 330)  # 2 kB

    def peak(count):
        step = MinHashDedup(spool=tmp_path)
        documents = (Document(f"{page} {number}", str(number)) for number in range(count))
        tracemalloc.start()
        for _ in step(documents):
            pass
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    few, many = peak(1024), peak(4096)
    assert many - few < 200 * (4096 - 1024)  # bytes a document; a text has 2000
