"""Errors of the estimators against exact sums, after changes of a known size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trialrun.blocks.bytelm import load_model
from trialrun.core.seeds import rng, split
from trialrun.dossiers.ntkeval.worlds import make_tokenizer
from trialrun.evaluation.ntkeval import (
    Draws,
    Example,
    Lesson,
    NTKEval,
    RowDraws,
    Skill,
    estimate,
    left_untouched,
)

SIZES = (0.005, 0.05, 0.5, 1.0)
"""How far answers move, in nats: the mean over prompts of KL(after | before)."""
ANSWER_TOKENS = 2
_LARGEST_SCALE = 8.0
_HALVINGS = 14
_BATCH_TOKENS = 65536


@dataclass(frozen=True)
class Shift:
    """A training function that moves the weights by a given displacement times ``scale``."""

    by: Mapping[str, Tensor]
    scale: float

    def __call__(self, model: Any, _lesson: Lesson) -> None:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.add_(self.by[name].to(weight.device), alpha=self.scale)


def displacement(model: Any, train: Any, lesson: Lesson) -> dict[str, Tensor]:
    """Return how a training function moves the weights; the model is left as it was."""
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    with left_untouched(model):
        train(model, lesson)
        after = {name: w.detach().clone() for name, w in model.named_parameters()}
    return {name: (after[name] - before[name]).cpu() for name in before}


@torch.no_grad()
def answer_laws(model: Any, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p of the first answer token, and of the second after every first one."""
    first = model(input_ids=prompts).logits[:, -1].double().log_softmax(1)
    count, size = first.shape
    token = torch.arange(size, device=prompts.device).repeat(count)[:, None]
    longer = torch.cat([prompts.repeat_interleave(size, 0), token], dim=1)
    second = model(input_ids=longer).logits[:, -1].double().log_softmax(1)
    return first, second.view(count, size, size)


def divergence(after: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor], end: int) -> float:
    """Return the mean over prompts of KL(after | before) for answers of at most two tokens."""
    first, second = after[0].exp(), after[1].exp()
    later = (second * (after[1] - before[1])).sum(2)
    later[:, end] = 0.0  # an answer that has ended has no second token
    return float((first * (after[0] - before[0] + later)).sum(1).mean())


def find_scale(
    model: Any, by: Mapping[str, Tensor], prompts: Tensor, size: float, end: int
) -> float:
    """Return how far along a displacement answers have moved by ``size`` nats, by bisection."""
    before = answer_laws(model, prompts)

    def moved(scale: float) -> float:
        with left_untouched(model):
            Shift(by, scale)(model, None)  # type: ignore[arg-type]
            return divergence(answer_laws(model, prompts), before, end)

    low, high = 0.0, 1.0
    while moved(high) < size:
        low, high = high, 2 * high
        if high > _LARGEST_SCALE:
            return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if moved(middle) < size else (low, middle)
    return (low + high) / 2


def save_truth(model: Any, skill: Skill, train: Any, folder: Path) -> None:
    """Leave in ``folder`` a displacement, its scale for every size, and the exact change there."""
    tokenizer = make_tokenizer()
    probe = NTKEval(
        model,
        {(skill.name, skill.form): skill},
        estimator="exact",
        tokenizer=tokenizer,
        max_new_tokens=ANSWER_TOKENS,
    )
    by = displacement(model, train, probe.lesson(skill.label))
    ids = [tokenizer(e.prompt)["input_ids"] for e in skill.test]
    prompts = torch.tensor(ids, device=model.device)
    found = {}
    for size in SIZES:
        scale = find_scale(model, by, prompts, size, tokenizer.eos_token_id)
        kernel = probe.kernel(Shift(by, scale))
        before = probe.right_before()
        found[str(size)] = {
            "scale": scale,
            "change": float(kernel.mean[0, 0]),
            "before": before.tolist(),
            "after": (before + kernel.changes[0][0]).tolist(),
        }
    save_file(by, folder / "displacement.safetensors")
    examples = [[e.prompt, e.answer] for e in skill.test]
    (folder / "truth.json").write_text(json.dumps({"sizes": found, "test": examples}), "utf-8")


def relative_errors(
    folder: Path,
    *,
    arm: str,
    sizes: tuple[float, ...],
    repeats: int,
    samples: int,
    seed: int,
    device: str,
) -> dict[str, float]:
    """Return an estimator's root mean square error in exact s.d. of the independent one."""
    model = load_model(folder / "host", device=device)
    by = load_file(folder / "displacement.safetensors")
    kept = json.loads((folder / "truth.json").read_text("utf-8"))
    test = [Example(prompt, answer) for prompt, answer in kept["test"]]
    skill = Skill("asked", test[:1], test)
    both = arm in ("mixture", "independent")
    found = {}
    for size in sizes:
        truth = kept["sizes"][str(size)]
        train, wrong = Shift(by, truth["scale"]), []
        for repeat in range(repeats):
            name = "mixture" if both else "importance"
            probe = NTKEval(
                model,
                {"asked": skill},
                samples=samples,
                estimator=name,
                tokenizer=make_tokenizer(),
                max_new_tokens=ANSWER_TOKENS,
                batch_tokens=_BATCH_TOKENS,
                seed=split(seed, "repeat", repeat) % 2**32,
            )
            made = (
                0.0 if arm == "always-zero" else _estimate(arm, probe.draws("asked", train), seed)
            )
            wrong.append(made - truth["change"])
        spread = independent_spread(truth["before"], truth["after"], samples)
        found[str(size)] = float(np.sqrt(np.mean(np.square(wrong)))) / spread
    return found


def independent_spread(before: list[float], after: list[float], samples: int) -> float:
    """Return the standard deviation of the difference of two accuracies, half the draws each."""
    p, q = np.array(before), np.array(after)
    variance = (p * (1 - p)) / (samples - samples // 2) + (q * (1 - q)) / (samples // 2)
    return float(np.sqrt(variance.sum())) / len(p)


def _estimate(arm: str, draws: RowDraws, seed: int) -> float:
    if arm != "shuffled-weights":
        return float(estimate(arm, *draws).change.mean())
    base = draws.base
    order = rng(seed, "shuffle").permutation(base.ratio.size)
    ratio = base.ratio.ravel()[order].reshape(base.ratio.shape)
    mixed = Draws(base.before, base.before + ratio, base.correct)
    return float(estimate("importance", mixed, None).change.mean())
