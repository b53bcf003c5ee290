"""ReRoPE's attention, memory and decoding beside what one would use instead.

Run with ``python benchmarks/bench_rerope.py``, one thread. SDPA on keys rotated once is what a
plain rotary model pays; the form with two full matrices is how the method was published.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from _bench import Row, compare, emit, figure
from trialrun.attention.rerope import ReRoPE, rerope_attention
from trialrun.blocks.rotary import Rotary

HEADS, WIDTH, WINDOW = 4, 64, 512
ROTARY = Rotary(WIDTH)


def tensors(length: int, *, grad: bool = False) -> list[Tensor]:
    """Return random q, k and v of one sequence."""
    draw = torch.Generator().manual_seed(0)
    shape = (1, HEADS, length, WIDTH)
    return [torch.randn(shape, generator=draw).requires_grad_(grad) for _ in range(3)]


def ours(q: Tensor, k: Tensor, v: Tensor, slope: float | None = None) -> Tensor:
    """Run this package's attention."""
    return rerope_attention(q, k, v, rotary=ROTARY, window=WINDOW, slope=slope)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Rotate and run stock causal SDPA."""
    at = torch.arange(q.shape[2])
    q, k = ROTARY(q, at), ROTARY(k, at)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def two_matrices(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Score all pairs under both rotations and choose, as published."""
    at = torch.arange(q.shape[2])
    scale = WIDTH**-0.5
    near = ROTARY(q, at) @ ROTARY(k, at).transpose(-1, -2) * scale
    far = ROTARY(q, torch.tensor([WINDOW])) @ k.transpose(-1, -2) * scale
    distance = at[:, None] - at
    scores = torch.where(distance < WINDOW, near, far).masked_fill(distance < 0, -math.inf)
    return scores.softmax(-1) @ v


def trained(call: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Run forward and backward."""
    torch.autograd.grad(call(*inputs).sum(), inputs)


class Live(TorchDispatchMode):
    """Watch the bytes of the tensors alive after each operator, inputs not counted.

    Scratch inside one operator is not seen; the CPU attention kernel's is constant in length.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known = {x.untyped_storage()._cdata for x in known}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what the operator made."""
        found = func(*args, **(kwargs or {}))
        for x in found if isinstance(found, tuple | list) else (found,):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in self.known:
                storage = x.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {k: s for k, s in self.alive.items() if not s[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return found


def memory_slope(*, backward: bool) -> float:
    """Return the slope of log peak bytes over log length from 1k to 16k tokens."""
    points = []
    for length in (1024, 2048, 4096, 8192, 16384):
        inputs = tensors(length, grad=backward)
        with Live(inputs) as live:
            trained(ours, *inputs) if backward else ours(*inputs)
        points.append((math.log(length), math.log(live.peak)))
    mean_x, mean_y = (sum(p[i] for p in points) / len(points) for i in (0, 1))
    top = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return top / sum((x - mean_x) ** 2 for x, _ in points)


def step(model: LlamaForCausalLM, length: int) -> Callable[[], None]:
    """Return a call that decodes one token after ``length`` cached ones, and forgets it again."""
    cache = DynamicCache(config=model.config)
    ids = torch.randint(0, 99, (1, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for part in ids.split(1024, dim=1):
            model(part, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def run() -> None:
        with torch.no_grad():
            for _ in range(8):
                model(ids[:, :1], past_key_values=cache, use_cache=True)
                cache.crop(-1)

    return run


def decoding(length: int, slope: float | None) -> Row:
    """Compare a cached decode step of a patched model with the same model's own."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2 * WINDOW,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    patched = copy.deepcopy(model)
    ReRoPE(window=WINDOW, train_len=2 * WINDOW, slope=slope).attach(patched)
    kind = "leaky" if slope else "flat"
    name = f"decode step, {length} cached, {kind} / same model plain"
    return compare(name, step(patched, length), step(model, length), repeats=15, at_most=1.3)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    free, learnt = tensors(4096), tensors(4096, grad=True)

    def pair(call: Callable[..., Any], other: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
        return (lambda: call(*args)), (lambda: other(*args))

    forward = pair(ours, plain, *free)
    leaky = (lambda: ours(*free, slope=16.0)), (lambda: plain(*free))
    both = (lambda: trained(ours, *learnt)), (lambda: trained(plain, *learnt))
    reference = pair(ours, two_matrices, *free)
    rows = [
        compare("attention 4k, ours / SDPA causal", *forward, at_most=1.6),
        compare("attention 4k leaky, ours / SDPA causal", *leaky, at_most=1.6),
        compare("attention 4k with gradients, ours / SDPA causal", *both),
        compare("attention 4k, two full matrices / ours", *reference, faster=True, at_least=3.0),
        figure(
            "peak extra memory, slope over length",
            memory_slope(backward=False),
            "power",
            at_least=0.9,
            at_most=1.1,
        ),
        figure(
            "the same with gradients",
            memory_slope(backward=True),
            "power",
            at_least=0.9,
            at_most=1.1,
        ),
        *(decoding(n, slope) for n in (4096, 16384) for slope in (None, 16.0)),
    ]
    emit(
        rows,
        limit="prefill: the multiply-adds of one causal pass, quadratic in length, memory linear; "
        "decoding: the bytes of keys and values read per token, linear in length",
    )


if __name__ == "__main__":
    main()
