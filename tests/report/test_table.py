import json
import math
import subprocess
import sys

import pytest

from tests.report.makers import MEANS, RULES, claim_toml, make_arms, make_card, make_record
from trialrun.claims import judge
from trialrun.claims.records import sealed
from trialrun.core.intervals import Interval
from trialrun.report._layout import grid, wrap
from trialrun.report.figures import interval_text
from trialrun.report.table import COLUMNS, claim_lines, effect_lines
from trialrun.report.words import VERDICT_WORDS

SWEEP = {
    "ours": [40, 50, 60],
    "plain": [40, 40, 40],
    "rival": [41, 45, 50],
    "shuffled": [40, 40, 40],
    "nearest": [1, 2, 3],
}
POINTS = ("16", "64", "256")

# Values under which a margin of 2 gives each verdict that the judge can give.
VERDICT_ARMS = {
    judge.HOLDS: make_arms(),
    judge.DIRECTION_ONLY: make_arms({**MEANS, "ours": 65.4}, spread=0.2),
    judge.NOT_RESOLVED: make_arms({**MEANS, "ours": 64.5}, spread=4.0),
    judge.DOES_NOT_HOLD: make_arms({**MEANS, "ours": 60.0}),
    judge.BROKEN_CHECK: make_arms({**MEANS, "shuffled": 71.0}),
}


def width(text):
    """Count cells by the blocks of Unicode that hold Chinese, apart from the code under test."""
    return sum(2 if 0x2E80 <= ord(c) <= 0x9FFF or 0xFF01 <= ord(c) <= 0xFF60 else 1 for c in text)


def printed(card, claim_id, arms=None, lang="en", **changes):
    lines = claim_lines(
        card, card.claim(claim_id), make_record(card, claim_id, arms, **changes), lang=lang
    )
    return "\n".join(lines)


@pytest.mark.parametrize("verdict", VERDICT_ARMS)
def test_the_verdict_is_printed_in_capitals_and_in_chinese(verdict):
    card = make_card(claim_toml())
    arms = VERDICT_ARMS[verdict]
    english = printed(card, "paired-difference", arms)
    chinese = printed(card, "paired-difference", arms, lang="zh")
    assert f"{verdict.upper()} at this scale" in english
    assert f"{VERDICT_WORDS[verdict].zh}（在此规模下）" in chinese
    others = [word for word in judge.VERDICTS if word not in (verdict, judge.NOT_TESTED)]
    assert not any(f"{other.upper()} at" in english for other in others)


def test_a_control_that_passes_is_named_as_a_broken_check():
    card = make_card(claim_toml())
    broken = printed(card, "paired-difference", VERDICT_ARMS[judge.BROKEN_CHECK])
    sound = printed(card, "paired-difference")
    assert "PASSES: the check is broken" in broken
    assert "fails, as it must" not in broken
    assert "fails, as it must" in sound


def test_not_tested_prints_its_reason_and_no_verdict_on_the_control():
    card = make_card(claim_toml())
    text = printed(
        card, "paired-difference", verdict=judge.NOT_TESTED, reason="smoke gives no verdict"
    )
    assert "NOT TESTED" in text
    assert "smoke gives no verdict" in text
    assert "at this scale" not in text
    assert "as it must" not in text


def test_a_run_that_failed_prints_without_numbers():
    card = make_card(claim_toml())
    record = make_record(card, "paired-difference")
    lost = {"arms": {}, "judgement": None, "verdict": judge.NOT_TESTED, "reason": "it fell over"}
    lines = claim_lines(card, card.claims[0], sealed({**record, **lost}))
    assert any("it fell over" in line for line in lines)
    assert not any("[" in line and "+" in line for line in lines if "figure" not in line)


def test_a_claim_without_a_record_says_how_to_run_it():
    card = make_card(claim_toml())
    text = " ".join(" ".join(claim_lines(card, card.claims[0], None)).split())
    assert "trialrun check thing --claim paired-difference --budget quick" in text


RULE_SENTENCES = {
    "paired_difference": "ours must be above plain by more than 2 points",
    "ratio": "ours must be below 0.95 times plain",
    "noninferior": "ours must not be below plain by 1 points or more",
    "equivalent": "ours must differ from plain by less than 1.5 points, either way",
    "ordering": "ours must rise at every step along 16, 64, 256, each time by more than 0.5 points",
    "threshold": "ours must be above 50 points",
}


@pytest.mark.parametrize("kind", RULES)
def test_every_rule_is_said_in_words(kind):
    card = make_card()
    arms = make_arms(SWEEP, points=POINTS) if kind == "ordering" else None
    text = " ".join(printed(card, kind.replace("_", "-"), arms).split())
    assert RULE_SENTENCES[kind] in text
    paired = "paired over 5 seeds" in text
    assert paired is (kind != "threshold")


@pytest.mark.parametrize(("direction", "word"), [("higher", "above"), ("lower", "below")])
def test_the_rule_follows_the_direction(direction, word):
    card = make_card(claim_toml(direction=direction))
    assert f"ours must be {word} plain by more than" in printed(card, "paired-difference")


def test_every_judged_point_has_its_row():
    more = 'against = "plain"\npoints = ["64", "256"]'
    card = make_card(claim_toml(more=more))
    lines = printed(card, "paired-difference", make_arms(SWEEP, points=POINTS)).splitlines()
    rows = [line for line in lines if line.startswith("difference")]
    assert [row.split()[1] for row in rows] == ["64", "256"]


def test_points_keep_the_rules_order_when_a_record_is_read_back():
    more = 'against = "plain"\npoints = ["64", "256"]'
    card = make_card(claim_toml(more=more))
    record = make_record(card, "paired-difference", make_arms(SWEEP, points=POINTS))
    read_back = json.loads(json.dumps(record, sort_keys=True))
    claim = card.claim("paired-difference")
    for lang in ("en", "zh"):
        assert claim_lines(card, claim, read_back, lang=lang) == claim_lines(
            card, claim, record, lang=lang
        )
    assert [row.split()[0] for row in effect_lines(card, claim, read_back)] == ["64", "256"]


def test_steps_of_an_ordering_keep_its_order_when_a_record_is_read_back():
    card = make_card(claim_toml("ordering"))
    arms = make_arms(
        {name: [mean, mean + 2, mean + 4] for name, mean in MEANS.items()},
        points=["16", "64", "256"],
    )
    record = make_record(card, "ordering", arms)
    read_back = json.loads(json.dumps(record, sort_keys=True))
    rows = effect_lines(card, card.claim("ordering"), read_back)
    assert [row.split()[0] for row in rows] == ["16", "64"]


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_effects_are_given_beside_their_control_and_only_where_they_were_judged(lang):
    card = make_card(claim_toml())
    claim = card.claim("paired-difference")
    (line,) = effect_lines(card, claim, make_record(card, "paired-difference"), lang=lang)
    assert ("对照（shuffled）" if lang == "zh" else "control (shuffled)") in line
    assert line.startswith("+6.76 [+5.99, +7.54]  ")
    failed = make_record(card, "paired-difference", judgement=None)
    assert effect_lines(card, claim, failed, lang=lang) == []


def test_the_rival_is_told_apart_by_direction():
    arms = make_arms({**MEANS, "rival": 75.0})
    higher, lower = make_card(claim_toml()), make_card(claim_toml(direction="lower"))
    assert "behind rival: -" in printed(higher, "paired-difference", arms)
    assert "ahead of rival: -" in printed(lower, "paired-difference", arms)


def test_one_seed_is_said_to_give_no_interval():
    card = make_card(claim_toml())
    text = printed(card, "paired-difference", make_arms(seeds=1))
    assert "one seed, no interval" in text
    assert "inf" not in text


def test_a_changed_fingerprint_is_marked_stale():
    card = make_card(claim_toml())
    assert "\nstale " in printed(card, "paired-difference", fingerprint="0" * 16)
    assert "\nstale " not in printed(card, "paired-difference")


def test_own_material_is_named_in_place_of_the_shipped_scale():
    card = make_card(claim_toml())
    on = {"kind": "table", "name": "stations.csv", "sha256": "a", "options": {"target": "y"}}
    text = printed(card, "paired-difference", on=on)
    assert "stations.csv (table, target=y)" in text
    assert "Ring worlds" not in text


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("kind", RULES)
def test_no_line_is_wider_than_the_table(kind, lang):
    long = "a figure that goes on and on, " * 6
    card = make_card(claim_toml(kind, figure=long, id="long"), title="A very long title " * 7)
    arms = make_arms(SWEEP, points=POINTS) if kind == "ordering" else None
    lines = printed(card, "long", arms, lang=lang, reason="原因" * 80).splitlines()
    assert max(map(width, lines)) <= COLUMNS


def test_many_points_are_broken_over_several_blocks():
    points = [f"point {i}" for i in range(20)]
    means = {arm: [mean] * 20 for arm, mean in MEANS.items()}
    card = make_card(claim_toml())
    lines = printed(card, "paired-difference", make_arms(means, points=points)).splitlines()
    assert max(map(width, lines)) <= COLUMNS
    assert sum("nearest" in line for line in lines) > 1


def test_columns_stand_at_the_same_cell_beside_chinese_words():
    lines = printed(make_card(claim_toml()), "paired-difference", lang="zh").splitlines()
    rows = [line for line in lines if any(f" {arm} " in f" {line} " for arm in MEANS)]
    arms = [line for line in rows if "[" in line and "+" not in line]
    starts = {width(line[: line.index("[")]) for line in arms}
    assert len(arms) == 5
    assert len(starts) == 1


def test_a_record_cannot_steer_the_terminal():
    card = make_card(claim_toml())
    on = {"kind": "table", "name": "x\x1b[2J\x07.csv", "sha256": "a", "options": {}}
    text = printed(card, "paired-difference", on=on, reason="a\x9b31mb\r\nc")
    assert not [c for c in text if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160]


def test_wrapping_keeps_closing_punctuation_off_the_line_start():
    lines = wrap("成立成立成立成立。不成立，不成立", 16)
    assert all(width(line) <= 18 for line in lines)
    assert not any(line[0] in "。，" for line in lines)
    assert "".join(lines) == "成立成立成立成立。不成立，不成立"


def test_grid_gives_way_where_it_is_told_to():
    rows = [["name", "many words that may wrap when they must", "+1.25 [+1.00, +1.50]"]]
    lines = grid(rows, cells=50, gives_way=1)
    assert "+1.25 [+1.00, +1.50]" in lines[0]
    assert max(map(width, lines)) <= 50


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.41, -0.62, 1.44, 5), "+0.4 [-0.6, +1.4]"),
        (Interval(5.234, 5.201, 5.267, 5), "+5.234 [+5.201, +5.267]"),
        (Interval(-0.0001, -0.3, 0.3, 5), "+0.00 [-0.30, +0.30]"),
        (Interval(2.0, 2.0, 2.0, 5), "+2.00 [+2.00, +2.00]"),
        (Interval(1.5e7, 1e7, 2e7, 5), "+1.50e+07 [+1.00e+07, +2.00e+07]"),
        (Interval(0.4, -math.inf, math.inf, 1), "+0.400 (one seed, no interval)"),
    ],
)
def test_numbers_carry_the_digits_their_interval_supports(interval, text):
    assert interval_text(interval, signed=True) == text


def test_the_table_loads_no_heavy_package():
    code = (
        "import sys, trialrun.report.table; "
        "print([m for m in ('matplotlib', 'jinja2', 'rich', 'torch', 'numpy', 'nh3') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
