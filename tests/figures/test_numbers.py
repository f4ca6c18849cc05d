"""Numbers for people: no digits that say nothing, no p-value of zero, chance in every table."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sgdm_utils.figures import numbers
from sgdm_utils.metrics.tables import make_row

WHO = {"study": "demo", "subject": "all", "seed": 0, "model": "sgdm", "n": 40}


def test_numbers_are_written_for_people():
    assert [
        numbers.number(x) for x in (0.12345, 3, np.int64(4), True, float("nan"), None, "x")
    ] == [*("0.123", "3", "4", "yes", "", "", "x")]
    assert [numbers.p_text(p) for p in (0.00009, 0.012, 1.0, float("nan"))] == [
        *("< 0.001", "0.012", "1.000", "")
    ]


def test_an_interval_that_is_none_is_empty_and_minus_zero_is_zero():
    assert numbers.interval(0.1, 0.25) == "0.100 to 0.250"
    assert numbers.interval(float("nan"), float("nan")) == ""
    row = {"value": -0.0001, "ci_low": -0.004, "ci_high": 0.126}
    assert numbers.with_interval(row) == "0.00 [0.00, 0.13]"


def test_every_condition_has_its_row_and_chance_stands_below():
    cells = {"ci_low": 0.4, "ci_high": 0.6, "value": 0.5}
    rows = pd.DataFrame(
        [
            make_row(**WHO, **cells, condition="shuffled_eeg", metric="two_way", chance=0.5),
            make_row(**WHO, **cells, condition="eeg", metric="two_way", chance=0.5),
            make_row(**WHO, **cells, condition="eeg", metric="ssim"),
        ]
    )
    table = numbers.condition_table(rows, ["two_way", "ssim"])
    assert table["condition"].tolist() == ["EEG", "shuffled EEG", "chance"]
    assert table["two way"].tolist() == ["0.50 [0.40, 0.60]"] * 2 + ["0.50"]
    assert table["SSIM"].tolist() == ["0.50 [0.40, 0.60]", "", "as shuffled"]
    assert numbers.readable_table(rows)["chance"].tolist() == ["0.500", "0.500", ""]
