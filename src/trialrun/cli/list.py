"""``trialrun list``: what there is."""

from __future__ import annotations

import json as json_module
import sys
from typing import Literal

from trialrun.catalogue import all_cards


def list_methods(*, lang: Literal["en", "zh"] = "en", json: bool = False) -> int:
    """List every method with its family, kind and idea.

    Parameters
    ----------
    lang
        Language of the ideas.
    json
        Print JSON for machines.
    """
    cards = all_cards()
    if json:
        rows = [
            {
                "slug": card.slug,
                "family": card.family,
                "kind": card.kind,
                "title": card.title[lang],
                "idea": card.idea[lang],
                "claims": [claim.id for claim in card.claims],
                "entry": list(card.entry),
                "draft": card.draft,
            }
            for card in cards
        ]
        print(json_module.dumps(rows, ensure_ascii=False, indent=2))
        return 0
    wide, family, kind = (
        max((len(getattr(card, field)) for card in cards), default=0)
        for field in ("slug", "family", "kind")
    )
    for card in cards:
        mark = " (draft)" if card.draft else ""
        place = f"{card.family:{family}}  {card.kind:{kind}}"
        print(f"{card.slug:{wide}}  {place}  {card.title[lang]}{mark}")
        print(f"{'':{wide}}  {card.idea[lang]}")
        print(f"{'':{wide}}  claims: {', '.join(claim.id for claim in card.claims)}")
    print(f"{len(cards)} methods. Next: trialrun show SLUG, trialrun check SLUG", file=sys.stderr)
    return 0
