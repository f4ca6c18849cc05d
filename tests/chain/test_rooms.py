"""The rooms of the package: few names at the first level, faces that hold, one door."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys

import nbformat
import pytest

from sgdm_utils.workflow import paths

PACKAGE = paths.project_root() / "sgdm_utils"
ROOMS = sorted(p.parent.name for p in PACKAGE.glob("*/__init__.py"))
FACES = sorted(PACKAGE.rglob("__init__.pyi"))
NOTEBOOKS = sorted(paths.notebook_dir().rglob("*.ipynb"))


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=paths.project_root(), capture_output=True, text=True
    )


def test_there_are_ten_rooms_and_few_names_at_the_first_level():
    assert len(ROOMS) == 10
    names = [p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" and p.stem != "__init__"]
    assert len(names) + len(ROOMS) <= 16
    map_of_rooms = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    assert [room for room in ROOMS if f"\n{room} " not in map_of_rooms] == []


@pytest.mark.parametrize(
    "face", FACES, ids=[p.parent.relative_to(PACKAGE).as_posix() for p in FACES]
)
def test_every_name_of_a_face_is_there(face):
    tree = ast.parse(face.read_text(encoding="utf-8"))
    aliases = [a for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names]
    # the lazy loader does not know "import a as b": the name would be missing at run time
    assert aliases and all(alias.asname is None for alias in aliases)
    room = importlib.import_module(".".join(face.parent.relative_to(PACKAGE.parent).parts))
    assert [a.name for a in aliases if not hasattr(room, a.name)] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])
def test_no_variable_of_a_notebook_hides_a_room(path):
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    nodes = [node for cell in cells for node in ast.walk(ast.parse(cell.source))]
    assigned = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    assigned |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    assert not assigned & set(ROOMS)


def test_the_workflow_is_light():
    """Snakemake imports it before every job, and so does the first cell of every notebook."""
    heavy = ("torch", "mne", "diffusers", "open_clip", "sklearn")
    done = python("-c", "import sys; from sgdm_utils import workflow; workflow.begin, workflow.load_study; "
                  f"print([m for m in {heavy} if m in sys.modules])")  # fmt: skip
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_what_a_notebook_begins_with_is_light():
    """What it may need later is loaded when it does; the runner's kernels collect from here on."""
    heavy = ("seaborn", "torchmetrics", "torchvision", "diffusers", "transformers", "sklearn",
             "skimage", "scipy.stats", "scipy.optimize")  # fmt: skip
    done = python("-c", "import gc, os, sys; os.environ['TORCH_HOME'] = 'nowhere'; "
                  "gc.disable(); from sgdm_utils import figures, workflow; "
                  "from sgdm_utils.metrics import suite; from sgdm_utils.workflow import config; "
                  "known = config.notebook_parameters('06_evaluation'); figures.use_style(); "
                  "workflow.begin('06_evaluation', {k: v.default for k, v in known.items()}); "
                  "suite.full_suite(names=['two_way_alexnet_2', 'lpips_vgg']).reset(); "
                  f"print(gc.isenabled(), [m for m in {heavy} if m in sys.modules])")  # fmt: skip
    assert done.stdout.strip() == "True []", done.stdout + done.stderr


def test_one_door_lists_its_commands_and_refuses_others():
    done = python("-m", "sgdm_utils")
    commands = ("run", "fetch", "score", "convert-muse", "publish")
    assert done.returncode == 0 and all(command in done.stdout for command in commands)
    done = python("-m", "sgdm_utils", "ran")
    assert done.returncode == 2 and "did you mean 'run'?" in done.stderr


@pytest.mark.parametrize(
    ("old", "arguments", "new"),
    [
        ("sgdm_utils.run", ["--list", "--study", "smoke"], "run"),
        ("sgdm_utils.downloads", ["list"], "fetch"),
        ("sgdm_utils.muse", ["--help"], "convert-muse"),
        ("sgdm_utils.metrics", ["--help"], "score"),
    ],
)
def test_an_old_command_works_and_says_where_it_went(old, arguments, new):
    done = python("-m", old, *arguments)
    assert done.returncode == 0, done.stderr
    assert f"is now: python -m sgdm_utils {new}" in done.stderr and done.stdout
