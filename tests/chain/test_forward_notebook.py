"""Notebooks that read the forward model, on the small study: rows are whole, controls at chance."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest

from sgdm_utils.metrics import tables
from sgdm_utils.workflow import artifacts, config, paths, run


@pytest.fixture
def executed(smoke_study, tmp_path, monkeypatch):
    """A function that runs one experiment on the small study and gives its table."""
    shutil.copytree(smoke_study.data, tmp_path / "data")
    monkeypatch.setenv("SGDM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SGDM_REPORTS", str(tmp_path / "reports"))
    study = smoke_study.config

    def execute(notebook: str, table: str) -> tuple[pd.DataFrame, set[str], list[str]]:
        run.execute(study, config.step(study, f"experiments/{notebook}", None, study.seeds[0]))
        artifact = artifacts.read_artifact("smoke", "joint", notebook, study.seeds[0])
        read = {place.rsplit("/", 1)[1] for place in artifact.identity["inputs"]}
        path = paths.report_dir("smoke") / "tables" / f"{table}.csv"
        return tables.read_table(path), read, study.subjects

    return execute


def test_24_forward_model(executed):
    rows, read, subjects = executed("24_forward_model", "forward")
    assert set(rows["condition"]) == {"eeg", "shuffled_eeg"} and not rows["transductive"].any()
    top1 = rows[rows["metric"] == "top1"].set_index(["model", "condition", "subject"])
    for subject in subjects:
        assert top1.loc[("forward_repaired", "shuffled_eeg", subject), "p_value"] > 0.001
        assert top1.loc[("forward_repaired", "eeg", subject), "p_value"] < 0.05
    assert read == {"clip", "data", "encoder", "preprocessing"}
    named = rows[rows["metric"] == "category_named"].groupby("model")["value"].mean()
    assert set(named.index) == {f"forward_labels_{name}" for name in ("none", "own", "exchanged")}
    assert named["forward_labels_own"] > named["forward_labels_exchanged"]


@pytest.mark.slow
def test_26_parts(executed):
    rows, read, subjects = executed("26_parts", "parts")
    assert read == {"clip", "data", "forward", "pipeline", "preprocessing"}
    value = rows.groupby(["condition", "metric"])["value"].mean()
    assert value["full", "pixcorr"] > value["another EEG", "pixcorr"]
    assert set(rows["condition"]) >= {"networks", "noise over electrodes", "no labels"}
    assert len(rows) == len(subjects) * rows["condition"].nunique() * rows["metric"].nunique()


def test_10b_whitened(executed):
    rows, read, subjects = executed("10b_whitened", "whitened")
    assert read == {"clip", "data", "encoder", "forward", "preprocessing", "structure"}
    scores = rows[rows["subject"].isin(subjects)]
    kinds = scores.groupby("metric")["model"].agg(set)
    assert kinds["top1"] == {"study", "whitened", "signal", "started", "closed_form"}
    assert kinds["silhouette_iou"] == {"study", "whitened", "signal"}
    closed = scores[(scores["model"] == "closed_form") & (scores["metric"] == "top1")]
    assert closed["value"].mean() > 2 * closed["chance"].mean()
    tested = rows[rows["subject"] == "all"]
    assert len(tested) == 4 and tested["p_value"].between(0, 1, inclusive="right").all()


def test_16b_variance_partitioning(executed):
    rows, read, subjects = executed("16b_variance_partitioning", "partitioning")
    assert read == {"clip", "data", "forward", "preprocessing"}
    masses = rows[rows["metric"].str.endswith("cluster_mass")]
    assert len(masses) == 2 * 3 * len(subjects)
    control = masses.loc[masses["condition"] == "exchanged_pictures", "p_value"]
    assert (control < 0.01).sum() <= 1  # of a handful: one in a hundred each
    assert {"retinotopic_map_r", "meaning_peak_ms"} <= set(rows["metric"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("notebook", "table"), [("13_low_density", "low_density"), ("15_repetitions", "repetitions")]
)
def test_the_forward_model_stands_beside_the_encoder(executed, notebook, table):
    rows, read, _ = executed(notebook, table)
    assert {"sgdm", "forward", "ideal"} <= set(rows["model"]) and "forward" in read
    assert rows.loc[rows["model"] == "forward", "value"].between(0, 1).all()
