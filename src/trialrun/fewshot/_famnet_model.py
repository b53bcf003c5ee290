"""FAMNet whole, its loss, and weights of the authors' checkpoints (bo2024famnet)."""

from __future__ import annotations

from trialrun.fewshot import _famnet_stack  # noqa: F401

# isort: split
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trialrun.fewshot._famnet_encoders import Loaded
from trialrun.fewshot._famnet_match import (
    PAPER_WEIGHTING,
    Bands,
    FrequencyAwareMatching,
    MultiSpectralFusion,
)
from trialrun.fewshot._famnet_prototype import PrototypeSegmenter, prototype_map

FUSIONS = ("msf", "sum")
IGNORED = 255


def famnet_loss(
    pred: Tensor,
    coarse: Tensor,
    query_mask: Tensor,
    weight: tuple[int | float, int | float] = (0.1, 1.0),
) -> Tensor:
    """Return the weighted negative log-likelihood of both maps, in nats per pixel, added.

    Both are clamped away from 0 before the logarithm; the authors' code clamps only the final map.

    Parameters
    ----------
    pred, coarse : tensors of shape (batch, 2, rows, columns)
        Probabilities of background and foreground. (bo2024famnet)
    query_mask : tensor of shape (batch, rows, columns) or (batch, 1, rows, columns)
        0, 1, or 255 where a pixel is not counted.
    weight : pair of float
        Of background and foreground.

    Raises
    ------
    ValueError
        If the shapes do not agree, or the mask holds other numbers.

    Examples
    --------
    >>> even = torch.full((1, 2, 4, 4), 0.5)
    >>> round(float(famnet_loss(even, even, torch.ones(1, 4, 4))), 3)
    1.386
    """
    if query_mask.dim() == 4 and query_mask.shape[1] == 1:
        query_mask = query_mask[:, 0]
    for name, map_ in (("pred", pred), ("coarse", coarse)):
        wanted = (len(query_mask), 2, *query_mask.shape[1:])
        if tuple(map_.shape) != wanted:
            raise ValueError(
                f"{name} must have shape {wanted} to go with query_mask, got {tuple(map_.shape)}"
            )
    known = (query_mask == 0) | (query_mask == 1) | (query_mask == IGNORED)
    if not bool(known.all()):
        other = query_mask[~known].unique()[:5].tolist()
        raise ValueError(f"query_mask must hold 0, 1 or {IGNORED}, got {other}: use mask > 0.5")
    truth = query_mask.long()
    counted = truth != IGNORED
    weights = torch.where(truth == 1, float(weight[1]), float(weight[0])).to(pred) * counted
    total = weights.sum().clamp_min(torch.finfo(pred.dtype).tiny)
    chosen = (truth == 1).long()[:, None]
    said = torch.cat([map_.gather(1, chosen) for map_ in (pred, coarse)], dim=1)
    tiny = torch.finfo(said.dtype).eps
    return -(weights[:, None] * said.clamp(tiny, 1 - tiny).log()).sum() / total


class FAMNet(PrototypeSegmenter):
    """Segment a query by frequency-aware matching of its coarse foreground with the support's.

    Parameters
    ----------
    encoder : {"resnet50_dilated", "small"} or torch.nn.Module
        As in `PrototypeSegmenter`.
    channels : int
        Width of the features.
    n_tokens : int
        Tokens that a foreground is pooled to; 900 for images of 256 pixels.
    cutoff : float in (0, 0.5), or None
        See `FrequencyAwareMatching`; None matches without splitting bands.
    layout : {"tokens", "grid"}
        What the frequencies are those of: the folded list of pixels, or the feature map.
    weighting : tuple of three words
        What each band is weighted by: ``sim``, ``1-sim``, ``none`` or ``drop``.
    fusion : {"msf", "sum"}
        Cross-attention between bands, or their plain sum through a ReLU.
    seed : int
        Of the weights.

    Notes
    -----
    ``state_dict`` uses the names of the authors' checkpoints: ``encoder.``,
    ``FAM.attention_matching.``, ``MSFM.CA1.`` and ``MSFM.CA2.``.

    Raises
    ------
    ValueError
        If a setting is out of range, images, masks or features have another shape, or a mask
        has no foreground.

    Examples
    --------
    >>> net = FAMNet("small", channels=16, n_tokens=25)
    >>> image, mask = torch.rand(1, 1, 32, 32), torch.ones(1, 32, 32)
    >>> pred, aux = net(image, mask, image)
    >>> pred.shape, aux["coarse"].shape
    (torch.Size([1, 2, 32, 32]), torch.Size([1, 2, 32, 32]))
    """

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50_dilated",
        channels: int = 512,
        n_tokens: int = 900,
        cutoff: float | None = 0.30,
        *,
        layout: str = "tokens",
        weighting: tuple[str, str, str] = PAPER_WEIGHTING,
        fusion: str = "msf",
        seed: int = 0,
    ) -> None:
        super().__init__(encoder, channels, seed=seed)
        if fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, got {fusion!r}")
        self.FAM = FrequencyAwareMatching(
            n_tokens, cutoff, layout=layout, weighting=weighting, seed=seed
        )
        self.MSFM = MultiSpectralFusion(channels, seed=seed) if fusion == "msf" else None

    def fuse(self, bands: Bands) -> Tensor:
        """Fuse ``bands`` into tokens (batch, channels, 2 x n_tokens)."""
        if self.MSFM is None:
            return F.relu(bands.low + bands.middle + bands.high)
        return self.MSFM(*bands)

    def segment(
        self, support: Tensor, mask: Tensor, query: Tensor, threshold: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Predict from encoded images; `forward` is `encode` and this.

        ``support`` and ``query`` are features, ``mask`` is the support's, checked, and
        ``threshold`` is the query's.
        """
        coarse = self.coarse(support, mask, query, threshold)
        bands = self.FAM(support, mask > 0.5, query, coarse[:, 1] > 0.5)
        fused = self.fuse(bands)
        # Divided first: in half precision the sum itself may not fit.
        prototype = (fused / (fused.shape[2] + 1e-5)).sum(dim=2)
        size = (mask.shape[1], mask.shape[2])
        pred = prototype_map(query, prototype, threshold, size, temperature=self.temperature)
        return pred, {"coarse": coarse, "threshold": threshold, "prototype": prototype}

    def load_published(self, state: Mapping[str, Tensor]) -> Loaded:
        """Take the weights of an authors' checkpoint, already read into names and tensors.

        Names are taken as they are, without a leading ``module.``.

        Parameters
        ----------
        state : mapping of name to tensor
            From ``torch.load(path, map_location="cpu", weights_only=True)``.

        Raises
        ------
        ValueError
            If one of the three parts matches nothing, or a tensor has another shape.
        """
        own = self.state_dict()
        renamed = {name.removeprefix("module."): value for name, value in state.items()}
        taken = {name: value for name, value in renamed.items() if name in own}
        for part in ("encoder.", "FAM.attention_matching.", "MSFM.CA1.", "MSFM.CA2."):
            expected = [name for name in own if name.startswith(part)]
            if expected and not any(name.startswith(part) for name in taken):
                raise ValueError(
                    f"state must hold weights under {part}, such as {expected[0]}, got none: "
                    "nothing was loaded"
                )
        for name, value in taken.items():
            if value.shape != own[name].shape:
                raise ValueError(
                    f"{name} must have shape {tuple(own[name].shape)}, got {tuple(value.shape)}: "
                    "set channels and n_tokens as in training"
                )
        self.load_state_dict({**own, **taken})
        trained = {name for name, _ in self.named_parameters()}
        missing = tuple(name for name in own if name in trained and name not in taken)
        unused = tuple(name for name in renamed if name not in own)
        return Loaded(tuple(taken), missing, unused)
