"""Mimicking losses by locality-sensitive hashing, in features and in the teacher's coordinates.

`LSHLoss` follows the recipe of the same group's earlier work (wang2021lshfm): Gaussian directions
with the spread of the teacher's classifier weights, a bias that makes each bit one for half of the
training set, binary cross-entropy on the bits. `ELSHLoss` compares in the coordinates of
`TailoredCoordinates` with bits of one pass made beforehand (zhou2024tcs, from its digest). Ours:
bits packed eight to a byte, and averaging over hashes and images alike.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.core.shapes import check_range
from trialrun.fewshot._tcs_coords import TailoredCoordinates

_ROWS = 4096
_HASHES = 256


def _table(name: str, features: NDArray | Tensor) -> Tensor:
    if isinstance(features, Tensor):
        table = features
    else:
        # A table that is mapped read-only is copied: torch has no tensors that are not writable.
        table = torch.from_numpy(np.require(features, requirements=("C", "W")))
    if table.ndim != 2 or not len(table):
        raise ValueError(f"{name} must have shape (images, width), got {tuple(table.shape)}")
    # Made on the processor; the loss is moved to where the student is.
    return table.detach().cpu()


def _directions(width: int, n_hashes: int, std: float, seed: int) -> Tensor:
    check_range("n_hashes", n_hashes, low=1)
    if not std > 0:
        raise UsageError(f"std must be above 0, got {std!r}")
    generator = torch.Generator().manual_seed(split(seed, "hashes"))
    return std * torch.randn(width, n_hashes, generator=generator)


def _median_bias(table: Tensor, hashes: Tensor) -> Tensor:
    """Return minus the middle projection of each hash, some hashes at a time to bound memory."""
    found = []
    for start in range(0, hashes.shape[1], _HASHES):
        projected = torch.sort(table.float() @ hashes[:, start : start + _HASHES], dim=0).values
        low, high = (len(table) - 1) // 2, len(table) // 2
        found.append(-(projected[low] + projected[high]) / 2)
    return torch.cat(found)


def _mimic(logits: Tensor, bits: Tensor, squared: Tensor | None, right: Tensor | None) -> Tensor:
    """Average the losses of images over those the teacher gets right, or over all."""
    if right is not None and right.shape != logits.shape[:1]:
        raise ValueError(
            f"right must have shape ({len(logits)},), one entry an image, got {tuple(right.shape)}"
        )
    each = functional.binary_cross_entropy_with_logits(logits, bits, reduction="none").mean(dim=1)
    if squared is not None:
        each = each + squared.mean(dim=1)
    if right is None:
        return each.mean()
    weight = right.to(each.dtype)
    # With nothing right in the batch there is nothing to mimic, and the loss is 0, not NaN.
    return (each * weight).sum() / weight.sum().clamp(min=1.0)


class LSHLoss(nn.Module):
    """Mimic a teacher's features by the side of random hyperplanes they lie on (wang2021lshfm).

    Parameters
    ----------
    teacher_features : array of shape (images, width)
        Of the training set; the biases are minus their median projections.
    n_hashes : int, at least 1, default=2048
    std : float, above 0, default=1.0
        Spread of the hyperplanes' directions; the paper takes that of the weights of the teacher's
        own classifier.
    l2 : bool, default=False
        Add the mean squared difference of the features ("LSHL2").
    seed : int, default=0

    Raises
    ------
    ValueError
        If a shape or a number is not what it must be.

    Examples
    --------
    >>> teacher = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    >>> loss = LSHLoss(teacher, n_hashes=64)
    >>> float(loss(3 * teacher, teacher)) < float(loss(-teacher, teacher))
    True
    """

    hashes: Tensor
    bias: Tensor

    def __init__(
        self,
        teacher_features: NDArray | Tensor,
        *,
        n_hashes: int = 2048,
        std: int | float = 1.0,
        l2: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        table = _table("teacher_features", teacher_features)
        hashes = _directions(table.shape[1], n_hashes, std, seed)
        self.l2 = l2
        self.register_buffer("hashes", hashes)
        self.register_buffer("bias", _median_bias(table, hashes))

    def forward(
        self,
        student: Float[Tensor, "batch width"],
        teacher: Float[Tensor, "batch width"],
        right: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss in nats per bit; no gradient goes to the teacher.

        Parameters
        ----------
        student, teacher : tensors of shape (batch, width)
        right : bool tensor of shape (batch,), optional
            Average only over images that the teacher classifies correctly.

        Raises
        ------
        ValueError
            If a shape is wrong.
        """
        width = self.hashes.shape[0]
        for name, given in (("student", student), ("teacher", teacher)):
            if given.ndim != 2 or given.shape[1] != width:
                got = tuple(given.shape)
                raise ValueError(f"{name} must have shape (batch, {width}), got {got}")
        if student.shape != teacher.shape:
            raise ValueError(
                f"student and teacher must have one row an image, got {len(student)} and "
                f"{len(teacher)}"
            )
        teacher = teacher.detach()
        bits = (teacher @ self.hashes + self.bias > 0).to(student.dtype)
        squared = (student - teacher).square() if self.l2 else None
        return _mimic(student @ self.hashes + self.bias, bits, squared, right)


def _pack(bits: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(bits.numpy(), axis=1, bitorder="little"))


class ELSHLoss(nn.Module):
    """Mimic a teacher in its coordinates, with bits of a single pass (zhou2024tcs).

    Parameters
    ----------
    coords : TailoredCoordinates
        Fitted on the teacher's features.
    teacher_features : array of shape (images, width)
        Features of the training images, not augmented, in the order of their numbers.
    n_hashes : int, at least 1, default=2048
    std : float, above 0, default=1.0
        Spread of the hyperplanes' directions.
    l2 : bool, default=False
        Add the mean squared difference of the coordinates; keeps the teacher's coordinates in
        memory, 4 bytes each, beside the bits.
    seed : int, default=0

    Raises
    ------
    ValueError
        If a shape or a number is not what it must be.

    Examples
    --------
    >>> teacher = np.random.default_rng(0).normal(size=(100, 5)).astype("float32")
    >>> coords = TailoredCoordinates(n_components=3).fit(teacher)
    >>> loss = ELSHLoss(coords, teacher, n_hashes=64)
    >>> same = torch.from_numpy(coords.transform(teacher[:4]))
    >>> index = torch.arange(4)
    >>> float(loss(3 * same, index)) < float(loss(-same, index))
    True
    """

    hashes: Tensor
    bias: Tensor
    bits: Tensor
    targets: Tensor | None

    def __init__(
        self,
        coords: TailoredCoordinates,
        teacher_features: NDArray | Tensor,
        *,
        n_hashes: int = 2048,
        std: int | float = 1.0,
        l2: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not hasattr(coords, "components_"):
            raise UsageError("coords must be fitted on the teacher's features: call coords.fit")
        width = coords.components_.shape[1]
        if teacher_features.ndim != 2 or teacher_features.shape[1] != width:
            got = tuple(teacher_features.shape)
            raise ValueError(f"teacher_features must have shape (images, {width}), got {got}")
        axes = torch.from_numpy(np.ascontiguousarray(coords.components_.T)).float()
        mean = torch.from_numpy(coords.mean_.copy()).float()
        blocks = range(0, len(teacher_features), _ROWS)
        table = torch.cat(
            [(_table("", teacher_features[i : i + _ROWS]).float() - mean) @ axes for i in blocks]
        )
        hashes = _directions(table.shape[1], n_hashes, std, seed)
        bias = _median_bias(table, hashes)
        packed = [_pack(table[i : i + _ROWS] @ hashes + bias > 0) for i in blocks]
        self.register_buffer("hashes", hashes)
        self.register_buffer("bias", bias)
        self.register_buffer("bits", torch.cat(packed))
        self.register_buffer("targets", table if l2 else None)

    def forward(
        self,
        coordinates: Float[Tensor, "batch components"],
        index: Int[Tensor, " batch"],
        right: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss in nats per bit.

        Parameters
        ----------
        coordinates : tensor of shape (batch, n_components)
            The student's, as in `TCSHead.features_`.
        index : integer tensor of shape (batch,)
            Numbers of the images in ``teacher_features``.
        right : bool tensor of shape (batch,), optional
            Average only over images that the teacher classifies correctly.

        Raises
        ------
        ValueError
            If a shape is wrong or there is no such image.
        """
        count = self.hashes.shape[0]
        if coordinates.ndim != 2 or coordinates.shape[1] != count:
            got = tuple(coordinates.shape)
            raise ValueError(f"coordinates must have shape (batch, {count}), got {got}")
        if index.shape != coordinates.shape[:1]:
            raise ValueError(f"index must name {len(coordinates)} images, got {len(index)}")
        if index.device.type == "cpu" and len(index):
            last = len(self.bits) - 1
            if int(index.min()) < 0 or int(index.max()) > last:
                raise ValueError(f"index must hold numbers from 0 to {last}, got {index.tolist()}")
        packed = self.bits[index]
        shifts = torch.arange(8, device=packed.device, dtype=torch.uint8)
        bits = (packed[:, :, None] >> shifts & 1).flatten(1)[:, : self.hashes.shape[1]]
        squared = None if self.targets is None else (coordinates - self.targets[index]).square()
        logits = coordinates @ self.hashes + self.bias
        return _mimic(logits, bits.to(coordinates.dtype), squared, right)
