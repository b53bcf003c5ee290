from dataclasses import replace

import pytest

from trialrun.catalogue import Accepts, Card, Claim, Rule, Text
from trialrun.claims import check
from trialrun.claims import fingerprint as prints

WORDS = Text("a sentence", "一句话")
MODULE = "tests.claims.fake_trial"


@pytest.fixture
def claim():
    return Claim(
        id="better",
        title=WORDS,
        says=WORDS,
        figure="",
        figure_read="none",
        paper_scale=WORDS,
        here_scale=WORDS,
        ours="ours",
        baseline="plain",
        rival="rival",
        control="control",
        rule=Rule("paired_difference", "score", "points", "higher", 1.0, "plain"),
    )


@pytest.fixture
def card(claim):
    claims = tuple(replace(claim, id=name) for name in ("better", "shared", "lost"))
    return Card(
        slug="fake",
        family="sequence",
        kind="function",
        title=WORDS,
        idea=WORDS,
        digest="000",
        entry=(),
        extras=(),
        papers=(),
        claims=claims,
        not_tested=(),
        sources=(),
        accepts=(Accepts("table", ("csv",), WORDS, ("better",)),),
    )


@pytest.fixture
def on_trial(card, monkeypatch, tmp_path):
    """Put the fake dossier on the shelf and return a maker of requests for it."""
    monkeypatch.setattr(check, "find_card", lambda slug: card)
    monkeypatch.setattr(check, "module_of", lambda slug: MODULE)
    monkeypatch.setattr(prints, "_closure", lambda start: ())

    def request(**more):
        more = {"claims": ("better",), "out": tmp_path / "runs", "jobs": 2, **more}
        return check.Request(slug="fake", **more)

    return request
