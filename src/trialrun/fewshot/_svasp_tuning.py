"""Fine-tuning to one episode by pseudo-queries made from its support (li2025svasp).

The published script does not run as it stands; this is written from what it says it does.
"""

from __future__ import annotations

import copy

from trialrun.fewshot import _svasp_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from trialrun.core.seeds import split
from trialrun.core.shapes import check_axes, check_range
from trialrun.fewshot._svasp_episode import EpisodicTraining, few_shot_logits
from trialrun.fewshot._svasp_model import FewShotModel, own_randomness
from trialrun.fewshot._svasp_pictures import pseudo_queries


def fine_tune(
    model: FewShotModel,
    support: Float[Tensor, "way shot channels height width"],
    *,
    epochs: int = 10,
    per_class: int = 15,
    lr: int | float = 0.005,
    seed: int = 0,
) -> FewShotModel:
    """Return a copy of the model fitted to one episode's support by pseudo-queries (li2025svasp).

    Parameters
    ----------
    model : FewShotModel
        Left as it is.
    support : tensor of shape (way, shot, channels, height, width)
        Pictures in [0, 1].
    epochs : int, at least 1
        10 for one shot and 50 for five, in the paper.
    per_class : int, at least 1
        Augmented pictures per class, drawn anew every epoch.
    lr : float, above 0
    seed : int

    Raises
    ------
    ValueError
        For a support of another number of axes.

    Examples
    --------
    >>> from trialrun.fewshot.svasp import Conv4
    >>> model = FewShotModel(Conv4(widths=(4, 4, 4, 8)), classes=8)
    >>> tuned = fine_tune(model, torch.rand(5, 1, 3, 32, 32), epochs=1, per_class=2)
    >>> tuned is model
    False
    """
    check_axes("support", support, ("way", "shot", "channels", "height", "width"))
    check_range("epochs", epochs, low=1)
    check_range("per_class", per_class, low=1)
    check_range("lr", lr, low=1e-12)
    tuned = copy.deepcopy(model)
    parameters = [*tuned.backbone.parameters(), *tuned.head.parameters()]
    optimiser = torch.optim.Adam(parameters, lr)
    way, shot = support.shape[:2]
    plan = EpisodicTraining(way=way, shot=shot, query=per_class)
    truth = torch.arange(way, device=support.device).repeat(per_class)
    tuned.train()
    with own_randomness(tuned, seed):
        for epoch in range(epochs):
            queries = pseudo_queries(support, per_class, seed=split(seed, "epoch", epoch))
            features = tuned.backbone(torch.cat([support, queries], dim=1).flatten(0, 1))
            loss = functional.cross_entropy(few_shot_logits(tuned, features, plan), truth)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
    return tuned.eval()
