"""Watch a stretch of code for what it must not do: write files, use the network, draw global
random numbers.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import config

from tests.conformance.harness import Broken

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.utime")
_MOVES = ("os.rename", "os.link", "os.symlink")
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind")
_PROCESSES = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec")
_HARMLESS = (os.devnull, "/dev/shm", "/proc/")


class NetworkUsed(RuntimeError):
    """Raised in code that reaches for the network while it is watched."""


@dataclass
class _Scope:
    folder: Path | None
    seen: list[str] = field(default_factory=list)

    def may_write(self, path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # a file descriptor: it was seen when it was opened
        text = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 (resolve() would recurse)
        if text.startswith(_HARMLESS) or "__pycache__" in text:
            return True
        return self.folder is not None and text.startswith(str(self.folder))

    def note(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            writing = any(c in (mode or "") for c in "wax+") or (flags or 0) & _WRITING
            if writing and not self.may_write(path):
                self.seen.append(f"opened {path} for writing")
        elif event in _CHANGES and not self.may_write(args[0]):
            self.seen.append(f"{event} {args[0]}")
        elif event in _MOVES and not all(map(self.may_write, args[:2])):
            self.seen.append(f"{event} {args[0]} {args[1]}")
        elif event in _PROCESSES:
            self.seen.append(f"started a process ({event} {args[0]})")
        elif event in _NETWORK:
            self.seen.append(f"used the network ({event})")
            raise NetworkUsed("no network here")


_active: list[_Scope] = []
_installed: list[bool] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _active:
        _active[-1].note(event, args)


@contextmanager
def no_side_effects(what: str, folder: Path | None = None) -> Iterator[None]:
    """Raise `Broken` if the body writes outside ``folder``, starts a process or uses the network.

    An audit hook cannot be removed, so one is installed for good and this switches it on.
    """
    if not _installed:
        sys.addaudithook(_hook)
        _installed.append(True)
    scope = _Scope(None if folder is None else folder.resolve())
    _active.append(scope)
    try:
        yield
    except NetworkUsed as error:
        raise Broken(f"{what} used the network") from error
    finally:
        _active.remove(scope)
    if scope.seen:
        raise Broken(f"{what} {scope.seen[0]}; it may write only to the folder it is given")


def _states() -> dict[str, Any]:
    legacy = np.random.get_state(legacy=False)
    states = {"random": random.getstate(), "numpy.random": str(legacy)}
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = bytes(torch.get_rng_state().numpy())
    return states


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)


@contextmanager
def annotations_unchecked() -> Iterator[None]:
    """Switch the test run's annotation checks off: a user has none and must get our sentence."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", before)


@contextmanager
def global_states_kept(seed: int) -> Iterator[None]:
    """Seed the global generators for the body and put them back as they were."""
    kept, kept_numpy = random.getstate(), np.random.get_state()
    torch = sys.modules.get("torch")
    kept_torch = torch.get_rng_state() if torch is not None else None
    try:
        _seed_all(seed)
        with annotations_unchecked():  # the checker picks items to look at by `random`
            yield
    finally:
        random.setstate(kept)
        np.random.set_state(kept_numpy)
        if torch is not None:
            torch.set_rng_state(kept_torch)


@contextmanager
def global_states_watched(what: str, seed: int) -> Iterator[None]:
    """Seed the global generators with ``seed``, run the body, and raise if it moved one of them.

    Different seeds in two runs that must agree also show a draw whose state was put back.
    """
    with global_states_kept(seed):
        before = _states()
        yield
        after = _states()
    moved = [name for name in before if before[name] != after[name]]
    if moved:
        raise Broken(f"{what} moved the global random state of {', '.join(moved)}")
