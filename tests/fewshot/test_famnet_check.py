"""What the check of famnet compares, on made-up planes and labels."""

import numpy as np
import pytest
import torch

from trialrun.claims.contract import Context
from trialrun.dossiers.famnet.claim import TRIAL, _likeness
from trialrun.dossiers.famnet.networks import make_network
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


@pytest.mark.parametrize("kind", ["famnet", "grid", "drop-mid", "unrelated", "permuted"])
def test_before_training_every_arm_s_prototype_already_depends_on_the_episode(kind):
    # By torch's default biases this share is below 1e-4: whole arms then stood still in training.
    net = make_network(Context(budget=TRIAL.budgets["quick"], seed=3), kind)
    random = torch.Generator().manual_seed(0)
    shown = torch.randn(8, 2, 1, 12, 10, generator=random).repeat_interleave(8, 3)
    images = shown.repeat_interleave(8, 4)
    mask = torch.zeros(8, 96, 80)
    for i in range(8):
        mask[i, 8 * i : 8 * i + 24, 5 * i : 5 * i + 20] = 1
    with torch.no_grad():
        prototype = net(images[:, 0], mask, images[:, 1])[1]["prototype"]
    share = (prototype - prototype.mean(0)).square().sum() / prototype.square().sum()
    assert share > 0.01


def test_the_matching_of_an_arm_starts_without_biases_and_at_he_s_scale():
    net = make_network(Context(budget=TRIAL.budgets["quick"], seed=3), "famnet")
    parts = dict(net.named_parameters())
    added = [name for name in parts if name.startswith(("FAM.", "MSFM."))]
    assert not any(parts[name].any() for name in added if name.endswith("bias"))
    weights = parts["FAM.attention_matching.fc_fusion.0.weight"]
    assert float(weights.detach().std() * (weights.shape[1] / 2) ** 0.5) == pytest.approx(
        1, rel=0.05
    )
    assert parts["threshold.bias"].item() == -10  # the warmed parts are left alone
