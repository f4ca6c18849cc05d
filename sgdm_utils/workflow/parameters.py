"""What a notebook's parameters cell declares, and whether a value fits the declaration.

The cell is read as Python, not by papermill's pattern, which loses a parameter when its comment
contains an equals sign or its type is written ``int | None``.
"""

from __future__ import annotations

import ast
import io
import json
import math
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TAG = "parameters"
_SIMPLE = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}


class ParameterError(ValueError):
    """The parameters cell is missing, or a line of it is not ``name: type = literal``."""


@dataclass(frozen=True)
class Parameter:
    """One declared parameter.

    Attributes
    ----------
    name : str
        Name of the variable.
    annotation : str
        Declared type, as written.
    default : object
        Value of the literal.
    help : str
        Comment on its lines.
    """

    name: str
    annotation: str
    default: Any
    help: str


def declared(notebook: Path) -> dict[str, Parameter]:
    """Return the parameters of a notebook, by name, in the order of their declaration.

    Raises
    ------
    ParameterError
        When the file is no notebook, has no cell tagged ``parameters``, or declares something that
        is no annotated literal of a known type.
    """
    try:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
        tagged = [cell for cell in cells if _TAG in cell.get("metadata", {}).get("tags", [])]
        sources = [cell["source"] for cell in tagged]
        sources = [s if isinstance(s, str) else "".join(s) for s in sources]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ParameterError(f"this is no notebook ({type(error).__name__}: {error})") from error
    if len(tagged) != 1:
        raise ParameterError(f"{len(tagged)} cells are tagged '{_TAG}' where there must be one")
    return parse(sources[0])


def parse(source: str) -> dict[str, Parameter]:
    """Return the parameters that the source of a parameters cell declares, by name.

    Raises
    ------
    ParameterError
        See `declared`.
    """
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise ParameterError(f"the parameters cell is no valid Python: {error}") from error
    comments = _comments(source)
    found: dict[str, Parameter] = {}
    for statement in statements:
        text = ast.get_source_segment(source, statement) or ""
        if not (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.value is not None
        ):
            raise ParameterError(f"{text!r} in the parameters cell is not 'name: type = literal'")
        try:
            default = ast.literal_eval(statement.value)
        except ValueError as error:
            raise ParameterError(
                f"{text!r}: a parameter is a literal; compute from it in the next cell"
            ) from error
        name = statement.target.id
        annotation = statement.annotation
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        lines = range(statement.lineno, statement.end_lineno + 1)
        comment = " ".join(comments[line] for line in lines if line in comments)
        parameter = Parameter(name, ast.unparse(annotation), default, comment)
        if name in found:
            raise ParameterError(f"parameter {name!r} is declared twice")
        if problem := type_problem(parameter, default):
            raise ParameterError(f"the default of parameter {name!r}: {problem}")
        found[name] = parameter
    return found


def type_problem(parameter: Parameter, value: Any) -> str | None:
    """Return what is wrong with `value` for a parameter, and the remedy; None when it fits.

    Raises
    ------
    ParameterError
        When the declared type is none that can be checked.
    """
    if _fits(ast.parse(parameter.annotation, mode="eval").body, value):
        return None
    problem = (
        f"{value!r} is of type {type(value).__name__} where "
        f"{parameter.annotation} is declared (default {parameter.default!r})"
    )
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, float) and not math.isfinite(entry):
            return f"{problem}: it is not finite, and nothing can be computed with it"
        if isinstance(entry, bool) and "str" in parameter.annotation:
            return (
                f"{problem}. YAML reads yes, no, on and off as true and false: put text in quotes"
            )
        if remedy := _as_number(entry, parameter.annotation):
            return f"{problem}. YAML reads this as text: write {remedy}"
    return problem


def _fits(annotation: ast.expr, value: Any) -> bool:
    match annotation:
        case ast.Constant(value=None):
            return value is None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fits(left, value) or _fits(right, value)
        case ast.Name(id="float"):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and math.isfinite(value)
        case ast.Name(id="int"):
            return isinstance(value, int) and not isinstance(value, bool)
        case ast.Name(id=name) if name in _SIMPLE:
            return isinstance(value, _SIMPLE[name])
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return isinstance(value, list) and all(_fits(item, entry) for entry in value)
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, item])):
            return isinstance(value, dict) and all(
                _fits(key, k) and _fits(item, v) for k, v in value.items()
            )
    raise ParameterError(
        f"type {ast.unparse(annotation)!r} cannot be checked; use str, int, float, bool, "
        "list[...], "
        "dict[..., ...] and '| None'"
    )


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}


def _as_number(text: Any, annotation: str) -> str | None:
    """How YAML wants a number to be written that it took for text; None where that does not help."""
    try:
        number = float(text) if isinstance(text, str) else math.nan
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    if "float" in annotation:
        digits, exponent, power = repr(number).partition("e")
        return f"{digits}{'' if '.' in digits else '.0'}{exponent}{power}"
    return str(int(number)) if "int" in annotation and number.is_integer() else None
