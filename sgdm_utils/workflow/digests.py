"""Digests of code: which notebook cells, helper modules and locked packages stand behind a number.

Comments, blank lines, docstrings and the parameters cell do not count (parameters are recorded by
value). Modules that only move files and messages about do not count either.

Notebooks import rooms (``from sgdm_utils import metrics``) and take names from their faces
(``pixels.pixcorr``). A name is followed through the face, the room's ``__init__.pyi``, to the module
that defines it: an edit of ``metrics/memorisation.py`` concerns the notebook that audits memorisation
and not every notebook that computes a correlation. Modules of the reader's own that lie beside a
notebook count, too.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import json
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

from sgdm_utils.errors import reading
from sgdm_utils.workflow import atomic, paths

PACKAGE = "sgdm_utils"

#: Rooms whose own modules keep the books: their edits change no number. (What lies in a folder of
#: such a room, like the downloads, counts.)
BOOKKEEPING = frozenset({"workflow"})
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
    sources = [kept for kept in map(essence, cells) if kept.strip()]
    digest = hashlib.sha256(json.dumps(sources).encode()).hexdigest()
    return {"notebook": digest, "modules": module_digests(cells, path.parent)}


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
    content = Path(path).read_bytes()
    with reading(path, "a notebook", "Restore it from git"):
        return [
            source if isinstance(source := cell["source"], str) else "".join(source)
            for cell in json.loads(content)["cells"]
            if cell["cell_type"] == "code"
            and not _PARAMETER_TAGS.intersection(cell["metadata"].get("tags", []))
        ]


def module_digests(sources: Sequence[str], beside: Path | None = None) -> dict[str, str]:
    """Return the digest of each module that `sources` use, also indirectly.

    Parameters
    ----------
    sources : sequence of str
        Cells of one notebook, or texts of modules; names that one of them imports are followed in
        all of them.
    beside : Path, optional
        Folder of the notebook; modules that it holds are importable from there.

    Returns
    -------
    dict of str to str
        SHA-256 by dotted name below the package (``"metrics.pixels"``); modules beside the notebook
        by ``"./name"``.
    """
    root = Path(__file__).resolve().parent.parent
    found: dict[str, str] = {}
    waiting = _used(tuple(sources), root, beside)
    while waiting:
        name = waiting.pop()
        path = beside / f"{name[2:]}.py" if name.startswith("./") else _file(root, name)
        *rooms, _ = name.split(".")
        if name in found or path is None or (len(rooms) == 1 and rooms[0] in BOOKKEEPING):
            continue
        source = path.read_text(encoding="utf-8")
        parts = [essence(source), *_assets(source, path.parent)]
        found[name] = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        waiting |= _used((source,), root, beside)
    return dict(sorted(found.items()))


@functools.lru_cache(maxsize=1024)  # the same modules stand behind every artifact that is read
def essence(source: str) -> str:
    """Return `source` without comments, docstrings and blank lines, if it is plain Python."""
    try:
        nodes = _nodes(source)
        comments = [
            t
            for t in tokenize.generate_tokens(io.StringIO(source).readline)
            if t.type == tokenize.COMMENT
        ]
    except (SyntaxError, tokenize.TokenError):
        return source
    lines = source.splitlines()
    for comment in comments:  # before the docstrings: a line is cut, the numbering stays
        row, column = comment.start
        lines[row - 1] = lines[row - 1][:column]
    for first, last in _docstrings(nodes):
        lines[first - 1 : last] = [""] * (last - first + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


@functools.lru_cache(maxsize=4)  # what is asked for twice is asked for at once
def _nodes(source: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(source)))


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


def _used(sources: tuple[str, ...], root: Path, beside: Path | None) -> set[str]:
    """Names of the modules that some sources use, rooms resolved to what is taken from them."""
    modules: set[str] = set()
    chains: list[tuple[str, ...]] = []
    imported: dict[str, str] = {}  # local name -> dotted name of a folder of the package
    for source in sources:
        imports, found = _imports_and_chains(source)
        chains += found
        for module, name, local in imports:
            if module is None:
                if beside is not None and (beside / f"{name}.py").is_file():
                    modules.add(f"./{name}")
                continue
            whole = ".".join(filter(None, (module, name)))
            if _file(root, whole):
                modules.add(whole)
            elif _is_folder(root, whole):
                imported[local or whole.split(".")[-1]] = whole
            elif _file(root, module):
                modules.add(module)
            else:
                modules |= _through_face(root, module, name)
    for first, *rest in chains:
        if first in imported:
            modules |= _resolve(root, imported[first], rest)
    return modules


def _resolve(root: Path, folder: str, attributes: list[str]) -> set[str]:
    """Modules behind ``folder.attribute.attribute``; all of the folder where it is used as such."""
    if not attributes:
        return {f"{folder}.{path.stem}" for path in (root / folder.replace(".", "/")).glob("*.py")}
    first, *rest = attributes
    if _is_folder(root, f"{folder}.{first}"):
        return _resolve(root, f"{folder}.{first}", rest)
    if _file(root, f"{folder}.{first}"):
        return {f"{folder}.{first}"}
    return _through_face(root, folder, first)


def _through_face(root: Path, folder: str, name: str | None) -> set[str]:
    """The module that a folder's face takes a name from; the whole folder where it is not known."""
    if not _is_folder(root, folder):
        return set()
    module = _face(root / folder.replace(".", "/") / "__init__.pyi").get(name)
    return {f"{folder}.{module}"} if module else _resolve(root, folder, [])


@functools.lru_cache(maxsize=64)
def _face(stub: Path) -> dict[str, str]:
    """Name -> module (dotted, below the folder), as the stub of a room declares them."""
    if not stub.is_file():
        return {}
    tree = ast.parse(stub.read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.name: node.module for node in nodes for alias in node.names}


def _file(root: Path, name: str) -> Path | None:
    path = root / f"{name.replace('.', '/')}.py"
    return path if name and path.is_file() and path.stem != "__init__" else None


def _is_folder(root: Path, name: str) -> bool:
    return bool(name) and (root / name.replace(".", "/") / "__init__.py").is_file()


def _assets(source: str, folder: Path) -> list[str]:
    """Digests of the files in ``assets`` beside a module that names that folder."""
    if '"assets"' not in source:
        return []
    return [atomic.digest_file(path) for path in sorted((folder / "assets").glob("*"))]


@functools.lru_cache(maxsize=1024)
def _imports_and_chains(
    source: str,
) -> tuple[list[tuple[str | None, str | None, str | None]], list[tuple[str, ...]]]:
    """Imports as (module below the package or None, name, local name), and dotted names in use."""
    try:
        nodes = _nodes(source)
    except SyntaxError:  # magics of IPython
        lines = source.splitlines()
        plain = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines)
        try:
            nodes = _nodes(plain)
        except SyntaxError:
            return [], []
    imports: list[tuple[str | None, str | None, str | None]] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                first, *rest = alias.name.split(".")
                if first == PACKAGE and rest:
                    imports.append((".".join(rest), None, None))
                elif not rest:
                    imports.append((None, first, None))
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            first, *rest = (node.module or "").split(".")
            if first == PACKAGE:
                imports += [(".".join(rest), a.name, a.asname or a.name) for a in node.names]
            elif not rest:
                imports.append((None, first, None))
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    chains = [
        chain
        for node in nodes
        if isinstance(node, ast.Attribute | ast.Name) and id(node) not in inner
        if (chain := _chain(node))
    ]
    return imports, chains


def _chain(node: ast.AST) -> tuple[str, ...]:
    """``a.b.c`` as a tuple; empty for what begins with something else than a name."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return (node.id, *reversed(names)) if isinstance(node, ast.Name) else ()
