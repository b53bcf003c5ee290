"""The Ray engine on a real local cluster: two nodes of one worker each, on loopback."""

import os
from pathlib import Path

import pytest

from trialrun.claims import check
from trialrun.claims.engine import run_orders
from trialrun.claims.units import Order, Unit
from trialrun.core.errors import MissingExtra

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="the cluster extra is not installed")
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20},
    )
    nodes.add_node(num_cpus=1, object_store_memory=80 << 20)
    ray.init(address=nodes.address, log_to_driver=False)
    yield ray
    ray.shutdown()
    nodes.shutdown()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def test_units_run_on_both_nodes_and_measure_what_the_local_engine_measures(
    cluster, on_trial, tmp_path
):
    assert len([node for node in cluster.nodes() if node["Alive"]]) == 2
    there = check.run_check(on_trial(engine="ray", jobs=None))
    here = check.run_check(on_trial(engine="local"))
    assert there.records[0]["engine"] == "ray"
    assert there.records[0]["verdict"] == here.records[0]["verdict"] == "holds"
    for arm in ("ours", "plain", "rival", "control"):
        points = [r.records[0]["arms"][arm]["points"] for r in (there, here)]
        assert points[0] == points[1]
    pids = {line.split()[2] for line in (there.folder / "log").read_text().splitlines()}
    assert len(pids) == 2
    assert str(os.getpid()) not in pids


def test_failures_and_limits_come_back_from_ray(cluster, tmp_path):
    (tmp_path / "units").mkdir()
    module = "tests.claims.fake_trial"
    orders = [
        Order(Unit("odd", "crashes", 0), module, "quick", tmp_path),
        Order(Unit("odd", "never_ends", 0), module, "tight", tmp_path),
        Order(Unit("odd", "threads", 0), module, "quick", tmp_path),
    ]
    done = {o.key: o for o in run_orders(orders, engine="ray")}
    assert done["odd--crashes--0"].fault == "crash"
    assert done["odd--never_ends--0"].fault == "limit"
    assert done["odd--threads--0"].points == {"value": 1.0}


def test_a_dead_ray_worker_costs_only_its_own_unit(cluster, tmp_path):
    (tmp_path / "units").mkdir()
    module = "tests.claims.fake_trial"
    orders = [Order(Unit("better", "ours", seed), module, "quick", tmp_path) for seed in range(4)]
    orders.append(Order(Unit("odd", "dies", 0), module, "quick", tmp_path))
    done = {o.key: o for o in run_orders(orders, engine="ray")}
    assert "ended from outside" in done["odd--dies--0"].error
    assert [key for key, outcome in done.items() if outcome.error] == ["odd--dies--0"]
    assert len(done) == 5


def test_without_ray_the_sentence_names_the_extra(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    order = Order(Unit("better", "ours", 0), "tests.claims.fake_trial", "quick", tmp_path)
    with pytest.raises(MissingExtra, match=r"trialrun\[cluster\]"):
        list(run_orders([order], engine="ray"))
