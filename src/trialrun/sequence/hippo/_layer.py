"""What S4 and S4D share: a linear system per channel, run as a convolution or step by step."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from trialrun.blocks.convolution import causal_conv
from trialrun.core.seeds import split
from trialrun.core.shapes import check_range
from trialrun.sequence.hippo._checks import (
    Number,
    fits,
    floats,
    number,
    one_of,
    positive,
    whole,
    wide,
)

MIXES = ("glu", "linear", "none")


class SSMLayer(nn.Module):
    """Run one linear system per channel, then mix channels; the base of `S4` and `S4D`.

    A system maps the channel's input u to Re(C x) with x' = A x + B u, sampled at steps of its own
    learned length. The layer returns mix(gelu(y + D u)), without residual or normalisation.

    Parameters
    ----------
    d_model : int, at least 1
        Channels.
    d_state : int, even, at least 2
        Real numbers of state per channel.
    dt_range : (float, float)
        Steps are drawn from here, evenly in the logarithm; in units of the system's time.
    mix : str
        ``glu`` (gated linear map over channels), ``linear``, or ``none``: y + D u as it is.
    dropout : float in [0, 1)
        Before mixing.
    seed : int
        Give each layer of a stack its own.

    Raises
    ------
    ValueError
        If a size or a range is wrong.
    """

    dynamics: tuple[str, ...] = ("log_dt",)

    def __init__(
        self,
        d_model: int,
        d_state: int,
        *,
        dt_range: tuple[Number, Number],
        mix: str,
        dropout: Number,
        seed: int,
    ) -> None:
        super().__init__()
        d_model, d_state = whole("d_model", d_model, low=1), whole("d_state", d_state, low=2)
        if d_state % 2:
            raise ValueError(
                f"d_state must be even, as states come in conjugate pairs, got {d_state}"
            )
        if not isinstance(dt_range, tuple | list) or len(dt_range) != 2:
            raise ValueError(f"dt_range must be a pair 0 < low <= high, got {dt_range!r}")
        low, high = (positive("dt_range", end) for end in dt_range)
        if low > high:
            raise ValueError(f"dt_range must hold 0 < low <= high, got {dt_range!r}")
        one_of("mix", mix, MIXES)
        check_range("dropout", number("dropout", dropout), low=0, high=1 - 1e-9)
        self.d_model, self.d_state, self.mix_kind = d_model, d_state, mix
        random = torch.Generator().manual_seed(split(seed, "ssm"))
        spread = torch.rand(d_model, generator=random)
        self.log_dt = nn.Parameter(math.log(low) + spread * (math.log(high) - math.log(low)))
        self.C = nn.Parameter(
            torch.randn(d_model, d_state // 2, 2, generator=random) * math.sqrt(0.5)
        )
        self.D = nn.Parameter(torch.randn(d_model, generator=random))
        self.dropout = nn.Dropout(dropout)
        self.mix: nn.Module = nn.Identity()
        if mix != "none":
            self.mix = seeded_linear(d_model, d_model * (2 if mix == "glu" else 1), random)

    def extra_repr(self) -> str:
        """Show the sizes in ``repr``."""
        return f"d_model={self.d_model}, d_state={self.d_state}, mix={self.mix_kind!r}"

    def forward(
        self, x: Float[Tensor, "batch time width"], *, rate: Number = 1.0
    ) -> Float[Tensor, "batch time width"]:
        """Map whole sequences, by FFT, at O(time log time).

        Parameters
        ----------
        x : tensor of shape (batch, time, d_model)
        rate : float above 0
            Factor on every step's length: 2 for a signal sampled half as often as in training.

        Raises
        ------
        ValueError
            If ``x`` has another shape or type, or ``rate`` is not above 0.
        """
        self._check_x(x, ("batch", "time", "width"))
        kernel = self.kernel(x.shape[1], rate=rate)
        y = causal_conv(x.transpose(1, 2), kernel).transpose(1, 2)
        return self._mixed(y, x)

    def kernel(self, length: int, *, rate: Number = 1.0) -> Float[Tensor, "width length"]:
        """Return each channel's impulse response, without D.

        Parameters
        ----------
        length : int, at least 1
            Samples.
        rate : float above 0
            As in `forward`.

        Raises
        ------
        ValueError
            If ``length`` or ``rate`` is out of range.
        """
        length, rate = whole("length", length, low=1), positive("rate", rate)
        with torch.autocast(self.C.device.type, enabled=False):
            return self._kernel(length, rate).to(wide(self.C.dtype))

    def start(self, batch: int) -> Complex[Tensor, "batch width pairs"]:
        """Return the state before the first step, for ``batch`` sequences."""
        kind = torch.complex128 if self.C.dtype == torch.float64 else torch.complex64
        return torch.zeros(batch, self.d_model, self.d_state // 2, dtype=kind, device=self.C.device)

    def step(
        self,
        x: Float[Tensor, "batch width"],
        state: Complex[Tensor, "batch width pairs"] | None = None,
        *,
        rate: Number | Float[Tensor, " batch"] = 1.0,
    ) -> tuple[Float[Tensor, "batch width"], Complex[Tensor, "batch width pairs"]]:
        """Map one step; what `forward` gives at that time, from the same weights.

        Parameters
        ----------
        x : tensor of shape (batch, d_model)
        state : complex tensor of shape (batch, d_model, d_state / 2), or None
            What the last step returned; None before the first.
        rate : float above 0, or for `S4D` a tensor of shape (batch,)
            Length of this step as a factor, so steps need not be even.

        Returns
        -------
        tensor of shape (batch, d_model), and the state after the step

        Raises
        ------
        ValueError
            If a shape does not fit, or the state is another layer's.
        """
        self._check_x(x, ("batch", "width"))
        if isinstance(rate, Tensor) and rate.ndim:
            if rate.shape != x.shape[:1]:
                raise ValueError(
                    f"rate must be a number above 0, or of shape (batch,) = ({len(x)},), got shape "
                    f"{tuple(rate.shape)}"
                )
            rate = rate[:, None]
        y, state = self.scan(x[:, None], state, rate=rate)
        return y[:, 0], state

    def scan(
        self,
        x: Float[Tensor, "batch time width"],
        state: Complex[Tensor, "batch width pairs"] | None = None,
        *,
        rate: Number | Float[Tensor, "batch time"] = 1.0,
    ) -> tuple[Float[Tensor, "batch time width"], Complex[Tensor, "batch width pairs"]]:
        """Map a sequence through the recurrence, going on from a state and returning the next.

        Parameters
        ----------
        x : tensor of shape (batch, time, d_model)
        state : complex tensor of shape (batch, d_model, d_state / 2), or None
        rate : float above 0, or for `S4D` a tensor of shape (batch, time)
            As in `forward`; a tensor gives each step's own.

        Raises
        ------
        ValueError
            As in `step`.
        """
        self._check_x(x, ("batch", "time", "width"))
        state = self._checked_state(state, x.shape[0])
        with torch.autocast(x.device.type, enabled=False):
            y, state = self._scan(x.to(state.real.dtype), state, rate)
        return self._mixed(y.to(x.dtype), x), state

    def _kernel(self, length: int, rate: Number) -> Tensor:
        raise NotImplementedError

    def _scan(self, x: Tensor, state: Tensor, rate: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _mixed(self, y: Tensor, x: Tensor) -> Tensor:
        y = y + x * self.D
        if self.mix_kind == "none":
            return y
        y = self.mix(self.dropout(nn.functional.gelu(y)))
        return nn.functional.glu(y, dim=-1) if self.mix_kind == "glu" else y

    def _dt(self, rate: Number | Tensor) -> Tensor:
        return torch.exp(self.log_dt.double()) * rate

    def _check_x(self, x: Tensor, axes: tuple[str, ...]) -> None:
        floats("x", x, axes)
        if x.shape[-1] != self.d_model:
            raise ValueError(f"x must have {self.d_model} channels, got {x.shape[-1]}")
        fits("x", x, self.C, "layer")

    def _checked_state(self, state: Tensor | None, batch: int) -> Tensor:
        blank = self.start(batch)
        if state is None:
            return blank
        if not isinstance(state, Tensor) or state.shape != blank.shape or not state.is_complex():
            tensor = isinstance(state, Tensor)
            shape = f"{state.dtype} {tuple(state.shape)}" if tensor else type(state).__name__
            raise ValueError(
                f"state must be complex of shape (batch, d_model, d_state / 2) = "
                f"{tuple(blank.shape)}, got {shape}: is it another layer's?"
            )
        return state.to(blank)


def as_complex(pairs: Tensor) -> Tensor:
    """Return a parameter stored as (..., 2) as complex128."""
    return torch.view_as_complex(pairs.double().contiguous())


def as_pairs(values: Tensor) -> Tensor:
    """Return complex values as float32 (..., 2), the form in which they are stored."""
    return torch.view_as_real(values.to(torch.complex64).resolve_conj().contiguous()).clone()


def seeded_linear(inputs: int, outputs: int, random: torch.Generator) -> nn.Linear:
    """Make a linear map with torch's usual start, from a generator of one's own."""
    made = torch.nn.utils.skip_init(nn.Linear, inputs, outputs)
    bound = 1 / math.sqrt(inputs)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.uniform_(-bound, bound, generator=random)
    return made
