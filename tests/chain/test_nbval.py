"""nbval in CI: the small study is executed a second time and has to print the same.

Its notebooks were executed once by papermill (the fixture `smoke_run`); what their check cells printed
then is what nbval compares with. So the comparison holds on any processor
(that it is alive, a changed text failing, is tested in `test_notebooks`). That the *demo* prints what
is committed in ``notebooks/`` is checked by ``make test-all``: it takes the better part of an hour on
a processor without matrix units.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from sgdm_utils.workflow import config, paths

CHECK = "nbval-check-output"
SANITIZE = Path(__file__).with_name("nbval_sanitize.cfg")


@pytest.fixture(scope="module")
def second_run(smoke_run, tmp_path_factory):
    """A copy of the finished small study that a second execution may write over."""
    folder = tmp_path_factory.mktemp("again")
    shutil.copytree(smoke_run.data, folder / "data")
    shutil.copytree(smoke_run.reports, folder / "reports")
    return folder


def nbval(folder: Path, *notebooks: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "SGDM_DATA": str(folder / "data"),
        "SGDM_REPORTS": str(folder / "reports"),
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(paths.project_root()), os.environ.get("PYTHONPATH")])
        ),
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider",
         "--nbval-lax", "--nbval-current-env", f"--nbval-sanitize-with={SANITIZE}",
         f"--rootdir={paths.project_root()}", f"--confcutdir={paths.project_root()}",
         "-c", str(paths.project_root() / "pyproject.toml"), *map(str, notebooks)],
        cwd=paths.project_root(), env=environment, capture_output=True, text=True,
    )  # fmt: skip


def executed(folder: Path) -> list[Path]:
    """The executed notebooks of the small study, in the order in which they can run."""
    steps = config.plan(config.load_study("smoke"))
    return [folder / "reports" / "smoke" / "executed" / step.executed.name for step in steps]


def test_the_small_study_prints_the_same_again(second_run):
    notebooks = executed(second_run)
    checks = sum(
        CHECK in cell.metadata.get("tags", [])
        for path in notebooks
        for cell in nbformat.read(path, as_version=4).cells
    )
    done = nbval(second_run, *notebooks)
    assert done.returncode == 0, done.stdout[-6000:]
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert checks >= len(notebooks) and passed > 10 * len(notebooks)
