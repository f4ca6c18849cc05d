"""Paths: where results belong, whatever folder a command is started in."""

from __future__ import annotations

import os

import pytest

from sgdm_utils.workflow import paths


def test_the_layout_is_the_documented_one(tmp_study):
    derived = tmp_study / "data" / "derived" / "demo"
    assert paths.stage_dir("demo", "joint", "data") == derived / "joint" / "data"
    assert paths.stage_dir("demo", "sub-01", "preprocessing") == derived / "sub-01/preprocessing"
    assert paths.stage_dir("demo", "joint", "encoder", 3) == derived / "joint/seed-3/encoder"
    assert paths.raw_dir("simulated") == tmp_study / "data" / "raw" / "simulated"
    executed = tmp_study / "reports" / "demo" / "executed"
    assert paths.executed_notebook("demo", "01_x", "sub-01") == executed / "sub-01_01_x.ipynb"
    assert paths.executed_notebook("demo", "03_x", seed=0) == executed / "joint_seed-0_03_x.ipynb"


def test_the_working_directory_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.setenv("SGDM_DATA", "elsewhere")
    monkeypatch.delenv("SGDM_REPORTS", raising=False)
    before = paths.data_dir(), paths.report_dir("demo"), paths.notebook_path("00_data")
    monkeypatch.chdir(tmp_path)
    assert (paths.data_dir(), paths.report_dir("demo"), paths.notebook_path("00_data")) == before
    assert paths.data_dir() == paths.project_root() / "elsewhere"


def test_an_empty_variable_is_no_variable(monkeypatch):
    monkeypatch.setenv("SGDM_DATA", "")
    assert paths.data_dir() == paths.project_root() / "data"


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x", ".hidden", "a b", "x..y", 3])
def test_names_that_would_leave_the_folder_are_refused(name):
    with pytest.raises(ValueError, match="cannot be the name of a study"):
        paths.study_dir(name)


@pytest.mark.parametrize(
    ("stage", "seed", "message"),
    [
        ("encoder", None, "depends on the training seed"),
        ("data", 0, "does not depend on a training seed"),
        ("encoder", -1, "integer from 0 up"),
        ("encoder", True, "integer from 0 up"),
        ("encoder", "0", "integer from 0 up"),
    ],
)
def test_a_seed_that_does_not_belong_is_refused(stage, seed, message):
    with pytest.raises(ValueError, match=message):
        paths.stage_dir("demo", "joint", stage, seed)


def test_people_see_paths_relative_to_the_project(tmp_path):
    assert paths.relative(paths.project_root() / "config" / "demo.yaml") == "config/demo.yaml"
    assert paths.relative(tmp_path / "x") == (tmp_path / "x").as_posix()
    assert os.sep in paths.relative(tmp_path / "x")


def test_a_package_outside_a_checkout_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages/sgdm_utils/paths.py"))
    with pytest.raises(RuntimeError, match="pip install --no-deps -e ."):
        paths.project_root()
