"""Smallest working instances of pic2word, for the conformance suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from trialrun.core.seeds import rng, split
from trialrun.dossiers.specimen import BlockSpecimen, FunctionSpecimen
from trialrun.representation.pic2word import (
    Clip,
    ImageToWord,
    WordTraining,
    as_clip,
    compose,
    fit_image_to_word,
)
from trialrun.representation.retrieval import recall_at_k
from trialrun.representation.tiny_clip import TinyClip, WordTokenizer

_HOME = "trialrun.representation.pic2word"
_WIDTH = 16


def _clip() -> Clip:
    words = WordTokenizer(("a", "photo", "drawing", "of"), context_length=8)
    model = TinyClip(
        words.vocab_size, size=8, embed_dim=_WIDTH, width=8, layers=1, heads=2,
        context_length=8, channels=(4,),
    )  # fmt: skip
    return as_clip(model.eval(), words)


def _mapper(seed: int) -> ImageToWord:
    return ImageToWord(_WIDTH, 8, hidden=6, seed=seed).eval()


def _draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(split(seed, "x")))


def _fitted(inputs: dict[str, Any], **settings: Any) -> list[torch.Tensor]:
    mapper = _mapper(0)
    training = WordTraining(epochs=2, batch_size=4, lr=1e-2)
    prompt = settings.pop("prompt", "a photo of")
    fit = fit_image_to_word(
        mapper, _clip(), inputs["images"], prompt=prompt, training=training, **settings
    )
    return [fit.losses, *(weight.detach() for weight in mapper.parameters())]


def _composed(inputs: dict[str, Any], prompt: str = "a drawing of *") -> torch.Tensor:
    return compose(_clip(), None, _mapper(0), inputs["image"], prompt)


def _far_and_near(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    together = _composed({"image": _draw(seed, 3, 3, 8, 8)})
    alone = [_composed({"image": one}) for one in _draw(seed, 3, 3, 8, 8)]
    return together, torch.stack(alone)


def _table(seed: int) -> dict[str, Any]:
    generator = rng(seed, "table")
    relevant = generator.random((6, 9)) < 0.3
    relevant[:, 0] = True
    return {"scores": generator.normal(size=(6, 9)), "relevant": relevant}


def _recalls(inputs: Any) -> np.ndarray:
    return np.array(list(recall_at_k(inputs["scores"], inputs["relevant"], (1, 3, 9)).values()))


def _turned(seed: int) -> tuple[np.ndarray, np.ndarray]:
    held = _table(seed)
    back = {name: value[:, ::-1].copy() for name, value in held.items()}
    return _recalls(held), _recalls(back)


def _save(mapper: ImageToWord, folder: Path) -> None:
    mapper.save(folder / "mapper.safetensors")


SPECIMENS = (
    BlockSpecimen(
        entry=f"{_HOME}:ImageToWord",
        make=_mapper,
        inputs=lambda seed: {"features": _draw(seed, 5, _WIDTH)},
        run=lambda block, inputs: block(inputs["features"]),
        bad=(
            ("image_width must be at least 1", lambda: ImageToWord(0, 8)),
            ("dropout must be in", lambda: ImageToWord(4, 8, dropout=1.0)),
            ("features must have 16 numbers each", lambda: _mapper(0)(torch.zeros(2, 3))),
            ("is not a file: name a mapper", lambda: ImageToWord.load("nowhere.safetensors")),
        ),
        batched=("features",),
        save=_save,
        load=lambda folder: ImageToWord.load(folder / "mapper.safetensors"),
        differentiable=True,
    ),
    FunctionSpecimen(
        entry=f"{_HOME}:fit_image_to_word",
        inputs=lambda seed: {"images": _draw(seed, 9, _WIDTH)},
        run=_fitted,  # type: ignore[arg-type]
        bad=(
            ("at least 2 pictures are needed", lambda: _fitted({"images": _draw(0, 1, _WIDTH)})),
            ("images must be a loader or embeddings", lambda: _fitted({"images": _draw(0, 4, 3)})),
            (
                "takes its word at the end and no",
                lambda: _fitted({"images": _draw(0, 4, _WIDTH)}, prompt="a photo of *"),
            ),
            (
                "embeddings must be finite",
                lambda: _fitted({"images": torch.full((4, _WIDTH), torch.nan)}),
            ),
        ),
    ),
    FunctionSpecimen(
        entry=f"{_HOME}:compose",
        inputs=lambda seed: {"image": _draw(seed, 3, 3, 8, 8)},
        run=_composed,  # type: ignore[arg-type]
        bad=(
            (
                r"holds no '\*', but 1 image came",
                lambda: _composed({"image": _draw(0, 3, 8, 8)}, "a drawing of"),
            ),
            (
                r"holds 2 '\*', but 1 image came",
                lambda: _composed({"image": _draw(0, 3, 8, 8)}, "a * drawing of *"),
            ),
            ("pixels must have shape", lambda: _composed({"image": _draw(0, 2, 1, 8, 8)})),
        ),
        invariances=(("queries made together are those made alone", _far_and_near),),
    ),
    FunctionSpecimen(
        entry="trialrun.representation.retrieval:recall_at_k",
        inputs=_table,
        run=_recalls,
        bad=(
            ("ks must be whole numbers from 1 on", lambda: recall_at_k([[1.0]], [[True]], (0,))),
            ("every query needs a relevant item", lambda: recall_at_k([[1.0]], [[False]])),
            ("scores must be finite", lambda: recall_at_k([[np.nan]], [[True]])),
        ),
        invariances=(("the gallery's order does not matter", _turned),),
    ),
)
