"""The byte model's trainer and its evaluation."""

import numpy as np
import pytest
import torch

from trialrun.blocks.bytelm import (
    Schedule,
    Shape,
    last_targets,
    load_model,
    loss_on_last,
    make_model,
    save_model,
    text_batches,
    train,
)

SHAPE = Shape(layers=1, width=16, heads=1, length=16)
TEXT = np.frombuffer(b"the same line again and again.\n" * 60, dtype=np.uint8)


def _trained(seed=0, steps=40):
    model = make_model(SHAPE, seed=seed)
    losses = train(model, text_batches(TEXT, SHAPE, seed=seed), Schedule(steps=steps, batch=8))
    return model, losses


def test_training_learns_a_repeated_line():
    losses = _trained()[1]
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_the_seed_fixes_every_weight_and_leaves_the_global_state():
    before = torch.get_rng_state()
    first, second, other = _trained(steps=3)[0], _trained(steps=3)[0], _trained(1, steps=3)[0]
    assert torch.equal(torch.get_rng_state(), before)
    pairs = list(zip(first.parameters(), second.parameters()))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_a_saved_model_gives_the_same_logits_and_holds_no_pickle(tmp_path):
    model, _ = _trained(steps=2)
    save_model(model, tmp_path)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(ids).logits, model(ids).logits)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_every_context_length_scores_the_same_targets():
    """A model that ignores context must lose the same at every length."""

    class Counts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Parameter(torch.randn(256, 256))

        def forward(self, input_ids, use_cache, logits_to_keep):
            out = type("Out", (), {})()
            out.logits = self.table[input_ids][:, -logits_to_keep:]
            return out

    windows = last_targets(TEXT, longest=64, targets=8, windows=5, seed=0)
    model = Counts()
    same = [loss_on_last(model, windows, context=c, targets=8) for c in (8, 16, 64)]
    assert same[0].shape == (5,)
    assert torch.equal(same[0], same[1])
    assert torch.equal(same[0], same[2])


def test_text_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match="longer than 16"):
        text_batches(TEXT[:16], SHAPE, seed=0)
    with pytest.raises(ValueError, match="longer than 4000"):
        last_targets(TEXT, longest=4000, targets=8, windows=2, seed=0)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no model"):
        load_model(tmp_path)
