"""Checks of docstrings, on sound and clumsy ones."""

from dataclasses import replace

import pytest

from tests.conformance import docstring_checks
from tests.conformance.harness import Broken, Unwritten
from tests.conformance.itself import toys
from tests.conformance.itself.cards import CARD


def _clumsy(x, depth):
    """Returns the thing."""


def _incomplete(x, depth):
    """Return the thing.

    Parameters
    ----------
    x : int

    Examples
    --------
    >>> 1 + 1
    3
    """


def test_a_sound_docstring_passes_and_its_faults_are_found():
    for check in (
        docstring_checks.first_lines_are_imperative,
        docstring_checks.parameters_are_described,
        docstring_checks.errors_are_described,
        docstring_checks.examples_run,
    ):
        check(toys.centre)
    docstring_checks.paper_is_named(CARD, toys.centre)
    for check, thing, said in [
        (docstring_checks.first_lines_are_imperative, _clumsy, "open with an order"),
        (docstring_checks.parameters_are_described, _incomplete, "'depth'"),
        (docstring_checks.errors_are_described, _incomplete, "no Raises"),
        (docstring_checks.examples_run, _incomplete, "fails"),
        (docstring_checks.examples_run, _clumsy, "no runnable example"),
    ]:
        with pytest.raises(Broken, match=said):
            check(thing)
    with pytest.raises(Broken, match="names none"):
        docstring_checks.paper_is_named(CARD, _clumsy)
    with pytest.raises(Unwritten, match="papers"):
        docstring_checks.paper_is_named(replace(CARD, papers=()), toys.centre)


@pytest.mark.parametrize(
    ("line", "good"),
    [
        ("Return the mean.", True),
        ("Process a batch.", True),
        ("Bias the logits.", True),
        ("Returns the mean.", False),
        ("The mean.", False),
        ("Computing the mean.", False),
        ("Return the mean", False),
        ("return the mean.", False),
    ],
)
def test_orders_are_told_from_descriptions(line, good):
    assert docstring_checks.is_imperative(line) is good
