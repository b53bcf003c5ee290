"""A student: how wide its features are, and its whole with a classifier in the end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from trialrun.blocks.modes import evaluating
from trialrun.fewshot._tcs_head import TCSHead
from trialrun.fewshot._tcs_items import check_unmixed, images_of, label_of, undrawn
from trialrun.fewshot._tcs_layers import Features, features_of, in_precision, taken


def width_of(
    give: Features,
    student: nn.Module,
    loader: DataLoader,
    device: Any,
    precision: str,
    *,
    mimic: int | float,
) -> int:
    """Return the width of a student's features, and leave random states alone.

    Two items are looked at, as a collate function that mixes images may want an even number. Where
    a teacher is mimicked they must not be mixed.
    """
    items: Any = loader.dataset
    with (
        undrawn(),
        evaluating(student),
        torch.no_grad(),
        in_precision(precision, device),
    ):
        batch = loader.collate_fn([items[0], items[1]])
        if mimic > 0:
            check_unmixed(label_of(batch))
        found = taken(give, images_of(batch).to(device), "student")
    return int(found.shape[1])


def with_classifier(student: nn.Module, layer: str | None, head: TCSHead, pool: str) -> nn.Module:
    """Put the folded head where the student's own classifier was, or after the student."""
    linear = head.fold()
    if (
        layer is None
        and hasattr(student, "reset_classifier")
        and hasattr(student, "get_classifier")
    ):
        model: Any = student
        with torch.random.fork_rng(devices=[]):
            model.reset_classifier(head.n_classes)
        own = model.get_classifier()
        if isinstance(own, nn.Linear) and own.weight.shape == linear.weight.shape:
            own.to(linear.weight.device).load_state_dict(linear.state_dict())
            return student.eval()
    return _WithClassifier(student, layer, linear, pool).eval()


class _WithClassifier(nn.Module):
    """A student whose features, from a layer of it, go through one linear classifier."""

    def __init__(
        self, student: nn.Module, layer: str | None, classifier: nn.Linear, pool: str
    ) -> None:
        super().__init__()
        self.student, self.classifier = student, classifier
        self._layer, self._pool = layer, pool

    def forward(self, images: Tensor) -> Tensor:
        features = features_of(self.student, self._layer, pool=self._pool)(images)
        return self.classifier(features.to(self.classifier.weight.dtype))
