"""Attack the styles of a network of your own, and draw what a change of style is.

Run as ``python examples/svasp_styles.py [picture.png]``. The picture swaps the statistics of
pixels: every letter keeps its shape and takes the mean and deviation of colour of the picture above
it. The method does the same to feature maps, which nobody can look at.
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
    evaluate_episodes,
    style_of,
    train_episodes,
    train_supervised,
)
from trialrun.material.emoji import load_emoji
from trialrun.material.glyphs import load_glyphs

SIDE, SCALE = 32, 3


def letters(limit: int = 60) -> Pictures:
    """Letters as classes, drawers as pictures."""
    glyphs = load_glyphs(("latin", "greek", "georgian"), size=SIDE, limit=limit)
    images = glyphs.images.reshape(-1, 1, SIDE, SIDE).repeat(3, axis=1)
    return Pictures(torch.from_numpy(images), np.repeat(np.arange(limit), len(glyphs.drawers)))


def swapped(pictures: Pictures, columns: int = 8) -> Image.Image:
    """Letters down the side, emoji along the top, and each letter in each emoji's statistics."""
    emoji = load_emoji(("openmoji",), size=SIDE, limit=columns)
    donors = torch.from_numpy(emoji.images[:, 0]).permute(0, 3, 1, 2).float() / 255
    # One drawer per letter.
    own = pictures.take(np.arange(0, 5 * 11 * 20, 11 * 20) + 3)
    styles = style_of(donors)
    grid = torch.ones(len(own) + 1, columns + 1, 3, SIDE, SIDE)
    grid[0, 1:], grid[1:, 0] = donors, own
    for column in range(columns):
        style = [part[column : column + 1].expand(len(own), -1) for part in styles]
        grid[1:, column + 1] = adain(own, *style)
    sheet = grid.permute(0, 3, 1, 4, 2).reshape((len(own) + 1) * SIDE, (columns + 1) * SIDE, 3)
    picture = Image.fromarray((sheet.clamp(0, 1) * 255).byte().numpy())
    return picture.resize((picture.width * SCALE, picture.height * SCALE), Image.Resampling.NEAREST)


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
        swapped(pictures).save(sys.argv[1], optimize=True)


if __name__ == "__main__":
    main()
