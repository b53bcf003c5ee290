"""Differences are found in every kind of value."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conformance.harness import Broken
from tests.conformance.itself import toys
from tests.conformance.itself.cards import CLAIM
from tests.conformance.values import assert_close, difference


def test_differences_are_found_in_every_kind_of_container():
    x = torch.ones(2)
    for a, b in [
        ({"a": [x]}, {"a": [x + 1]}),
        (x, x.double()),
        (np.array([0.0]), np.array([-0.0])),
        ((x, 1), (x, 2)),
        (toys.Gain(seed=0), toys.Gain(seed=1)),
        (np.random.default_rng(0), np.random.default_rng(1)),
        (torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)),
        ([x], [x, x]),
        (np.array(["a"], dtype=object), np.array(["b"], dtype=object)),
        (CLAIM, replace(CLAIM, id="other")),
    ]:
        assert difference(a, b), (a, b)
    assert not difference({"a": (x, float("nan"))}, {"a": (x.clone(), float("nan"))})


def test_close_values_pass_and_shapes_do_not_broadcast():
    assert_close(torch.ones(2), torch.ones(2) + 1e-7, "ones")
    with pytest.raises(Broken):
        assert_close(np.ones((2, 1)), np.ones(2), "shapes")
