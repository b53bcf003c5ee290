import pytest

from tests.claims.fakes import fake_card, fake_claim, shelve
from trialrun.claims.plan import Request


@pytest.fixture
def claim():
    return fake_claim()


@pytest.fixture
def card():
    return fake_card()


@pytest.fixture
def on_trial(monkeypatch, tmp_path):
    """Put the fake dossier on the shelf and return a maker of requests for it."""
    shelve(monkeypatch)

    def request(**more):
        more = {"claims": ("better",), "out": tmp_path / "runs", "jobs": 2, **more}
        return Request(slug="fake", **more)

    return request
