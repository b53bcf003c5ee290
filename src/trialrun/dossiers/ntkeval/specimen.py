"""Smallest working instances of ntkeval, for the conformance suite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trialrun.blocks.bytelm import Shape, make_model
from trialrun.core.seeds import rng
from trialrun.dossiers.ntkeval.worlds import ALPHABET, TOLD, make_skills, make_tokenizer
from trialrun.dossiers.specimen import FunctionSpecimen
from trialrun.evaluation.ntkeval import (
    Draws,
    Example,
    GradientStep,
    LoRAStep,
    NTKEval,
    estimate,
)

_MODULE = "trialrun.evaluation.ntkeval"
_SHAPE = Shape(layers=1, width=16, heads=1, length=32, vocabulary=len(ALPHABET))


def _inputs(seed: int) -> dict[str, Any]:
    return {
        "model": make_model(_SHAPE, seed=seed).double().eval(),
        "skills": make_skills(TOLD, train=2, test=3, seed=seed),
        "seed": seed,
    }


def _probe(inputs: Mapping[str, Any], **settings: Any) -> NTKEval:
    more = {"samples": 6, "max_new_tokens": 2, "tokenizer": make_tokenizer(), **settings}
    return NTKEval(inputs["model"], inputs["skills"], seed=inputs["seed"], **more)


def _kernels(inputs: Mapping[str, Any], **settings: Any) -> Any:
    probe = _probe(inputs, **settings)
    tuned, shown = probe.kernel(GradientStep(rate=0.5)), probe.kernel_icl(shots=1)
    return tuned.mean, tuned.se, tuned.ess, shown.mean


def _trained(step: Any) -> Any:
    return lambda inputs: _probe(inputs, estimator="exact").kernel(step).mean


def _small_batches(seed: int) -> tuple[Any, Any]:
    inputs = _inputs(seed)
    return _kernels(inputs), _kernels(inputs, batch_tokens=20)


def _mirrored(seed: int) -> tuple[Any, Any]:
    """Swapping the models and their draws turns the sign."""
    given = _draws(seed)
    base, tuned = (Draws(d.after, d.before, d.correct) for d in (given["base"], given["tuned"]))
    forth = estimate("mixture", given["base"], given["tuned"])
    return forth.change, -estimate("mixture", tuned, base).change


def _draws(seed: int) -> dict[str, Any]:
    draw = rng(seed, "draws")
    made = []
    for _ in range(2):
        before, after = draw.normal(size=(2, 3, 8))
        made.append(Draws(before, after, draw.random((3, 8)) < 0.5))
    return {"name": "mixture", "base": made[0], "tuned": made[1]}


def _with(**changed: Any) -> Any:
    inputs = _inputs(0)
    return _probe(
        {**inputs, **{k: v for k, v in changed.items() if k in inputs}},
        **{k: v for k, v in changed.items() if k not in inputs},
    )


def _no_verdict(answer: str, example: Example) -> Any:
    return f"{answer} for {example.prompt}"


def _without_end() -> Any:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    return tokenizer


SPECIMENS = (
    FunctionSpecimen(
        entry=f"{_MODULE}:NTKEval",
        run=_kernels,
        inputs=_inputs,
        bad=(
            ("estimator must be one of", lambda: _with(estimator="best")),
            ("samples must be at least 2", lambda: _with(samples=1)),
            ("must have at least 1 training examples", lambda: _with(skills={"add": []})),
            ("must map names to examples", lambda: _with(skills=[])),
            ("must have an end token", lambda: _with(tokenizer=_without_end())),
            ("checker must return True or False", lambda: _with(checker=_no_verdict).kernel()),
            ("shots must be at most the 2", lambda: _with().kernel_icl(shots=3)),
            ("exceed the model's 32 positions", lambda: _with(max_new_tokens=64)),
            ("no skill is called 'divide'", lambda: _with().linear("divide", "add", rate=1.0)),
        ),
        invariances=(("how work is batched does not matter", _small_batches),),
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:LoRAStep",
        run=_trained(LoRAStep(steps=2, rate=0.01, rank=2)),
        inputs=_inputs,
        bad=(
            ("rank must be at least 1", lambda: LoRAStep(rank=0)),
            ("rate must be at least 0", lambda: LoRAStep(rate=-1.0)),
        ),
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:GradientStep",
        run=_trained(GradientStep(rate=0.5)),
        inputs=_inputs,
        bad=(
            ("optimiser must be sgd or adamw", lambda: GradientStep(rate=1.0, optimiser="best")),
            ("steps must be at least 0", lambda: GradientStep(rate=1.0, steps=-1)),
        ),
    ),
    FunctionSpecimen(
        entry=f"{_MODULE}:estimate",
        run=lambda inputs: np.append(*estimate(**inputs)),
        inputs=_draws,
        bad=(
            ("needs draws of both laws", lambda: estimate("mixture", _draws(0)["base"], None)),
            ("estimator must be one of", lambda: estimate("best", _draws(0)["base"], None)),
        ),
        invariances=(("exchanging the models turns the sign", _mirrored),),
    ),
)
