"""The user's table: what is a feature, which task it is, and every fault by name."""

import numpy as np
import pandas as pd
import pytest

from trialrun.core.errors import UsageError
from trialrun.material.tables import read_domain_table

ROWS = pd.DataFrame(
    {
        "region": ["north", "south", "north", "east", "south", "east"],
        "rain": [1.0, 2, 3, 4, 5, 6],
        "wet": [True, False, True, True, False, False],
        "y": [0.5, 1.5, 2.5, 3.5, 4.5, 5.5],
    }
)
META = pd.DataFrame(
    {"region": ["south", "west", "east", "north"], "lat": [-1, 0, 2, 3], "lon": [9.0, 8, 7, 6]}
)


def write(folder, rows=ROWS, meta=META, kind="csv"):
    table, metadata = folder / f"rows.{kind}", folder / f"meta.{kind}"
    for frame, path in ((rows, table), (meta, metadata)):
        frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    return {"path": table, "target": "y", "domain": "region", "metadata": metadata}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_metadata_rows_follow_the_sorted_labels_and_extra_ones_are_left_out(tmp_path, kind):
    table = read_domain_table(**write(tmp_path, kind=kind))
    assert table.labels.tolist() == ["east", "north", "south"]
    assert table.metadata.tolist() == [[2, 7], [3, 6], [-1, 9]]
    assert table.features == ("rain", "wet")
    np.testing.assert_array_equal(table.X[:, 1], ROWS["wet"])
    assert table.task == "regression"


@pytest.mark.parametrize(
    ("y", "told", "task"),
    [
        (["a", "b"] * 3, None, "classification"),
        ([True, False] * 3, None, "classification"),
        ([0, 1, 2, 0, 1, 2], None, "classification"),
        ([0.0, 1.5] * 3, None, "regression"),
        ([0, 1] * 3, "regression", "regression"),
        ([0.0, 1.0] * 3, "classification", "classification"),
    ],
)
def test_the_task_follows_the_target_unless_told(tmp_path, y, told, task):
    table = read_domain_table(**write(tmp_path, ROWS.assign(y=y)), task=told)
    assert table.task == task


def test_labels_that_are_numbers_in_both_files_meet_whatever_their_type(tmp_path):
    rows = ROWS.assign(region=[1, 2, 1, 3, 2, 3])
    meta = META.assign(region=[2.0, 4.0, 3.0, 1.0])
    assert read_domain_table(**write(tmp_path, rows, meta)).metadata[:, 0].tolist() == [3, -1, 2]


@pytest.mark.parametrize(
    ("rows", "meta", "change", "message"),
    [
        (ROWS, META, {"target": "z"}, r"no column 'z' \(named by --target\): it has region, rain"),
        (ROWS, META, {"domain": "y2"}, r"rows.csv has no column 'y2' \(named by --domain\)"),
        (ROWS, META.drop(columns="region"), {}, "meta.csv has no column 'region'"),
        (ROWS, META, {"target": "region"}, "--target and --domain must be two columns"),
        (
            ROWS.assign(rain=[1, 2, None, 4, 5, 6]), META, {},
            r"rows.csv has 1 empty cell\(s\) in column 'rain', first in data row 3",
        ),
        (
            ROWS.assign(rain=[1, 2, 3, np.inf, 5, 6]), META, {},
            "infinite number in column 'rain', data row 4",
        ),
        (
            ROWS.assign(rain=list("abcdef")), META, {},
            "the feature column 'rain' of type .*, expected numbers: encode it",
        ),
        (ROWS.drop(columns=["rain", "wet"]), META, {}, "rows.csv has no feature columns"),
        (ROWS, META[["region"]], {}, "meta.csv has no metadata columns"),
        (ROWS.assign(y=None), META, {}, r"6 empty cell\(s\) in column 'y'"),
        (ROWS.assign(region=[None, *"bcdef"]), META, {}, r"column 'region', first in data row 1"),
        (ROWS, META[:3], {}, "meta.csv has no row for domain 'north' of"),
        (ROWS, pd.concat([META, META[:1]]), {}, "meta.csv has several rows for domain 'south'"),
        (ROWS.assign(y="yes"), META, {}, "one class only in column 'y', yes: at least two"),
        (ROWS.assign(y="yes"), META, {"task": "regression"}, "needs a numeric target, got column"),
        (ROWS, META, {"task": "ranking"}, "--task must be one of classification, regression"),
        (ROWS, META, {"least_domains": 4}, r"3 domain\(s\) in column 'region', expected at least"),
        (ROWS[:0], META, {}, "has a header and no rows: expected one row per example"),
    ],
)  # fmt: skip
def test_every_fault_is_one_sentence_with_its_place(tmp_path, rows, meta, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_domain_table(**{**write(tmp_path, rows, meta), **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "t.csv is an empty file"),
        (
            "t.csv",
            b"\xff\xfe\x00bad",
            r"t.csv is no text in UTF-8 \(byte 1\): save the table as CSV",
        ),
        ("t.csv", b'a,b\n"1,2\n', "cannot be read as csv"),
        ("t.parquet", b"PAR1", "cannot be read as parquet"),
        ("t.xlsx", b"x", "must be a .csv or .parquet file, got the ending '.xlsx'"),
        ("t.csv", None, "is not a file"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, name, content, message):
    told = write(tmp_path)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_domain_table(**{**told, "path": tmp_path / name})


def test_a_continuous_target_is_no_class(tmp_path):
    table, metadata = tmp_path / "t.csv", tmp_path / "m.csv"
    rows = "\n".join(f"{d},{x},{x + 0.5}" for d in "abcdef" for x in range(4))
    table.write_text(f"d,x,y\n{rows}\n")
    metadata.write_text("d,lat\n" + "\n".join(f"{d},{i}" for i, d in enumerate("abcdef")) + "\n")
    told = {"target": "y", "domain": "d", "metadata": metadata, "task": "classification"}
    with pytest.raises(UsageError, match="--task classification needs labels"):
        read_domain_table(table, **told)
