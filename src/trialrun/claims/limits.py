"""Time and memory limits for one unit of work, inside the process that runs it.

A watching thread samples the process. When a limit is passed it first raises in the thread that
works, which is enough for Python code; a call that does not come back to Python within the grace
period ends the worker process, and the engine goes on with a new one.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_SECONDS = 0.02
_PAGE = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")


class LimitExceeded(Exception):
    """Raised in a unit that ran too long or took too much memory."""


def resident_bytes() -> int:
    """Return the resident memory of this process; its peak where the current value is unknown."""
    try:
        return int(_STATM.read_text(encoding="ascii").split()[1]) * _PAGE
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


@dataclass
class Usage:
    """What a unit used: wall-clock seconds and the growth of resident memory, in bytes."""

    seconds: float = 0.0
    peak_bytes: int = 0


def _raise_in(thread_id: int, error: type[BaseException]) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(error))


class _Watch(threading.Thread):
    def __init__(self, seconds: float, limit_bytes: int, usage: Usage) -> None:
        super().__init__(daemon=True, name="unit-watch")
        self.seconds, self.limit_bytes, self.usage = seconds, limit_bytes, usage
        self.worker = threading.get_ident()
        self.base = resident_bytes()
        self.began = time.monotonic()
        self.done = threading.Event()
        self.reason = ""

    def exceeded(self) -> str:
        self.usage.peak_bytes = max(self.usage.peak_bytes, resident_bytes() - self.base)
        if time.monotonic() - self.began > self.seconds:
            return (
                f"the unit ran longer than its limit of {self.seconds:g} s: "
                "raise it with --unit-seconds"
            )
        if self.usage.peak_bytes > self.limit_bytes:
            return (
                f"the unit took more memory than its limit of {self.limit_bytes / 1e6:.0f} MB: "
                "raise it with --unit-megabytes"
            )
        return ""

    def run(self) -> None:
        while not self.reason and not self.done.wait(_SAMPLE_SECONDS):
            self.reason = self.exceeded()
        if self.reason:
            _raise_in(self.worker, LimitExceeded)


@contextmanager
def limited(
    seconds: float,
    megabytes: int,
    *,
    on_stuck: Callable[[str], None] | None = None,
    grace: float = 5.0,
) -> Iterator[Usage]:
    """Run the body under limits and yield its `Usage`, complete after the body has ended.

    Parameters
    ----------
    seconds : float
        Wall-clock limit.
    megabytes : int
        Limit on the growth of resident memory, in units of 10**6 bytes.
    on_stuck : callable or None
        Called in the watching thread with the reason when the body has not stopped ``grace``
        seconds after a limit was passed. None leaves it alone.

    Raises
    ------
    LimitExceeded
        In the body, once a limit is passed.
    """
    usage = Usage()
    watch = _Watch(seconds, megabytes * 10**6, usage)
    stuck = threading.Thread(target=_await_end, args=(watch, on_stuck, grace), daemon=True)
    watch.start()
    if on_stuck is not None:
        stuck.start()
    try:
        yield usage
    except LimitExceeded:
        raise LimitExceeded(watch.reason) from None
    finally:
        watch.done.set()
        watch.join()
        usage.seconds = time.monotonic() - watch.began
        usage.peak_bytes = max(usage.peak_bytes, resident_bytes() - watch.base)


def _await_end(watch: _Watch, on_stuck: Callable[[str], None] | None, grace: float) -> None:
    watch.join()
    if watch.reason and not watch.done.wait(grace) and on_stuck is not None:
        on_stuck(watch.reason)
