"""Run code that uses timm or open_clip where torchvision cannot be had.

Both import torchvision for picture transforms only, and torchvision loads only beside the
very build of torch that it was compiled for; there is none for this suite's CPU build
(2026-11-21). So tests of real backbones run in a process of their own in which the name
``torchvision`` is an empty module: the networks, which never touch it, are the real ones.
"""

import importlib.abc
import importlib.machinery
import subprocess
import sys
import types
from pathlib import Path
from typing import ClassVar


class _Empty(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _StandIn(types.ModuleType):
    __path__: ClassVar[list[str]] = []
    __version__ = "0.0"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, _Empty(name, (), {}))
        return getattr(self, name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return _StandIn(spec.name)

    def exec_module(self, module):
        pass


def install() -> None:
    """Give this process an empty ``torchvision``; never in the test process itself."""
    sys.meta_path.insert(0, _Finder())


def run_with_backbones(code: str, *, timeout: float = 240.0) -> str:
    """Run ``code`` in a fresh process that can import timm and open_clip; return what it prints."""
    root = Path(__file__).parents[1]
    start = (
        f"import sys; sys.path[:0] = [{str(root)!r}, {str(root / 'src')!r}]\n"
        "from tests.torchvision_stand_in import install; install()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", start + code], capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
