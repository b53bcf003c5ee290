"""Prototype segmentation: the coarse prediction, and on its own the plain rival (bo2024famnet)."""

from __future__ import annotations

from trialrun.fewshot import _famnet_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from trialrun.core.shapes import check_axes, check_range
from trialrun.fewshot._famnet_bands import masked_average
from trialrun.fewshot._famnet_encoders import ResNet50Dilated, SmallEncoder
from trialrun.fewshot._famnet_init import seeded

TEMPERATURE = 20.0
ENCODERS = ("resnet50_dilated", "small")


def _cosine(features: Tensor, prototype: Tensor) -> Tensor:
    """Return the cosine at every place, as `F.cosine_similarity` does, in about half its time."""
    if features.dtype in (torch.float16, torch.bfloat16):
        features, prototype = features.float(), prototype.float()
    dots = torch.einsum("bchw,bc->bhw", features, prototype)
    squares = (features * features).sum(dim=1).clamp_min(1e-16)
    return dots / (squares.sqrt() * prototype.norm(dim=1).clamp_min(1e-8)[:, None, None])


def prototype_map(
    features: Float[Tensor, "batch channels h w"],
    prototype: Float[Tensor, "batch channels"],
    threshold: Float[Tensor, batch],
    size: tuple[int, int],
    *,
    temperature: float = TEMPERATURE,
) -> Float[Tensor, "batch 2 rows columns"]:
    """Return background and foreground probability by the cosine to a prototype.

    The foreground is ``1 - sigmoid((s - threshold) / 2)`` with ``s = -temperature x cosine``,
    computed at the features' size and resized with ``align_corners=True``.

    Examples
    --------
    >>> prototype_map(torch.ones(1, 2, 2, 2), torch.ones(1, 2), torch.zeros(1), (4, 4)).shape
    torch.Size([1, 2, 4, 4])
    """
    cosine = _cosine(features, prototype)
    logit = 0.5 * (temperature * cosine + threshold[:, None, None])
    both = torch.stack([torch.sigmoid(-logit), torch.sigmoid(logit)], dim=1)
    return F.interpolate(both, size=size, mode="bilinear", align_corners=True)


def _binary(name: str, mask: Tensor, images: Tensor) -> Tensor:
    """Return a mask as (batch, rows, columns) in the images' dtype, checked."""
    if mask.dim() == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    wanted = (len(images), *images.shape[2:])
    if tuple(mask.shape) != wanted:
        raise ValueError(
            f"{name} must have the images' size (batch, rows, columns) = {wanted}, "
            f"got {tuple(mask.shape)}"
        )
    mask = mask.to(images)
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ValueError(
            f"{name} must hold 0 and 1, got values from {mask.min():g} to {mask.max():g}: "
            "pick one organ, as in labels == 2"
        )
    empty = (~(mask > 0.5).flatten(1).any(dim=1)).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(
            f"{name} must mark at least one pixel of every image, got no foreground in image "
            f"{empty[0]}: choose a slice that shows the organ"
        )
    return mask


def make_encoder(encoder: str | nn.Module, channels: int, seed: int) -> nn.Module:
    """Return a named encoder, or the module given."""
    if isinstance(encoder, nn.Module):
        return encoder
    if encoder == "resnet50_dilated":
        return ResNet50Dilated(channels, seed=seed)
    if encoder == "small":
        return SmallEncoder(channels, seed=seed)
    raise ValueError(f"encoder must be a module or one of {', '.join(ENCODERS)}, got {encoder!r}")


class PrototypeSegmenter(nn.Module):
    """Segment by the cosine to the support's mean foreground feature, with a learned threshold.

    Parameters
    ----------
    encoder : {"small", "resnet50_dilated"} or torch.nn.Module
        A module returns features (batch, channels, h, w), or these and a threshold (batch,) per
        image. Where it returns no threshold, one is learned here from the features' average.
    channels : int, at least 1
        Width of the features.
    temperature : float, above 0
        Factor on the cosine.
    seed : int
        Of the weights that are made here.

    Raises
    ------
    ValueError
        If images, masks or features have another shape, or a mask has no foreground.

    Examples
    --------
    >>> net = PrototypeSegmenter("small", channels=16)
    >>> image, mask = torch.rand(1, 1, 32, 32), torch.ones(1, 32, 32)
    >>> net(image, mask, image)[0].shape
    torch.Size([1, 2, 32, 32])
    """

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50_dilated",
        channels: int = 512,
        *,
        temperature: int | float = TEMPERATURE,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_range("channels", channels, low=1)
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature!r}")
        self.encoder = make_encoder(encoder, channels, seed)
        self.channels, self.temperature = channels, float(temperature)
        self.threshold: nn.Linear | None = None
        if not isinstance(self.encoder, ResNet50Dilated):
            with seeded(seed, "threshold"):
                self.threshold = nn.Linear(channels, 1)
            nn.init.zeros_(self.threshold.weight)
            # Half the temperature: a cosine of one half is where foreground begins.
            nn.init.constant_(self.threshold.bias, -0.5 * self.temperature)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (batch, channels, h, w) and thresholds (batch,) of ``images``.

        Grey images are repeated for an encoder of three channels.
        """
        check_axes("images", images, ("batch", "channels", "rows", "columns"))
        wanted = getattr(self.encoder, "in_channels", None)
        if wanted is not None and images.shape[1] != wanted:
            if images.shape[1] != 1:
                also = "s, or 1 to be repeated" if wanted > 1 else ""
                raise ValueError(
                    f"images must have {wanted} channel{also}, as the encoder has, "
                    f"got {images.shape[1]}"
                )
            images = images.expand(-1, wanted, -1, -1)
        made = self.encoder(images)
        if isinstance(made, list) and len(made) == 1:  # timm's way to return the only map
            made = made[0]
        if not isinstance(made, (Tensor, tuple)):
            got = f"{len(made)} maps" if isinstance(made, list) else type(made).__name__
            raise TypeError(
                f"the encoder must return one feature map, or that and thresholds, got {got}: "
                "choose one, as with timm's out_indices=(2,)"
            )
        features, threshold = made if isinstance(made, tuple) else (made, None)
        if features.dim() != 4 or features.shape[1] != self.channels:
            raise ValueError(
                f"the encoder must return features of shape (batch, {self.channels}, h, w), "
                f"got {tuple(features.shape)}: set channels to what it makes"
            )
        if threshold is None:
            if self.threshold is None:
                raise ValueError("the encoder must return a threshold per image, got none")
            threshold = self.threshold(features.mean(dim=(2, 3)))[:, 0]
        return features, threshold.reshape(len(images))

    def coarse(self, support: Tensor, mask: Tensor, query: Tensor, threshold: Tensor) -> Tensor:
        """Predict from features: ``support`` and ``query`` maps, the support's ``mask``.

        ``threshold`` is the query's, (batch,).
        """
        size = (mask.shape[1], mask.shape[2])
        prototype = masked_average(support, mask)
        return prototype_map(query, prototype, threshold, size, temperature=self.temperature)

    def segment(
        self, support: Tensor, mask: Tensor, query: Tensor, threshold: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Predict from encoded images; `forward` is `encode` and this.

        ``support`` and ``query`` are features, ``mask`` is the support's, checked, and
        ``threshold`` is the query's.
        """
        coarse = self.coarse(support, mask, query, threshold)
        return coarse, {"coarse": coarse, "threshold": threshold}

    def check_mask(self, mask: Tensor, images: Tensor) -> Tensor:
        """Return a support ``mask`` as (batch, rows, columns), or say what is wrong with it.

        ``images`` are those that it belongs to.
        """
        return _binary("support_mask", mask, images)

    def forward(
        self, support_img: Tensor, support_mask: Tensor, query_img: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Segment queries by one support each.

        Parameters
        ----------
        support_img, query_img : tensors of shape (batch, channels, rows, columns)
        support_mask : tensor of shape (batch, rows, columns) or (batch, 1, rows, columns)
            0 and 1, with foreground in every image.

        Returns
        -------
        tuple of tensor and dict
            Background and foreground probabilities (batch, 2, rows, columns), and ``coarse`` (the
            same shape) and ``threshold`` (batch,).
        """
        check_axes("support_img", support_img, ("batch", "channels", "rows", "columns"))
        check_axes("query_img", query_img, ("batch", "channels", "rows", "columns"))
        if support_img.shape != query_img.shape:
            raise ValueError(
                f"query_img must have the support's shape {tuple(support_img.shape)}, "
                f"got {tuple(query_img.shape)}"
            )
        mask = self.check_mask(support_mask, support_img)
        features, thresholds = self.encode(torch.cat([support_img, query_img]))
        support, query = features.chunk(2)
        return self.segment(support, mask, query, thresholds.chunk(2)[1])
