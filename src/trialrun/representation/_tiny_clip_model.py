"""The tiny CLIP itself, laid out and named like ``open_clip.CLIP``."""

from __future__ import annotations

from collections.abc import Sequence

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn.functional import normalize

from trialrun.core.seeds import split
from trialrun.core.shapes import check_range
from trialrun.representation._tiny_clip_parts import Blocks, eyes


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
