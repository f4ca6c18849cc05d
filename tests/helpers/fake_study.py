"""A miniature of the project in a temporary folder: the real package and Snakefile, tiny notebooks.

The notebooks hold no science; they read and write artifacts as the real ones do, in a second each.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

from sgdm_utils.workflow import paths

ROOT = Path(__file__).resolve().parents[2]

_PARAMETERS = {
    "00_data": 'study: str = "demo"  # name\nsize: int = 4  # numbers\nseed: int = 7  # any',
    "01_preprocessing": 'study: str = "demo"\nsubject: str = "sub-01"\nscale: float = 2.0  # unit',
}
_LATER = 'study: str = "demo"\nseed: int = 0\nrate: float = 0.5  # learning rate'

_READ = {
    "00_data": "inputs = []",
    "01_preprocessing": 'inputs = [workflow.read_artifact(study, "joint", "data")]',
}
_LAST_PAGE = """
page = workflow.page_dir(workflow.load_study(study), seed) / "index.html"
page.parent.mkdir(parents=True, exist_ok=True)
page.write_text("<h1>done</h1>")"""


def notebook(stage: paths.Stage) -> nbformat.NotebookNode:
    """Return the tiny notebook of one stage."""
    names = [line.split(":")[0] for line in _PARAMETERS.get(stage.notebook, _LATER).splitlines()]
    who = "subject" if stage.per_subject else '"joint"'
    seed = "seed" if stage.per_seed else "None"
    read = _READ.get(stage.notebook)
    if read is None:
        people = "subjects" if "preprocessing" in stage.reads else "()"
        read = (
            'subjects = workflow.read_artifact(study, "joint", "data").notes["subjects"]\n'
            f'inputs = [workflow.read_artifact(study, s, "preprocessing") for s in {people}]'
        )
        read += "".join(
            f'\ninputs.append(workflow.read_artifact(study, "joint", "{s.name}", seed))'
            for s in map(paths.STAGES.get, stage.reads)
            if s.per_seed
        )
    write = (
        f"values = dict({', '.join(f'{n}={n}' for n in names)})\n"
        'notes = {"subjects": ["sub-01", "sub-02"]}\n'
        f'with workflow.write_artifact(study, {who}, "{stage.name}", {seed}, inputs=inputs,\n'
        f'        notebook="{stage.notebook}", parameters=values, notes=notes) as out:\n'
        '    (out / "numbers.txt").write_text(str(helper.numbers(values)))'
    )
    if stage.name == "report":
        write += _LAST_PAGE
    new = nbformat.v4
    cells = [
        new.new_markdown_cell(f"# {stage.notebook}\n\nA title."),
        new.new_code_cell(
            _PARAMETERS.get(stage.notebook, _LATER), metadata={"tags": ["parameters"]}
        ),
        new.new_markdown_cell("## Reading"),
        new.new_code_cell(f"from sgdm_utils import helper, workflow\n{read}"),
        new.new_markdown_cell("## Writing the result"),
        new.new_code_cell(write),
    ]
    book = new.new_notebook(cells=cells)
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return book


class FakeProject:
    """The project in `root`, with commands run in it.

    Parameters
    ----------
    root : Path
        Its folder; `create` builds it, the constructor takes it as it is.
    """

    def __init__(self, root: Path):
        self.root = root
        self.helper = root / "sgdm_utils" / "helper.py"

    @classmethod
    def create(cls, root: Path) -> FakeProject:
        """Build the project in an empty folder."""
        self = cls(root)
        package = root / "sgdm_utils"
        package.mkdir(parents=True)
        for name in ("__init__.py", "__main__.py"):
            shutil.copy(ROOT / "sgdm_utils" / name, package)
        shutil.copytree(
            ROOT / "sgdm_utils" / "workflow",
            package / "workflow",
            ignore=shutil.ignore_patterns("downloads", "__pycache__"),
        )
        self.write_helper("len(values)")
        shutil.copy(ROOT / "Snakefile", root)
        (root / "pyproject.toml").write_text("")
        (root / "requirements.lock").write_text("numpy==2.0\n")
        (root / "config").mkdir()
        for name in ("schema.json", "sweep.schema.json"):
            shutil.copy(ROOT / "config" / name, root / "config")
        shutil.copytree(ROOT / "config" / "profiles", root / "config" / "profiles")
        self.write_config()
        (root / "notebooks").mkdir()
        for stage in paths.STAGES.values():
            self.write_notebook(stage.notebook, notebook(stage))
        return self

    def write_helper(self, expression: str, comment: str = "") -> None:
        """Replace the module that all notebooks import."""
        self.helper.write_text(f"def numbers(values):\n    return {expression}  # {comment}\n")

    def write_config(
        self,
        notebooks: str = "{}",
        seeds: str = "[0]",
        extra: str = "",
        people: str = "[sub-01, sub-02]",
    ) -> None:
        """Replace config/demo.yaml."""
        (self.root / "config" / "demo.yaml").write_text(
            f"study: demo\nsubjects: {people}\nseeds: {seeds}\nnotebooks: {notebooks}\n{extra}"
        )

    def write_notebook(self, name: str, book: nbformat.NotebookNode) -> None:
        """Replace a notebook."""
        nbformat.write(book, self.root / "notebooks" / f"{name}.ipynb")

    def edit_notebook(self, name: str, old: str, new: str) -> None:
        """Replace text in the sources of a notebook's cells."""
        path = self.root / "notebooks" / f"{name}.ipynb"
        book = nbformat.read(path, as_version=4)
        assert any(old in cell.source for cell in book.cells), f"{old!r} is not in {name}"
        for cell in book.cells:
            cell.source = cell.source.replace(old, new)
        nbformat.write(book, path)

    def python(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
        """Run the interpreter with this copy of the package."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd or self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=900,
        )

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
        """Run ``python -m sgdm_utils run``."""
        return self.python("-m", "sgdm_utils", "run", *arguments, cwd=cwd)

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run the workflow of the study demo, as `make demo` does."""
        return self.python(
            *("-m", "snakemake", "--cores", "1", "--config", "study=demo", *arguments)
        )

    def environment(self) -> dict[str, str]:
        """Return the environment in which commands find this copy and write into it."""
        drop = ("SGDM_DATA", "SGDM_REPORTS", "PYTEST_CURRENT_TEST")
        clean = {key: value for key, value in os.environ.items() if key not in drop}
        return clean | {"PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}

    def artifact(self, who: str, stage: str, seed: int | None = None) -> Path:
        """Return the folder of an artifact of the study demo."""
        folder = self.root / "data" / "derived" / "demo" / who
        return folder / stage if seed is None else folder / f"seed-{seed}" / stage
