"""Distil a frozen teacher into a small student of emoji, and look at what it says.

Needs ``pip install 'trialrun[fewshot,pictures]'``; takes a few seconds.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trialrun.fewshot.tcs import Tailoring, distill
from trialrun.material.emoji import load_emoji

CLASSES = ("animal-mammal", "transport-ground", "clothing")


def network(width: int) -> nn.Sequential:
    """Make a little network; take a public self-supervised one as a teacher in earnest."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def main() -> None:
    """Train on half of the code points, test on the others."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    emoji = load_emoji(("openmoji",), size=32, subgroups=CLASSES)
    images = torch.from_numpy(emoji.images[:, 0]).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels = torch.tensor([CLASSES.index(name) for name in emoji.subgroups])
    train, test = (torch.from_numpy(part) for part in emoji.split(held_out=0.5, seed=0))
    loader = DataLoader(TensorDataset(images[train], labels[train]), batch_size=16, shuffle=True)

    made = distill(
        network(24),
        network(64),
        loader,
        epochs=25,
        n_components=12,
        tailoring=Tailoring(keep=8, every=10),
        optimiser=lambda parameters: torch.optim.AdamW(parameters, lr=0.005),
    )
    with torch.no_grad():
        guesses = made.model(images[test]).argmax(1)
    print(f"{made.features.shape[0]} images went through the teacher once")
    print(f"{int(made.head.kept.sum())} of {made.coords.n_components_} axes remain")
    print(f"loss {made.losses[0]:.2f} -> {made.losses[-1]:.2f} nats")
    print(f"{100 * (guesses == labels[test]).float().mean():.0f} % of unseen code points are right")
    for row in (0, len(test) // 2, len(test) - 1):
        number = int(test[row])
        print(f"  {emoji.names['en'][number]}: {CLASSES[int(guesses[row])]}")


if __name__ == "__main__":
    main()
