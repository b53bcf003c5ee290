"""ReRoPE's claims: what every arm's model really is, what it is scored on, and --on and --model."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from trialrun.blocks.bytelm import Shape, load_model, make_model, save_model
from trialrun.claims.contract import Context, On
from trialrun.core.errors import NotRunnable, UsageError
from trialrun.dossiers.rerope import claim, copying
from trialrun.dossiers.rerope.hosts import corpus, host_of, lengths_of

TRIAL = claim.TRIAL
TEXT_CLAIMS = ("no-collapse", "leaky")
ALL_ARMS = [(name, arm) for name, arms in TRIAL.arms.items() for arm in arms]
SHORT = {"2T": 32, "4T": 64, "8T": 128}


def length_of(sizes, name):
    return (sizes.copy if name == "extra-context" else sizes.text).shape.length


@pytest.fixture
def ctx(tmp_path):
    """Untrained models where the preparation leaves the trained ones."""
    smoke = TRIAL.budgets["smoke"]
    text, task = smoke.text.shape, smoke.copy.shape
    found = Context(budget=smoke, seed=3, prepared_root=tmp_path / "prepared")
    save_model(make_model(text, seed=3), found.prepared("text"))
    # One layer, so that what the last token sees is the mask of that layer and no more.
    small = dataclasses.replace(task, layers=1, width=32, heads=1)
    save_model(make_model(copying.copy_shape(small), seed=3), found.prepared("copy"))
    return found


@pytest.fixture
def seen(monkeypatch):
    """Call ``look(model, length)`` on every model that an arm scores, patched as it is scored."""

    def spy(look):
        found = []

        def loss(model, windows, *, context, targets):
            found.append((look(model, context), context, windows, targets))
            return torch.zeros(len(windows))

        def accuracy(model, *, distance, count, seed, repeat=True):
            length = copying.copy_length(distance) - 1
            found.append((look(model, length), length, distance, count))
            return 0.0

        monkeypatch.setattr(claim, "loss_on_last", loss)
        monkeypatch.setattr(claim, "copy_accuracy", accuracy)
        return found

    return spy


@torch.no_grad()
def sight(model, length):
    """Return how many tokens the logits of the last one depend on, itself counted."""
    ids = torch.zeros(length + 1, length, dtype=torch.long)
    ids[torch.arange(length), torch.arange(length)] = 7
    out = torch.cat([model(part).logits[:, -1] for part in (ids[:-1], ids[-1:])])
    touched = (out[:-1] - out[-1]).abs().amax(1) > 1e-6
    assert touched[-int(touched.sum()) :].all()
    return int(touched.sum())


def scheme_of(model, _):
    config = model.config
    return {
        "type": config.model_type,
        "rope": config.rope_parameters["rope_type"],
        "sliding": getattr(config, "sliding_window", None),
        "rerope": getattr(config, "rerope", None),
    }


@pytest.mark.parametrize(("name", "arm"), ALL_ARMS)
def test_each_arm_scores_the_model_under_the_scheme_of_its_name_alone(ctx, seen, name, arm):
    t = length_of(ctx.budget, name)
    ours = {"window": t // 2, "train_len": t, "slope": None, "logn": True}
    plain = {"type": "llama", "rope": "default", "sliding": None, "rerope": None}
    wanted = {
        "rerope": {**plain, "rerope": ours},
        "nothing-to-copy": {**plain, "rerope": ours},
        "leaky": {**plain, "rerope": {**ours, "slope": 32.0}},
        "steep": {**plain, "rerope": {**ours, "slope": 2.0}},
        "window-at-T": {**plain, "rerope": {**ours, "window": t, "train_len": t + 1}},
        "sliding-window": {**plain, "type": "mistral", "sliding": t},
        "interpolation": {**plain, "rope": "linear"},
        "ntk": {**plain, "rope": "dynamic"},
        "yarn": {**plain, "rope": "yarn"},
        "rope": plain,
        "rope-at-T": plain,
    }[arm]
    found = seen(scheme_of)
    TRIAL.arms[name][arm](ctx)
    assert [scheme for scheme, *_ in found] == [wanted] * len(found)
    assert found


@pytest.mark.parametrize("name", TRIAL.arms)
def test_the_sliding_window_shows_exactly_t_tokens_and_plain_rope_all(ctx, seen, name):
    t = length_of(ctx.budget, name)
    found = seen(sight)
    TRIAL.arms[name]["sliding-window"](ctx)
    assert [shown for shown, *_ in found] == [min(t, length) for _, length, *_ in found]
    assert max(length for _, length, *_ in found) >= 8 * t
    found.clear()
    TRIAL.arms[name]["rope"](ctx)
    assert [shown for shown, *_ in found] == [length for _, length, *_ in found]


@torch.no_grad()
def frequencies(model, length):
    """Return the rotary frequencies after a call at this length, and the factor on the angles."""
    model(torch.zeros(1, length, dtype=torch.long))
    rotary = model.model.rotary_emb
    return rotary.inv_freq.clone(), rotary.attention_scaling


def told_length(name, length):
    # Copying scores all but the last symbol of a sequence, and no scheme shrinks below T.
    return max(64, length + 1) if name == "extra-context" else length


@pytest.mark.parametrize("name", ["no-collapse", "extra-context"])
@pytest.mark.parametrize("arm", ["interpolation", "yarn", "ntk"])
def test_scaled_rivals_turn_by_the_true_ratio_of_lengths(ctx, seen, name, arm):
    t = length_of(ctx.budget, name)
    plain = 10000.0 ** -(torch.arange(0, 32, 2) / 32)
    found = seen(frequencies)
    TRIAL.arms[name][arm](ctx)
    assert {round(told_length(name, length) / t) for _, length, *_ in found} >= {2, 4, 8}
    for (turned, scale), length, *_ in found:
        ratio = told_length(name, length) / t
        if arm == "interpolation":
            torch.testing.assert_close(turned, plain / ratio)
        elif arm == "yarn":
            torch.testing.assert_close(turned[[0, -1]], plain[[0, -1]] / torch.tensor([1, ratio]))
            assert scale == pytest.approx(1 + 0.1 * np.log(ratio))
        else:
            # NTK-aware: a base under which the slowest frequency is slowed by the ratio, at the
            # length that is read.
            stretch = max(1.0, length / t)
            torch.testing.assert_close(turned[[0, -1]], plain[[0, -1]] / torch.tensor([1, stretch]))


@pytest.mark.parametrize("name", TEXT_CLAIMS)
def test_all_arms_of_a_text_claim_score_the_same_targets_at_every_length(ctx, seen, name):
    found = seen(lambda *_: None)
    scored = []
    for arm, run in TRIAL.arms[name].items():
        found.clear()
        measured = run(ctx)
        assert tuple(measured.points) == tuple(SHORT)
        contexts = [context for _, context, *_ in found]
        assert contexts == ([16] if arm == "rope-at-T" else list(SHORT.values()))
        for _, _, windows, targets in found:
            assert targets == 8
            assert windows.shape == (ctx.budget.text.scored, 129)
            scored.append(windows)
        assert measured.n == ctx.budget.text.scored * 8
    assert all(torch.equal(scored[0], other) for other in scored)


def test_text_that_is_scored_comes_from_the_held_out_files(ctx, seen):
    found = seen(lambda *_: None)
    TRIAL.arms["no-collapse"]["rope"](ctx)
    held_out = corpus(None)[1].tobytes()
    assert all(bytes(window.tolist()) in held_out for window in found[0][2])


def test_all_arms_copy_the_same_spans_and_one_has_nothing_to_copy(ctx, monkeypatch):
    drawn = []
    draw = copying.sequences

    def spy(*args, **kwargs):
        drawn.append(draw(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(copying, "sequences", spy)
    scored = {}
    for arm, run in TRIAL.arms["extra-context"].items():
        drawn.clear()
        assert tuple(run(ctx).points) == ("2T", "4T", "8T")
        scored[arm] = list(drawn)
    empty = scored.pop("nothing-to-copy")
    for found in scored.values():
        assert all(torch.equal(a, b) for a, b in zip(found, scored["rope"], strict=True))
    for distance, own, other in zip((128, 256, 512, 32), scored["rope"], empty, strict=True):
        assert torch.equal(own[:, -12:], other[:, -12:])
        source = slice(-12 - distance, -distance)
        assert torch.equal(own[:, source], own[:, -12:])
        assert (other[:, source] != other[:, -12:]).float().mean() > 0.6
        # Elsewhere only filler: the span stands in one other place.
        assert (own[:, : source.start] >= 192).all()


def copies_seen(model, distance):
    """Return for how many symbols of a span the logits depend on the symbol to be copied."""
    length = copying.copy_length(distance)
    ids = copying.sequences(np.random.default_rng(0), np.full(1, distance), length=length)
    place = torch.arange(1, 12)
    moved = ids.repeat(12, 1)
    moved[place, length - 12 - distance + place] += torch.where(
        moved[place, length - 12 - distance + place] % 2 == 0, 1, -1
    )
    with torch.no_grad():
        logits = model(moved[:, :-1], logits_to_keep=11).logits
    gaps = (logits[place, place - 1] - logits[0, place - 1]).abs().amax(1)
    return int((gaps > 1e-6).sum())


@pytest.mark.parametrize("name", ["smoke", "quick", "full", "gpu"])
def test_the_symbol_to_copy_is_out_of_the_sliding_windows_reach_through_all_layers(ctx, name):
    sizes = TRIAL.budgets[name]
    shape = copying.copy_shape(sizes.copy.shape)
    save_model(make_model(shape, seed=0), ctx.prepared("copy"))
    host = claim.Host(str(ctx.prepared("copy")), shape.length, "cpu")
    sliding = TRIAL.arms["extra-context"]["sliding-window"].keywords["ready"](host, 0)[0]
    plain = claim.load_host(host)
    for multiple in sizes.multiples:
        assert copies_seen(sliding, multiple * shape.length) == 0
        assert copies_seen(plain, multiple * shape.length) == 11
    assert copies_seen(sliding, shape.length // 2) == 11


def words(path, size):
    """Write text whose last tenth is in capitals."""
    text = ("all work and no play makes jack a dull boy\n" * (size // 43 + 1))[:size]
    cut = size * 9 // 10
    path.write_text(text[:cut] + text[cut:].upper())
    return On("text", str(path))


def test_a_text_of_the_users_own_is_trained_on_scored_and_kept(tmp_path, monkeypatch, seen):
    on = words(tmp_path / "own.txt", 200_000)
    ctx = Context(budget=TRIAL.budgets["smoke"], seed=0, on=on, prepared_root=tmp_path / "prepared")
    read = []
    batches = claim.text_batches
    monkeypatch.setattr(
        claim,
        "text_batches",
        lambda data, *a, **k: read.append(data.tobytes()) or batches(data, *a, **k),
    )
    TRIAL.check_on(ctx)
    TRIAL.prepare["text"](ctx, ctx.prepared("text"))
    assert read == [Path(on.path).read_bytes()[:180_000]]
    measured = TRIAL.arms["no-collapse"]["rerope"](ctx)
    assert all(0 < loss < 20 for loss in measured.points.values())

    found = seen(lambda *_: None)
    TRIAL.arms["leaky"]["leaky"](ctx)
    assert all(bytes(window.tolist()).isupper() for window in found[0][2])

    kept = tmp_path / "kept"
    kept.mkdir()
    scope: dict = {}
    exec(TRIAL.keep(ctx, kept), scope)
    assert scope["patch"].to_dict() == {
        "window": 8, "train_len": 16, "slope": None, "logn": True,
    }  # fmt: skip
    trained = load_model(ctx.prepared("text"))
    ids = torch.arange(60)[None]
    with torch.no_grad(), claim._patch(16).attached(trained):
        torch.testing.assert_close(scope["model"].eval()(ids).logits, trained(ids).logits)


def test_a_text_is_split_at_nine_tenths_and_nothing_is_lost(tmp_path):
    on = words(tmp_path / "own.txt", 234_567)
    train, held_out = corpus(on)
    assert len(held_out) == pytest.approx(23_456.7, abs=1)
    assert (train.tobytes() + held_out.tobytes()) == Path(on.path).read_bytes()


def test_a_short_text_is_refused_in_one_sentence_before_any_unit_runs(tmp_path):
    ctx = Context(budget=TRIAL.budgets["smoke"], seed=0, on=words(tmp_path / "s.txt", 199_999))
    with pytest.raises(UsageError, match=r"s\.txt.* 200000 bytes .*, got 199999$"):
        TRIAL.check_on(ctx)


@pytest.fixture
def folder(tmp_path):
    """A user's model trained at 48 tokens, in a folder with an at sign in its name."""
    where = tmp_path / "me@home"
    save_model(make_model(Shape(layers=1, width=32, heads=1, length=48), seed=0), where)
    return where


@pytest.mark.parametrize(
    ("budget", "told", "length"),
    [
        ("quick", "", 48),
        ("quick", "@12", 12),
        ("full", "@96", 96),
        ("smoke", "", 32),
        ("smoke", "@12", 12),
    ],
)
def test_model_at_length_tells_the_training_length(folder, budget, told, length):
    ctx = Context(budget=TRIAL.budgets[budget], seed=0, model=f"{folder}{told}")
    TRIAL.check_on(ctx)
    host = host_of(ctx)
    assert (host.where, host.train_len) == (str(folder), length)
    lengths = lengths_of(ctx, host)
    assert lengths["2T"] == 2 * length
    assert max(lengths.values()) <= ctx.budget.model_longest


def test_a_model_too_long_for_the_budget_is_refused_with_the_length_to_state(folder):
    ctx = Context(budget=TRIAL.budgets["quick"], seed=0, model=f"{folder}@4097")
    with pytest.raises(NotRunnable, match=r"trained at 4097 .* 4096 or fewer, .*MODEL@LENGTH"):
        TRIAL.check_on(ctx)
    TRIAL.check_on(dataclasses.replace(ctx, model=f"{folder}@4096"))


def test_a_users_model_is_read_in_its_own_tokens_and_at_the_length_told(folder, seen, monkeypatch):
    class Halves:
        """Numbers a text's characters, two tokens for each."""

        def __call__(self, text, *, add_special_tokens):
            assert not add_special_tokens
            return {"input_ids": [half for c in text[:4000] for half in (ord(c) % 128, 200)]}

    monkeypatch.setattr(
        "trialrun.dossiers.rerope.hosts.AutoTokenizer.from_pretrained", lambda where: Halves()
    )
    ctx = Context(budget=TRIAL.budgets["full"], seed=0, model=f"{folder}@12")
    found = seen(lambda model, _: model.config)
    measured = TRIAL.arms["no-collapse"]["rerope"](ctx)
    assert [length for _, length, *_ in found] == [24, 48, 96]
    assert measured.n == 4 * 6
    for config, _, windows, targets in found:
        assert (config.max_position_embeddings, targets) == (12, 6)
        assert windows.shape == (4, 97)
        assert ((windows[:, ::2] == 200).all(1) | (windows[:, 1::2] == 200).all(1)).all()
