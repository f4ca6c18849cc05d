"""Many studies from one file: conditions and folds of a study, for some people and training seeds.

``config/sweeps/<sweep>.yaml`` names a study and what each condition changes in it. Every condition (and
fold) is a study of its own, ``<sweep>-<condition>[-<fold>]``, with the same checks, results and reports:
``--study`` takes its name. The engine runs all of them (``--config sweep=<sweep>``) and gathers their
tables: ``python -m sgdm_utils sweep <sweep>`` writes ``reports/<sweep>/tables/sweep.csv`` and a page that
says what is missing.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from typing import Any

import jinja2

from sgdm_utils.workflow import atomic, digests, machine, paths, run, status
from sgdm_utils.workflow import config as study_config
from sgdm_utils.workflow.config import ConfigError, Sweep, load_sweep

TABLES = ("retrieval", "reconstruction", "structure")
_CELL = ("table", "model", "condition", "metric")
_PAGE = """<!doctype html><meta charset="utf-8"><title>Sweep {{ name }}</title>
<style>body{font:15px sans-serif;margin:2em}td,th{padding:.1em .7em;text-align:left}</style>
<h1>Sweep {{ name }}</h1><p>{{ expected }}</p>
<p>Commit {{ git.commit or "not known" }}, {{ {true: "with changes", false: "as committed"}.get(git.dirty, "not known") }};
requirements.lock {{ lock }}.</p>
{% if missing %}<h2>Missing or out of date</h2><table>
{% for step, why in missing %}<tr><th>{{ step }}<td>{{ why }}{% endfor %}</table>{% endif %}
<h2>Means over people and seeds</h2><table><tr>{% for name in rows[0] if rows %}<th>{{ name }}{% endfor %}
{% for row in rows %}<tr>{% for value in row.values() %}<td>{{ value }}{% endfor %}{% endfor %}</table>
<h2>Jobs</h2><table><tr><th>job<th>state<th>wall time<th>peak memory (MB)
{% for job in jobs %}<tr>{% for value in job %}<td>{{ value }}{% endfor %}{% endfor %}</table>
"""


def gather(sweep: Sweep) -> list[dict[str, Any]]:
    """Write the table and the page of a sweep; return what is missing as dicts ``step``, ``why``."""
    rows, states = [], []
    for (condition, fold), study in sweep.members.items():
        steps = study_config.plan(study)
        states += status.survey(study, steps).values()
        for table in TABLES:
            file = paths.report_dir(study.study) / "tables" / f"{table}.csv"
            if file.is_file():
                with file.open(newline="", encoding="utf-8") as stream:
                    found = list(csv.DictReader(stream))
                place = {"sweep_condition": condition, "fold": fold, "table": table}
                rows += [place | row for row in found]
    missing = [
        {"step": f"{s.step.study} {s.step.name}", "why": run.last_failure(s.step) or s.why}
        for s in states
        if s.why
    ]
    folder = paths.report_dir(sweep.name)
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["sweep_condition"]
    with atomic.atomic_file(folder / "tables" / "sweep.csv") as part:
        with part.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    text = jinja2.Environment(autoescape=True).from_string(_PAGE)
    text = text.render(
        name=sweep.name,
        expected=status.expected(states),
        missing=[tuple(m.values()) for m in missing],
        rows=_means(rows),
        jobs=[_job(state) for state in states],
        git=machine.git_state(),
        lock=digests.lock_digest(),
    )
    with atomic.atomic_file(folder / "index.html") as part:
        part.write_text(text, encoding="utf-8")
    return missing


def _job(state: status.State) -> tuple[str, str, str, str]:
    """Name, state, wall time and peak memory of a step; times of results that are there only."""
    name, last = f"{state.step.study} {state.step.name}", run.last_failure(state.step)
    if state.why == "missing" or state.seconds is None:
        return name, "failed" if last else state.word, "", ""
    return name, state.word, run.clock(state.seconds), f"{state.peak_megabytes:.0f}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 1 when a part of the sweep is missing."""
    parser = argparse.ArgumentParser(prog="python -m sgdm_utils sweep", description=__doc__)
    parser.add_argument("sweep", help="a file in config/sweeps/")
    parser.add_argument("--list", action="store_true", help="name its studies and stop")
    options = parser.parse_args(arguments)
    try:
        sweep = load_sweep(options.sweep)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    if options.list:
        print(*(study.study for study in sweep.members.values()), sep="\n")
        return 0
    missing = gather(sweep)
    for part in missing:
        print(f"{part['step']}: {part['why']}", file=sys.stderr)
    print("Report:", paths.report_dir(sweep.name) / "index.html")
    return 1 if missing else 0


def _means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean of the values of each condition, table and metric over people and seeds."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row.get("value") and row.get("subject") != "all":
            names = ("sweep_condition", "fold", *_CELL)
            groups.setdefault(tuple(row.get(name, "") for name in names), []).append(row)
    return [
        dict(zip(("sweep condition", "fold", *_CELL), key, strict=True))
        | {
            "mean": f"{statistics.fmean(float(row['value']) for row in group):.4g}",
            "people": len({row.get("subject") for row in group}),
            "seeds": len({row.get("seed") for row in group}),
        }
        for key, group in groups.items()
    ]
