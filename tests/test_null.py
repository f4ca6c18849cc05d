"""Where the EEG holds nothing, every decoder must find nothing; where it holds something, something.

The two studies differ in one number, `snr`. A decoder above chance at zero reads what it should not
have: an identity that leaked, a position in a file, the order of presentation.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import combine_pvalues

from sgdm_utils import config, provenance, statistics, tables


@pytest.fixture
def null(null_run, monkeypatch):
    monkeypatch.setenv("SGDM_DATA", str(null_run.data))
    monkeypatch.setenv("SGDM_REPORTS", str(null_run.reports))
    return null_run


def read(study: str, stage: str, name: str) -> pd.DataFrame:
    return tables.read_table(provenance.read_artifact(study, "joint", stage, 0) / name)


def retrieval(study: str) -> pd.DataFrame:
    rows = read(study, "encoder", "retrieval.csv")
    return rows[(rows["condition"] == "eeg") & rows["metric"].isin(["top1", "top5"])]


def test_the_two_studies_differ_in_the_signal_alone():
    smoke, silent = config.load("smoke"), config.load("smoke_null")
    assert silent.notebooks["00_data"].pop("snr") == 0
    assert smoke.notebooks["00_data"].pop("snr") > 0
    for notebook, parameters in silent.notebooks.items():
        assert parameters == smoke.notebooks[notebook], notebook


@pytest.mark.parametrize("model", ["sgdm", "ridge"])
def test_retrieval_is_at_chance_without_signal(null, model):
    rows = retrieval("smoke_null").query("model == @model")
    assert set(rows["subject"]) == {"sub-01", "sub-02"}
    assert (rows["p_value"] > 0.001).all()
    for metric, part in rows.groupby("metric"):
        n = int(part["n"].sum())  # hits of all subjects against the binomial interval of chance
        low, high = statistics.chance_interval(n, part["chance"].iloc[0], level=0.999)
        assert low <= part["value"].mean() <= high, metric


def test_structure_is_at_its_shuffled_control_without_signal(null):
    rows = read("smoke_null", "structure", "structure.csv")
    eeg = rows[(rows["condition"] == "eeg") & (rows["metric"] == "iou")]
    assert len(eeg) == 2
    assert combine_pvalues(eeg["p_value"]).pvalue > 0.001
    shuffled = rows[(rows["condition"] == "shuffled_eeg") & (rows["metric"] == "iou")]
    assert abs(eeg["value"].mean() - shuffled["value"].mean()) < 0.08


def test_the_same_decoders_are_above_chance_with_signal(smoke_study):
    rows = retrieval("smoke").query("metric == 'top5'")
    for model in ("sgdm", "ridge", "ideal"):
        part = rows[rows["model"] == model]
        assert combine_pvalues(part["p_value"]).pvalue < 0.01, model
        assert np.mean(part["value"] - part["chance"]) > 0.1, model
