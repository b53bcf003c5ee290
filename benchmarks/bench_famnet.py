"""FAMNet's inference per slice against the plain prototype network, and its token step."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from _bench import Row, compare, emit, figure
from trialrun.fewshot.famnet import FAMNet, PrototypeSegmenter, foreground_tokens

LIMIT = (
    "with N tokens and C channels the fusion attends over 2N x 2N positions twice, 16 N^2 C "
    "operations and, fused, memory linear in N; the encoder's cost grows with the pixels and does "
    "not depend on N; both networks encode support and query anew here, as a first slice needs"
)


def _disc(size: int, radius: float) -> torch.Tensor:
    at = torch.arange(size) - size / 2
    return (at[:, None] ** 2 + at[None, :] ** 2 < radius**2)[None]


def _slice(size: int, channels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    support, query = torch.randn(2, 1, channels, size, size, generator=generator)
    return support, _disc(size, size / 8).float(), query


def _rows(
    name: str, encoder: str, channels: int, tokens: int, size: int, repeats: int
) -> list[Row]:
    nets = [
        FAMNet(encoder, channels, tokens).eval(),
        PrototypeSegmenter(encoder, channels).eval(),
    ]
    slice_ = _slice(size, 1)
    whole = compare(
        f"famnet {name}: slice, FAMNet / prototypes",
        lambda: nets[0](*slice_), lambda: nets[1](*slice_), repeats=repeats,
    )  # fmt: skip
    support, mask, query = slice_
    (f, _), (g, tau) = nets[0].encode(support), nets[0].encode(query)
    head = compare(
        f"famnet {name}: slice already encoded, FAMNet / prototypes",
        lambda: nets[0].segment(f, mask, g, tau), lambda: nets[1].segment(f, mask, g, tau),
        repeats=repeats,
    )  # fmt: skip
    ours = figure(f"famnet {name}: FAMNet", 1e3 * whole["ours_seconds"], "ms per slice")
    plain = figure(f"famnet {name}: prototypes", 1e3 * whole["other_seconds"], "ms per slice")
    return [whole, ours, plain, head]


def _upsampled(maps: torch.Tensor, mask: torch.Tensor, tokens: int) -> torch.Tensor:
    big = F.interpolate(maps, size=mask.shape[1:], mode="bilinear")
    return torch.stack([F.adaptive_avg_pool1d(f[:, m], tokens) for f, m in zip(big, mask)])


@torch.no_grad()
def main() -> list[Row]:
    """Time all rows, print them and append them to the results."""
    torch.set_num_threads(1)
    rows = _rows("small encoder, 96 px, 100 tokens", "small", 32, 100, 96, 15)
    rows += _rows("ResNet-50, 256 px, 900 tokens", "resnet50_dilated", 512, 900, 256, 3)
    maps = torch.randn(1, 512, 64, 64, generator=torch.Generator().manual_seed(0))
    disc = _disc(256, 40)
    rows.append(
        compare(
            "famnet tokens, 512 x 64 x 64 maps, 256 px mask, against resizing the maps",
            lambda: foreground_tokens(maps, disc, 900), lambda: _upsampled(maps, disc, 900),
            faster=True,
        )
    )  # fmt: skip
    emit(rows, limit=LIMIT)
    return rows


if __name__ == "__main__":
    main()
