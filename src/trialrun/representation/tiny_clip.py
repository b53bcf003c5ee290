"""A CLIP small enough to train in a minute on one core: ours, not a published model.

A small convolutional network and a small causal transformer over whole words, laid out and named
like ``open_clip.CLIP``, so that whatever works on that works on this (saito2023pic2word is tried on
it). Trained by the symmetric contrastive loss in which pictures that share a sentence are all right
answers to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float, Int, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize

from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.core.shapes import check_range
from trialrun.representation._tiny_clip_parts import Blocks, WordTokenizer, eyes

FORMAT = "trialrun-tiny-clip-1"
CONFIG = "tiny_clip.json"
_WEIGHTS = "weights.safetensors"
_REACH = 2
"""Pixels by which pictures are moved in training."""


class TinyClip(nn.Module):
    """Embed small pictures and short sentences in one space; the names are those of open_clip's.

    Parameters
    ----------
    vocab_size : int
        `WordTokenizer.vocab_size`.
    size : int, at least 8
        Height and width of pictures, in pixels.
    embed_dim, width, layers, heads : int
        Width of the shared space; width, depth and heads of the text tower.
    context_length : int
        Longest sentence in tokens.
    channels : sequence of int
        Widths of the picture network's layers, each of which halves the picture.
    seed : int
        Seed of the first weights.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Examples
    --------
    >>> TinyClip(40).encode_image(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 64])
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        size: int = 32,
        embed_dim: int = 64,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        context_length: int = 16,
        channels: Sequence[int] = (32, 64, 96),
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_range("vocab_size", vocab_size, low=5)
        check_range("size", size, low=8, unit="pixels")
        for name, value in (("embed_dim", embed_dim), ("layers", layers), ("heads", heads)):
            check_range(name, value, low=1)
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        self.settings = {
            "vocab_size": vocab_size, "size": size, "embed_dim": embed_dim, "width": width,
            "layers": layers, "heads": heads, "context_length": context_length,
            "channels": list(channels),
        }  # fmt: skip
        self.context_length, self.vocab_size, self.size = context_length, vocab_size, size
        self.embed_dim, self.text_width, self.text_pool_type = embed_dim, width, "argmax"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(split(seed, "tiny clip"))
            self.visual = eyes(channels, embed_dim)
            self.token_embedding = nn.Embedding(vocab_size, width)
            self.transformer = Blocks(width, layers, heads)
            self.ln_final = nn.LayerNorm(width)
            self.text_projection = nn.Parameter(torch.randn(width, embed_dim) * width**-0.5)
            self.positional_embedding = nn.Parameter(torch.randn(context_length, width) * 0.01)
            nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.logit_scale = nn.Parameter(torch.tensor(2.66))  # log(1 / 0.07), as in CLIP
        mask = torch.full((context_length, context_length), float("-inf")).triu(1)
        self.register_buffer("attn_mask", mask, persistent=False)

    def encode_image(
        self, image: Float[Tensor, "pictures 3 height width"], normalize: bool = False
    ) -> Float[Tensor, "pictures embed"]:
        """Return embeddings of ``image``, standardised pixels; unit vectors if ``normalize``."""
        features = self.visual(image)
        return _unit(features) if normalize else features

    def encode_text(
        self, text: Int[Tensor, "texts tokens"], normalize: bool = False
    ) -> Float[Tensor, "texts embed"]:
        """Return embeddings of the ids ``text``; unit vectors if ``normalize``."""
        ends = text.argmax(dim=1)
        order = ends.argsort(stable=True)
        # Sentences of like length are read together: padding is cut off at the longest.
        parts = [self._at_end(text[rows], ends[rows]) for rows in _groups(order)]
        x = torch.cat(parts)[order.argsort()]
        x = self.ln_final(x) @ self.text_projection
        return _unit(x) if normalize else x

    def _at_end(self, text: Tensor, ends: Tensor) -> Tensor:
        length = int(ends.max()) + 1
        mask = self.get_buffer("attn_mask")[:length, :length]
        x = self.token_embedding(text[:, :length]) + self.positional_embedding[:length]
        x = self.transformer(x, attn_mask=mask)
        return x[torch.arange(len(x), device=x.device), ends]

    forward = encode_image


def _groups(order: Tensor) -> tuple[Tensor, ...]:
    """Split rows into up to three runs; a few rows are not worth more than one."""
    return order.chunk(min(3, 1 + len(order) // 64))


def _unit(features: Tensor) -> Tensor:
    return normalize(features, dim=-1)


def standardised(
    images: UInt8[Tensor, "pictures height width 3"],
) -> Float[Tensor, "pictures 3 height width"]:
    """Return pixels in [-1, 1], channels first."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


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
        texts = ids[rows, drawn]
        moved = _shifted(wide, rows, generator, _REACH)
        moved = moved.contiguous(memory_format=torch.channels_last)
        seen = model.encode_image(moved, normalize=True)
        # Equal sentences are encoded once: many pictures share a short one.
        unique, back = torch.unique(texts, dim=0, return_inverse=True)
        read = model.encode_text(unique, normalize=True)[back]
        same = back[:, None]  # sentences by number: what is equal is all that the loss asks
        loss = shared_sentence_loss(seen, read, same, model.logit_scale.exp().clamp(max=100))
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


def save_tiny_clip(model: TinyClip, tokenizer: WordTokenizer, folder: str | Path) -> None:
    """Write the model and its words to a folder, which `load_clip` and the command line take."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    config = {"format": FORMAT, "model": model.settings, "words": list(tokenizer.words)}
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(state, place / _WEIGHTS)
    (place / CONFIG).write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")


def load_tiny_clip(folder: str | Path) -> tuple[TinyClip, WordTokenizer]:
    """Read what `save_tiny_clip` wrote; in eval mode.

    Raises
    ------
    UsageError
        If the folder holds no such model, or a damaged one.
    """
    place = Path(folder)
    try:
        config: Any = json.loads((place / CONFIG).read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise UsageError(f"{place} must be in the format {FORMAT}, got {config['format']!r}")
        model = TinyClip(**config["model"])
        model.load_state_dict(load_file(place / _WEIGHTS))
    except FileNotFoundError as error:
        raise UsageError(
            f"{place} holds no tiny CLIP: expected {CONFIG} and {_WEIGHTS}, as written by "
            "save_tiny_clip"
        ) from error
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, UsageError):
            raise
        first = str(error).partition("\n")[0]
        raise UsageError(f"{place} holds a damaged model, save it anew: {first}") from error
    tokenizer = WordTokenizer(config["words"], context_length=model.context_length)
    return model.eval(), tokenizer
