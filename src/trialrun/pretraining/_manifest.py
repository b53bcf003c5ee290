"""A release's manifest: what is said to be there, under which licence, and where it can be seen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trialrun.core.errors import UsageError
from trialrun.core.extras import need
from trialrun.pretraining._licences import CODE, DATA, DOCUMENT, open_for

STATUSES = ("present", "missing", "not inspected")


@dataclass(frozen=True)
class Component:
    """One of the framework's 17: its class, and the uses of which a licence must allow one."""

    id: str
    name: str
    level: int
    kinds: tuple[str, ...]
    required: bool = True


COMPONENTS = {
    component.id: component
    for component in (
        Component("model_architecture", "Model architecture", 3, (CODE,)),
        Component("final_parameters", "Final model parameters", 3, (DATA, CODE)),
        Component("technical_report", "Technical report", 3, (DOCUMENT, CODE)),
        Component("evaluation_results", "Evaluation results", 3, (DOCUMENT, CODE)),
        Component("model_card", "Model card", 3, (DOCUMENT, CODE)),
        Component("data_card", "Data card", 3, (DOCUMENT, CODE)),
        Component("sample_outputs", "Sample outputs", 3, (DATA, CODE, DOCUMENT), required=False),
        Component("training_code", "Training code", 2, (CODE,)),
        Component("inference_code", "Inference code", 2, (CODE,)),
        Component("evaluation_code", "Evaluation code", 2, (CODE,)),
        Component("evaluation_data", "Evaluation data", 2, (DATA,)),
        Component("supporting_libraries", "Supporting libraries and tools", 2, (CODE,)),
        Component("research_paper", "Research paper", 1, (DOCUMENT,)),
        Component("datasets", "Datasets", 1, (DATA, CODE, DOCUMENT)),
        Component("preprocessing_code", "Data preprocessing code", 1, (CODE,)),
        Component("intermediate_parameters", "Intermediate parameters", 1, (DATA, CODE)),
        Component("model_metadata", "Model metadata", 1, (DATA,), required=False),
    )
}
_COMPONENT_KEYS = ("licence", "license", "evidence", "status", "note")
_RELEASE_KEYS = ("release", "version", "source", "components")


@dataclass(frozen=True)
class Shown:
    """What a manifest shows of one component."""

    status: str = "missing"
    licence: str = ""
    evidence: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Manifest:
    """What is said to be released: a name, and what is shown of each component."""

    release: str
    components: Mapping[str, Shown]
    source: str = ""
    version: str = ""


def _plain(value: Any) -> str:
    """Return a value as text; a key with nothing after it says nothing."""
    return "" if value is None else str(value)


def _strings(where: str, value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, str) and item.strip() for item in items):
        raise UsageError(f"{where} must be a sentence, an address or a list of them, got {value!r}")
    return tuple(item.strip() for item in items)


def _shown(where: str, said: Any) -> Shown:
    if said is None:
        return Shown()
    if not isinstance(said, Mapping):
        keys = ", ".join(_COMPONENT_KEYS)
        raise UsageError(f"{where} must be a table with the keys {keys}, got {said!r}")
    for key in said:
        if key not in _COMPONENT_KEYS:
            keys = ", ".join(_COMPONENT_KEYS)
            raise UsageError(f"{where} has the unknown key {key!r}: it takes {keys}")
    if "licence" in said and "license" in said:
        raise UsageError(f"{where} has both licence and license: keep one")
    # YAML reads an unquoted None, no or 2.0 as something else than text.
    licence = said.get("licence", said.get("license", ""))
    if not isinstance(licence, str):
        raise UsageError(f"{where}: the licence must be text, got {licence!r}: put it in quotes")
    if licence:
        open_for(licence, where=where)
    status = said.get("status", "present")
    if status not in STATUSES:
        raise UsageError(f"{where}: status must be one of {', '.join(STATUSES)}, got {status!r}")
    evidence = _strings(f"{where}.evidence", said["evidence"]) if "evidence" in said else ()
    return Shown(status, licence.strip(), evidence, _plain(said.get("note")))


def parse_manifest(table: Any, *, where: str = "manifest") -> Manifest:
    """Check a manifest that was read from YAML or JSON.

    Parameters
    ----------
    table : mapping
        ``release`` (a name) and ``components``: for each component's id a table of ``licence`` (an
        SPDX expression), ``evidence`` (addresses, paths or sentences), ``status`` (present,
        missing, not inspected; present unless said) and ``note``. Components left out are missing.
    where : str
        Name for messages.

    Returns
    -------
    Manifest

    Raises
    ------
    UsageError
        In one sentence, naming the key, what was expected and what came.

    Examples
    --------
    >>> said = {"licence": "MIT", "evidence": "train.py"}
    >>> parse_manifest({"release": "x", "components": {"training_code": said}}).release
    'x'
    """
    if not isinstance(table, Mapping):
        kind = type(table).__name__
        raise UsageError(f"{where} must be a table with release and components, got {kind}")
    for key in table:
        if key not in _RELEASE_KEYS:
            keys = ", ".join(_RELEASE_KEYS)
            raise UsageError(f"{where} has the unknown key {key!r}: it takes {keys}")
    release, components = table.get("release"), table.get("components")
    if not isinstance(release, str) or not release.strip():
        raise UsageError(f"{where}: release must be a name, got {release!r}")
    if not isinstance(components, Mapping) or not components:
        raise UsageError(
            f"{where}: components must be a table with at least one of {', '.join(COMPONENTS)}, "
            f"got {components!r:.60}"
        )
    for name in components:
        if name not in COMPONENTS:
            raise UsageError(
                f"{where}: there is no component {name!r}: the framework has "
                f"{', '.join(COMPONENTS)}"
            )
    shown = {name: _shown(f"{where}: {name}", said) for name, said in components.items()}
    source = _plain(table.get("source")) or where
    return Manifest(release.strip(), shown, source, _plain(table.get("version")))


def read_manifest(path: str | Path) -> Manifest:
    """Read a manifest from a YAML or JSON file.

    Parameters
    ----------
    path : str or Path
        Evidence that looks like a relative path (it begins with ``./``) is looked for beside the
        file; a path that leads nowhere makes its component missing.

    Returns
    -------
    Manifest

    Raises
    ------
    UsageError
        If there is no such file, it is neither YAML nor JSON (by its ending), or no manifest.
    MissingExtra
        If PyYAML is not installed.

    Examples
    --------
    >>> import tempfile
    >>> text = "release: x\\ncomponents: {model_card: {licence: MIT, evidence: README.md}}"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "release.yaml"
    ...     _ = path.write_text(text)
    ...     read_manifest(path).components["model_card"].licence
    'MIT'
    """
    path = Path(path)
    if not is_there(path) or path.is_dir():
        raise UsageError(f"{path} is not a file: name a manifest (YAML or JSON) or a hub id")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from error
    try:
        table = _json(path, text) if path.suffix.lower() == ".json" else _yaml(path, text)
    except RecursionError as error:
        raise UsageError(f"{path} is nested too deep for a manifest") from error
    manifest = parse_manifest(table, where=path.name)
    return Manifest(
        manifest.release,
        {name: _looked_up(shown, path.parent) for name, shown in manifest.components.items()},
        _plain(table.get("source")) or str(path),
        manifest.version,
    )


def is_there(path: Path) -> bool:
    """Return whether something is at ``path``; a name that no file can have leads nowhere."""
    try:
        return path.exists()
    except OSError:
        return False


def _json(path: Path, text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, value in pairs:
            if key in table:
                raise UsageError(f"{path} is not valid JSON: the key {key!r} stands there twice")
            table[key] = value
        return table

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno} is not valid JSON: {error.msg}") from error


def _yaml(path: Path, text: str) -> Any:
    yaml = need("yaml", extra="pretraining")
    try:
        return yaml.load(text, Loader=_loader(yaml))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        spot = f", line {mark.line + 1}" if mark else ""
        what = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UsageError(f"{path}{spot} is not valid YAML: {what}") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # PyYAML's own constructors let these through: a date that is none, a tag on the wrong text.
        raise UsageError(
            f"{path} is not valid YAML: {error}: put what is meant as text in quotes"
        ) from error


def _loader(yaml: Any) -> Any:
    """Return a safe loader that refuses a key given twice, where YAML would keep the last."""

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # no key of a manifest: refused below, or as unknown
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands there twice", key.start_mark
                )
            seen.add(key.value)
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    return Loader


def _looked_up(shown: Shown, folder: Path) -> Shown:
    absent = [e for e in shown.evidence if e.startswith("./") and not is_there(folder / e)]
    if not absent or shown.status != "present":
        return shown
    return Shown("missing", shown.licence, shown.evidence, f"no such file: {', '.join(absent)}")
