"""The student's head: adapter, fixed basis, mask, linear classifier; folded into one layer.

During training the head is four steps, c = (g A - mu) U, then (m * c) W + b. All four are affine,
so that the trained head is, up to rounding, one `torch.nn.Linear` on the student's features, which
`TCSHead.fold` returns. It follows that a fixed basis behind a trainable adapter can express nothing
that a plain linear layer through as many axes cannot; the notes of tcs say what is left for it to
do.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.core.shapes import check_range
from trialrun.fewshot._tcs_coords import TailoredCoordinates

SCORES = ("grad", "taylor", "weight")


@dataclass(frozen=True, kw_only=True)
class Tailoring:
    """How axes are taken away while the student learns.

    Parameters
    ----------
    keep : int, at least 1
        Axes that remain in the end.
    every : int, at least 1, default=50
        Steps between two removals.
    fraction : float in (0, 1], default=0.2
        Share of the remaining axes that one removal takes, at least one.
    score : {"taylor", "grad", "weight"}, default="taylor"
        What an axis is worth: the gradient of the loss by its mask entry summed over steps
        (``grad``), that times the entry (``taylor``), or the size of the classifier's weights on
        it (``weight``, which looks at the present only). The paper's own score is not known here.
    """

    keep: int
    every: int = 50
    fraction: float = 0.2
    score: str = "taylor"

    def __post_init__(self) -> None:
        for name in ("keep", "every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise UsageError(f"{name} must be a whole number, got {value!r}")
        check_range("keep", self.keep, low=1)
        check_range("every", self.every, low=1, unit="steps")
        if not 0 < self.fraction <= 1:
            raise UsageError(f"fraction must be above 0 and at most 1, got {self.fraction!r}")
        if self.score not in SCORES:
            raise UsageError(f"score must be one of {', '.join(SCORES)}, got {self.score!r}")


def _adapter(width: int, into: int, seed: int) -> Tensor:
    """Make the matrix from student to teacher features: the identity where widths are equal."""
    if width == into:
        return torch.eye(width)
    generator = torch.Generator().manual_seed(split(seed, "adapter"))
    tall = torch.randn(max(width, into), min(width, into), generator=generator, dtype=torch.float64)
    ortho = torch.linalg.qr(tall)[0].float()
    return (ortho if width > into else ortho.T).contiguous()


class TCSHead(nn.Module):
    """Classify a student's features in the teacher's coordinates (zhou2024tcs).

    Parameters
    ----------
    in_features : int, at least 1
        Width of the student's features.
    coords : TailoredCoordinates
        Fitted on the teacher's features; stays as it is.
    n_classes : int, at least 2
    adapter : bool, default=True
        A trainable matrix from the student's to the teacher's width before the basis, the identity
        to begin with where both are equal. Without it the widths have to be equal.
    tailoring : Tailoring, optional
        How axes are taken away; None keeps them all.
    seed : int, default=0
        Of the adapter and the classifier at the start.

    Attributes
    ----------
    features_ : tensor of shape (batch, n_components) or None
        Coordinates of the last batch, before the mask: what a mimicking loss compares.
    kept : bool tensor of shape (n_components,)
        Axes that remain.
    scores : tensor of shape (n_components,)
        What each axis was worth since the last removal.

    Raises
    ------
    ValueError
        If a width does not fit, a number is out of range, or ``tailoring`` keeps more axes than
        there are.

    Examples
    --------
    >>> import numpy as np
    >>> features = np.random.default_rng(0).normal(size=(50, 8))
    >>> coords = TailoredCoordinates(n_components=4).fit(features)
    >>> head = TCSHead(6, coords, n_classes=3)
    >>> x = torch.ones(2, 6)
    >>> torch.allclose(head(x), head.fold()(x), atol=1e-6)
    True
    """

    basis: Tensor
    offset: Tensor
    kept: Tensor
    scores: Tensor

    def __init__(
        self,
        in_features: int,
        coords: TailoredCoordinates,
        n_classes: int,
        *,
        adapter: bool = True,
        tailoring: Tailoring | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_range("in_features", in_features, low=1)
        check_range("n_classes", n_classes, low=2)
        if not hasattr(coords, "components_"):
            raise UsageError("coords must be fitted on the teacher's features: call coords.fit")
        count, width = coords.components_.shape
        if tailoring is not None and tailoring.keep > count:
            raise UsageError(
                f"keep must be at most the {count} axes there are, got {tailoring.keep}"
            )
        if not adapter and in_features != width:
            raise UsageError(
                f"without an adapter in_features must be the teacher's {width}, got {in_features}"
            )
        self.in_features, self.n_classes, self.tailoring = in_features, n_classes, tailoring
        self.adapter = nn.Parameter(_adapter(in_features, width, seed)) if adapter else None
        self.mask = nn.Parameter(torch.ones(count))
        self.classifier = nn.Linear(count, n_classes, device="meta").to_empty(device="cpu")
        generator = torch.Generator().manual_seed(split(seed, "classifier"))
        with torch.no_grad():
            for part in (self.classifier.weight, self.classifier.bias):
                part.uniform_(-(count**-0.5), count**-0.5, generator=generator)
        axes = torch.from_numpy(coords.components_.T.copy()).double()
        mean = torch.from_numpy(coords.mean_.copy()).double()
        self.register_buffer("basis", axes.float())
        self.register_buffer("offset", (mean @ axes).float())
        self.register_buffer("kept", torch.ones(count, dtype=torch.bool))
        self.register_buffer("scores", torch.zeros(count))
        self.features_: Tensor | None = None

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        kept = state_dict.get(prefix + "kept")
        # A mask that was frozen, as all axes to go had gone, stays frozen; any other is free.
        if self.tailoring is not None and kept is not None and kept.shape == self.kept.shape:
            self.mask.requires_grad_(int(kept.sum()) > self.tailoring.keep)

    def __getstate__(self) -> dict[str, Any]:
        # The last batch belongs to a graph, which cannot be copied and is nobody's state.
        return {**super().__getstate__(), "features_": None}

    def forward(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch classes"]:
        """Return logits of the student's features.

        Raises
        ------
        ValueError
            If ``x`` has another shape.
        """
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"x must have shape (batch, {self.in_features}), got {tuple(x.shape)}")
        if self.adapter is not None:
            x = x @ self.adapter
        coordinates = x @ self.basis - self.offset
        self.features_ = coordinates
        return self.classifier(coordinates * (self.mask * self.kept))

    @torch.no_grad()
    def accumulate_scores(self) -> None:
        """Add what each axis was worth in the last backward pass to the scores.

        Raises
        ------
        ValueError
            If there was no backward pass since the gradients were cleared.
        """
        if self.tailoring is None or not self.mask.requires_grad:
            return
        if self.tailoring.score == "weight":
            self.scores.copy_(self.mask.abs() * self.classifier.weight.norm(dim=0))
            return
        if self.mask.grad is None:
            raise ValueError(
                "the mask has no gradient to score axes by: call loss.backward() before "
                "accumulate_scores()"
            )
        worth = self.mask.grad.abs()
        self.scores += worth * self.mask.abs() if self.tailoring.score == "taylor" else worth

    @torch.no_grad()
    def prune(self, step: int) -> int:
        """Take away the axes of least worth if step number ``step`` is one for it.

        Once no more are to go, the mask is frozen as it stands.

        Parameters
        ----------
        step : int, at least 0
            Number of steps done.

        Returns
        -------
        int
            How many axes went.
        """
        plan = self.tailoring
        if plan is None or not self.mask.requires_grad or step < 1 or step % plan.every:
            return 0
        there = int(self.kept.sum())
        goes = min(max(int(plan.fraction * there), 1), there - plan.keep)
        if goes > 0:
            worth = self.scores.masked_fill(~self.kept, torch.inf)
            # A stable order: of axes worth the same, the one of least variance goes.
            order = torch.argsort(worth.flip(0), stable=True)
            self.kept[(len(worth) - 1 - order)[:goes]] = False
            self.scores.zero_()
        if there - goes <= plan.keep:
            self.mask.requires_grad_(False)
            self.mask.grad = None
        return goes

    @torch.no_grad()
    def fold(self) -> nn.Linear:
        """Return one linear layer that gives the same logits up to rounding."""
        basis = self.basis.double()
        inner = basis if self.adapter is None else self.adapter.double() @ basis
        weight = (self.mask * self.kept).double()[:, None] * self.classifier.weight.double().T
        bias = self.classifier.bias.double() - self.offset.double() @ weight
        plain = nn.Linear(self.in_features, self.n_classes, device="meta")
        like = self.classifier.weight
        plain = plain.to_empty(device=like.device).to(like.dtype)
        plain.weight.copy_((inner @ weight).T)
        plain.bias.copy_(bias)
        return plain
