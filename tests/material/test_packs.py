import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest

from trialrun.core.errors import MissingExtra, NotRunnable, UsageError
from trialrun.material import packs


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "toy-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("toy/data.txt", "numbers")
        zipped.writestr("toy/__init__.py", "raise SystemExit")
    return path


@pytest.fixture
def toy(tmp_path, monkeypatch, wheel):
    """Put a pack on the list whose package client is a copy from the disk."""
    total = hashlib.sha256(wheel.read_bytes()).hexdigest()
    pack = packs.Pack("toy", "a toy", "MIT", "pull", "toy", "1", total, ("toy/data.txt",), 0.1)
    monkeypatch.setitem(packs.PACKS, "toy", pack)
    monkeypatch.setenv("TRIALRUN_DATA", str(tmp_path / "cache"))

    def client(command, **_):
        target = command[command.index("--dest") + 1]
        (packs.Path(target) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packs.subprocess, "run", client)
    return pack


def test_a_pull_leaves_only_the_named_members(toy):
    with pytest.raises(NotRunnable, match="run trialrun data pull toy"):
        packs.require_pack("toy")
    lines = []
    folder = packs.pull_pack("toy", say=lines.append)
    assert sorted(p.name for p in folder.iterdir()) == ["PACK", "data.txt"]
    assert packs.require_pack("toy") == folder
    assert "MIT" in lines[0]


def test_a_second_pull_fetches_nothing(toy, monkeypatch):
    packs.pull_pack("toy")
    monkeypatch.setattr(packs, "_download", lambda *_: pytest.fail("fetched again"))
    packs.pull_pack("toy")


def test_another_file_than_the_pinned_one_is_not_used(toy, monkeypatch, tmp_path):
    monkeypatch.setitem(packs.PACKS, "toy", replace(toy, sha256="0" * 64))
    with pytest.raises(NotRunnable, match="expected 0000000000000000"):
        packs.pull_pack("toy")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_client_that_fails_is_quoted_and_leaves_nothing(toy, monkeypatch, tmp_path):
    def broken(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: first\nERROR: no such version")

    monkeypatch.setattr(packs.subprocess, "run", broken)
    with pytest.raises(NotRunnable, match=r"toy==1 \(ERROR: no such version\)"):
        packs.pull_pack("toy")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_member_is_named(toy, monkeypatch):
    monkeypatch.setitem(packs.PACKS, "toy", replace(toy, members=("toy/gone.txt",)))
    with pytest.raises(NotRunnable, match=r"holds no toy/gone\.txt"):
        packs.pull_pack("toy")


def test_a_member_cannot_leave_the_folder(tmp_path):
    archive, target = tmp_path / "bad.zip", tmp_path / "target"
    target.mkdir()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("../../escaped.txt", "out")
    (path,) = packs.unpack_members(archive, ("../../escaped.txt",), target)
    assert path == target / "escaped.txt"


def test_an_unknown_pack_is_answered_with_the_list():
    with pytest.raises(UsageError, match="there are stdlib, ozone, smollm2"):
        packs.find_pack("imagenet")


def test_a_pack_of_an_extra_is_not_pulled(monkeypatch):
    monkeypatch.setattr(packs, "is_present", lambda name: False)
    with pytest.raises(NotRunnable, match=r"pip install 'trialrun\[data\]'"):
        packs.pull_pack("ozone")


def test_a_missing_converter_is_named_before_the_download(toy, monkeypatch):
    monkeypatch.setitem(packs.PACKS, "toy", replace(toy, members=("toy/model.gguf",)))
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(packs, "_download", lambda *_: pytest.fail("fetched"))
    with pytest.raises(
        MissingExtra, match=r"gguf is needed here .* pip install 'trialrun\[attention,data\]'"
    ):
        packs.pull_pack("toy")
