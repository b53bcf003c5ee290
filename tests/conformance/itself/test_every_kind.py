"""Checks of every kind, on a sound toy and on toys broken in one way each."""

from dataclasses import replace

import numpy as np
import pytest

from tests.conformance import entry_checks
from tests.conformance.harness import Broken
from tests.conformance.itself import toy_patches, toys
from tests.conformance.itself.cards import CARD


@pytest.mark.parametrize("specimen", [toys.of(toys.centre), toys.block(), toy_patches.patch()])
@pytest.mark.parametrize(
    "check",
    [
        entry_checks.same_seed_same_bits,
        entry_checks.inputs_are_left_alone,
        entry_checks.no_file_and_no_network,
        entry_checks.bad_calls_are_given,
    ],
)
def test_sound_toys_pass_the_general_checks(specimen, check):
    check(specimen)


@pytest.mark.parametrize("function", [toys.with_global_numpy, toys.with_global_random_put_back])
def test_a_draw_from_a_global_generator_is_found(function):
    with pytest.raises(Broken, match=r"global random state|different output"):
        entry_checks.same_seed_same_bits(toys.of(function))


def test_changed_inputs_are_found():
    with pytest.raises(Broken, match="changed its inputs"):
        entry_checks.inputs_are_left_alone(toys.of(toys.centre_in_place))


def test_a_written_file_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Broken, match="for writing"):
        entry_checks.no_file_and_no_network(toys.of(toys.with_a_file))


def test_a_connection_is_found():
    specimen = toys.of(toys.with_the_network)
    calls = iter([toys.centre, toys.with_the_network])
    with pytest.raises(Broken, match="network"):
        entry_checks.no_file_and_no_network(
            replace(specimen, run=lambda inputs: next(calls)(inputs["x"]))
        )


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (("x must", lambda: None), "raised nothing"),
        (("x must", lambda: toys.centre(np.zeros(3))), ""),
        (("another", lambda: toys.centre(np.zeros(3))), "something else"),
        (("no", lambda: toys.centre(np.zeros(3))), "matches nearly anything"),
        (("bad", lambda: _raise(ValueError("bad"))), "too little"),
        (("buried", lambda: _raise(ValueError("a long story to begin with\nburied"))), "else"),
    ],
)
def test_a_bad_call_must_be_refused_in_a_clear_sentence(bad, said):
    specimen = toys.of(toys.centre, bad=(bad,))
    if not said:
        entry_checks.bad_call_is_refused(specimen, 0)
        return
    with pytest.raises(Broken, match=said):
        entry_checks.bad_call_is_refused(specimen, 0)


def test_another_error_than_value_error_passes_through():
    specimen = toys.of(toys.centre, bad=(("wrong type", lambda: _raise(TypeError("wrong type"))),))
    with pytest.raises(TypeError):
        entry_checks.bad_call_is_refused(specimen, 0)


def _raise(error):
    raise error


def test_an_invariance_that_does_not_hold_is_found():
    entry_checks.invariance_holds(toys.of(toys.centre), 0)
    false = (("doubling does not matter", lambda seed: (np.ones(3), 2 * np.ones(3))),)
    with pytest.raises(Broken, match="doubling"):
        entry_checks.invariance_holds(toys.of(toys.centre, invariances=false), 0)


def test_an_invariance_of_nothing_is_found():
    empty = (("of nothing at all", lambda seed: (np.ones(0), np.ones(0))),)
    with pytest.raises(Broken, match="nothing to compare"):
        entry_checks.invariance_holds(toys.of(toys.centre, invariances=empty), 0)


def test_round_trip_passes_safetensors_and_finds_pickles_and_lost_state(tmp_path):
    for name in ("sound", "pickled", "other"):
        (tmp_path / name).mkdir()
    sound = toys.block(save=toys.save_gain, load=toys.load_gain)
    entry_checks.round_trip(sound, tmp_path / "sound")
    with pytest.raises(Broken, match="pickle"):
        entry_checks.round_trip(replace(sound, save=toys.save_pickled), tmp_path / "pickled")
    with pytest.raises(Broken, match="different output"):
        entry_checks.round_trip(replace(sound, load=toys.load_other), tmp_path / "other")


def test_saving_outside_the_folder_is_found(tmp_path):
    def save(module, folder):
        toys.save_gain(module, folder)
        (folder.parent / "beside.json").write_text("{}", encoding="utf-8")

    with pytest.raises(Broken, match=r"beside\.json"):
        entry_checks.round_trip(toys.block(save=save, load=toys.load_gain), tmp_path)


@pytest.mark.parametrize("name", ["weights.pt", "weights.pkl", "archive.npz"])
def test_files_that_may_run_code_are_found(name, tmp_path):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(Broken, match="expected"):
        entry_checks.holds_no_pickle(tmp_path, "a toy")


def test_an_entry_outside_its_family_is_found():
    with pytest.raises(Broken, match="must lie under"):
        entry_checks.entry_lives_in_its_family(CARD, "trialrun.core.seeds:split")
    core = replace(CARD, family="core")
    entry_checks.entry_lives_in_its_family(core, "trialrun.core.seeds:split")
    with pytest.raises(Broken, match="comes from"):
        entry_checks.entry_lives_in_its_family(core, "trialrun.core.shapes:Sequence")
