"""Two measures behind the paper's words: steady style gradients and flat minima.

The flatness measure follows li2018landscape (filter-normalised random directions); the agreement
of gradients between two random starts is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from trialrun.core.seeds import split
from trialrun.core.shapes import check_range


def gradient_agreement(
    first: Float[Tensor, "batch channels"], second: Float[Tensor, "batch channels"]
) -> float:
    """Return the mean cosine, over pictures, between two draws of a style gradient.

    Parameters
    ----------
    first, second : tensors of shape (batch, channels)

    Raises
    ------
    ValueError
        If the two shapes differ.

    Examples
    --------
    >>> gradient_agreement(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    0.0
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(
            "second must have the shape (batch, channels) of first, "
            f"{tuple(first.shape)}, got {tuple(second.shape)}"
        )
    return float(functional.cosine_similarity(first, second, dim=1, eps=1e-30).mean())


def _direction(weight: Tensor, generator: torch.Generator) -> Tensor:
    """A random step of each filter's own length; biases and normalisers stay."""
    if weight.ndim < 2:
        return torch.zeros_like(weight)
    drawn = torch.randn(weight.shape, generator=generator).to(weight)
    flat, own = drawn.flatten(1), weight.detach().flatten(1)
    scale = own.norm(dim=1, keepdim=True) / flat.norm(dim=1, keepdim=True)
    return (flat * scale).view_as(weight)


@contextmanager
def _moved(weights: list[Tensor], steps: list[Tensor], radius: float) -> Iterator[None]:
    before = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight, step in zip(weights, steps):
                weight.add_(step, alpha=radius)
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before):
                weight.copy_(old)


@torch.no_grad()
def loss_rise(
    module: nn.Module,
    loss_of: Callable[[], Tensor],
    *,
    radius: int | float = 0.1,
    directions: int = 20,
    seed: int = 0,
) -> Tensor:
    """Return how much a loss rises along random directions in weight space (li2018landscape).

    Parameters
    ----------
    module : torch.nn.Module
        Whose weights are moved; every bit is put back, also when the loss raises.
    loss_of : callable
        Returns the loss, a scalar tensor in nats, at the module's present weights. It must draw
        nothing, so that only the weights differ.
    radius : float, above 0
        Length of the step in units of each filter's own norm.
    directions : int, at least 1
    seed : int

    Returns
    -------
    Tensor of shape (directions,)
        Rises in nats.

    Raises
    ------
    ValueError
        For a radius that is not above 0, or a module without a weight matrix.

    Examples
    --------
    >>> layer = nn.Linear(3, 1)
    >>> loss_rise(layer, lambda: layer.bias.sum(), directions=4)
    tensor([0., 0., 0., 0.])
    """
    check_range("radius", radius, low=1e-12)
    check_range("directions", directions, low=1)
    weights: list[Tensor] = list(module.parameters())
    if not any(weight.ndim >= 2 for weight in weights):
        raise ValueError("module must have a weight matrix or filters to move, got none")
    here = loss_of()
    rises = []
    for number in range(directions):
        generator = torch.Generator().manual_seed(split(seed, "direction", number))
        steps = [_direction(weight, generator) for weight in weights]
        with _moved(weights, steps, float(radius)):
            rises.append(loss_of() - here)
    return torch.stack(rises)
