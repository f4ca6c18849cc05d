"""The live notebook on the small study: played through LSL in one process, with its controls."""

from __future__ import annotations

import shutil

import pytest
from loopback import require_loopback

from sgdm_utils.metrics import tables
from sgdm_utils.workflow import artifacts, config, paths, run


@pytest.mark.slow
def test_notebook_22_on_the_small_study(smoke_study, tmp_path, monkeypatch):
    require_loopback()
    shutil.copytree(smoke_study.data, tmp_path / "data")
    monkeypatch.setenv("SGDM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SGDM_REPORTS", str(tmp_path / "reports"))
    study = smoke_study.config
    run.execute(study, config.step(study, "experiments/22_live", None, study.seeds[0]))
    rows = tables.read_table(paths.report_dir("smoke") / "tables" / "live.csv")
    top1 = rows[rows["metric"] == "top1_single_trial"].set_index(["model", "condition", "subject"])
    for subject in study.subjects:
        assert top1.loc[("live", "eeg", subject), "p_value"] < 0.05
        assert top1.loc[("live", "shuffled_eeg", subject), "p_value"] > 0.001
        assert top1.loc[("offline", "eeg", subject), "n"] == 24
    of = rows.set_index("metric")["value"]
    assert of["count decoded"] == of["count epochs"] > 20 and of["count drawn"] > 0
    assert of.get("count lost_samples", 0) == 0
    assert of["meaning ms, work, processor, median"] > 0
    artifact = artifacts.read_artifact("smoke", "joint", "22_live", study.seeds[0])
    assert artifact.notes["verdicts"]["no epoch was shifted by a fault"]
    read = {place.rsplit("/", 1)[1] for place in artifact.identity["inputs"]}
    assert read == {"clip", "data", "forward", "pipeline", "preprocessing"}
