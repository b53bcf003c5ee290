import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from tests.naive import tcs as naive
from trialrun.core.errors import UsageError
from trialrun.fewshot.tcs import (
    ELSHLoss,
    FewRowsWarning,
    LSHLoss,
    TailoredCoordinates,
    Tailoring,
    TCSHead,
)

F64 = torch.float64


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def features(rows=40, width=6, seed=0):
    return (drawn(rows, width, seed=seed) * torch.arange(width, 0, -1) + 2).numpy()


def test_axes_match_the_slow_twin():
    table = features(30, 5)
    mean, axes, variances = naive.naive_coordinates(torch.from_numpy(table), 3)
    coords = TailoredCoordinates(n_components=3).fit(table)
    np.testing.assert_allclose(coords.mean_, mean, atol=1e-12)
    np.testing.assert_allclose(coords.components_, axes, atol=1e-8)
    np.testing.assert_allclose(coords.explained_variance_, variances, rtol=1e-8)


@pytest.mark.parametrize("rows", [7, 63])
def test_both_ways_to_the_axes_agree_with_scikit_learn(rows):
    from sklearn.decomposition import PCA

    table = features(rows, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewRowsWarning)
        coords = TailoredCoordinates(n_components=5).fit(table)
    peer = PCA(n_components=5, svd_solver="full").fit(table)
    together = np.abs(coords.components_ @ peer.components_.T)
    np.testing.assert_allclose(together, np.eye(5), atol=1e-7)
    np.testing.assert_allclose(coords.explained_variance_, peer.explained_variance_, rtol=1e-9)


def test_signs_do_not_depend_on_the_order_of_rows_or_on_the_library():
    table = features()
    coords = TailoredCoordinates(n_components=4).fit(table)
    flipped = TailoredCoordinates(n_components=4).fit(table[::-1].copy())
    np.testing.assert_allclose(coords.components_, flipped.components_, atol=1e-9)
    largest = np.abs(coords.components_).argmax(1)
    assert (coords.components_[np.arange(4), largest] > 0).all()


def test_all_axes_that_vary_are_taken_and_no_others():
    flat = features() @ np.diag([1, 1, 1, 0, 1e-9, 0])
    assert TailoredCoordinates().fit(flat).n_components_ == 3
    with pytest.raises(UsageError, match="n_components must be at most 3"):
        TailoredCoordinates(n_components=4).fit(flat)


def test_few_rows_are_warned_of_and_cap_the_axes():
    with pytest.warns(FewRowsWarning, match="4 rows of 6 features give 3 axes"):
        coords = TailoredCoordinates().fit(features(4))
    assert coords.n_components_ == 3


def test_a_random_basis_is_orthonormal_and_knows_nothing_of_the_data_but_its_mean():
    table = features()
    given = {"n_components": 3, "basis": "random", "random_state": 1}
    one = TailoredCoordinates(**given).fit(table)
    other = TailoredCoordinates(**given).fit(features(seed=5))
    np.testing.assert_allclose(one.components_ @ one.components_.T, np.eye(3), atol=1e-12)
    np.testing.assert_array_equal(one.components_, other.components_)
    along = ((table - table.mean(0)) @ one.components_.T).var(0, ddof=1)
    np.testing.assert_allclose(one.explained_variance_, along)


def test_all_axes_give_the_features_back_and_a_memory_map_will_do(tmp_path):
    table = features(50, 6).astype("float32")
    table.tofile(tmp_path / "table")
    mapped = np.memmap(tmp_path / "table", "float32", "r", shape=(50, 6))
    coords = TailoredCoordinates().fit(mapped)
    back = coords.inverse_transform(coords.transform(mapped))
    np.testing.assert_allclose(back, table, atol=1e-4)
    assert coords.components_.dtype == np.float32


def test_a_damaged_file_of_coordinates_is_named(tmp_path):
    with pytest.raises(UsageError, match="holds no coordinates"):
        TailoredCoordinates.load(tmp_path)
    TailoredCoordinates(n_components=2).fit(features()).save(tmp_path)
    file = tmp_path / "coordinates.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UsageError, match="is damaged, save it anew"):
        TailoredCoordinates.load(tmp_path)


def exact_head(width=4, *, adapter=True, tailoring=None):
    """Make a head in float64 whose basis was not rounded on the way."""
    coords = TailoredCoordinates(n_components=3).fit(features())
    head = TCSHead(width, coords, 3, adapter=adapter, tailoring=tailoring, seed=3).double()
    axes, mean = torch.from_numpy(coords.components_), torch.from_numpy(coords.mean_)
    head.basis.copy_(axes.T)
    head.offset.copy_(axes @ mean)
    with torch.no_grad():
        head.mask.copy_(torch.tensor([1.0, 0.5, -0.25]))
    return head, mean, axes


@pytest.mark.parametrize("batch", [1, 7, 63])
def test_the_head_and_its_gradients_match_the_slow_twin(batch):
    head, mean, axes = exact_head()
    x = drawn(batch, 4, seed=batch)
    fast = head(x)
    weight, bias = head.classifier.weight, head.classifier.bias
    slow = naive.naive_head(x, head.adapter, mean, axes, head.mask, weight, bias)
    torch.testing.assert_close(fast, slow)
    learned = list(head.parameters())
    for a, b in zip(
        torch.autograd.grad(fast.square().sum(), learned),
        torch.autograd.grad(slow.square().sum(), learned),
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("adapter", [True, False])
def test_folding_is_exact_also_after_axes_have_gone(adapter):
    head, _, _ = exact_head(6, adapter=adapter, tailoring=Tailoring(keep=1, every=1, fraction=0.5))
    x = drawn(9, 6)
    for step in (1, 2):
        torch.testing.assert_close(head.fold()(x), head(x))
        head(x).square().sum().backward()
        head.accumulate_scores()
        head.prune(step)
    assert int(head.kept.sum()) == 1
    torch.testing.assert_close(head.fold()(x), head(x))


def test_a_basis_behind_a_trainable_adapter_expresses_no_less_than_another():
    """Any head in one basis is some head in another: a fixed basis restricts nothing but rank."""
    coords = TailoredCoordinates(n_components=3).fit(features())
    random = TailoredCoordinates(n_components=3, basis="random", random_state=0).fit(features())
    one, other = (TCSHead(6, c, 4).double() for c in (coords, random))
    with torch.no_grad():
        # A' = A U U'^T makes the coordinates in U' those in U, and the offset goes to the bias.
        other.adapter.copy_(one.adapter @ one.basis @ other.basis.T)
        other.classifier.weight.copy_(one.classifier.weight)
        shift = (other.offset - one.offset) @ one.classifier.weight.T
        other.classifier.bias.copy_(one.classifier.bias + shift)
    x = drawn(5, 6)
    torch.testing.assert_close(one(x), other(x), rtol=1e-5, atol=1e-5)


def test_equal_widths_begin_at_the_identity_and_others_keep_lengths():
    coords = TailoredCoordinates(n_components=3).fit(features())
    torch.testing.assert_close(TCSHead(6, coords, 2).adapter.data, torch.eye(6))
    narrow, wide = TCSHead(4, coords, 2).adapter.data, TCSHead(9, coords, 2).adapter.data
    torch.testing.assert_close(narrow @ narrow.T, torch.eye(4))
    torch.testing.assert_close(wide.T @ wide, torch.eye(6))


@pytest.mark.parametrize("score", ["grad", "taylor", "weight"])
def test_scores_and_removals_match_the_slow_twin(score):
    plan = Tailoring(keep=1, every=2, fraction=0.4, score=score)
    head, _, _ = exact_head(tailoring=plan)
    expected = torch.zeros(3, dtype=F64)
    for step in (1, 2):
        head.zero_grad()
        head(drawn(5, 4, seed=step)).square().sum().backward()
        head.accumulate_scores()
        if score == "weight":
            weight = head.classifier.weight.norm(dim=0)
            expected = (head.mask.abs() * weight).detach()
        else:
            times = head.mask.abs().detach() if score == "taylor" else 1
            expected = expected + times * head.mask.grad.abs()
        torch.testing.assert_close(head.scores.double(), expected)
        goes = naive.naive_removed(expected, [0, 1, 2], 1, 0.4) if step == 2 else set()
        assert head.prune(step) == len(goes)
    assert set(torch.flatten((~head.kept).nonzero()).tolist()) == goes


def test_removal_stops_at_keep_and_freezes_the_mask():
    head, _, _ = exact_head(tailoring=Tailoring(keep=2, every=1, fraction=1.0))
    head(drawn(5, 4)).sum().backward()
    head.accumulate_scores()
    assert head.prune(0) == 0
    assert head.prune(1) == 1
    assert not head.mask.requires_grad
    assert head.mask.grad is None
    assert head.prune(2) == 0


def test_scoring_without_a_gradient_says_so():
    head, _, _ = exact_head(tailoring=Tailoring(keep=1))
    with pytest.raises(ValueError, match=r"call loss\.backward"):
        head.accumulate_scores()


def test_a_head_can_be_copied_after_a_forward_pass():
    head, _, _ = exact_head()
    head(drawn(2, 4))
    assert copy.deepcopy(head).features_ is None
    torch.testing.assert_close(copy.deepcopy(head)(drawn(2, 4)), head(drawn(2, 4)))


def test_a_head_is_captured_whole_by_the_compiler(no_annotation_checks):
    coords = TailoredCoordinates(n_components=3).fit(features())
    head, x = TCSHead(4, coords, 3), drawn(5, 4).float()
    compiled = torch.compile(head, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), head(x))
    assert head.features_.shape == (5, 3)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"keep": 0}, "keep must be at least 1"),
        ({"keep": 1, "every": 0}, "every must be at least 1"),
        ({"keep": 1, "fraction": 0.0}, "fraction must be above 0"),
        ({"keep": 1, "score": "magic"}, "score must be one of grad, taylor, weight"),
        ({"keep": 1.5}, "keep must be a whole number, got 1.5"),
        ({"keep": 1, "every": True}, "every must be a whole number, got True"),
    ],
)
def test_wrong_tailoring_is_named(wrong, sentence, no_annotation_checks):
    with pytest.raises(ValueError, match=sentence):
        Tailoring(**wrong)


@pytest.mark.parametrize("l2", [False, True])
@pytest.mark.parametrize("batch", [1, 7])
def test_the_hashing_loss_and_its_gradient_match_the_slow_twin(batch, l2):
    table = drawn(11, 4, seed=9)
    loss = LSHLoss(table, n_hashes=5, l2=l2, seed=2).double()
    loss.bias.copy_(-(table @ loss.hashes).median(dim=0).values)
    student, teacher = drawn(batch, 4, seed=1).requires_grad_(), drawn(batch, 4, seed=3)
    right = torch.arange(batch) % 3 != 1
    for chosen in (None, right):
        fast = loss(student, teacher, chosen)
        slow = naive.naive_lsh(student, teacher, loss.hashes, table, l2, chosen)
        torch.testing.assert_close(fast, slow)
        (a,), (b,) = (torch.autograd.grad(value, student) for value in (fast, slow))
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("n_hashes", [1, 8, 13])
def test_elsh_is_lsh_in_the_coordinates_with_bits_from_before(n_hashes):
    table = features(30)
    coords = TailoredCoordinates(n_components=3).fit(table)
    plain = LSHLoss(coords.transform(table), n_hashes=n_hashes, l2=True, seed=4)
    loss = ELSHLoss(coords, table, n_hashes=n_hashes, l2=True, seed=4)
    index = torch.tensor([0, 29, 7, 7])
    own, told = drawn(4, 3).float(), torch.from_numpy(coords.transform(table)).float()[index]
    torch.testing.assert_close(loss(own, index), plain(own, told), rtol=1e-5, atol=1e-5)
    assert loss.bits.dtype == torch.uint8
    assert loss.bits.numel() == 30 * -(-n_hashes // 8)


@pytest.mark.parametrize("rows", [20, 21])
def test_every_bit_is_one_for_half_of_the_training_set(rows):
    table = drawn(rows, 4).float()
    loss = LSHLoss(table, n_hashes=300)
    share = (table @ loss.hashes + loss.bias > 0).float().mean(0)
    assert ((share - 0.5).abs() < 0.06).all()


def test_mimicking_nothing_right_costs_nothing():
    loss = LSHLoss(drawn(9, 4).float(), n_hashes=3)
    x = drawn(2, 4).float().requires_grad_()
    value = loss(x, drawn(2, 4).float(), torch.tensor([False, False]))
    value.backward()
    assert float(value.detach()) == 0.0
    assert torch.isfinite(x.grad).all()


def test_extreme_features_stay_finite():
    loss = LSHLoss(drawn(9, 4).float(), n_hashes=3)
    x = (1e4 * drawn(5, 4).float()).requires_grad_()
    loss(x, -x.detach()).backward()
    assert torch.isfinite(x.grad).all()


def test_a_sampler_that_chooses_is_refused():
    from trialrun.fewshot.tcs import distill

    data = TensorDataset(drawn(8, 3).float(), torch.arange(8) % 2)
    loader = DataLoader(data, 4, sampler=WeightedRandomSampler([1.0] * 8, 8))
    with pytest.raises(UsageError, match="got a WeightedRandomSampler"):
        distill(nn.Linear(3, 3), nn.Linear(3, 3), loader)


def test_a_frozen_mask_stays_frozen_when_it_is_loaded():
    coords = TailoredCoordinates(n_components=4).fit(features())
    heads = [
        TCSHead(6, coords, 3, tailoring=Tailoring(keep=2, every=1, fraction=1.0)) for _ in "ab"
    ]
    x = drawn(5, 6).float()
    heads[0](x).sum().backward()
    heads[0].accumulate_scores()
    fresh = heads[0].state_dict()
    heads[1].load_state_dict(fresh)
    assert heads[1].mask.requires_grad
    assert heads[0].prune(1) == 2
    heads[1].load_state_dict(heads[0].state_dict())
    assert not heads[1].mask.requires_grad
    assert heads[1].prune(2) == 0
    # Back before the removals, the mask learns again.
    heads[1].load_state_dict(TCSHead(6, coords, 3).state_dict())
    assert heads[1].mask.requires_grad


@pytest.mark.parametrize("right", [torch.ones(4, 1), torch.ones(1), torch.ones(3)])
def test_which_images_are_right_is_one_entry_an_image(right, no_annotation_checks):
    table = torch.from_numpy(features()).float()
    coords = TailoredCoordinates(n_components=3).fit(table.numpy())
    with pytest.raises(ValueError, match=r"right must have shape \(4,\), one entry an image"):
        LSHLoss(table, n_hashes=8)(table[:4], table[:4], right.bool())
    elsh = ELSHLoss(coords, table, n_hashes=8)
    with pytest.raises(ValueError, match=r"right must have shape \(4,\)"):
        elsh(torch.zeros(4, 3), torch.arange(4), right.bool())


def test_random_axes_lie_from_large_to_small_variance():
    table = features() * np.arange(1, 7)
    coords = TailoredCoordinates(n_components=5, basis="random", random_state=0).fit(table)
    assert (np.diff(coords.explained_variance_) <= 0).all()
    found = coords.transform(table).var(axis=0, ddof=1)
    np.testing.assert_allclose(found, coords.explained_variance_, rtol=1e-9)


def test_axes_are_counted_in_whole_numbers(no_annotation_checks):
    for count in (4.0, True):
        with pytest.raises(UsageError, match=rf"n_components must be a whole number.*got {count}"):
            TailoredCoordinates(n_components=count).fit(features())
