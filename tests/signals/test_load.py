"""Trials of several people are put side by side only where rows and columns mean the same."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from sgdm_utils import signals

MONTAGE = {"positions_m": {"Oz": [0, -0.1, 0], "Cz": [0, 0, 0.1]}, "sfreq": 100.0, "tmin": -0.2}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"positions_m": dict(reversed(MONTAGE["positions_m"].items()))}, "in order of channels:"),
        ({"positions_m": {"Oz": [0, -0.1, 0], "Pz": [0, 0, 0.1]}}, "in channels:"),
        ({"sfreq": 128.0, "tmin": 0.0}, "in sampling rate, start of the epoch:"),
    ],
)
def test_what_differs_between_people_is_named(tmp_path, change, named):
    for subject, montage in (("sub-01", MONTAGE), ("sub-02", MONTAGE | change)):
        (tmp_path / subject).mkdir()
        (tmp_path / subject / "montage.json").write_text(json.dumps(montage))
        np.save(tmp_path / subject / "eeg.npy", np.zeros((1, 2, 3), np.float32))
        table = pd.DataFrame({"subject": [subject], "image_id": ["a"], "concept": ["a"]})
        table.assign(split="train").to_parquet(tmp_path / subject / "trials.parquet")
    run = SimpleNamespace(read=lambda _, subject: tmp_path / subject)
    with pytest.raises(ValueError, match=f"sub-02 and sub-01 differ {named}"):
        signals.load_trials(run, ["sub-01", "sub-02"])
