"""Smallest working instances of hippo, for the conformance suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from trialrun.core.seeds import split
from trialrun.dossiers.specimen import Bad, BlockSpecimen, FunctionSpecimen
from trialrun.sequence.hippo import (
    S4,
    S4D,
    HiPPO,
    HiPPORNN,
    SSMLayer,
    discretise,
    nplr,
    parameter_groups,
    transition,
)

_MODULE = "trialrun.sequence.hippo"


def _random(seed: int, name: str, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(split(seed, name)))


def _sequences(seed: int) -> dict[str, Any]:
    return {"x": _random(seed, "x", 3, 12, 4)}


def _both_ways(make: Callable[[int], SSMLayer]) -> Callable[[int], tuple[Any, Any]]:
    def both(seed: int) -> tuple[Any, Any]:
        layer, x = make(seed), _sequences(seed)["x"].double()
        layer.double()
        return layer.scan(x)[0], layer(x)

    return both


def _layer(name: str, make: Callable[[int], SSMLayer], *bad: Bad) -> BlockSpecimen:
    return BlockSpecimen(
        entry=f"{_MODULE}:{name}",
        make=make,
        inputs=_sequences,
        run=lambda layer, inputs: layer(inputs["x"]),
        bad=(
            (r"x must be a tensor of shape \(batch, time", lambda: make(0)(torch.zeros(4))),
            (r"x must have 4 channels, got 3", lambda: make(0)(torch.zeros(1, 2, 3))),
            (r"real floating-point", lambda: make(0)(torch.zeros(1, 2, 4).long())),
            (r"rate must be a number above 0", lambda: make(0)(torch.zeros(1, 2, 4), rate=0.0)),
            (
                r"is it another layer's",
                lambda: make(0).step(torch.zeros(1, 4), torch.zeros(1, 4, 99, dtype=torch.cfloat)),
            ),
            *bad,
        ),
        batched=("x",),
        differentiable=True,
        invariances=(("the recurrence gives what the convolution gives", _both_ways(make)),),
    )


def _signals(seed: int) -> dict[str, Any]:
    return {"u": _random(seed, "u", 3, 30)}


def _remember(memory: HiPPO, inputs: Mapping[str, Any]) -> Any:
    state = memory.encode(inputs["u"])
    return state.coefficients, memory.reconstruct(state)


def _rescaled(seed: int) -> tuple[Any, Any]:
    memory, u = HiPPO("legs", 6), _signals(seed)["u"].double()
    times = torch.arange(1.0, 31.0, dtype=torch.float64)
    return (
        memory.encode(u, times=2.5 * times).coefficients,
        memory.encode(u, times=times).coefficients,
    )


def _net(seed: int) -> HiPPORNN:
    return HiPPORNN(inputs=4, hidden=6, memory=HiPPO("legs", 5), channels=2, seed=seed)


def _split_run(seed: int) -> tuple[Any, Any]:
    net, x = _net(seed).double(), _sequences(seed)["x"].double()
    first, state = net(x[:, :5])
    return torch.cat([first, net(x[:, 5:], state)[0]], dim=1), net(x)[0]


def _groups(inputs: Mapping[str, Any]) -> Any:
    model = torch.nn.Sequential(S4D(4, 8, seed=inputs["seed"]))
    return [[p.detach() for p in g["params"]] for g in parameter_groups(model, lr=0.01)]


SPECIMENS = (
    FunctionSpecimen(
        entry=f"{_MODULE}:transition",
        run=lambda inputs: tuple(transition("legs", inputs["order"])),
        inputs=lambda seed: {"order": 4 + seed % 3},
        bad=(
            (r"measure must be one of legs", lambda: transition("legx", 4)),
            (r"order must be a whole number of at least 1", lambda: transition("legs", 0)),
            (r"order must be even for fout", lambda: transition("fout", 3)),
        ),
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:discretise",
        run=lambda inputs: tuple(discretise(inputs["A"], inputs["B"], 0.1)),
        inputs=lambda seed: {"A": _random(seed, "A", 4, 4), "B": _random(seed, "B", 4)},
        bad=(
            (r"method must be one of", lambda: discretise(*transition("legs", 2), 0.1, "euler")),
            (r"step must be above 0", lambda: discretise(*transition("legs", 2), -1.0)),
        ),
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:nplr",
        run=lambda inputs: tuple(nplr("legs", inputs["order"])),
        inputs=lambda seed: {"order": 4 + 2 * (seed % 3)},
        bad=(
            (r"measure must be one of legs, legt, fout", lambda: nplr("lmu", 4)),
            (r"order must be even", lambda: nplr("legs", 5)),
        ),
    ),
    BlockSpecimen(
        entry=f"{_MODULE}:HiPPO",
        make=lambda _: HiPPO("legs", 8),
        inputs=_signals,
        run=_remember,
        bad=(
            (r"window must be given for legt", lambda: HiPPO("legt", 8)),
            (r"method must be one of", lambda: HiPPO("legs", 8, method="euler")),
            (r"u must be a tensor of shape", lambda: HiPPO("legs", 8).encode(torch.zeros(3))),
        ),
        batched=("u",),
        differentiable=True,
        invariances=(("the unit of time does not matter", _rescaled),),
    ),
    _layer(
        "S4",
        lambda seed: S4(4, 8, seed=seed),
        (r"measure must be one of legs, legt, fout", lambda: S4(4, 8, measure="lmu")),
    ),
    _layer(
        "S4D",
        lambda seed: S4D(4, 8, seed=seed),
        (r"init must be one of", lambda: S4D(4, 8, init="random")),
        (r"d_state must be even", lambda: S4D(4, 7)),
    ),
    BlockSpecimen(
        entry=f"{_MODULE}:HiPPORNN",
        make=_net,
        inputs=_sequences,
        run=lambda net, inputs: net(inputs["x"])[0],
        bad=(
            (r"x must have 4 features, got 3", lambda: _net(0)(torch.zeros(1, 2, 3))),
            (r"hidden must be a whole number", lambda: HiPPORNN(4, 0, HiPPO("legs", 5))),
        ),
        batched=("x",),
        differentiable=True,
        invariances=(("a sequence may come in two pieces", _split_run),),
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:parameter_groups",
        run=_groups,
        inputs=lambda seed: {"seed": seed},
        bad=((r"lr must be a number above 0", lambda: parameter_groups(S4D(2, 4), lr=0.0)),),
    ),
)
