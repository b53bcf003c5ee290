"""S4: a diagonal minus low rank state matrix, through its generating function (gu2022s4).

The kernel's generating function at z is C (I - A' z)^-1 B' with the bilinear A', B'. With
g = 2 (1 - z) / (1 + z) it is 2 / (1 + z) * C (g - dt A)^-1 dt B, and Woodbury's identity leaves
sums over poles of v / (g - pole): Cauchy products. Ours: z runs on a circle of radius below 1, so
that what lies beyond the length is damped to 1e-10 of itself and need not be subtracted; the
released code subtracts it by powers of A', and so fixes a length.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trialrun.blocks.convolution import smooth_length
from trialrun.sequence.hippo._checks import Number, positive
from trialrun.sequence.hippo._layer import SSMLayer, as_complex, as_pairs
from trialrun.sequence.hippo._nplr import nplr

_LEAK = 1e-10
_BLOCK = 1 << 22
_LEAST_DECAY = 1e-4


class S4(SSMLayer):
    """Map sequences by one diagonal minus low rank linear system per channel (gu2022s4).

    `forward` convolves, `scan` and `step` run the recurrence, from the same weights at any length.
    The kernel is computed in float64 at O(length * d_state) per channel, with blocks of frequencies
    computed anew in the backward pass to keep memory low. The discretisation is bilinear; a step
    costs O(d_state). `scan` is a loop over time here: use `S4D` for a parallel one.

    Parameters
    ----------
    d_model : int, at least 1
        Channels.
    d_state : int, even, at least 2
        Real numbers of state per channel.
    measure : str
        Where the state matrix starts: ``legs``, ``legt`` or ``fout``. Poles of the latter two lie
        on the imaginary axis and start with a decay of 1e-4, so that they stay stable.
    dt_range : (float, float)
        Steps are drawn from here, evenly in the logarithm.
    mix : str
        ``glu``, ``linear`` or ``none``.
    dropout : float in [0, 1)
    seed : int

    Raises
    ------
    ValueError
        For an unknown word, a size out of range, or a wrong shape.

    Examples
    --------
    >>> layer = S4(d_model=2, d_state=8)
    >>> x = torch.randn(1, 50, 2, generator=torch.Generator().manual_seed(0))
    >>> y, state = layer.scan(x)
    >>> bool(torch.allclose(y, layer(x), atol=1e-5))
    True
    """

    dynamics = ("log_dt", "log_decay", "frequency", "P", "B")

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        measure: str = "legs",
        dt_range: tuple[Number, Number] = (1e-3, 1e-1),
        mix: str = "glu",
        dropout: Number = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(d_model, d_state, dt_range=dt_range, mix=mix, dropout=dropout, seed=seed)
        form = nplr(measure, self.d_state)
        decay = (-form.poles.real).clamp(min=_LEAST_DECAY)
        self.log_decay = nn.Parameter(torch.log(decay).float().expand(self.d_model, -1).clone())
        self.frequency = nn.Parameter(form.poles.imag.float().expand(self.d_model, -1).clone())
        self.P = nn.Parameter(as_pairs(form.P).expand(self.d_model, -1, -1, -1).clone())
        self.B = nn.Parameter(as_pairs(form.B).expand(self.d_model, -1, -1).clone())

    def _system(self, rate: Number) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return poles (width, pairs), P (width, rank, pairs), B and C, for a step of length 1."""
        dt = self._dt(positive("rate", rate))[:, None]
        poles = torch.complex(-torch.exp(self.log_decay.double()), self.frequency.double())
        root = torch.sqrt(dt)[..., None]
        return dt * poles, root * as_complex(self.P), dt * as_complex(self.B), as_complex(self.C)

    def _kernel(self, length: int, rate: Number) -> Float[Tensor, "width length"]:
        poles, P, B, C = self._system(rate)
        size = smooth_length(2 * length)
        log_radius = math.log(_LEAK) / size
        place = torch.arange(size // 2 + 1, dtype=torch.float64, device=poles.device)
        z = torch.exp(
            torch.complex(torch.full_like(place, log_radius), -2 * math.pi * place / size)
        )
        block = max(1, _BLOCK // poles.numel())
        parts = z.split(block)
        if len(parts) > 1 and torch.is_grad_enabled():
            found = [checkpoint(_transfer, p, poles, P, B, C, use_reentrant=False) for p in parts]
        else:
            found = [_transfer(part, poles, P, B, C) for part in parts]
        kernel = torch.fft.irfft(torch.cat(found, dim=1), n=size)[:, :length]
        return kernel * torch.exp(-log_radius * torch.arange(length, device=z.device).double())

    def _scan(self, x: Tensor, state: Tensor, rate: Any) -> tuple[Tensor, Tensor]:
        poles, P, B, C = self._system(rate)
        inverse = 1 / (1 - 0.5 * poles)
        lifted = inverse[:, None] * P
        rank = P.shape[1]
        # Half of P P* is what the low rank part adds on the implicit side.
        gram = torch.einsum("hin,hjn->hij", P.conj(), lifted).real
        settle = torch.linalg.inv(torch.eye(rank, dtype=gram.dtype, device=gram.device) + gram)
        kind = state.dtype
        poles, P, B, C, inverse, lifted = (v.to(kind) for v in (poles, P, B, C, inverse, lifted))
        settle, P_conj, outputs = settle.to(x.dtype), P.conj().resolve_conj(), []
        for now in x.unbind(1):
            pushed = torch.einsum("hin,bhn->bhi", P_conj, state).real
            right = state + 0.5 * poles * state + B * now[..., None]
            right = right - torch.einsum("bhi,hin->bhn", pushed.to(kind), P)
            free = inverse * right
            held = torch.einsum("hin,bhn->bhi", P_conj, free).real
            held = torch.einsum("hij,bhj->bhi", settle, held)
            state = free - torch.einsum("bhi,hin->bhn", held.to(kind), lifted)
            outputs.append(2 * torch.einsum("bhn,hn->bh", state, C).real)
        return torch.stack(outputs, dim=1), state


def _transfer(z: Tensor, poles: Tensor, P: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Return the generating function of every channel's kernel at ``z``."""
    g = (2 * (1 - z) / (1 + z))[:, None]
    left = torch.cat([C[:, None], P.conj()], dim=1)
    right = torch.cat([B[:, None], P], dim=1)
    weights = left[:, :, None] * right[:, None]
    # A pole and its conjugate make one fraction with real coefficients.
    slope = 2 * weights.real
    level = -2 * (weights * poles.conj()[:, None, None]).real
    below = g * (g - 2 * poles.real[:, None]) + poles.abs().square()[:, None]
    coefficients = torch.cat([slope.flatten(1, 2), level.flatten(1, 2)], dim=1).to(g.dtype)
    sums = (1 / below) @ coefficients.transpose(1, 2)
    one, two = sums.chunk(2, dim=-1)
    rank = P.shape[1]
    r = (g * one + two).unflatten(-1, (rank + 1, rank + 1))
    direct, out, back = r[..., 0, 0], r[..., 0, 1:], r[..., 1:, 0]
    return 2 / (1 + z) * (direct - (out * _solved(r[..., 1:, 1:], back)).sum(-1))


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve (1 + matrix) x = right for the ranks there are, 1 and 2, in closed form."""
    if matrix.shape[-1] == 1:
        return right / (1 + matrix[..., 0])
    a, b = 1 + matrix[..., 0, 0], matrix[..., 0, 1]
    c, d = matrix[..., 1, 0], 1 + matrix[..., 1, 1]
    first = d * right[..., 0] - b * right[..., 1]
    second = a * right[..., 1] - c * right[..., 0]
    return torch.stack([first, second], dim=-1) / (a * d - b * c)[..., None]
