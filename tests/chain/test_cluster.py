"""A study on a real Slurm of two nodes: a job is killed, a node drained, and the results are those of one machine.

``make test-cluster``; skipped, with the reason, where Slurm or the engine's plugin is not installed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import slurm
from fake_study import FakeProject

from sgdm_utils.workflow import artifacts, config, paths

MISSING = slurm.missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(MISSING), reason=f"no Slurm on this machine: {MISSING}"),
]
LIMIT_S = 1200  # for a step to begin, on a machine with much else to do


@pytest.fixture
def cluster():
    with tempfile.TemporaryDirectory() as folder, slurm.cluster(Path(folder)) as environment:
        yield environment


def running(notebook: str, root: Path) -> psutil.Process | None:
    """The process that runs a notebook for a study below a folder."""
    for process in psutil.process_iter():
        try:
            if process.cmdline()[1:5] == ["-m", "sgdm_utils", "run", notebook]:
                if root in Path(process.cwd()).parents:
                    return process
        except psutil.Error:
            continue
    return None


def compute(cluster: dict[str, str], checkout: Path, root: Path, settings: list[str]) -> str:
    """Run a study; kill the job of 02, and take its node from 03. Returns that node's name."""
    command = [
        *(sys.executable, "-m", "snakemake", "--profile", "config/profiles/slurm", "--config"),
        *(*settings, "--slurm-status-command", "squeue", "--latency-wait", "5"),
        *("--slurm-init-seconds-before-status-checks", "5"),
    ]
    with (root / "engine.log").open("w") as log:
        engine = subprocess.Popen(command, cwd=checkout, env=cluster, stdout=log, stderr=log)

    def begun(notebook: str) -> psutil.Process | None:
        assert engine.poll() is None, (root / "engine.log").read_text()[-5000:]
        return running(notebook, root)

    try:
        victim = slurm.wait_for(lambda: begun("02_encoder_pretraining"), LIMIT_S, "a training")
        victim.send_signal(signal.SIGKILL)
        slurm.wait_for(lambda: begun("03_contrastive_alignment"), LIMIT_S, "the alignment")
        number, node = next(
            (number, node)
            for number, rule, state, node in slurm.jobs(cluster)
            if "03_contrastive" in rule and state == "RUNNING"
        )
        slurm.call(cluster, "scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
        slurm.call(cluster, "scontrol", "requeue", number)
        assert engine.wait(timeout=3000) == 0, (root / "engine.log").read_text()[-5000:]
    finally:
        engine.kill()
    assert re.search(rf"^{node} dr", slurm.sinfo(cluster), re.MULTILINE)
    return node


def attempts(reports: Path, step: str) -> list[str]:
    """First words of what the log of a step holds: where each attempt began, and how it ended."""
    text = (reports / "logs" / f"{step}.log").read_text()
    return re.findall(r"^\S+Z (started on \w+|done|failed|stopped)", text, re.MULTILINE)


def check(reports: Path, drained: str) -> None:
    *first, done = attempts(reports, "joint_seed-0_02_encoder_pretraining")
    assert len(first) == 2 and all(text.startswith("started") for text in first)  # killed: no word
    assert done == "done"
    aligned = attempts(reports, "joint_seed-0_03_contrastive_alignment")
    starts = [text for text in aligned if text.startswith("started")]
    assert starts[0] == f"started on {drained}" and starts[-1] != starts[0]
    assert aligned[-1] == "done"


def test_a_miniature_with_two_seeds_that_share_the_cards(cluster, tmp_path):
    project = FakeProject.create(tmp_path / "project")
    project.write_config(seeds="[0, 3]")
    project.edit_notebook(
        "03_contrastive_alignment", "values =", "__import__('time').sleep(20)\nvalues ="
    )
    environment = project.environment() | cluster
    environment["PYTHONPATH"] = os.pathsep.join([str(project.root), cluster.get("PYTHONPATH", "")])
    environment["OMP_NUM_THREADS"] = ""
    project.write_helper("__import__('os').environ.get('OMP_NUM_THREADS')")
    drained = compute(environment, project.root, project.root, ["study=demo", "card=shard:1"])
    check(project.root / "reports/demo", drained)
    done = project.python("-m", "sgdm_utils", "status")
    assert done.returncode == 0 and "0 steps to run" in done.stdout
    told = project.artifact("joint", "encoder", 0) / "numbers.txt"
    assert told.read_text() == "4"  # threads, as many as the job was given


def test_the_small_study_has_the_digits_of_one_machine(cluster, smoke_run, tmp_path, monkeypatch):
    places = {"SGDM_DATA": str(tmp_path / "data"), "SGDM_REPORTS": str(tmp_path / "reports")}
    drained = compute(cluster | places, paths.project_root(), tmp_path, ["study=smoke"])
    check(tmp_path / "reports/smoke", drained)

    def digests(data: Path) -> dict[str, str]:
        monkeypatch.setenv("SGDM_DATA", str(data))
        steps = config.plan(smoke_run.config)
        found = {s.name: (s.artifact / artifacts.CONTENT).read_text() for s in steps}
        return {name: digest for name, digest in found.items() if not name.startswith("07")}

    assert digests(tmp_path / "data") == digests(smoke_run.data)
