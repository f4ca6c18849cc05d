"""Tables come back as they were written, and what breaks their form is refused."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from sgdm_utils.metrics.tables import (
    COLUMNS,
    TableError,
    make_row,
    read_table,
    summarise,
    write_table,
)

WHO = {"study": "demo", "subject": "sub-01", "seed": 0, "model": "sgdm"}


def rows() -> list[dict]:
    eeg = WHO | {"condition": "eeg"}
    odd = WHO | {"seed": None, "model": "NA", "condition": "a, b"}
    tested = {"ci_low": 0.125, "ci_high": 0.5, "chance": 1 / 40, "p_value": 1e-4}
    return [
        make_row(**eeg, metric="ssim", value=1 / 3, n=40, transductive=True),
        make_row(**eeg, metric="top-1", value=0.25, n=40, **tested),
        make_row(**eeg, metric="lpips_alex", n=0, note="weights not available"),
        make_row(**odd, metric="x", value=-0.0, n=1),
    ]


def test_roundtrip(tmp_path):
    path = write_table(tmp_path / "new" / "retrieval.csv", rows())
    text = path.read_text()
    assert text.splitlines()[0] == (
        "study,subject,seed,model,condition,metric,value,ci_low,ci_high,n,chance,p_value,transductive"
    )
    assert text.splitlines()[1] == "demo,sub-01,0,sgdm,eeg,ssim,0.333333,,,40,,,True"
    assert text.splitlines()[3] == (
        "demo,sub-01,0,sgdm,eeg,lpips_alex (weights not available),,,,0,,,False"
    )
    assert text.splitlines()[4] == 'demo,sub-01,,NA,"a, b",x,0,,,1,,,False'
    table = read_table(path)
    assert tuple(table.columns) == COLUMNS
    assert table["value"].tolist()[:2] == [0.333333, 0.25] and math.isnan(table["value"][2])
    assert table["seed"].tolist()[:3] == [0, 0, 0] and table["seed"][3] is pd.NA
    assert table["model"][3] == "NA" and table["condition"][3] == "a, b"
    assert table["transductive"].tolist() == [True, False, False, False]
    assert table.dtypes[["value", "p_value"]].eq("float64").all() and table["n"].dtype == "int64"
    write_table(tmp_path / "again.csv", table.to_dict("records"))
    assert (tmp_path / "again.csv").read_bytes() == path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["retrieval.csv"]


def test_a_refused_table_leaves_the_old_one(tmp_path):
    path = write_table(tmp_path / "t.csv", rows())
    before = path.read_bytes()
    with pytest.raises(TableError, match="row 5: a second row for demo / sub-01 / 0 / sgdm / eeg"):
        write_table(path, [*rows(), rows()[0] | {"value": 0.9}])
    with pytest.raises(TableError, match=r"row 1: missing columns \['n'\]"):
        write_table(path, [{k: v for k, v in rows()[0].items() if k != "n"}])
    with pytest.raises(TableError, match=r"unknown columns \['unit'\]"):
        write_table(path, [rows()[0] | {"unit": "dB"}])
    with pytest.raises(TableError, match="no rows"):
        write_table(path, [])
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subject": ""}, "subject is ''"),
        ({"condition": " eeg"}, "condition is ' eeg'"),
        ({"seed": 0.0}, "seed is 0.0"),
        ({"seed": True}, "seed is True"),
        ({"n": -1}, "n is -1"),
        ({"n": None}, "n is None"),
        ({"value": "0.3"}, "value is '0.3'"),
        ({"value": np.inf}, "value is inf"),
        ({"value": math.nan}, "no value and no reason"),
        ({"value": math.nan, "note": ""}, "no value and no reason"),
        ({"value": math.nan, "note": "x", "p_value": 0.5}, "but no value"),
        ({"ci_low": 0.1}, "give both ends"),
        ({"ci_low": 0.4, "ci_high": 0.2}, "give both ends in order"),
        ({"p_value": 0.0}, "no test gives exactly 0"),
        ({"p_value": 1.5}, "p_value is 1.5"),
        ({"transductive": "no"}, "transductive is 'no'"),
    ],
)
def test_bad_cells_are_refused(change, message):
    good = WHO | {"condition": "eeg", "metric": "ssim", "value": 0.3, "n": 40}
    make_row(**good)
    with pytest.raises(TableError, match=message):
        make_row(**good | change)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("study,subject", "subject,study", "the header is"),
        ("0.333333", "a third", "line 2: could not convert"),
        ("True", "yes", "line 2: transductive is 'yes'"),
        ("demo,sub-01,0,sgdm,eeg,ssim,", "demo,", "line 2: 8 cells instead of 13"),
        ("top-1,0.25,0.125", "ssim,0.25,0.125", "a second row"),
        ("0.0001", "0", "no test gives exactly 0"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, old, new, message):
    path = write_table(tmp_path / "t.csv", rows())
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(TableError, match=message):
        read_table(path)
    with pytest.raises(FileNotFoundError, match="run the notebook"):
        read_table(tmp_path / "none.csv")


def test_summarise_repeats_with_its_seed(tmp_path):
    values = np.random.default_rng(0).random(60)
    groups = np.repeat(["sub-01", "sub-02", "sub-03"], [10, 20, 30])
    cells = WHO | {"subject": "all", "condition": "eeg", "metric": "two_way", "chance": 0.5}
    written = []
    for name in ("a.csv", "b.csv"):
        row = summarise(values, rng=np.random.default_rng(4), groups=groups, p_value=0.02, **cells)
        written.append(write_table(tmp_path / name, [row]).read_bytes())
    assert written[0] == written[1]
    assert row["n"] == 60 and row["chance"] == 0.5 and row["p_value"] == 0.02
    assert row["value"] == pytest.approx(np.mean([values[groups == g].mean() for g in set(groups)]))
    assert row["ci_low"] < row["value"] < row["ci_high"]
    with pytest.raises(ValueError, match=r"items \[0\]"):
        summarise(
            np.where(np.arange(60) == 0, np.nan, values), rng=np.random.default_rng(4), **cells
        )
