"""A whole study, run one notebook at a time, for the tests that look at its results."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

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
