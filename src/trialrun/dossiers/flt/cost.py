"""How time and memory of one attention grow with length."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from trialrun.attention._flt_features import softmax_features
from trialrun.attention.flt import FLTAttention, SpectralRPE
from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.dossiers.flt.rivals import toeplitz_by_fft

WIDTH, HEADS, FEATURES = 32, 2, 32
LONGEST_SLOW = 2048
ARMS = ("flt", "softmax", "toeplitz-fft", "all-pairs")


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors alive after each operator, made within the context."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Loading the compiler, which nothing here uses, would take longer than the measurement.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note what the operator made."""
        found = func(*args, **(kwargs or {}))
        for x in found if isinstance(found, tuple | list) else (found,):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {k: s for k, s in self.alive.items() if not s[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return found


def _heads(attn: FLTAttention, x: Tensor) -> Tensor:
    split_heads = attn.qkv(x).unflatten(-1, (3, attn.heads, -1))
    return split_heads.permute(2, 0, 3, 1, 4)


def _softmax(attn: FLTAttention, x: Tensor) -> Tensor:
    query, key, value = _heads(attn, x)
    found = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return attn.out(found.transpose(1, 2).flatten(2))


def _toeplitz(attn: FLTAttention, bias: Tensor, x: Tensor) -> Tensor:
    query, key, value = _heads(attn, x)
    shrink = query.shape[-1] ** -0.25
    rows = attn.projection[..., : query.shape[-1]].transpose(-1, -2)
    queries = softmax_features(query * shrink @ rows, torch.zeros_like(query[..., 0]))
    keys = softmax_features(key * shrink @ rows, (key * shrink).square().sum(-1))
    found = toeplitz_by_fft(queries.values, keys.values, value, bias[:, : x.shape[1]])
    return attn.out(found.transpose(1, 2).flatten(2))


def _all_pairs(attn: FLTAttention, x: Tensor) -> Tensor:
    query, key, value = _heads(attn, x)
    step = torch.arange(x.shape[1], device=x.device)
    assert attn.rpe is not None
    sides = attn.rpe(step[:, None])
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    scores = scores + sides.query @ sides.key.transpose(-1, -2)
    weights = scores.masked_fill(step > step[:, None], -torch.inf).softmax(-1)
    return attn.out((weights @ value).transpose(1, 2).flatten(2))


def _call(arm: str, seed: int, longest: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    if arm not in ARMS:
        raise UsageError(f"arm must be one of {', '.join(ARMS)}, got {arm!r}")
    rpe = SpectralRPE(heads=HEADS, freqs=16, scale=longest / 16, seed=seed)
    attn = FLTAttention(WIDTH, HEADS, rpe=rpe, features=FEATURES, causal=True, seed=seed)
    attn = attn.to(device).eval()
    if arm == "flt":
        return attn
    if arm == "toeplitz-fft":
        return partial(_toeplitz, attn, torch.zeros(HEADS, longest, device=device))
    return partial(_softmax if arm == "softmax" else _all_pairs, attn)


def slope(lengths: list[int], values: list[float]) -> float:
    """Return the least-squares slope of log value over log length."""
    x, y = ([math.log(v) for v in part] for part in (lengths, values))
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    return top / sum((a - middle_x) ** 2 for a in x)


@torch.no_grad()
def growth(
    arm: str, lengths: tuple[int, ...], *, repeats: int, seed: int, device: str
) -> dict[str, float]:
    """Return the slopes of time and of peak bytes, and seconds at the longest length."""
    where = torch.device(device)
    call = _call(arm, seed, max(lengths), where)
    used = [n for n in lengths if arm == "flt" or n <= LONGEST_SLOW]
    draw = torch.Generator().manual_seed(split(seed, "tokens"))
    inputs = [torch.randn(1, n, WIDTH, generator=draw).to(where) for n in used]
    seconds = [math.inf] * len(used)
    sizes = []
    for x in inputs:
        with Alive() as watched:
            call(x)
        sizes.append(float(watched.peak))
    gc.collect()
    gc.disable()
    try:
        # Lengths in turn, so that a busy moment of the machine does not fall on one of them.
        for _ in range(repeats):
            for i, x in enumerate(inputs):
                seconds[i] = min(seconds[i], _seconds(partial(call, x), where))
    finally:
        gc.enable()
    found = {"time": slope(used, seconds), "memory": slope(used, sizes)}
    return {**found, "seconds": seconds[-1]}


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    # On CPU the processor's own seconds: other work on the machine does not enter them.
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    began = clock()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began
