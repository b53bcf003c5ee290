"""The embeddings of a folder's pictures, as a file and as something to search."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from trialrun.representation import _pic2word_stack  # noqa: F401

# isort: split
import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trialrun.core.errors import UsageError
from trialrun.representation._pic2word_compose import unit
from trialrun.representation._pic2word_pictures import INDEX
from trialrun.representation._pic2word_run import check_whole
from trialrun.representation._ranking import DECIMALS

FORMAT = "trialrun-picture-index-1"
_TABLE, _TOLD = INDEX


class Hit(NamedTuple):
    """One picture found."""

    rank: int
    score: float
    path: Path


@dataclass(frozen=True)
class PictureIndex:
    """Embeddings of a folder's pictures.

    Parameters
    ----------
    root : Path
        The folder.
    names : tuple of str
        Pictures, relative to it.
    features : Tensor (pictures, embed)
        Not normalised, so that a mapper can be trained on them.
    model : str
    pretrained : str or None
        What `load_clip` was asked for.
    weights : str
        Digest of the model's weights.
    skipped : tuple of (str, str)
        Pictures that could not be read, and why.
    """

    root: Path
    names: tuple[str, ...]
    features: Tensor
    model: str
    pretrained: str | None
    weights: str
    skipped: tuple[tuple[str, str], ...] = ()

    def save(self, folder: str | Path) -> None:
        """Write the index to ``folder``, both files whole or not at all.

        Raises
        ------
        UsageError
            If ``folder`` is a file.
        """
        place = Path(folder)
        if place.exists() and not place.is_dir():
            raise UsageError(f"{place} is a file: name a folder to write the index to")
        place.mkdir(parents=True, exist_ok=True)
        told = {
            "format": FORMAT, "root": str(self.root), "model": self.model,
            "pretrained": self.pretrained, "weights": self.weights, "names": self.names,
            "skipped": self.skipped,
        }  # fmt: skip
        text = json.dumps(told, ensure_ascii=False, indent=1).encode()  # fails before it writes
        parts = [place / f"{name}.part" for name in (_TABLE, _TOLD)]
        save_file({"features": self.features.contiguous()}, parts[0])
        parts[1].write_bytes(text)
        for part in parts:
            part.replace(part.with_suffix(""))

    @classmethod
    def load(cls, folder: str | Path) -> PictureIndex:
        """Read what `save` wrote.

        Raises
        ------
        UsageError
            If ``folder`` holds no index, or a damaged one.
        """
        place = Path(folder)
        try:
            told = json.loads((place / _TOLD).read_text(encoding="utf-8"))
            features = load_file(place / _TABLE)["features"]
            if told["format"] != FORMAT or len(told["names"]) != len(features):
                raise KeyError("format or number of pictures")
            return cls(
                Path(told["root"]), tuple(told["names"]), features, told["model"],
                told["pretrained"], told["weights"], tuple((n, w) for n, w in told["skipped"]),
            )  # fmt: skip
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(
                f"{place} holds no index: make one with trialrun index FOLDER --out {place}"
            ) from error
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise UsageError(f"{place} holds a damaged index, make it anew: {error}") from error

    @cached_property
    def _table(self) -> Tensor:
        return unit(self.features)

    def search(
        self, query: Float[Tensor, embed], *, top: int = 12, without: Sequence[str | Path] = ()
    ) -> tuple[Hit, ...]:
        """Return the ``top`` pictures for a query vector, best first.

        Pictures ``without`` (those asked with) are left out. Ties go by name.

        Raises
        ------
        ValueError
            If ``top`` is below 1, or the query is not finite or of another width.
        """
        check_whole("top", top, low=1)
        if not bool(torch.isfinite(query).all()):
            raise UsageError("query must be finite, got numbers that are not")
        if query.shape[-1] != self.features.shape[1]:
            raise UsageError(
                f"query must have {self.features.shape[1]} numbers as the index has, got "
                f"{query.shape[-1]}"
            )
        out = {Path(path).resolve() for path in without}
        scores = (self._table @ unit(query.cpu())).numpy()
        best = np.round(scores, DECIMALS)
        wanted = min(top + len(out), len(best))
        # Only what can be among the first is sorted; stable, so that ties go by name.
        chosen = np.flatnonzero(best >= np.partition(best, -wanted)[-wanted])
        hits: list[Hit] = []
        for i in chosen[np.argsort(-best[chosen], kind="stable")].tolist():
            path = self.root / self.names[i]
            if path.resolve() not in out:
                hits.append(Hit(len(hits) + 1, float(scores[i]), path))
            if len(hits) == top:
                break
        return tuple(hits)
