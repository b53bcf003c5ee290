"""The two kernel claims on a model of the user's own, with questions from reasoning-gym."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from trialrun.claims.contract import Context
from trialrun.core.errors import NotRunnable, UsageError
from trialrun.core.extras import need
from trialrun.core.seeds import rng, split
from trialrun.dossiers.ntkeval.sizes import sizes_of
from trialrun.evaluation.ntkeval import Example, KernelResult, LoRAStep, NTKEval, Skill
from trialrun.material.packs import PACKS, require_pack
from trialrun.material.reasoning import FORMATS, load_reasoning

OPERATIONS = ("add", "subtract")
ANSWER_TOKENS = 8
BETWEEN = "\n\n"


def first_number(text: str) -> str:
    """Return the first whole number in a text, with its sign; empty where there is none.

    Examples
    --------
    >>> first_number(" The answer is -3, or 4"), first_number("none")
    ('-3', '')
    """
    found = re.search(r"-?\d+", text)
    return found[0] if found else ""


def right_number(answer: str, example: Example) -> bool:
    """Tell whether an answer's first number is the right one."""
    return first_number(answer) == example.answer.strip()


def where_is(name: str) -> str:
    """Return a folder or hub id; a pack's name becomes its folder."""
    return str(require_pack(name)) if name in PACKS else name


def check_model(ctx: Context) -> None:
    """Raise unless ``--model`` names a language model with an end token, and the gym is there."""
    assert ctx.model is not None
    need("reasoning_gym", extra="data")
    need("peft", extra="evaluation")
    where = where_is(ctx.model)
    try:
        config = AutoConfig.from_pretrained(where)
        tokenizer = AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError) as error:
        raise NotRunnable(
            f"no model could be read from {where!r}: give a folder saved by transformers with its "
            f"tokenizer, or a hub id that can be reached from here"
        ) from error
    if getattr(config, "is_encoder_decoder", False):
        raise UsageError(
            f"--model must be a decoder alone, and {config.model_type} has an encoder: choose a "
            f"causal language model"
        )
    if tokenizer.eos_token_id is None:
        raise UsageError(
            f"--model {where}: its tokenizer has no end token: set eos_token in its "
            f"tokenizer_config.json"
        )


def make_cells(ctx: Context, *, random_answers: bool) -> dict[tuple[str, str], Skill]:
    """Return two operations in two formats; wrong answers are other problems' of the cell."""
    own = sizes_of(ctx).own
    made = {}
    for operation in OPERATIONS:
        for form in FORMATS:
            seed = split(ctx.seed, "own") % 2**32
            problems = load_reasoning(operation, form, count=own.train + own.test, seed=seed)
            examples = [Example(p.prompt, p.answer) for p in problems]
            shown = examples[: own.train]
            if random_answers:
                shown = _with_others_answers(shown, split(ctx.seed, "wrong", operation))
            made[operation, form] = Skill(operation, shown, examples[own.train :], form)
    return made


def _with_others_answers(examples: list[Example], seed: int) -> list[Example]:
    draw, mixed = rng(seed), []
    for example in examples:
        others = [e.answer for e in examples if e.answer != example.answer]
        wrong = others[int(draw.integers(len(others)))] if others else " 0"
        mixed.append(Example(example.prompt, wrong))
    return mixed


def make_probe(ctx: Context, *, random_answers: bool) -> NTKEval:
    """Load the user's model and return the probe of its four cells."""
    assert ctx.model is not None
    transformers_logging.disable_progress_bar()
    where = where_is(ctx.model)
    model: Any = AutoModelForCausalLM.from_pretrained(
        where, dtype=torch.float32 if ctx.device == "cpu" else torch.bfloat16
    )
    return NTKEval(
        model.to(ctx.device),
        make_cells(ctx, random_answers=random_answers),
        right_number,
        sizes_of(ctx).own.samples,
        tokenizer=AutoTokenizer.from_pretrained(where),
        max_new_tokens=ANSWER_TOKENS,
        seed=split(ctx.seed, "probe") % 2**32,
    )


def measure(ctx: Context, *, how: str, random_answers: bool) -> KernelResult:
    """Return the user's model's kernel by tuning or in context."""
    probe, own = make_probe(ctx, random_answers=random_answers), sizes_of(ctx).own
    if how == "in context":
        return probe.kernel_icl(own.shots, separator=BETWEEN)
    return probe.kernel(LoRAStep(rate=1e-3, steps=own.steps, batch=8))
