"""Toy patches, sound and broken, with which the suite tries itself."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import torch
from safetensors.torch import load_file, save_file

from trialrun.core.seeds import rng
from trialrun.dossiers.specimen import (
    PatchSpecimen,
)


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
