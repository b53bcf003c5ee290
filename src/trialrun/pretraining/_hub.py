"""What a model repository on the Hugging Face hub shows of a release.

Only what can be seen there is said to be present: files, branches, and what the card declares.
Everything else is left "missing", since a hub repository is seldom a whole release: a manifest
of the publisher's own says where the rest is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trialrun.core.errors import NotRunnable, UsageError
from trialrun.core.extras import need
from trialrun.pretraining._licences import open_for
from trialrun.pretraining._manifest import Manifest, Shown

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".msgpack", ".h5")
_CHECKPOINT = re.compile(r"(^|[-_/])(step|checkpoint|ckpt|iter)[-_]?\d", re.IGNORECASE)
_CODE = {
    "training_code": re.compile(r"(^|/)(train|pretrain|finetune)\w*\.(py|sh)$"),
    "inference_code": re.compile(r"(^|/)(infer|inference|generate|run)\w*\.py$"),
    "evaluation_code": re.compile(r"(^|/)(eval|evaluate|evaluation)\w*\.(py|sh)$"),
    "preprocessing_code": re.compile(r"(^|/)(preprocess|prepare_data|dedup|tokenize)\w*\.py$"),
}
_STATE = re.compile(
    r"(^|/)(trainer_state\.json|(optimizer|scheduler|training_args|rng_state\w*)\.\w+"
    r"|\w*optim_states\.pt)$"
)
_TOKENIZER = re.compile(r"(^|/)(tokenizer|vocab)[\w.-]*$", re.IGNORECASE)


@dataclass(frozen=True)
class Repository:
    """What was read of a hub repository."""

    id: str
    files: Sequence[str]
    branches: Sequence[str] = ()
    card: Mapping[str, Any] = field(default_factory=dict)
    tags: Sequence[str] = ()
    sha: str = ""


def manifest_of(repository: Repository) -> Manifest:
    """Return the manifest that a repository amounts to.

    The card's licence is taken for the weights and for what else the repository holds. A licence
    that the card names and nobody knows is taken for closed, and said.
    """
    at = f"https://huggingface.co/{repository.id}"
    tree = f"{at}/blob/{repository.sha or 'main'}"
    licence, note = _licence(repository.card)
    found: dict[str, Shown] = {}

    def put(name: str, evidence: Iterable[str], said: str = "", of: str = licence) -> None:
        places = tuple(evidence)[:5]
        if places:
            found[name] = Shown("present", of, places, said or note)

    files = sorted(repository.files)
    weights = [f"{tree}/{f}" for f in files if _is_weights(f)]
    put("final_parameters", weights)
    put("model_architecture", [f"{tree}/{f}" for f in files if f.startswith("modeling_")])
    kind = repository.card.get("library_name") or ""
    if "model_architecture" not in found and "config.json" in files:
        said = f"a configuration for a library's own model class ({kind or 'transformers'})"
        put("model_architecture", [f"{tree}/config.json"], said)
    put("model_card", [f"{tree}/README.md"] if "README.md" in files else [])
    for name, pattern in _CODE.items():
        put(name, [f"{tree}/{f}" for f in files if pattern.search(f)])
    put("model_metadata", [f"{tree}/{f}" for f in files if _STATE.search(f)])
    steps = [b for b in repository.branches if _CHECKPOINT.search(b)]
    put("intermediate_parameters", [f"{at}/tree/{branch}" for branch in steps])
    _from_card(repository, at, put)
    return Manifest(repository.id, found, at, repository.sha)


def _is_weights(file: str) -> bool:
    return file.endswith(_WEIGHTS) and not _STATE.search(file) and not _TOKENIZER.search(file)


def _from_card(repository: Repository, at: str, put: Any) -> None:
    card, said = repository.card, "named by the card; not opened"
    put("evaluation_results", [at] if card.get("model-index") else [], said)
    papers = [t.removeprefix("arxiv:") for t in repository.tags if t.startswith("arxiv:")]
    # The card cannot say under which licence a paper stands.
    reports = [f"https://arxiv.org/abs/{paper}" for paper in papers]
    put("technical_report", reports, "named by the card; its licence is not known", "")
    data = card.get("datasets") or []
    data = [data] if isinstance(data, str) else data
    sets = [f"https://huggingface.co/datasets/{name}" for name in data]
    put("datasets", sets, "named by the card; their licences are not known", "")


def _licence(card: Mapping[str, Any]) -> tuple[str, str]:
    said = card.get("license") or ""
    # The card does not say whether one may choose among several: all of them must be open.
    said = " AND ".join(map(str, said)) if isinstance(said, list) else str(said)
    if not said:
        return "", "the card names no licence"
    try:
        open_for(said)
    except UsageError:
        plain = re.sub(r"[^A-Za-z0-9.-]+", "-", said)
        return f"LicenseRef-{plain}", f"the card's licence {said!r} is not a known one"
    return said, ""


def look_up(hub_id: str) -> Repository:
    """Ask the hub what a model repository holds.

    Parameters
    ----------
    hub_id : str
        ``organisation/name``.

    Raises
    ------
    UsageError
        If it is no hub id, or there is no such repository.
    NotRunnable
        If the hub cannot be reached.
    MissingExtra
        If huggingface_hub is not installed.
    """
    if not HUB_ID.fullmatch(hub_id):
        raise UsageError(f"a hub id reads organisation/name, got {hub_id!r}")
    hub = need("huggingface_hub", extra="pretraining")
    errors = need("huggingface_hub.errors", extra="pretraining")
    constants = need("huggingface_hub.constants", extra="pretraining")
    offline = constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE") == "1"
    instead = "or write a manifest and grade that"
    if offline:
        raise NotRunnable(
            f"{hub_id} must be asked of the hub and the network is off (HF_HUB_OFFLINE): add "
            f"--online where there is a network, {instead}"
        )
    api = hub.HfApi()
    try:
        info = api.model_info(hub_id, timeout=20)
        refs = api.list_repo_refs(hub_id)
    except errors.RepositoryNotFoundError as error:
        raise UsageError(
            f"the hub has no public model {hub_id!r}: check the name, or log in if it is private"
        ) from error
    except Exception as error:  # each transport has its own errors
        kind = type(error).__name__
        raise NotRunnable(
            f"the hub could not be asked for {hub_id} ({kind}): try again where the network "
            f"reaches it, {instead}"
        ) from error
    card = info.card_data.to_dict() if info.card_data else {}
    return Repository(
        id=hub_id,
        files=[sibling.rfilename for sibling in info.siblings or ()],
        branches=[ref.name for ref in (*refs.branches, *refs.tags)],
        card=card,
        tags=list(info.tags or ()),
        sha=info.sha or "",
    )


def from_hub(hub_id: str) -> Manifest:
    """Return what a model repository on the hub shows of a release (white2024mof).

    Parameters
    ----------
    hub_id : str
        ``organisation/name``.

    Raises
    ------
    UsageError
        If it is no hub id, or there is no such repository.
    NotRunnable
        If the hub cannot be reached.

    Examples
    --------
    >>> from_hub("not a hub id")
    Traceback (most recent call last):
    ...
    trialrun.core.errors.UsageError: a hub id reads organisation/name, got 'not a hub id'
    """
    return manifest_of(look_up(hub_id))
