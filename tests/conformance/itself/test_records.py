"""Checks of records and smoke runs, on sound and faulty ones."""

from types import SimpleNamespace

import pytest

from tests.conformance import record_checks
from tests.conformance.harness import Broken, Unwritten
from tests.conformance.itself.cards import CARD, CLAIM
from trialrun.claims.check import Checked
from trialrun.claims.judge import judge
from trialrun.claims.records import append_record, plain_judgement, sealed


def _record(**changes):
    values = {"ours": 5.0, "plain": 1.0, "rival": 2.0, "control": 1.0}
    arms = {
        name: {"points": {"value": [v + 0.1 * s for s in range(5)]}, "n": 10}
        for name, v in values.items()
    }
    judged = judge(CLAIM, {name: arm["points"] for name, arm in arms.items()})
    record = {
        "slug": "toys",
        "claim": "better",
        "budget": "full",
        "seeds": [0, 1, 2, 3, 4],
        "verdict": judged.verdict,
        "reason": "",
        "arms": arms,
        "judgement": plain_judgement(judged),
        "on": None,
        "model": None,
    }
    return sealed({**record, **changes})


def _on_file(tmp_path, **changes):
    path = tmp_path / "records.jsonl"
    append_record(path, _record(**changes))
    return path


def test_a_sound_record_passes(tmp_path):
    path = _on_file(tmp_path)
    record_checks.records_are_whole(path)
    record_checks.record_exists(path, CARD, CLAIM, "full")
    record_checks.record_fits_the_card(path, CARD, CLAIM, "full")
    record_checks.verdict_follows_from_the_values(path, CARD, CLAIM, "full")
    record_checks.control_fails(path, CARD, CLAIM)


def test_missing_records_are_still_to_be_written(tmp_path):
    path = tmp_path / "records.jsonl"
    with pytest.raises(Unwritten):
        record_checks.records_are_whole(path)
    with pytest.raises(Unwritten):
        record_checks.record_exists(_on_file(tmp_path), CARD, CLAIM, "quick")


def test_edited_and_torn_lines_are_found(tmp_path):
    path = _on_file(tmp_path)
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace("5.1", "9.1"), encoding="utf-8")
    with pytest.raises(Broken, match="checksum"):
        record_checks.records_are_whole(path)
    path.write_text(whole + whole[:40], encoding="utf-8")
    with pytest.raises(Broken, match="torn"):
        record_checks.records_are_whole(path)


def test_a_verdict_that_the_values_do_not_give_is_found(tmp_path):
    path = _on_file(tmp_path, verdict="does not hold")
    with pytest.raises(Broken, match="the values say 'holds'"):
        record_checks.verdict_follows_from_the_values(path, CARD, CLAIM, "full")


def test_a_control_that_holds_is_found(tmp_path):
    judgement = _record()["judgement"]
    judgement["control"]["word"] = "holds"
    path = _on_file(tmp_path, judgement=judgement)
    with pytest.raises(Broken, match="the check is broken"):
        record_checks.control_fails(path, CARD, CLAIM)


def test_a_record_of_other_arms_or_too_few_seeds_is_found(tmp_path):
    path = _on_file(tmp_path, seeds=[0, 1])
    with pytest.raises(Broken, match="2 seeds"):
        record_checks.record_fits_the_card(path, CARD, CLAIM, "full")
    path = _on_file(tmp_path, arms={"ours": {}})
    with pytest.raises(Broken, match="has arms"):
        record_checks.record_fits_the_card(path, CARD, CLAIM, "full")
    path = _on_file(tmp_path, verdict="not tested", reason="a unit failed")
    with pytest.raises(Broken, match="a unit failed"):
        record_checks.record_exists(path, CARD, CLAIM, "full")


def test_a_smoke_run_with_lost_units_or_strange_numbers_is_found(tmp_path):
    sound = _record(budget="smoke", verdict="not tested")
    record_checks.smoke_is_sound(CARD, Checked((sound,), tmp_path, ()))
    lost = SimpleNamespace(key="better--ours--0", error="out of luck")
    with pytest.raises(Broken, match="out of luck"):
        record_checks.smoke_is_sound(CARD, Checked((sound,), tmp_path, (lost,)))
    with pytest.raises(Broken, match="no record"):
        record_checks.smoke_is_sound(CARD, Checked((), tmp_path, ()))
    for points, n in [({"value": [None, 1.0]}, 10), ({"value": [1.0]}, 0), ({}, 10)]:
        arms = {**sound["arms"], "ours": {"points": points, "n": n}}
        with pytest.raises(Broken, match="better/ours"):
            record_checks.smoke_is_sound(CARD, Checked(({**sound, "arms": arms},), tmp_path, ()))


def test_a_record_of_other_code_is_found(tmp_path, monkeypatch):
    path = _on_file(tmp_path)
    monkeypatch.setattr(record_checks, "is_stale", lambda record: False)
    record_checks.record_is_fresh(path, CARD, CLAIM, "full")
    monkeypatch.setattr(record_checks, "is_stale", lambda record: True)
    with pytest.raises(Broken, match="stale"):
        record_checks.record_is_fresh(path, CARD, CLAIM, "full")
