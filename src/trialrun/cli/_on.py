"""From ``--on`` and its options to the material that a card accepts."""

from __future__ import annotations

import os
from pathlib import Path

from trialrun.catalogue import Accepts, Card
from trialrun.claims.contract import FILE_OPTIONS, On
from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.material.packs import PACKS, require_pack

# What huggingface_hub takes for a yes.
_YES = ("1", "ON", "YES", "TRUE")


def _kinds(card: Card) -> list[Accepts]:
    return [accepts for accepts in card.accepts if accepts.kind != "model"]


def _fits(accepts: Accepts, path: Path) -> bool:
    return not accepts.formats or path.suffix.lower().lstrip(".") in accepts.formats


def resolve_on(card: Card, path: str, options: dict[str, str]) -> On:
    """Return the material a user named, checked against what the card accepts.

    Raises
    ------
    UsageError
        If the file is missing, its format is not accepted, or an option is missing or unknown.
    """
    kinds = _kinds(card)
    if not kinds:
        raise UsageError(f"{card.slug} takes no material of your own with --on: see trialrun show")
    target = Path(path).expanduser()
    if not target.exists():
        raise UsageError(f"--on {path}: there is no such file or folder")
    fitting = [accepts for accepts in kinds if _fits(accepts, target)]
    if not fitting:
        known = ", ".join(f".{f}" for accepts in kinds for f in accepts.formats)
        raise UsageError(f"--on {path}: {card.slug} reads {known}, got {target.suffix or 'none'}")
    chosen = fitting[0]
    missing = [f"--{name}" for name in chosen.needs if name not in options]
    if missing:
        raise UsageError(f"--on with material of kind {chosen.kind} needs {', '.join(missing)}")
    extra = [f"--{name}" for name in options if name not in (*chosen.needs, *chosen.options)]
    if extra:
        raise UsageError(
            f"{', '.join(extra)} does not go with material of kind {chosen.kind} for {card.slug}"
        )
    full = {k: str(Path(v).resolve()) if k in FILE_OPTIONS else v for k, v in options.items()}
    return On(chosen.kind, str(target.resolve()), full)


def resolve_model(name: str | None) -> str | None:
    """Return a folder or hub id for ``--model``; a pack's name becomes its folder.

    Raises
    ------
    NotRunnable
        If the name is a pack that has not been pulled.
    """
    if name in PACKS:
        return str(require_pack(str(name)))
    if name is not None and Path(name).expanduser().is_dir():
        return str(Path(name).expanduser().resolve())
    return name


def check_model_is_here(card: Card, name: str) -> None:
    """Raise for a folder without a model, and for what the hub would be asked for while it is off.

    A card that takes no model has its own sentence for that, later.

    Raises
    ------
    UsageError
        If the folder has no ``config.json``, or the model would have to be downloaded.
    """
    if all(accepts.kind != "model" for accepts in card.accepts):
        return
    plain, _, told = name.rpartition("@")
    where = plain if plain and told.isdigit() else name
    folder = Path(where).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UsageError(
                f"--model must be a folder that transformers can read, and {where!r} has no "
                f"config.json: give one that save_pretrained wrote"
            )
        return
    offline = os.environ.get("HF_HUB_OFFLINE", "1").upper() in _YES
    if offline and not _is_cached(where, card.family):
        raise UsageError(
            f"--model must be a folder, a pulled pack or a downloaded hub id, got {where!r}, which "
            f"is none of them here: give the folder of a saved model, or add --online to ask the "
            f"hub for it"
        )


def _is_cached(hub_id: str, extra: str) -> bool:
    hub = need("huggingface_hub", extra=extra)
    try:
        return isinstance(hub.try_to_load_from_cache(hub_id, "config.json"), str)
    except ValueError:  # it cannot be a hub id
        return False
