"""Pictures to look at: what an attack does to colours, and sheets of columns side by side.

The method changes styles of feature maps, which nobody can look at. Ours: the same attack at the
pixels themselves, whose style is the mean and deviation of each colour.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from trialrun.fewshot import _svasp_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.core.shapes import check_axes, check_range
from trialrun.fewshot._svasp_attack import StyleAttack
from trialrun.fewshot._svasp_model import FewShotModel
from trialrun.fewshot._svasp_pictures import random_crops
from trialrun.fewshot._svasp_style import adain

_HEADING = 16
"""Height of the line of headings, in pixels of the sheet."""


def attacked_pixels(
    model: FewShotModel,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, batch],
    *,
    preset: str = "code",
    eps: Sequence[int | float] = (0.2,),
    seed: int = 0,
) -> Float[Tensor, "batch channels height width"]:
    """Return pictures whose colours `StyleAttack` moved, to look at (li2025svasp).

    Parameters
    ----------
    model : FewShotModel
        Left as it is.
    x : tensor of shape (batch, channels, height, width)
        Numbers from 0 to 1.
    y : integer tensor of shape (batch,)
        Base classes.
    preset : {"code", "paper", "styleadv", "noise"}
        ``noise`` moves colours as far in random directions.
    eps : sequence of float, at least 0
        Sizes of a step on the scale of the pixels; one is drawn for means and one for deviations.
    seed : int

    Raises
    ------
    ValueError
        As `StyleAttack`.

    Examples
    --------
    >>> from trialrun.fewshot.svasp import Conv4
    >>> model = FewShotModel(Conv4(widths=(4, 4, 4, 8)), classes=8)
    >>> attacked_pixels(model, torch.rand(2, 3, 32, 32), torch.tensor([0, 7])).shape
    torch.Size([2, 3, 32, 32])
    """
    attack = StyleAttack(stages=("pixels",), eps=eps, preset=preset)
    whole = nn.Sequential(OrderedDict(pixels=nn.Identity(), network=model.backbone))
    crops = random_crops(x, 2, seed=seed) if attack.settings.crop_decay else None
    (style,) = attack(whole, model.classifier, x, crops, y, seed=seed)
    return adain(x, style.mean, style.std).clamp(0, 1)


def draw_styles(columns: Mapping[str, Tensor], *, scale: int = 3) -> Any:
    """Return a sheet as a Pillow image: a heading over each column, a picture in each row.

    Parameters
    ----------
    columns : mapping of str to tensor of shape (rows, 3, height, width)
        Numbers from 0 to 1, all of one shape, by heading.
    scale : int, at least 1
        Sheet pixels per pixel.

    Raises
    ------
    UsageError
        If there is no column, or columns differ in shape.

    Examples
    --------
    >>> pictures = torch.rand(4, 3, 32, 32)
    >>> draw_styles({"clean": pictures, "dark": pictures / 2}).size
    (192, 400)
    """
    check_range("scale", scale, low=1)
    shapes = {tuple(column.shape) for column in columns.values()}
    if len(shapes) != 1:
        got = ", ".join(map(str, sorted(shapes))) or "none"
        raise UsageError(f"columns must be at least one, all of one shape, got {got}")
    for name, column in columns.items():
        check_axes(f"column {name}", column, ("rows", "channels", "height", "width"))
    image_module: Any = need("PIL.Image", extra="pictures")
    draw_module: Any = need("PIL.ImageDraw", extra="pictures")
    sheet = torch.cat([column.movedim(0, 1).flatten(1, 2) for column in columns.values()], dim=2)
    pixels = (sheet.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    small = image_module.fromarray(pixels)
    size = (small.width * scale, small.height * scale)
    large = small.resize(size, image_module.Resampling.NEAREST)
    whole = image_module.new("RGB", (large.width, large.height + _HEADING), "white")
    whole.paste(large, (0, _HEADING))
    pen, width = draw_module.Draw(whole), large.width // len(columns)
    for place, name in enumerate(columns):
        pen.text((place * width + width // 2, _HEADING // 2), name, fill="black", anchor="mm")
    return whole
