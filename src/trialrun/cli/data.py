"""``trialrun data list|pull``: the material that checks need."""

from __future__ import annotations

import sys

from cyclopts import App

from trialrun.core.errors import UsageError
from trialrun.material.packs import PACKS, is_present
from trialrun.material.pulling import pull_command, pull_pack

app = App(name="data", help="List and pull data packs.", result_action="return_value")


@app.command(name="list")
def list_packs() -> int:
    """List every pack with its size, licence and whether it is here."""
    for pack in PACKS.values():
        state = "here" if is_present(pack.name) else f"missing: {pull_command(pack.name)}"
        print(f"{pack.name:<14} {pack.megabytes:>6.1f} MB  {pack.what}")
        print(f"{'':<14} {'':>9}  licence {pack.licence}; {state}")
    return 0


@app.command
def pull(*names: str) -> int:
    """Fetch packs into the user's cache, pinned and with their checksum verified.

    Parameters
    ----------
    names
        Names from ``trialrun data list``.
    """
    if not names:
        raise UsageError("name the packs to pull: trialrun data list shows them")
    for name in names:
        folder = pull_pack(name, say=lambda line: print(line, file=sys.stderr))
        print(folder)
    return 0
