"""Search a folder of pictures with "like this picture, but ...", with a CLIP made on the spot."""

import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from trialrun.representation.pic2word import ImageToWord, WordTraining, fit_image_to_word, load_clip
from trialrun.representation.picture_index import ask, build_index, draw_hits
from trialrun.representation.tiny_clip import (
    TinyClip,
    WordTokenizer,
    fit_tiny_clip,
    save_tiny_clip,
)

COLOURS = ("red", "green", "blue", "orange", "black", "purple")


def drawn(colour: str, shape: str) -> Image.Image:
    """Draw a disc, a square or a bar."""
    picture = Image.new("RGB", (32, 32), "white")
    pen = ImageDraw.Draw(picture)
    box = (4, 12, 27, 19) if shape == "bar" else (6, 6, 25, 25)
    (pen.ellipse if shape == "disc" else pen.rectangle)(box, fill=colour)
    return picture


with tempfile.TemporaryDirectory() as scratch:
    root = Path(scratch)
    (root / "pictures").mkdir()
    pairs = [(colour, shape) for colour in COLOURS for shape in ("disc", "square", "bar")]
    for colour, shape in pairs:
        drawn(colour, shape).save(root / "pictures" / f"{colour} {shape}.png")

    # Stand-ins for a real CLIP and its training data; load_clip("ViT-L-14", "openai") is one.
    captions = [[f"a {c} {s}", f"a {c} drawing of a {s}"] for c, s in pairs]
    words = WordTokenizer.of(text for told in captions for text in told)
    model = TinyClip(words.vocab_size, embed_dim=32, width=32, channels=(16, 32))
    pixels = torch.stack(
        [torch.frombuffer(bytearray(drawn(*p).tobytes()), dtype=torch.uint8) for p in pairs]
    )
    fit_tiny_clip(model, words, pixels.view(-1, 32, 32, 3), captions, steps=150, batch_size=18)
    save_tiny_clip(model, words, root / "clip")

    loaded = load_clip(root / "clip")
    index = build_index(loaded, root / "pictures", model=str(root / "clip"))
    mapper = ImageToWord(loaded.clip.embed_dim, loaded.clip.text_width, hidden=64)
    training = WordTraining(epochs=150, batch_size=18, lr=3e-3)
    fit = fit_image_to_word(mapper, loaded.clip, index.features, prompt="a", training=training)
    print(f"trained on {fit.pictures} pictures, loss {fit.losses[0]:.2f} to {fit.losses[-1]:.2f}")

    asked = root / "pictures" / "red disc.png"
    (found,) = ask(index, loaded, ["a *"], images=[asked], mapper=mapper, top=3)
    for hit in found.hits:
        print(f"{hit.rank}  {hit.score:.2f}  {hit.path.stem}")
    draw_hits([found], [asked], root / "hits.png")
    print("a contact sheet was drawn:", (root / "hits.png").is_file())
