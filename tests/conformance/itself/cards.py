"""A card and a claim for the tests of the suite."""

from trialrun.catalogue import Card, Claim, Paper, Rule, Text

WORDS = Text("A sentence.", "一句话。")
PAPER = Paper("snell2017", "Prototypes", "J. Snell", 2017, "arXiv:1703.05175", "full text")
CLAIM = Claim(
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
CARD = Card("toys", "toys", "block", WORDS, WORDS, "", (), (), (PAPER,), (CLAIM,), (), ())
