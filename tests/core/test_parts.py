import subprocess
import sys

import numpy as np
import pytest

from trialrun.core.errors import MissingExtra
from trialrun.core.extras import need
from trialrun.core.seeds import rng, split
from trialrun.core.shapes import check_axes, check_range


def test_streams_are_fixed_for_all_time():
    assert split(0, "data") == 1605858607080498671
    assert split(7, "a", 3) == 2359394068279696087
    assert rng(3, "a").random() == rng(3, "a").random()


def test_streams_differ_by_seed_name_and_number_of_names():
    seen = {split(s, *names) for s in range(50) for names in ((), ("a",), ("b",), ("a", "b"), (1,))}
    assert len(seen) == 250


@pytest.mark.parametrize("seed", [-1, 1.0, "1", True, None])
def test_a_seed_must_be_a_natural_number(seed):
    with pytest.raises(ValueError, match="seed must be a non-negative integer"):
        split(seed, "a")


def test_splitting_leaves_the_global_state_alone():
    before = np.random.get_state()[1].copy()
    rng(1, "x").random(10)
    assert (np.random.get_state()[1] == before).all()


def test_a_missing_package_names_its_extra():
    with pytest.raises(MissingExtra, match=r"pip install 'trialrun\[data\]'"):
        need("no_such_package", extra="data")


def test_an_import_error_inside_a_package_is_not_taken_for_a_missing_one(tmp_path, monkeypatch):
    (tmp_path / "half_broken.py").write_text("import no_such_package_either")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package_either") as caught:
        need("half_broken", extra="data")
    assert not isinstance(caught.value, MissingExtra)


@pytest.mark.parametrize("value", [np.zeros(3), np.zeros((1, 2, 3)), 4, "text"])
def test_a_wrong_rank_is_named_with_what_came(value):
    with pytest.raises(ValueError, match=r"x must have shape \(batch, time\), got"):
        check_axes("x", value, ("batch", "time"))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_value_out_of_range_is_named(value):
    with pytest.raises(ValueError, match="beta must be at least 0 and at most 1, got"):
        check_range("beta", value, low=0, high=1)


def test_the_light_floors_load_no_model_library():
    code = (
        "import sys, trialrun, trialrun.cli, trialrun.cli.list, trialrun.cli.check, "
        "trialrun.cli.report, trialrun.cli.show, trialrun.claims.check; "
        "heavy = {'torch', 'transformers', 'sklearn', 'pandas', 'matplotlib', 'ray'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
