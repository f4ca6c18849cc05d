"""Sweeps: checked before anything runs, planned, computed only where something changed, gathered."""

from __future__ import annotations

import csv
import re
import subprocess
import sys

import pytest
import yaml
from fake_study import FakeProject

from sgdm_utils.workflow import config as study_config
from sgdm_utils.workflow import digest_file, paths

SWEEP = """
sweep: friday
study: demo
seeds: {seeds}
conditions:
  all: {{}}
  large: {{00_data: {{size: 9}}}}
"""
SCORES = (
    "from pathlib import Path\n"
    "folder = workflow.report_dir(study) / 'tables'\n"
    "folder.mkdir(parents=True, exist_ok=True)\n"
    "(folder / 'structure.csv').write_text(\n"
    "    f'study,subject,seed,model,condition,metric,value\\n{study},sub-01,{seed},m,eeg,iou,{size}\\n')\n"
    "values ="
)


@pytest.fixture
def project(tmp_path):
    project = FakeProject.create(tmp_path / "project")
    project.edit_notebook("00_data", "values =", SCORES)
    project.write_config(extra="until: 00_data")
    (project.root / "config/sweeps").mkdir()
    write(project)
    return project


def write(project, seeds="[0]"):
    (project.root / "config/sweeps/friday.yaml").write_text(SWEEP.format(seeds=seeds))


def planned(project):
    done = project.python(
        *(
            "-m",
            "snakemake",
            "--cores",
            "1",
            "--config",
            "sweep=friday",
            "--dry-run",
            "--quiet",
            "rules",
        )
    )
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^(friday-[\w-]+): (.*)$", done.stdout, re.MULTILINE)), done.stdout


def compute(project):
    """Run what the engine would run, in one process for each notebook."""
    return project.python(
        *("-m", "snakemake", "--cores", "1", "--config", "sweep=friday", "--quiet", "all")
    )


def test_a_sweep_runs_and_later_only_what_changed(project):
    todo, text = planned(project)
    assert todo == {f"friday-{c}_00_data": "missing" for c in ("all", "large")}
    assert "2 steps to run (2 of them never ran here: their time is not known)" in text
    done = compute(project)
    assert done.returncode == 0, done.stderr
    reports = project.root / "reports/friday"
    with (reports / "tables/sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["sweep_condition"], r["value"]) for r in rows] == [("all", "4"), ("large", "9")]
    page = (reports / "index.html").read_text()
    assert "Missing" not in page
    assert digest_file(project.root / "requirements.lock") in page
    jobs = re.findall(r"<td>(\S+) 00_data<td>fresh<td>0:\d\d<td>\d+<", page)
    assert jobs == ["friday-all", "friday-large"]
    assert planned(project)[0] == {}

    project.write_config(extra="until: 02_encoder_pretraining")
    before = set(planned(project)[0])
    write(project, seeds="[0, 3]")  # another seed: its jobs and no others
    todo, text = planned(project)
    added = {f"friday-{c}_02_encoder_pretraining_seed3" for c in ("all", "large")}
    assert set(todo) - before == added and len(before) == 2 * 3
    assert "sweep_table" in text
    gathered = project.python("-m", "sgdm_utils", "sweep", "friday")
    assert gathered.returncode == 1
    assert "friday-large 02_encoder_pretraining_seed3" in (reports / "index.html").read_text()

    project.edit_notebook("00_data", "values =", "more = 1\nvalues =")
    assert planned(project)[0]["friday-all_00_data"] == "00_data has been edited"
    project.edit_notebook("00_data", "more = 1\n", "")
    assert set(planned(project)[0]) == set(todo)
    project.write_helper("len(values) + 1")
    assert planned(project)[0]["friday-large_00_data"] == "sgdm_utils.helper has been edited"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "size: 9",
            "sice: 9",
            ["friday-large", "00_data.sice: unknown parameter"],
        ),
        (
            "00_data",
            "00_dat",
            ["friday-large", "Did you mean 00_data"],
        ),
        (
            "sweep: friday",
            "sweep: monday",
            ["sweep: is 'monday', but the file is named friday.yaml"],
        ),
        ("study: demo", "study: dmo", ["study: config/dmo.yaml does not exist"]),
        ("conditions:", "condition:", ["condition"]),
        ("seeds: [0]", "seeds: [-1]", ["friday-all", "friday-large", "seeds[0]"]),
        ("  all: {}", "  all: []", ["conditions.all"]),
    ],
)
def test_a_sweep_that_cannot_run_is_refused_before_anything_runs(project, old, new, expected):
    file = project.root / "config/sweeps/friday.yaml"
    file.write_text(file.read_text().replace(old, new))
    done = project.python("-m", "sgdm_utils", "sweep", "friday")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for part in expected:
        assert part in done.stderr
    assert not (project.root / "reports").exists()


def test_the_page_of_a_sweep_says_why_a_step_failed(project):
    log = project.root / "reports/friday-all/logs/joint_00_data.log"
    log.parent.mkdir(parents=True)
    log.write_text(
        "2026-01-02T03:04:05Z failed\n[00_data] failed in cell In [3]\nValueError: <b>\n"
    )
    done = project.python("-m", "sgdm_utils", "sweep", "friday")
    assert done.returncode == 1 and "friday-all 00_data: [00_data] failed in cell" in done.stderr
    page = (project.root / "reports/friday/index.html").read_text()
    assert (
        "<th>friday-all 00_data<td>[00_data] failed in cell In [3]\nValueError: &lt;b&gt;" in page
    )
    assert "<td>friday-all 00_data<td>failed<td><td>" in page
    assert "<td>friday-large 00_data<td>missing<td><td>" in page


def test_the_pods_of_a_job_share_a_sweep(project, tmp_path):
    """Each index names one study; the command of the Job runs as it stands, with a stand-in for python."""
    (job,) = yaml.safe_load_all((paths.config_dir() / "profiles/kubernetes.yaml").read_text())
    assert job["spec"]["completions"] == len(study_config.load_sweep("cleaning").members)
    (pod,) = job["spec"]["template"]["spec"]["containers"]
    script = tmp_path / "python"
    script.write_text(
        f'#!/bin/sh\n[ "$2" = snakemake ] && echo "$@" || exec {sys.executable} "$@"\n'
    )
    script.chmod(0o755)
    for index, name in enumerate(("friday-all", "friday-large")):
        environment = project.environment() | {
            "SWEEP": "friday",
            "JOB_COMPLETION_INDEX": str(index),
        }
        environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
        command = [*pod["command"], *pod["args"]]
        done = subprocess.run(
            command, cwd=project.root, env=environment, capture_output=True, text=True
        )
        assert done.stdout.split()[-1] == f"study={name}", done.stderr


def test_every_committed_sweep_is_valid():
    folder = paths.config_dir() / "sweeps"
    for path in folder.glob("*.yaml"):
        for study in study_config.load_sweep(path.stem).members.values():
            assert study_config.load_study(study.study) == study
            assert len(study_config.plan(study)) > 8
