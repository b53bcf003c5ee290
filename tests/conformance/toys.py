"""Toy entries, sound and broken, with which the suite tries itself."""

from __future__ import annotations

import pickle
import random
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.neighbors import NearestCentroid

from trialrun.core.seeds import rng
from trialrun.dossiers.specimen import (
    BlockSpecimen,
    EstimatorSpecimen,
    FunctionSpecimen,
    PatchSpecimen,
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


class Centroids(ClassifierMixin, BaseEstimator):
    """Classify by the nearest centroid."""

    def __init__(self, *, shrink=None):
        self.shrink = shrink

    def fit(self, X, y):
        self.inner_ = NearestCentroid(shrink_threshold=self.shrink).fit(X, y)
        self.classes_ = self.inner_.classes_
        return self

    def predict(self, X):
        return self.inner_.predict(X)


class EagerCentroids(Centroids):
    def __init__(self, *, shrink=None):
        self.shrink = None if shrink is None else float(shrink)


class LearnedEarly(Centroids):
    def __init__(self, *, shrink=None):
        self.shrink = shrink
        self.inner_ = None


class PositionalCentroids(Centroids):
    def __init__(self, shrink=None):
        self.shrink = shrink


class SilentFit(Centroids):
    def fit(self, X, y):
        super().fit(X, y)


class SelfChanging(Centroids):
    def fit(self, X, y):
        super().fit(X, y)
        self.shrink = 0.5
        return self


def _table(seed):
    y = np.arange(20) % 2
    return {"X": rng(seed, "X").normal(size=(20, 3)) + y[:, None], "y": y}


def estimator(kind=Centroids, **changes):
    """Make an estimator specimen around one toy."""
    plain = EstimatorSpecimen(
        entry=f"trialrun.toys.toys:{kind.__name__}",
        make=lambda seed: kind(),
        inputs=_table,
        run=lambda fitted, inputs: fitted.predict(inputs["X"]),
        check=kind,
        bad=(),
        expected_failed_checks={},
        save=lambda fitted, folder: None,
        load=lambda folder: kind(),
    )
    return replace(plain, **changes)


class Host(torch.nn.Module):
    """Stand in for a model someone else owns."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layer = torch.nn.Linear(3, 3)
        with torch.no_grad():
            for weight in self.layer.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator))

    def forward(self, x):
        return self.layer(x)


class Louder:
    """Scale a host's layer."""

    def __init__(self, scale=2.0):
        self.scale = scale

    def attach(self, model):
        if hasattr(model, "louder_handle"):
            raise ValueError("model already has a Louder attached: detach it first")
        model.louder_handle = model.layer.register_forward_hook(
            lambda module, args, out: out * self.scale
        )
        return model

    def detach(self, model):
        if not hasattr(model, "louder_handle"):
            raise ValueError("model has no Louder attached: attach one first")
        model.louder_handle.remove()
        del model.louder_handle

    @contextmanager
    def attached(self, model):
        self.attach(model)
        try:
            yield model
        finally:
            self.detach(model)


class LeavesAFlag(Louder):
    def detach(self, model):
        super().detach(model)
        model.was_louder = True


class LeavesAHook(Louder):
    def detach(self, model):
        super().detach(model)
        model.layer.register_forward_hook(lambda module, args, out: None)


class LeavesOtherWeights(Louder):
    def detach(self, model):
        super().detach(model)
        with torch.no_grad():
            model.layer.bias += 1e-6


class StaysAfterAnError(Louder):
    @contextmanager
    def attached(self, model):
        self.attach(model)
        yield model
        self.detach(model)


class Swallows(Louder):
    @contextmanager
    def attached(self, model):
        self.attach(model)
        try:
            yield model
        except Exception:
            return
        finally:
            self.detach(model)


class Stacks(Louder):
    def attach(self, model):
        if hasattr(model, "louder_handle"):
            return model
        return super().attach(model)


class DetachesAnything(Louder):
    def detach(self, model):
        if hasattr(model, "louder_handle"):
            super().detach(model)


class ReachesOthers(Louder):
    def attach(self, model):
        self.before = Host.forward
        Host.forward = lambda host, x: self.before(host, x) + 1.0
        return super().attach(model)

    def detach(self, model):
        super().detach(model)
        Host.forward = self.before


class Renames(Louder):
    def attach(self, model):
        model.extra = torch.nn.Linear(1, 1)
        return super().attach(model)

    def detach(self, model):
        super().detach(model)
        del model.extra


class Forgets(Louder):
    def __init__(self, scale=2.0):
        self.factor = scale

    @property
    def scale(self):
        return self.factor


class KeepsNothing(Louder):
    def __init__(self, strength=2.0):
        self.scale = strength


def _reload(kind):
    def reload(model, folder):
        save_file(model.state_dict(), folder / "host.safetensors")
        again = Host(seed=9)
        again.load_state_dict(load_file(folder / "host.safetensors"))
        return kind().attach(again)

    return reload


def patch(kind=Louder, **changes):
    """Make a patch specimen around one toy."""
    plain = PatchSpecimen(
        entry=f"trialrun.toys.toys:{kind.__name__}",
        host=lambda seed: Host(seed),
        make=kind,
        identity=lambda: kind(1.0),
        inputs=lambda seed: {"x": torch.from_numpy(rng(seed, "x").normal(size=(4, 3))).float()},
        run=lambda model, inputs: model(inputs["x"]).detach(),
        generate=lambda model, inputs: model(inputs["x"]).argmax(dim=1),
        reload=_reload(kind),
        bad=(("already has a Louder", lambda: _twice(kind)),),
    )
    return replace(plain, **changes)


def _twice(kind):
    host = Host()
    kind().attach(host)
    kind().attach(host)
