import pytest

from trialrun.catalogue import Claim, Rule, Text

WORDS = Text("a sentence", "一句话")


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
