"""The tiny CLIP reads, is trained, and comes back from disk."""

import pytest
import torch

from tests.representation.pic2word_tools import draw, tiny
from trialrun.core.errors import UsageError
from trialrun.representation._tiny_clip_training import _shifted, _widened
from trialrun.representation.tiny_clip import (
    TinyClip,
    WordTokenizer,
    fit_tiny_clip,
    load_tiny_clip,
    save_tiny_clip,
    standardised,
)


def test_tiny_clip_reads_many_sentences_as_it_reads_each():
    model, words = (told := tiny(torch.float64)).model, told.tokenizer
    texts = words([" ".join(["a", "red", "fox", "of"][: 1 + i % 4]) for i in range(200)])
    alone = torch.cat([model.encode_text(row[None]) for row in texts])
    torch.testing.assert_close(model.encode_text(texts), alone, rtol=1e-10, atol=1e-12)


def test_a_shift_keeps_the_picture_and_continues_its_edge():
    images = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).reshape(2, 4, 5, 3)
    wide = _widened(images, 2)
    assert wide.shape == (2, 8, 9, 3)
    moved = {tuple(_shifted(wide, torch.tensor([1]), torch.Generator().manual_seed(s), 2)
                   .flatten().tolist()) for s in range(300)}  # fmt: skip
    pixels = standardised(images[1:])
    padded = torch.nn.functional.pad(pixels, (2, 2, 2, 2), mode="replicate")
    wanted = {
        tuple(padded[0, :, y : y + 4, x : x + 5].flatten().tolist())
        for y in range(5) for x in range(5)
    }  # fmt: skip
    assert moved == wanted


def test_tiny_clip_learns_and_comes_back_from_disk(tmp_path):
    words = WordTokenizer(("a", "red", "blue"), context_length=6)
    model = TinyClip(words.vocab_size, size=8, embed_dim=8, width=8, layers=1, heads=2,
                     context_length=6, channels=(4,))  # fmt: skip
    images = torch.zeros(20, 8, 8, 3, dtype=torch.uint8)
    images[::2, ..., 0], images[1::2, ..., 2] = 250, 250
    captions = [["a red", "red"], ["a blue", "blue"]] * 10
    losses = fit_tiny_clip(model, words, images, captions, steps=60, batch_size=20, lr=1e-2)
    assert losses[-1] < losses[0]
    save_tiny_clip(model, words, tmp_path)
    loaded, same = load_tiny_clip(tmp_path)
    assert same.words == words.words
    pixels = draw(2, 3, 8, 8)
    torch.testing.assert_close(
        loaded.encode_image(pixels), model.encode_image(pixels), rtol=0, atol=0
    )
    seen = loaded.encode_image(images[:2].permute(0, 3, 1, 2).float() / 127.5 - 1)
    text = loaded.encode_text(words(["a red", "a blue"]))
    assert (seen @ text.T).argmax(1).tolist() == [0, 1]
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match="holds a damaged model"):
        load_tiny_clip(tmp_path)
    with pytest.raises(UsageError, match="holds no tiny CLIP"):
        load_tiny_clip(tmp_path / "nowhere")
