"""The committed notebooks: made to be read, run from top to bottom, and checked by live checks."""

from __future__ import annotations

import ast
import json
import re
import statistics
import subprocess
import sys

import nbformat
import papermill
import pytest

from sgdm_utils.workflow import paths
from sgdm_utils.workflow.parameters import declared

FOLDER = paths.notebook_dir()
NOTEBOOKS = sorted(p for p in FOLDER.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
CHECK = "nbval-check-output"
MAX_LINES, MEDIAN_LINES = 25, 8  # of the code cells but the parameters, blank lines not counted
#: Say nothing about what they hold.
PRONOUNS = (
    "told own mine here found made shown who whose given kept some few certain exact vague nothing said"
).split()
MAX_BYTES = 1_000_000

FORBIDDEN = {
    "a shell command: its failure goes unnoticed": re.compile(r"^\s*!", re.MULTILINE),
    "a cell magic": re.compile(r"^\s*%%", re.MULTILINE),
    "%autoreload: what ran is not what is stored": re.compile(r"autoreload"),
    "sys.path: install the package instead": re.compile(r"sys\.path"),
    "a blanket warning filter: name the category or message": re.compile(
        r"(filterwarnings|simplefilter)\(\s*[\"']ignore[\"']\s*\)"
    ),
}
#: A slash, a name that file systems have at their root, and another slash; or a Windows drive.
ABSOLUTE = re.compile(
    r"(?<![\w.:/<>-])(/(home|Users|root|tmp|mnt|opt|var|work|private|workspace|content|scratch|data)/"
    r"|[A-Za-z]:\\\\?\w)"
)


@pytest.fixture(params=NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])
def path(request):
    return request.param


@pytest.fixture
def book(path):
    return nbformat.read(path, as_version=4)


def code(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def test_every_stage_has_its_notebook():
    there = {path.stem for path in NOTEBOOKS}
    assert {stage.notebook for stage in paths.STAGES.values()} <= there


def test_the_first_code_cell_is_the_parameters_and_each_has_a_type_and_a_comment(path, book):
    assert tags(code(book)[0]) == ["parameters"], "the first code cell carries the tag parameters"
    assert [cell for cell in code(book) if "injected-parameters" in tags(cell)] == []
    found = declared(path)  # refuses what is not 'name: type = literal'
    assert found["study"].default == "demo"
    assert [name for name, parameter in found.items() if not parameter.help] == []


def test_papermill_alone_sees_the_same_parameters(path):
    """For those who do without sgdm_utils.workflow.run: papermill loses lines with two equals signs."""
    assert list(papermill.inspect_notebook(path)) == list(declared(path))


NOT_RUN_AGAIN = (
    "**Stored outputs**"  # how such a notebook begins the sentence that says of when they are
)


def test_it_ran_from_top_to_bottom_without_an_error(book):
    """Or it says, where everybody sees it, that its outputs are those of an earlier version."""
    counts = [cell.execution_count for cell in code(book)]
    if NOT_RUN_AGAIN in book.cells[0].source:
        assert not any(counts), "it was run again: take the sentence out"
    else:
        assert counts == list(range(1, len(counts) + 1))
    kinds = [output.output_type for cell in code(book) for output in cell.outputs]
    assert "error" not in kinds


def test_it_has_check_cells_and_each_prints_text_that_nbval_compares(book):
    checks = [cell for cell in code(book) if CHECK in tags(cell)]
    assert checks, f"no cell carries the tag {CHECK}"
    for cell in checks:
        compared = [
            output.get("text", "") or output.get("data", {}).get("text/plain", "")
            for output in cell.outputs
            if output.get("name") != "stderr"
        ]
        assert "".join(compared).strip(), f"nothing to compare in: {cell.source[:80]}"
        pictures = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        assert not pictures, f"a picture is not compared; a check cell prints: {cell.source[:80]}"


def test_it_holds_no_absolute_path(path):
    found = ABSOLUTE.search(without_pictures(path))
    assert not found, found and found.string[max(0, found.start() - 80) : found.end() + 40]


def test_the_search_for_absolute_paths_finds_some_and_leaves_the_rest():
    for text in ("see /home/me/x", '"/tmp/x"', "C:\\data", "(/opt/a/x)", "file: /Users/a/b"):
        assert ABSOLUTE.search(text), text
    for text in ("data/raw/x", "https://a.org/home/x", "and/or", "reports/data/x", "</data/>"):
        assert not ABSOLUTE.search(text), text


def test_it_does_nothing_that_hides_a_failure(book):
    for cell in code(book):
        for what, pattern in FORBIDDEN.items():
            assert not pattern.search(cell.source), f"{what}:\n{cell.source}"


#: Notebooks whose table is of all training seeds at once, or of none.
OF_ALL_SEEDS = {
    "10_encoders",
    "10b_whitened",
    "11_baselines",
    "12_ablation",
    "17_human_test",
    "20_seeds",
    "26_parts",
}


def test_its_table_keeps_the_rows_of_other_seeds(path, book):
    """`make experiments SEED=1` must not take away what seed 0 found."""
    if path.stem not in OF_ALL_SEEDS:
        assert not [c for c in code(book) if "write_table(run.table_path" in c.source]


def test_it_can_be_read(book):
    """A sentence before every cell, cells of one idea, and names that say what they hold."""
    kinds = [cell.cell_type for cell in book.cells]
    assert kinds[0] == "markdown"
    assert ("code", "code") not in set(zip(kinds, kinds[1:], strict=False))
    cells = [cell.source for cell in code(book) if "parameters" not in tags(cell)]
    lengths = [sum(bool(line.strip()) for line in source.splitlines()) for source in cells]
    assert max(lengths) <= MAX_LINES and statistics.median(lengths) <= MEDIAN_LINES
    unclear = {name for source in cells for name in named(source)} & set(PRONOUNS)
    assert not unclear, f"call them by what they hold: {', '.join(sorted(unclear))}"


def named(source: str) -> set[str]:
    """Names that a cell assigns, defines or takes as arguments."""
    nodes = list(ast.walk(ast.parse(source)))
    stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    defined = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    return stored | defined | {n.arg for n in nodes if isinstance(n, ast.arg)}


def test_the_names_of_a_cell_are_found_wherever_they_are_given():
    cell = "told, x.y = 1, 2\nfor own in z: pass\ndef mine(here, *made): return [w for w in v]"
    assert named(cell) == {"told", "own", "mine", "here", "made", "w"}


def test_it_is_small_enough_to_look_at_in_a_browser(path):
    assert path.stat().st_size < MAX_BYTES


def test_it_says_what_it_is_about_and_how_it_differs_from_the_paper(book):
    first = book.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    texts = [cell.source for cell in book.cells if cell.cell_type == "markdown"]
    table = re.compile(r"^\|.*\bPaper\b[^|\n]*\|\s*Ours\s*\|\s*Why\s*\|\s*$", re.MULTILINE)
    assert any(table.search(text) for text in texts), "no table with Paper | Ours | Why"


def test_its_metadata_is_that_of_the_notebook_not_of_a_run(book):
    assert book.metadata.kernelspec.name == "python3"
    assert "papermill" not in book.metadata
    for cell in book.cells:
        assert not {"papermill", "execution"} & set(cell.metadata)


def without_pictures(path) -> str:
    """Return all text of a notebook: sources, outputs and metadata, without encoded pictures."""
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        cell.pop("attachments", None)
        for output in cell.get("outputs", []):
            for kind in [k for k in output.get("data", {}) if k.startswith("image/")]:
                del output.data[kind]
    return json.dumps(book, ensure_ascii=False).replace("\\n", "\n")


@pytest.fixture
def checked(tmp_path):
    """A tiny notebook with a check cell, and what nbval says about it when called."""
    new = nbformat.v4

    def run(stored: str) -> subprocess.CompletedProcess:
        output = new.new_output("stream", name="stdout", text=stored)
        cells = [
            new.new_code_cell("import warnings\nx = 2", execution_count=1),
            new.new_code_cell(
                "warnings.warn('not the same everywhere')\nprint('x =', x)",
                execution_count=2,
                outputs=[output],
                metadata={"tags": [CHECK]},
            ),
        ]
        book = new.new_notebook(cells=cells)
        book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(book, tmp_path / "tiny.ipynb")
        root = paths.project_root()
        return subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
                *("--nbval-lax", "--nbval-current-env"),
                *("--nbval-sanitize-with", str(root / "tests/chain/nbval_sanitize.cfg")),
                *("--rootdir", str(tmp_path), "-c", str(root / "pyproject.toml")),
                *("-p", "conftest", str(tmp_path / "tiny.ipynb")),
            ],
            cwd=root,
            capture_output=True,
            text=True,
        )

    return run


def test_nbval_passes_what_is_the_same(checked):
    done = checked("x = 2\n")
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_nbval_fails_what_was_altered(checked):
    done = checked("x = 3\n")
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout
