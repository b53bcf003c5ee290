"""Training: the same for any number of processes, resumed bit for bit, chats and pairs."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from trialrun.core.errors import UsageError
from trialrun.pretraining._chat import JsonLines
from trialrun.pretraining._checkpoints import latest
from trialrun.pretraining._losses import group_advantages, grpo_loss, token_logps
from trialrun.pretraining._mixing import TokenSource, write_tokens
from trialrun.pretraining._phases import Phase, Phases, Rate
from trialrun.pretraining._recipe import ModelPlan, parse_recipe, read_recipe
from trialrun.pretraining._sources import byte_vocabulary
from trialrun.pretraining._training import Optimiser, Saving, train
from trialrun.pretraining.train import main, run_recipe

TINY = {
    "vocab_size": 257,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 8,
}


def _model(seed=0, **more):
    torch.manual_seed(seed)
    return MistralForCausalLM(MistralConfig(**{**TINY, **more}))


def _source(name="web", seed=0):
    return TokenSource(np.random.default_rng(seed).integers(0, 40, 3000), name=name)


def _phases(objective="text", **more):
    rate = Rate(peak=3e-3, warmup=0.2)
    plain = {"objective": objective, "mixture": {"web": 1}, "rate": rate, **more}
    return Phases(
        [
            Phase(name="short", context=8, tokens=32 * 5, batch_tokens=32, **plain),
            Phase(name="long", context=16, tokens=32 * 4, batch_tokens=32, **plain),
        ]
    )


def _run(model, phases=None, sources=None, **more):
    settings = {"seed": 1, "accelerator": Accelerator(cpu=True), **more}
    return train(model, phases or _phases(), sources or {"web": _source()}, **settings)


def _losses(steps):
    return [step.loss for step in steps]


def _same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


def test_the_same_seed_gives_the_same_weights_whatever_the_global_state():
    one, other = _model(attention_dropout=0.3), _model(attention_dropout=0.3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = _run(one)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert _losses(first) == _losses(_run(other))
    assert _same_weights(one, other)
    assert _losses(first) != _losses(_run(_model(attention_dropout=0.3), seed=2))


def test_pieces_of_any_size_give_the_same_losses():
    whole = _losses(_run(_model(), micro_batch=64))
    for size in (1, 3):
        np.testing.assert_allclose(_losses(_run(_model(), micro_batch=size)), whole, rtol=2e-6)


def test_the_loss_is_the_models_own_and_falls():
    source = TokenSource(np.tile(np.arange(40), 80))
    model, ids = _model(), torch.arange(9)[None]
    with torch.no_grad():
        before = model(ids, labels=ids).loss.item()
    flat = Phases(
        [
            Phase(
                name="a", context=8, tokens=32 * 60, batch_tokens=32, mixture={"web": 1},
                rate=Rate(peak=1e-2),
            )
        ]
    )  # fmt: skip
    steps = _run(model, flat, {"web": source})
    assert abs(steps[0].loss - before) < 0.3
    assert steps[-1].loss < 0.5 * steps[0].loss
    assert [s.tokens for s in steps[:3]] == [32, 64, 96]
    assert not model.training


@pytest.mark.parametrize("every", [1, 2, 4, 7])
def test_a_run_resumed_from_any_checkpoint_is_bit_for_bit_the_uninterrupted_one(tmp_path, every):
    whole = _model(attention_dropout=0.2)
    expected = _run(whole, micro_batch=2)

    class Stopped(Exception):
        pass

    def stop_after(step):
        if step.step == every + 1:
            raise Stopped

    saving = Saving(folder=tmp_path, every=every, keep=3)
    with pytest.raises(Stopped):
        _run(_model(attention_dropout=0.2), micro_batch=2, saving=saving, report=stop_after)
    resumed = _model(seed=9, attention_dropout=0.2)  # its weights are the checkpoint's
    steps = _run(resumed, micro_batch=2, saving=saving)
    assert _losses(steps) == _losses(expected)[-len(steps) :]
    assert 0 < len(steps) < len(expected)
    assert _same_weights(whole, resumed)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == _losses(expected)


def test_a_finished_run_does_nothing_when_started_again(tmp_path):
    saving = Saving(folder=tmp_path)
    first = _model()
    _run(first, saving=saving)
    again = _model(seed=3)
    assert _run(again, saving=saving) == []
    assert _same_weights(first, again)


def test_checkpoints_are_transformers_folders_without_pickle_and_old_ones_go(tmp_path):
    model = _model()
    _run(model, saving=Saving(folder=tmp_path, every=2, keep=2))
    folders = sorted(p.name for p in tmp_path.iterdir() if p.is_dir())
    assert folders == ["step-00000008", "step-00000009"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / folders[-1], local_files_only=True)
    assert _same_weights(model, loaded)
    kinds = {p.suffix for p in tmp_path.rglob("*") if p.is_file()}
    assert kinds == {".json", ".jsonl", ".safetensors"}
    moments = load_file(tmp_path / folders[-1] / "optimizer.safetensors")
    assert len(moments) == 3 * len(list(model.parameters()))


def test_tied_weights_resume_too(tmp_path):
    whole = _model(tie_word_embeddings=True)
    _run(whole)
    saving = Saving(folder=tmp_path, every=4, keep=9)
    _run(_model(tie_word_embeddings=True), saving=saving)
    for newer in ("step-00000008", "step-00000009"):
        for file in (tmp_path / newer).iterdir():
            file.unlink()
        (tmp_path / newer).rmdir()
    resumed = _model(tie_word_embeddings=True)
    assert len(_run(resumed, saving=saving)) == 5
    assert _same_weights(whole, resumed)


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    saving = Saving(folder=tmp_path, every=4, keep=9)
    _run(_model(), saving=saving)
    (tmp_path / "step-00000009" / "state.json").unlink()
    (tmp_path / ".step-00000099").mkdir()
    assert latest(tmp_path).name == "step-00000008"


CHATS = [
    {
        "messages": [
            {"role": "user", "content": "x" * (i % 5 + 1)},
            {"role": "assistant", "content": "yes" if i % 2 else "no indeed"},
        ]
    }
    for i in range(12)
]
PAIRS = [
    {
        "chosen": [*row["messages"][:1], {"role": "assistant", "content": "good"}],
        "rejected": [*row["messages"][:1], {"role": "assistant", "content": "a bad one"}],
    }
    for row in CHATS
]


def _talk(objective, **more):
    plain = {"mixture": {"talk": 1}, "rate": Rate(peak=1e-2, shape="constant"), **more}
    phase = Phase(
        name="talk",
        context=48,
        tokens=48 * 4 * 12,
        batch_tokens=48 * 4,
        objective=objective,
        **plain,
    )
    return Phases([phase])


def test_chats_train_the_answers_and_pieces_do_not_matter():
    found = [_losses(_run(_model(), _talk("chat"), {"talk": CHATS}, micro_batch=m)) for m in (1, 8)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    assert found[0][-1] < 0.8 * found[0][0]


def test_pairs_start_level_with_the_reference_and_learn_the_preference(tmp_path):
    model = _model()
    model.save_pretrained(tmp_path / "reference")
    phases = _talk("preference", reference=str(tmp_path / "reference"))
    losses = _losses(_run(model, phases, {"talk": PAIRS}, micro_batch=2))
    assert abs(losses[0] - np.log(2)) < 1e-6
    assert losses[-1] < 0.5 * losses[0]


def test_a_policy_learns_a_reward_and_stays_near_its_reference():
    # Two prompts, one answer token each; the reward is 1 where the token is even.
    torch.manual_seed(0)
    model, reference = _model(), _model()
    reference.load_state_dict(model.state_dict())
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    draw = torch.Generator().manual_seed(1)
    prompts = torch.tensor([[3, 4], [5, 6]]).repeat_interleave(16, 0)
    shares, kls = [], []
    for _ in range(40):
        with torch.no_grad():
            last = model(prompts).logits[:, -1].softmax(-1)
            answers = torch.multinomial(last, 1, generator=draw)
        ids = torch.cat([prompts, answers], 1)
        labels = torch.cat([torch.full_like(prompts, -100), answers], 1)
        rewards = (answers % 2 == 0).float().view(2, 16)
        with torch.no_grad():
            old = token_logps(model(ids).logits, labels)
            far = token_logps(reference(ids).logits, labels).logps
        now = token_logps(model(ids).logits, labels).logps
        found = grpo_loss(
            now, old.logps, far, group_advantages(rewards).flatten(), old.trained, kl=0.02
        )
        optimiser.zero_grad()
        found.loss.backward()
        optimiser.step()
        shares.append(rewards.mean().item())
        kls.append(found.kl.item())
    assert np.mean(shares[:3]) < 0.7
    assert np.mean(shares[-5:]) > 0.9
    assert max(kls) < 3.0


RECIPE = """
out: run
seed: 3
save_every: 3
micro_batch: 2
model:
  config: {vocab_size: 257, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2,
           num_attention_heads: 4, num_key_value_heads: 2, sliding_window: 8}
  layers: 3
sources: {web: web.npy}
phases:
  - {name: short, context: 8, tokens: 320, batch_tokens: 64, mixture: {web: 1},
     rate: {peak: 3.0e-3, warmup: 0.1}}
  - {name: long, context: 16, tokens: 320, batch_tokens: 64, mixture: {web: 1},
     rate: {peak: 1.0e-3}}
"""


def _recipe(folder, text=RECIPE):
    folder.mkdir(exist_ok=True)
    words = byte_vocabulary()
    write_tokens(
        ["some words and other words, " * 40] * 4,
        folder / "web.npy",
        words.encode,
        end=words.end,
        vocabulary=words.size,
    )
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _command(recipe, *, processes):
    run = ["-m", "trialrun.pretraining.train", str(recipe), "--cpu"]
    if processes == 1:
        return [sys.executable, *run]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    settings = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    port = ["--main_process_port", str(_free_port())]
    return [*launch, "--num_processes", str(processes), *settings, *port, *run]


def _environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _log(folder):
    return [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]


def test_two_processes_give_the_losses_of_one(tmp_path):
    for processes in (1, 2):
        recipe = _recipe(tmp_path / str(processes))
        done = subprocess.run(
            _command(recipe, processes=processes),
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = _log(tmp_path / "1"), _log(tmp_path / "2")
    assert len(one) == len(two) == 10
    np.testing.assert_allclose(
        [s["loss"] for s in two], [s["loss"] for s in one], rtol=1e-6, atol=0
    )
    weights = [load_file(latest(tmp_path / n / "run") / "model.safetensors") for n in "12"]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=2e-5, rtol=1e-3)


def test_a_killed_run_goes_on_where_it_stopped_bit_for_bit(tmp_path):
    text = RECIPE.replace("tokens: 320", "tokens: 6400")
    whole = _recipe(tmp_path / "whole", text)
    run_recipe(read_recipe(whole), cpu=True)
    killed = _recipe(tmp_path / "killed", text)
    process = subprocess.Popen(
        _command(killed, processes=1), env=_environment(), stdout=subprocess.DEVNULL
    )
    out = tmp_path / "killed" / "run"
    deadline = time.monotonic() + 120
    while latest(out) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stopped = latest(out)
    assert stopped is not None
    assert int(stopped.name.removeprefix("step-")) < 200, "the run ended before it was killed"
    steps = run_recipe(read_recipe(killed), cpu=True)
    assert 0 < len(steps) < 200
    ends = [latest(tmp_path / name / "run") for name in ("whole", "killed")]
    assert ends[0].name == ends[1].name == "step-00000200"
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (ends[0] / file).read_bytes() == (ends[1] / file).read_bytes()
    logs = [[line["loss"] for line in _log(tmp_path / name)] for name in ("whole", "killed")]
    assert logs[0] == logs[1]


def test_a_model_on_disk_is_deepened_and_trained_on(tmp_path):
    head, tail = RECIPE.split("  config")[0], RECIPE.split("sources", 1)[1]
    recipe = _recipe(tmp_path, f"{head}  start: base\n  layers: 3\nsources{tail}")
    base = _model()
    base.save_pretrained(tmp_path / "base")
    model = read_recipe(recipe).model.make(seed=0)
    ids = torch.arange(9)[None]
    assert model.config.num_hidden_layers == 3
    assert torch.equal(model.eval()(ids).logits, base.eval()(ids).logits)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seed: 3", "seeds: 3", "unknown key 'seeds'"),
        ("seed: 3", "seed: -3", "seed must be 0 or above"),
        ("seed: 3", "seed: three", "seed must be of type int, got 'three'"),
        ("seed: 3", "precision: fp16", "precision must be one of no, bf16"),
        ("out: run", "", "recipe lacks out"),
        ("  layers: 3", "  layers: 1", "layers must be at least the source's 2"),
        ("  layers: 3", "  start: x", "either config or start, and not both"),
        ("hidden_size: 16", "width: 16", "model.config has the unknown key 'width'"),
        ("{web: web.npy}", "{}", "sources must name at least one"),
        ("{web: web.npy}", "{web: gone.npy}", "no token file at"),
        ("{web: web.npy}", "{web: 3}", "sources.web must be of type str"),
        ("peak: 3.0e-3", "peak: 3e-3", "must be of type float, got '3e-3': write 3.0e-4"),
        ("peak: 3.0e-3", "peak: 0", r"phases\[0\].rate: peak must be a positive"),
        ("{web: 1},\n     rate: {peak: 3", "{web: 0},\n     rate: {peak: 3", "all are 0"),
        ("{web: 1},\n     rate: {peak: 3", "{code: 1},\n     rate: {peak: 3", "which is not among"),
        ("context: 16", "context: 24", "multiple of the context 24"),
        ("context: 16, tokens: 320, batch_tokens: 64",
         "context: 4500, tokens: 9000, batch_tokens: 9000", "must hold more than 4500 tokens"),
        ("name: long", "name: short", "different names"),
        ("phases:", "phases: [", "is not valid YAML"),
        ("micro_batch: 2", "micro_batch: 0", "micro_batch must be at least 1"),
        ("save_every: 3", "save_every: 0", "save_every must be at least 1"),
        ("save_every: 3", "save_every: x", "save_every must be of type int"),
        ("num_key_value_heads: 2", "num_key_value_heads: 3", "a multiple of num_key_value_heads 3"),
        ("num_key_value_heads: 2", "num_key_value_heads: 0", "num_key_value_heads must be a whole"),
        ("num_attention_heads: 4", "num_attention_heads: 3", "makes no Mistral: .*head_dim"),
        ("sliding_window: 8}", "sliding_window: 8, head_dim: 7}", "makes no Mistral: .*head_dim"),
        ("sliding_window: 8}", "sliding_window: 8, rms_norm_eps: 0.0}", "rms_norm_eps must be"),
        ("sliding_window: 8}", "sliding_window: 8, rms_norm_eps: hello}", "makes no Mistral"),
        ("sliding_window: 8}", "sliding_window: 8, hidden_act: none}", "makes no Mistral"),
        ("seed: 3", "optimiser: {beta1: 1.0}", r"beta1 must be in \[0, 1\)"),
    ],
)  # fmt: skip
def test_a_bad_recipe_is_refused_in_one_sentence(tmp_path, capsys, old, new, words):
    assert old in RECIPE
    recipe = _recipe(tmp_path, RECIPE.replace(old, new, 1))
    assert main([str(recipe), "--cpu"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1 or "Writing" in said
    assert re.search(words, said), said
    assert not (tmp_path / "run").exists()


@pytest.fixture
def fresh_state():
    """Let accelerate take another precision than the tests around."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_state")
def test_bfloat16_keeps_weights_in_float32_and_stays_near_the_exact_losses(tmp_path):
    losses = {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)
        text = f"precision: {precision}\n{RECIPE}"
        recipe = read_recipe(_recipe(tmp_path / precision, text))
        losses[precision] = _losses(run_recipe(recipe, cpu=True))
        weights = load_file(latest(tmp_path / precision / "run") / "model.safetensors")
        assert {w.dtype for w in weights.values()} == {torch.float32}
    assert losses["no"] != losses["bf16"]
    np.testing.assert_allclose(losses["bf16"], losses["no"], rtol=0.01)


def test_recomputing_activations_changes_nothing(tmp_path):
    text = RECIPE.replace("  layers: 3", "  layers: 3\n  recompute: true")
    plain = run_recipe(read_recipe(_recipe(tmp_path / "a")), cpu=True)
    thrifty = run_recipe(read_recipe(_recipe(tmp_path / "b", text)), cpu=True)
    assert _losses(plain) == _losses(thrifty)


def test_the_recipe_in_the_docs_is_read(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "recipe.md").read_text(encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert [phase.objective for phase in recipe.phases.phases] == ["text", "text", "chat"]
    assert recipe.model.layers == 36


def test_the_token_file_of_the_docs_can_be_made(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "recipe.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    own = 'hub_vocabulary("mistralai/Mistral-7B-v0.1")'
    assert own in code
    monkeypatch.chdir(tmp_path)
    Path("web.jsonl").write_text(json.dumps({"text": "some words and others " * 20}) + "\n")
    exec("from trialrun.pretraining.moxin import byte_vocabulary", names := {})
    exec(code.replace(own, "byte_vocabulary()"), names)
    assert TokenSource.open("web.npy").tokens[-1] == byte_vocabulary().end


def test_a_missing_recipe_is_named(tmp_path, capsys):
    assert main([str(tmp_path / "none.yaml")]) == 2
    assert "no recipe at" in capsys.readouterr().err
    with pytest.raises(UsageError, match="recipe must be a table"):
        parse_recipe([1], home=tmp_path)


def test_another_recipe_does_not_go_on_from_these_checkpoints(tmp_path):
    saving = Saving(folder=tmp_path)
    _run(_model(), saving=saving)
    with pytest.raises(UsageError, match="other phases, sources, seed or optimiser"):
        _run(_model(), saving=saving, seed=2)
    with pytest.raises(UsageError, match="other phases, sources, seed or optimiser"):
        _run(_model(), saving=saving, optimiser=Optimiser(decay=0.0))


def test_broken_checkpoints_say_so(tmp_path):
    saving = Saving(folder=tmp_path, every=5, keep=9)
    _run(_model(), saving=saving)
    newest = latest(tmp_path)
    for name in ("optimizer.safetensors", "state.json"):
        kept = (newest / name).read_bytes()
        (newest / name).write_bytes(b"torn")
        with pytest.raises(UsageError, match="remove that checkpoint"):
            _run(_model(), saving=saving)
        (newest / name).write_bytes(kept)


def test_a_loss_that_is_no_number_stops_the_run():
    model = _model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(UsageError, match="the loss at step 0 is nan"):
        _run(model)


def test_rows_without_an_answer_are_named():
    rows = [{"messages": [{"role": "user", "content": "x"}]}]
    with pytest.raises(UsageError, match="row 0: messages hold no token to train"):
        _run(_model(), _talk("chat"), {"talk": rows})
    with pytest.raises(UsageError, match="'messages' must be a list"):
        _run(_model(), _talk("chat"), {"talk": [{"text": "x"}]})


def _lose(folder, name, *, into=None):
    path = folder / "model.safetensors"
    weights = load_file(path)
    kept = weights.pop(name)
    if into is not None:
        weights[name] = kept[:into].contiguous()
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("into", "words"), [(None, "lacks 1 of its weights, model"), (1, "shapes")]
)
def test_a_model_with_lost_weights_is_not_started_from(tmp_path, into, words):
    lost = "model.layers.1.mlp.up_proj.weight"
    _model().save_pretrained(tmp_path)
    _lose(tmp_path, lost, into=into)
    with pytest.raises(UsageError, match=words):
        ModelPlan(start=str(tmp_path)).make(seed=0)
    phases = _talk("preference", reference=str(tmp_path))
    with pytest.raises(UsageError, match=words):
        _run(_model(), phases, {"talk": PAIRS})


def test_a_checkpoint_with_lost_weights_is_not_resumed(tmp_path):
    saving = Saving(folder=tmp_path, every=5, keep=1)
    _run(_model(), saving=saving)
    _lose(latest(tmp_path), "model.norm.weight")
    with pytest.raises(UsageError, match=r"lacks 1 of its weights, model\.norm\.weight first"):
        _run(_model(), saving=saving)


def test_a_gradient_that_is_no_number_is_neither_stepped_nor_saved(tmp_path):
    model = _model()
    calls = []

    def spoil(gradient):
        calls.append(1)
        return gradient * float("inf") if len(calls) == 3 else gradient

    model.lm_head.weight.register_hook(spoil)
    with pytest.raises(UsageError, match="the gradient's norm at step 2 is"):
        _run(model, micro_batch=99, saving=Saving(folder=tmp_path, every=1))
    assert latest(tmp_path).name == "step-00000002"
    assert all(bool(w.isfinite().all()) for w in model.parameters())


@pytest.mark.parametrize("objective", ["chat", "preference"])
def test_a_talk_that_does_not_fit_stops_the_run_before_its_first_step(tmp_path, objective):
    long = [{"role": "user", "content": "x" * 90}, {"role": "assistant", "content": "late"}]
    if objective == "chat":
        rows, more = [*CHATS * 20, {"messages": long}], {}
    else:
        _model().save_pretrained(tmp_path / "reference")
        rows = [*PAIRS * 20, {"chosen": PAIRS[0]["chosen"], "rejected": long}]
        more = {"reference": str(tmp_path / "reference")}
    seen = []
    with pytest.raises(UsageError, match="row 240: messages hold no token to train within 49"):
        _run(_model(), _talk(objective, **more), {"talk": rows}, report=seen.append)
    assert not seen


def test_a_missing_reference_stops_the_run_before_an_earlier_phase(tmp_path):
    first = _phases(mixture={"web": 1}).phases[0]
    last = _talk("preference", reference=str(tmp_path / "none")).phases[0]
    seen = []
    with pytest.raises(UsageError, match="reference of phase 'talk' must be a model's folder"):
        _run(_model(), Phases([first, last]), {"web": _source(), "talk": PAIRS}, report=seen.append)
    assert not seen


def test_another_model_does_not_go_on_from_these_checkpoints(tmp_path):
    saving = Saving(folder=tmp_path)
    _run(_model(), saving=saving)
    for other in ({"num_hidden_layers": 3}, {"sliding_window": 4}, {"hidden_size": 32}):
        with pytest.raises(UsageError, match="or of another model"):
            _run(_model(**other), saving=saving)
    assert _run(_model().to(torch.bfloat16), saving=saving) == []


def test_tokens_outside_the_models_vocabulary_are_named():
    wild = TokenSource(np.arange(3000) % 300, name="web")
    with pytest.raises(UsageError, match=r"tokens must be in 0\.\.256, .* got \d"):
        _run(_model(), sources={"web": wild})
    with pytest.raises(
        UsageError, match="257 tokens, end token included, must fit the model's 256"
    ):
        _run(_model(vocab_size=256), _talk("chat"), {"talk": CHATS})


@pytest.mark.usefixtures("no_annotation_checks")
def test_bytes_are_refused_for_talk_with_a_model_that_has_its_own_tokens(tmp_path):
    _model(vocab_size=300).save_pretrained(tmp_path / "base")
    (tmp_path / "talk.jsonl").write_text("\n".join(json.dumps(row) for row in CHATS))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "out: run\nmodel: {start: base}\nsources: {talk: talk.jsonl}\nphases:\n"
        "  - {name: sft, objective: chat, context: 48, tokens: 192, batch_tokens: 96,\n"
        "     mixture: {talk: 1}, rate: {peak: 1.0e-3}}\n"
    )
    with pytest.raises(UsageError, match="got bytes, which take a model of 257 tokens and not 300"):
        run_recipe(read_recipe(recipe), cpu=True)
    _model().save_pretrained(tmp_path / "base")
    assert len(run_recipe(read_recipe(recipe), cpu=True)) == 2


def test_a_byte_order_mark_before_the_first_row_is_no_part_of_it(tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in CHATS), encoding="utf-8-sig")
    assert JsonLines(path)[0] == CHATS[0]
