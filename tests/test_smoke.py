"""The whole chain, 00 to 07, in the smallest study: everything is there and has its form."""

from __future__ import annotations

import nbformat
import pandas as pd
import pytest

from sgdm_utils import config, paths, provenance, tables

STEPS = config.plan(config.load("smoke"))
TABLES = ("retrieval", "reconstruction", "structure", "runtime")
CONDITIONS = {
    "eeg",
    "shuffled_eeg",
    "mean_image",
    "class_only",
    "oracle",
    "no_structure",
    "shuffled_structure",
    "oracle_structure",
}


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(paths.report_dir("smoke") / "tables" / f"{name}.csv")


@pytest.mark.parametrize("step", STEPS, ids=[s.artifact.name + (s.subject or "") for s in STEPS])
def test_every_step_leaves_a_whole_artifact_and_an_executed_copy(smoke_study, step):
    artifact = provenance.read_artifact(step.study, step.who, step.stage, step.seed, verify=True)
    assert artifact.identity["notebook"] == step.notebook
    # The manifest records what ran, so that the graph can tell whether it is what was asked for.
    wanted = config.resolve(smoke_study.config, step)
    for name in artifact.parameters.keys() & wanted.keys():
        assert artifact.parameters[name] == wanted[name], name
    assert set(wanted) <= set(artifact.parameters), "parameters missing in the manifest"
    book = nbformat.read(step.executed, as_version=4)
    counts = [cell.execution_count for cell in book.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_every_artifact_but_the_first_names_what_it_was_made_from(smoke_study):
    for step in STEPS[1:]:
        artifact = provenance.read_artifact(step.study, step.who, step.stage, step.seed)
        assert artifact.identity["inputs"], f"{step.notebook} read nothing"


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
