"""Start-up times and the engine's cost per unit.

Run with ``python benchmarks/bench_house.py``. The command line is timed as a whole process beside a
bare interpreter; the engine by two hundred units that do nothing.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from _bench import emit, figure
from trialrun.claims.engine import run_orders
from trialrun.claims.units import Order, Unit

ROOT = Path(__file__).parents[1]
UNITS = 200


def whole_process(*words: str, repeats: int = 7) -> float:
    """Return the median wall-clock seconds of a fresh interpreter with these arguments."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def cost_per_unit() -> float:
    """Return milliseconds per unit that does nothing, once the workers are up."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "units").mkdir()
        order = partial(Order, module="tests.claims.fake_trial", budget="quick", folder=folder)
        list(run_orders([order(Unit("better", "plain", 10**6 + n)) for n in range(4)], jobs=2))
        began = time.perf_counter()
        list(run_orders([order(Unit("better", "ours", n)) for n in range(UNITS)], jobs=2))
        return (time.perf_counter() - began) / UNITS * 1000


def main() -> None:
    """Measure and print."""
    sys.path.insert(0, str(ROOT))
    bare = whole_process("-c", "pass")
    emit(
        [
            figure("bare interpreter", bare, "seconds"),
            figure("import trialrun", whole_process("-c", "import trialrun"), "s", at_most=0.3),
            figure("trialrun list", whole_process("-m", "trialrun", "list"), "s", at_most=0.3),
            figure("engine, one unit that does nothing", cost_per_unit(), "ms", at_most=50),
        ],
        limit="start-up is bound by the interpreter and cyclopts; a unit by two small files "
        "written and flushed",
    )


if __name__ == "__main__":
    main()
