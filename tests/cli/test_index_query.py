"""``trialrun index`` and ``trialrun query`` on a folder of emoji, as a user runs them."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trialrun.cli import main
from trialrun.cli.index import kept_path
from trialrun.core.errors import UsageError
from trialrun.material.emoji import load_emoji
from trialrun.representation import pic2word
from trialrun.representation._pic2word_sheet import contact_sheet
from trialrun.representation.pic2word import ImageToWord, find_pictures, load_clip
from trialrun.representation.picture_index import PictureIndex, _names, ask, build_index
from trialrun.representation.retrieval import cosine_scores, ranking
from trialrun.representation.tiny_clip import TinyClip, WordTokenizer, save_tiny_clip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of emoji with one damaged file, a tiny CLIP of random weights and two mappers."""
    root = tmp_path_factory.mktemp("search")
    emoji = load_emoji(("openmoji", "twemoji"), limit=8)
    for i in range(len(emoji)):
        for s, style in enumerate(emoji.styles):
            folder = root / "pictures" / style
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(emoji.images[i, s]).save(folder / f"{i}.png")
    (root / "pictures" / "damaged.png").write_bytes(b"no picture")
    words = WordTokenizer(("a", "drawing", "of", "twemoji", "fox"))
    save_tiny_clip(TinyClip(words.vocab_size), words, root / "clip")
    save_tiny_clip(TinyClip(words.vocab_size, seed=1), words, root / "other")
    ImageToWord(64, 64, hidden=8).save(root / "mapper.safetensors")
    ImageToWord(32, 64, hidden=8).save(root / "foreign.safetensors")
    return root


@pytest.fixture(scope="module")
def index(place):
    with pytest.raises(SystemExit) as stop:
        main(["index", str(place / "pictures"), "--model", str(place / "clip")])
    assert stop.value.code == 0
    return place / "pictures.index"


def test_index_names_what_it_left_out(trialrun, place, tmp_path):
    words = ["index", str(place / "pictures"), "--model", str(place / "clip"), "--out"]
    code, out, err = trialrun(*words, str(tmp_path / "ix"))
    assert code == 0
    assert f"16 pictures in {tmp_path / 'ix'}, 1 could not be read" in out
    assert "left out" in err
    assert "damaged.png: cannot identify image file" in err
    assert sorted(p.name for p in (tmp_path / "ix").iterdir()) == [
        "index.json", "index.safetensors",
    ]  # fmt: skip
    code, out, _ = trialrun(*words, str(tmp_path / "ix"), "--json", "--batch", "5")
    assert json.loads(out)["pictures"] == 16
    again = PictureIndex.load(tmp_path / "ix")
    clip, prepare, _ = load_clip(place / "clip")
    with torch.no_grad():
        own = clip.encode_image(prepare(Image.open(again.root / again.names[3]))[None])[0]
    torch.testing.assert_close(again.features[3], own)


def test_query_writes_a_contact_sheet_without_the_picture_asked_with(trialrun, place, index):
    asked = place / "pictures" / "openmoji" / "3.png"
    code, out, _ = trialrun(
        "query", str(index), "a Twemoji drawing of *", "*", "--image", str(asked),
        "--mapper", str(place / "mapper.safetensors"), "--top", "15", "--json",
    )  # fmt: skip
    assert code == 0
    told = json.loads(out)
    first, second = told["queries"]
    assert (first["prompt"], second["prompt"]) == ("a Twemoji drawing of *", "*")
    names = [name for _, name in first["hits"]]
    assert len(names) == len(set(names)) == 15
    assert str(asked) not in names
    scores = [score for score, _ in first["hits"]]
    assert scores == sorted(scores, reverse=True)
    with Image.open(told["sheet"]) as sheet:
        assert sheet.format == "PNG"
        assert sheet.size[0] > 900
        assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 50


def test_query_by_words_alone_needs_no_picture(trialrun, index, tmp_path):
    code, out, _ = trialrun(
        "query", str(index), "a drawing of a fox", "--top", "3", "--out", str(tmp_path / "x.png")
    )
    assert code == 0
    assert out.splitlines()[0] == "a drawing of a fox"
    assert len(out.splitlines()) == 5
    assert (tmp_path / "x.png").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a drawing of", "--image", "PIC", "--mapper", "MAP"], "holds no '*', but 1 image came"),
        (["a * of *", "--image", "PIC", "--mapper", "MAP"], "holds 2 '*', but 1 image came"),
        (["a *"], "holds 1 '*', but 0 images came"),
        (["a *", "--image", "PIC"], "a picture in a sentence needs a mapper"),
        (["a *", "--image", "PIC", "--mapper", "FOREIGN"], "it belongs to another model"),
        (["a *", "--image", "gone.png", "--mapper", "MAP"], "gone.png cannot be read as a picture"),
        (["a *", "--image", "PIC", "--mapper", "gone.safetensors"], "is not a file: name a mapper"),
        (["a fox", "--model", "OTHER"], "the index was made with other weights"),
        (["a fox", "--out", "hits.jpg"], "must be a .png file"),
        (["a fox", "--top", "0"], "--top must be at least 1"),
        ([], "give at least one sentence"),
    ],
)
def test_what_cannot_be_asked_ends_in_one_sentence(trialrun, place, index, words, said):
    names = {
        "PIC": place / "pictures" / "openmoji" / "3.png",
        "MAP": place / "mapper.safetensors",
        "FOREIGN": place / "foreign.safetensors",
        "OTHER": place / "other",
    }
    code, out, err = trialrun("query", str(index), *(str(names.get(w, w)) for w in words))
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["index", "nowhere"], "nowhere is not a folder"),
        (["index", "EMPTY"], "holds no picture: expected files that end in .png"),
        (["index", "PICTURES"], "needs the name of its weights (--pretrained openai)"),
        (["index", "PICTURES", "--model", "EMPTY"], "holds no CLIP"),
        (["query", "EMPTY", "a fox"], "holds no index: make one with trialrun index"),
    ],
)
def test_what_cannot_be_indexed_ends_in_one_sentence(trialrun, place, tmp_path, words, said):
    names = {"EMPTY": tmp_path, "PICTURES": place / "pictures"}
    code, out, err = trialrun(*(str(names.get(w, w)) for w in words))
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["index", "PICTURES", "--model", "CLIP", "--batch", "0"], "--batch must be at least 1"),
        (["index", "PICTURES", "--model", "CLIP", "--batch", "-3"], "--batch must be at least 1"),
        (["index", "PICTURES", "--model", "CLIP", "--device", "foo"], "device must be cpu or cuda"),
        (["index", "PICTURES", "--model", "CLIP", "--out", "FILE"], "is a file: name a folder"),
        (["query", "INDEX", "a fox", "--device", "foo"], "device must be cpu or cuda"),
        (["query", "INDEX", "a *", "--out", "x.jpg", "--mapper", "gone"], "must be a .png file"),
        (
            ["query", "INDEX", "a *", "--image", "x", "--mapper", "JUNK"],
            "cannot be read as weights",
        ),
    ],
)
def test_wrong_options_end_in_one_sentence(trialrun, place, index, tmp_path, words, said):
    (tmp_path / "file").write_text("x")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    names = {"PICTURES": place / "pictures", "CLIP": place / "clip", "INDEX": index,
             "FILE": tmp_path / "file", "JUNK": tmp_path / "junk.pt"}  # fmt: skip
    code, out, err = trialrun(*(str(names.get(w, w)) for w in words))
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1


def some(folder, *names):
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        Image.new("RGB", (8, 8), (40 * i, 200, 9)).save(folder / name, format="PNG")
    return folder


def test_names_of_every_kind(trialrun, place, tmp_path):
    """Line breaks are drawn as spaces; a name that is not UTF-8 is left out and named."""
    folder = some(tmp_path / "odd", "a.png", "b\nc.png", "gone.png")
    some(folder, os.fsdecode(b"\xff.png"))
    index = tmp_path / "odd.index"
    code, out, err = trialrun("index", str(folder), "--model", str(place / "clip"))
    assert code == 0
    assert "3 pictures" in out
    assert "xff.png: its name is not UTF-8" in err
    (folder / "gone.png").unlink()
    code, out, err = trialrun("query", str(index), "a\nfox", "--top", "3")
    assert (code, err) == (0, "")
    assert "gone.png" in out
    assert out.splitlines()[-1].startswith("contact sheet: ")


def test_an_index_that_cannot_be_written_leaves_the_old_one(index, tmp_path):
    held = PictureIndex.load(index)
    held.save(tmp_path / "ix")
    before = {path.name: path.read_bytes() for path in (tmp_path / "ix").iterdir()}
    bad = replace(held, names=("\udcff.png", *held.names[1:]), features=held.features + 1)
    with pytest.raises(UnicodeEncodeError):
        bad.save(tmp_path / "ix")
    assert {path.name: path.read_bytes() for path in (tmp_path / "ix").iterdir()} == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file: name a folder"):
        held.save(tmp_path / "file")


def test_sheets_and_indexes_are_not_pictures_of_the_folder(trialrun, place, tmp_path, monkeypatch):
    folder = some(tmp_path / "mine", "a.png", "b.png")
    monkeypatch.chdir(folder)
    clip = str(place / "clip")
    assert trialrun("index", ".", "--model", clip)[0] == 0
    assert not (folder / ".index").exists()
    assert (tmp_path / "mine.index" / "index.json").is_file()
    assert trialrun("index", ".", "--model", clip, "--out", "ix")[0] == 0
    assert trialrun("query", "ix", "a fox")[0] == 0
    assert trialrun("query", "ix", "a fox", "--out", "sheet.png")[0] == 0
    some(folder / "ix", "beside the index.png")
    assert [path.name for path in find_pictures(folder)] == ["a.png", "b.png"]


def test_links_out_of_the_folder_are_pictures_of_it(place, tmp_path):
    folder, other = some(tmp_path / "mine", "a.png"), some(tmp_path / "other", "b.png")
    (folder / "linked.png").symlink_to(other / "b.png")
    held = build_index(load_clip(place / "clip"), folder, model="m")
    assert held.names == ("a.png", "linked.png")


def test_a_file_of_weights_is_kept_by_its_full_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pt").write_text("x")
    assert kept_path("w.pt") == str(tmp_path / "w.pt")
    assert kept_path("openai") == "openai"
    assert kept_path(None) is None


def test_what_cannot_be_searched_is_refused(place, index, no_annotation_checks):
    held, loaded = PictureIndex.load(index), load_clip(place / "clip")
    for top in (0, -1, 1.5):
        with pytest.raises(ValueError, match="top must be at least 1 and a whole number"):
            held.search(torch.randn(64), top=top)
    with pytest.raises(UsageError, match="query must be finite"):
        held.search(torch.full((64,), torch.nan))
    with pytest.raises(ValueError, match="at least one sentence"):
        ask(held, loaded, [])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        build_index(loaded, place / "pictures", model="m", batch_size=0)
    assert [one.prompt for one in ask(held, loaded, "a drawing", top=2)] == ["a drawing"]


def test_search_is_the_plain_ordering_with_ties_by_name(tmp_path):
    rows = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    rows[100:200] = rows[7]  # a hundred and one equal pictures
    names = tuple(f"{i:03}.png" for i in range(300))
    held = PictureIndex(tmp_path, names, rows, "m", None, "")
    query = rows[7] + 0.01
    for top in (1, 5, 150, 300, 400):
        plain = ranking(cosine_scores(query[None], rows))[0]
        hits = held.search(query, top=top)
        assert [hit.path.name for hit in hits] == [names[i] for i in plain[:top]]
    fewer = held.search(query, top=300, without=[tmp_path / "007.png", tmp_path / "250.png"])
    assert len(fewer) == 298
    assert fewer[0].path.name == "100.png"


def test_a_damaged_index_is_told(index, tmp_path):
    for name in ("index.json", "index.safetensors"):
        (tmp_path / name).write_bytes((index / name).read_bytes())
    (tmp_path / "index.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match="holds a damaged index, make it anew"):
        PictureIndex.load(tmp_path)


def test_the_commands_load_no_torch_before_they_work():
    """Also not where the command line is asked for help."""
    code = (
        "import sys, trialrun.cli.index, trialrun.cli.query\n"
        "assert not {'torch', 'PIL', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_contact_sheet_grows_with_its_rows():
    cell = Image.new("RGB", (200, 50), "red")
    one = contact_sheet([("title", [cell], [(cell, "1")] * 3)], columns=4)
    more = contact_sheet([("title", [cell], [(cell, "1")] * 9)], columns=4)
    assert more.size[0] == one.size[0]
    assert more.size[1] > 2 * one.size[1] - 60
    marked = contact_sheet([("a\nb", [], [(cell, "x\ny"), (None, "2")])], columns=4)
    assert marked.size[1] < one.size[1] + 1


def test_the_lines_of_the_docs_run_as_pasted(place, tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    section = text[text.index("## representation · pic2word") :]
    block = section.split("```python\n", 1)[1].split("```", 1)[0]
    monkeypatch.chdir(some(tmp_path / "here", "dog.jpg", "cat.jpg"))
    some(tmp_path / "here" / "photos", "1.png", "2.png", "3.png")
    monkeypatch.setattr(pic2word, "load_clip", lambda *_: load_clip(place / "clip"))
    held = {}
    exec(compile(block, "docs/methods.md", "exec"), held)
    assert held["q"].shape == (64,)
    assert (tmp_path / "here" / "mapper.safetensors").is_file()


def test_hits_of_one_name_in_two_folders_are_told_apart():
    paths = [Path("a/1.png"), Path("b/1.png"), Path("b/2.png")]
    assert _names(paths) == ["a/1.png", "b/1.png", "2.png"]
