"""Score a mapper by the four published protocols, beside the same baselines (saito2023pic2word).

Four arms each: ``composed``, ``image`` alone, ``text`` alone, and ``mixture``, the normalised sum
of the last two. What the text arm reads differs from task to task in the authors' code:

===================  ===========================================================
domain conversion    the prompt with its ``*`` taken out ("a cartoon of")
CIRR                 the caption alone
Fashion-IQ           the whole sentence with a literal ``*`` in it
COCO                 "a photo of" the object's own class and the other classes
===================  ===========================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split
import torch
from torch import Tensor, nn

from trialrun.core.errors import UsageError
from trialrun.representation._pic2word_adapters import as_clip
from trialrun.representation._pic2word_baselines import mixture
from trialrun.representation._pic2word_compose import compose_features, text_only, unit
from trialrun.representation._pic2word_pictures import embed_pictures
from trialrun.representation.composed_data import Cirr, Coco, DomainPictures, FashionIq
from trialrun.representation.retrieval import (
    check_ks,
    cirr_recall,
    domain_conversion,
    fashion_iq_recall,
    paired_recall,
)


@dataclass(frozen=True)
class Scored:
    """Recalls of every arm, and what was left out.

    Parameters
    ----------
    arms : mapping
        Arm to recalls, in the form that the protocol's metric gives.
    queries : int
        Queries scored.
    dropped : int
        Queries left out because one of their pictures could not be read.
    skipped : tuple of (str, str)
        Those pictures, and why.
    """

    arms: Mapping[str, Any]
    queries: int
    dropped: int
    skipped: tuple[tuple[str, str], ...]


class _Encoded:
    """A gallery's embeddings, and where each picture that could be read now stands."""

    def __init__(
        self, clip: Any, preprocess: Any, pictures: Sequence[Any], batch_size: int
    ) -> None:
        done = embed_pictures(clip, preprocess, pictures, batch_size=batch_size)
        self.features, self.skipped = done.features, done.skipped
        self.place = {old: new for new, old in enumerate(done.kept)}

    def rows(self, queries: Sequence[tuple[int, ...]]) -> list[int]:
        """Return the queries all of whose pictures are there."""
        kept = [i for i, used in enumerate(queries) if all(p in self.place for p in used)]
        if not kept:
            first = self.skipped[0] if self.skipped else None
            told = f"; the first that could not be read: {first[0]} ({first[1]})" if first else ""
            raise UsageError(f"none of {len(queries)} queries has all of its pictures{told}")
        return kept


def _arms(
    clip: Any, mapper: nn.Module, features: Tensor, prompts: Sequence[str], text: Tensor
) -> dict[str, Tensor]:
    picture = unit(features)
    text = text.cpu().expand(len(picture), -1)
    return {
        "composed": compose_features(clip, mapper, features, prompts).cpu(),
        "image": picture,
        "text": text,
        "mixture": mixture(picture, text),
    }


def evaluate_cirr(
    clip: Any,
    preprocess: Callable[[Any], Tensor],
    mapper: nn.Module,
    data: Cirr,
    *,
    batch_size: int = 64,
    ks: Sequence[int] = (1, 5, 10, 50),
) -> Scored:
    """Score CIRR: the reference taken out of the gallery, the text arm reads the caption.

    Raises
    ------
    UsageError
        If the split has no targets, or no query has its pictures.
    """
    ks = check_ks(ks)
    if data.targets is None:
        raise UsageError("this split of CIRR has no targets: score the split val")
    clip = as_clip(clip)
    held = _Encoded(clip, preprocess, data.paths, batch_size)
    kept = held.rows(list(zip(data.references, data.targets)))
    references = [held.place[data.references[i]] for i in kept]
    targets = [held.place[data.targets[i]] for i in kept]
    text = text_only(clip, [data.captions[i] for i in kept], star="removed")
    prompts = [data.prompts[i] for i in kept]
    arms = _arms(clip, mapper, held.features[references], prompts, text)
    found = {n: cirr_recall(q, held.features, references, targets, ks) for n, q in arms.items()}
    return Scored(found, len(kept), len(data.references) - len(kept), held.skipped)


def evaluate_fashion_iq(
    clip: Any,
    preprocess: Callable[[Any], Tensor],
    mapper: nn.Module,
    garments: Sequence[FashionIq],
    *,
    batch_size: int = 64,
    ks: Sequence[int] = (10, 50),
) -> Scored:
    """Score Fashion-IQ garment by garment; the text arm reads the sentence with a literal ``*``."""
    ks, clip = check_ks(ks), as_clip(clip)
    if not garments:
        raise UsageError("garments must hold at least one, such as read_fashion_iq gives, got none")
    parts: dict[str, dict[str, Any]] = {}
    queries = dropped = 0
    skipped: list[tuple[str, str]] = []
    for data in garments:
        held = _Encoded(clip, preprocess, data.paths, batch_size)
        kept = held.rows(list(zip(data.references, data.targets)))
        prompts = [data.prompts[i] for i in kept]
        text = text_only(clip, prompts, star="literal")
        features = held.features[[held.place[data.references[i]] for i in kept]]
        targets = [held.place[data.targets[i]] for i in kept]
        for name, q in _arms(clip, mapper, features, prompts, text).items():
            parts.setdefault(name, {})[data.garment] = (q, held.features, targets)
        queries, dropped = queries + len(kept), dropped + len(data.references) - len(kept)
        skipped += held.skipped
    found = {name: fashion_iq_recall(part, ks) for name, part in parts.items()}
    return Scored(found, queries, dropped, tuple(skipped))


def evaluate_coco(
    clip: Any,
    preprocess: Callable[[Any], Tensor],
    mapper: nn.Module,
    data: Coco,
    *,
    batch_size: int = 64,
    ks: Sequence[int] = (1, 5, 10),
) -> Scored:
    """Score COCO's object composition, both ways.

    The composed arm's sentence names the object's class, so it has the help of text. Objects are
    squeezed and not cropped where ``preprocess`` can do that.
    """
    ks, clip = check_ks(ks), as_clip(clip)
    squeeze = replace(preprocess, mode="squash") if hasattr(preprocess, "mode") else preprocess  # type: ignore[type-var]
    whole = _Encoded(clip, preprocess, data.paths, batch_size)
    parts = _Encoded(clip, squeeze, data.regions, batch_size)
    kept = [i for i in range(len(data.paths)) if i in whole.place and i in parts.place]
    if not kept:
        raise UsageError("no picture of COCO could be read both whole and as an object")
    targets = whole.features[[whole.place[i] for i in kept]]
    features = parts.features[[parts.place[i] for i in kept]]
    text = text_only(clip, [data.texts[i] for i in kept], star="removed")
    arms = _arms(clip, mapper, features, [data.prompts[i] for i in kept], text)
    found = {name: paired_recall(q, targets, ks) for name, q in arms.items()}
    skipped = tuple(dict.fromkeys((*whole.skipped, *parts.skipped)))
    return Scored(found, len(kept), len(data.paths) - len(kept), skipped)


def evaluate_imagenet_r(
    clip: Any,
    preprocess: Callable[[Any], Tensor],
    mapper: nn.Module,
    data: DomainPictures,
    *,
    domains: Sequence[str] | None = None,
    real_in_gallery: bool = True,
    batch_size: int = 64,
    ks: Sequence[int] = (10, 50),
) -> Scored:
    """Score domain conversion, domain by domain; the text arm reads the prompt without its ``*``.

    Real pictures stand in the gallery as a domain of their own. Queries of a class that has no
    picture in the target domain count 0, as published.
    """
    ks, clip = check_ks(ks), as_clip(clip)
    drawn = _Encoded(clip, preprocess, data.paths, batch_size)
    photos = _Encoded(clip, preprocess, data.real_paths, batch_size)
    classes = [data.classes[i] for i in drawn.place]
    kinds = [data.domains[i] for i in drawn.place]
    own = [data.real_classes[i] for i in photos.place]
    gallery = drawn.features
    if real_in_gallery:
        gallery = torch.cat([gallery, photos.features])
        classes, kinds = classes + own, kinds + ["real"] * len(own)
    found: dict[str, dict[str, Any]] = {}
    for domain in domains or tuple(dict.fromkeys(data.domains)):
        prompt = data.prompt(domain)
        text = text_only(clip, prompt, star="removed")
        for name, q in _arms(clip, mapper, photos.features, [prompt], text).items():
            recalls = domain_conversion(q, own, domain, gallery, classes, kinds, ks)
            found.setdefault(name, {})[domain] = recalls
    for part in found.values():
        part["average"] = {k: sum(r[k] for r in part.values()) / len(part) for k in ks}
    left_out = len(data.real_paths) - len(own)
    return Scored(found, len(own), left_out, (*drawn.skipped, *photos.skipped))
