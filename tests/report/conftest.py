"""Synthetic cards and records, judged by the real judge."""

import pytest

from tests.report.makers import make_card, make_record


@pytest.fixture
def card():
    return make_card()


@pytest.fixture
def record(card):
    return make_record(card, "gain")
