"""Smallest working instances of rerope, for the conformance suite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from trialrun.attention.rerope import ReRoPE, rerope_attention
from trialrun.blocks.bytelm import Shape, make_model
from trialrun.blocks.rotary import Rotary
from trialrun.dossiers.specimen import FunctionSpecimen, PatchSpecimen

_ROTARY = Rotary(8)


def _qkv(seed: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 4, 11, 8, generator=draw)
    k = torch.randn(2, 2, 11, 8, generator=draw)
    v = torch.randn(2, 2, 11, 8, generator=draw)
    return {"q": q, "k": k, "v": v}


def _attend(inputs: Mapping[str, Any]) -> Any:
    return rerope_attention(**inputs, rotary=_ROTARY, window=4, slope=3.0)


def _shifted(seed: int) -> tuple[Any, Any]:
    inputs = _qkv(seed)
    settings: dict[str, Any] = {"rotary": _ROTARY, "window": 4}
    moved = rerope_attention(**inputs, **settings, positions=torch.arange(11) + 100)
    return rerope_attention(**inputs, **settings), moved


def _row_alone(seed: int) -> tuple[Any, Any]:
    inputs = _qkv(seed)
    return _attend(inputs)[1:], _attend({name: x[1:] for name, x in inputs.items()})


def _host(seed: int) -> Any:
    shape = Shape(layers=2, width=32, heads=2, length=16, vocabulary=64)
    return make_model(shape, seed=seed).eval()


def _ids(seed: int) -> dict[str, Any]:
    return {
        "input_ids": torch.randint(1, 64, (2, 24), generator=torch.Generator().manual_seed(seed))
    }


def _run(model: Any, inputs: Mapping[str, Any]) -> Any:
    with torch.no_grad():
        return model(**inputs).logits


def _generate(model: Any, inputs: Mapping[str, Any]) -> Any:
    return model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)


def _reload(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    loaded = LlamaForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    return ReRoPE.from_config(loaded.config).attach(loaded)


SPECIMENS = (
    PatchSpecimen(
        entry="trialrun.attention.rerope:ReRoPE",
        host=_host,
        make=lambda: ReRoPE(window=4, train_len=16, logn=True),
        identity=lambda: ReRoPE(window=None),
        inputs=_ids,
        run=_run,
        generate=_generate,
        reload=_reload,
        bad=(
            ("window must be below the training length", lambda: ReRoPE(window=8, train_len=8)),
            ("window must be a number of tokens", lambda: ReRoPE(window=0)),
            ("slope must be None", lambda: ReRoPE(window=4, slope=0.5)),
            (
                "must be a transformers model",
                lambda: ReRoPE(window=4).attach(torch.nn.Linear(2, 2)),
            ),
        ),
    ),
    FunctionSpecimen(
        entry="trialrun.attention.rerope:rerope_attention",
        run=_attend,
        inputs=_qkv,
        bad=(
            (
                "window must be",
                lambda: rerope_attention(**_qkv(0), rotary=_ROTARY, window=0),
            ),
            (
                "padding must be bool of shape",
                lambda: rerope_attention(
                    **_qkv(0), rotary=_ROTARY, window=4, padding=torch.ones(2, 5, dtype=torch.bool)
                ),
            ),
            (
                "backend must be one of",
                lambda: rerope_attention(**_qkv(0), rotary=_ROTARY, window=4, backend="fast"),
            ),
        ),
        invariances=(
            ("a common shift of all positions changes nothing", _shifted),
            ("a row alone gives what it gives in its batch", _row_alone),
        ),
    ),
)
