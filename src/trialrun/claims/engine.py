"""Run units in worker processes through joblib: loky here, Ray's backend on a cluster.

The engine knows nothing of claims. It hands out orders, yields outcomes as they come, and when a
worker dies it starts a new pool; the units in flight are tried again one by one, so that only the
guilty one is given up.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import BrokenProcessPool

from trialrun.claims.machine import usable_cores
from trialrun.claims.units import Order, Outcome, failed, read_outcome, run_unit
from trialrun.core.errors import NotRunnable, UsageError
from trialrun.core.extras import need

ENGINES = ("local", "ray")
_POLL_SECONDS = 0.2


@contextmanager
def _backend(engine: str, jobs: int) -> Iterator[None]:
    with ExitStack() as stack:
        if engine == "local":
            # loky replaces a worker whose memory has grown, and loses no unit by it.
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="A worker stopped while some jobs")
            stack.enter_context(
                parallel_config(backend="loky", n_jobs=max(2, jobs), inner_max_num_threads=1)
            )
        elif engine == "ray":
            ray = need("ray", extra="cluster")
            if not ray.is_initialized():
                # Joins the cluster named by RAY_ADDRESS; without one, starts a local one.
                ray.init(log_to_driver=False, configure_logging=False)
                stack.callback(ray.shutdown)
            need("ray.util.joblib", extra="cluster").register_ray()
            stack.enter_context(parallel_config(backend="ray", n_jobs=jobs))
        else:
            raise UsageError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
        yield


def default_jobs(engine: str) -> int:
    """Return how many workers to use when the user names no number."""
    if engine != "ray":
        return usable_cores()
    ray = need("ray", extra="cluster")
    if not ray.is_initialized():
        return -1
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def stop_workers() -> None:
    """End this process's loky workers at once, with whatever they are doing."""
    get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _one_round(orders: Sequence[Order], engine: str, jobs: int) -> Iterator[Outcome]:
    # One unit at a time: units are long and uneven, and a lost batch would lose them all.
    if engine == "ray":
        yield from _watched(orders, jobs)
        return
    with _backend(engine, jobs):
        # With one job joblib would run units in this process; they must not share its fate.
        ahead = 1 if jobs == 1 else "all"
        pool = Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch=ahead)
        yield from pool(delayed(run_unit)(order) for order in orders)


def _whole_round(orders: Sequence[Order], engine: str, jobs: int) -> list[Outcome]:
    with _backend(engine, jobs):
        pool = Parallel(batch_size=1, pre_dispatch="all")
        return pool(delayed(run_unit)(order) for order in orders)


def _watched(orders: Sequence[Order], jobs: int) -> Iterator[Outcome]:
    # Ray's backend returns everything at the end; finished units show in the run folder before.
    unseen = {order.unit.key: order for order in orders}
    with ThreadPoolExecutor(1) as thread:
        whole = thread.submit(_whole_round, orders, "ray", jobs)
        while not wait([whole], timeout=_POLL_SECONDS).done:
            for key, order in list(unseen.items()):
                outcome = read_outcome(order.result_path)
                if outcome is not None:
                    del unseen[key]
                    yield outcome
        for outcome in whole.result():
            if outcome.key in unseen:
                yield outcome


def _deaths(engine: str) -> tuple[type[BaseException], ...]:
    """Return the errors by which a backend says that a worker process has died."""
    if engine != "ray":
        return (BrokenProcessPool,)
    return (need("ray.exceptions", extra="cluster").RayError,)


def _blamed(orders: Sequence[Order]) -> dict[str, str]:
    """Return the keys of units that had begun and did not finish, with what their worker left."""
    found = {}
    for order in orders:
        left = read_outcome(order.started_path.with_suffix(".failed"))
        if left is not None or order.started_path.exists():
            found[order.unit.key] = left.error if left else ""
    return found


def run_orders(
    orders: Sequence[Order], *, engine: str = "local", jobs: int | None = None
) -> Iterator[Outcome]:
    """Run every order and yield its outcome, in the order in which they finish.

    Parameters
    ----------
    orders : sequence of Order
    engine : {"local", "ray"}
    jobs : int or None
        Number of worker processes; None takes one per usable core (local) or per CPU of the
        cluster (ray).

    Raises
    ------
    UsageError
        If the engine is unknown or ``jobs`` is below 1.
    MissingExtra
        If the engine is ``ray`` and Ray is not installed.
    """
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {jobs}")
    workers = jobs or default_jobs(engine)
    waiting = {o.unit.key: replace(o, parent=os.getpid()) for o in orders}
    suspects: list[str] = []
    while waiting:
        alone = [key for key in suspects if key in waiting][:1]
        now = [waiting[key] for key in alone or waiting]
        try:
            for outcome in _one_round(now, engine, workers):
                del waiting[outcome.key]
                yield outcome
        except _deaths(engine) as error:
            blamed = _blamed(now)
            if not blamed and alone:
                raise NotRunnable(
                    f"the {engine} workers died before they began a unit ({error}): "
                    "try --jobs 1, or look at the cluster's own logs"
                ) from error
            suspects = [*blamed, *(key for key in suspects if key in waiting)] or [*waiting]
            for outcome in _given_up(now, blamed, alone=bool(alone)):
                del waiting[outcome.key]
                yield outcome


def _given_up(orders: Sequence[Order], blamed: dict[str, str], *, alone: bool) -> Iterator[Outcome]:
    """Yield failures for units whose worker said why it ended, or died with no other unit near."""
    for order in orders:
        key = order.unit.key
        if key not in blamed:
            continue
        order.started_path.unlink(missing_ok=True)
        order.started_path.with_suffix(".failed").unlink(missing_ok=True)
        if blamed[key] or alone:
            words = blamed[key] or (
                "its worker process was ended from outside, most often for want of memory: "
                "use --jobs 1 or a smaller budget"
            )
            yield failed(order, words, "limit")
