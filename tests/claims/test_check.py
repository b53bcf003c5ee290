import json
from dataclasses import replace

import pytest

from trialrun.claims import check, plan
from trialrun.claims.contract import On
from trialrun.claims.judge import HOLDS, NOT_TESTED
from trialrun.claims.records import read_records
from trialrun.core.errors import NotRunnable, UsageError


def test_a_check_measures_judges_and_records(on_trial, tmp_path):
    request = on_trial(record_to=(tmp_path / "kept.jsonl",))
    checked = check.run_check(request)
    (record,) = checked.records
    assert (record["verdict"], record["reason"]) == (HOLDS, "")
    assert record["seeds"] == [0, 1, 2, 3]
    assert len(record["arms"]["ours"]["points"]["value"]) == 4
    assert record["arms"]["ours"]["extra"]["twice"][0] == pytest.approx(
        2 * record["arms"]["ours"]["points"]["value"][0]
    )
    for path in (tmp_path / "kept.jsonl", checked.folder / "records.jsonl"):
        assert read_records(path) == ([record], [])


def test_two_runs_measure_the_same_numbers(on_trial):
    first, second = (check.run_check(on_trial()).records[0] for _ in range(2))
    assert first["arms"]["ours"]["points"] == second["arms"]["ours"]["points"]
    assert first["fingerprint"] == second["fingerprint"]


def test_the_smoke_budget_gives_no_verdict(on_trial):
    (record,) = check.run_check(on_trial(budget="smoke")).records
    assert record["verdict"] == NOT_TESTED
    assert "smoke" in record["reason"]


def test_seeds_can_be_chosen(on_trial):
    (record,) = check.run_check(on_trial(seeds=2)).records
    assert record["seeds"] == [0, 1]
    (fresh,) = check.run_check(on_trial(seeds=2, first_seed=50)).records
    assert fresh["seeds"] == [50, 51]
    assert fresh["arms"]["ours"]["points"] != record["arms"]["ours"]["points"]


def test_a_preparation_runs_once_a_seed_and_only_for_the_arms_that_need_it(on_trial):
    folder = check.run_check(on_trial(claims=("shared",))).folder
    names = [line.split()[0] for line in (folder / "log").read_text().splitlines()]
    assert names.count("model") == 4
    assert names.count("reader") == 12
    assert names.count("control") == 4


def test_a_lost_preparation_loses_its_claim_and_no_other(on_trial):
    checked = check.run_check(on_trial(claims=("lost", "better")))
    lost, better = checked.records
    assert lost["verdict"] == NOT_TESTED
    assert "no model today" in lost["reason"]
    assert better["verdict"] == HOLDS


def test_progress_counts_every_unit_once(on_trial):
    seen = []
    check.run_check(on_trial(), on_progress=seen.append)
    assert [p.done for p in seen] == list(range(17))
    assert {p.total for p in seen} == {16}


def test_material_goes_only_to_the_claims_that_take_it(on_trial, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("a,b\n1,2\n")
    on = On("table", str(table), {"target": "b"})
    (record,) = check.run_check(on_trial(claims=(), on=on)).records
    assert record["claim"] == "better"
    assert record["on"]["name"] == "t.csv"
    assert str(tmp_path) not in json.dumps(record)
    with pytest.raises(UsageError, match="checks better on a table"):
        check.run_check(on_trial(claims=("shared",), on=on))
    with pytest.raises(UsageError, match="does not take a symbols"):
        check.run_check(on_trial(on=replace(on, kind="symbols")))


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"budget": "huge"}, UsageError, "no budget 'huge': choose one of smoke, quick"),
        ({"budget": "paper"}, NotRunnable, "no budget 'paper'"),
        ({"seeds": 0}, UsageError, "--seeds must be at least 1"),
        ({"first_seed": -1}, UsageError, "--first-seed must be at least 0"),
        ({"claims": ("nix",)}, UsageError, "no claim 'nix': choose one of better"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_written(
    on_trial, tmp_path, more, error, words
):
    with pytest.raises(error, match=words):
        check.run_check(on_trial(**more))
    assert not (tmp_path / "runs").exists()


def test_a_gpu_budget_without_a_gpu_says_so():
    import torch

    if torch.cuda.is_available():
        assert plan.choose_device("gpu") == "cuda"
    else:
        with pytest.raises(NotRunnable, match="needs a CUDA GPU"):
            plan.choose_device("gpu")
