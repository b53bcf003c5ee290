"""Causal convolution of long sequences by FFT.

Written from the convolution theorem. Both sides are padded to at least the sum of their lengths
less one, so nothing wraps around, and on to a length whose only prime factors are 2, 3 and 5.
"""

from __future__ import annotations

from trialrun.core.extras import need

need("torch", extra="sequence")
need("jaxtyping", extra="sequence")

import torch  # noqa: E402
from jaxtyping import Float  # noqa: E402
from torch import Tensor  # noqa: E402


def smooth_length(least: int) -> int:
    """Return the smallest number from ``least`` on without prime factors above 5.

    Raises
    ------
    ValueError
        If ``least`` is below 1.

    Examples
    --------
    >>> smooth_length(2047), smooth_length(7)
    (2048, 8)
    """
    if least < 1:
        raise ValueError(f"least must be at least 1, got {least!r}")
    best = 1 << (least - 1).bit_length()
    fives = 1
    while fives < best:
        threes = fives
        while threes < best:
            twos = -(-least // threes)
            best = min(best, threes << (twos - 1).bit_length())
            threes *= 3
        fives *= 5
    return best


def causal_conv(
    signal: Float[Tensor, "*#rows time"], kernel: Float[Tensor, "*#rows taps"]
) -> Float[Tensor, "*rows time"]:
    """Return y with ``y[t] = sum over s <= t of kernel[s] * signal[t - s]``, along the last axis.

    Costs O((time + taps) log(time + taps)) per row. Numbers narrower than float32 are widened to
    it inside, under autocast too, since FFTs of half precision are unsafe; the result has the
    signal's type.

    Parameters
    ----------
    signal : tensor of shape (..., time)
    kernel : tensor of shape (..., taps)
        Taps beyond ``time`` are not used. Leading axes of both broadcast.

    Raises
    ------
    ValueError
        If one of them is no tensor, has no axis or is empty.

    Examples
    --------
    >>> y = causal_conv(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([1.0, 0.5]))
    >>> [round(v, 6) for v in y.tolist()]
    [1.0, 0.5, 2.0]
    """
    for name, value in (("signal", signal), ("kernel", kernel)):
        if not isinstance(value, Tensor):
            got = type(value).__name__
            raise ValueError(f"{name} must be a tensor, got {got}")  # noqa: TRY004
        if not value.ndim or not value.shape[-1]:
            raise ValueError(
                f"{name} must have at least one entry along its last axis, "
                f"got shape {tuple(value.shape)}"
            )
    time = signal.shape[-1]
    kernel = kernel[..., :time]
    size = smooth_length(time + kernel.shape[-1] - 1)
    wide = torch.promote_types(torch.promote_types(signal.dtype, kernel.dtype), torch.float32)
    with torch.autocast(signal.device.type, enabled=False):
        spectrum = torch.fft.rfft(signal.to(wide), n=size) * torch.fft.rfft(kernel.to(wide), n=size)
        return torch.fft.irfft(spectrum, n=size)[..., :time].to(signal.dtype)
