"""Plan a check: which claims, on which device and material, and the units that make it up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trialrun.catalogue import Card, Claim, find_card
from trialrun.claims.contract import Budget, Context, On, Trial
from trialrun.claims.units import Unit, load_trial
from trialrun.core.errors import MissingExtra, NotRunnable, UsageError
from trialrun.core.extras import need

_LEAST = {"seeds": 1, "first_seed": 0, "unit_seconds": 1, "unit_megabytes": 1, "jobs": 1}
BUDGETS = ("smoke", "quick", "full", "gpu", "paper")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to check and how. ``record_to`` names records files beside the run folder's own."""

    slug: str
    budget: str = "quick"
    claims: tuple[str, ...] = ()
    seeds: int | None = None
    first_seed: int | None = None
    unit_seconds: float | None = None
    unit_megabytes: int | None = None
    on: On | None = None
    model: str | None = None
    engine: str = "local"
    jobs: int | None = None
    resume: bool = False
    out: Path = Path("trialrun-runs")
    record_to: tuple[Path, ...] = ()

    @property
    def overrides(self) -> dict[str, Any]:
        """Return the budget's settings that the user changed."""
        names = ("seeds", "first_seed", "unit_seconds", "unit_megabytes")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def module_of(slug: str) -> str:
    """Return the name of a dossier's claim module."""
    return f"trialrun.dossiers.{slug}.claim"


def choose_device(budget: str) -> str:
    """Return the device of a budget.

    Raises
    ------
    NotRunnable
        If the budget is ``gpu`` and no GPU is at hand.
    """
    if budget != "gpu":
        return "cpu"
    if not need("torch", extra="all").cuda.is_available():
        raise NotRunnable("the gpu budget needs a CUDA GPU and none is at hand: use --budget full")
    return "cuda"


def _check_numbers(request: Request) -> None:
    for name, least in _LEAST.items():
        value = getattr(request, name)
        if value is not None and not value >= least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def _budget_of(trial: Trial, request: Request) -> Budget:
    if request.budget not in trial.budgets:
        known = ", ".join(trial.budgets)
        reason = f"{request.slug} has no budget {request.budget!r}: choose one of {known}"
        raise NotRunnable(reason) if request.budget in BUDGETS else UsageError(reason)
    return replace(trial.budgets[request.budget], **request.overrides)


def _chosen_claims(card: Card, request: Request) -> tuple[Claim, ...]:
    if not card.claims:
        raise NotRunnable(f"{card.slug} is a draft without claims: write its card and claim.py")
    chosen = tuple(card.claim(c) for c in request.claims) or card.claims
    if request.on is None and request.model is None:
        return chosen
    kind = request.on.kind if request.on is not None else "model"
    for accepts in card.accepts:
        if accepts.kind == kind:
            usable = tuple(c for c in chosen if c.id in accepts.claims)
            if usable:
                return usable
            can = ", ".join(accepts.claims)
            raise UsageError(f"{card.slug} checks {can} on a {kind}: choose one with --claim")
    raise UsageError(f"{card.slug} does not take a {kind} of your own: see trialrun show")


def _units(
    trial: Trial, claims: Sequence[Claim], seeds: Sequence[int]
) -> tuple[list[Unit], list[Unit]]:
    first: dict[Unit, None] = {}
    arms: list[Unit] = []
    for seed in seeds:
        for claim in claims:
            for arm in claim.arms:
                names = steps_needed(trial, claim.id, arm)
                first.update({Unit("", name, seed): None for name in names})
                arms.append(Unit(claim.id, arm, seed))
    return list(first), arms


def steps_needed(trial: Trial, claim_id: str, arm: str) -> tuple[str, ...]:
    """Return the names of the preparation steps that an arm waits for."""
    return trial.needs.get(f"{claim_id}/{arm}", trial.needs.get(claim_id, ()))


@dataclass(frozen=True)
class Plan:
    """A request with all that was found out before the first unit runs."""

    card: Card
    trial: Trial
    claims: tuple[Claim, ...]
    request: Request
    budget: Budget
    device: str
    first: list[Unit]
    arms: list[Unit]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Return the seeds of the run, in order."""
        return self.budget.all_seeds


def _load(card: Card) -> Trial:
    try:
        return load_trial(module_of(card.slug))
    except ModuleNotFoundError as error:
        if isinstance(error, MissingExtra) or str(error.name).startswith("trialrun"):
            raise
        raise MissingExtra(
            f"{error.name} is needed to check {card.slug} and is not installed: "
            f"run pip install 'trialrun[{','.join(card.extras)}]'"
        ) from error


def make_plan(request: Request) -> Plan:
    """Look at everything that can be wrong before anything is written.

    Raises
    ------
    UsageError
        If the request, or the user's own material, is not what it must be.
    NotRunnable
        If this machine lacks a package or a GPU.
    """
    card = find_card(request.slug)
    _check_numbers(request)
    claims = _chosen_claims(card, request)
    trial = _load(card)
    budget = _budget_of(trial, request)
    device = choose_device(request.budget)
    if trial.check_on is not None and (request.on is not None or request.model is not None):
        trial.check_on(
            Context(
                budget=budget,
                seed=budget.first_seed,
                device=device,
                on=request.on,
                model=request.model,
            )
        )
    first, arms = _units(trial, claims, budget.all_seeds)
    return Plan(card, trial, claims, request, budget, device, first, arms)
