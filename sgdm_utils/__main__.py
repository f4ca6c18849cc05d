"""One door for the command line: ``python -m sgdm_utils run | status | sweep | fetch | score | convert-muse | publish``.

======================== =====================================================================
run NOTEBOOK             one notebook of a study, e.g. ``run 01_preprocessing --subject sub-01``
status                   which results of a study are fresh, stale (and why) or missing
sweep NAME               tables and page of many studies, with what is missing
fetch list, show, NAME   data sets and weights: what there is, under which licence; fetch one
score PRED TARGET        a folder of reconstructions against a folder of targets
convert-muse DIR NAME    CSV recordings of a Muse headband to BIDS
publish                  maintainers: results of the last demo into notebooks/ and README.md
======================== =====================================================================

Each says more with ``--help``.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "run": "sgdm_utils.workflow.run",
    "status": "sgdm_utils.workflow.status",
    "sweep": "sgdm_utils.workflow.sweeps",
    "fetch": "sgdm_utils.workflow.downloads.fetch",
    "score": "sgdm_utils.metrics.command",
    "convert-muse": "sgdm_utils.datasets.muse",
    "publish": "sgdm_utils.figures.publish",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code, 2 where there is no such command."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there is {', '.join(COMMANDS)}"
        print(f"sgdm_utils: there is no command {name!r}; {hint}", file=sys.stderr)
        return 2
    return importlib.import_module(COMMANDS[name]).main(rest)


def moved(old: str, command: str) -> int:
    """Do what an old command asked for and say where it went; it is kept for one version."""
    print(f"python -m {old} is now: python -m sgdm_utils {command}", file=sys.stderr)
    return main([command, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
