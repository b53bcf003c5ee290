"""A made-up dossier for tests of the engine and of the command line."""

from trialrun.catalogue import Accepts, Card, Claim, Rule, Text
from trialrun.claims import check, plan, records
from trialrun.claims import fingerprint as prints
from trialrun.cli import check as command

WORDS = Text("a sentence", "一句话")
MODULE = "tests.claims.fake_trial"


def fake_claim(name="better"):
    rule = Rule("paired_difference", "score", "points", "higher", 1.0, "plain")
    arms = {"ours": "ours", "baseline": "plain", "rival": "rival", "control": "control"}
    texts = dict.fromkeys(("title", "says", "paper_scale", "here_scale"), WORDS)
    return Claim(id=name, figure="", figure_read="none", rule=rule, **arms, **texts)


def fake_card():
    table = Accepts("table", ("csv", "parquet"), WORDS, ("better",), ("target",), ("task",))
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
        claims=tuple(fake_claim(name) for name in ("better", "shared", "lost")),
        not_tested=(),
        sources=(),
        accepts=(table,),
    )


def shelve(patch):
    """Put the made-up dossier on the shelf, through a pytest monkeypatch, and return its card."""
    card = fake_card()
    for module in (plan, command, records):
        patch.setattr(module, "find_card", lambda slug: card)
    for module in (check, plan):
        patch.setattr(module, "module_of", lambda slug: MODULE)
    patch.setattr(prints, "_closure", lambda start: ())
    return card
