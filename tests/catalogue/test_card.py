import pytest

from trialrun.catalogue import find_card, parse_card, read_notes, slugs
from trialrun.core.errors import UsageError

CARD = """
slug = "toy"
family = "sequence"
kind = "function"
title = { en = "Toy", zh = "玩具" }
idea = { en = "An idea.", zh = "一个想法。" }
digest = "002"
entry = ["trialrun.sequence.toy:toy"]
extras = ["sequence"]

[[papers]]
key = "one2024toy"
title = "A toy"
authors = "One"
year = 2024
id = "arXiv:1"
read = "digest"

[[claims]]
id = "better"
title = { en = "Better.", zh = "更好。" }
says = { en = "It is better.", zh = "它更好。" }
figure = ""
figure_read = "none"
paper_scale = { en = "large", zh = "大" }
here_scale = { en = "small", zh = "小" }
ours = "ours"
baseline = "plain"
rival = "simple"
control = "shuffled"
rule = { kind = "paired_difference", metric = "score", unit = "points", direction = "higher", \
margin = 1, against = "plain" }

[[not_tested]]
what = { en = "Size.", zh = "规模。" }
why = { en = "No machine.", zh = "没有机器。" }

[[sources]]
name = "own"
licence = "Apache-2.0"
where = "here"
"""


def test_a_whole_card_is_read():
    card = parse_card(CARD)
    assert card.claim("better").arms == ("ours", "plain", "simple", "shuffled")
    assert card.claim("better").rule.margin == 1.0
    assert card.title["zh"] == "玩具"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('control = "shuffled"', 'contrl = "shuffled"', "unknown key 'contrl'"),
        ('control = "shuffled"\n', "", "lacks control"),
        ('control = "shuffled"', 'control = "ours"', "control must differ from ours"),
        ('control = "shuffled"', 'control = ""', "must each name an arm"),
        ('rival = "simple"', 'rival = ""', "must each name an arm"),
        ('kind = "function"', 'kind = "gadget"', "kind must be one of estimator"),
        ('direction = "higher"', 'direction = "up"', "direction must be one of higher, lower"),
        ("margin = 1", "margin = -1", "must not be negative"),
        ("margin = 1", 'margin = "1"', "must be of type float"),
        ("margin = 1", "margin = nan", "must be finite"),
        ('against = "plain"', 'against = ""', "against must name the arm"),
        ('kind = "paired_difference"', 'kind = "threshold"', "against does not go with threshold"),
        ('kind = "paired_difference"', 'kind = "ordering"', "against does not go with ordering"),
        ("margin = 1", "confidence = 2.0", "confidence must be in"),
        ('zh = "更好。"', 'zh = ""', "zh must be a sentence"),
        (', zh = "更好。"', "", "keys en and zh"),
        ("year = 2024", "year = true", "must be of type int"),
        (
            'figure = ""\nfigure_read = "none"',
            'figure = "77"\nfigure_read = "memory"',
            "a figure from memory must not stand",
        ),
        ('slug = "toy"', 'slug = "toy', "not valid TOML"),
        ("[[not_tested]]", "[[nt]]", "unknown key 'nt'"),
    ],
)
def test_each_fault_of_a_card_is_named(old, new, words):
    assert CARD.count(old) >= 1
    with pytest.raises(UsageError, match=words):
        parse_card(CARD.replace(old, new, 1))


def test_two_claims_may_not_share_an_id():
    claim = CARD[CARD.index("[[claims]]") : CARD.index("[[not_tested]]")]
    with pytest.raises(UsageError, match="claim ids must differ"):
        parse_card(CARD + claim)


def test_an_unknown_slug_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"'rerop'.*did you mean rerope"):
        find_card("rerop")
    with pytest.raises(UsageError, match="there are d3g"):
        find_card("zzzzzzzz")


def test_notes_of_an_unknown_language_are_refused():
    with pytest.raises(UsageError, match="--lang en or --lang zh"):
        read_notes(slugs()[0], "fr")
