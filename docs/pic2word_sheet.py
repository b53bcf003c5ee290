"""Draw docs/pic2word.png: held-out emoji found by "a {style} drawing of *" with a tiny CLIP.

Run as ``python docs/pic2word_sheet.py``: a minute or two on a free core, with the sizes of the full
budget. The seed is 0, which no recorded run uses; the drawings asked with stand
evenly spaced in the list of names, so none was picked for its hits. ``--prepared FOLDER`` takes the
CLIP and mapper that an earlier run left there.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from PIL import Image

from trialrun.claims.contract import Context
from trialrun.dossiers.pic2word.claim import TRIAL
from trialrun.dossiers.pic2word.world import drawn, prepare
from trialrun.representation.pic2word import ImageToWord, load_clip
from trialrun.representation.picture_index import ask, build_index, draw_hits

ASKED = (
    ("openmoji", "a Twemoji drawing of *"),
    ("twemoji", "an OpenMoji drawing of *"),
    ("twemoji", "a Noto line drawing of *"),
)


def main() -> None:
    """Train or take the CLIP, index the held-out drawings, ask, and draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prepared", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("pic2word.png"))
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        budget = replace(TRIAL.budgets["full"], seeds=1, first_seed=0)
        ctx = Context(budget=budget, seed=0, prepared_root=told.prepared or root / "prepared")
        folder = ctx.prepared("clip")
        if not (folder / "mapper.safetensors").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            prepare(ctx, folder)
        emoji = drawn(ctx)[1]
        names = [phrase.partition(" ")[2] for phrase in emoji.things.phrases]  # no article
        pictures = root / "pictures"
        pictures.mkdir()
        for i, name in enumerate(names):
            for s, style in enumerate(emoji.things.styles):
                file = f"{name.replace('/', ' ')} {style}.png"
                Image.fromarray(emoji.images[i, s]).save(pictures / file)
        loaded = load_clip(folder)
        mapper = ImageToWord.load(folder / "mapper.safetensors")
        index = build_index(loaded, pictures, model=str(folder))
        middle = [name for name in names if name.isascii() and len(name) < 20]
        step = len(middle) // len(ASKED)
        for number, (style, prompt) in enumerate(ASKED):
            image = pictures / f"{middle[number * step + step // 2].replace('/', ' ')} {style}.png"
            found = ask(index, loaded, [prompt], images=[image], mapper=mapper, top=6)
            draw_hits(found, [image], root / f"{number}.png")
        sheets = [Image.open(root / f"{number}.png") for number in range(len(ASKED))]
        whole = Image.new("RGB", (sheets[0].width, sum(sheet.height for sheet in sheets)), "white")
        top = 0
        for sheet in sheets:
            whole.paste(sheet, (0, top))
            top += sheet.height
        whole.save(told.out, optimize=True)


if __name__ == "__main__":
    main()
