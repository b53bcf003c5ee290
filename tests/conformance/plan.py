"""The plan: from cards to checks.

A card says what a method is and a specimen shows it at work; together they decide which checks
apply. A dossier that cannot be read at all gets one check, which fails with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from tests.conformance import (
    alone_checks,
    block_checks,
    docstring_checks,
    dossier_checks,
    entry_checks,
    patch_checks,
    record_checks,
)
from tests.conformance.harness import (
    ROOT,
    BlockSpecimen,
    Check,
    EstimatorSpecimen,
    FunctionSpecimen,
    PatchSpecimen,
    Specimen,
    name_of,
)
from trialrun.catalogue import Card, find_card, slugs
from trialrun.claims.plan import module_of
from trialrun.claims.units import load_trial
from trialrun.core.errors import UsageError

FLOORS = {
    "estimator": 95,
    "block": 50,
    "patch": 56,
    "function": 42,
    "agent": 44,
    "pipeline": 42,
}
"""Fewest checks that a finished method of each kind must have run: a few below what one entry, two
bad calls and one claim come to."""

Named = Iterator[tuple[str, Callable[[Path], None]]]


def _quiet(check: Callable[..., None], *args: Any) -> Callable[[Path], None]:
    return lambda _: check(*args)


def _general(specimen: Specimen) -> Named:
    for check in (
        entry_checks.same_seed_same_bits,
        entry_checks.inputs_are_left_alone,
        entry_checks.no_file_and_no_network,
        entry_checks.bad_calls_are_given,
    ):
        yield check.__name__, _quiet(check, specimen)
    for index, (pattern, _) in enumerate(specimen.bad):
        words = re.sub(r"[^A-Za-z0-9]+", "_", pattern).strip("_")[:30]
        yield (
            f"bad_call_is_refused_{index}_{words}",
            _quiet(entry_checks.bad_call_is_refused, specimen, index),
        )
    for index, (words, _) in enumerate(getattr(specimen, "invariances", ())):
        plain = re.sub(r"[^A-Za-z0-9]+", "_", words).strip("_")
        yield (
            f"invariance_{index}_{plain}",
            _quiet(entry_checks.invariance_holds, specimen, index),
        )


def _block(specimen: BlockSpecimen) -> Named:
    for check in (
        block_checks.keeps_dtype,
        block_checks.one_is_a_row_of_many,
        block_checks.eval_is_deterministic,
    ):
        yield check.__name__, _quiet(check, specimen)
    if specimen.differentiable:
        check = block_checks.gradients_are_finite
        yield check.__name__, _quiet(check, specimen)
    if specimen.save is not None:
        yield "round_trip", partial(entry_checks.round_trip, specimen)
    else:
        yield "state_round_trip", partial(block_checks.state_round_trip, specimen)
    if specimen.compiles:
        yield "compiles", _quiet(block_checks.compiles, specimen)


def _estimator(specimen: EstimatorSpecimen) -> Named:
    # Only estimators need scikit-learn, and it takes a second to load.
    from tests.conformance import estimator_checks

    for check in (
        estimator_checks.stores_what_it_is_given,
        estimator_checks.fit_learns,
        estimator_checks.expected_failures_are_known,
    ):
        yield check.__name__, _quiet(check, specimen)
    yield "round_trip", partial(entry_checks.round_trip, specimen)
    for label, run in estimator_checks.library_checks(specimen):
        yield f"sklearn.{label}", _quiet(run)


def _patch(specimen: PatchSpecimen) -> Named:
    for check in (
        patch_checks.keeps_its_settings,
        patch_checks.identity_changes_nothing,
        patch_checks.attaching_changes_something,
        patch_checks.leaving_restores,
        patch_checks.detaching_restores,
        patch_checks.exception_restores,
        patch_checks.attaching_twice_is_refused,
        patch_checks.detaching_unattached_is_refused,
        patch_checks.other_hosts_are_untouched,
        patch_checks.weights_stay_named,
        patch_checks.generate_works,
    ):
        yield check.__name__, _quiet(check, specimen)
    yield (
        patch_checks.reload_gives_the_same.__name__,
        partial(patch_checks.reload_gives_the_same, specimen),
    )


_BY_FORM: dict[type, Callable[[Any], Named]] = {
    FunctionSpecimen: lambda _: iter(()),
    BlockSpecimen: _block,
    EstimatorSpecimen: _estimator,
    PatchSpecimen: _patch,
}


def _of_docstrings(card: Card, entry: str) -> Named:
    for check in (
        docstring_checks.first_lines_are_imperative,
        docstring_checks.parameters_are_described,
        docstring_checks.errors_are_described,
        docstring_checks.examples_run,
    ):
        yield check.__name__, lambda _, c=check: c(entry_checks.resolve(entry))
    yield (
        "paper_is_named",
        lambda _: docstring_checks.paper_is_named(card, entry_checks.resolve(entry)),
    )


def _of_modules(card: Card) -> Named:
    for module in sorted({entry.partition(":")[0] for entry in card.entry}):
        for blocked in alone_checks.scenarios(card, module):
            if blocked:
                what = blocked[0] if len(blocked) == 1 else "all_extras"
                yield (
                    f"missing_package_is_explained_{module.rpartition('.')[2]}_{what}",
                    _quiet(alone_checks.missing_package_is_explained, card, module, blocked),
                )


def _of_the_dossier(card: Card, folder: Path, specimens: tuple[Specimen, ...]) -> Named:
    yield "finished", _quiet(dossier_checks.finished, card)
    yield "extras_exist", _quiet(dossier_checks.extras_exist, card, ROOT)
    yield "card_is_bilingual", _quiet(dossier_checks.card_is_bilingual, card)
    yield "one_specimen_per_entry", _quiet(dossier_checks.one_specimen_per_entry, card, specimens)
    for lang in ("en", "zh"):
        for check in (
            dossier_checks.notes_answer_the_questions,
            dossier_checks.notes_are_in_their_language,
        ):
            yield f"{check.__name__}_{lang}", _quiet(check, folder, lang)
        yield (
            f"notes_point_to_the_verdicts_{lang}",
            _quiet(dossier_checks.notes_point_to_the_verdicts, folder, card.slug, lang),
        )
    for check in (
        dossier_checks.twin_shares_nothing,
        dossier_checks.twin_is_compared,
        dossier_checks.benchmark_exists,
    ):
        yield check.__name__, _quiet(check, card, ROOT)
    yield "specimens_are_small", _quiet(alone_checks.specimens_are_small, card.slug)


def _with_trial(check: Callable[..., None], card: Card, *more: Any) -> Callable[[Path], None]:
    return lambda _: check(card, load_trial(module_of(card.slug)), *more)


def _of_claims(card: Card, path: Path) -> Iterator[tuple[str, str, Callable[[Path], None]]]:
    for check in (
        dossier_checks.no_orphan_claims,
        dossier_checks.preparations_are_used,
        dossier_checks.budgets_exist,
        dossier_checks.own_material_is_checked,
    ):
        yield "claims", check.__name__, _with_trial(check, card)
    yield "claims", "smoke_runs", partial(record_checks.smoke_runs, card)
    yield "records", "records_are_whole", _quiet(record_checks.records_are_whole, path)
    for claim in card.claims:
        yield claim.id, "no_orphan_arms", _with_trial(dossier_checks.no_orphan_arms, card, claim.id)
        for budget in ("quick", "full"):
            for check in (
                record_checks.record_exists,
                record_checks.record_fits_the_card,
                record_checks.verdict_follows_from_the_values,
                record_checks.record_is_fresh,
            ):
                yield (
                    claim.id,
                    f"{check.__name__}_{budget}",
                    _quiet(check, path, card, claim, budget),
                )
        yield claim.id, "control_fails", _quiet(record_checks.control_fails, path, card, claim)


def _of_entries(card: Card, specimens: tuple[Specimen, ...]) -> Iterator[tuple[str, str, Any]]:
    for entry in card.entry:
        part = entry.rpartition(":")[2]
        lives = _quiet(entry_checks.entry_lives_in_its_family, card, entry)
        yield part, "entry_lives_in_its_family", lives
        for name, run in _of_docstrings(card, entry):
            yield part, name, run
    for specimen in specimens:
        for name, run in (*_general(specimen), *_BY_FORM[type(specimen)](specimen)):
            yield name_of(specimen), name, run


def _failing(error: Exception) -> Callable[[Path], None]:
    def run(_: Path) -> None:
        raise error

    return run


def _returning(_: Path) -> None:
    """Pass: what the check's name says was done when the plan was made."""


def checks_of(slug: str) -> list[Check]:
    """Return every check of one method, in a fixed order and with names that differ."""
    folder = Path(str(files("trialrun"))) / "dossiers" / slug
    try:
        card = find_card(slug)
    except UsageError as error:
        return [Check(slug, "dossier", "card_can_be_read", _failing(error))]
    specimens, readable = (), _returning
    try:
        specimens = tuple(import_module(f"trialrun.dossiers.{slug}.specimen").SPECIMENS)
        found = list(_of_entries(card, specimens))
    except Exception as error:  # one broken dossier must not keep the others from being checked
        found, readable = [], _failing(error)
    found += [
        ("dossier", "card_can_be_read", _returning),
        ("dossier", "specimens_can_be_read", readable),
        *(("dossier", name, run) for name, run in _of_modules(card)),
        *(("dossier", name, run) for name, run in _of_the_dossier(card, folder, specimens)),
        *_of_claims(card, folder / "records.jsonl"),
    ]
    return list(_told_apart(slug, found))


def _told_apart(slug: str, found: Any) -> Iterator[Check]:
    taken: dict[tuple[str, str], int] = {}
    for part, name, run in found:
        taken[part, name] = taken.get((part, name), 0) + 1
        number = taken[part, name]
        label = name if number == 1 else f"{name}_{number}"
        yield Check(slug, part, label, run, slow=name == "compiles")


@cache
def whole_plan() -> tuple[Check, ...]:
    """Return the checks of every method there is."""
    return tuple(check for slug in slugs() for check in checks_of(slug))


def kind_of(slug: str) -> tuple[str, bool]:
    """Return a method's kind and whether it is a draft, as far as its card can be read."""
    try:
        card = find_card(slug)
    except UsageError:
        return "unreadable", False
    return card.kind, card.draft
