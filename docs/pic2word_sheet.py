"""Draw docs/pic2word.png: held-out emoji found in another hand by a tiny CLIP, in two ways.

Run as ``python docs/pic2word_sheet.py``: a minute or two on a free core, with the sizes of the full
budget. The seed is 0, which no recorded run uses; the drawings asked with stand evenly spaced in
the list of names, so none was picked for its hits. ``--prepared FOLDER`` takes the CLIP and mapper
that an earlier run left there.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from dataclasses import replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from trialrun.claims.contract import Context
from trialrun.dossiers.pic2word.claim import TRIAL
from trialrun.dossiers.pic2word.world import World, drawn, mapper_of, prepare, world_of
from trialrun.representation._pic2word_sheet import contact_sheet
from trialrun.representation.pic2word import compose_features, mixture, text_only
from trialrun.representation.retrieval import cosine_scores, ranking

ASKED = (("openmoji", "twemoji"), ("twemoji", "openmoji"), ("twemoji", "noto-line"))
TOP = 6


def hits(world: World, query: Tensor, own: int, right: int) -> list[tuple[int, str]]:
    """Return rows of the gallery, best first, with a line each that says which one is right."""
    order = ranking(cosine_scores(query, world.test), exclude=[own])[0]
    k = len(world.styles)
    found = []
    for rank, row in enumerate(order[:TOP], start=1):
        name = re.sub("^an? ", "", world.held_out.phrases[row // k])
        found.append((int(row), f"{rank}  {'RIGHT: ' if row == right else ''}{name}"))
    return found


def main() -> None:
    """Train or take the CLIP and the mapper, ask, and draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prepared", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("pic2word.png"))
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        budget = replace(TRIAL.budgets["full"], seeds=1, first_seed=0)
        ctx = Context(budget=budget, seed=0, prepared_root=told.prepared or Path(scratch))
        folder = ctx.prepared("clip")
        if not (folder / "mapper.safetensors").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            prepare(ctx, folder)
        world, mapper = world_of(ctx), mapper_of(ctx)
        pictures = [Image.fromarray(pixels) for pixels in drawn(ctx)[1].pixels().numpy()]
    phrases, k = world.held_out.phrases, len(world.styles)
    short = [i for i, name in enumerate(phrases) if name.isascii() and len(name) < 22]
    rows = []
    for number, (a, b) in enumerate(ASKED):
        thing = short[(2 * number + 1) * len(short) // (2 * len(ASKED))]
        own, right = (thing * k + world.styles.index(style) for style in (a, b))
        prompt = world.sentence(b, "*")
        asked = world.test[own][None]
        ways = {
            "": compose_features(world.clip, mapper, asked, prompt),
            ", by the sum of picture and sentence": mixture(
                asked, text_only(world.clip, prompt, star="removed")
            ),
        }
        for way, query in ways.items():
            found = [(pictures[row], line) for row, line in hits(world, query, own, right)]
            rows.append((f"{prompt}{way}", [pictures[own]], found))
    contact_sheet(rows, columns=TOP).save(told.out, optimize=True)


if __name__ == "__main__":
    main()
