"""Draw docs/famnet_overlay.png: T2 heads (painted) segmented by a network that saw only T1.

Run as ``python docs/famnet_overlay.py``; about a minute on one core.
"""

from pathlib import Path

import numpy as np
import torch

from trialrun.fewshot.famnet import (
    Augmentation,
    EpisodeSampler,
    FAMNet,
    Schedule,
    SmallEncoder,
    evaluate_volume,
    overlay,
    supervoxels,
    train_episodes,
    write_png,
)
from trialrun.material.brain import ORGANS, load_brain, make_subject

SLICES = (6, 12, 20, 25, 29)


def z_score(volume):
    """Return a volume with mean 0 and standard deviation 1."""
    return ((volume - volume.mean()) / volume.std()).astype(np.float32)


def main():
    """Train, segment all six organs of one head, and write the picture."""
    torch.set_num_threads(1)
    brain = load_brain()
    heads = [make_subject(brain, seed) for seed in (1, 2)]
    cut = [supervoxels(z_score(h.image), min_size=300, mask=h.image > 0.2) for h in heads]
    sampler = EpisodeSampler(
        [z_score(h.image) for h in heads],
        cut,
        min_pixels=40,
        augmentation=Augmentation(shift=6.0, alpha=6.0, sigma=4.0),
    )
    net = FAMNet(SmallEncoder(32), channels=32, n_tokens=100)
    schedule = Schedule(steps=400, batch=4, lr=2e-3, decay=0.5, every=133, optimiser="adam")
    train_episodes(net, sampler, schedule)
    support, query = (make_subject(brain, seed, contrast="t2") for seed in (7, 8))
    found = np.zeros(query.labels.shape, dtype=np.uint8)
    for number, organ in enumerate(ORGANS, start=1):
        result = evaluate_volume(
            net,
            z_score(support.image),
            support.labels == number,
            z_score(query.image),
            query.labels == number,
        )
        found[result.prediction] = number
        print(f"{organ}: Dice {result.dice:.2f}")
    shown = list(SLICES)
    colours = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0),
               (204, 121, 167))  # fmt: skip
    rows = [
        overlay(query.image[shown], query.labels[shown], zoom=3, colours=colours),
        overlay(query.image[shown], query.labels[shown], found[shown], zoom=3, colours=colours),
    ]
    print(write_png(Path(__file__).with_name("famnet_overlay.png"), np.concatenate(rows)))


if __name__ == "__main__":
    main()
