"""What the losses share: checks of posteriors, rolled negatives and a module's own randomness."""

from __future__ import annotations

import math
from typing import Any

from trialrun.representation.mcinfonce import _stack  # noqa: F401

# isort: split
import torch
from torch import Tensor, nn

from trialrun.core.seeds import split
from trialrun.representation.mcinfonce._vmf import VonMisesFisher


def whole(name: str, value: Any, *, low: int) -> int:
    """Return ``value``, or raise unless it is a whole number of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}")
    return value


def finite(name: str, value: Any) -> float:
    """Return ``value``, or raise unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, float | int) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def positive(name: str, value: Any, *, zero: bool = False) -> float:
    """Return ``value``, or raise unless it is a number above 0 (or 0, where that is allowed)."""
    fits = isinstance(value, float | int) and not isinstance(value, bool) and value < float("inf")
    if not fits or not (value > 0 or (zero and value == 0)):
        bound = "at least 0" if zero else "above 0"
        raise ValueError(f"{name} must be a finite number {bound}, got {value!r}")
    return float(value)


def kappa_range(kappa: Any, *, number: bool = True) -> tuple[float, float]:
    """Return (low, high), low at most high; of one number, where that is allowed, it twice."""
    pair = (kappa, kappa) if number and isinstance(kappa, float | int) else kappa
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        form = "a number or (low, high)" if number else "(low, high)"
        raise ValueError(f"kappa must be {form}, got {kappa!r}")
    low, high = (positive("kappa", value) for value in pair)
    if low > high:
        raise ValueError(f"kappa must be (low, high) with low at most high, got {kappa!r}")
    return low, high


def check_posteriors(
    ref: VonMisesFisher, pos: VonMisesFisher, neg: VonMisesFisher | None, rolled: int
) -> tuple[VonMisesFisher, VonMisesFisher]:
    """Return ref and pos with batch shape (batch,), once all three go together.

    Raises
    ------
    ValueError
        Saying which of them has which shape, and what was expected.
    """
    for name, post in (("ref", ref), ("pos", pos), ("neg", neg)):
        if not isinstance(post, VonMisesFisher) and not (name == "neg" and post is None):
            raise ValueError(
                f"{name} must be a VonMisesFisher, as VMFEncoder returns, got {type(post).__name__}"
            )
    dtypes = [post.mu.dtype for post in (ref, pos, neg) if post is not None]
    if len(set(dtypes)) > 1:
        raise ValueError(
            "ref, pos and neg must have one dtype, got "
            + ", ".join(str(dtype) for dtype in dtypes)
            + ": convert what the encoder is given"
        )
    if len(ref.batch_shape) != 1:
        raise ValueError(f"ref must have batch shape (batch,), got {tuple(ref.batch_shape)}")
    size = ref.batch_shape[0]
    if pos.batch_shape == (size, 1):
        pos = pos[:, 0]
    if pos.batch_shape != (size,) or pos.dim != ref.dim:
        raise ValueError(
            f"pos must have batch shape ({size},) or ({size}, 1) and dim {ref.dim} like ref, "
            f"got {tuple(pos.batch_shape)} and dim {pos.dim}"
        )
    if neg is None:
        if size < rolled + 1:
            raise ValueError(
                f"without neg the other rows' positives serve, so the batch must have at least "
                f"{rolled + 1} rows for rolled={rolled}, got {size}"
            )
    elif len(neg.batch_shape) != 2 or neg.batch_shape[0] != size or neg.dim != ref.dim:
        raise ValueError(
            f"neg must have batch shape ({size}, negatives) and dim {ref.dim} like ref, "
            f"got {tuple(neg.batch_shape)} and dim {neg.dim}"
        )
    elif neg.batch_shape[1] == 0:
        raise ValueError(
            "neg must hold at least 1 negative per row; leave it out to take other rows' positives"
        )
    return ref, pos


class PosteriorLoss(nn.Module):
    """A loss of the posteriors of references, their positives and some negatives."""

    def __init__(self, rolled: int) -> None:
        super().__init__()
        self.rolled = whole("rolled", rolled, low=1)

    def forward(
        self, ref: VonMisesFisher, pos: VonMisesFisher, neg: VonMisesFisher | None = None
    ) -> Tensor:
        """Return the loss in nats per row.

        Parameters
        ----------
        ref, pos : VonMisesFisher of batch shape (batch,); pos may be (batch, 1)
        neg : VonMisesFisher of batch shape (batch, negatives), or None
            None takes the positives of other rows.
        """
        ref, pos = check_posteriors(ref, pos, neg, self.rolled)
        return self._loss(ref, pos, neg)

    def _loss(self, ref: VonMisesFisher, pos: VonMisesFisher, neg: VonMisesFisher | None) -> Tensor:
        raise NotImplementedError


class Drawing(PosteriorLoss):
    """A loss that draws from posteriors, with randomness of its own.

    In training every call goes on along one stream; in eval mode every call starts the same one
    anew, so that two values can be compared. The seed is part of the state, the stream's place
    is not.
    """

    def __init__(self, n_samples: int, rolled: int, seed: int) -> None:
        super().__init__(rolled)
        self.n_samples = whole("n_samples", n_samples, low=1)
        self.seed = whole("seed", seed, low=0)
        self._streams: dict[str, torch.Generator] = {}

    def _generator(self, device: torch.device) -> torch.Generator:
        key = str(device)
        if not self.training:
            return torch.Generator(device).manual_seed(split(self.seed, "eval"))
        if key not in self._streams:
            self._streams[key] = torch.Generator(device).manual_seed(split(self.seed, "train"))
        return self._streams[key]

    def get_extra_state(self) -> Tensor:
        """Return the seed, so that a loaded loss draws what the saved one drew."""
        return torch.tensor(self.seed)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over a saved seed, and start its stream anew.

        Parameters
        ----------
        state : Tensor ()
            What `get_extra_state` returned.
        """
        self.seed, self._streams = int(state), {}

    def _cosines(
        self, ref: VonMisesFisher, pos: VonMisesFisher, neg: VonMisesFisher | None
    ) -> tuple[Tensor, Tensor]:
        """Draw from all and return cosines of ref with pos (S, batch), with neg (S, batch, M)."""
        generator = self._generator(ref.mu.device)
        shape = (self.n_samples,)
        r = ref.rsample(shape, generator=generator)
        p = pos.rsample(shape, generator=generator)
        near = (r * p).sum(-1)
        if neg is not None:
            n = neg.rsample(shape, generator=generator)
            return near, (n @ r[..., None]).squeeze(-1)
        far = [(r * p.roll(shift, dims=1)).sum(-1) for shift in range(1, self.rolled + 1)]
        return near, torch.stack(far, dim=-1)

    def extra_repr(self) -> str:
        """Name the number of draws and of rolled negatives."""
        return f"n_samples={self.n_samples}, rolled={self.rolled}"
