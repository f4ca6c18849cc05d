"""KiloGram's figures as SVG files: seven polygons in the order of `tangrams`, and their relations.

Most of the 1,013 files hold corners to the last digit. Others were rounded to whole units, and some
were redrawn by hand (three decimals, blanks between the numbers, a `transform` for each polygon):
there, neighbouring tans overlap or leave a gap, and a few have a wrong size.

References
----------
Ji et al. (2022), EMNLP, arXiv:2211.16492. SVG 1.1, sections 7.6 (transform) and 7.7 (viewBox).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from shapely.geometry import Polygon

from sgdm_utils.errors import DatasetError, reading
from sgdm_utils.stimuli import tangrams
from sgdm_utils.workflow.content import require_content

LARGEST = 100_000  # bytes of a figure; those of the collection have up to 3,000
IDS = ("1", "2", "3", "4", "5", "6", "7")
AREA_TOLERANCE = 0.06  # of the whole: less than 1/16, by which the shares of two kinds differ
SNAP = 0.05  # legs of a small triangle
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_MOVES = re.compile(
    r"(?:^|[;{\s])(transform(?:-origin|-box)?|translate|rotate|scale|zoom|offset-path)\s*:"
)
_CALL = re.compile(r"\s*,?\s*(\w+)\s*\(([^()]*)\)\s*")


@dataclass(frozen=True)
class Tangram:
    """One figure.

    Attributes
    ----------
    name : str, file name without ".svg"
    pieces : list of 7 ndarray, each (n_vertices, 2)
        In the order of `tangrams.PIECE_NAMES`, in fractions of the frame, y down (as from
        `tangrams.place`). The frame is the viewBox, made square by equal margins.
    svg_ids : tuple of 7 str, the polygon's id in the file, which the annotations of parts use
    note : str, in which way the figure is no regular tangram, "" where it is one
    """

    name: str
    pieces: tangrams.Pieces
    svg_ids: tuple[str, ...]
    note: str = ""


def read_svg(path: Path) -> Tangram:
    """Read one figure and check that it is made of the seven tans.

    Polygons "3" to "7" are the tans that `tangrams` gives these numbers. "1" and "2" are the square
    and the parallelogram; which is which is decided by their angles. Two files of the collection
    have two parallelograms there: people were shown them, so they are read, with a note.

    The areas may be off by `AREA_TOLERANCE` of the whole, because a few figures of the collection
    were redrawn by hand with tans of a wrong size (page-G has a small triangle of 0.117 instead of
    0.0625): refusing them would mean to refuse what people were shown.

    Parameters
    ----------
    path : Path

    Returns
    -------
    Tangram

    Raises
    ------
    DatasetError
        A file that is no XML or declares a document type (entities are never expanded), no viewBox,
        a polygon missing, doubled or unknown, another number of corners, a degenerate polygon, an
        area that belongs to another tan, a transformation that is not understood (CSS, for one).
    """
    path = Path(path)
    with reading(path, "SVG", "Copy the file again from the collection"):
        return _read(path)


def _read(path: Path) -> Tangram:
    root = _parse(path)
    box = _numbers(root.get("viewBox") or "", path, "the viewBox")
    if len(box) != 4 or min(box[2:]) <= 0:
        raise DatasetError(
            f"{path}: the svg element has the viewBox {root.get('viewBox')!r}, not four numbers "
            "'x y width height' of a frame with some area. Without it the figure has no frame"
        )
    for element in root.iter():
        _refuse_moved(element, element is root, path)
    found: dict[str, np.ndarray] = {}
    for element, matrix in _polygons(root, np.eye(3), path):
        name = element.get("id")
        if name not in IDS:
            raise DatasetError(
                f"{path}: a polygon has the id {name!r}; a tangram has the ids 1 to 7 only"
            )
        if name in found:
            raise DatasetError(f"{path}: two polygons have the id {name!r}; give each its own")
        found[name] = _corners(element, matrix, path)
    missing = [name for name in IDS if name not in found]
    if missing:
        raise DatasetError(f"{path}: no polygon with the id {', '.join(missing)}: copy it again")
    _check_areas(found, path)
    corners: dict[tuple, str] = {}
    for name, points in found.items():
        other = corners.setdefault(tuple(sorted(map(tuple, points.round(6)))), name)
        if other != name:
            raise DatasetError(
                f"{path}: the polygons {other} and {name} have the same corners; give each its own"
            )
    first, note = _square_first(found)
    order = first + list(IDS[2:])
    side = max(box[2:])
    corner = np.array(box[:2]) + (np.array(box[2:]) - side) / 2
    return Tangram(path.stem, [(found[i] - corner) / side for i in order], tuple(order), note)


def relations(tangram: Tangram, tolerance: float = SNAP) -> np.ndarray:
    """Relation matrix of a digitised figure, with the classes of `tangrams.relation_matrix`.

    Lengths are compared with a tolerance, since corners were rounded to whole units or set by hand:
    at 50 units to the leg two rounded corners are up to 0.03 legs apart. `SNAP` lies between this
    and the smallest distance that is common in lattices of tans, (3 - 2 sqrt 2) / 2 = 0.086. In
    nine files with such corners, up to 11 of the 21 relations are wrong with the tolerance of
    `tangrams` (1e-7), while from 0.045 to 0.07 at most one of all 189 differs from those at 0.05. A
    true distance close to the tolerance may fall on either side.

    Parameters
    ----------
    tolerance : float, legs of a small triangle

    Returns
    -------
    ndarray, shape (7, 7), int8
    """
    return tangrams.relation_matrix(tangram.pieces, tolerance)


class _Builder(ElementTree.TreeBuilder):
    """Stops at a document type, before any entity of it can be expanded."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise DatasetError("it declares a document type (DOCTYPE), which could expand without end")


def _parse(path: Path) -> ElementTree.Element:
    require_content(path)
    if (size := path.stat().st_size) > LARGEST:
        raise DatasetError(
            f"{path} has {size} bytes; a figure of seven polygons has {LARGEST} at most"
        )
    root = ElementTree.parse(path, parser=ElementTree.XMLParser(target=_Builder())).getroot()
    if _tag(root) != "svg":
        raise DatasetError(f"{path} is no SVG file: its root element is {_tag(root)!r}")
    return root


def _tag(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _polygons(
    element: ElementTree.Element, outer: np.ndarray, path: Path
) -> Iterator[tuple[ElementTree.Element, np.ndarray]]:
    """Yield every drawn polygon with its matrix from its own to the viewBox's coordinates."""
    matrix = outer @ _transform(element.get("transform", ""), path)
    if _tag(element) == "polygon":
        yield element, matrix
    for child in element:
        if _tag(child) != "defs":
            yield from _polygons(child, matrix, path)


def _refuse_moved(element: ElementTree.Element, is_root: bool, path: Path) -> None:
    """Refuse what moves polygons otherwise than by the attribute `transform`."""
    styled = element.get("style") or (element.text if _tag(element) == "style" else "") or ""
    found = _MOVES.search(styled)
    moved = found[1] if found else "transform-origin" if element.get("transform-origin") else ""
    if _tag(element) in ("animate", "animateTransform", "animateMotion", "set") or (
        _tag(element) == "svg" and not is_root
    ):
        moved = _tag(element)
    if moved:
        raise DatasetError(
            f"{path}: {moved!r} moves what is drawn and is not read; the attribute `transform` is. Let "
            "your drawing program apply it to the points (without nested svg, CSS or animation)"
        )


def _transform(text: str, path: Path) -> np.ndarray:
    """Turn a transform attribute into a 3 x 3 matrix for column vectors (SVG 1.1, section 7.6)."""
    total, rest = np.eye(3), text.strip()
    while rest:
        call = _CALL.match(rest)
        if call is None:
            raise DatasetError(f"{path}: the transform {text!r} is not understood at {rest!r}")
        rest = rest[call.end() :]
        name, values = call[1], _numbers(call[2], path, f"the transform {text!r}")
        if name == "matrix" and len(values) == 6:
            a, b, c, d, e, f = values
        elif name == "translate" and len(values) in (1, 2):
            a, b, c, d, e, f = 1, 0, 0, 1, *(values + [0.0])[:2]
        elif name == "scale" and len(values) in (1, 2):
            a, b, c, d, e, f = values[0], 0, 0, values[-1], 0, 0
        elif name == "rotate" and len(values) in (1, 3):
            angle = math.radians(values[0])
            a, b, c, d = math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)
            x, y = values[1:] or (0.0, 0.0)
            e, f = x - a * x - c * y, y - b * x - d * y
        else:
            raise DatasetError(
                f"{path}: the transform {call[0].strip()!r} is not understood; matrix, translate, "
                "scale and rotate are. Let your drawing program apply it to the points"
            )
        total = total @ np.array([[a, c, e], [b, d, f], [0, 0, 1.0]])
    return total


def _numbers(text: str, path: Path, where: str) -> list[float]:
    """Read numbers that a comma, blanks, or the sign or point of the next one separate (SVG 1.1, 4.2)."""
    found = re.findall(_NUMBER, text)
    wrong = re.findall(r"[^\s,]+", re.sub(_NUMBER, " ", text))
    wrong += [word for word in found if not abs(float(word)) < 1e9]  # areas stay finite
    if wrong:
        raise DatasetError(f"{path}: {where} holds {wrong[0]!r}, which is no number")
    return [float(word) for word in found]


def _corners(element: ElementTree.Element, matrix: np.ndarray, path: Path) -> np.ndarray:
    name = element.get("id")
    values = _numbers(element.get("points", ""), path, f"polygon {name}")
    if len(values) % 2:
        raise DatasetError(f"{path}: polygon {name} has an x without a y ({len(values)} numbers)")
    points = np.reshape(values, (-1, 2))
    if len(points) > 1 and (points[0] == points[-1]).all():
        points = points[:-1]  # closed once more by the drawing program
    wanted = 4 if name in ("1", "2") else 3
    if len(points) != wanted:
        raise DatasetError(f"{path}: polygon {name} has {len(points)} corners instead of {wanted}")
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def _check_areas(found: dict[str, np.ndarray], path: Path) -> None:
    polygons = {name: Polygon(points) for name, points in found.items()}
    total = sum(p.area for p in polygons.values())
    for name, share in zip(IDS, tangrams.PIECE_AREAS, strict=True):
        area = polygons[name].area / total if total else 0.0
        if area < 1e-3 or not polygons[name].is_valid:
            raise DatasetError(
                f"{path}: polygon {name} is degenerate: its corners lie on a line, or its edges "
                "cross each other. Copy the file again"
            )
        if abs(area - share) > AREA_TOLERANCE:
            raise DatasetError(
                f"{path}: polygon {name} has {area:.3f} of the area, this tan has {share:.3f}. Are "
                "ids exchanged, or is a transform missing?"
            )


def _square_first(found: dict[str, np.ndarray]) -> tuple[list[str], str]:
    """Return the ids "1" and "2" with the square in front, and a note where both are of one kind."""
    skew = {}
    for name in IDS[:2]:
        sides = np.roll(found[name], -1, axis=0) - found[name]
        sides /= np.linalg.norm(sides, axis=1, keepdims=True)
        skew[name] = np.abs((sides * np.roll(sides, 1, axis=0)).sum(1)).mean()
    order = sorted(skew, key=skew.get)
    if skew[order[0]] < 0.35 < skew[order[1]]:  # cos 90 = 0 and cos 45 = 0.71
        return order, ""
    kind = "square" if skew[order[1]] < 0.35 else "parallelogram"
    lacking = {"square": "parallelogram", "parallelogram": "square"}[kind]
    return order, (
        f"two {kind}s and no {lacking}; polygon {order[lacking == 'parallelogram']} has the place of "
        f"the {lacking}"
    )
