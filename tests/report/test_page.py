import re
import sys
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from tests.report.makers import MEANS, RULES, claim_toml, make_arms, make_card, make_record
from tests.report.test_table import POINTS, SWEEP
from trialrun.claims.records import append_record, sealed
from trialrun.core.errors import UsageError
from trialrun.report.entries import OWN_RUN, SHIPPED
from trialrun.report.page import Entries, build_report, collect, make_entry

ATTACK = '<script>alert("x")</script><img src=https://evil.example/x.png onerror=alert(1)>'
NOTES = {
    "en": f"# Notes\n\nWords {ATTACK}\n\n![pic](https://evil.example/y.png)\n\n"
    "[bad](javascript:alert(1)) [good](https://example.org)\n",
    "zh": f"# 笔记\n\n文字 {ATTACK}\n",
}


class Page(HTMLParser):
    """Collects tags with their attributes, text, and checks that tags are balanced."""

    VOID = ("meta", "input", "br", "hr", "img", "link")

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def named(self, *names):
        return [attrs for tag, attrs in self.tags if tag in names]


def entries_of(card, *records, notes=NOTES, origin=SHIPPED):
    entry, problems = make_entry(card, notes, [(record, origin) for record in records])
    return Entries((entry,), tuple(problems))


def written(entries, tmp_path, lang="both"):
    return build_report(entries, tmp_path / "report.html", lang=lang).read_text(encoding="utf-8")


def three_methods():
    methods = []
    for slug in ("one", "two", "three"):
        card = make_card(*map(claim_toml, ("paired_difference", "ratio", "ordering")), slug=slug)
        sweep = make_arms(SWEEP, points=POINTS)
        records = [
            make_record(card, claim.id, sweep if claim.id == "ordering" else None, budget=budget)
            for claim in card.claims
            for budget in ("quick", "full")
        ]
        methods += entries_of(card, *records).methods
    return Entries(tuple(methods))


@pytest.fixture
def hostile():
    words = ATTACK.replace('"', '\\"')
    card = make_card(claim_toml(title=words, figure=words, metric=f"{words} $x^{{$"), title=words)
    on = {"kind": "table", "name": ATTACK, "sha256": "a", "options": {"target": ATTACK}}
    arms = make_arms()
    return entries_of(
        card,
        make_record(card, "paired-difference", arms, reason=ATTACK, commit=ATTACK),
        make_record(card, "paired-difference", arms, on=on, versions={ATTACK: ATTACK}),
    )


@pytest.mark.parametrize("lang", ["en", "zh", "both"])
def test_nothing_in_cards_records_or_notes_becomes_markup(hostile, lang, tmp_path):
    page = Page(written(hostile, tmp_path, lang))
    assert not page.named("script", "img", "iframe", "object", "link", "embed", "form")
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    assert 'alert("x")' in "".join(page.words)
    assert not [a for a in page.named("a") if a["href"].startswith("javascript")]


def test_the_page_loads_nothing(tmp_path):
    text = written(three_methods(), tmp_path)
    page = Page(text)
    assert not [attrs for _, attrs in page.tags if "src" in attrs or "srcset" in attrs]
    others = [attrs["href"] for tag, attrs in page.tags if tag != "a" and "href" in attrs]
    assert others
    assert all(href.startswith("#") for href in others)
    assert not re.search(r"url\((?!#)|@import", text)
    policy = next(m for m in page.named("meta") if "http-equiv" in m)
    assert policy["content"].startswith("default-src 'none'")


def test_three_methods_with_plots_stay_small_and_ids_are_unique(tmp_path):
    text = written(three_methods(), tmp_path)
    page = Page(text)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(page.named("svg")) == 9
    assert len(text.encode()) < 1_500_000
    assert len(set(ids)) == len(ids)
    inner = [a["href"][1:] for a in page.named("a", "use") if a["href"].startswith("#")]
    assert set(inner) <= set(ids)


def test_the_same_records_give_the_same_page(tmp_path):
    assert written(three_methods(), tmp_path) == written(three_methods(), tmp_path)


def test_headings_go_down_by_single_steps(tmp_path):
    page = Page(written(three_methods(), tmp_path))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_one_language_leaves_the_other_out(tmp_path):
    english = written(three_methods(), tmp_path, "en")
    chinese = written(three_methods(), tmp_path, "zh")
    assert "成立" not in english
    assert "fails, as it must" not in chinese
    assert '<html lang="zh">' in chinese
    assert "show-zh" not in re.sub("<style>.*?</style>", "", english, flags=re.DOTALL)


@pytest.mark.parametrize("kind", RULES)
def test_every_rule_kind_has_its_sentence_and_numbers(kind, tmp_path):
    card = make_card(claim_toml(kind))
    arms = make_arms(SWEEP, points=POINTS) if kind == "ordering" else None
    record = make_record(card, card.claims[0].id, arms)
    text = written(entries_of(card, record), tmp_path, "en")
    rows = record["judgement"]["ours"]["estimates"].values()
    assert all(f"{row['mean']:.3f}"[:4].removesuffix(".") in text for row in rows)
    assert "Rule, fixed before the run" in text


def test_the_record_that_says_most_comes_first():
    card = make_card(claim_toml())
    quick = make_record(card, "paired-difference")
    stale = make_record(card, "paired-difference", budget="full", fingerprint="0" * 16)
    smoke = make_record(card, "paired-difference", budget="smoke", verdict="not tested")
    claim = entries_of(card, smoke, stale, quick).methods[0].claims[0]
    assert [shown.record["budget"] for shown in claim.records] == ["quick", "full", "smoke"]


def test_the_newest_record_of_a_budget_is_shown_wherever_it_lies():
    card = make_card(claim_toml())
    old = make_record(card, "paired-difference", finished="2026-01-01T00:00:00+00:00")
    new = make_record(card, "paired-difference", finished="2026-02-01T00:00:00+00:00")
    entry, _ = make_entry(card, {}, [(new, OWN_RUN), (old, SHIPPED)])
    (shown,) = entry.claims[0].records
    assert shown.record["finished"].startswith("2026-02")
    assert shown.origin == OWN_RUN


def test_own_material_stands_apart(tmp_path):
    card = make_card(claim_toml())
    own = make_record(card, "paired-difference", model="some-model")
    entries = entries_of(card, own, make_record(card, "paired-difference"))
    claim = entries.methods[0].claims[0]
    assert [shown.record["model"] for shown in claim.records] == [None]
    assert [shown.record["model"] for shown in claim.own] == ["some-model"]
    assert "On your own material" in written(entries, tmp_path, "en")
    assert "some-model" in written(entries, tmp_path, "en")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 99}, "has format 99"),
        ({"claim": "gone"}, "no such claim any more"),
        ({"arms": {"ours": {}}}, "lacks what a record holds"),
    ],
)
def test_a_record_that_cannot_be_shown_is_named_at_the_top(change, words, tmp_path):
    card = make_card(claim_toml())
    record = sealed({**make_record(card, "paired-difference"), **change})
    entries = entries_of(card, record)
    assert len(entries.problems) == 1
    text = written(entries, tmp_path, "en")
    assert text.index(words) < text.index("Overview")
    assert "no verdict yet" in text


def test_torn_and_edited_lines_are_named(tmp_path):
    path = tmp_path / "records.jsonl"
    card = make_card(claim_toml())
    append_record(path, make_record(card, "paired-difference"))
    path.write_text(path.read_text().replace('"seconds": 4.2', '"seconds": 4.3') + '{"half')
    entries = collect([], [path, tmp_path / "absent.jsonl"])
    assert any("does not match its checksum" in said for said in entries.problems)
    assert any("is torn" in said for said in entries.problems)
    assert any("absent.jsonl is not a records file" in said for said in entries.problems)


def test_a_stale_record_says_how_to_run_it_again(tmp_path):
    card = make_card(claim_toml())
    record = make_record(card, "paired-difference", fingerprint="0" * 16)
    fresh = make_record(card, "paired-difference")
    mark = "has changed since this was measured"
    assert mark in written(entries_of(card, record), tmp_path, "en")
    assert mark not in written(entries_of(card, fresh), tmp_path, "en")


def test_without_matplotlib_the_page_says_how_to_get_plots(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    card = make_card(claim_toml())
    text = written(entries_of(card, make_record(card, "paired-difference")), tmp_path, "en")
    assert "pip install &#39;trialrun[plots]&#39;" in text
    assert not Page(text).named("svg")


def test_a_page_without_records_or_methods_still_reads(tmp_path):
    assert "No method was chosen" in written(Entries(()), tmp_path, "en")
    assert "not run yet" in written(entries_of(make_card(claim_toml())), tmp_path, "en")


def test_a_value_that_is_not_finite_is_shown_as_a_dash(tmp_path):
    card = make_card(claim_toml(more='against = "plain"\npoints = ["inside"]'))
    arms = make_arms({arm: [mean, mean] for arm, mean in MEANS.items()}, points=("inside", "out"))
    arms["shuffled"]["out"][0] = float("inf")
    text = written(entries_of(card, make_record(card, "paired-difference", arms)), tmp_path, "en")
    assert "–" in Page(text).words


def test_the_old_page_stays_when_the_new_one_cannot_be_built(tmp_path):
    target = tmp_path / "report.html"
    target.write_text("old")
    with pytest.raises(UsageError, match="en, zh or both"):
        build_report(Entries(()), target, lang="de")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
