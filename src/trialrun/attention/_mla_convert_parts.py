"""Linear algebra of a conversion to a latent cache, one layer at a time, in float64.

Equations and names follow the repositories of ji2025mha2mla (partial rotary by contribution, joint
SVD) and meng2025transmla (rotation across heads, PCA on activations, balanced keys and values).
Ours: a rotary pair is a complex number, so heads are mixed by a unitary matrix at each frequency,
which commutes with the rotation exactly; means and biases are carried by the output's bias, as a
constant on all keys changes no softmax and a constant on all values passes through it.
"""

from __future__ import annotations

from dataclasses import dataclass

from trialrun.attention import _mla_stack  # noqa: F401

# isort: split
import torch
from torch import Tensor

SELECTIONS = ("contribution", "high", "low", "uniform")
FACTORS = ("pca", "svd", "split", "random")
RIDGE = 1e-7
EXACT_UP_TO = 1024
NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class Projections:
    """One layer's projections; the last column of q, k, v is the bias.

    Shapes: q (heads, dim, width + 1), k and v (kv_heads, dim, width + 1), o (width, heads, dim).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    o_bias: Tensor

    @property
    def owner(self) -> Tensor:
        """The key head of each query head."""
        return torch.arange(len(self.q)) // (len(self.q) // len(self.k))


@dataclass(frozen=True)
class Latent:
    """One layer after conversion; the last column of q, q_rope and k_rope is the bias."""

    q_rope: Tensor  # (heads, rope, width + 1)
    k_rope: Tensor  # (rope, width + 1)
    pairs: Tensor  # (rope / 2,): the frequency of each pair in the host's table
    down: Tensor  # (rank, width)
    up_k: Tensor  # (kv_heads, dim, rank)
    up_v: Tensor  # (kv_heads, dim, rank)
    o_bias: Tensor  # (width,)


def full_rank(kv_heads: int, dim: int, width: int, rope_dims: int) -> int:
    """Return the smallest latent that holds keys and values exactly beside ``rope_dims``.

    Examples
    --------
    >>> full_rank(kv_heads=2, dim=8, width=64, rope_dims=4)
    28
    """
    return min(2 * kv_heads * dim - rope_dims, width)


def reduce_layer(
    host: Projections,
    moment: Tensor | None,
    *,
    rank: int,
    rope_dims: int,
    select: str,
    mix: bool,
    factor: str,
    balance: bool,
    seed: int,
) -> Latent:
    """Convert one layer; ``moment`` is the second moment of its inputs with a 1 appended."""
    groups, dim, columns = host.k.shape
    if moment is None:
        moment = torch.eye(columns, dtype=host.k.dtype, device=host.k.device)
    mean = moment[:-1, -1]
    q_rope, k_rope, pairs, rest = split_rotary(host, moment, rope_dims, select=select, mix=mix)
    keys, values = rest.reshape(groups * dim, -1), host.v.reshape(groups * dim, -1)
    covariance = moment[:-1, :-1] - mean[:, None] * mean
    if factor == "pca" and rank == full_rank(groups, dim, columns - 1, rope_dims):
        factor = "svd"  # Nothing is cut, so activations have no say, and weights are exact.
    down, up_k, up_v = factorise(
        keys[:, :-1], values[:, :-1], covariance, rank, factor=factor, balance=balance, seed=seed
    )
    offset = values[:, -1] + values[:, :-1] @ mean - up_v @ (down @ mean)
    o_bias = torch.einsum("whd,hd->w", host.o, offset.view(groups, dim)[host.owner])
    return Latent(
        q_rope=q_rope,
        k_rope=k_rope,
        pairs=pairs,
        down=down,
        up_k=up_k.view(groups, dim, rank),
        up_v=up_v.view(groups, dim, rank),
        o_bias=host.o_bias + o_bias,
    )


def split_rotary(
    host: Projections, moment: Tensor, rope_dims: int, *, select: str, mix: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rotary queries, the shared rotary key, its pairs, and what is left of the keys."""
    q, k = _pairs(host.q), _pairs(host.k)
    basis, energy = _bases(k, moment, mix=mix)
    loudness = _summed(_energy(q, moment), host.owner, len(k))
    felt = torch.einsum("mgp,gm->mp", basis.abs().pow(2), loudness)
    contribution = (energy * felt).clamp(min=0).sqrt()
    pairs, parts = _choose(contribution, rope_dims // 2, select)
    chosen = basis[pairs, :, parts]  # (pair, kv_heads)
    shared = torch.einsum("ng,gnd->nd", chosen.conj(), k[:, pairs])
    queries = chosen.conj().T[host.owner][..., None] * q[:, pairs]
    rest = k.clone()
    for n, pair in enumerate(pairs.tolist()):
        rest[:, pair] -= chosen[n][:, None] * shared[n]
    return _flat(queries), _flat(shared), pairs, _flat(rest)


def _pairs(rows: Tensor) -> Tensor:
    """Read half-split rotary dims as complex numbers: (..., dim, width) -> (..., dim/2, width)."""
    first, second = rows.chunk(2, dim=-2)
    return torch.complex(first.contiguous(), second.contiguous())


def _flat(pairs: Tensor) -> Tensor:
    return torch.cat((pairs.real, pairs.imag), dim=-2)


def _energy(rows: Tensor, moment: Tensor) -> Tensor:
    return ((rows.real @ moment) * rows.real + (rows.imag @ moment) * rows.imag).sum(-1)


def _summed(loudness: Tensor, owner: Tensor, groups: int) -> Tensor:
    return loudness.new_zeros(groups, loudness.shape[1]).index_add_(
        0, owner.to(loudness.device), loudness
    )


def _bases(k: Tensor, moment: Tensor, *, mix: bool) -> tuple[Tensor, Tensor]:
    """Return at each frequency a unitary basis across heads, strongest first, and its energies."""
    across = torch.complex(k.real @ moment, k.imag @ moment)
    hermitian = torch.einsum("gmd,hmd->mgh", across, k.conj())
    if mix:
        energy, basis = torch.linalg.eigh(hermitian)
        return basis.flip(-1), energy.flip(-1)
    return torch.eye(len(k), dtype=k.dtype, device=k.device).expand(
        k.shape[1], -1, -1
    ), hermitian.diagonal(dim1=1, dim2=2).real


def _choose(contribution: Tensor, count: int, select: str) -> tuple[Tensor, Tensor]:
    """Return the frequencies and the components of the pairs to keep rotating."""
    frequencies, groups = contribution.shape
    if select == "contribution":
        order = contribution.flatten().argsort(descending=True, stable=True)[:count]
        order = order.sort().values
        return order // groups, order % groups
    needed = -(-count // groups)
    if select == "high":
        kept = torch.arange(needed)
    elif select == "low":
        kept = torch.arange(frequencies - 1, frequencies - 1 - needed, -1)
    else:
        kept = torch.linspace(0, frequencies - 1, max(needed, 1)).round().long()[:needed]
    kept = kept.to(contribution.device)
    ranked = contribution[kept].argsort(dim=1, descending=True, stable=True)
    return kept.repeat_interleave(groups)[:count], ranked.flatten()[:count]


def factorise(
    keys: Tensor,
    values: Tensor,
    covariance: Tensor,
    rank: int,
    *,
    factor: str,
    balance: bool,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a down-projection and the up-projections of keys and of values."""
    if factor == "svd":
        covariance = torch.eye(len(covariance), dtype=keys.dtype, device=keys.device)
    if factor == "random":
        return _random(keys, values, covariance, rank, seed)
    root = _root(covariance)
    if factor == "split":
        half = min(rank - rank // 2, *keys.shape)
        of_values = min(rank - half, *values.shape)
        half = rank - of_values
        down_k, up_k = _principal(keys, root, half)
        down_v, up_v = _principal(values, root, of_values)
        up_k = torch.cat((up_k, up_k.new_zeros(len(keys), of_values)), dim=1)
        up_v = torch.cat((up_v.new_zeros(len(values), half), up_v), dim=1)
        return torch.cat((down_k, down_v)), up_k, up_v
    of_keys, of_values = _weights(keys @ root, values @ root) if balance else (1.0, 1.0)
    down, up = _principal(torch.cat((of_keys * keys, of_values * values)), root, rank)
    up_k, up_v = up.split([len(keys), len(values)])
    return down, up_k / of_keys, up_v / of_values


def _weights(keys: Tensor, values: Tensor) -> tuple[float, float]:
    """Return what brings keys and values to equal size; rounding alone is no size."""
    sizes = float(keys.norm()), float(values.norm())
    if min(sizes) <= NEGLIGIBLE * max(sizes):
        return 1.0, 1.0
    return 1 / sizes[0], 1 / sizes[1]


def _root(covariance: Tensor) -> Tensor:
    """Return L with L L' = covariance, lifted a little so that unseen directions count last."""
    spread, axes = torch.linalg.eigh((covariance + covariance.T) / 2)
    lift = RIDGE * spread.mean().clamp(min=torch.finfo(spread.dtype).tiny)
    return axes * spread.clamp(min=float(lift)).sqrt()


def _principal(rows: Tensor, root: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return down and up of the best projection of ``rows @ x`` to ``rank`` dims, x ~ root root'.

    Above `EXACT_UP_TO` the smaller Gram matrix stands in for the singular value decomposition,
    which would take minutes a layer; QR mends what squaring cost.
    """
    seen = rows @ root
    if min(seen.shape) <= EXACT_UP_TO:
        basis = torch.linalg.svd(seen, full_matrices=False).U[:, :rank]
    elif seen.shape[0] <= seen.shape[1]:
        basis = torch.linalg.eigh(seen @ seen.T).eigenvectors.flip(-1)[:, :rank]
    else:
        inner = torch.linalg.eigh(seen.T @ seen).eigenvectors.flip(-1)[:, :rank]
        basis = torch.linalg.qr(seen @ inner).Q
    return basis.T @ rows, basis


def _random(
    keys: Tensor, values: Tensor, covariance: Tensor, rank: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a random down-projection with the least-squares up-projections behind it."""
    draw = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, keys.shape[1], generator=draw, dtype=torch.float64)
    down = down.to(keys.device, keys.dtype) / keys.shape[1] ** 0.5
    root = _root(covariance)
    spread = down @ root
    back = torch.linalg.lstsq(spread.T, (torch.cat((keys, values)) @ root).T).solution.T
    up_k, up_v = back.split([len(keys), len(values)])
    return down, up_k, up_v
