"""Heads and networks of the check: material, training on T1, and Dice in other contrasts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from trialrun.claims.contract import Budget, Context, Measurement
from trialrun.core.seeds import split
from trialrun.fewshot._famnet_match import FrequencyAwareMatching, _Matching
from trialrun.fewshot._famnet_volumes import encode_volume
from trialrun.fewshot.famnet import (
    Augmentation,
    EpisodeSampler,
    FAMNet,
    PrototypeSegmenter,
    Schedule,
    SmallEncoder,
    evaluate_volume,
    foreground_tokens,
    split_token_bands,
    supervoxels,
    train_episodes,
)
from trialrun.material.brain import ORGANS, load_brain, make_subject

TARGETS = ("t2", "pd")
CONTRASTS = ("t1", *TARGETS)
SHARED = ("famnet", "bandless", "permuted")
"""Networks that several claims ask for."""
SWAPPED = ("sim", "1-sim", "sim")
_SMOOTH = 1.0
_HEAD = 0.15


@dataclass(frozen=True, kw_only=True)
class FAMBudget(Budget):
    """How much of everything a run takes.

    ``warm`` steps of plain prototypes train the encoder that all arms start from, then every arm
    takes ``steps`` of its own; a step is ``batch`` episodes. ``slices`` is the part of the head
    that is used, from below.
    """

    sources: int
    queries: int
    warm: int
    steps: int
    batch: int
    channels: int
    tokens: int
    organs: int
    slices: tuple[int, int]
    band_step: int


def size(ctx: Context) -> FAMBudget:
    """Return the budget as this dossier's own."""
    assert isinstance(ctx.budget, FAMBudget)
    return ctx.budget


def scored(volume: NDArray) -> NDArray[np.float32]:
    """Return a volume with mean 0 and standard deviation 1."""
    return ((volume - volume.mean()) / volume.std()).astype(np.float32)


def head(
    ctx: Context, role: str, number: int, contrast: str
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return one subject's z-scored image and labels; each role has people of its own."""
    subject = make_subject(load_brain(), split(ctx.seed, role, number), contrast=contrast)
    part = slice(*size(ctx).slices)
    return scored(subject.image[part]), subject.labels[part]


def kept_head(
    ctx: Context, role: str, number: int, contrast: str
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Read a head that `keep_heads` made: its z-scored image and labels."""
    folder = ctx.prepared("heads")
    image = np.load(folder / f"{role}-{number}-{contrast}.npy")
    return image, np.load(folder / f"{role}-{number}-labels.npy")


def keep_heads(ctx: Context, folder: Path) -> None:
    """Make the support and query heads in every contrast."""
    for role, count in (("support", 1), ("query", size(ctx).queries)):
        for number in range(count):
            for contrast in CONTRASTS:
                image, labels = head(ctx, role, number, contrast)
                np.save(folder / f"{role}-{number}-{contrast}.npy", image)
                np.save(folder / f"{role}-{number}-labels.npy", labels)


def _regions(volume: NDArray) -> NDArray[np.int32]:
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(volume, _SMOOTH)
    low = volume.min()
    inside = smooth > low + _HEAD * (np.percentile(volume, 99) - low)
    return supervoxels(smooth, scale=0.5, min_size=300, mask=inside)


def _sampler(folder: Path, ctx: Context, *, curve: bool) -> EpisodeSampler:
    count = size(ctx).sources
    return EpisodeSampler(
        [np.load(folder / f"volume-{i}.npy") for i in range(count)],
        [np.load(folder / f"regions-{i}.npy") for i in range(count)],
        min_pixels=40,
        augmentation=Augmentation(shift=6.0, alpha=6.0, sigma=4.0, curve=curve),
        seed=split(ctx.seed, "episodes"),
    )


def _train(model: PrototypeSegmenter, sampler: EpisodeSampler, ctx: Context, *, more: int) -> None:
    """Train for a budget's steps; ``more`` warm steps come first where the arm starts afresh."""
    steps = size(ctx).steps + more
    schedule = Schedule(
        steps=steps, batch=size(ctx).batch, lr=2e-3, decay=0.5, every=max(1, steps // 3),
        optimiser="adam",
    )  # fmt: skip
    train_episodes(model, sampler, schedule, first_step=0 if more else size(ctx).warm)


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
    """Return an arm's network on the context's device; equal parts have equal weights."""
    return _network(ctx, kind).to(ctx.device)


def _network(ctx: Context, kind: str) -> PrototypeSegmenter:
    if kind in ("prototype", "prototype-curves"):
        return _fresh(ctx)
    seed, channels, tokens = split(ctx.seed, "weights"), size(ctx).channels, size(ctx).tokens
    make = partial(FAMNet, SmallEncoder(channels, seed=seed), channels, tokens, seed=seed)
    if kind == "swapped":
        return make(weighting=SWAPPED)
    if kind == "even":
        return make(weighting=("none",) * 3)
    if kind == "bandless":
        return make(cutoff=None, fusion="sum")
    if kind == "sum":
        return make(fusion="sum")
    if kind == "drop-mid":
        return make(weighting=("1-sim", "drop", "1-sim"))
    if kind == "grid":
        return make(layout="grid")
    net = make()
    if kind == "permuted":
        net.FAM = _Permuted(tokens, seed=seed, order_seed=split(ctx.seed, "order"))
    elif kind == "unrelated":
        like = net.FAM.attention_matching
        net.FAM.attention_matching = _Unrelated(like, tokens, split(ctx.seed, "order"))
    return net


def train_shared(ctx: Context, folder: Path) -> None:
    """Make the source heads, warm the encoder with prototypes, and train what claims share."""
    for i in range(size(ctx).sources):
        volume, _ = head(ctx, "source", i, "t1")
        np.save(folder / f"volume-{i}.npy", volume)
        np.save(folder / f"regions-{i}.npy", _regions(volume))
    warm = make_network(ctx, "prototype")
    schedule = Schedule(
        steps=size(ctx).warm, batch=size(ctx).batch, lr=2e-3, decay=0.5,
        every=max(1, size(ctx).warm // 2), optimiser="adam",
    )  # fmt: skip
    train_episodes(warm, _sampler(folder, ctx, curve=False), schedule)
    save_file(warm.state_dict(), folder / "warm.safetensors")
    for kind in SHARED:
        save_file(trained(ctx, kind, folder).state_dict(), folder / f"{kind}.safetensors")


def trained(ctx: Context, kind: str, folder: Path) -> PrototypeSegmenter:
    """Train an arm's network from the shared encoder, or read it where it was shared."""
    net = make_network(ctx, kind)
    if kind in SHARED and (folder / f"{kind}.safetensors").is_file():
        net.load_state_dict(load_file(folder / f"{kind}.safetensors"))
        return net.eval()
    if kind == "prototype-curves":
        # Its point is to see random contrasts from the start: it takes the warm steps as its own.
        _train(net, _sampler(folder, ctx, curve=True), ctx, more=size(ctx).warm)
        return net
    warm = net.load_state_dict(load_file(folder / "warm.safetensors"), strict=False)
    added = [name for name in warm.missing_keys if not name.startswith(("FAM.", "MSFM."))]
    assert not added, added
    assert not warm.unexpected_keys, warm.unexpected_keys
    _train(net, _sampler(folder, ctx, curve=False), ctx, more=0)
    return net


def other_organ(labels: NDArray, organ: int) -> NDArray[np.bool_]:
    """Mark something else than ``organ`` on exactly the slices that show it.

    On each slice the next organ of the list that shows there is taken; where none does, the
    organ's own outline is moved along the row until it is off the organ.
    """
    own = labels == organ
    marked = np.zeros(labels.shape, dtype=bool)
    following = [(organ - 1 + i) % len(ORGANS) + 1 for i in range(1, len(ORGANS))]
    for z in np.flatnonzero(own.any(axis=(1, 2))):
        others = (labels[z] == other for other in following)
        moved = (np.roll(own[z], step, axis=1) for step in range(1, labels.shape[2]))
        off = (mask for mask in moved if not (mask & own[z]).any())
        marked[z] = next(chain((mask for mask in others if mask.any()), off, (~own[z],)))
    return marked


def dice_by_contrast(
    ctx: Context, net: PrototypeSegmenter, *, other: bool = False, every: bool = False
) -> Measurement:
    """Segment every organ of the query heads by one support head of the same contrast.

    ``other`` marks another organ in the support, on the slices that show the organ (`other_organ`);
    ``every`` also scores all slices of one T2 head, whether they show the organ or not.
    """
    points, extra, n = {}, {}, 0
    numbers = range(1, size(ctx).organs + 1)
    for contrast in CONTRASTS:
        support, marks = kept_head(ctx, "support", 0, contrast)
        encoded = encode_volume(net, support)
        scores, whole = [], []
        queries = size(ctx).queries if contrast in TARGETS else 1
        for q in range(queries):
            volume, truth = kept_head(ctx, "query", q, contrast)
            query = encode_volume(net, volume)
            for organ in numbers:
                shown = other_organ(marks, organ) if other else marks == organ
                ask = partial(evaluate_volume, net, encoded, shown, query, truth == organ)
                scores.append(100 * ask().dice)
                if every and q == 0 and contrast == "t2":
                    whole.append(100 * ask(protocol="all-slices").dice)
        if contrast in TARGETS:
            points[contrast], n = float(np.mean(scores)), n + len(scores)
        else:
            extra["Dice in the training contrast"] = float(np.mean(scores))
        if whole:
            extra["Dice in t2 over all slices"] = float(np.mean(whole))
    return Measurement(points, n, extra)


def by_network(ctx: Context, *, kind: str, other: bool = False, every: bool = False) -> Measurement:
    """Train or read one arm's network and measure Dice in contrasts it was not trained on."""
    net = trained(ctx, kind, ctx.prepared("networks"))
    return dice_by_contrast(ctx, net, other=other, every=every)
