"""The whole chain, 00 to 07, in the smallest study: everything is there and has its form."""

from __future__ import annotations

import nbformat
import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, combine_pvalues

from sgdm_utils.metrics import tables
from sgdm_utils.workflow import artifacts, config, paths

STEPS = config.plan(config.load_study("smoke"))
TABLES = ("retrieval", "reconstruction", "structure", "runtime")
CONDITIONS = {
    "eeg",
    "eeg_encoder",
    "ideal_posterior",
    "shuffled_eeg",
    "mean_image",
    "class_only",
    "oracle",
    "no_structure",
    "shuffled_structure",
    "oracle_structure",
    "oracle_semantics",
    "no_semantics",
    "nearest_training",
    "other_subject",
}


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(paths.report_dir("smoke") / "tables" / f"{name}.csv")


@pytest.mark.parametrize("step", STEPS, ids=[s.artifact.name + (s.subject or "") for s in STEPS])
def test_every_step_leaves_a_whole_artifact_and_an_executed_copy(smoke_study, step):
    artifact = artifacts.read_artifact(step.study, step.who, step.stage, step.seed, verify=True)
    assert artifact.identity["notebook"] == step.notebook
    # The manifest records what ran, so that the graph can tell whether it is what was asked for.
    wanted = config.resolve(smoke_study.config, step)
    for name in artifact.parameters.keys() & wanted.keys():
        assert artifact.parameters[name] == wanted[name], name
    assert set(wanted) <= set(artifact.parameters), "parameters missing in the manifest"
    book = nbformat.read(step.executed, as_version=4)
    counts = [cell.execution_count for cell in book.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_every_artifact_was_made_from_what_the_graph_says_it_reads(smoke_study):
    for step in STEPS:
        artifact = artifacts.read_artifact(step.study, step.who, step.stage, step.seed)
        read = {place.rsplit("/", 1)[1] for place in artifact.identity["inputs"]}
        declared = set(paths.STAGES[step.stage].reads)
        if step.stage == "reconstructions":  # of these it tells no more than what they cost
            declared -= {"encoder_pretrained", "generator"}
        assert read == declared, step.notebook


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_the_documented_columns_and_numbers_in_range(smoke_study, name):
    rows = table(name)
    assert tuple(rows.columns) == tables.COLUMNS
    assert len(rows) > 0
    assert set(rows["study"]) == {"smoke"}
    both = rows.dropna(subset=["value", "ci_low", "ci_high"])
    assert ((both["ci_low"] <= both["value"]) & (both["value"] <= both["ci_high"])).all()
    assert rows["p_value"].dropna().between(0, 1).all()
    assert not rows.duplicated(list(tables.KEY)).any()


def test_every_reconstruction_stands_beside_its_controls(smoke_study):
    rows = table("reconstruction")
    assert set(rows["condition"]) >= CONDITIONS
    assert set(rows["subject"]) >= set(smoke_study.config.subjects)


def test_the_page_is_there_and_shows_figures_that_are_there(smoke_study):
    folder = paths.report_dir("smoke")
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "<img" in page or "<svg" in page
    assert any((folder / "figures").iterdir())
    assert str(smoke_study.data) not in page


def test_nothing_is_left_over(smoke_study):
    left = [p for suffix in ("part", "old") for p in smoke_study.data.rglob(f".*.{suffix}")]
    assert left == []
    assert list(paths.report_dir("smoke").rglob("*.running.ipynb")) == []


# Where the EEG holds nothing, every decoder must find nothing; where it holds something, something. The two
# studies smoke and smoke_null differ in one number, `snr`. A decoder above chance at zero reads what it
# should not have: an identity that leaked, a position in a file, the order of presentation.


@pytest.fixture
def null(null_run, monkeypatch):
    monkeypatch.setenv("SGDM_DATA", str(null_run.data))
    monkeypatch.setenv("SGDM_REPORTS", str(null_run.reports))
    return null_run


def read(study: str, stage: str, name: str) -> pd.DataFrame:
    return tables.read_table(artifacts.read_artifact(study, "joint", stage, 0) / name)


def retrieval(study: str) -> pd.DataFrame:
    rows = read(study, "encoder", "retrieval.csv")
    return rows[(rows["condition"] == "eeg") & rows["metric"].isin(["top1", "top5"])]


def test_the_two_studies_differ_in_the_signal_alone():
    smoke, silent = config.load_study("smoke"), config.load_study("smoke_null")
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
        low, high = binom.interval(0.999, n, part["chance"].iloc[0])
        assert low / n <= part["value"].mean() <= high / n, metric


def test_the_forward_model_finds_nothing_without_signal(null):
    """Either nothing repeats, and there is none; or it is at chance."""
    forward = artifacts.read_artifact("smoke_null", "joint", "forward", 0)
    if not forward.notes["usable"]:
        assert "nothing repeats" in forward.notes["why_not"]
        return
    rows = tables.read_table(forward / "retrieval.csv")
    rows = rows[(rows["condition"] == "eeg") & (rows["model"] == "forward")]
    assert set(rows["subject"]) == {"sub-01", "sub-02"} and (rows["p_value"] > 0.001).all()


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
    rows = read("smoke", "forward", "retrieval.csv").query("metric == 'top1'")
    top1 = rows[rows["condition"] == "eeg"].groupby("model")["value"].mean()
    assert top1["ideal_full_noise"] >= top1["forward"] > 0.5
