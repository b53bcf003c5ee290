"""What the check of famnet compares, on made-up planes and labels."""

import numpy as np
import pytest
import torch

from trialrun.dossiers.famnet.claim import _likeness
from trialrun.dossiers.famnet.scores import other_organ
from trialrun.fewshot._famnet_volumes import support_slices


def test_a_plane_is_as_alike_to_its_negative_as_to_itself_and_not_to_another():
    a, b = np.random.default_rng(0).normal(size=(2, 64, 64))
    same, turned, other = _likeness(a, a), _likeness(a, -3 * a + 1), _likeness(a, b)
    assert same["correlation"] == pytest.approx(1)
    assert turned["correlation"] == pytest.approx(1)
    assert turned["SSIM, aligned"] == pytest.approx(same["SSIM"])
    assert turned["SSIM"] < 0.5
    assert other["correlation"] < 0.1


def test_the_control_marks_something_else_on_the_organ_s_own_slices():
    labels = np.zeros((6, 8, 8), dtype=np.uint8)
    labels[1:5, 2:4, 2:5] = 1
    labels[3:6, 5:7, 2:5] = 2
    wrong, own = other_organ(labels, 1, 6), labels == 1
    np.testing.assert_array_equal(wrong.any(axis=(1, 2)), own.any(axis=(1, 2)))
    np.testing.assert_array_equal(support_slices(wrong, 3), support_slices(own, 3))
    assert not (wrong & own).any()
    # Slices 3 and 4 show the other organ; on 1 and 2 the outline is moved instead.
    np.testing.assert_array_equal(wrong[3], labels[3] == 2)
    assert wrong[1].sum() == own[1].sum()
    everywhere = np.ones((2, 4, 4), dtype=np.uint8)
    everywhere[:, 0, 0] = 0
    assert other_organ(everywhere, 1, 6).any(axis=(1, 2)).all()


def test_shuffled_tokens_still_hold_the_same_values():
    from trialrun.dossiers.famnet.networks import _Permuted

    match = _Permuted(9, seed=0, order_seed=1)
    features, mask = torch.rand(1, 2, 3, 3), torch.ones(1, 3, 3, dtype=torch.bool)
    shuffled = sum(match.tokens(features, mask))
    torch.testing.assert_close(shuffled.sort().values, features.flatten(2).sort().values)
