"""``trialrun index``: encode a folder of pictures, for ``trialrun query``."""

from __future__ import annotations

import json as json_
import os
import sys
import warnings
from importlib import import_module
from pathlib import Path

_SEARCH = "trialrun.representation.picture_index"
_LOAD = "trialrun.representation.pic2word"


def index(
    folder: str,
    *,
    model: str = "ViT-L-14",
    pretrained: str | None = None,
    out: str | None = None,
    batch: int = 64,
    device: str = "cpu",
    online: bool = False,
    json: bool = False,
) -> int:
    """Encode every picture under a folder with a CLIP, so that it can be searched.

    Pictures that cannot be read are left out and named.

    Parameters
    ----------
    folder
        A folder of pictures; folders inside it count too.
    model
        A model of open_clip (ViT-L-14), a folder or hub id of a transformers CLIP, or a folder of
        a tiny CLIP.
    pretrained
        Weights of an open_clip model, such as openai or a file; needed for those.
    out
        Folder to write the index to; FOLDER with .index added by default.
    batch
        Pictures encoded at once.
    device
        cpu or cuda.
    online
        Allow the network, to fetch weights.
    json
        Print JSON for machines.
    """
    if online:
        os.environ["HF_HUB_OFFLINE"] = "0"
    search, loading = import_module(_SEARCH), import_module(_LOAD)
    search.find_pictures(folder)  # a wrong folder is told before a model is loaded
    loaded = loading.load_clip(model, pretrained, device=device, trained=True)
    place = Path(out) if out else Path(f"{folder.rstrip('/')}.index")
    lively = sys.stderr.isatty()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is left out is printed below
        made = search.build_index(
            loaded,
            folder,
            model=str(Path(model).resolve()) if Path(model).is_dir() else model,
            pretrained=pretrained,
            batch_size=batch,
            tick=(lambda n: print(f"\r{n} pictures", end="", file=sys.stderr)) if lively else None,
        )
    if lively:
        print(file=sys.stderr)
    made.save(place)
    for name, why in made.skipped:
        print(f"trialrun: left out {name}: {why}", file=sys.stderr)
    if json:
        told = {"index": str(place), "pictures": len(made.names), "skipped": made.skipped}
        print(json_.dumps(told, ensure_ascii=False))
    else:
        left = f", {len(made.skipped)} could not be read" if made.skipped else ""
        print(f"{len(made.names)} pictures in {place}{left}")
    return 0
