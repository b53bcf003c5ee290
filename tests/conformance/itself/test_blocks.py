"""Checks of blocks, on a sound toy and on toys broken in one way each."""

import numpy as np
import pytest

from tests.conformance import block_checks
from tests.conformance.harness import Broken, NotApplicable
from tests.conformance.itself import toys


def test_a_sound_block_passes(tmp_path):
    sound = toys.block()
    block_checks.keeps_dtype(sound)
    block_checks.one_is_a_row_of_many(sound)
    block_checks.eval_is_deterministic(sound)
    block_checks.gradients_are_finite(sound)
    block_checks.state_round_trip(sound, tmp_path)


@pytest.mark.parametrize(
    ("check", "kind", "said"),
    [
        (block_checks.keeps_dtype, toys.WideningGain, "made float64 of float32"),
        (block_checks.one_is_a_row_of_many, toys.BatchCentredGain, "row 0"),
        (block_checks.eval_is_deterministic, toys.NoisyGain, "from call to call"),
        (block_checks.gradients_are_finite, toys.IdleGain, "idle gets no gradient"),
        (block_checks.gradients_are_finite, toys.RootGain, "not finite"),
    ],
)
def test_a_broken_block_is_found(check, kind, said):
    with pytest.raises(Broken, match=said):
        check(toys.block(kind))


def test_state_kept_outside_the_state_is_found(tmp_path):
    with pytest.raises(Broken, match="outside its state"):
        block_checks.state_round_trip(toys.block(toys.SecretGain), tmp_path)


def test_a_block_without_floats_does_not_count_as_checked():
    counter = toys.block(make=lambda seed: object(), inputs=lambda seed: {"x": np.arange(3)})
    with pytest.raises(NotApplicable):
        block_checks.keeps_dtype(counter)


@pytest.mark.slow
def test_a_block_that_compiles_to_something_else_is_found():
    block_checks.compiles(toys.block())
    with pytest.raises(Broken, match="compiled"):
        block_checks.compiles(toys.block(toys.OtherwiseCompiled))
