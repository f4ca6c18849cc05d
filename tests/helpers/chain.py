"""A whole study, run one notebook at a time, for the tests that look at its results."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from sgdm_utils.workflow import config, paths


@dataclass(frozen=True)
class SmokeRun:
    """The study smoke after a run of its whole chain.

    Attributes
    ----------
    config : StudyConfig
        The study.
    data, reports : Path
        What ``SGDM_DATA`` and ``SGDM_REPORTS`` were.
    """

    config: config.StudyConfig
    data: Path
    reports: Path


def run_chain(study: str, folder: Path) -> SmokeRun:
    """Run every step of a study, one notebook at a time, below `folder`."""
    chain = SmokeRun(config.load_study(study), folder / "data", folder / "reports")
    environment = os.environ | {
        "SGDM_DATA": str(chain.data),
        "SGDM_REPORTS": str(chain.reports),
        "HF_HUB_OFFLINE": "1",
    }
    for step in config.plan(chain.config):
        done = subprocess.run(
            [sys.executable, *step.command.split()[1:]],
            cwd=paths.project_root(),
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            pytest.fail(f"{step.command}\n{done.stderr}", pytrace=False)
    return chain


def once(
    name: str,
    tmp_path_factory: pytest.TempPathFactory,
    write: Callable[[Path], object] | None = None,
) -> SmokeRun:
    """Run a study once for all workers of a test session.

    A chain takes minutes, and every worker has session fixtures of its own: the first that needs
    the study runs it, the others wait and look at the same folder.

    Parameters
    ----------
    name : str, a file in ``config/``
    write : callable, optional; is given the folder of the raw data and writes the recordings there
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = shared / f"study-{name}", shared / f"study-{name}.done"
    with FileLock(shared / f"study-{name}.lock"):
        if done.is_file():
            return SmokeRun(config.load_study(name), folder / "data", folder / "reports")
        if folder.exists():
            pytest.fail(f"another worker failed to run the study {name}: see there", pytrace=False)
        folder.mkdir()
        if write is not None:
            write(folder / "data" / "raw" / name)
        chain = run_chain(name, folder)
        done.touch()
        return chain
