"""Smallest working instances of mla, for the conformance suite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from trialrun.attention.mla import (
    AbsorbedMLA,
    LatentCache,
    MultiHeadLatentAttention,
    cache_report,
    convert_to_mla,
)
from trialrun.blocks.bytelm import Shape, make_model
from trialrun.core.seeds import split
from trialrun.dossiers.specimen import (
    BlockSpecimen,
    FunctionSpecimen,
    PatchSpecimen,
)

_WIDTHS: dict[str, Any] = {"nope_dim": 8, "rope_dim": 4, "v_dim": 6}


def _layer(seed: int) -> MultiHeadLatentAttention:
    return MultiHeadLatentAttention(24, 3, 10, q_rank=8, seed=seed, **_WIDTHS)


def _tokens(seed: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(split(seed, "x"))
    return {"x": torch.randn(2, 9, 24, generator=draw)}


def _future(seed: int) -> tuple[Tensor, Tensor]:
    layer, x = _layer(seed), _tokens(seed)["x"]
    later = x.clone()
    later[:, 6:] += 1.0
    return layer(x)[:, :6], layer(later)[:, :6]


def _both_paths(seed: int) -> tuple[Tensor, Tensor]:
    layer, x = _layer(seed), _tokens(seed)["x"]
    return layer.absorbed(x), layer.materialised(x)


@torch.no_grad()
def _in_steps(seed: int) -> tuple[Tensor, Tensor]:
    layer, x, cache = _layer(seed), _tokens(seed)["x"], LatentCache()
    return torch.cat([layer(part, cache) for part in x.split(2, dim=1)], dim=1), layer(x)


def _latents(seed: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(split(seed, "latents"))
    shapes = {"latent": (2, 5, 6), "rope_key": (2, 5, 2)}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def _fill(cache: LatentCache, inputs: Mapping[str, Any]) -> Any:
    cache.reset()
    for start in range(5):
        cache.append(*(inputs[name][:, start : start + 1] for name in ("latent", "rope_key")))
    return {"latent": cache.latent.clone(), "rope_key": cache.rope_key.clone()}


def _save_cache(cache: LatentCache, folder: Path) -> None:
    (folder / "cache.txt").write_text(str(cache.reserve), encoding="utf-8")


def _load_cache(folder: Path) -> LatentCache:
    return LatentCache(reserve=int((folder / "cache.txt").read_text(encoding="utf-8")))


def _host(seed: int) -> Any:
    config = DeepseekV3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        first_k_dense_replace=2,
        kv_lora_rank=16,
        q_lora_rank=12,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        initializer_range=0.2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DeepseekV3ForCausalLM(config).eval()


def _ids(seed: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(1, 64, (2, 12), generator=draw)}


def _run(model: Any, inputs: Mapping[str, Any]) -> Any:
    """Read a prompt, then one more token, which is the step that absorbs."""
    with torch.no_grad():
        ids = inputs["input_ids"]
        first = model(ids[:, :-1], use_cache=True)
        step = model(ids[:, -1:], past_key_values=first.past_key_values, use_cache=True)
    return {"prompt": first.logits, "step": step.logits}


def _generate(model: Any, inputs: Mapping[str, Any]) -> Any:
    return model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)


def _reload(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    loaded = DeepseekV3ForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    return AbsorbedMLA.from_config(loaded.config).attach(loaded)


def _llama(seed: int) -> Any:
    shape = Shape(layers=1, width=32, heads=2, length=16, vocabulary=64)
    return make_model(shape, seed=seed).eval()


def _convert(inputs: Mapping[str, Any]) -> Any:
    latent = convert_to_mla(_llama(0), 8, 4, calibration=inputs["calibration"])
    with torch.no_grad():
        return latent(input_ids=inputs["calibration"]).logits


def _report(inputs: Mapping[str, Any]) -> Any:
    model, names = _llama(0), ("MHA", "MQA", "MLA")
    found = [cache_report(model, int(n), kv_rank=8, rope_dims=4) for n in inputs["lengths"]]
    return {name: torch.tensor([one[name].bytes_total for one in found]) for name in names}


SPECIMENS = (
    BlockSpecimen(
        entry="trialrun.attention.mla:MultiHeadLatentAttention",
        make=_layer,
        inputs=_tokens,
        run=lambda layer, inputs: layer(inputs["x"]),
        bad=(
            (
                "kv_rank must be at least 1",
                lambda: MultiHeadLatentAttention(8, 1, 0, **_WIDTHS),
            ),
            (
                "rope_dim must be even",
                lambda: MultiHeadLatentAttention(8, 1, 4, **_WIDTHS | {"rope_dim": 3}),
            ),
            ("x must have d_model=24", lambda: _layer(0)(torch.zeros(1, 2, 3))),
            ("the checkpoint lacks", lambda: _layer(0).load_attention({})),
        ),
        batched=("x",),
        differentiable=True,
        compiles=True,
        invariances=(
            ("later tokens change nothing", _future),
            ("absorbed and materialised agree", _both_paths),
            ("two tokens at a time through the cache give the whole", _in_steps),
        ),
    ),
    BlockSpecimen(
        entry="trialrun.attention.mla:LatentCache",
        make=lambda seed: LatentCache(reserve=3 + seed),
        inputs=_latents,
        run=_fill,
        bad=(
            ("reserve must be at least 0", lambda: LatentCache(reserve=-1)),
            ("tokens must be between", lambda: LatentCache().crop(2)),
            (
                "is for inference",
                lambda: LatentCache().append(
                    torch.zeros(1, 1, 2, requires_grad=True), torch.zeros(1, 1, 2)
                ),
            ),
        ),
        batched=("latent", "rope_key"),
        save=_save_cache,
        load=_load_cache,
    ),
    PatchSpecimen(
        entry="trialrun.attention.mla:AbsorbedMLA",
        host=_host,
        make=AbsorbedMLA,
        identity=lambda: AbsorbedMLA(max_query=0),
        inputs=_ids,
        run=_run,
        generate=_generate,
        reload=_reload,
        bad=(
            ("max_query must be None or", lambda: AbsorbedMLA(max_query=-1)),
            (
                "must be a transformers model",
                lambda: AbsorbedMLA().attach(torch.nn.Linear(2, 2)),
            ),
            ("keeps no latent cache", lambda: AbsorbedMLA().attach(_llama(0))),
        ),
    ),
    FunctionSpecimen(
        entry="trialrun.attention.mla:convert_to_mla",
        run=_convert,
        inputs=lambda seed: {"calibration": _ids(seed)["input_ids"]},
        bad=(
            ("must be", lambda: convert_to_mla(torch.nn.Linear(2, 2), 8, 4)),
            ("kv_rank must", lambda: convert_to_mla(_llama(0), -1, 4)),
            ("rope_dims must", lambda: convert_to_mla(_llama(0), 8, 3)),
        ),
    ),
    FunctionSpecimen(
        entry="trialrun.attention.mla:cache_report",
        run=_report,
        inputs=lambda seed: {"lengths": torch.tensor([1, 7, 63]) + seed},
        bad=(
            ("seq_len must", lambda: cache_report(_llama(0), 0)),
            ("batch must", lambda: cache_report(_llama(0), 8, batch=0)),
        ),
    ),
)
