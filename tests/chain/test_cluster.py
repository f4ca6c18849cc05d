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


def running(notebook: str, root: Path) -> tuple[psutil.Process, str] | None:
    """The process that runs a notebook for a study below a folder, and the seed that it runs for.

    Counts from when the log of its step says that it began.
    """
    for process in psutil.process_iter():
        try:
            words = process.cmdline()[1:]
            if words[:4] == ["-m", "sgdm_utils", "run", notebook]:
                logs = root.rglob(f"logs/joint_seed-{words[-1]}_{notebook}.log")
                # it works where the notebook lies; the study is where its data are told to be
                places = (process.cwd(), process.environ().get("SGDM_DATA") or "/")
                if any(Path(place).is_relative_to(root) for place in places) and list(logs):
                    return process, words[-1]
        except psutil.Error:
            continue
    return None


def compute(
    cluster: dict[str, str], checkout: Path, root: Path, settings: list[str]
) -> tuple[str, str, str]:
    """Run a study; kill a job of 02, and take the node from a job of 03.

    Returns the seed of the one, the seed of the other, and the name of that node.
    """
    command = [
        *(sys.executable, "-m", "snakemake", "--profile", "config/profiles/slurm", "--config"),
        *(*settings, "--slurm-status-command", "squeue", "--latency-wait", "5"),
        *("--slurm-init-seconds-before-status-checks", "5"),
    ]
    with (root / "engine.log").open("w") as log:
        engine = subprocess.Popen(command, cwd=checkout, env=cluster, stdout=log, stderr=log)

    def begun(notebook: str) -> tuple[psutil.Process, str] | None:
        assert engine.poll() is None, (root / "engine.log").read_text()[-5000:]
        return running(notebook, root)

    try:
        victim, killed = slurm.wait_for(lambda: begun("02_encoder_pretraining"), LIMIT_S, "02")
        victim.send_signal(signal.SIGKILL)
        _, moved = slurm.wait_for(lambda: begun("03_contrastive_alignment"), LIMIT_S, "03")
        jobs = [j for j in slurm.jobs(cluster) if f"03_contrastive_alignment_seed{moved}" in j[1]]
        ((number, _, _, node),) = jobs
        slurm.call(cluster, "scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
        slurm.call(cluster, "scontrol", "requeue", number)
        assert engine.wait(timeout=3000) == 0, (root / "engine.log").read_text()[-5000:]
    finally:
        engine.kill()
    assert re.search(rf"^{node} dr", slurm.sinfo(cluster), re.MULTILINE)
    return killed, moved, node


def attempts(reports: Path, step: str) -> list[str]:
    """First words of what the log of a step holds: where each attempt began, and how it ended."""
    text = (reports / "logs" / f"{step}.log").read_text()
    return re.findall(r"^\S+Z (started on \w+|done|failed|stopped)", text, re.MULTILINE)


def check(reports: Path, killed: str, moved: str, drained: str) -> None:
    *first, done = attempts(reports, f"joint_seed-{killed}_02_encoder_pretraining")
    assert len(first) == 2 and all(text.startswith("started") for text in first)  # killed: no word
    assert done == "done"
    aligned = attempts(reports, f"joint_seed-{moved}_03_contrastive_alignment")
    starts = [text for text in aligned if text.startswith("started")]
    assert starts[0] == f"started on {drained}" and starts[-1] != starts[0]
    assert aligned[-1] == "done"


def test_a_miniature_with_two_seeds_that_share_the_cards(cluster, tmp_path):
    project = FakeProject.create(tmp_path / "project")
    project.write_config(seeds="[0, 3]", extra="until: 04_structure_decoding")
    project.edit_notebook(
        "03_contrastive_alignment", "values =", "__import__('time').sleep(20)\nvalues ="
    )
    environment = project.environment() | cluster
    environment["PYTHONPATH"] = os.pathsep.join([str(project.root), cluster.get("PYTHONPATH", "")])
    environment["OMP_NUM_THREADS"] = ""
    project.write_helper("__import__('os').environ.get('OMP_NUM_THREADS')")
    done = compute(environment, project.root, project.root, ["study=demo", "card=shard:1"])
    check(project.root / "reports/demo", *done)
    done = project.python("-m", "sgdm_utils", "status")
    assert done.returncode == 0 and "0 steps to run" in done.stdout
    told = project.artifact("joint", "encoder", 0) / "numbers.txt"
    assert told.read_text() == "4"  # threads, as many as the job was given


def test_the_small_study_has_the_digits_of_one_machine(cluster, smoke_run, tmp_path, monkeypatch):
    places = {"SGDM_DATA": str(tmp_path / "data"), "SGDM_REPORTS": str(tmp_path / "reports")}
    done = compute(cluster | places, paths.project_root(), tmp_path, ["study=smoke"])
    check(tmp_path / "reports/smoke", *done)

    def digests(data: Path) -> dict[str, str]:
        monkeypatch.setenv("SGDM_DATA", str(data))
        steps = config.plan(smoke_run.config)
        found = {s.name: (s.artifact / artifacts.CONTENT).read_text() for s in steps}
        return {name: digest for name, digest in found.items() if not name.startswith("07")}

    assert digests(tmp_path / "data") == digests(smoke_run.data)
