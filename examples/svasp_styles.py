"""Attack the styles of a network of your own, and draw what a change of style is.

Run as ``python examples/svasp_styles.py [picture.png]``. The picture shows the attack at the pixels
themselves, as far in random directions, and letters that take the mean and deviation of colour of
the picture above them. The method does the same to feature maps, which nobody can look at.
"""

import sys

import numpy as np
import torch
from PIL import Image

from trialrun.fewshot.svasp import (
    Conv4,
    EpisodicTraining,
    FewShotModel,
    Pictures,
    StyleAttack,
    adain,
    attacked_pixels,
    draw_styles,
    evaluate_episodes,
    style_of,
    train_episodes,
    train_supervised,
)
from trialrun.material.emoji import load_emoji
from trialrun.material.glyphs import load_glyphs

SIDE = 32


def letters(limit: int = 60) -> Pictures:
    """Letters as classes, drawers as pictures."""
    glyphs = load_glyphs(("latin", "greek", "georgian"), size=SIDE, limit=limit)
    images = glyphs.images.reshape(-1, 1, SIDE, SIDE).repeat(3, axis=1)
    return Pictures(torch.from_numpy(images), np.repeat(np.arange(limit), len(glyphs.drawers)))


def styles_seen(model: FewShotModel, source: Pictures, count: int = 4) -> Image.Image:
    """Letters, their colours attacked or moved at random, and in the statistics of emoji."""
    rows = np.arange(5) * 8 * 20 + 3  # every eighth letter by one drawer
    own, y = source.take(rows), torch.from_numpy(source.labels[rows])
    blank = torch.ones(1, 3, SIDE, SIDE)
    columns = {
        "clean": own,
        "adversarial": attacked_pixels(model, own, y),
        "random": attacked_pixels(model, own, y, preset="noise"),
    }
    columns = {name: torch.cat([blank, column]) for name, column in columns.items()}
    emoji = load_emoji(("openmoji",), size=SIDE, limit=count)
    donors = torch.from_numpy(emoji.images[:, 0]).permute(0, 3, 1, 2).float() / 255
    for number in range(count):
        donor = donors[number : number + 1]
        moments = [part.expand(len(own), -1) for part in style_of(donor)]
        columns[f"as picture {number + 1}"] = torch.cat([donor, adain(own, *moments)])
    return draw_styles(columns)


def main() -> None:
    """Train a few episodes with adversarial styles, score them, and save the picture."""
    torch.set_num_threads(1)
    pictures = letters()
    base, novel = np.flatnonzero(pictures.labels < 40), np.flatnonzero(pictures.labels >= 40)
    source = Pictures(pictures.images[base], pictures.labels[base])
    target = Pictures(255 - pictures.images[novel], pictures.labels[novel])  # light on dark

    model = FewShotModel(Conv4(widths=(16, 16, 32, 32)), classes=40)
    train_supervised(model, source, steps=30, flip=False)
    attack = StyleAttack(stages=model.backbone.stages, preset="code")
    train_episodes(
        model,
        source,
        attack=attack,
        training=EpisodicTraining(shot=1, query=5, episodes=5, flip=False),
    )
    acc, ci = evaluate_episodes(model, target, way=5, shot=1, query=15, episodes=200)
    print(f"5-way 1-shot on new letters, light on dark: {acc:.1f} +- {ci:.1f} points")
    if len(sys.argv) > 1:
        styles_seen(model, source).save(sys.argv[1], optimize=True)


if __name__ == "__main__":
    main()
