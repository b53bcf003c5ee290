"""Dice of an arm's network on the volumes of an examination."""

from __future__ import annotations

from functools import partial
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from trialrun.claims.contract import Context, Measurement
from trialrun.dossiers.famnet.heads import Ask, Exam, exams
from trialrun.dossiers.famnet.networks import trained
from trialrun.fewshot.famnet import PrototypeSegmenter, encode_volume, evaluate_volume


def other_organ(labels: NDArray, organ: int, organs: int) -> NDArray[np.bool_]:
    """Mark something else than ``organ``, of ``organs``, on exactly the slices that show it.

    On each slice the next organ of the list that shows there is taken; where none does, the
    organ's own outline is moved along the row until it is off the organ.
    """
    own = labels == organ
    marked = np.zeros(labels.shape, dtype=bool)
    following = [(organ - 1 + i) % organs + 1 for i in range(1, organs)]
    for z in np.flatnonzero(own.any(axis=(1, 2))):
        others = (labels[z] == other for other in following)
        moved = (np.roll(own[z], step, axis=1) for step in range(1, labels.shape[2]))
        off = (mask for mask in moved if not (mask & own[z]).any())
        marked[z] = next(chain((mask for mask in others if mask.any()), off, (~own[z],)))
    return marked


def _answers(
    net: PrototypeSegmenter, exam: Exam, *, other: bool, protocol: str, asks: list[Ask]
) -> list[float]:
    """Return 100 x Dice of each ask; a volume is encoded once."""
    encoded = {i: encode_volume(net, exam.images[i]) for i in {j for a in asks for j in a[1:]}}
    found = []
    for organ, support, query in asks:
        labels = exam.labels[support]
        marks = other_organ(labels, organ, exam.organs) if other else labels == organ
        truth = exam.labels[query] == organ
        result = evaluate_volume(
            net, encoded[support], marks, encoded[query], truth, protocol=protocol, batch=32
        )
        found.append(100 * result.dice)
    return found


def dice_by_contrast(
    ctx: Context, net: PrototypeSegmenter, *, other: bool = False, every: bool = False
) -> Measurement:
    """Segment every organ of the query volumes by a support volume of the same contrast.

    ``other`` marks another organ in the support, on the slices that show the organ (`other_organ`);
    ``every`` also scores the contrast trained on, and all slices of one query of the first contrast
    that is judged, whether they show the organ or not.
    """
    points: dict[str, float] = {}
    extra: dict[str, float] = {}
    n = 0
    for name, exam in exams(ctx):
        if not (exam.judged or every):
            continue
        ask = partial(_answers, net, exam, other=other)
        scores = ask(protocol="organ-present", asks=exam.asks)
        if not exam.judged:
            extra["Dice in the training contrast"] = float(np.mean(scores))
            continue
        if every and not points:
            first = [one for one in exam.asks if one.query == exam.asks[0].query]
            whole = ask(protocol="all-slices", asks=first)
            extra[f"Dice in {name} over all slices"] = float(np.mean(whole))
        points[name], n = float(np.mean(scores)), n + len(scores)
    return Measurement(points, n, extra)


def by_network(ctx: Context, *, kind: str, other: bool = False, every: bool = False) -> Measurement:
    """Train or read one arm's network and measure Dice in contrasts it was not trained on."""
    net = trained(ctx, kind, ctx.prepared("networks"))
    return dice_by_contrast(ctx, net, other=other, every=every)
