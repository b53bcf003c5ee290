"""Attention that returns its log-sum-exp, so that parts of a softmax can be merged exactly.

Three back ends are chosen by name. ``sdpa`` runs the kernels behind PyTorch's
``scaled_dot_product_attention`` on rectangles and triangles (any dtype on CPU, float16 and
bfloat16 on CUDA): memory linear in length, no masks, keys of grouped queries never repeated on
CPU. ``flex`` runs FlexAttention (float32 too on CUDA; on CPU it stores all scores and has no
gradient). ``eager`` runs plain matrix products and works everywhere. ``auto`` takes ``sdpa``
where it exists, else ``flex`` on CUDA, else ``eager``.

The merge is the usual one for split softmaxes (milakov2018online): with l = logaddexp(l1, l2) the
whole is exp(l1 - l) O1 + exp(l2 - l) O2. Gradients pass to each part with the whole's output and
log-sum-exp, in memory linear in length; second derivatives are not offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from trialrun.blocks import _stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float
from torch import Tensor

from trialrun.blocks._kernels import choose_kernel
from trialrun.blocks._tiles import Plan, band_tiles, causal_tiles, run_tiles
from trialrun.core.shapes import check_axes

BACKENDS = ("auto", "sdpa", "flex", "eager")


class Attended(NamedTuple):
    """Output and log-sum-exp of each query; 0 and -inf for a query that sees no key.

    ``lse`` is float32 for 16-bit inputs.
    """

    out: Float[Tensor, "batch heads query width"]
    lse: Float[Tensor, "batch heads query"]


def pick_backend(name: str, q: Tensor, v: Tensor) -> str:
    """Return the back end that ``name`` means for these tensors.

    Parameters
    ----------
    name : str
        ``auto``, ``sdpa``, ``flex`` or ``eager``.
    q, v : tensors
        Queries and values; device, dtype and widths decide what ``auto`` means.

    Raises
    ------
    ValueError
        If there is no such back end, or ``sdpa`` was asked for where it has no kernel.

    Examples
    --------
    >>> import torch
    >>> x = torch.zeros(1, 1, 2, 8)
    >>> pick_backend("auto", x, x)
    'sdpa'
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    if name == "sdpa":
        choose_kernel(name, q, v)
    if name != "auto":
        return name
    try:
        choose_kernel("sdpa", q, v)
    except ValueError:
        return "flex" if q.device.type == "cuda" else "eager"
    return "sdpa"


def check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise unless q, k and v can attend to one another.

    Raises
    ------
    ValueError
        Naming the argument, the shape expected and the one that came.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_axes(name, x, ("batch", "heads", "time", "width"))
        if not x.is_floating_point() or x.dtype != q.dtype or x.device != q.device:
            raise ValueError(
                f"q, k and v must be of one floating dtype on one device, got "
                f"{q.dtype} on {q.device} for q and {x.dtype} on {x.device} for {name}"
            )
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(
            f"k must have the batch and width of q {tuple(q.shape)}, got {tuple(k.shape)}"
        )
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"v must have the batch, heads and time of k {tuple(k.shape)}, got {tuple(v.shape)}"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"the heads of q must be a multiple of those of k, got {q.shape[1]} and {k.shape[1]}"
        )
    if q.shape[2] > k.shape[2]:
        raise ValueError(
            f"q holds the last tokens of k, so its time must be at most {k.shape[2]}, "
            f"got {q.shape[2]}"
        )


def shifted_causal(
    q: Float[Tensor, "batch heads query width"],
    k: Float[Tensor, "batch kv_heads key width"],
    v: Float[Tensor, "batch kv_heads key value"],
    *,
    shift: int = 0,
    scale: float | None = None,
    backend: str = "auto",
) -> Attended:
    """Attend to the keys at least ``shift`` tokens before each query.

    Parameters
    ----------
    q : tensor of shape (batch, heads, query, width)
        Queries, the last ``query`` tokens of the keys.
    k, v : tensors of shape (batch, kv_heads, key, width)
        Keys and values; ``heads`` is a multiple of ``kv_heads``.
    shift : int
        Tokens between a query and its nearest key; 0 is plain causal attention.
    scale : float or None
        Factor on the scores; None is ``width ** -0.5``.
    backend : str
        ``auto``, ``sdpa``, ``flex`` or ``eager``.

    Raises
    ------
    ValueError
        If shapes do not fit, ``shift`` is negative or the back end cannot serve the tensors.

    Examples
    --------
    >>> import torch
    >>> x = torch.zeros(1, 1, 3, 8)
    >>> shifted_causal(x, x, x, shift=2).lse.tolist()
    [[[-inf, -inf, 0.0]]]
    """
    check_qkv(q, k, v)
    if shift < 0:
        raise ValueError(f"shift must be at least 0 tokens, got {shift}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = pick_backend(backend, q, v)
    if chosen == "flex":
        from trialrun.blocks._flex import flex

        return Attended(*flex(q, k, v, nearest=shift, window=None, scale=scale))
    offset = k.shape[2] - q.shape[2]
    tiles = causal_tiles(q.shape[2], offset, shift=shift, fresh=True)
    plan = Plan(tuple(tiles), choose_kernel(chosen, q, v), scale)
    return Attended(*run_tiles(plan, (q,), (k,), v))


def attend(
    q: Float[Tensor, "batch heads query width"],
    k: Float[Tensor, "batch kv_heads key width"],
    v: Float[Tensor, "batch kv_heads key value"],
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> Attended:
    """Attend causally and return the log-sum-exp too.

    Parameters
    ----------
    q : tensor of shape (batch, heads, query, width)
        Queries, the last ``query`` tokens of the keys.
    k, v : tensors of shape (batch, kv_heads, key, width)
        Keys and values; ``heads`` is a multiple of ``kv_heads``.
    scale : float or None
        Factor on the scores; None is ``width ** -0.5``.
    backend : str
        ``auto``, ``sdpa``, ``flex`` or ``eager``.

    Raises
    ------
    ValueError
        If shapes do not fit or the back end cannot serve the tensors.

    Examples
    --------
    >>> import torch
    >>> x = torch.ones(1, 2, 3, 8)
    >>> attend(x, x[:, :1], x[:, :1]).out.shape
    torch.Size([1, 2, 3, 8])
    """
    return shifted_causal(q, k, v, scale=scale, backend=backend)


def banded_causal(
    q: Float[Tensor, "batch heads query width"],
    k: Float[Tensor, "batch kv_heads key width"],
    v: Float[Tensor, "batch kv_heads key value"],
    *,
    window: int,
    scale: float | None = None,
    backend: str = "auto",
) -> Attended:
    """Attend to each query's own token and the ``window - 1`` before it.

    Parameters
    ----------
    q : tensor of shape (batch, heads, query, width)
        Queries, the last ``query`` tokens of the keys.
    k, v : tensors of shape (batch, kv_heads, key, width)
        Keys and values; ``heads`` is a multiple of ``kv_heads``.
    window : int
        Number of keys seen, in tokens, at least 1.
    scale : float or None
        Factor on the scores; None is ``width ** -0.5``.
    backend : str
        ``auto``, ``sdpa``, ``flex`` or ``eager``.

    Raises
    ------
    ValueError
        If shapes do not fit, ``window`` is below 1 or the back end cannot serve the tensors.

    Examples
    --------
    >>> import torch
    >>> x = torch.zeros(1, 1, 3, 8)
    >>> banded_causal(x, x, x, window=2).lse.exp().round().tolist()
    [[[1.0, 2.0, 2.0]]]
    """
    check_qkv(q, k, v)
    if window < 1:
        raise ValueError(f"window must be at least 1 token, got {window}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = pick_backend(backend, q, v)
    if chosen == "flex":
        from trialrun.blocks._flex import flex

        return Attended(*flex(q, k, v, nearest=0, window=window, scale=scale))
    tiles = band_tiles(q.shape[2], k.shape[2] - q.shape[2], window)
    plan = Plan(tuple(tiles), choose_kernel(chosen, q, v), scale)
    return Attended(*run_tiles(plan, (q,), (k,), v))


def merge_lse(parts: Sequence[Attended]) -> Attended:
    """Join softmaxes over disjoint sets of keys into the softmax over their union.

    Parameters
    ----------
    parts : sequence of Attended
        Outputs and log-sum-exps of the same queries; where a part saw no key (-inf) it weighs
        nothing, and a query that no part saw keeps 0 and -inf.

    Raises
    ------
    ValueError
        If there are no parts or their shapes differ.

    Examples
    --------
    >>> import torch
    >>> one = Attended(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1))
    >>> none = Attended(torch.zeros(1, 1, 1, 2), torch.full((1, 1, 1), float("-inf")))
    >>> merge_lse([one, none]).out.tolist()
    [[[[1.0, 1.0]]]]
    """
    shapes = {(part.out.shape, part.lse.shape) for part in parts}
    if len(shapes) != 1:
        raise ValueError(f"parts must be one or more of equal shape, got {len(parts)} parts")
    lse = torch.stack([part.lse for part in parts])
    peak = lse.detach().amax(0)
    # A query without any key would give inf - inf; any finite peak gives exp(-inf) = 0 instead.
    peak = torch.where(peak.isinf(), torch.zeros_like(peak), peak)
    weights = (lse - peak).exp()
    total = weights.sum(0)
    empty = total == 0
    share = weights / torch.where(empty, torch.ones_like(total), total)
    out = sum(w.unsqueeze(-1) * part.out.to(w.dtype) for w, part in zip(share, parts))
    assert isinstance(out, Tensor)
    safe = torch.where(empty, torch.ones_like(total), total).log() + peak
    merged = safe.masked_fill(empty, float("-inf"))
    return Attended(out.to(parts[0].out.dtype), merged)
