"""Episode evaluation on cached features against easyfsl's loop, and what an attacked step costs.

easyfsl asks for torchvision, of which this loop uses nothing; an empty stand-in takes its place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from _bench import Row, compare, emit
from tests.torchvision_stand_in import install
from trialrun.fewshot.svasp import (
    Conv4,
    EpisodicTraining,
    Features,
    FewShotModel,
    LossWeights,
    StyleAttack,
    SVasPLoss,
    episode_loss,
    evaluate_episodes,
)

LIMIT = (
    "evaluation reads shot + queries features per class and episode and does 2 x way x queries x "
    "width multiplications, linear in episodes; an attacked step adds, per attacked stage, one "
    "forward pass over pictures and crops and a backward pass over the part behind it"
)
CLASSES, PER_CLASS, WIDTH, EPISODES = 20, 60, 512, 200


def features() -> Features:
    """Make features as wide as ResNet-10's."""
    generator = torch.Generator().manual_seed(0)
    labels = np.repeat(np.arange(CLASSES), PER_CLASS)
    centres = torch.randn(CLASSES, WIDTH, generator=generator)
    noise = torch.randn(len(labels), WIDTH, generator=generator)
    return Features(centres.repeat_interleave(PER_CLASS, 0) + 3 * noise, labels)


def theirs(cached: Features, shot: int) -> Callable[[], object]:
    """Return easyfsl's own evaluation of as many episodes, from its own sampler."""
    from easyfsl.datasets import FeaturesDataset
    from easyfsl.methods import PrototypicalNetworks
    from easyfsl.samplers import TaskSampler
    from easyfsl.utils import evaluate
    from torch.utils.data import DataLoader

    names = [str(label) for label in range(CLASSES)]
    dataset = FeaturesDataset(cached.labels.tolist(), cached.features, names)
    # Its constructor hands torch's Sampler an argument that torch no longer takes, so the fields
    # are set by hand; its loop and its collating are its own.
    sampler = TaskSampler.__new__(TaskSampler)
    sampler.n_way, sampler.n_shot, sampler.n_query, sampler.n_tasks = 5, shot, 15, EPISODES
    sampler.items_per_label = {
        label: np.flatnonzero(cached.labels == label).tolist() for label in range(CLASSES)
    }
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn)
    return lambda: evaluate(PrototypicalNetworks(), loader, device="cpu", use_tqdm=False)


def step(attack: StyleAttack | None, weights: LossWeights) -> Callable[[], None]:
    """Return one training step on a 5-way 1-shot episode with 15 queries at 32 pixels."""
    model = FewShotModel(Conv4(), classes=64)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    plan = EpisodicTraining(shot=1)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(80, 3, 32, 32, generator=generator)
    y = torch.arange(5).repeat_interleave(16)
    loss = SVasPLoss(weights=weights)

    def once() -> None:
        parts = episode_loss(model, x, y, attack=attack, loss=loss, plan=plan, seed=0)
        optimiser.zero_grad(set_to_none=True)
        parts.total.backward()
        optimiser.step()

    return once


def main() -> list[Row]:
    """Time all rows, print them and append them to the results."""
    torch.set_num_threads(1)
    install()
    cached = features()
    rows = [
        compare(
            f"svasp {EPISODES} episodes 5-way {shot}-shot, cached features, against easyfsl",
            lambda shot=shot: evaluate_episodes(None, cached, 5, shot, 15, EPISODES),
            theirs(cached, shot), repeats=5, faster=True, at_least=20.0,
        )
        for shot in (1, 5)
    ]  # fmt: skip
    plain = LossWeights(fsl_adv=0, fsl_kl=0, dom=0, crop=0)
    stages = Conv4.stages
    rows += [
        compare(
            "svasp training step / plain episodic step, two crops",
            step(StyleAttack(stages=stages), LossWeights()), step(None, plain), repeats=7,
        ),
        compare(
            "styleadv training step / plain episodic step",
            step(StyleAttack(stages=stages, preset="styleadv"), LossWeights(dom=0, crop=0)),
            step(None, plain), repeats=7,
        ),
    ]  # fmt: skip
    emit(rows, limit=LIMIT)
    return rows


if __name__ == "__main__":
    main()
