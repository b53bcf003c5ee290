"""The arms' networks, and how they are trained: on the same episodes, from one warmed encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from trialrun.claims.contract import Context
from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.dossiers.famnet.heads import painted_sources, size
from trialrun.dossiers.famnet.own import own_sources
from trialrun.fewshot._famnet_match import FrequencyAwareMatching, _Matching
from trialrun.fewshot.famnet import (
    Augmentation,
    EpisodeSampler,
    FAMNet,
    PrototypeSegmenter,
    Schedule,
    SmallEncoder,
    foreground_tokens,
    split_token_bands,
    supervoxels,
    train_episodes,
)

SHARED = ("famnet", "bandless", "permuted")
"""Networks that several claims ask for."""
_CHANGES: dict[str, dict[str, Any]] = {
    "swapped": {"weighting": ("sim", "1-sim", "sim")},
    "even": {"weighting": ("none", "none", "none")},
    "drop-low": {"weighting": ("drop", "sim", "1-sim")},
    "drop-mid": {"weighting": ("1-sim", "drop", "1-sim")},
    "drop-high": {"weighting": ("1-sim", "sim", "drop")},
    "bandless": {"cutoff": None, "fusion": "sum"},
    "sum": {"fusion": "sum"},
    "grid": {"layout": "grid"},
}
"""What an arm's network has that FAMNet as published has not."""
_SMOOTH = 1.0
_HEAD = 0.15


def _regions(volume: NDArray) -> NDArray[np.int32]:
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(volume, _SMOOTH)
    low = volume.min()
    inside = smooth > low + _HEAD * (np.percentile(volume, 99) - low)
    return supervoxels(smooth, scale=0.5, min_size=300, mask=inside)


def _sampler(folder: Path, ctx: Context, *, curve: bool) -> EpisodeSampler:
    count = len(list(folder.glob("volume-*.npy")))
    volumes, regions = (
        [np.load(folder / f"{part}-{i}.npy") for i in range(count)]
        for part in ("volume", "regions")
    )
    how = Augmentation(shift=6.0, alpha=6.0, sigma=4.0, curve=curve)
    seed = split(ctx.seed, "episodes")
    try:
        return EpisodeSampler(volumes, regions, min_pixels=40, augmentation=how, seed=seed)
    except ValueError as error:
        if ctx.on is None:
            raise
        raise UsageError(
            f"the volumes trained on must have supervoxels of 40 pixels on two neighbouring slices "
            f"at {size(ctx).own_size} x {size(ctx).own_size} pixels: {error}"
        ) from error


def _schedule(ctx: Context, steps: int, parts: int) -> Schedule:
    """Return a schedule whose rate is halved ``parts`` times, the last time at its end."""
    return Schedule(
        steps=steps, batch=size(ctx).batch, lr=2e-3, decay=0.5, every=max(1, steps // parts),
        optimiser="adam",
    )  # fmt: skip


def _fresh(ctx: Context) -> PrototypeSegmenter:
    seed = split(ctx.seed, "weights")
    channels = size(ctx).channels
    return PrototypeSegmenter(SmallEncoder(channels, seed=seed), channels, seed=seed)


class _Permuted(FrequencyAwareMatching):
    """Matching on tokens in an order that means nothing.

    It is drawn anew for the supports and for the queries of every batch, so the two foregrounds
    of a pair differ in it; the images of one batch share it.
    """

    def __init__(self, n_tokens: int, *, seed: int, order_seed: int) -> None:
        super().__init__(n_tokens, seed=seed)
        self.generator = torch.Generator().manual_seed(order_seed)

    def tokens(self, features, mask):
        listed = foreground_tokens(features, mask, self.n_tokens)
        order = torch.randperm(self.n_tokens, generator=self.generator)
        assert self.cutoff is not None
        return split_token_bands(listed[..., order], self.cutoff)


class _Unrelated(_Matching):
    """Matching whose similarities belong to other tokens: they weigh, and mean nothing."""

    def __init__(self, like: _Matching, n_tokens: int, order_seed: int) -> None:
        super().__init__(n_tokens)
        self.load_state_dict(like.state_dict())
        self.generator = torch.Generator().manual_seed(order_seed)

    def similarity(self, support, query):
        order = torch.randperm(support.shape[-1], generator=self.generator)
        return super().similarity(support[..., order], query[..., order])


def make_network(ctx: Context, kind: str) -> PrototypeSegmenter:
    """Return an arm's network on the context's device; equal parts have equal weights.

    Matching and fusion start without biases, and the matching's weights, all before a ReLU, at
    He's scale, in every arm. Torch's default biases, through three bottlenecks in a row, drown what
    comes in: the prototype is then the same for every episode, and training may end before an arm
    has found out of that.
    """
    net = _network(ctx, kind)
    with torch.no_grad():
        for name, weights in net.named_parameters():
            if name.startswith(("FAM.", "MSFM.")) and name.endswith("bias"):
                weights.zero_()
            elif name.startswith("FAM."):
                weights.mul_(
                    math.sqrt(6)
                )  # torch draws up to 1 / sqrt(inputs), He sqrt(6 / inputs)
    return net.to(ctx.device)


def _network(ctx: Context, kind: str) -> PrototypeSegmenter:
    if kind in ("prototype", "prototype-curves"):
        return _fresh(ctx)
    seed, channels, tokens = split(ctx.seed, "weights"), size(ctx).channels, size(ctx).tokens
    make = partial(FAMNet, SmallEncoder(channels, seed=seed), channels, tokens, seed=seed)
    if kind in _CHANGES:
        return make(**_CHANGES[kind])
    net = make()
    if kind == "permuted":
        net.FAM = _Permuted(tokens, seed=seed, order_seed=split(ctx.seed, "order"))
    elif kind == "unrelated":
        like = net.FAM.attention_matching
        net.FAM.attention_matching = _Unrelated(like, tokens, split(ctx.seed, "order"))
    return net


def warm_up(ctx: Context, folder: Path, volumes: Sequence[NDArray[np.float32]]) -> None:
    """Cut ``volumes`` into supervoxels and warm the encoder that all arms start from."""
    for i, volume in enumerate(volumes):
        np.save(folder / f"volume-{i}.npy", volume)
        np.save(folder / f"regions-{i}.npy", _regions(volume))
    warm = make_network(ctx, "prototype")
    train_episodes(warm, _sampler(folder, ctx, curve=False), _schedule(ctx, size(ctx).warm, 2))
    save_file(warm.state_dict(), folder / "warm.safetensors")


def train_shared(ctx: Context, folder: Path) -> None:
    """Make the source volumes, warm the encoder with prototypes, and train what claims share."""
    warm_up(ctx, folder, painted_sources(ctx) if ctx.on is None else own_sources(ctx))
    for kind in SHARED:
        save_file(trained(ctx, kind, folder).state_dict(), folder / f"{kind}.safetensors")


def trained(ctx: Context, kind: str, folder: Path) -> PrototypeSegmenter:
    """Train an arm's network from the shared encoder, or read it where it was shared."""
    net = make_network(ctx, kind)
    steps, warm = size(ctx).steps, size(ctx).warm
    if kind in SHARED and (folder / f"{kind}.safetensors").is_file():
        net.load_state_dict(load_file(folder / f"{kind}.safetensors"))
        return net.eval()
    if kind == "prototype-curves":
        # Its point is to see random contrasts from the start: it takes the warm steps as its own.
        train_episodes(net, _sampler(folder, ctx, curve=True), _schedule(ctx, steps + warm, 3))
        return net
    taken = net.load_state_dict(load_file(folder / "warm.safetensors"), strict=False)
    added = [name for name in taken.missing_keys if not name.startswith(("FAM.", "MSFM."))]
    assert not added, added
    assert not taken.unexpected_keys, taken.unexpected_keys
    sampler = _sampler(folder, ctx, curve=False)
    train_episodes(net, sampler, _schedule(ctx, steps, 3), first_step=warm)
    return net
