"""From ``--on`` and its options to the material that a card accepts."""

from __future__ import annotations

from pathlib import Path

from trialrun.catalogue import Accepts, Card
from trialrun.claims.contract import FILE_OPTIONS, On
from trialrun.core.errors import UsageError
from trialrun.material.packs import PACKS, require_pack


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
