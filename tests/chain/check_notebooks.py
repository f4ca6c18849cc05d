"""Execute the committed notebooks as a reader would and compare their check cells: ``make test-all``.

nbval runs each notebook with its defaults, that is for the first subject. The notebooks after the
preprocessing need all subjects, so the others are preprocessed in between. Then the quick ones of the
experiments follow; the others take minutes each and are run by hand (make experiments). Everything
is written to a folder of its own; the reader's results are not touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from sgdm_utils.workflow import config, paths

QUICK = ("15_repetitions", "16_time_and_regions", "17_human_test")
FOLDER = ".of-tests"  # in data/derived, which git ignores and which lies on the disk meant for data


def main() -> int:
    """Return 0 when all notebooks gave what is stored in them."""
    study = config.load_study("demo")
    stages = list(paths.STAGES.values())
    folder = paths.data_dir() / "derived" / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    os.environ |= {"SGDM_DATA": str(folder / "data"), "SGDM_REPORTS": str(folder / "reports")}
    chain = [stage.notebook for stage in stages]
    code = nbval(chain[:1])
    for step in config.plan(study):
        default = step.subject and config.notebook_parameters(step.notebook)["subject"].default
        if code == 0 and step.subject != default:
            code = run(*step.command.split()[1:])
    code = code or nbval(chain[1:] + [f"experiments/{name}" for name in QUICK])
    if code == 0:
        shutil.rmtree(folder)
    else:
        print(f"What the notebooks wrote is kept in {paths.relative(folder)}", file=sys.stderr)
    return code


def nbval(names: list[str]) -> int:
    """Execute notebooks and compare the cells tagged nbval-check-output."""
    notebooks = [paths.relative(paths.notebook_path(name)) for name in names]
    return run(
        *("-m", "pytest", "-v", "--nbval-lax", "--nbval-current-env"),
        *("--nbval-sanitize-with", "tests/chain/nbval_sanitize.cfg", *notebooks),
    )


def run(*arguments: str) -> int:
    """Run the interpreter in the project's folder."""
    return subprocess.run([sys.executable, *arguments], cwd=paths.project_root()).returncode


if __name__ == "__main__":
    sys.exit(main())
