"""How one character is drawn: a font at a weight, and one named change of its shape.

The fonts are Noto Sans for many scripts (SIL OFL 1.1), each with a continuous weight. ``slanted``,
``leaning``, ``narrow`` and ``wide`` are ours: plain affine changes of the upright letter, the same
for all. ``italic`` is the type designer's own, where there is one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from trialrun.core.extras import need
from trialrun.material._emoji_styles import package_folder
from trialrun.material._glyph_twins import TWINS
from trialrun.material._rasters import Pixels, installed
from trialrun.material.packs import PACKS

SCRIPTS = (
    "latin", "greek", "cyrillic", "armenian", "georgian", "hebrew", "arabic", "ethiopic",
    "devanagari", "bengali", "gurmukhi", "gujarati", "oriya", "tamil", "telugu", "kannada",
    "malayalam", "sinhala", "thai", "lao", "khmer", "myanmar",
)  # fmt: skip
_OWN_FONTS = frozenset(SCRIPTS[3:])
WITH_ITALICS = SCRIPTS[:3]
WEIGHTS = {"regular": 400, "medium": 500, "semibold": 600, "bold": 700}
# Across and down, and how far the top moves to the right, as fractions of the height.
_SHAPES = {
    "upright": (1.0, 1.0, 0.0),
    "slanted": (1.0, 1.0, 0.25),
    "leaning": (1.0, 1.0, -0.25),
    "narrow": (0.7, 1.0, 0.0),
    "wide": (1.0, 0.7, 0.0),
    "italic": (1.0, 1.0, 0.0),
}
DRAWERS = tuple(f"{weight}-{shape}" for shape in _SHAPES for weight in WEIGHTS)
ITALICS = tuple(drawer for drawer in DRAWERS if drawer.endswith("-italic"))
FOR_EVERY_SCRIPT = tuple(drawer for drawer in DRAWERS if drawer not in ITALICS)

_LETTERS = ("Lu", "Ll", "Lo")
_FINER = 2
_EM = 0.78
_ROOM = 0.94


def versions() -> tuple[str, ...]:
    """Return the packages with versions that the pictures depend on.

    Raises
    ------
    MissingExtra
    NotRunnable
    """
    fonts = installed("manimgx-fonts", pinned=PACKS["glyphs"].pinned)
    return (fonts, installed("pillow"), installed("fonttools"))


def _file(script: str, *, italic: bool = False) -> str:
    if script in _OWN_FONTS:
        return f"NotoSans{script.capitalize()}[wght].ttf"
    return f"NotoSans{'-Italic' if italic else ''}[wght].ttf"


@cache
def _known(file: str) -> frozenset[int]:
    fonts = need("fontTools.ttLib", extra="pictures")
    with fonts.TTFont(package_folder("manimgx_fonts") / file) as font:
        return frozenset(font.getBestCmap())


@cache
def characters(script: str) -> tuple[str, ...]:
    """Return the letters of a script that its font has, in the order of their code points.

    A letter that Unicode takes apart (an accented or a joined form) is left out, as is one that
    looks like an earlier one, of this script or of one before it (Greek Alpha, Cyrillic A).
    """
    found = []
    for code in sorted(_known(_file(script))):
        letter = chr(code)
        if unicodedata.category(letter) not in _LETTERS or unicodedata.decomposition(letter):
            continue
        if unicodedata.name(letter, "").split(" ")[0].lower() == script and letter not in TWINS:
            found.append(letter)
    return tuple(found)


def _font(script: str, drawer: str, side: int) -> Any:
    pillow = need("PIL.ImageFont", extra="pictures")
    weight, _, shape = drawer.partition("-")
    path = package_folder("manimgx_fonts") / _file(script, italic=shape == "italic")
    # The basic layout draws the letter alone, without the shaping that depends on how Pillow was
    # built.
    font = pillow.truetype(str(path), side * _EM, layout_engine=pillow.Layout.BASIC)
    font.set_variation_by_axes([WEIGHTS[weight]])
    return font


def _drawn(letter: str, font: Any, shape: tuple[float, float, float], side: int) -> Pixels:
    image_module = need("PIL.Image", extra="pictures")
    drawer = need("PIL.ImageDraw", extra="pictures")
    left, top, right, bottom = font.getbbox(letter, anchor="ls")
    across, down, shear = shape
    # The centre of the ink goes to the centre of the picture; what is too large is made smaller.
    ink = image_module.new("L", (max(right - left, 1), max(bottom - top, 1)), 0)
    drawer.Draw(ink).text((-left, -top), letter, font=font, fill=255, anchor="ls")
    wide = ink.width * across + ink.height * down * abs(shear)
    smaller = min(1.0, _ROOM * side / wide, _ROOM * side / (ink.height * down))
    across, down = across * smaller, down * smaller
    middle, x, y = side / 2, ink.width / 2, ink.height / 2
    to_x = (1 / across, shear / across, x - middle * (1 + shear) / across)
    turn = (*to_x, 0.0, 1 / down, y - middle / down)
    canvas = ink.transform(
        (side, side), image_module.Transform.AFFINE, turn, image_module.Resampling.BILINEAR
    )
    return 255 - np.asarray(canvas.reduce(_FINER))


def draw(letters: Sequence[tuple[str, str]], drawer: str, size: int) -> Pixels:
    """Return pictures (characters, size, size), dark on white, of (character, script) pairs."""
    side = size * _FINER
    shape = _SHAPES[drawer.partition("-")[2]]
    fonts: dict[str, Any] = {}
    pictures = []
    for letter, script in letters:
        if script not in fonts:
            fonts[script] = _font(script, drawer, side)
        pictures.append(_drawn(letter, fonts[script], shape, side))
    return np.stack(pictures)
