"""Online memory of a whole input in a few numbers (gu2020hippo)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trialrun.sequence.hippo._basis import READABLE, longest_age, reading
from trialrun.sequence.hippo._checks import Number, floats, one_of, positive, shown, whole, wide
from trialrun.sequence.hippo._legs import legs_step, legs_sweep
from trialrun.sequence.hippo._runs import run_each, run_fixed
from trialrun.sequence.hippo._transition import (
    METHODS,
    Transition,
    discretise,
    implicit_share,
    transition,
)

_WINDOWS = ("legt", "lmu", "fout")


class HiPPOState(NamedTuple):
    """What a memory holds: ``coefficients`` (batch, order) after ``elapsed`` samples of time.

    ``of`` says whose coefficients they are (``"legt order 64 window 100"``), and another memory
    refuses them; a state made by hand may leave it empty.
    """

    coefficients: Tensor
    elapsed: Number
    of: str = ""


class HiPPO(nn.Module):
    """Remember a signal as coefficients of an orthogonal basis, updated online (gu2020hippo).

    ``legs`` without a window is the scale-free memory: it weighs everything since the beginning
    alike, has no length to choose, and a step costs O(order). Every other measure, and ``legs``
    with a window, advances by a fixed step of 1 / window. All pass gradients to the signal; there
    is nothing to train. Signals narrower than float32 are remembered in float32, under autocast
    too; a state is kept in the wider type of signal and former state.

    The scale-free memory is singular at time 0: its first sample is taken as a constant past, so
    the state after it is (u, 0, 0, ...). It computes in float64, but a state kept in float32 is
    rounded after every call: in more than about a million calls that adds up to 1e-4, and from some
    ten million samples on a single sample is lost in it. Begin such a stream with
    ``start(u.double())``, whose state stays in float64.

    Parameters
    ----------
    measure : str
        As in `transition`. ``legsd`` and ``foud`` can be encoded but not reconstructed.
    order : int, at least 1
        Numbers remembered.
    method : str
        Discretisation, as in `discretise`. ``forward`` is unstable where a step is long for the
        order: in the first ``order`` samples of ``legs``, and at every step of ``legt`` and ``lmu``
        whose window is not many times ``order**2``.
    window : float above 0, or None
        Samples in one unit of time, for every measure but scale-free ``legs``. It must cover what
        is to be remembered.
    share : float in [0, 1]
        For the method ``gbt``.
    alpha, beta : float
        Parameters of ``lagt`` and ``glagt``.

    Raises
    ------
    ValueError
        For an unknown measure or method, a missing or needless window, or a wrong shape.

    Examples
    --------
    >>> memory = HiPPO("legs", order=16)
    >>> ramp = torch.linspace(0, 1, 200)[None]
    >>> state = memory.encode(ramp)
    >>> state.coefficients.shape, state.elapsed
    (torch.Size([1, 16]), 200.0)
    >>> bool((memory.reconstruct(state) - ramp).abs().max() < 0.01)
    True
    """

    def __init__(
        self,
        measure: str = "legs",
        order: int = 64,
        *,
        method: str = "bilinear",
        window: Number | None = None,
        share: Number | None = None,
        alpha: Number | None = None,
        beta: Number | None = None,
    ) -> None:
        super().__init__()
        order = whole("order", order, low=1)
        self.system = transition(measure, order, alpha=alpha, beta=beta)
        one_of("method", method, METHODS)
        self.measure, self.order, self.method, self.window = measure, order, method, window
        self.share = share
        self.tilt = {} if measure not in ("lagt", "glagt") else _tilt(measure, alpha, beta)
        if window is None and measure != "legs":
            raise ValueError(
                f"window must be given for {measure}, the samples in its unit of time; "
                "only legs does without one"
            )
        if window is not None:
            positive("window", window, " samples")
        self.basis = _basis(measure, order, window, self.tilt)
        self.new = implicit_share(method, share)
        self.scaled = window is None
        self.fixed = None if window is None else self._discrete(1.0 / float(window))

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"{self.measure!r}, order={self.order}, method={self.method!r}, window={self.window}"

    def _discrete(self, step: Number | Tensor) -> Transition:
        return discretise(*self.system, step, self.method, share=self.share)

    def systems(self, elapsed: Number, time: int) -> Transition:
        """Return the matrices of the ``time`` steps after ``elapsed`` samples, in float64.

        ``A`` has shape (time, order, order) and ``B`` (time, order).
        """
        if self.fixed is not None:
            A, B = self.fixed
            return Transition(A.expand(time, *A.shape), B.expand(time, *B.shape))
        now = elapsed + torch.arange(1, time + 1, dtype=torch.float64)
        first = int(elapsed == 0)
        steps = _held(now, now - 1) if self.method == "zoh" else 1 / now
        A, B = self._discrete(torch.as_tensor(steps)[first:])
        if first:
            # The first sample stands for a constant past, whatever was there before.
            start = torch.zeros_like(self.system.A)[None]
            A, B = torch.cat([start, A]), torch.cat([torch.eye(self.order)[:1].to(B), B])
        return Transition(A, B)

    def start(self, u: Tensor) -> HiPPOState:
        """Return the empty memory for signals like ``u``, whose first axis is the batch."""
        blank = u.new_zeros(u.shape[0], self.order, dtype=wide(u.dtype))
        return HiPPOState(blank, 0.0, self.basis)

    def step(
        self, u: Float[Tensor, " batch"], state: HiPPOState | None = None, *, interval: Number = 1.0
    ) -> HiPPOState:
        """Take one sample in.

        Parameters
        ----------
        u : tensor of shape (batch,)
        state : HiPPOState or None
            What the last step returned; None before the first.
        interval : float above 0
            Time since the sample before, in samples.

        Raises
        ------
        ValueError
            If the shapes do not fit, the state is another memory's, or the interval is not above 0.
        """
        floats("u", u, ("batch",))
        state = self._checked(state, u)
        interval = positive("interval", interval, " samples")
        with torch.autocast(u.device.type, enabled=False):
            return self._step(u.to(state.coefficients.dtype), state, interval)

    def _step(self, u: Tensor, state: HiPPOState, interval: float) -> HiPPOState:
        now = state.elapsed + interval
        memory = state.coefficients
        if self.scaled and not state.elapsed:
            return state._replace(
                coefficients=nn.functional.pad(u[:, None], (0, self.order - 1)), elapsed=now
            )
        if self.scaled and self.method != "zoh":
            stepped = legs_step(memory, u, interval / now, self.new)
            return state._replace(coefficients=stepped, elapsed=now)
        system: Transition | None
        if self.scaled:
            system = self._discrete(_held(now, state.elapsed))
        else:
            usual = self.fixed is not None and interval == 1.0
            system = self.fixed if usual else self._discrete(interval / float(self.window or 1))
        assert system is not None
        A, B = (part.to(u) for part in system)
        return state._replace(coefficients=memory @ A.T + u[:, None] * B, elapsed=now)

    def forward(
        self,
        u: Float[Tensor, "batch time"],
        state: HiPPOState | None = None,
        *,
        times: Float[Tensor, " time"] | None = None,
    ) -> HiPPOState:
        """Do what `encode` does with ``u``, ``state`` and ``times``."""
        return self.encode(u, state, times=times)

    def encode(
        self,
        u: Float[Tensor, "batch time"],
        state: HiPPOState | None = None,
        *,
        times: Float[Tensor, " time"] | None = None,
    ) -> HiPPOState:
        """Take a sequence in and return the memory after it.

        Parameters
        ----------
        u : tensor of shape (batch, time)
        state : HiPPOState or None
            To go on from; None begins anew.
        times : tensor of shape (time,), or None
            When the samples were taken, in samples and increasing from above what has elapsed;
            None is one after another.

        Raises
        ------
        ValueError
            If shapes or times do not fit, or the state is another memory's.
        """
        memory, last = self._run(u, state, times, every=False)
        return HiPPOState(memory, last, self.basis)

    def states(
        self,
        u: Float[Tensor, "batch time"],
        state: HiPPOState | None = None,
        *,
        times: Float[Tensor, " time"] | None = None,
    ) -> Float[Tensor, "batch time order"]:
        """Return the coefficients after every sample; `encode` says what u, state and times are."""
        return self._run(u, state, times, every=True)[0]

    def reconstruct(
        self,
        state: HiPPOState,
        length: int | None = None,
        *,
        ages: Float[Tensor, " points"] | None = None,
    ) -> Float[Tensor, "batch points"]:
        """Return the remembered signal, oldest sample first.

        Parameters
        ----------
        state : HiPPOState
        length : int, at least 1, or None
            Samples to give back, up to now; None is all that the measure reaches and has seen.
        ages : tensor of shape (points,), or None
            Points to read in place of ``length``, as samples before now: half a sample is the
            middle of the last. From 0 to what has elapsed, and no further back than a window.

        Raises
        ------
        ValueError
            For a memory that has seen nothing, another memory's state, a measure without a basis,
            or wrong arguments.
        """
        held = getattr(state, "coefficients", None)
        state = self._checked(state, held if isinstance(held, Tensor) else torch.empty(1))
        if self.measure not in READABLE:
            raise ValueError(
                f"{self.measure} has no basis to read a signal from: use one of "
                f"{', '.join(READABLE)}"
            )
        if not state.elapsed:
            raise ValueError("the memory is empty, expected at least one sample: encode one first")
        unit = state.elapsed if self.window is None else self.window
        far = min(state.elapsed, unit) if self.measure in _WINDOWS else state.elapsed
        points = self._points(length, far, unit) if ages is None else _ages(ages, length, far)
        table = reading(self.measure, self.order, points / unit, scaled=self.scaled, **self.tilt)
        memory = state.coefficients
        with torch.autocast(memory.device.type, enabled=False):
            return memory @ table.T.to(memory)

    def _points(self, length: int | None, far: Number, unit: Number) -> Tensor:
        """Return the ages of the middles of the last samples, oldest first."""
        if length is None:
            reach = 1.0 if self.scaled else longest_age(self.measure, self.order)
            length = max(1, int(min(far, reach * unit)))
        most = max(1, int(far))
        if whole("length", length, low=1) > most:
            raise ValueError(f"length must be from 1 to {most}, got {length!r}")
        ages = torch.arange(int(length), 0, -1, dtype=torch.float64) - 0.5
        # A first sample may be less than half a sample old.
        return ages.clamp(max=float(far))

    def _checked(self, state: HiPPOState | None, like: Tensor) -> HiPPOState:
        if state is None:
            return self.start(like)
        expected = (like.shape[0], self.order)
        held = getattr(state, "coefficients", None)
        if not isinstance(held, Tensor) or held.shape != expected:
            got = tuple(held.shape) if isinstance(held, Tensor) else type(state).__name__
            raise ValueError(
                f"state must be a HiPPOState with coefficients of shape (batch, order) = "
                f"{expected}, got {got}: is it another memory's?"
            )
        if not held.is_floating_point():
            raise ValueError(f"state must hold real floating-point numbers, got {held.dtype}")
        check_owner(state, self.basis)
        kind = torch.promote_types(wide(like.dtype), wide(held.dtype))
        return HiPPOState(held.to(kind), state.elapsed, self.basis)

    def _gaps(self, time: int, elapsed: Number, times: Tensor | None) -> Tensor | None:
        if times is None:
            return None
        if not isinstance(times, Tensor) or times.shape != (time,):
            raise ValueError(f"times must be a tensor of shape ({time},), got {_shape(times)}")
        when = torch.cat([torch.tensor([elapsed]).double(), times.detach().double().cpu()])
        gaps = when.diff()
        if not bool(((gaps > 0) & gaps.isfinite()).all()):
            raise ValueError(
                f"times must increase from above {elapsed:g} samples, got a gap of "
                f"{float(gaps.min()):g}"
            )
        return gaps

    def _run(
        self, u: Tensor, state: HiPPOState | None, times: Tensor | None, *, every: bool
    ) -> tuple[Tensor, float]:
        floats("u", u, ("batch", "time"))
        state = self._checked(state, u)
        gaps = self._gaps(u.shape[1], state.elapsed, times)
        with torch.autocast(u.device.type, enabled=False):
            return self._advance(u.to(state.coefficients.dtype), state, gaps, every)

    def _advance(
        self, u: Tensor, state: HiPPOState, gaps: Tensor | None, every: bool
    ) -> tuple[Tensor, float]:
        if self.scaled:
            return self._run_scaled(u, state, gaps, every)
        last = state.elapsed + (u.shape[1] if gaps is None else float(gaps.sum()))
        if gaps is not None:
            steps = gaps / float(self.window or 1)
            return run_each(u, state.coefficients, steps, self._discrete, every=every), last
        assert self.fixed is not None
        return run_fixed(u, state.coefficients, self.fixed, every=every), last

    def _run_scaled(
        self, u: Tensor, state: HiPPOState, gaps: Tensor | None, every: bool
    ) -> tuple[Tensor, float]:
        gaps = torch.ones(u.shape[1], dtype=torch.float64) if gaps is None else gaps
        now = state.elapsed + gaps.cumsum(0)
        last = float(now[-1])
        memory, head = state.coefficients, []
        if not state.elapsed:
            memory = nn.functional.pad(u[:, :1], (0, self.order - 1))
            head, u, gaps, now = [memory[:, None]], u[:, 1:], gaps[1:], now[1:]
            if not len(now):
                return (memory[:, None] if every else memory), last
        if self.method == "zoh":
            found = run_each(u, memory, _held(now, now - gaps), self._discrete, every=every)
        else:
            found = legs_sweep(u, (gaps / now).to(u.device), memory, self.new, every=every)
        return (torch.cat([*head, found], dim=1) if every else found), last


def check_owner(state: HiPPOState, basis: str) -> None:
    """Raise unless the state may be of a memory whose coefficients mean ``basis``."""
    if state.of and state.of != basis:
        raise ValueError(
            f"state must be of a memory {basis!r}, got one of {state.of!r}, whose coefficients "
            f"mean something else: use that memory, or encode the signal anew with this one"
        )


def _basis(measure: str, order: int, window: Number | None, tilt: dict[str, float]) -> str:
    numbers = tilt if window is None else {"window": window, **tilt}
    settings = "".join(f" {name} {float(value):.12g}" for name, value in numbers.items())
    return f"{measure} order {order}{settings}"


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _ages(ages: Tensor, length: int | None, far: Number) -> Tensor:
    """Return ages in float64 on the CPU, or raise unless they are 0 to ``far``."""
    if length is not None:
        raise ValueError(f"length must not be given with ages, got {shown(length)}: leave one out")
    if not isinstance(ages, Tensor) or ages.ndim != 1 or not ages.numel() or ages.is_complex():
        raise ValueError(
            f"ages must be a tensor of real numbers of shape (points,), got {_shape(ages)}"
        )
    ages = ages.detach().double().cpu()
    if not bool(((ages >= 0) & (ages <= far)).all()):
        raise ValueError(
            f"ages must be from 0 to {far:g} samples, got {float(ages.min()):g} to "
            f"{float(ages.max()):g}"
        )
    return ages


def _tilt(measure: str, alpha: Number | None, beta: Number | None) -> dict[str, float]:
    usual = 1.0 if measure == "lagt" else 0.01
    return {"alpha": alpha or 0.0, "beta": usual if beta is None else beta}


def _held(now: Number | Tensor, before: Number | Tensor) -> Tensor:
    """Return the length of a step of LegS in the logarithm of time, where it is invariant."""
    return torch.log(torch.as_tensor(now, dtype=torch.float64) / before)
