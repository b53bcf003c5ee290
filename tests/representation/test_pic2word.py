"""The mapper, where its word goes, and queries, on the tiny CLIP."""

import pytest
import torch
from PIL import Image

from tests.naive.pic2word import (
    naive_image_to_word,
    naive_insert,
    naive_text_feature,
)
from tests.representation.pic2word_tools import Fixed, draw, tiny, word
from trialrun.core.errors import UsageError
from trialrun.representation.pic2word import (
    ImageToWord,
    WordTraining,
    as_clip,
    compose,
    compose_features,
    fit_image_to_word,
    mixture,
    nearest_words,
    text_only,
)


@pytest.mark.parametrize("batch", [1, 7, 63])
def test_mapper_matches_the_slow_twin_with_gradients(batch):
    mapper = ImageToWord(5, 4, hidden=6).double().eval()
    features = draw(batch, 5, dtype=torch.float64).requires_grad_()
    hidden = [(layer[0].weight, layer[0].bias) for layer in mapper.layers]
    last = (mapper.fc_out.weight, mapper.fc_out.bias)
    fast = mapper(features)
    slow = torch.stack([naive_image_to_word(v, hidden, last) for v in features])
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    weights = draw(*fast.shape, seed=9, dtype=torch.float64)
    inputs = (features, *mapper.parameters())
    for a, b in zip(
        torch.autograd.grad((fast * weights).sum(), inputs),
        torch.autograd.grad((slow * weights).sum(), inputs),
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("opening", ["read anew", "read once"])
@pytest.mark.parametrize("words", [1, 4, 7])
def test_word_is_inserted_at_the_end_of_the_text_and_read_one_further(words, opening):
    clip = tiny(torch.float64)
    prompt = " ".join(["a"] * words)
    ids = clip.tokenize([prompt])
    longer, at = clip.insert_at_end(ids)
    end = clip.tokenizer.start + 1
    wanted, place = naive_insert(ids[0].tolist(), end, clip.star_id)
    assert longer[0].tolist() == wanted
    assert at.tolist() == [[place]]
    pseudo = draw(1, 1, 8, dtype=torch.float64).requires_grad_()
    read = clip.reader(longer, at) if opening == "read once" else None
    fast = (read(pseudo) if read else clip.encode_text(longer, pseudo, at))[0]
    vectors = [clip.word_table()[i] for i in wanted]
    vectors[place] = pseudo[0, 0]
    slow = naive_text_feature(clip.model, vectors, place + 1)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
    weights = draw(len(fast), seed=3, dtype=torch.float64)
    (a,) = torch.autograd.grad((fast * weights).sum(), pseudo)
    (b,) = torch.autograd.grad((slow * weights).sum(), pseudo)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_one_sentence_with_words_in_several_places_is_read_as_any_other():
    clip = tiny(torch.float64)
    ids = clip.tokenize(["a * and * of a fox"])
    at = (ids == clip.star_id).nonzero()[:, 1][None]
    pseudo = draw(5, 2, 8, dtype=torch.float64)
    wanted = clip.encode_text(ids.expand(5, -1), pseudo, at.expand(5, -1))
    torch.testing.assert_close(clip.reader(ids, at)(pseudo), wanted, rtol=1e-10, atol=1e-12)


def test_a_real_word_as_pseudo_word_gives_the_sentence_with_that_word():
    clip = tiny(torch.float64)
    mapper = Fixed(word(clip, "fox"))
    made = compose(clip, None, mapper, draw(3, 8, 8), "a red drawing of *, and a photo")
    wanted = text_only(clip, "a red drawing of fox, and a photo", star="literal")[0]
    torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-12)
    inserted, at = clip.insert_at_end(clip.tokenize(["a photo of"]))
    torch.testing.assert_close(
        clip.encode_text(inserted, word(clip, "fox")[None, None], at),
        clip.encode_text(clip.tokenize(["a photo of fox"])),
    )


def test_several_stars_take_several_pictures_in_order():
    clip = tiny(torch.float64)
    mapper = ImageToWord(12, 8, hidden=5).double()
    left, right = draw(3, 8, 8), draw(3, 8, 8, seed=5)
    made = compose(clip, None, mapper, [left, right], "a * of *")
    mapper.eval()
    words = mapper(clip.encode_image(torch.stack([left, right])))[None]
    ids = clip.tokenize(["a * of *"])
    wanted = clip.encode_text(ids, words, torch.tensor([[2, 4]]))[0]
    torch.testing.assert_close(made, wanted / wanted.norm())
    swapped = compose(clip, None, mapper, [right, left], "a * of *")
    assert (made - swapped).abs().max() > 1e-6
    batch = compose(clip, None, mapper, [torch.stack([left, right])] * 2, "a * of *")
    assert batch.shape == (2, 12)


def test_one_picture_with_many_prompts_and_many_pictures_with_their_own():
    clip, mapper = tiny(), ImageToWord(12, 8, hidden=5)
    features = draw(3, 12)
    prompts = ["a red *", "a photo of *", "*"]
    own = compose_features(clip, mapper, features, prompts)
    for i, prompt in enumerate(prompts):
        alone = compose_features(clip, mapper, features[i : i + 1], prompts)
        torch.testing.assert_close(alone[i], own[i])
        assert compose_features(clip, mapper, features, prompt).shape == (3, 12)
    torch.testing.assert_close(own.norm(dim=1), torch.ones(3))


def test_normalised_embeddings_would_give_another_word():
    """The mapper takes embeddings as they come; composing normalises its own result only."""
    clip, mapper = tiny(), ImageToWord(12, 8, hidden=5).eval()
    image = draw(2, 3, 8, 8)
    raw = clip.encode_image(image)
    assert (raw.norm(dim=1) - 1).abs().min() > 1e-3
    torch.testing.assert_close(
        compose(clip, None, mapper, image, "a *"), compose_features(clip, mapper, raw, "a *")
    )
    unit = raw / raw.norm(dim=1, keepdim=True)
    assert (compose_features(clip, mapper, unit, "a *") - compose_features(clip, mapper, raw, "a *")
            ).abs().max() > 1e-4  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "images", "said"),
    [
        ("a drawing of", 1, r"holds no '\*', but 1 image came: write one '\*' for each"),
        ("a drawing of", 3, r"holds no '\*', but 3 images came"),
        ("a * and *", 1, r"holds 2 '\*', but 1 image came"),
        ("a *", 2, r"holds 1 '\*', but 2 images came"),
        (" ".join(["a"] * 20) + " *", 1, r"has '\*' beyond the 10 tokens"),
    ],
)
def test_stars_and_pictures_must_match(prompt, images, said):
    with pytest.raises(ValueError, match=said):
        compose(tiny(), None, ImageToWord(12, 8), [draw(3, 8, 8)] * images, prompt)


def test_pictures_of_one_query_must_agree_and_be_there():
    clip, mapper = tiny(), ImageToWord(12, 8)
    with pytest.raises(ValueError, match="got an empty list"):
        compose(clip, None, mapper, [], "a *")
    with pytest.raises(ValueError, match="must agree in shape"):
        compose(clip, None, mapper, [draw(3, 8, 8), draw(3, 9, 9)], "* *")
    with pytest.raises(ValueError, match="one for each of the 2 queries, got 3"):
        compose_features(clip, mapper, draw(2, 12), ["a *"] * 3)


def test_a_mapper_of_another_model_is_refused():
    with pytest.raises(ValueError, match="words must have 8 numbers each"):
        compose(tiny(), None, ImageToWord(12, 9), draw(3, 8, 8), "a *")


def test_star_next_to_a_comma_is_still_a_star():
    clip, mapper = tiny(), ImageToWord(12, 8)
    image = draw(3, 8, 8)
    torch.testing.assert_close(
        compose(clip, None, mapper, image, "a *, red"),
        compose(clip, None, mapper, image, "a * red"),
    )


def test_the_two_text_baselines_differ_and_are_named():
    clip = tiny()
    removed = text_only(clip, "a photo of *", star="removed")
    torch.testing.assert_close(removed, text_only(clip, "a photo of", star="literal"))
    assert (removed - text_only(clip, "a photo of *", star="literal")).abs().max() > 1e-4


def test_an_unknown_text_baseline_is_refused(no_annotation_checks):
    with pytest.raises(ValueError, match="star must be 'removed' or 'literal', got 'gone'"):
        text_only(tiny(), "a *", star="gone")


def test_mixture_is_the_normalised_sum_of_unit_vectors():
    pictures, text = 7 * draw(4, 12), 3 * draw(1, 12, seed=2)
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(
        mixture(pictures, text), unit(unit(pictures, dim=1) + unit(text, dim=1), dim=1)
    )
    with pytest.raises(ValueError, match="one for each of the 4 pictures"):
        mixture(pictures, draw(2, 12))


def test_nearest_word_of_a_scaled_word_is_that_word():
    clip = tiny()
    torch.testing.assert_close(
        nearest_words(clip, 3 * word(clip, "fox")[None]), word(clip, "fox")[None]
    )


def test_clip_and_mapper_come_back_in_their_modes():
    clip, mapper = tiny(), ImageToWord(12, 8)
    clip.model.train()
    mapper.train()
    clip.model.ln_final.eval()
    before = {name: module.training for name, module in clip.model.named_modules()}
    statistics = clip.model.visual[1].running_mean.clone()
    one = compose(clip, None, mapper, draw(2, 3, 8, 8), "a *")
    fit_image_to_word(mapper, clip, draw(6, 12), training=WordTraining(epochs=1, batch_size=3))
    assert {n: m.training for n, m in clip.model.named_modules()} == before
    assert all(weight.requires_grad for weight in clip.model.parameters())
    assert all(weight.grad is None for weight in clip.model.parameters())
    assert not mapper.training  # trained, and left ready to use
    # Batch statistics would have told one picture from two; the tower was in eval.
    torch.testing.assert_close(clip.model.visual[1].running_mean, statistics)
    assert one.shape == (2, 12)


def test_pictures_that_are_no_tensors_and_no_prompts_are_refused():
    clip, mapper = tiny(), ImageToWord(12, 8)
    for picture in (Image.new("RGB", (8, 8)), [Image.new("RGB", (8, 8))], "fox.png"):
        with pytest.raises(ValueError, match="image must be tensors, got a"):
            compose(clip, None, mapper, picture, "a *")
    with pytest.raises(ValueError, match="prompts must hold at least one sentence"):
        compose(clip, None, mapper, draw(3, 8, 8), [])
    with pytest.raises(ValueError, match="prompts must hold at least one sentence"):
        text_only(clip, [], star="removed")


def test_the_authors_checkpoint_loads(tmp_path):
    """Its entry is state_dict_img2text and its names begin with module."""
    source = ImageToWord(12, 8, hidden=5, seed=3)
    names = ["layers.0.0.weight", "layers.0.0.bias", "layers.1.0.weight", "layers.1.0.bias",
             "fc_out.weight", "fc_out.bias"]  # fmt: skip
    assert list(source.state_dict()) == names
    held = {f"module.{name}": value for name, value in source.state_dict().items()}
    file = tmp_path / "pic2word_model.pt"
    torch.save({"epoch": 30, "name": "x", "state_dict_img2text": held, "state_dict": {}}, file)
    loaded = ImageToWord.load(file)
    assert not loaded.training
    source.eval()
    torch.testing.assert_close(loaded(draw(3, 12)), source(draw(3, 12)), rtol=0, atol=0)


def test_a_file_that_is_no_mapper_is_refused(tmp_path):
    file = tmp_path / "other.pt"
    torch.save({"state_dict_img2text": {"module.weight": torch.zeros(2)}}, file)
    with pytest.raises(UsageError, match=r"must hold state_dict_img2text with layers\.0\.0"):
        ImageToWord.load(file)
    torch.save({"code": print}, file)
    with pytest.raises(UsageError, match="cannot be read as weights"):
        ImageToWord.load(file)
    good = {f"module.{k}": v for k, v in ImageToWord(12, 8, hidden=5).state_dict().items()}
    for missing in good:
        kept = {name: value for name, value in good.items() if name != missing}
        torch.save({"state_dict_img2text": kept}, file)
        with pytest.raises(UsageError, match="must hold"):
            ImageToWord.load(file)
    for wrong in (torch.zeros(9, 9), torch.zeros(5), 1, torch.zeros(5, 5, dtype=torch.int64)):
        torch.save({"state_dict_img2text": good | {"module.layers.1.0.weight": wrong}}, file)
        with pytest.raises(UsageError, match="must hold matrices that fit"):
            ImageToWord.load(file)
    torch.save({"state_dict_img2text": [1, 2]}, file)
    with pytest.raises(UsageError, match="must hold state_dict_img2text, got a list"):
        ImageToWord.load(file)
    for junk in (b"", b"junk", b"PK\x03\x04", b"\x80\x02}q\x00", bytes(range(256))):
        file.write_bytes(junk)
        with pytest.raises(UsageError, match=r"cannot be read as weights|must hold"):
            ImageToWord.load(file)
    with pytest.raises(UsageError, match=r"must end in \.safetensors"):
        ImageToWord(3, 3).save(tmp_path / "mapper.bin")


def test_a_model_that_is_no_clip_is_refused():
    with pytest.raises(ValueError, match="clip must be a CLIP of open_clip or transformers"):
        as_clip(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="a tokenizer is needed"):
        as_clip(tiny().model).tokenize(["a"])


def test_a_tokenizer_without_a_star_of_its_own_is_refused():
    clip = tiny()
    clip.tokenizer = lambda texts: torch.tensor([[3, 4, 4, 11]] * len(texts))
    with pytest.raises(ValueError, match=r"must read '\*' as one token"):
        _ = clip.star_id
