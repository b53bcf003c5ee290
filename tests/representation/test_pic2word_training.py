"""The mapper's training: its loss, its settings, and runs that are taken up again."""

import subprocess
import sys
import warnings

import pytest
import torch

from tests.naive.pic2word import (
    naive_loss,
)
from tests.representation.pic2word_tools import draw, tiny
from trialrun.core.errors import UsageError
from trialrun.representation.pic2word import (
    ImageToWord,
    WordTraining,
    compose_features,
    fit_image_to_word,
    symmetric_infonce,
)


@pytest.mark.parametrize("batch", [1, 7, 63])
def test_loss_matches_the_slow_twin_with_gradients(batch):
    v, p = (draw(batch, 5, seed=s, dtype=torch.float64).requires_grad_() for s in (0, 1))
    unit = torch.nn.functional.normalize
    fast = symmetric_infonce(unit(v, dim=1), unit(p, dim=1), 1 / 0.07)
    slow = naive_loss(v, p, 0.07)
    torch.testing.assert_close(fast, slow)
    for a, b in zip(torch.autograd.grad(fast, (v, p)), torch.autograd.grad(slow, (v, p))):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


def test_loss_at_clips_temperature_stays_finite_in_float32():
    rows = torch.eye(4)
    assert torch.isfinite(symmetric_infonce(rows, -rows, 100.0))


def test_training_teaches_words_that_stand_for_their_pictures():
    clip = tiny()
    clip.model.logit_scale.data.fill_(4.6)  # about log 100, as in CLIP
    ids, at = clip.insert_at_end(clip.tokenize(["a photo of"] * 40))
    features = 3 * clip.encode_text(ids, 5 * draw(40, 1, 8), at).detach()  # some word says each
    mapper = ImageToWord(12, 8, hidden=64)
    training = WordTraining(epochs=150, batch_size=20, lr=1e-2)
    fit = fit_image_to_word(mapper, clip, features, prompt="a photo of", training=training)
    assert fit.steps == 300
    assert fit.losses[-10:].mean() < 0.6 * fit.losses[:5].mean()
    shares = []
    for one in (ImageToWord(12, 8, hidden=64), mapper):
        made = compose_features(clip, one, features, "a photo of *")
        right = (made @ torch.nn.functional.normalize(features, dim=1).T).argmax(1)
        shares.append((right == torch.arange(40)).float().mean())
    assert shares[0] < 0.1 < 0.2 < shares[1]  # chance: 0.025


def test_a_loader_gives_what_its_cached_embeddings_give():
    clip = tiny()
    pictures = draw(8, 3, 8, 8)
    training = WordTraining(epochs=2, batch_size=4, lr=1e-2)
    made = []
    for images in (clip.encode_image(pictures).detach(), [(pictures[:5], "name"), pictures[5:]]):
        mapper = ImageToWord(12, 8, hidden=5)
        fit_image_to_word(mapper, clip, images, training=training)
        made.append(mapper.fc_out.weight)
    torch.testing.assert_close(*made)
    with pytest.raises(ValueError, match="at least one batch, got none"):
        fit_image_to_word(mapper, clip, [])
    with pytest.raises(ValueError, match="must give tensors"):
        fit_image_to_word(mapper, clip, ["a.png"])


@pytest.mark.parametrize("stop", [3, 7])
def test_resumed_training_ends_with_the_same_bits(tmp_path, stop):
    clip, features = tiny(), draw(12, 12)
    training = WordTraining(epochs=4, batch_size=5, lr=1e-2)  # 8 steps
    whole = ImageToWord(12, 8, hidden=5)
    straight = fit_image_to_word(whole, clip, features, training=training)

    file, broken = tmp_path / "run.safetensors", ImageToWord(12, 8, hidden=5)
    calls = []

    def failing(*_):
        calls.append(1)
        if len(calls) > stop:
            raise KeyboardInterrupt

    handle = broken.register_forward_pre_hook(failing)
    with pytest.raises(KeyboardInterrupt):
        fit_image_to_word(broken, clip, features, training=training, checkpoint=file, save_every=2)
    handle.remove()
    again = ImageToWord(12, 8, hidden=5, seed=77)
    fit = fit_image_to_word(again, clip, features, training=training, checkpoint=file)
    assert fit.resumed_at == stop - stop % 2
    torch.testing.assert_close(fit.losses, straight.losses, rtol=0, atol=0)
    for a, b in zip(again.parameters(), whole.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    done = fit_image_to_word(again, clip, features, training=training, checkpoint=file)
    assert done.resumed_at == done.steps == 8


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    clip, file = tiny(), tmp_path / "run.safetensors"
    training = WordTraining(epochs=1, batch_size=5)
    fit_image_to_word(ImageToWord(12, 8), clip, draw(12, 12), training=training, checkpoint=file)
    with pytest.raises(UsageError, match=r"belongs to another run \(other seed\)"):
        fit_image_to_word(
            ImageToWord(12, 8), clip, draw(12, 12), training=training, checkpoint=file, seed=1
        )
    file.write_bytes(b"damaged")
    with pytest.raises(UsageError, match="is damaged, delete it"):
        fit_image_to_word(
            ImageToWord(12, 8), clip, draw(12, 12), training=training, checkpoint=file
        )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"features": draw(12, 12, seed=9)}, "other embeddings, targets"),
        ({"targets": draw(12, 12, seed=9)}, "other targets"),
        ({"clip": True}, "other CLIP"),
        ({"hidden": 4}, "other mapper"),
        ({"dropout": 0.3}, "other dropout"),
        ({"prompt": "a drawing of"}, "other prompt"),
    ],
)
def test_a_checkpoint_knows_its_pictures_clip_and_mapper(tmp_path, changed, said):
    file, training = tmp_path / "run.safetensors", WordTraining(epochs=1, batch_size=5)

    own = draw(12, 12)

    def fit(features=own, clip=False, hidden=5, dropout=0.1, **more):
        used = tiny()
        if clip:
            used.model.ln_final.weight.data.mul_(1.5)
        mapper = ImageToWord(12, 8, hidden=hidden, dropout=dropout)
        return fit_image_to_word(mapper, used, features, training=training, checkpoint=file, **more)

    fit()
    assert fit().resumed_at == 2
    with pytest.raises(UsageError, match=rf"belongs to another run \({said}\)"):
        fit(**changed)


def test_embeddings_with_gradients_or_of_inference_mode_serve():
    clip, training = tiny(), WordTraining(epochs=1, batch_size=4)
    with torch.inference_mode():
        inferred = clip.encode_image(draw(4, 3, 8, 8))
    graph = clip.encode_image(draw(4, 3, 8, 8))
    assert graph.requires_grad
    made = []
    for features in (graph, inferred, graph.detach()):
        mapper = ImageToWord(12, 8, hidden=5)
        fit_image_to_word(mapper, clip, features, training=training)
        made.append(mapper.fc_out.weight)
    for mode in (torch.no_grad, torch.inference_mode):
        mapper = ImageToWord(12, 8, hidden=5)
        with mode():
            fit_image_to_word(mapper, clip, graph, training=training)
        made.append(mapper.fc_out.weight)
    for weight in made[1:]:
        torch.testing.assert_close(weight, made[0], rtol=0, atol=0)
    assert all(weight.grad is None for weight in clip.model.parameters())


def test_targets_must_be_finite():
    mapper = ImageToWord(12, 8)
    before = mapper.fc_out.weight.clone()
    with pytest.raises(ValueError, match="targets must be finite, got 4 that are not"):
        fit_image_to_word(mapper, tiny(), draw(4, 12), targets=torch.full((4, 12), torch.nan))
    torch.testing.assert_close(mapper.fc_out.weight, before)


def test_settings_must_be_whole(no_annotation_checks):
    for settings in ({"epochs": 1.5}, {"batch_size": 2.5}, {"warmup": 0.1}, {"epochs": True}):
        with pytest.raises(ValueError, match=f"{next(iter(settings))} must be .* a whole number"):
            WordTraining(**settings)


def test_rate_warms_up_then_falls_along_a_cosine():
    training = WordTraining(lr=1.0, warmup=10)
    assert [training.rate(s, 110) for s in (0, 9, 10, 60, 110)] == pytest.approx(
        [0.1, 1.0, 1.0, 0.5, 0.0]
    )
    assert WordTraining(lr=1.0).rate(9_999, 1_000_000) == 1.0  # the paper's 10,000 steps
    assert WordTraining(lr=1.0).rate(4, 50) == 1.0  # a tenth of a short run


def test_biases_are_not_decayed():
    clip, mapper = tiny(), ImageToWord(12, 8, hidden=5)
    before = {k: v.clone() for k, v in mapper.state_dict().items()}
    # At equal pictures and targets of a batch of copies no gradient is left but decay.
    features = torch.ones(4, 12)
    training = WordTraining(epochs=1, batch_size=4, lr=1e-3, weight_decay=100.0, warmup=0)
    fit_image_to_word(mapper, clip, features, training=training)
    after = mapper.state_dict()
    shrunk = (after["fc_out.weight"] / before["fc_out.weight"]).median()
    assert 0.8 < shrunk < 0.95
    assert (after["fc_out.bias"] - before["fc_out.bias"]).abs().max() < 2e-3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"objective": "l1"}, "objective must be one of contrastive, mse, got 'l1'"),
    ],
)
def test_training_settings_are_checked(settings, said):
    with pytest.raises(ValueError, match=said):
        WordTraining(**settings)


def test_a_prompt_that_fills_the_context_leaves_no_room_for_a_word():
    with pytest.raises(ValueError, match="fills all 10 tokens"):
        fit_image_to_word(ImageToWord(12, 8), tiny(), draw(4, 12), prompt=" ".join(["a"] * 8))


def test_unit_embeddings_are_told_to_be_the_wrong_ones():
    clip, features = tiny(), draw(6, 12)
    training = WordTraining(epochs=1, batch_size=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_image_to_word(ImageToWord(12, 8), clip, features, training=training)
    unit = torch.nn.functional.normalize(features, dim=1)
    with pytest.warns(UserWarning, match="all embeddings are unit vectors"):
        fit_image_to_word(ImageToWord(12, 8), clip, unit, training=training)


def test_the_warning_of_unit_embeddings_points_at_the_call(tmp_path):
    # In a process of its own: the checks of annotations put calls between the two.
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "from trialrun.representation.pic2word import ImageToWord, WordTraining\n"
        "from trialrun.representation.pic2word import fit_image_to_word\n"
        "from trialrun.representation.tiny_clip import TinyClip, WordTokenizer\n"
        "tok = WordTokenizer(('a', 'photo', 'of'))\n"
        "clip = TinyClip(tok.vocab_size)\n"
        "features = torch.eye(clip.embed_dim)[:6]\n"
        "mapper = ImageToWord(clip.embed_dim, clip.text_width, hidden=8)\n"
        "how = {'tokenizer': tok, 'training': WordTraining(epochs=1, batch_size=3)}\n"
        "fit_image_to_word(mapper, clip, features, **how)  # here\n"
    )
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{file}:10: UserWarning: all embeddings are unit vectors" in done.stderr
