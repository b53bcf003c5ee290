"""The learned mask as features: SpectralRPE (choromanski2023flt).

With N1 and N2 the features of a query's and a key's place, N1 . N2 estimates the mask at their
offset. ``one`` puts the spectrum on the query's side; ``both`` puts it on both, as the authors'
code does, which squares it: such a mask is positive definite and highest at offset 0. Ours, not
theirs: every wave of ``one`` is given equal length on both sides, which the product does not feel
and the noise of random features does; frequencies are a grid in one dimension and fill their range
evenly in more (scrambled Sobol points), where the authors' code draws them independently.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from trialrun.attention import _stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from trialrun.attention._flt_spectra import Kernel, Local, Mixture, Scenic, Spectrum, Waves
from trialrun.core.errors import UsageError
from trialrun.core.seeds import split

KINDS = ("mixture", "asymmetric", "local", "shift", "laplace", "scenic")
SIDES = ("one", "both")
REACH = 16.0
TOKENS = 16.0
MOST_DIMS = torch.quasirandom.SobolEngine.MAXDIM
# The largest below 1 that (1 + p) / 2 keeps below 1 in float32.
_EDGE = 2.0**-23
_LEAST_STRETCH = 0.9


class Sides(NamedTuple):
    """Features of places, (heads, ..., time, 2 freqs): for queries and for keys."""

    query: Tensor
    key: Tensor


def check_whole(name: str, value: Any, low: int = 1) -> None:
    """Raise unless ``value`` is a whole number of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UsageError(f"{name} must be a whole number, at least {low}, got {value!r}")


def _check_positive(name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise UsageError(f"{name} must be a positive number, got {value!r}")


def _grid(heads: int, freqs: int, seed: int) -> Tensor:
    """Return a midpoint grid of (0, 1) for each head, shrunk a little, each by its own factor."""
    generator = torch.Generator().manual_seed(split(seed, "points"))
    draw = torch.rand(heads, 1, 1, generator=generator, dtype=torch.float64)
    cells = (torch.arange(freqs, dtype=torch.float64) + 0.5) / freqs
    return ((_LEAST_STRETCH + (1 - _LEAST_STRETCH) * draw) * cells[:, None]).float()


def _uniform(heads: int, freqs: int, dim: int, seed: int, *, even: bool) -> Tensor:
    """Return points in the open unit cube, (heads, freqs, dim)."""
    if even:
        engines = [
            torch.quasirandom.SobolEngine(dim, scramble=True, seed=split(seed, "points", head))
            for head in range(heads)
        ]
        points = torch.stack([engine.draw(freqs, dtype=torch.float64) for engine in engines])
    else:
        generator = torch.Generator().manual_seed(split(seed, "points"))
        points = torch.rand(heads, freqs, dim, generator=generator, dtype=torch.float64)
    return points.clamp(_EDGE, 1 - _EDGE).float()


class SpectralRPE(nn.Module):
    """Learn a relative-position mask by its Fourier transform (choromanski2023flt).

    The mask f(r_i - r_j) is added, in nats, to the logits of attention, without ever being formed.

    Parameters
    ----------
    dim : int
        Dimension n of the coordinates; 1 for sequences.
    kind : str
        ``mixture``: a mixture of Gaussians in frequency, which learns any even mask;
        ``asymmetric``: the same with sines beside the cosines, so that f(z) and f(-z) may differ;
        ``local``: a learned height on a box of learned half widths, 0 outside; ``shift`` and
        ``laplace``: a Gaussian, or exponential, kernel of learned height and length; ``scenic``:
        the mixture just as in the authors' code (scenic2023performer); for softmax features.
    heads : int
        Masks to learn, one for each attention head; 1 is shared by all.
    sides : str or None
        ``one`` learns any mask of its kind; ``both`` squares the spectrum, and the mask is highest
        at offset 0. None is ``one``, for ``scenic`` ``both``, which is its only form.
    freqs : int
        Frequencies sampled for each head. In one dimension they are a grid up to about
        ``freqs / (2 reach)`` periods per scale (a mixture's up to ``freqs / (1.5 reach)``, at most
        4); what lies above is cut off.
    blobs : int
        Gaussians in a mixture, for each head.
    scale : float or None
        Length over which masks vary to begin with, in the unit of the coordinates. Distances far
        below it are not told apart: its inverse is the spread of a mixture's frequencies, and
        heads of the other kinds begin at half to twice this length. None is 16 (tokens) for
        sequences, and 1 for points of more dimensions and for ``scenic``.
    reach : float
        How many scales apart two places may lie. A sampled mask returns at longer offsets, so
        farther ones are refused: with 64 frequencies ask for more reach where long offsets count
        more than sharp edges, or give a larger ``scale``.
    seed : int
        Decides frequencies and initial parameters.

    Raises
    ------
    ValueError
        If a setting is out of range; `forward` also if coordinates have another dimension, are not
        finite, or spread over more than ``reach`` scales in some row, as unscaled indices do.

    Examples
    --------
    >>> import torch
    >>> rpe = SpectralRPE(kind="shift", scale=2.0)
    >>> query, key = rpe(torch.arange(5.0)[:, None])
    >>> (query[0] @ key[0].T)[3, 1].item()  # about f(2) = exp(-1 / 2)
    0.6...
    """

    points: Tensor
    draws: Tensor

    def __init__(
        self,
        dim: int = 1,
        kind: str = "mixture",
        *,
        heads: int = 1,
        sides: str | None = None,
        freqs: int = 64,
        blobs: int = 25,
        scale: float | None = None,
        reach: float = REACH,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("heads", heads), ("freqs", freqs), ("blobs", blobs)):
            check_whole(name, value)
        if dim > MOST_DIMS:
            raise UsageError(f"dim must be at most {MOST_DIMS}, got {dim}")
        if kind not in KINDS:
            raise UsageError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        self.sides = _sides(kind, sides)
        if scale is None:
            scale = TOKENS if dim == 1 and kind != "scenic" else 1.0
        _check_positive("scale", scale)
        _check_positive("reach", reach)
        self.dim, self.kind, self.heads = dim, kind, heads
        self.freqs, self.blobs, self.seed = freqs, blobs, seed
        self.scale, self.reach = float(scale), float(reach)
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        self.mark = object()
        self.spectrum: Spectrum = self._make_spectrum()
        self.register_buffer("points", self._draw_points())

    def _make_spectrum(self) -> Any:
        settings: dict[str, Any] = {"heads": self.heads, "scale": self.scale}
        if self.kind in ("shift", "laplace"):
            name = "gaussian" if self.kind == "shift" else "laplace"
            return Kernel(name=name, reach=self.reach, **settings)
        settings["dim"] = self.dim
        if self.kind == "local":
            return Local(reach=self.reach, **settings)
        settings["blobs"] = self.blobs
        settings["generator"] = torch.Generator().manual_seed(split(self.seed, "spectrum"))
        if self.kind == "scenic":
            return Scenic(**settings)
        settings |= {"freqs": self.freqs, "reach": self.reach}
        return Mixture(asymmetric=self.kind == "asymmetric", **settings)

    def _draw_points(self) -> Tensor:
        even = self.kind != "scenic"
        seed = split(self.seed, "draw", int(self.draws))
        if even and self.dim == 1:
            return _grid(self.heads, self.freqs, seed)
        return _uniform(self.heads, self.freqs, self.dim, seed, even=even)

    def _apply(self, fn: Any, recurse: bool = True) -> SpectralRPE:
        # `module.half()` must not round the points, of which some lie close to 0 and 1.
        points = self.points
        super()._apply(fn, recurse)
        self.points = points.to(self.points.device)
        return self

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return (
            f"{self.dim}, {self.kind!r}, heads={self.heads}, sides={self.sides!r}, "
            f"freqs={self.freqs}, scale={self.scale:g}, reach={self.reach:g}"
        )

    def redraw(self) -> None:
        """Sample other frequencies, the next of a series that the seed decides.

        In one dimension the grid keeps its form, and its spacing changes by up to a tenth. States
        of an attention from before are refused afterwards.
        """
        self.draws += 1
        self.points.copy_(self._draw_points())
        self.mark = object()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.mark = object()

    def waves(self) -> Waves:
        """Return the sampled frequencies and what each adds to the mask before sides are taken."""
        return self.spectrum(self.points)

    def check_coords(self, coords: Tensor, real: Tensor | None = None) -> None:
        """Raise unless ``coords``, of shape (..., time, dim), can be given to this mask.

        Each row is judged by itself; ``real`` (batch, time) is False where a place is padded.
        """
        self._check_places("coords", coords, "(..., time, ", 2)
        if not coords.numel() or torch.compiler.is_compiling():
            return
        low = high = coords.detach().double()
        if real is not None:
            padded = ~real.unsqueeze(-1)
            low, high = low.masked_fill(padded, math.inf), high.masked_fill(padded, -math.inf)
        spread = (high.amax(-2) - low.amin(-2)).max()
        self.check_spread(float(spread) if real is None or real.any() else 0.0)

    def check_spread(self, spread: float) -> None:
        """Raise unless places may lie so far apart, in the unit of the coordinates."""
        if not math.isfinite(spread):
            raise UsageError("coords must be finite numbers, got infinite or missing ones")
        if spread > self.reach * self.scale:
            raise UsageError(
                f"coords must be scaled to spread over at most {self.reach:g} times the mask's "
                f"scale of {self.scale:g}, got {spread:g}: divide them, an index by the length "
                f"for instance, or give SpectralRPE a larger scale, or more reach and freqs"
            )

    def _check_places(self, name: str, places: Any, lead: str, axes: int) -> None:
        if not isinstance(places, Tensor):
            raise UsageError(f"{name} must be a tensor, got {type(places).__name__}")
        if places.dtype is torch.bool or places.is_complex():
            raise UsageError(f"{name} must hold real numbers, got {places.dtype}")
        if places.ndim < axes or places.shape[-1] != self.dim:
            raise UsageError(
                f"{name} must have shape {lead}{self.dim}), one coordinate for each dimension of "
                f"the mask, got {tuple(places.shape)}"
            )

    def forward(self, coords: Shaped[Tensor, "*rows time dim"]) -> Sides:
        """Return the features of places, whose product is the estimated mask.

        Parameters
        ----------
        coords : tensor of shape (..., time, dim)
            Where each token lies.

        Returns
        -------
        Sides
            ``query`` and ``key``, tensors of shape (heads, ..., time, 2 * freqs).
        """
        self.check_coords(coords)
        return self.features(coords)

    def features(self, coords: Tensor) -> Sides:
        """Return what `forward` does, without looking at the values of ``coords``."""
        waves = self.waves()
        lead = (self.heads, *(1,) * (coords.ndim - 2))
        frequencies = waves.frequencies.double().transpose(1, 2)
        turns = coords.double() @ frequencies.reshape(*lead, *frequencies.shape[1:])
        # Whole turns go while the numbers are still exact: index 10**6 keeps its phase.
        angle = 2 * math.pi * (turns - turns.detach().round()).to(waves.even.dtype)
        cos, sin = angle.cos(), angle.sin()
        even = (waves.even / math.sqrt(self.freqs)).reshape(*lead, 1, self.freqs)
        if self.sides == "both":
            side = torch.cat((even * cos, even * sin), dim=-1)
            return Sides(side, side)
        if waves.odd is None:
            query = torch.cat((even * cos, even * sin), dim=-1)
            power = waves.even.square()
        else:
            odd = (waves.odd / math.sqrt(self.freqs)).reshape(*lead, 1, self.freqs)
            query = torch.cat((even * cos + odd * sin, even * sin - odd * cos), dim=-1)
            power = waves.even.square() + waves.odd.square()
        # Every wave is of equal length on both sides; the small number keeps 0 differentiable.
        weight = (power + 1e-4).pow(0.25).repeat(1, 2).reshape(*lead, 1, 2 * self.freqs)
        key = torch.cat((cos, sin), dim=-1) / math.sqrt(self.freqs)
        return Sides(query / weight, key * weight)

    def mask(self, offsets: Float[Tensor, "*rows dim"]) -> Float[Tensor, "heads ..."]:
        """Return the mask as estimated by the sampled frequencies, at offsets r_i - r_j.

        Parameters
        ----------
        offsets : tensor of shape (..., dim)
        """
        self._check_places("offsets", offsets, "(..., ", 1)
        there = self.features(offsets.unsqueeze(-2))
        origin = self.features(offsets.new_zeros(1, self.dim))
        at_origin = origin.key.reshape(self.heads, *(1,) * offsets.ndim, -1)
        return (there.query * at_origin).sum((-1, -2))

    def exact(self, offsets: Float[Tensor, "*rows dim"]) -> Float[Tensor, "heads ..."]:
        """Return the mask that the estimate of ``sides="one"`` converges to.

        Parameters
        ----------
        offsets : tensor of shape (..., dim)

        Raises
        ------
        ValueError
            If ``sides`` is ``both``, whose limit has no closed form here.
        """
        self._check_places("offsets", offsets, "(..., ", 1)
        if self.sides == "both":
            raise UsageError(
                "exact has a closed form for sides='one' only, got sides='both': use mask()"
            )
        return self.spectrum.exact(offsets)


def _sides(kind: str, sides: str | None) -> str:
    if sides is None:
        return "both" if kind == "scenic" else "one"
    if sides not in SIDES:
        raise UsageError(f"sides must be one of {', '.join(SIDES)}, got {sides!r}")
    if kind == "scenic" and sides == "one":
        raise UsageError(
            "kind 'scenic' has its spectrum on both sides, got sides='one': use kind='mixture'"
        )
    if kind == "asymmetric" and sides == "both":
        raise UsageError(
            "sides='both' makes every mask even, got kind='asymmetric': use sides='one'"
        )
    return sides
