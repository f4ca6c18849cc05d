"""The recipes of CONTRIBUTING.md are short, and work as they stand."""

from __future__ import annotations

import re

import pytest
from fake_study import FakeProject

from sgdm_utils.datasets import readers
from sgdm_utils.workflow import paths

TEXT = (paths.project_root() / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = dict(
    re.findall(r"^## An? ([a-z ]+)\n.*?^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
)


def test_every_kind_of_addition_has_a_recipe_of_less_than_thirty_lines():
    assert set(RECIPES) == {"encoder", "data set", "metric", "experiment"}
    for name, source in RECIPES.items():
        lines = [line for line in source.splitlines() if line.strip()]
        assert len(lines) < 30, f"{name}: {len(lines)} lines"


def test_the_files_that_are_named_exist():
    named = re.findall(r"^\| .* \| `([^`]+)`", TEXT, re.MULTILINE)
    assert len(named) == 10
    assert [name for name in named if not (paths.project_root() / name).is_file()] == []


@pytest.mark.parametrize("name", ["encoder", "data set", "metric"])
def test_a_recipe_works_as_it_stands(name, monkeypatch):
    monkeypatch.setattr(readers, "FORMS", dict(readers.FORMS))
    exec(compile(RECIPES[name], f"CONTRIBUTING.md, {name}", "exec"), {})


def test_the_experiment_of_the_recipe_runs_and_its_inputs_are_what_it_read(tmp_path):
    project = FakeProject.create(tmp_path / "project")
    assert project.run("00_data").returncode == 0
    done = project.python("-c", RECIPES["experiment"])
    assert done.returncode == 0, done.stderr
    done = project.run("experiments/30_mine")
    assert done.returncode == 0, done.stderr
    artifact = project.artifact("joint", "30_mine")
    assert (artifact / "answer.txt").read_text() == "42"
    assert '"derived/demo/joint/data"' in (artifact / "manifest.json").read_text()
