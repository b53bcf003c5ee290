"""Toy functions and blocks, sound and broken, with which the suite tries itself."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from trialrun.core.seeds import rng
from trialrun.dossiers.specimen import (
    BlockSpecimen,
    FunctionSpecimen,
)


def centre(x):
    """Subtract the mean of each row of x (snell2017).

    Parameters
    ----------
    x : ndarray of shape (rows, columns)

    Raises
    ------
    ValueError
        If x has no columns.

    Examples
    --------
    >>> centre(np.array([[1.0, 3.0]]))
    array([[-1.,  1.]])
    """
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"x must have shape (rows, columns), got {x.shape}")
    return x - x.mean(axis=1, keepdims=True)


def centre_in_place(x):
    """Returns a mean-free x but spoils the one it got."""
    x -= x.mean(axis=1, keepdims=True)
    return x


def with_global_numpy(x):
    return x + np.random.rand()


def with_global_random_put_back(x):
    state = random.getstate()
    value = random.random()
    random.setstate(state)
    return x + value


def with_a_file(x):
    Path("conformance-left-behind.txt").write_text("x", encoding="utf-8")
    return x


def with_the_network(x):
    import socket

    socket.create_connection(("127.0.0.1", 9), timeout=0.1)
    return x


def of(function, **changes):
    """Make a function specimen around one toy."""
    plain = FunctionSpecimen(
        entry=f"trialrun.toys.toys:{function.__name__}",
        run=lambda inputs: function(inputs["x"]),
        inputs=lambda seed: {"x": rng(seed, "x").normal(size=(4, 3))},
        bad=(("x must have shape", lambda: centre(np.zeros(3))),),
        invariances=(("a shift of each row does not matter", _shifted),),
    )
    return replace(plain, **changes)


def _shifted(seed):
    x = rng(seed, "x").normal(size=(4, 3))
    return centre(x), centre(x + 1.0)


class Gain(torch.nn.Module):
    """Scale by a learned gain per feature."""

    def __init__(self, width=3, seed=0, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.gain = torch.nn.Parameter(torch.randn(width, generator=generator, dtype=dtype))

    def forward(self, x):
        return torch.tanh(x * self.gain)


class WideningGain(Gain):
    def forward(self, x):
        return super().forward(x).double()


class BatchCentredGain(Gain):
    def forward(self, x):
        return super().forward(x - x.mean(dim=0))


class NoisyGain(Gain):
    def forward(self, x):
        return super().forward(x + torch.rand(1))


class IdleGain(Gain):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.idle = torch.nn.Parameter(torch.ones(1))


class RootGain(Gain):
    def forward(self, x):
        return torch.sqrt(torch.abs(self.gain) * torch.zeros_like(x))


class OtherwiseCompiled(Gain):
    def forward(self, x):
        return super().forward(x) + float(torch.compiler.is_compiling())


class SecretGain(Gain):
    def __init__(self, seed=0):
        super().__init__(seed=seed)
        self.secret = float(seed)

    def forward(self, x):
        return super().forward(x) + self.secret


def save_gain(module, folder):
    save_file(module.state_dict(), folder / "gain.safetensors")


def load_gain(folder):
    module = Gain()
    module.load_state_dict(load_file(folder / "gain.safetensors"))
    return module


def save_pickled(module, folder):
    (folder / "gain.json").write_bytes(pickle.dumps(module.state_dict()))


def load_other(folder):
    return Gain(seed=5)


def block(kind=Gain, **changes):
    """Make a block specimen around one toy module."""
    plain = BlockSpecimen(
        entry=f"trialrun.toys.toys:{kind.__name__}",
        make=lambda seed: kind(seed=seed),
        inputs=lambda seed: {"x": torch.from_numpy(rng(seed, "x").normal(size=(4, 3))).float()},
        run=lambda module, inputs: module(inputs["x"]),
        bad=(("x must have shape", lambda: centre(np.zeros(3))),),
        batched=("x",),
        differentiable=True,
    )
    return replace(plain, **changes)
