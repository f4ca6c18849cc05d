"""Which results of a study are fresh, stale (and why) or missing.

``python -m sgdm_utils status --study demo [--verify]``

The engine asks the same question before it plans. Nothing on the disk is changed by the answer.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sgdm_utils.workflow import artifacts, paths, run
from sgdm_utils.workflow import config as study_config
from sgdm_utils.workflow.config import ConfigError, Step, StudyConfig


@dataclass(frozen=True)
class State:
    """What holds for one step.

    Attributes
    ----------
    step : Step
    why : str
        Empty for a fresh result, ``"missing"``, or why it would be computed anew.
    seconds, megabytes, peak_megabytes : float or None
        What its last run took, what it left on the disk, and the memory it needed at most, or that
        of the same notebook for another person or seed; None where it never ran.
    """

    step: Step
    why: str
    seconds: float | None = None
    megabytes: float | None = None
    peak_megabytes: float | None = None

    @property
    def word(self) -> str:
        """``"fresh"``, ``"stale"`` or ``"missing"``."""
        return {"": "fresh", "missing": "missing"}.get(self.why, "stale")


def survey(
    config: StudyConfig,
    steps: Sequence[Step],
    *,
    again: Iterable[Step] = (),
    verify: bool = False,
) -> dict[Step, State]:
    """Return the state of every step; what lies behind a step that is not fresh is stale, too.

    Parameters
    ----------
    config : StudyConfig
    steps : sequence of Step
        In an order in which they can run, see `config.plan`.
    again : iterable of Step
        Steps that are to be computed anew whatever their results are.
    verify : bool
        Read every file and compare its SHA-256.
    """
    found: dict[Step, State] = {}
    again = set(again)
    costs = {step: _cost(step.artifact) for step in steps}
    for step in steps:
        why = artifacts.why_not_current(
            step.artifact, study_config.resolve(config, step), verify=verify
        )
        behind = [o for o in study_config.reads(step, steps) if found[o].why]
        if not why and step in again:
            why = "asked for"
        if not why and behind:
            why = f"reads {', '.join(other.name for other in behind)}"
        page = page_of(config, step)
        if not why and page is not None and not page.is_file():
            why = f"{paths.relative(page)} is gone"
        like = [c for s, c in costs.items() if s.notebook == step.notebook and c]
        found[step] = State(step, why or "", *(costs[step] or (like[0] if like else ())))
    return found


def page_of(config: StudyConfig, step: Step) -> Path | None:
    """Return the page that a step writes beside its artifact, None where it writes none."""
    if step.stage != "report":
        return None
    return study_config.page_dir(config, step.seed) / "index.html"


def expected(states: Iterable[State]) -> str:
    """Say how long the steps that are not fresh will take and what they need, as far as is known."""
    waiting = [state for state in states if state.why]
    known = [state for state in waiting if state.seconds is not None]
    text = f"{len(waiting)} steps to run"
    if known:
        minutes = sum(state.seconds for state in known) / 60
        space = sum(state.megabytes for state in known)
        text += f", about {minutes:.0f} min one after the other and {space:.0f} MB of disk"
    if len(known) < len(waiting):
        text += f" ({len(waiting) - len(known)} of them never ran here: their time is not known)"
    return text


def others(config: StudyConfig, steps: Iterable[Step]) -> list[Path]:
    """Return the folders of results of the study that are not in its plan: experiments, old seeds."""
    planned = {step.artifact for step in steps}
    root = paths.study_dir(config.study)
    manifests = [*root.glob(f"*/*/{artifacts.MANIFEST}"), *root.glob(f"*/*/*/{artifacts.MANIFEST}")]
    return sorted(m.parent for m in manifests if m.parent not in planned)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 1 when a result is damaged or stale, else 0."""
    parser = argparse.ArgumentParser(prog="python -m sgdm_utils status", description=__doc__)
    parser.add_argument("--study", default="demo", help="a file in config/ (default: demo)")
    parser.add_argument("--verify", action="store_true", help="read every file, compare SHA-256")
    options = parser.parse_args(arguments)
    try:
        config = study_config.load_study(options.study)
        steps = study_config.plan(config, extra_seeds=True)
        states = survey(config, steps, verify=options.verify)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    for state in states.values():
        extra = state.step.seed in config.extra_seeds
        detail = f"  {state.why}" if state.word == "stale" else "  (extra seed)" * extra
        if state.word == "fresh" and state.seconds is not None:
            detail += f"  {run.clock(state.seconds)}, peak {state.peak_megabytes / 1e3:.1f} GB"
        print(f"{state.word:8}{state.step.name}{detail}")
    stale = [state.step.name for state in states.values() if state.word == "stale"]
    for folder in others(config, steps):
        why = artifacts.why_not_current(folder, verify=options.verify)
        name = folder.relative_to(paths.study_dir(config.study)).as_posix()
        print(f"{'stale' if why else 'fresh':8}{name}" + (f"  {why}" if why else ""))
        stale += [name] if why else []
    required = [s for s in states.values() if s.step.seed not in config.extra_seeds]
    print(expected(required))
    return 1 if stale else 0


def _cost(folder: Path) -> tuple[float, float, float] | None:
    """Seconds, megabytes of disk and of memory of a result, as its manifest tells them."""
    try:
        manifest = json.loads((folder / artifacts.MANIFEST).read_text(encoding="utf-8"))
        size = sum(facts["size"] for facts in manifest["files"].values())
        told = manifest["provenance"]
        return float(told["wall_s"]), size / 1e6, float(told["peak_rss_mb"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
