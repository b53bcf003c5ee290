"""Measures what NTKEval's claims speak of; the card holds the rules.

The two preparations train a host each and leave kernels; arms read them. With ``--model`` the
kernels are the user's model's, estimated by mixture draws in place of exact sums.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from trialrun.blocks.bytelm import save_model
from trialrun.claims.contract import Context, Measurement, Trial
from trialrun.dossiers.ntkeval import _own
from trialrun.dossiers.ntkeval._errors import ANSWER_TOKENS, SIZES, relative_errors, save_truth
from trialrun.dossiers.ntkeval.sizes import BUDGETS, sizes_of
from trialrun.dossiers.ntkeval.worlds import (
    END,
    HIDDEN,
    TOLD,
    Cells,
    make_hidden_host,
    make_skills,
    make_tokenizer,
    make_told_host,
)
from trialrun.evaluation.ntkeval import KernelResult, NTKEval, Skill

PART_OF_THE_WAY = 0.4
GUESSING = 0.13
"""Probabilities of a right answer at which a told host's training stops. At the lower one it knows
what an answer looks like and guesses: one in seven is right."""

KERNELS = {False: "kernel.json", True: "kernel-random-answers.json"}


def _skills(ctx: Context, cells: Cells, *, random_answers: bool) -> dict[tuple[str, str], Skill]:
    sizes = sizes_of(ctx)
    return make_skills(
        cells, train=sizes.train, test=sizes.test, seed=ctx.seed, random_answers=random_answers
    )


def _probe(ctx: Context, host: Any, cells: Cells, *, random_answers: bool) -> NTKEval:
    return NTKEval(
        host,
        _skills(ctx, cells, random_answers=random_answers),
        estimator="exact",
        tokenizer=make_tokenizer(),
        max_new_tokens=ANSWER_TOKENS,
        seed=ctx.seed,
    )


def _prepare_own(ctx: Context, folder: Path, how: str) -> None:
    for random_answers, name in KERNELS.items():
        _own.measure(ctx, how=how, random_answers=random_answers).to_json(folder / name)


def _prepare_told(ctx: Context, folder: Path) -> None:
    if ctx.model is not None:
        _prepare_own(ctx, folder, "tuning")
        return
    sizes = sizes_of(ctx)
    host = _told_host(ctx, PART_OF_THE_WAY)
    for random_answers, name in KERNELS.items():
        probe = _probe(ctx, host, TOLD, random_answers=random_answers)
        probe.kernel(sizes.step).to_json(folder / name)
    guessing = _told_host(ctx, GUESSING)
    save_model(guessing, folder / "host")
    skill = _skills(ctx, TOLD, random_answers=False)["add", "infix"]
    save_truth(guessing, skill, sizes.long_step, folder)


def _told_host(ctx: Context, wanted: float) -> Any:
    sizes = sizes_of(ctx)
    return make_told_host(
        sizes.told_shape,
        sizes.told,
        most=sizes.told_rounds,
        wanted=wanted,
        seed=ctx.seed,
        device=ctx.device,
    )


def _prepare_hidden(ctx: Context, folder: Path) -> None:
    if ctx.model is not None:
        _prepare_own(ctx, folder, "in context")
        return
    sizes = sizes_of(ctx)
    host = make_hidden_host(
        sizes.hidden_shape,
        sizes.hidden,
        shots=sizes.shots + 1,
        seed=ctx.seed,
        device=ctx.device,
    )
    for random_answers, name in KERNELS.items():
        probe = _probe(ctx, host, HIDDEN, random_answers=random_answers)
        probe.kernel_icl(sizes.shots, separator=END).to_json(folder / name)


def _error(ctx: Context, *, arm: str, sizes: tuple[float, ...]) -> Measurement:
    budget = sizes_of(ctx)
    points = relative_errors(
        ctx.prepared("told"),
        arm=arm,
        sizes=sizes,
        repeats=budget.repeats,
        samples=budget.samples,
        seed=ctx.seed,
        device=ctx.device,
    )
    return Measurement(points, n=budget.repeats * budget.test * budget.samples)


def _share(ctx: Context, *, prepared: str, part: str, random_answers: bool = False) -> Measurement:
    kernel = KernelResult.from_json(ctx.prepared(prepared) / KERNELS[random_answers])
    split = kernel.anova()
    effect = {"skill": split.skill, "format": split.form, "cell": split.cell}[part]
    return Measurement.of(
        split.signed_share(part),
        n=sum(change.shape[1] for change in kernel.changes),
        effect=effect.mean,
        effect_se=effect.se,
        mean_change=float(kernel.mean.mean()),
        right_before=float(kernel.before.mean()),
        rest=split.shares["rest"],
    )


def _check_on(ctx: Context) -> None:
    if ctx.model is not None:
        _own.check_model(ctx)


def _keep(ctx: Context, folder: Path) -> str:
    for how, name in (("tuning", "tuning.json"), ("in context", "in_context.json")):
        _own.measure(ctx, how=how, random_answers=False).to_json(folder / name)
    return (
        "from trialrun.evaluation.ntkeval import KernelResult\n"
        f"kernel = KernelResult.from_json({str(folder / 'tuning.json')!r})\n"
        "kernel.specificity(), kernel.anova(), kernel.plot('kernel.png')"
    )


def _errors(*arms: str, sizes: tuple[float, ...]) -> dict[str, Any]:
    return {arm: partial(_error, arm=arm, sizes=sizes) for arm in arms}


TRIAL = Trial(
    budgets=BUDGETS,
    arms={
        "sample-efficiency": _errors(
            "importance",
            "independent",
            "self-normalised",
            "shuffled-weights",
            "mixture",
            "always-zero",
            sizes=SIZES[:2],
        ),
        "large-updates": _errors(
            "mixture", "independent", "self-normalised", "importance", sizes=SIZES
        ),
        "tuning-format": {
            "format": partial(_share, prepared="told", part="format"),
            "skill": partial(_share, prepared="told", part="skill"),
            "cell": partial(_share, prepared="told", part="cell"),
            "format-random-answers": partial(
                _share, prepared="told", part="format", random_answers=True
            ),
        },
        "icl-skill": {
            "skill": partial(_share, prepared="hidden", part="skill"),
            "format": partial(_share, prepared="hidden", part="format"),
            "cell": partial(_share, prepared="hidden", part="cell"),
            "skill-random-answers": partial(
                _share, prepared="hidden", part="skill", random_answers=True
            ),
        },
    },
    prepare={"told": _prepare_told, "hidden": _prepare_hidden},
    needs={
        "sample-efficiency": ("told",),
        "large-updates": ("told",),
        "tuning-format": ("told",),
        "icl-skill": ("hidden",),
    },
    check_on=_check_on,
    keep=_keep,
)
