"""Digests of code: which notebook cells, helper modules and locked packages stand behind a number.

Comments, blank lines, docstrings and the parameters cell do not count (parameters are recorded by
value). Modules that only move files and messages about do not count either.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import json
import tokenize
from collections.abc import Iterator
from pathlib import Path

from sgdm_utils import atomic, paths

PACKAGE = "sgdm_utils"

#: Modules whose edits change no number.
BOOKKEEPING = frozenset(
    {
        "__init__",
        "atomic",
        "config",
        "digests",
        "machine",
        "manifests",
        "parameters",
        "paths",
        "progress",
        "provenance",
        "run",
        "schemas",
    }
)
_PARAMETER_TAGS = {"parameters", "injected-parameters"}


def code_digests(notebook: str) -> dict[str, object]:
    """Return the digests of a notebook's code and of each helper module it uses.

    Parameters
    ----------
    notebook : str
        Stem of a notebook in ``notebooks/``.

    Returns
    -------
    dict
        ``{"notebook": sha, "modules": {name: sha}}``; modules that are imported by imported modules
        are included.

    Raises
    ------
    FileNotFoundError
        When there is no such notebook.
    """
    path = paths.notebook_path(notebook)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no notebook {notebook!r} in {paths.relative(path.parent)}"
        )
    cells = code_cells(path)
    sources = [essence(cell) for cell in cells]
    digest = hashlib.sha256(json.dumps(sources).encode()).hexdigest()
    return {"notebook": digest, "modules": module_digests(cells)}


def notebook_code_digest(notebook: str) -> str:
    """Return one digest for a notebook's code, the helper modules it uses and the lock file."""
    found = code_digests(notebook)
    modules = {f"module {name}": digest for name, digest in found["modules"].items()}
    return atomic.digest_listing(
        {"notebook": found["notebook"], "lock": lock_digest() or "", **modules}
    )


def lock_digest() -> str | None:
    """Return the digest of ``requirements.lock``, None where there is none."""
    lock = paths.project_root() / "requirements.lock"
    return atomic.digest_file(lock) if lock.is_file() else None


def code_cells(path: Path) -> list[str]:
    """Return the sources of a notebook's code cells, without the parameters."""
    notebook = json.loads(Path(path).read_text(encoding="utf-8"))
    return [
        source if isinstance(source := cell["source"], str) else "".join(source)
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
        and not _PARAMETER_TAGS.intersection(cell["metadata"].get("tags", []))
    ]


def module_digests(sources: list[str]) -> dict[str, str]:
    """Return the digest of each of the package's modules that `sources` import, also indirectly."""
    folder = Path(__file__).resolve().parent
    waiting = {name for source in sources for name in _imported(source)}
    found: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        path = folder / f"{name}.py"
        if name in found or name in BOOKKEEPING or not path.is_file():
            continue
        source = path.read_text(encoding="utf-8")
        found[name] = hashlib.sha256(essence(source).encode()).hexdigest()
        waiting |= set(_imported(source))
    return dict(sorted(found.items()))


def essence(source: str) -> str:
    """Return `source` without comments, docstrings and blank lines, if it is plain Python."""
    return _essence_and_imports(source)[0]


def _imported(source: str) -> tuple[str, ...]:
    """Return the names of the package's modules that a source imports."""
    plain = "\n".join(
        "" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines()
    )
    return _essence_and_imports(source)[1] or _essence_and_imports(plain)[1]


@functools.lru_cache(maxsize=1024)  # the same modules stand behind every artifact that is read
def _essence_and_imports(source: str) -> tuple[str, tuple[str, ...]]:
    """What `essence` and `_imported` return, from one look at the syntax tree."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
        comments = [
            t
            for t in tokenize.generate_tokens(io.StringIO(source).readline)
            if t.type == tokenize.COMMENT
        ]
    except (SyntaxError, tokenize.TokenError):
        return source, ()
    lines = source.splitlines()
    for comment in comments:  # before the docstrings: a line is cut, the numbering stays
        row, column = comment.start
        lines[row - 1] = lines[row - 1][:column]
    for first, last in _docstrings(nodes):
        lines[first - 1 : last] = [""] * (last - first + 1)
    kept = "\n".join(line.rstrip() for line in lines if line.strip())
    return kept, tuple(_imports(nodes))


def _docstrings(nodes: list[ast.AST]) -> Iterator[tuple[int, int]]:
    for node in nodes:
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body
        ):
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                yield first.lineno, first.end_lineno


def _imports(nodes: list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith(f"{PACKAGE}."):
                    yield alias.name.split(".")[1]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            inside = module.removeprefix(PACKAGE).lstrip(".") if node.level == 0 else module
            if node.level == 0 and module.split(".")[0] != PACKAGE:
                continue
            if inside:
                yield inside.split(".")[0]
            else:
                yield from (alias.name for alias in node.names)
