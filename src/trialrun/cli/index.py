"""``trialrun index``: encode a folder of pictures, for ``trialrun query``."""

from __future__ import annotations

import json as json_
import os
import sys
import warnings
from importlib import import_module
from pathlib import Path

from trialrun.core.errors import UsageError

_SEARCH = "trialrun.representation.picture_index"
_LOAD = "trialrun.representation.pic2word"


def beside(folder: str) -> Path:
    """Return FOLDER.index beside the folder, whatever way it is written (., .., a/)."""
    place = Path(folder).resolve()
    if place.name == "":
        raise UsageError(f"{folder} has no place beside it: name the index with --out")
    return (
        place.with_name(f"{place.name}.index")
        if Path(folder).name in ("", "..")
        else Path(f"{Path(folder)}.index")
    )


def kept_path(pretrained: str | None) -> str | None:
    """Return a file of weights by its full path, so that a query finds it from anywhere."""
    return (
        str(Path(pretrained).resolve()) if pretrained and Path(pretrained).is_file() else pretrained
    )


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
    if batch < 1:
        raise UsageError(f"--batch must be at least 1, got {batch}")
    place = Path(out) if out else beside(folder)
    if place.exists() and not place.is_dir():
        raise UsageError(f"--out {place} is a file: name a folder to write the index to")
    search.find_pictures(folder)  # a wrong folder is told before a model is loaded
    loaded = loading.load_clip(model, pretrained, device=device, trained=True)
    lively = sys.stderr.isatty()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is left out is printed below
        made = search.build_index(
            loaded,
            folder,
            model=str(Path(model).resolve()) if Path(model).is_dir() else model,
            pretrained=kept_path(pretrained),
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
