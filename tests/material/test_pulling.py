import hashlib
import io
import subprocess
import tarfile
from dataclasses import replace

import pytest

from trialrun.core.errors import NotRunnable, UsageError
from trialrun.material import packs, pulling


@pytest.fixture
def tarball(tmp_path):
    path = tmp_path / "toy-1.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("package/icons.json", "package/../../../escaped.json"):
            entry = tarfile.TarInfo(name)
            entry.size = 2
            tar.addfile(entry, io.BytesIO(b"{}"))
        link = tarfile.TarInfo("package/link.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path


@pytest.fixture
def toy(tmp_path, monkeypatch, tarball):
    """Put a pack on the list whose npm is a copy from the disk."""
    total = hashlib.sha256(tarball.read_bytes()).hexdigest()
    members = ("package/icons.json",)
    pack = packs.Pack("toy", "a toy", "MIT", "npm", "@toys/toy", "1", total, members, 0.1)
    monkeypatch.setitem(packs.PACKS, "toy", pack)
    monkeypatch.setenv("TRIALRUN_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(pulling.shutil, "which", lambda _: "npm")
    calls = []

    def client(command, *, cwd, **_):
        calls.append(command)
        (cwd / tarball.name).write_bytes(tarball.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(pulling.subprocess, "run", client)
    return replace(pack), calls


def test_a_tarball_is_pulled_once_and_only_its_named_members(toy):
    _, calls = toy
    with pytest.raises(NotRunnable, match="run trialrun data pull toy"):
        pulling.require_pack("toy")
    folder = pulling.pull_pack("toy")
    assert pulling.pull_pack("toy") == folder == pulling.require_pack("toy")
    assert sorted(p.name for p in folder.iterdir()) == ["PACK", "icons.json"]
    assert calls == [["npm", "pack", "--silent", "--ignore-scripts", "@toys/toy@1"]]


def test_another_tarball_than_the_pinned_one_is_not_used(toy, monkeypatch, tmp_path):
    monkeypatch.setitem(packs.PACKS, "toy", replace(toy[0], sha256="0" * 64))
    with pytest.raises(NotRunnable, match="expected 0000000000000000"):
        pulling.pull_pack("toy")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_npm_one_sentence_says_what_to_install(toy, monkeypatch):
    monkeypatch.setattr(pulling.shutil, "which", lambda _: None)
    with pytest.raises(NotRunnable, match=r"npm is needed to fetch @toys/toy@1 .* install Node.js"):
        pulling.pull_pack("toy")


def test_a_failing_npm_is_quoted(toy, monkeypatch):
    def client(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "npm error 404 Not Found")

    monkeypatch.setattr(pulling.subprocess, "run", client)
    with pytest.raises(NotRunnable, match=r"could not fetch @toys/toy@1 \(npm error 404"):
        pulling.pull_pack("toy")


def test_a_member_lands_in_the_folder_whatever_path_it_claims(tarball, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    member = "package/../../../escaped.json"
    assert pulling.unpack_tarball(tarball, (member,), target) == [target / "escaped.json"]


@pytest.mark.parametrize("member", ["package/gone.json", "package/link.json"])
def test_a_member_that_is_no_file_is_named(tarball, tmp_path, member):
    with pytest.raises(NotRunnable, match=r"toy-1.tgz holds no file"):
        pulling.unpack_tarball(tarball, (member,), tmp_path)


def test_a_cut_tarball_is_refused(tarball, tmp_path):
    tarball.write_bytes(tarball.read_bytes()[:40])
    with pytest.raises(NotRunnable, match="not a whole tarball"):
        pulling.unpack_tarball(tarball, ("package/icons.json",), tmp_path)


def test_picture_packs_come_with_their_extra(monkeypatch):
    monkeypatch.setattr(packs, "is_present", lambda name: False)
    with pytest.raises(NotRunnable, match=r"pip install 'trialrun\[pictures\]'"):
        pulling.pull_pack("glyphs")
    with pytest.raises(UsageError, match="no pack is called 'imagenet'"):
        pulling.pull_pack("imagenet")
