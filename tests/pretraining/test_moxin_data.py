"""Documents, normal forms, length, quality, contamination, and pipelines inside datatrove."""

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.naive.moxin import naive_overlap
from trialrun.core.errors import UsageError
from trialrun.core.seeds import rng
from trialrun.pretraining.moxin import (
    Contamination,
    Document,
    DropContaminated,
    DropDuplicates,
    LengthFilter,
    MinHashDedup,
    Normalise,
    Pipeline,
    QualityFilter,
    QualityTop,
    WriteKeys,
    contamination,
    join_keys,
    read_jsonl,
)

GOOD = [
    f"The {a} {b} was seen near the {c} in the evening."
    for a in ("old", "red", "quiet")
    for b in ("fox", "train", "teacher", "river")
    for c in ("bridge", "school", "market")
]
BAD = [
    f"{a} now!!! >>> {b} {c} $$$ click {b} {a}"
    for a in ("buy", "order", "login")
    for b in ("cart", "price", "deal", "offer")
    for c in ("cheap", "free", "best")
]


@given(st.text(max_size=80), st.sampled_from(["NFC", "NFKC", "NFD", "NFKD"]))
@settings(max_examples=300, deadline=None)
def test_normalising_twice_is_normalising_once(text, form):
    step = Normalise(form)
    once = step.normal(text)
    assert step.normal(once) == once
    assert unicodedata.is_normalized(form, once)
    assert "\r" not in once
    assert "\n\n\n" not in once
    assert not any(line != line.strip(" ") for line in once.split("\n"))


def test_normalising_keeps_words_lines_and_metadata():
    document = Document("one\ttwo \r\n\r\n\r\n\r\nthree", "x", {"a": 1})
    (done,) = Normalise()([document])
    assert (done.text, done.id, done.metadata) == ("one two\n\nthree", "x", {"a": 1})
    assert document.text.startswith("one\ttwo")  # the one that came is left alone


def test_length_is_counted_without_punctuation_and_includes_both_ends():
    texts = ["....abc....", "ab  !", "a b", "abcdef"]
    assert [d.text for d in LengthFilter(least=3, most=5)(texts)] == ["....abc....", "a b"]


def test_jsonl_is_read_line_by_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "id": 7, "lang": "en"}\n\n{"text": "two"}\n')
    one, two = read_jsonl(path)
    assert (one.text, one.id, one.metadata) == ("one", "7", {"lang": "en"})
    assert two.id == "a.jsonl:3"


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n')
    assert [d.text for d in read_jsonl(path)] == ["one"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"text": "one"}\n{"text"', "line 2: not JSON"),
        (b'{"body": "one"}', "line 1: expected a JSON object with a text under 'text'"),
        (b'["one"]', "line 1: expected a JSON object"),
        (b'{"text": "\xff"}', "not UTF-8"),
    ],
)
def test_jsonl_that_cannot_be_read_names_the_line(tmp_path, content, words):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        list(read_jsonl(path))
    with pytest.raises(UsageError, match=r"none\.jsonl is not a file"):
        list(read_jsonl(tmp_path / "none.jsonl"))


def test_a_pipeline_reads_only_as_far_as_it_is_asked():
    read = []

    def source():
        for number in range(100):
            read.append(number)
            yield f"document number {number}"

    flow = Pipeline([Normalise(), LengthFilter(least=1)])(source())
    assert next(flow).text == "document number 0"
    assert len(read) == 1


def test_a_pipeline_counts_and_refuses_what_is_no_step(unchecked):
    pipeline = Pipeline([LengthFilter(least=4), lambda stream, rank, world: stream])
    assert len(list(pipeline(["a", "abcd"]))) == 1
    assert [row[1:] for row in pipeline.counts] == [(2, 1), (1, 1)]
    with pytest.raises(UsageError, match="at least one step"):
        Pipeline([])
    with pytest.raises(UsageError, match="step 0 must be callable"):
        Pipeline(["dedup"])


@pytest.mark.parametrize("lines", ["", "\n \n"])
def test_files_without_a_document_are_refused_and_one_among_others_is_not(tmp_path, lines):
    empty, full = tmp_path / "empty.jsonl", tmp_path / "full.jsonl"
    empty.write_text(lines)
    full.write_text('{"text": "one"}\n')
    with pytest.raises(UsageError, match=r"at least one document, got none from .*empty\.jsonl"):
        list(read_jsonl(empty))
    with pytest.raises(UsageError, match="got none from no file"):
        list(read_jsonl())
    assert [d.text for d in read_jsonl(empty, full)] == ["one"]


def test_a_pipeline_tells_an_empty_stream_from_documents_that_were_all_dropped():
    pipeline = Pipeline([Normalise(), LengthFilter(least=9), MinHashDedup()])
    with pytest.raises(UsageError, match="at least one text, got an empty stream: look at what"):
        list(pipeline(iter([])))
    assert list(pipeline(["short", "brief"])) == []
    assert pipeline.counts[:2] == [("Normalise", 2, 2), ("LengthFilter", 2, 0)]
    # One task of several may be given nothing.
    assert list(Pipeline([Normalise()])([], 1, 2)) == []


def test_a_run_that_is_read_on_does_not_count_into_a_later_one():
    pipeline = Pipeline([LengthFilter(least=1)])
    first = pipeline(["one", "two", "three"])
    second = pipeline(["four"])
    assert len(list(first)) == 3  # only now read
    assert pipeline.counts == [("LengthFilter", 0, 0)]
    assert len(list(second)) == 1
    assert pipeline.counts == [("LengthFilter", 1, 1)]


def test_quality_tells_prose_from_rubbish_it_has_not_seen():
    quality = QualityFilter(bits=14).fit(GOOD[::2], BAD[::2])
    good, bad = quality.score(GOOD[1::2]), quality.score(BAD[1::2])
    assert good.min() > 0 > bad.max()
    assert good.dtype == np.float32


def test_quality_is_the_same_twice_and_one_by_one():
    one, two = (QualityFilter(bits=12, seed=4).fit(GOOD, BAD) for _ in range(2))
    np.testing.assert_array_equal(one.weights_, two.weights_)
    other = QualityFilter(bits=12, seed=5).fit(GOOD, BAD)
    assert not np.array_equal(one.weights_, other.weights_)
    whole = one.score(GOOD)
    np.testing.assert_array_equal(whole, [one.score([text])[0] for text in GOOD])


def test_the_smaller_side_weighs_as_much():
    quality = QualityFilter(bits=12).fit(GOOD[:3], BAD * 5)
    assert quality.score(GOOD[20:]).mean() > 0


def test_quality_is_saved_without_pickle_and_checked_on_loading(tmp_path):
    quality = QualityFilter(bits=10, pairs=False, decay=1e-4, epochs=2, seed=9).fit(GOOD, BAD)
    quality.save(tmp_path)
    again = QualityFilter.load(tmp_path)
    assert vars(again).keys() == vars(quality).keys()
    np.testing.assert_array_equal(again.score(GOOD), quality.score(GOOD))
    said = json.loads((tmp_path / "quality.json").read_text())
    (tmp_path / "quality.json").write_text(json.dumps({**said, "crc": 1}))
    with pytest.raises(UsageError, match=r"is not the file that quality\.json speaks of"):
        QualityFilter.load(tmp_path)
    (tmp_path / "quality.json").write_text("{}")
    with pytest.raises(UsageError, match="holds no quality filter"):
        QualityFilter.load(tmp_path)


def test_a_filter_whose_file_is_damaged_is_refused(tmp_path):
    QualityFilter(bits=10).fit(GOOD, BAD).save(tmp_path)
    file = tmp_path / "quality.safetensors"
    for damaged in (file.read_bytes()[:-8], b"", b"\xff" * 64):
        file.write_bytes(damaged)
        with pytest.raises(UsageError, match="holds no quality filter"):
            QualityFilter.load(tmp_path)


def test_texts_that_tie_with_the_last_of_the_share_come_through_too():
    quality = QualityFilter(bits=10).fit(GOOD, BAD)
    assert len(list(QualityTop(quality, 0.1)([""] * 50))) == 50


def test_the_best_share_comes_through_in_order():
    quality = QualityFilter(bits=14).fit(GOOD[::2], BAD[::2])
    mixed = [t for pair in zip(GOOD[1::2], BAD[1::2]) for t in pair]
    assert [d.text for d in QualityTop(quality, 0.5)(mixed)] == GOOD[1::2]
    assert len(list(QualityTop(quality, 1.0)(mixed))) == len(mixed)
    assert list(QualityTop(quality, 0.5)([])) == []
    known = quality.threshold(mixed, 0.5)
    assert [d.text for d in QualityTop(quality, threshold=known)(mixed)] == GOOD[1::2]
    assert list(QualityTop(quality, threshold=0.0)([])) == []
    streamed = QualityTop(quality, 0.5, sample=12)
    assert [d.text for d in streamed(mixed)] == GOOD[1::2]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: QualityFilter().fit([], BAD), "good must hold at least one text"),
        (lambda: QualityFilter().fit(GOOD, []), "bad must hold at least one text"),
        (lambda: QualityFilter().score(GOOD), "has learnt nothing yet"),
        (lambda: QualityFilter().save("x"), "has learnt nothing yet"),
        (lambda: QualityTop(QualityFilter()), "has learnt nothing yet"),
        (lambda: QualityFilter(bits=2), "bits must be at least 8"),
        (lambda: QualityFilter(decay=0), "decay must be"),
        (lambda: QualityFilter.load("/none"), "holds no quality filter"),
        (lambda: QualityTop(QualityFilter(bits=8).fit(GOOD, BAD), 0.0), "above 0 and at"),
        (lambda: QualityTop(QualityFilter(bits=8).fit(GOOD, BAD), 1.1), "above 0 and at most 1"),
        (
            lambda: QualityTop(QualityFilter(bits=8).fit(GOOD, BAD), threshold=float("nan")),
            "threshold must be a finite score, got nan",
        ),
        (lambda: QualityTop("x"), "quality must be a QualityFilter, got str"),
        (
            lambda: QualityTop(QualityFilter(bits=8).fit(GOOD, BAD), share="0.1"),
            "share must be a number above 0 and at most 1, got '0.1'",
        ),
        (lambda: QualityFilter(decay="1"), "decay must be a number"),
        (lambda: LengthFilter(least="200"), "least must be a whole number, got '200'"),
        (lambda: DropContaminated({}), "look must be a Contamination.* got dict"),
        (lambda: LengthFilter(least=-1), "least must be at least 0"),
        (lambda: LengthFilter(least=5, most=4), "most must be at least 5"),
        (lambda: Normalise("utf-8"), "form must be one of NFC"),
        (lambda: contamination([], {"a": ["b"]}), "at least one text, got an empty collection"),
        (lambda: contamination(["x"], {}), "benchmarks must be a mapping"),
        (lambda: contamination(["x"], ["y"]), "benchmarks must be a mapping"),
        (lambda: contamination(["x"], {"a": []}), "'a' must have at least one item"),
        (lambda: contamination(["x"], {"a": "item"}), "'a' must be a list of items"),
        (lambda: contamination(["x"], {"a": [1]}), "item 0 must be a string"),
        (lambda: contamination(["x"], {"a": ["b"]}, n=1), "n must be at least 2"),
        (lambda: contamination(["x"], {"a": ["b"]}, unit="byte"), "unit must be one of"),
        (lambda: DropContaminated(Contamination({"a": ["b"]}), most=2), "most must be"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(unchecked, call, words):
    with pytest.raises(ValueError, match=words):
        call()


def _planted(seed, documents, items):
    """Texts over a small vocabulary, so that runs are shared by plan and by chance."""
    draw = rng(seed, "overlap")
    words = np.array([f"w{i}" for i in range(7)])

    def text(least, most):
        return " ".join(words[draw.integers(0, len(words), draw.integers(least, most))])

    quiz = [text(1, 14) for _ in range(items)]
    texts = [text(0, 30) for _ in range(documents)]
    for place in range(0, documents, 3):
        texts[place] += " " + quiz[draw.integers(items)].upper() + "! " + text(0, 5)
    return texts, quiz


@pytest.mark.parametrize("n", [2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(6))
def test_overlaps_are_exactly_those_of_the_slow_twin(n, seed):
    texts, quiz = _planted(seed, 20, 12)
    least = min(3, n)
    report = contamination(texts, {"quiz": quiz}, n=n, least=least)
    holding = set()
    for item, words in zip(report.items, quiz):
        covered, touched = naive_overlap(words, texts, n, least)
        found = [False] * item.units
        for start, stop in item.spans:
            found[start:stop] = [True] * (stop - start)
        assert found == covered
        assert item.times == len(touched)
        assert list(item.documents) == [str(t) for t in touched[:5]]
        assert item.judged == (item.units >= least)
        holding |= set(touched)
    assert report.touched == len(holding)


def test_characters_serve_scripts_without_spaces():
    item = "重复的文本会损害语言模型在留出集上的损失，这一点需要检验"
    texts = ["无关的内容。", f"前言：{item}。后记"]
    by_words = contamination(texts, {"q": [item]})
    by_characters = contamination(texts, {"q": [item]}, n=13, unit="character")
    assert not by_words.items[0].judged
    assert by_characters.items[0].share == 1.0
    assert by_characters.items[0].documents == ("1",)


def test_a_report_quotes_the_characters_that_were_found():
    item = "重复的文本会损害语言模型在留出集上的损失"
    there = item[4:18]
    report = contamination([f"前言{there}后记"], {"q": [item]}, n=13, unit="character")
    assert report.items[0].spans == ((4, 18),)
    assert f"{there!r} in 0" in report.as_text()
    long = "one two three " * 20
    said = contamination([long], {"q": [long]}, n=13, unit="character").as_text()
    assert "'one two three one" in said
    assert " ...' in 0" in said


def test_a_report_reads_as_text_and_says_what_was_not_judged():
    item = "which of these planets is the nearest one to the sun in our system"
    report = contamination([f"Quiz: {item}?"], {"space": [item, "too short"]}, n=8)
    said = report.as_text()
    assert "space: 100.0% of 1 items found; 1 too short to judge" in said
    assert "space[0] 100% of 14" in said
    assert report.found(0.5)[0].found
    assert report.rates() == {"space": 1.0}


def test_contaminated_documents_are_dropped_by_their_own_share():
    item = "one two three four five six seven eight"
    look = Contamination({"count": [item]}, n=8)
    long = f"{item} " + "and so on " * 20
    assert look.share(item) == 1.0
    assert 0 < look.share(long) < 0.2
    texts = ["nothing of it", item, long]
    assert [d.id for d in DropContaminated(look)(texts)] == ["0"]
    assert [d.id for d in DropContaminated(look, most=0.5)(texts)] == ["0", "2"]


def _run(tmp_path, name, steps, tasks):
    local = pytest.importorskip("datatrove.executor.local")
    local.LocalPipelineExecutor(
        steps, tasks=tasks, workers=1, logging_dir=str(tmp_path / f"log-{name}")
    ).run()


def test_steps_run_inside_a_datatrove_executor_as_they_are(tmp_path):
    data = pytest.importorskip("datatrove.data")
    shards = [["A first text.", "tiny"], ["a FIRST text", "Another, longer text."]]

    def read(_, rank, world_size):
        for shard in range(rank, len(shards), world_size):
            for place, text in enumerate(shards[shard]):
                yield data.Document(text, f"{shard}/{place}")

    written = []

    def write(stream, rank, world_size):
        for document in stream:
            written.append(document)
            yield document

    keys = tmp_path / "keys"
    _run(tmp_path, "keys", [read, LengthFilter(least=6), WriteKeys(keys, MinHashDedup())], 2)
    assert join_keys(keys) == 1
    _run(tmp_path, "drop", [read, LengthFilter(least=6), DropDuplicates(keys), write], 2)
    assert [document.id for document in written] == ["0/0", "1/1"]
    assert isinstance(written[0], data.Document)


def test_the_spool_gives_back_datatrove_documents(tmp_path):
    data = pytest.importorskip("datatrove.data")
    documents = [data.Document("some text", "a", metadata={"k": 1}), data.Document("other", "b")]
    left = list(MinHashDedup(spool=tmp_path)(documents))
    assert left == documents
    assert isinstance(left[0], data.Document)
