"""Backbone, classifier, head and discriminator in one model, with randomness of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trialrun.fewshot import _svasp_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float
from torch import Tensor, nn

from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.core.shapes import check_range
from trialrun.fewshot._svasp_heads import ProtoNetHead
from trialrun.fewshot._svasp_nets import Conv4, ResNet10


class FewShotModel(nn.Module):
    """Keep backbone, base classifier, few-shot head and discriminator together (li2025svasp).

    Parameters
    ----------
    backbone : torch.nn.Module
        From pictures to features of shape (batch, width).
    classes : int, at least 2
        Base classes.
    head : torch.nn.Module or None
        From support and query features to logits; None is `ProtoNetHead`.
    width : int or None
        Width of the features; None takes the backbone's ``width`` or timm's ``num_features``.
    seed : int
        Start of classifier and discriminator; torch's global generator is left alone.

    Raises
    ------
    ValueError
        For fewer than two classes, a backbone that does not tell its width, or another width than
        that of a backbone made here.

    Examples
    --------
    >>> from trialrun.fewshot.svasp import Conv4
    >>> model = FewShotModel(Conv4(widths=(4, 4, 4, 8)), classes=10)
    >>> model(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        classes: int,
        head: nn.Module | None = None,
        width: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_range("classes", classes, low=2)
        own = getattr(backbone, "width", None) or getattr(backbone, "num_features", None)
        if isinstance(backbone, Conv4 | ResNet10) and width not in (None, own):
            raise UsageError(
                f"width must be {own}, that of {type(backbone).__name__}'s features, got {width}: "
                "leave it out"
            )
        found = own if width is None else width
        if width is not None:
            check_range("width", width, low=1)
        if found is None:
            raise UsageError(
                f"width must be given: {type(backbone).__name__} has neither width nor num_features"
            )
        self.backbone = backbone
        self.head = ProtoNetHead() if head is None else head
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.classifier = nn.Linear(found, classes)
            self.discriminator = nn.Sequential(nn.Dropout(0.4), nn.Linear(found, 2))

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return base-class logits of pictures ``x``."""
        return self.classifier(self.backbone(x))


@contextmanager
def own_randomness(model: nn.Module, seed: int) -> Iterator[torch.device]:
    """Give dropout a stream of its own, and leave torch's global generators as they were."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(split(seed, "dropout"))
        yield device
