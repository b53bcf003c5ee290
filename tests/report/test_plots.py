import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.report.makers import MEANS, RULES, claim_toml, make_arms, make_card, make_record
from tests.report.test_table import POINTS, SWEEP
from trialrun.claims.records import sealed
from trialrun.core.errors import MissingExtra, UsageError
from trialrun.report.plots import inline_svg, plot_claim

pytest.importorskip("matplotlib")


def case(kind):
    card = make_card()
    claim = card.claim(kind.replace("_", "-"))
    arms = make_arms(SWEEP, points=POINTS) if kind == "ordering" else make_arms()
    return card, claim, make_record(card, claim.id, arms)


@pytest.mark.parametrize("kind", RULES)
def test_a_plot_is_the_same_bytes_every_time_and_valid_xml(kind, tmp_path):
    card, claim, record = case(kind)
    for name in ("a.svg", "b.svg"):
        plot_claim(card, claim, record, tmp_path / name, "zh")
    first = (tmp_path / "a.svg").read_bytes()
    assert first == (tmp_path / "b.svg").read_bytes()
    root = ElementTree.fromstring(first)
    words = " ".join(root.itertext())
    assert all(arm in words for arm in record["arms"])
    assert "按域关系加权" in words


def test_the_rule_and_its_margin_are_drawn_with_the_claim():
    card, claim, record = case("paired_difference")
    words = " ".join(ElementTree.fromstring(inline_svg(card, claim, record, key="k")).itertext())
    assert "the rule asks for above 2 points" in words
    assert "shuffled − plain" in words


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_and_a_collapsing_control_can_be_drawn(seeds):
    more = 'against = "plain"\npoints = ["beyond"]'
    card = make_card(claim_toml(direction="lower", more=more))
    means = {arm: [1.0, 1.2] for arm in MEANS} | {"plain": [1.0, 4.0], "shuffled": [1.0, 1e6]}
    arms = make_arms(means, points=("inside", "beyond"), seeds=seeds, spread=0.001)
    record = make_record(card, "paired-difference", arms)
    ElementTree.fromstring(inline_svg(card, card.claims[0], record, key="k"))


def test_a_png_is_written_where_the_name_asks_for_it(tmp_path):
    plot_claim(*case("ratio"), tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"written as \.svg or \.png, got 'a\.pdf'"):
        plot_claim(*case("ratio"), tmp_path / "a.pdf")


def test_a_record_without_measurements_has_no_plot(tmp_path):
    card, claim, record = case("ratio")
    empty = sealed({**record, "arms": {}, "judgement": None, "verdict": "not tested"})
    with pytest.raises(UsageError, match="no measurements"):
        plot_claim(card, claim, empty, tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())


def test_inline_plots_share_no_ids_and_keep_settings_as_they_were():
    import matplotlib

    # Reading the backend's setting would load pyplot by itself.
    names = [name for name in matplotlib.rcParams if name != "backend"]
    before = {name: matplotlib.rcParams[name] for name in names}
    ids = []
    for key in ("one", "two"):
        root = ElementTree.fromstring(inline_svg(*case("ratio"), key=key))
        ids.append({e.get("id") for e in root.iter() if e.get("id")})
    assert ids[0]
    assert not ids[0] & ids[1]
    assert {name: matplotlib.rcParams[name] for name in names} == before


def test_drawing_leaves_pyplot_alone():
    code = (
        "import sys; from tests.report.test_plots import case; "
        "from trialrun.report.plots import inline_svg; "
        "inline_svg(*case('ratio'), key='k'); print('matplotlib.pyplot' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.strip() == "False"


def test_a_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"trialrun\[plots\]"):
        plot_claim(*case("ratio"), tmp_path / "a.svg")
