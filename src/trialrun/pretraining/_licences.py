"""Which licence names there are, what each is open for, and expressions of several.

Names are SPDX ids; the Hugging Face hub's lower-case tags are understood too. The lists are short
on purpose: what a model release is likely to carry. They were written from knowledge of the OSI's
list of approved licences and of the Model Openness Framework's own, not copied from either.
"""

from __future__ import annotations

import difflib
import re

from trialrun.core.errors import UsageError

CODE, DATA, DOCUMENT = "code", "data", "document"

_OSI = """
0BSD AAL AFL-1.1 AFL-1.2 AFL-2.0 AFL-2.1 AFL-3.0 AGPL-3.0 AGPL-3.0-only AGPL-3.0-or-later APL-1.0
APSL-2.0 Apache-1.1 Apache-2.0 Artistic-1.0 Artistic-2.0 BlueOak-1.0.0 BSD-1-Clause BSD-2-Clause
BSD-2-Clause-Patent BSD-3-Clause BSD-3-Clause-LBNL BSL-1.0 CAL-1.0 CDDL-1.0 CECILL-2.1
CERN-OHL-P-2.0 CERN-OHL-S-2.0 CERN-OHL-W-2.0 CPL-1.0 ECL-1.0 ECL-2.0 EFL-2.0 EPL-1.0 EPL-2.0
EUPL-1.1 EUPL-1.2 GPL-2.0 GPL-2.0-only GPL-2.0-or-later GPL-3.0 GPL-3.0-only GPL-3.0-or-later
HPND ICU IPL-1.0 ISC JAM LGPL-2.1 LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0 LGPL-3.0-only
LGPL-3.0-or-later LPPL-1.3c MIT MIT-0 MPL-1.1 MPL-2.0 MPL-2.0-no-copyleft-exception MS-PL MS-RL
MulanPSL-2.0 NCSA NTP OFL-1.1 OLDAP-2.8 OSL-3.0 PHP-3.01 PostgreSQL PSF-2.0 Python-2.0 QPL-1.0
UPL-1.0 Unicode-3.0 Unicode-DFS-2016 Unlicense Vim W3C Zlib ZPL-2.1
"""
_OPEN_DATA = """
CDLA-Permissive-1.0 CDLA-Permissive-2.0 CDLA-Sharing-1.0 ODC-By-1.0 ODbL-1.0 PDDL-1.0 O-UDA-1.0
C-UDA-1.0 OGL-UK-3.0 etalab-2.0 DL-DE-BY-2.0 DL-DE-ZERO-2.0
"""
_OPEN_CONTENT = """
CC0-1.0 CC-BY-3.0 CC-BY-4.0 CC-BY-SA-3.0 CC-BY-SA-4.0 CC-PDDC GFDL-1.3 GFDL-1.3-only
GFDL-1.3-or-later FreeBSD-DOC
"""
_OPEN_ALL = "OpenMDW-1.0 OpenMDW-1.1"
# Known, and open for nothing: fields of use, persons or derived models are restricted.
_NOT_OPEN = """
BUSL-1.1 CC-BY-NC-2.0 CC-BY-NC-3.0 CC-BY-NC-4.0 CC-BY-ND-4.0 CC-BY-NC-ND-4.0 CC-BY-NC-SA-3.0
CC-BY-NC-SA-4.0 SSPL-1.0 Elastic-2.0 PolyForm-Noncommercial-1.0.0 openrail openrail++
bigscience-openrail-m bigscience-bloom-rail-1.0 creativeml-openrail-m bigcode-openrail-m
llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma falcon-llm qwen qwen-research deepseek
apple-amlr apple-ascl fair-noncommercial-research-license nvidia-open-model-license
microsoft-research-license jamba-open-model-license other unknown
"""
NO_LICENCE = "NONE"
_ALIASES = {
    "cc-by": "CC-BY-4.0",
    "cc0": "CC0-1.0",
    "odc-by": "ODC-By-1.0",
    "odbl": "ODbL-1.0",
    "pddl": "PDDL-1.0",
    "gfdl": "GFDL-1.3",
    "bsd": "BSD-3-Clause",
    "apache": "Apache-2.0",
    # The hub's tags without a version: every version is approved for code.
    "gpl": "GPL-3.0",
    "lgpl": "LGPL-3.0",
    "agpl": "AGPL-3.0",
    "cdla-permissive": "CDLA-Permissive-2.0",
}


def _table() -> dict[str, tuple[str, frozenset[str]]]:
    said: tuple[tuple[str, set[str]], ...] = (
        (_OSI, {CODE}),
        (_OPEN_DATA, {DATA}),
        # The framework takes content licences for data, and the public-domain dedication likewise.
        (_OPEN_CONTENT, {DATA, DOCUMENT}),
        (_OPEN_ALL, {CODE, DATA, DOCUMENT}),
        (_NOT_OPEN, set()),
        (NO_LICENCE, set()),
    )
    return {name.lower(): (name, frozenset(uses)) for names, uses in said for name in names.split()}


_KNOWN = _table()
_TOKEN = re.compile(r"\s*(\(|\)|[^\s()]+)")


def _uses(name: str, where: str) -> frozenset[str]:
    plain = name.lower()
    if plain.startswith("licenseref-"):
        return frozenset()
    plain = _ALIASES.get(plain, plain).lower()
    found = _KNOWN.get(plain) or _KNOWN.get(plain.removesuffix("+"))
    if found is None:
        near = difflib.get_close_matches(plain, _KNOWN, n=1)
        meant = f", did you mean {_KNOWN[near[0]][0]}" if near else ""
        raise UsageError(
            f"{where}: the licence {name!r} is unknown{meant}: write an SPDX id, LicenseRef-NAME "
            f"for one of its own, or {NO_LICENCE}"
        )
    return found[1]


def open_for(expression: str, *, where: str = "licence") -> frozenset[str]:
    """Return what an SPDX expression is open for: any of "code", "data", "document".

    ``A OR B`` is as open as the opener of the two for each use, ``A AND B`` as the less open;
    ``A WITH exception`` counts as A. A licence of one's own (LicenseRef-...) is open for nothing:
    nobody has read it.

    Parameters
    ----------
    expression : str
    where : str
        Name for messages.

    Raises
    ------
    UsageError
        If a name is unknown or the expression cannot be read.

    Examples
    --------
    >>> sorted(open_for("Apache-2.0 OR CC-BY-4.0")), sorted(open_for("MIT AND llama2"))
    (['code', 'data', 'document'], [])
    """
    tokens = _TOKEN.findall(expression)
    if not tokens:
        raise UsageError(f"{where}: the licence must be an SPDX id, got {expression!r}")
    uses, left = _either(tokens, where)
    if left:
        raise UsageError(f"{where}: the licence {expression!r} cannot be read from {left[0]!r} on")
    return uses


def _either(tokens: list[str], where: str) -> tuple[frozenset[str], list[str]]:
    uses, left = _both(tokens, where)
    while left and left[0].upper() == "OR":
        more, left = _both(left[1:], where)
        uses |= more
    return uses, left


def _both(tokens: list[str], where: str) -> tuple[frozenset[str], list[str]]:
    uses, left = _one(tokens, where)
    while left and left[0].upper() == "AND":
        more, left = _one(left[1:], where)
        uses &= more
    return uses, left


def _one(tokens: list[str], where: str) -> tuple[frozenset[str], list[str]]:
    if not tokens or tokens[0].upper() in ("OR", "AND", "WITH", ")"):
        raise UsageError(f"{where}: the licence expression lacks a name")
    if tokens[0] == "(":
        uses, left = _either(tokens[1:], where)
        if not left or left[0] != ")":
            raise UsageError(f"{where}: the licence expression lacks a closing bracket")
        return uses, left[1:]
    uses, left = _uses(tokens[0], where), tokens[1:]
    if len(left) > 1 and left[0].upper() == "WITH":
        left = left[2:]
    return uses, left
