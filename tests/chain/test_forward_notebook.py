"""The forward model on the small study: it runs, its rows are whole, its control is at chance."""

from __future__ import annotations

import shutil

from sgdm_utils.metrics import tables
from sgdm_utils.workflow import artifacts, config, paths, run


def test_notebook_24_on_the_small_study(smoke_study, tmp_path, monkeypatch):
    shutil.copytree(smoke_study.data, tmp_path / "data")
    monkeypatch.setenv("SGDM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SGDM_REPORTS", str(tmp_path / "reports"))
    study = smoke_study.config
    run.execute(study, config.step(study, "experiments/24_forward_model", None, study.seeds[0]))
    rows = tables.read_table(paths.report_dir("smoke") / "tables" / "forward.csv")
    assert set(rows["condition"]) == {"eeg", "shuffled_eeg"} and not rows["transductive"].any()
    top1 = rows[rows["metric"] == "top1"].set_index(["model", "condition", "subject"])
    for subject in study.subjects:
        assert top1.loc[("forward_repaired", "shuffled_eeg", subject), "p_value"] > 0.001
        assert top1.loc[("forward_repaired", "eeg", subject), "p_value"] < 0.05
    artifact = artifacts.read_artifact("smoke", "joint", "24_forward_model", study.seeds[0])
    read = {place.rsplit("/", 1)[1] for place in artifact.identity["inputs"]}
    assert read == {"data", "encoder", "preprocessing"}
