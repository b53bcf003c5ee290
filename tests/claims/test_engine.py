import os
import warnings

import pytest

from trialrun.claims import engine
from trialrun.claims.engine import run_orders
from trialrun.claims.units import Order, Unit, failed
from trialrun.core.errors import UsageError

MODULE = "tests.claims.fake_trial"


@pytest.fixture
def order(tmp_path):
    (tmp_path / "units").mkdir()

    def make(arm, *, claim="odd", seed=0, budget="quick"):
        return Order(Unit(claim, arm, seed), MODULE, budget, tmp_path)

    return make


def outcomes(*orders, **more):
    return {o.key: o for o in run_orders(orders, jobs=2, **more)}


def test_a_worker_has_one_torch_thread(order):
    (done,) = outcomes(order("threads")).values()
    assert done.points == {"value": 1.0}


def test_a_unit_over_its_time_is_stopped_and_the_others_finish(order):
    done = outcomes(order("never_ends", budget="tight"), order("ours", claim="better"))
    assert "ran longer than its limit of 0.5 s" in done["odd--never_ends--0"].error
    assert done["odd--never_ends--0"].fault == "limit"
    assert not done["better--ours--0"].error


def test_a_unit_that_does_not_come_back_from_a_call_is_ended_with_its_worker(order):
    done = outcomes(order("stuck_in_c", budget="tight"), order("ours", claim="better"))
    assert "ran longer than its limit" in done["odd--stuck_in_c--0"].error
    assert not done["better--ours--0"].error


def test_a_unit_over_its_memory_is_stopped(order):
    (done,) = outcomes(order("hoards", budget="tight")).values()
    assert "more memory than its limit of 120 MB" in done.error or "ran longer" in done.error
    assert done.fault == "limit"


def test_a_worker_that_dies_costs_only_its_own_unit(order):
    bystanders = [order("ours", claim="better", seed=s, budget="full") for s in range(4)]
    done = outcomes(order("dies"), *bystanders, order("dies", seed=1))
    assert "ended from outside" in done["odd--dies--0"].error
    assert {k for k, o in done.items() if o.error} == {"odd--dies--0", "odd--dies--1"}
    assert len(done) == 6


@pytest.mark.parametrize(
    ("arm", "fault", "words"),
    [
        ("crashes", "crash", "ZeroDivisionError"),
        ("misused", "usage", "no column y"),
        ("cannot", "not runnable", "trialrun data pull"),
        ("not_finite", "crash", "not finite"),
    ],
)
def test_failures_come_back_sorted_by_whose_they_are(order, arm, fault, words):
    (done,) = outcomes(order(arm)).values()
    assert (done.fault, words in done.error) == (fault, True)


def test_a_finished_unit_is_read_and_not_run_again(order, tmp_path):
    first = outcomes(order("ours", claim="better"))
    again = outcomes(order("ours", claim="better"))
    assert first == again
    assert len((tmp_path / "log").read_text().splitlines()) == 1


@pytest.mark.parametrize("jobs", [1, 2])
def test_units_run_in_other_processes(order, tmp_path, jobs):
    orders = [order("ours", claim="better", seed=s) for s in range(3)]
    assert len(list(run_orders(orders, jobs=jobs))) == 3
    pids = {int(line.split()[2]) for line in (tmp_path / "log").read_text().splitlines()}
    assert os.getpid() not in pids


def test_a_worker_that_does_not_see_the_run_folder_says_so(tmp_path):
    lost = Order(Unit("better", "ours", 0), MODULE, "quick", tmp_path / "elsewhere")
    (done,) = outcomes(lost).values()
    assert "does not see the run folder" in done.error


def test_a_worker_that_is_replaced_is_no_warning_to_the_user(order, monkeypatch, recwarn):
    def pool(**_):
        warnings.warn("A worker stopped while some jobs were given to the executor.", stacklevel=2)
        return lambda calls: (call(*args, **kwargs) for call, args, kwargs in calls)

    monkeypatch.setattr(engine, "Parallel", pool)
    monkeypatch.setattr(engine, "run_unit", lambda order: failed(order, "not run", "limit"))
    assert list(outcomes(order("ours"))) == ["odd--ours--0"]
    assert not [warning for warning in recwarn if "worker stopped" in str(warning.message)]


def test_an_unknown_engine_and_no_jobs_are_refused(order):
    with pytest.raises(UsageError, match="engine must be one of local, ray"):
        list(run_orders([order("ours", claim="better")], engine="dask"))
    with pytest.raises(UsageError, match="--jobs must be at least 1"):
        list(run_orders([order("ours", claim="better")], jobs=0))
