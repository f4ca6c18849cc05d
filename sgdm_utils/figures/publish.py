"""Publish the last demo: outputs into the committed notebooks, the table of results into README.md.

``python -m sgdm_utils publish``, after ``make demo`` and ``make experiments``; `make notebooks` calls it.

Only outputs (without stderr) and execution counts are taken, and only from a run of exactly the code that stands in
``notebooks/``: an edit made since is neither lost nor given the outputs of older code. The text may have been edited.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
from collections.abc import Sequence

import nbformat
from PIL import Image

from sgdm_utils.figures import readme_table
from sgdm_utils.workflow import config, paths

LARGE = 120_000  # bytes of a figure beyond which it is stored with fewer shades
SHADES = 32  # of each of red, green and blue


def smaller(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Store a large figure with 32 shades of each colour: a notebook should open quickly and stay below 1 MB.

    (A palette of 256 colours is smaller, but turned yellow drawings orange.)
    """
    png = output.get("data", {}).get("image/png")
    if png and len(png) > LARGE:
        picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
        step, packed = 255 / (SHADES - 1), io.BytesIO()
        nearest = [round(round(shade / step) * step) for shade in range(256)]
        picture.point(nearest * 3).save(packed, "PNG", optimize=True)
        output["data"]["image/png"] = base64.b64encode(packed.getvalue()).decode() + "\n"
    return output


def adopt(step: config.Step) -> str | None:
    """Copy the outputs of one executed notebook; return what stands in the way, if anything."""
    if not step.executed.is_file():
        return f"{paths.relative(step.executed)} is not there: run make demo (or make experiments)"
    target = paths.notebook_path(step.notebook)
    notebook = nbformat.read(target, as_version=4)
    executed = nbformat.read(step.executed, as_version=4)
    code, ran = ([c for c in book.cells if c.cell_type == "code"] for book in (notebook, executed))
    if len(code) != len(ran):
        return f"{step.notebook} has other code than its executed copy: run make demo (or make experiments)"
    for number, (cell, done) in enumerate(zip(code, ran, strict=True), 1):
        if cell.source != done.source:
            return (
                f"code cell {number} of {step.notebook} has been edited since it ran: run make demo "
                "(or make experiments)"
            )
        if any(output.output_type == "error" for output in done.outputs):
            return f"code cell {number} of {step.notebook} failed: the study has to run through"
        # warnings name files of the machine that ran them, and nbval does not compare them
        told = [smaller(o) for o in done.outputs if o.get("name") != "stderr"]
        cell.outputs, cell.execution_count = told, done.execution_count
    if "widgets" in executed.metadata:
        notebook.metadata.widgets = executed.metadata.widgets
    nbformat.write(notebook, target)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish first subject and first seed, which are the defaults; return 1 where something stands in the way."""
    parser = argparse.ArgumentParser(
        prog="python -m sgdm_utils publish", description=__doc__.split("\n")[0]
    )
    parser.parse_args(arguments)
    study = config.load_study("demo")
    first: dict[str, config.Step] = {}
    for step in config.plan(study):
        first.setdefault(step.notebook, step)
    for path in sorted((paths.notebook_dir() / "experiments").glob("*.ipynb")):
        step = config.step(study, f"experiments/{path.stem}", seed=study.seeds[0])
        if step.executed.is_file():  # they are run one by one, so some may not have been
            first[step.notebook] = step
    problems = [problem for step in first.values() if (problem := adopt(step))]
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        return 1
    readme = paths.project_root() / "README.md"
    text = readme_table.fill(readme.read_text(encoding="utf-8"), readme_table.results())
    readme.write_text(text, encoding="utf-8")
    print(f"published: {', '.join(first)}; {readme.name}")
    return 0
