"""Deepening: the map of layers, equality at the start, and checkpoints on disk."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.naive.moxin_training import naive_layer_map
from trialrun.core.errors import UsageError
from trialrun.pretraining._deepen import deepen, deepen_model, layer_map
from trialrun.pretraining._deepen_files import deepen_checkpoint

HOSTS = [
    (MistralConfig, MistralForCausalLM, {"sliding_window": 4}),
    (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    (Qwen2Config, Qwen2ForCausalLM, {}),
]


def _host(kind=0, *, layers=4, tied=False, seed=0):
    config, model, more = HOSTS[kind]
    torch.manual_seed(seed)
    made = model(
        config(
            vocab_size=37,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
            **more,
        )
    )
    for name, weight in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)  # biases start at zero, which would hide a mistake
    return made.eval()


IDS = torch.randint(0, 37, (2, 9), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("source", [1, 7, 32, 63])
def test_the_map_matches_the_slow_twin_at_every_depth(source):
    for layers in range(source + 1, 2 * source + 1):
        plan = layer_map(source, layers)
        assert list(plan.copies) == naive_layer_map(source, layers)
        assert len(plan.inserted) == layers - source
        assert [plan.copies[p] for p in plan.inserted] == [
            plan.copies[p - 1] for p in plan.inserted
        ]


def test_the_papers_depth_inserts_one_copy_after_every_eighth_layer():
    plan = layer_map(32, 36)
    assert plan.inserted == (8, 17, 26, 35)
    assert [plan.copies[p] for p in plan.inserted] == [7, 15, 23, 31]
    assert deepen(MistralConfig()).num_hidden_layers == 36


def test_stacking_puts_two_overlapping_halves_on_top_of_each_other():
    plan = layer_map(32, 48, placement="stack")
    assert plan.copies == (*range(24), *range(8, 32))
    assert not plan.silent


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layers", [4, 5, 8])
def test_a_silent_deepening_gives_the_sources_logits_bit_for_bit(kind, tied, layers):
    model = _host(kind, tied=tied)
    deeper = deepen_model(model, layers=layers)
    assert torch.equal(model(IDS).logits, deeper(IDS).logits)
    assert [layer.self_attn.layer_idx for layer in deeper.model.layers] == list(range(layers))
    prompt = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(model.generate(IDS, **prompt), deeper.generate(IDS, **prompt))


def test_without_silence_the_deeper_model_differs_from_its_source():
    model = _host()
    assert not torch.allclose(
        model(IDS).logits, deepen_model(model, layers=5, silent=False)(IDS).logits
    )


def test_silent_layers_learn_from_the_first_step():
    deeper = deepen_model(_host(), layers=5)
    deeper(IDS, labels=IDS).loss.backward()
    new = deeper.model.layers[4]
    assert new.self_attn.o_proj.weight.grad.abs().max() > 0
    assert new.mlp.down_proj.weight.grad.abs().max() > 0


def test_no_weight_is_shared_with_the_source():
    model = _host()
    before = model(IDS).logits
    deeper = deepen_model(model, layers=6)
    with torch.no_grad():
        for weight in deeper.parameters():
            weight.add_(1.0)
    assert torch.equal(model(IDS).logits, before)
    assert model.config.num_hidden_layers == 4


def test_dtype_mode_and_frozen_weights_carry_over():
    model = _host().to(torch.bfloat16).train()
    model.model.layers[3].requires_grad_(False)
    deeper = deepen_model(model, layers=8)
    assert deeper.dtype == torch.bfloat16
    assert deeper.training
    frozen = {n.split(".")[2] for n, w in deeper.named_parameters() if not w.requires_grad}
    assert frozen == {"6", "7"}


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_bytes", [3000, 10**9])
def test_a_checkpoint_deepened_on_disk_equals_the_model_deepened_in_memory(
    tmp_path, kind, tied, shard_bytes
):
    model = _host(kind, tied=tied)
    model.save_pretrained(tmp_path / "source", max_shard_size="7KB")
    plan = deepen_checkpoint(
        tmp_path / "source", tmp_path / "deep", layers=6, silent=False, shard_bytes=shard_bytes
    )
    assert plan == layer_map(4, 6, silent=False)
    deep = AutoModelForCausalLM.from_pretrained(tmp_path / "deep", local_files_only=True).eval()
    assert torch.equal(deep(IDS).logits, deepen_model(model, layers=6, silent=False)(IDS).logits)


def test_no_more_than_a_shard_is_held_in_memory(tmp_path, monkeypatch):
    _host(layers=4).save_pretrained(tmp_path / "source")
    written = []

    def watch(tensors, path, metadata):
        written.append(sum(t.numel() * t.element_size() for t in tensors.values()))
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr("trialrun.pretraining._deepen_files.save_file", watch)
    deepen_checkpoint(tmp_path / "source", tmp_path / "deep", layers=8, shard_bytes=4000)
    assert len(written) > 5
    assert max(written) <= 4000


def test_a_failed_deepening_leaves_nothing_behind(tmp_path, monkeypatch):
    _host().save_pretrained(tmp_path / "source")

    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("trialrun.pretraining._deepen_files.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        deepen_checkpoint(tmp_path / "source", tmp_path / "deep", layers=5)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def _spoilt(tmp_path, change):
    folder = tmp_path / "source"
    _host().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    change(weights, folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_missing_weights_are_counted_and_the_first_is_named(tmp_path):
    def drop(weights, _):
        del weights["model.layers.2.mlp.up_proj.weight"]
        del weights["model.norm.weight"]

    folder = _spoilt(tmp_path, drop)
    with pytest.raises(UsageError, match=r"lacks 2 of \d+ weights, model.layers.2.mlp.up_proj"):
        deepen_checkpoint(folder, tmp_path / "deep", layers=5)
    assert not (tmp_path / "deep").exists()


def test_a_weight_of_another_shape_is_named(tmp_path):
    def widen(weights, _):
        weights["model.norm.weight"] = torch.ones(17)

    with pytest.raises(UsageError, match=r"model.norm.weight must have shape \(16,\)"):
        deepen_checkpoint(_spoilt(tmp_path, widen), tmp_path / "deep", layers=5)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("adds layers, it takes none away", lambda: layer_map(4, 3)),
        ("at most twice", lambda: layer_map(4, 9)),
        ("placement must be one of", lambda: layer_map(4, 5, placement="top")),
        ("to start as the source", lambda: layer_map(4, 5, placement="stack", silent=True)),
        ("layers must be a whole number", lambda: layer_map(4, 6.0)),
        ("layers must be a whole number", lambda: deepen(MistralConfig(), layers=36.0)),
        ("config, got MistralForCausalLM: give model.config", lambda: deepen(_host(), layers=5)),
        ("config, got str: load one with AutoConfig", lambda: deepen("x", layers=3)),
        ("got str: load one .*, or give a folder to", lambda: deepen_model("x", layers=3)),
        ("got MistralConfig: deepen takes configs", lambda: deepen_model(MistralConfig())),
        ("got MistralModel: load one with AutoModelFor", lambda: deepen_model(_host().model)),
        ("got gpt2", lambda: deepen(GPT2Config(), layers=13)),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_settings_get_one_clear_sentence(words, call):
    with pytest.raises(UsageError, match=words):
        call()


@pytest.mark.usefixtures("unchecked")
def test_bad_folders_get_one_clear_sentence(tmp_path):
    with pytest.raises(UsageError, match="must hold a config"):
        deepen_checkpoint(tmp_path, tmp_path / "deep")
    (tmp_path / "config.json").write_text(json.dumps(MistralConfig().to_dict()))
    with pytest.raises(UsageError, match="holds neither"):
        deepen_checkpoint(tmp_path, tmp_path / "deep")
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    with pytest.raises(UsageError, match="cannot be read"):
        deepen_checkpoint(tmp_path, tmp_path / "deep")
    with pytest.raises(UsageError, match="new or an empty folder"):
        deepen_checkpoint(tmp_path, tmp_path)


@pytest.mark.parametrize("text", ["{", '{"model_type": "no such"}', "[]"])
def test_a_broken_config_gets_one_clear_sentence(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"config\.json cannot be read as the config of a model"):
        deepen_checkpoint(tmp_path, tmp_path / "deep")


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_a_broken_index_gets_one_clear_sentence(tmp_path, text):
    _host().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UsageError, match="cannot be read"):
        deepen_checkpoint(tmp_path, tmp_path / "deep", layers=5)
