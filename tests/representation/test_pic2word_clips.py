"""Parity with the real networks of transformers and open_clip, at random weights."""

import json

import pytest
import torch

from tests.representation.pic2word_tools import Fixed
from tests.torchvision_stand_in import run_with_backbones
from trialrun.core.errors import UsageError
from trialrun.representation.pic2word import (
    ImageToWord,
    WordTraining,
    as_clip,
    compose,
    fit_image_to_word,
    load_clip,
    text_only,
)

transformers = pytest.importorskip("transformers")
LETTERS = "abcdefghijklmnopqrstuvwxyz*,"
MERGES = ["f o", "fo x</w>", "o f</w>"]


def tokenizer(folder, pad="<|endoftext|>"):
    """CLIP's own byte-pair tokenizer with a small vocabulary; the end of text is its highest id."""
    units = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "fo", "fox</w>", "of</w>"]
    units += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({u: i for i, u in enumerate(units)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    made = transformers.CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), pad_token=pad
    )
    return made, len(units)


def hub_clip(vocab_size, eos):
    text = {"vocab_size": vocab_size, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 14,
            "projection_dim": 12, "eos_token_id": eos, "bos_token_id": vocab_size - 2,
            "pad_token_id": vocab_size - 1, "attention_dropout": 0.5}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
              "projection_dim": 12}  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.CLIPModel(config)
        torch.nn.init.normal_(model.text_model.embeddings.token_embedding.weight)
    return model.double().eval()


@pytest.fixture
def hub(tmp_path, no_annotation_checks):
    """Return a model with the end-of-text id given, and its tokenizer."""

    def make(quirk):
        words, size = tokenizer(tmp_path)
        return hub_clip(size, 2 if quirk else size - 1), words

    return make


@pytest.mark.parametrize("quirk", [False, True])
def test_transformers_sentence_with_a_real_word_as_pseudo_word(hub, quirk):
    """Also with the wrong end-of-text id 2 that old configs hold, and padding by end of text."""
    model, words = hub(quirk)
    ids = words(["fox"], return_tensors="pt")["input_ids"]
    assert ids.shape[1] == 3
    vector = model.text_model.get_input_embeddings().weight[ids[0, 1]].detach()
    image = torch.rand(3, 16, 16, dtype=torch.float64)
    made = compose(model, words, Fixed(vector), image, "a *, of a fox")
    inputs = words(["a fox , of a fox"], return_tensors="pt", padding="max_length", max_length=14)
    own = model.get_text_features(**inputs).pooler_output[0].detach()
    torch.testing.assert_close(made, own / own.norm(), rtol=1e-10, atol=1e-12)
    clip = as_clip(model, words)
    longer, at = clip.insert_at_end(clip.tokenize(["a f of"]))
    inserted = clip.encode_text(longer, vector[None, None], at)[0]
    inputs = words(["a f of fox"], return_tensors="pt")
    torch.testing.assert_close(inserted, model.get_text_features(**inputs).pooler_output[0])
    assert (clip.embed_dim, clip.text_width, clip.context_length) == (12, 16, 14)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_transformers_trains_through_its_frozen_text_tower(hub, attention):
    model, words = hub(False)
    model.set_attn_implementation(attention)
    model = model.float().train()  # dropout of 0.5 would show
    clip, mapper = as_clip(model, words), ImageToWord(12, 16, hidden=6)
    features = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    training = WordTraining(epochs=3, batch_size=3, lr=1e-2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    start = mapper.fc_out.weight.detach().clone()
    fit_image_to_word(mapper, clip, features, prompt="a f of", training=training)
    assert (mapper.fc_out.weight - start).abs().max() > 1e-4
    assert model.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    first = text_only(clip, "a fox", star="literal")
    torch.testing.assert_close(first, text_only(clip, "a fox", star="literal"), rtol=0, atol=0)
    assert not model.text_model.get_input_embeddings()._forward_hooks


def test_transformers_image_embeddings_are_not_normalised(hub):
    model, words = hub(False)
    image = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    made = as_clip(model, words).encode_image(image)
    torch.testing.assert_close(made, model.get_image_features(image).pooler_output)
    assert (made.norm(dim=1) - 1).abs().min() > 1e-3


def test_pictures_of_another_size_are_one_sentence(hub):
    model, words = hub(False)
    clip = as_clip(model, words)
    with pytest.raises(ValueError, match=r"3, 16, 16\) for this model, got \(2, 3, 24, 16\): pass"):
        clip.encode_image(torch.rand(2, 3, 24, 16))
    with pytest.raises(ValueError, match=r"got \(2, 1, 16, 16\)$"):
        clip.encode_image(torch.rand(2, 1, 16, 16))


def test_transformers_says_when_no_sentence_ends(hub):
    model, words = hub(False)
    with pytest.raises(ValueError, match="sentence 1 has no end-of-text id"):
        as_clip(model, words).end_of_text(
            torch.tensor([[1, model.text_model.eos_token_id], [1, 2]])
        )


def test_a_transformers_folder_loads_with_its_own_pictures_and_words(hub, tmp_path):
    model, words = hub(False)
    folder = tmp_path / "clip"
    model.float().save_pretrained(folder)
    words.save_pretrained(folder)
    told = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    clip, prepare, tok = load_clip(folder)
    from PIL import Image

    pixels = prepare(Image.new("RGB", (40, 20), (255, 0, 0)))
    assert pixels.shape == (3, 16, 16)
    assert pixels[:, 0, 0].tolist() == [2.0, -2.0, -2.0]
    mapper = ImageToWord(clip.embed_dim, clip.text_width, hidden=6)
    made = compose(clip, tok, mapper, pixels, "a *")
    torch.testing.assert_close(made, compose(model, words, mapper, pixels, "a *"))


def test_a_folder_that_lacks_weights_or_is_no_clip_is_refused(hub, tmp_path, no_annotation_checks):
    from safetensors.torch import load_file, save_file

    model, words = hub(False)
    folder = tmp_path / "clip"
    model.float().save_pretrained(folder)
    words.save_pretrained(folder)
    told = folder / "preprocessor_config.json"
    for wrong in ("{bad", "[]", '{"image_mean": [1, 2]}', '{"image_std": [0, 1, 1]}'):
        told.write_text(wrong)
        with pytest.raises(UsageError, match="must be JSON with image_mean and image_std"):
            load_clip(folder)
    told.unlink()
    weights = folder / "model.safetensors"
    held = {k: v for k, v in load_file(weights).items() if not k.startswith("text_model")}
    save_file(held, weights, metadata={"format": "pt"})
    with pytest.raises(UsageError, match="of a CLIP's weights, which would be random, the first"):
        load_clip(folder)
    other = tmp_path / "bert"
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(other)
    words.save_pretrained(other)
    with pytest.raises(UsageError, match=r"must be a CLIP \(model_type clip\), got 'bert'"):
        load_clip(other)


def test_a_folder_without_a_tokenizer_is_refused(hub, tmp_path):
    model, _ = hub(False)
    model.save_pretrained(tmp_path / "clip")
    with pytest.raises(UsageError, match="has no tokenizer that goes with its text tower"):
        load_clip(tmp_path / "clip")


def test_a_hub_ids_own_mean_and_deviation_are_used(hub, tmp_path, monkeypatch):
    model, words = hub(False)
    model.float().save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    told = tmp_path / "elsewhere.json"
    told.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    asked = []

    def cached(name, file, **_):
        asked.append((name, file))
        return str(told)

    monkeypatch.setattr(transformers.utils, "cached_file", cached)
    prepare = load_clip(tmp_path).preprocess
    assert asked == [(str(tmp_path), "preprocessor_config.json")]
    assert (prepare.mean, prepare.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("device", ["foo", "cuda:x", "meta", ""])
def test_a_device_that_is_none_is_one_sentence(device, tmp_path):
    with pytest.raises(UsageError, match="device must be cpu or cuda"):
        load_clip(tmp_path, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is at hand")
def test_a_gpu_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="no CUDA GPU is at hand"):
        load_clip(tmp_path, device="cuda")


def test_no_clip_under_a_name_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"holds no CLIP: expected config\.json"):
        load_clip(tmp_path)
    with pytest.raises(UsageError, match="needs the name of its weights"):
        load_clip("ViT-L-14", trained=True)


def test_open_clip_of_both_kinds_agrees_with_itself():
    """In a process of its own, since open_clip asks for torchvision (torchvision_stand_in.py)."""
    told = run_with_backbones(
        """
import warnings
import torch, open_clip
from open_clip.model import CLIP, CustomTextCLIP
from trialrun.representation.pic2word import *
from trialrun.core.errors import UsageError
torch.manual_seed(0)
tok = open_clip.SimpleTokenizer()
vision = dict(layers=1, width=32, head_width=16, patch_size=16, image_size=32)
text = dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=2)

class Fixed(torch.nn.Module):
    def __init__(self, vector):
        super().__init__()
        self.vector = torch.nn.Parameter(vector)
    def forward(self, features):
        return self.vector.expand(*features.shape[:-1], -1)

for kind, more in ((CLIP, {}), (CustomTextCLIP, {}), (CLIP, dict(pool_type="eos", eos_id=49407)),
                   (CustomTextCLIP, dict(proj_bias=True))):
    model = kind(24, vision, {**text, **more}).double().eval()
    clip = as_clip(model, tok)
    assert clip.star_id == 265, clip.star_id
    assert (clip.embed_dim, clip.text_width, clip.context_length) == (24, 32, 77)
    image = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(clip.encode_image(image), model.encode_image(image))
    table = clip.word_table()
    fox = table[tok(["fox"])[0, 1]].detach()
    made = compose(model, tok, Fixed(fox), image[0], "a cartoon of *, and a red hat")
    own = model.encode_text(tok(["a cartoon of fox, and a red hat"]), normalize=True)[0]
    torch.testing.assert_close(made, own, rtol=1e-9, atol=1e-12)
    ids, at = clip.insert_at_end(clip.tokenize(["a photo of"]))
    assert ids[0, :7].tolist() == [49406, 320, 1125, 539, 265, 49407, 0]
    both = clip.encode_text(ids, fox[None, None], at)
    torch.testing.assert_close(both, model.encode_text(tok(["a photo of fox"])))
    word = fox.clone()[None, None].requires_grad_()
    clip.encode_text(ids, word, at).sum().backward()
    assert word.grad.abs().sum() > 0
    mapper = ImageToWord(24, 32, hidden=8).double()
    fit = fit_image_to_word(mapper, clip, torch.randn(6, 24, dtype=torch.float64),
                            training=WordTraining(epochs=1, batch_size=3))
    assert fit.steps == 2

bidirectional = CLIP(24, vision, {**text, "no_causal_mask": True}).eval()
clip = as_clip(bidirectional, tok)
fox = tok(["a fox"])
torch.testing.assert_close(clip.encode_text(fox), bidirectional.encode_text(fox))
try:
    as_clip(CustomTextCLIP(24, vision, {**text, "pool_type": "last"}), tok)
except ValueError as error:
    print(error)
for name in ("ViT-Z-14", "vit-b-32"):
    try:
        load_clip(name)
    except UsageError as error:
        print(error)
made = []
real = open_clip.create_model
def spy(name, pretrained=None, **settings):
    made.append((name, pretrained, settings))
    return real(name, **settings)
open_clip.create_model = spy
model = load_clip("RN50", "openai", trained=True).clip.model
assert made == [("RN50", "openai", {"force_quick_gelu": True})], made
assert type(model.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    clip, prepare, tokens = load_clip("RN50", None)
assert any("RN50 has random weights" in str(one.message) for one in heard), heard
try:
    clip.encode_image(torch.rand(1, 3, 64, 64))
except ValueError as error:
    print(error)
assert made[-1][2] == {"force_quick_gelu": False}
print(prepare.size, clip.embed_dim, clip.text_width, round(clip.logit_scale, 2))
assert prepare.mode == "crop" and tokens(["*"])[0, 1] == 265
"""
    )
    assert "that pools by 'last'" in told
    assert "'ViT-Z-14' is neither a folder, a hub id nor a model of open_clip" in told
    assert "did you mean ViT-B-32?" in told
    assert "(pictures, 3, 224, 224) for this model, got (1, 3, 64, 64)" in told
    assert "224 1024 512 14.29" in told
