"""Training of the tiny CLIP: pictures a little moved, and a sentence drawn for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import log_softmax

from trialrun.core.seeds import split
from trialrun.core.shapes import check_range
from trialrun.representation._tiny_clip_model import TinyClip, standardised
from trialrun.representation._tiny_clip_parts import WordTokenizer

_REACH = 2
"""Pixels by which pictures are moved in training."""


def shared_sentence_loss(
    pictures: Float[Tensor, "batch embed"],
    sentences: Float[Tensor, "batch embed"],
    ids: Int[Tensor, "batch tokens"],
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Return CLIP's symmetric loss, with rows of equal ``ids`` all right for one another."""
    same = (ids[:, None] == ids[None]).all(dim=2).float()
    goal = same / same.sum(dim=1, keepdim=True)
    logits = scale * pictures @ sentences.T
    each = [-(goal * log_softmax(part, dim=1)).sum(dim=1).mean() for part in (logits, logits.T)]
    return (each[0] + each[1]) / 2


def _widened(images: Tensor, reach: int) -> Tensor:
    """Continue pictures (n, height, width, 3) by ``reach`` pixels of their edge's colour."""
    rows, columns = (
        torch.arange(-reach, side + reach).clamp(0, side - 1) for side in images.shape[1:3]
    )
    return images[:, rows][:, :, columns]


def _shifted(wide: Tensor, which: Tensor, generator: torch.Generator, reach: int) -> Tensor:
    """Cut some pictures out of `_widened` ones, each moved by up to ``reach`` pixels."""
    height, width = (side - 2 * reach for side in wide.shape[1:3])
    down, right = torch.randint(2 * reach + 1, (2, len(which)), generator=generator)
    windows = wide.unfold(1, height, 1).unfold(2, width, 1)
    return standardised(windows[which, down, right].permute(0, 2, 3, 1))


def _loss(model: TinyClip, pixels: Tensor, texts: Tensor) -> Tensor:
    """Return the loss of pictures and the ids of one sentence each."""
    seen = model.encode_image(pixels.contiguous(memory_format=torch.channels_last), normalize=True)
    # Equal sentences are encoded once, many pictures share a short one; and they are told apart by
    # number, since whether they are equal is all that the loss asks.
    unique, number = torch.unique(texts, dim=0, return_inverse=True)
    read = model.encode_text(unique, normalize=True)[number]
    scale = model.logit_scale.exp().clamp(max=100)
    return shared_sentence_loss(seen, read, number[:, None], scale)


def fit_tiny_clip(
    model: TinyClip,
    tokenizer: WordTokenizer,
    images: UInt8[Tensor, "pictures height width 3"],
    captions: Sequence[Sequence[str]],
    *,
    steps: int = 300,
    batch_size: int = 256,
    lr: int | float = 2e-3,
    seed: int = 0,
    tick: Callable[[int, float], None] | None = None,
) -> Float[Tensor, steps]:
    """Train on pictures with several sentences each, one of which is drawn at every step.

    Parameters
    ----------
    model : TinyClip
        Trained in place and left in eval mode.
    tokenizer : WordTokenizer
    images : uint8 Tensor (pictures, height, width, 3)
    captions : sequence of sequence of str
        The sentences of each picture, as many for all.
    steps, batch_size : int
    lr : float
        Highest rate of AdamW; linear warm-up over a tenth of the steps, then a cosine.
    seed : int
    tick : callable, optional
        Told the step and its loss.

    Returns
    -------
    Tensor (steps,)
        Losses in nats.

    Raises
    ------
    ValueError
        If numbers of pictures and captions differ.
    """
    if len(images) != len(captions) or len({len(texts) for texts in captions}) != 1:
        raise ValueError(
            f"captions must be as many as images, and of one number each, got {len(captions)} for "
            f"{len(images)} images"
        )
    check_range("steps", steps, low=1)
    ids = torch.stack([tokenizer(list(texts)) for texts in captions])
    wide = _widened(images, _REACH)
    generator = torch.Generator().manual_seed(split(seed, "batches"))
    optimiser = torch.optim.AdamW(model.parameters(), lr=float(lr), weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, float(lr), total_steps=steps + 1, pct_start=0.1, cycle_momentum=False
    )
    # Convolutions of this size are a fifth faster with channels last.
    model.visual.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    losses = []
    batch = min(batch_size, len(images))
    for step in range(steps):
        rows = torch.randperm(len(images), generator=generator)[:batch]
        drawn = torch.randint(ids.shape[1], (batch,), generator=generator)
        loss = _loss(model, _shifted(wide, rows, generator, _REACH), ids[rows, drawn])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if tick:
            tick(step, losses[-1])
    model.visual.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    model.eval()
    return torch.tensor(losses)
