"""A network's features: from which layer, pooled how, in which state and precision it runs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from trialrun.core.errors import UsageError

POOLS = ("mean", "first")
PRECISIONS = ("float32", "bfloat16")
Features = Callable[[Tensor], Tensor]


def _is_timm(model: nn.Module) -> bool:
    return all(hasattr(model, name) for name in ("forward_features", "forward_head"))


def _pooled(features: Tensor, pool: str) -> Tensor:
    """Make one row an image: feature maps are averaged, tokens averaged or the first one taken."""
    if features.ndim == 4:
        return features.mean(dim=(2, 3))
    if features.ndim == 3:
        return features[:, 0] if pool == "first" else features.mean(dim=1)
    if features.ndim != 2:
        raise UsageError(
            "a layer's output must have shape (batch, width), (batch, tokens, width) or (batch, "
            f"channels, height, width), got {tuple(features.shape)}: name another layer"
        )
    return features


def _tensor(output: Any, model: nn.Module) -> Tensor:
    """Return a network's output, of a transformers network its last hidden state."""
    found = getattr(output, "last_hidden_state", output)
    if not isinstance(found, Tensor):
        raise UsageError(
            f"{type(model).__name__} must give a tensor, got {type(output).__name__}: name a layer "
            "that gives one"
        )
    return found


def layer_named(model: nn.Module, layer: str) -> nn.Module:
    """Return a submodule by its name.

    Raises
    ------
    UsageError
        Naming the closest layers there are.
    """
    layers = {name: module for name, module in model.named_modules() if name}
    if layer in layers:
        return layers[layer]
    near = difflib.get_close_matches(layer, layers, n=3, cutoff=0.3) or list(layers)[-3:]
    raise UsageError(
        f"{type(model).__name__} has no layer {layer!r}: "
        + (f"names near it are {', '.join(near)}" if near else "it has no named layers")
    )


def features_of(model: nn.Module, layer: str | None = None, *, pool: str = "mean") -> Features:
    """Return a function from images to the model's features (batch, width).

    Parameters
    ----------
    model : nn.Module
        A timm model gives what enters its classifier, one of transformers its last hidden state;
        any other its own output.
    layer : str, optional
        Name of a submodule whose output is taken instead.
    pool : {"mean", "first"}
        What to make of tokens: their mean, or the first (the class token).

    Raises
    ------
    UsageError
        If there is no such layer or pool; on a call, if the output is no tensor or has another
        number of axes.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    >>> features_of(model, "1")(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 4])
    """
    if pool not in POOLS:
        raise UsageError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}")
    if layer is not None:
        chosen = layer_named(model, layer)

        def hooked(images: Tensor) -> Tensor:
            seen: list[Tensor] = []
            handle = chosen.register_forward_hook(lambda _, __, output: seen.append(output))
            try:
                model(images)
            finally:
                handle.remove()
            if not seen or not isinstance(seen[-1], Tensor):
                raise UsageError(f"the layer {layer!r} gave no tensor: name another layer")
            return _pooled(seen[-1], pool)

        return hooked
    if _is_timm(model):
        timm_model: Any = model

        def headless(images: Tensor) -> Tensor:
            features = timm_model.forward_features(images)
            return _pooled(timm_model.forward_head(features, pre_logits=True), pool)

        return headless
    return lambda images: _pooled(_tensor(model(images), model), pool)


@contextmanager
def lent(model: nn.Module, device: str | torch.device) -> Iterator[None]:
    """Move a model to a device and back: memory there is the student's once the pass is over.

    One that lies on several devices, or has no weights, stays where it is.
    """
    homes = {part.device for part in (*model.parameters(), *model.buffers())}
    if len(homes) != 1:
        yield
        return
    model.to(device)
    try:
        yield
    finally:
        model.to(homes.pop())


def in_precision(precision: str, device: str | torch.device) -> AbstractContextManager[Any]:
    """Return torch's autocast to bfloat16, or a context in which nothing changes.

    Raises
    ------
    UsageError
        If there is no such precision.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def taken(give: Features, images: Tensor, whose: str) -> Tensor:
    """Run a network and say which images it was if it cannot take them."""
    try:
        return give(images)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError, AssertionError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = "; plain= takes the images at the teacher's size" if whose == "teacher" else ""
        raise UsageError(
            f"the {whose} cannot take images of shape {tuple(images.shape[1:])}: {why}{remedy}"
        ) from error
