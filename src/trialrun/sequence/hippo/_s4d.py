"""S4D: a diagonal state matrix (gu2022s4d)."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trialrun.blocks.scan import linear_scan
from trialrun.sequence.hippo._checks import Number, one_of, positive
from trialrun.sequence.hippo._layer import SSMLayer, as_complex
from trialrun.sequence.hippo._nplr import nplr

INITS = ("lin", "inv", "legs", "real")
DISCS = ("zoh", "bilinear")


class S4D(SSMLayer):
    """Map sequences by one diagonal linear system per channel (gu2022s4d).

    `forward` convolves, `scan` and `step` run the recurrence, from the same weights. Exponents are
    taken in float64, so the kernel in float32 stays accurate at lengths of 10**5 and more; it costs
    O(d_state * length) per channel as one matrix product, in O(length + d_state * sqrt(length))
    memory. Under autocast, and for bfloat16 input, the system runs in float32.

    Parameters
    ----------
    d_model : int, at least 1
        Channels.
    d_state : int, even, at least 2
        Real numbers of state per channel: conjugate pairs of poles.
    init : str
        Poles: ``lin`` -1/2 + i pi n, ``inv`` -1/2 + i (N/pi) (N/(2n+1) - 1), ``legs`` the
        eigenvalues of the normal part of LegS, ``real`` -(n+1), which stays real.
    disc : str
        ``zoh`` or ``bilinear``.
    dt_range : (float, float)
        Steps are drawn from here, evenly in the logarithm; 1 / dt is about how many samples a
        channel remembers.
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
    >>> layer = S4D(d_model=2, d_state=8)
    >>> x = torch.randn(1, 100, 2, generator=torch.Generator().manual_seed(0))
    >>> y = layer(x)
    >>> state = None
    >>> for t in range(100):
    ...     y_t, state = layer.step(x[:, t], state)
    >>> bool(torch.allclose(y_t, y[:, -1], atol=1e-5))
    True
    """

    dynamics = ("log_dt", "log_decay", "frequency")

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        init: str = "lin",
        disc: str = "zoh",
        dt_range: tuple[Number, Number] = (1e-3, 1e-1),
        mix: str = "glu",
        dropout: Number = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(d_model, d_state, dt_range=dt_range, mix=mix, dropout=dropout, seed=seed)
        one_of("init", init, INITS)
        one_of("disc", disc, DISCS)
        self.disc = disc
        poles = _poles(init, self.d_state).expand(self.d_model, -1)
        self.log_decay = nn.Parameter(torch.log(-poles.real).float())
        self.frequency = nn.Parameter(poles.imag.float().clone(), requires_grad=init != "real")

    def _poles(self) -> Tensor:
        return torch.complex(-torch.exp(self.log_decay.double()), self.frequency.double())

    def _discrete(self, rate: Number | Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithm of the factor per step, and the input's weight, in complex128."""
        poles, dt = self._poles(), self._dt(rate)[..., None]
        if self.disc == "zoh":
            log_factor = dt * poles
            return log_factor, (torch.exp(log_factor) - 1) / poles
        half = 0.5 * dt * poles
        return torch.log(1 + half) - torch.log(1 - half), dt / (1 - half)

    def _kernel(self, length: int, rate: Number) -> Float[Tensor, "width length"]:
        log_factor, weight = self._discrete(rate)
        # Sample l = q * run + r, so that factor**l is a product of two of few powers each.
        run = 1 << ((length - 1).bit_length() + 1) // 2
        rows = -(-length // run)
        q = torch.arange(rows, device=weight.device) * run
        r = torch.arange(run, device=weight.device)
        left = (2 * as_complex(self.C) * weight)[..., None] * torch.exp(log_factor[..., None] * q)
        right = torch.exp(log_factor[..., None] * r)
        kind = torch.float64 if self.C.dtype == torch.float64 else torch.float32
        first = torch.cat([left.real, -left.imag], dim=1).to(kind)
        second = torch.cat([right.real, right.imag], dim=1).to(kind)
        return (first.transpose(1, 2) @ second).flatten(1)[:, :length]

    def scan(
        self,
        x: Float[Tensor, "batch time width"],
        state: Tensor | None = None,
        *,
        rate: Number | Float[Tensor, "batch time"] = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Map a sequence by a parallel scan, going on from a state and returning the next.

        Parameters
        ----------
        x : tensor of shape (batch, time, d_model)
        state : complex tensor of shape (batch, d_model, d_state / 2), or None
        rate : float above 0, or tensor of shape (batch, time)
            Length of each step as a factor: time since the sample before, for uneven sampling.

        Raises
        ------
        ValueError
            If a shape does not fit, a rate is not above 0, or the state is another layer's.
        """
        return super().scan(x, state, rate=rate)

    def _scan(self, x: Tensor, state: Tensor, rate: Any) -> tuple[Tensor, Tensor]:
        if isinstance(rate, Tensor) and rate.ndim:
            right = rate.shape == x.shape[:2] and not rate.is_complex()
            if not right or not bool(((rate > 0) & rate.isfinite()).all()):
                least = (
                    "" if rate.is_complex() or not rate.numel() else f" with least {rate.min():g}"
                )
                raise ValueError(
                    f"rate must be finite, above 0 and of shape (batch, time) = "
                    f"{tuple(x.shape[:2])}, got shape {tuple(rate.shape)}{least}"
                )
            log_factor, weight = self._discrete(rate.double()[..., None])
        else:
            log_factor, weight = self._discrete(positive("rate", rate))
        factor, weight = torch.exp(log_factor).to(state.dtype), weight.to(state.dtype)
        # With one factor for all steps there is no axis of time in it, and none is made.
        states = linear_scan(factor, weight * x[..., None], state)
        C = as_complex(self.C).to(state.dtype)
        read = torch.einsum("bthn,hn->bth", states, C)
        return 2 * read.real, states[:, -1]


def _poles(init: str, d_state: int) -> Tensor:
    n = torch.arange(d_state // 2, dtype=torch.float64)
    if init == "legs":
        return nplr("legs", d_state).poles
    if init == "real":
        return torch.complex(-(n + 1), torch.zeros_like(n))
    if init == "lin":
        return torch.complex(torch.full_like(n, -0.5), math.pi * n)
    return torch.complex(torch.full_like(n, -0.5), d_state / math.pi * (d_state / (2 * n + 1) - 1))
