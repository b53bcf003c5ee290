"""The dossier's measuring code: controls that destroy what they say, and the user's own file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from trialrun.catalogue.card import parse_card
from trialrun.claims.contract import Context, On
from trialrun.core.errors import UsageError
from trialrun.dossiers.mbml import claim
from trialrun.material.symbols import read_symbols
from trialrun.sequence.mbml import (
    KT,
    PTW,
    KTWindow,
    PTWSource,
    RandomShiftSource,
    load_predictor,
    regret,
)

QUICK = claim.TRIAL.budgets["quick"]


def on_file(tmp_path, text, form="bits", seed=0, seeds=2):
    spot = tmp_path / "material.txt"
    spot.write_text(text)
    budget = replace(QUICK, seeds=seeds)
    return Context(budget=budget, seed=seed, on=On("symbols", str(spot), {"as": form}))


def switching_bits(length):
    x = RandomShiftSource(0.01).sample(1, length, seed=3).x[0]
    return "".join(map(str, x.tolist()))


def test_the_trial_has_the_cards_claims_and_arms():
    card = parse_card(Path(claim.__file__).with_name("card.toml").read_text())
    assert {c.id: set(c.arms) for c in card.claims} == {
        name: set(arms) for name, arms in claim.TRIAL.arms.items()
    }


def test_shuffling_keeps_each_symbol_with_its_truth():
    sample = PTWSource(5).sample(30, 32, seed=0)
    mixed = claim._shuffled(sample, 0)
    tagged = [
        sorted(zip(x.tolist(), theta[:, 0].tolist(), strict=True))
        for x, theta in ((sample.x[4], sample.theta[4]), (mixed.x[4], mixed.theta[4]))
    ]
    assert tagged[0] == tagged[1]
    assert not torch.equal(sample.x, mixed.x)


def test_a_counting_predictor_is_untouched_by_a_shuffled_past():
    x = PTWSource(4).sample(5, 16, seed=0).x
    torch.testing.assert_close(claim._ReadsShuffled(KT(), 0).predict(x), KT().predict(x))
    assert not torch.equal(claim._ReadsShuffled(PTW(4), 0).predict(x), PTW(4).predict(x))


def test_forgetting_leaves_the_last_symbols_and_no_others():
    x = PTWSource(4).sample(5, 16, seed=0).x
    given = claim._Forgets(KT(), 4).predict(x)
    torch.testing.assert_close(given[:, 11], KT().predict(x[:, 7:12])[:, -1])
    torch.testing.assert_close(given, KTWindow(4).predict(x))


def test_a_file_that_switches_is_coded_shorter_and_its_shuffle_is_not(tmp_path):
    bits = {
        arm: claim.switching(on_file(tmp_path, switching_bits(8192)), arm=arm).points["value"]
        for arm in ("ptw", "kt", "ptw-shuffled", "lin", "window")
    }
    assert bits["ptw"] < bits["kt"] - 0.01
    assert bits["lin"] < bits["kt"] - 0.01
    assert bits["ptw-shuffled"] > bits["kt"]


def test_blocks_are_disjoint_and_paired(tmp_path):
    text = "01" * 200 + "0011" * 100
    first, second = (
        claim.switching(on_file(tmp_path, text, seed=seed), arm="kt") for seed in (0, 1)
    )
    assert first.n == second.n == 400
    both = claim.switching(on_file(tmp_path, text, seeds=1), arm="kt")
    assert both.n == 800


def test_long_blocks_say_that_lin_is_pruned(tmp_path, monkeypatch):
    monkeypatch.setattr("trialrun.dossiers.mbml._file.LONGEST_EXACT_LIN", 300)
    measured = [
        claim.switching(on_file(tmp_path, "01" * n), arm="lin").extra["lin_exact"]
        for n in (300, 301)
    ]
    assert measured == [1.0, 0.0]


def test_what_is_kept_loads_as_the_lines_say(tmp_path):
    ctx = on_file(tmp_path, "a b b c " * 300, form="symbols")
    folder = tmp_path / "kept"
    folder.mkdir()
    scope: dict = {}
    exec(claim.keep(ctx, folder), scope)
    predictor = scope["predictor"]
    assert predictor.settings() == load_predictor(folder).settings()
    file = read_symbols(ctx.on.path, "symbols")
    assert predictor.predict(file.x[None]).shape == (1, 1200, 3)
    assert "bits_per_symbol" in (folder / "report.json").read_text()


@pytest.mark.parametrize(
    ("text", "form", "message"),
    [
        ("", "bytes", "must hold symbols, got an empty file"),
        (" \n", "symbols", "got an empty file"),
        ("0000", "bits", "at least two different symbols, got 0 only"),
        ("0102", "bits", "only the characters 0 and 1 with --as bits, got '2' after 3 bits"),
        ("01" * 10, "bits", "at least 128 symbols, 64 for each of 2 blocks, got 20"),
        (" ".join(map(str, range(300))), "symbols", "at most 256 different symbols, got 300"),
        ("01", "words", "--as must be one of bits, bytes, symbols, got 'words'"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(tmp_path, text, form, message):
    with pytest.raises(UsageError, match=message):
        claim.check_on(on_file(tmp_path, text, form=form))


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"must be a readable file of symbols, got No such file"):
        read_symbols(tmp_path / "nothing")
    spot = tmp_path / "binary"
    spot.write_bytes(b"ab\xff")
    with pytest.raises(UsageError, match=r"must be UTF-8 text with --as bits, got the byte 0xff"):
        read_symbols(spot, "bits")
    assert read_symbols(spot).alphabet == ("0x61", "0x62", "0xff")


def test_the_untrained_control_starts_from_the_weights_that_were_trained():
    from trialrun.core.seeds import split
    from trialrun.sequence.mbml import MetaPredictor, NetShape, train_meta

    seed = split(0, "net")
    untrained = train_meta("lstm", PTWSource(3), steps=0, shape=NetShape(width=8), seed=seed)
    blank = MetaPredictor("lstm", 2, NetShape(width=8), seed=seed)
    x = np.zeros((1, 8), dtype=int)
    np.testing.assert_array_equal(untrained.predict(x), blank.predict(x))
    sample = PTWSource(3).sample(8, 8, seed=0)
    assert regret(blank, sample).average().mean > 0
