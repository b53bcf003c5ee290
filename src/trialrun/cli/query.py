"""``trialrun query``: "like this picture, but ..." on an index, with a sheet of the hits."""

from __future__ import annotations

import json as json_
import os
from importlib import import_module
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from trialrun.core.errors import UsageError

_SEARCH = "trialrun.representation.picture_index"
_LOAD = "trialrun.representation.pic2word"


def query(
    index: str,
    *prompts: str,
    image: Annotated[tuple[str, ...], Parameter(consume_multiple=False)] = (),
    mapper: str | None = None,
    model: str | None = None,
    pretrained: str | None = None,
    top: int = 12,
    out: str | None = None,
    device: str = "cpu",
    online: bool = False,
    json: bool = False,
) -> int:
    """Search an index with sentences in which each * stands for a picture.

    Writes a contact sheet of the hits and prints them.

    Parameters
    ----------
    index
        What trialrun index wrote.
    prompts
        Sentences such as "a drawing of *"; one without * needs no picture.
    image
        A picture for the *; give it again for each further *.
    mapper
        File of a mapper trained for the index's model: .safetensors, or the authors' checkpoint.
    model
        Where the model lies now, if it has moved; its weights must be those of the index.
    pretrained
        Weights of an open_clip model, if they have moved.
    top
        Number of hits for each sentence.
    out
        PNG file of the contact sheet; hits.png beside the index's files by default.
    device
        cpu or cuda.
    online
        Allow the network, to fetch weights.
    json
        Print JSON for machines.
    """
    if not prompts:
        raise UsageError('give at least one sentence, such as "a drawing of *"')
    if top < 1:
        raise UsageError(f"--top must be at least 1, got {top}")
    if online:
        os.environ["HF_HUB_OFFLINE"] = "0"
    search, loading = import_module(_SEARCH), import_module(_LOAD)
    sheet = Path(out) if out else Path(index) / "hits.png"
    search.check_sheet(sheet)
    held = search.PictureIndex.load(index)
    word = loading.ImageToWord.load(mapper) if mapper else None
    loaded = loading.load_clip(
        model or held.model, pretrained or held.pretrained, device=device, trained=True
    )
    try:
        found = search.ask(held, loaded, prompts, images=image, mapper=word, top=top)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if json:
        search.draw_hits(found, image, sheet)
        rows = [
            {"prompt": one.prompt, "hits": [(hit.score, str(hit.path)) for hit in one.hits]}
            for one in found
        ]
        print(json_.dumps({"sheet": str(sheet), "queries": rows}, ensure_ascii=False))
        return 0
    for one in found:
        print(one.prompt)
        for hit in one.hits:
            print(f"  {hit.rank:>3}  {hit.score:6.3f}  {hit.path}")
    search.draw_hits(found, image, sheet)
    print(f"contact sheet: {sheet}")
    return 0
