"""Train on unlabelled T1 heads, then segment a T2 head by one labelled T2 head, and draw it.

The T2 heads are painted from tissue values (synthetic). Takes some ten seconds on one core; a real
run trains for hours, with `SCHEDULES["paper"]` and a pretrained encoder. Give a file name to keep
the picture: ``python examples/famnet_volumes.py thalamus.png``.
"""

import sys
import tempfile
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

torch.set_num_threads(1)


def z_score(volume):
    """Return a volume with mean 0 and standard deviation 1."""
    return ((volume - volume.mean()) / volume.std()).astype(np.float32)


brain = load_brain()
t1 = make_subject(brain, 1).image
regions = supervoxels(z_score(t1), scale=0.5, min_size=300, mask=t1 > 0.2)
sampler = EpisodeSampler(
    [z_score(t1)], [regions], min_pixels=40, augmentation=Augmentation(shift=6.0)
)

# From scratch and in so few steps the plain sum of the bands learns; attention between them needs
# a pretrained encoder or far longer.
net = FAMNet(SmallEncoder(32), channels=32, n_tokens=100, fusion="sum")
run = train_episodes(net, sampler, Schedule(steps=80, batch=4, lr=2e-3, optimiser="adam"))
print(f"loss {np.mean(run.losses[:10]):.2f}, then {np.mean(run.losses[-10:]):.2f} nats per pixel")

support, query = (make_subject(brain, seed, contrast="t2") for seed in (7, 8))
organ = 1 + ORGANS.index("left thalamus")
found = evaluate_volume(
    net,
    z_score(support.image),
    support.labels == organ,
    z_score(query.image),
    query.labels == organ,
)
print(f"left thalamus in T2: Dice {found.dice:.2f} on {len(found.slices)} slices")

shown = found.slices[len(found.slices) // 2]
picture = overlay(query.image[shown], query.labels[shown] == organ, found.prediction[shown])
with tempfile.TemporaryDirectory() as folder:
    path = write_png(sys.argv[1] if len(sys.argv) > 1 else Path(folder) / "found.png", picture)
    print(f"drawn as a PNG of {picture.shape[1]} x {picture.shape[0]} pixels: {path.is_file()}")
