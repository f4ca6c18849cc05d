"""Tangram figures: seven tans laid edge to edge, their relation matrix and their picture.

Units and axes. The leg of a small triangle is 1, so the square of all seven tans has area 8.
Figures are written with the y axis pointing up, the way one sketches them; `place` turns them into
picture coordinates (fractions of the frame, y down).

Order of the pieces (row and column i of the relation matrix is piece i + 1; the piece map holds the
same numbers, 0 is background):

====  ==============  =================
id    tan             share of the area
====  ==============  =================
1     square          1/8
2     parallelogram   1/8
3, 4  small triangle  1/16 each
5     medium triangle 1/8
6, 7  large triangle  1/4 each
====  ==============  =================

A figure is a *body* (pieces 5, 6, 7) under a *crown* (pieces 1 to 4). Every body ends at the line
y = 0 from below and every crown stands on it, therefore all 36 combinations are free of overlap;
that they are also connected is checked by the tests, not assumed.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from PIL import Image, ImageDraw
from shapely.geometry import Polygon

PIECE_NAMES = (
    "square", "parallelogram", "small triangle 1", "small triangle 2",
    "medium triangle", "large triangle 1", "large triangle 2",
)  # fmt: skip
PIECE_AREAS = (1 / 8, 1 / 8, 1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 4)
TOTAL_AREA = 8.0
RELATION_CLASSES = (
    "far apart", "near", "touch at a point", "share part of an edge",
    "share a whole edge of one", "share a whole edge of both",
)  # fmt: skip
EXCHANGEABLE = ((2, 3), (5, 6))  # zero-based rows of the two small and of the two large triangles

Pieces = list[np.ndarray]

_R = 2.0**0.5  # leg of the medium triangle
_H = _R / 2  # half the diagonal of the square

# Bodies: medium, large, large. The crown stands on y = 0 around x = 0.
_BODIES: dict[str, list[list[tuple[float, float]]]] = {
    "shield": [
        [(-1, -2), (1, -2), (0, -3)],
        [(-1, 0), (1, 0), (-1, -2)],
        [(1, 0), (1, -2), (-1, -2)],
    ],
    "boat": [
        [(_H, 0), (3 * _H, 0), (3 * _H, -_R)],
        [(-3 * _H, 0), (_H, 0), (-_H, -_R)],
        [(_H, 0), (-_H, -_R), (3 * _H, -_R)],
    ],
    "mountain": [
        [(-1, 0), (1, 0), (0, -1)],
        [(1, 0), (1, -2), (-1, -2)],
        [(1, 0), (1, -2), (3, -2)],
    ],
    "table": [
        [(0, 0), (-1, -1), (1, -1)],
        [(-2, 0), (0, 0), (-2, -2)],
        [(0, 0), (2, 0), (2, -2)],
    ],
    "runner": [
        [(-1, -2), (0, -1), (1, -2)],
        [(-1, 0), (1, 0), (-1, -2)],
        [(-1, 0), (-1, -2), (-3, -2)],
    ],
    "zigzag": [
        [(-2, -3), (0, -3), (-1, -4)],
        [(-1, 0), (1, 0), (-1, -2)],
        [(0, -1), (0, -3), (-2, -3)],
    ],
}
# Crowns: square, parallelogram, small, small.
_CROWNS: dict[str, list[list[tuple[float, float]]]] = {
    "cap": [
        [(-1, 0), (0, 0), (0, 1), (-1, 1)],
        [(1, 0), (2, 0), (1, 1), (0, 1)],
        [(-2, 0), (-1, 0), (-1, 1)],
        [(0, 0), (1, 0), (0, 1)],
    ],
    "tail": [
        [(-0.5, 0), (0.5, 0), (0.5, 1), (-0.5, 1)],
        [(0.5, 0), (1.5, 1), (1.5, 2), (0.5, 1)],
        [(-0.5, 0), (-0.5, 1), (-1.5, 1)],
        [(-0.5, 1), (-1.5, 1), (-1.5, 2)],
    ],
    "flag": [
        [(0, 1), (1, 1), (1, 2), (0, 2)],
        [(-1, 0), (0, 1), (0, 2), (-1, 1)],
        [(-1, 0), (0, 0), (0, 1)],
        [(-1, 1), (0, 2), (-1, 2)],
    ],
    "swan": [
        [(-1, 0), (0, 0), (0, 1), (-1, 1)],
        [(-1, 1), (0, 1), (1, 2), (0, 2)],
        [(0, 2), (1, 2), (0, 3)],
        [(0, 2), (0, 3), (-1, 3)],
    ],
    "cat": [
        [(-0.5, _H), (0.5, _H), (0.5, _H + 1), (-0.5, _H + 1)],
        [(-1.5 * _H, 0), (0.5 * _H, 0), (1.5 * _H, _H), (-0.5 * _H, _H)],
        [(-1, _H + 1), (0, _H + 1), (-1, _H + 2)],
        [(0, _H + 1), (1, _H + 1), (1, _H + 2)],
    ],
    "hut": [
        [(-0.5, 0), (0.5, 0), (0.5, 1), (-0.5, 1)],
        [(0.5, 0), (1.5, 0), (2.5, 1), (1.5, 1)],
        [(-1, 1), (0, 1), (0, 2)],
        [(0, 1), (1, 1), (0, 2)],
    ],
}
BODY_NAMES = tuple(_BODIES)
CROWN_NAMES = tuple(_CROWNS)

_TOLERANCE = 1e-7  # in legs of a small triangle; the coordinates are exact to about 1e-15


def tangram_pieces(body: str, crown: str) -> Pieces:
    """Return the seven tans of the figure `crown` on `body`.

    Returns
    -------
    list of ndarray, each (n_vertices, 2)
        In the order of `PIECE_NAMES`; unit: leg of a small triangle, y axis up.

    Raises
    ------
    KeyError
        If there is no such body or crown.
    """
    for what, name, known in (("body", body, _BODIES), ("crown", crown, _CROWNS)):
        if name not in known:
            raise KeyError(f"no tangram {what} named {name!r}; choose one of {', '.join(known)}")
    return [np.array(p, dtype=float) for p in (*_CROWNS[crown], *_BODIES[body])]


def _shared_edge(a: np.ndarray, b: np.ndarray, tolerance: float) -> int:
    """Return 5, 4, 3 for the closest kind of shared edge of two polygons, 0 for none."""
    best = 0
    for p, q in zip(a, np.roll(a, -1, axis=0), strict=True):
        length = np.hypot(*(q - p))
        along = (q - p) / length
        normal = np.array([-along[1], along[0]])
        for r, s in zip(b, np.roll(b, -1, axis=0), strict=True):
            if max(abs((r - p) @ normal), abs((s - p) @ normal)) > tolerance:
                continue
            low, high = sorted(((r - p) @ along, (s - p) @ along))
            overlap = min(high, length) - max(low, 0.0)
            if overlap > tolerance:
                whole = int(overlap > length - tolerance) + int(overlap > high - low - tolerance)
                best = max(best, 3 + whole)
    return best


def relation_matrix(pieces: Pieces, tolerance: float = _TOLERANCE) -> np.ndarray:
    """Return the ordinal relation of every pair of tans, from geometry alone.

    =====  ==========================  ========================================================
    class  name                        rule (leg = leg of a small triangle, sqrt(area / 8))
    =====  ==========================  ========================================================
    0      far apart                   distance of one leg or more
    1      near                        distance greater than 0 and less than one leg
    2      touch at a point            distance 0, no common segment of positive length
    3      share part of an edge       common segment, a whole edge of neither
    4      share a whole edge of one   common segment is a whole edge of exactly one of the two
    5      share a whole edge of both  two edges coincide
    =====  ==========================  ========================================================

    The diagonal is 5 (a tan coincides with itself). The matrix is symmetric and does not change when the figure is moved, turned, mirrored
    or scaled.

    Parameters
    ----------
    pieces : list of ndarray, each (n_vertices, 2)
        Seven polygons in any unit.
    tolerance : float
        Legs within which lengths count as equal; for exact figures the default, 1e-7.

    Returns
    -------
    ndarray, shape (7, 7), int8
    """
    polygons = [Polygon(p) for p in pieces]
    leg = np.sqrt(sum(p.area for p in polygons) / TOTAL_AREA)
    matrix = np.full((len(pieces), len(pieces)), 5, dtype=np.int8)
    for i, j in combinations(range(len(pieces)), 2):
        relation = max(  # both ways: a long edge strays from the line of a short one that is askew
            _shared_edge(pieces[i], pieces[j], tolerance * leg),
            _shared_edge(pieces[j], pieces[i], tolerance * leg),
        )
        if relation == 0:
            distance = polygons[i].distance(polygons[j]) / leg
            relation = 2 if distance < tolerance else int(distance < 1 - tolerance)
        matrix[i, j] = matrix[j, i] = relation
    return matrix


def equivalent_relations(matrix: np.ndarray) -> np.ndarray:
    """Return the relation matrix under the four namings of the exchangeable triangles.

    The two small and the two large triangles have no identity; a decoder is right if it is right
    for one of the four namings [1]_. The square and the parallelogram are not exchangeable.

    Parameters
    ----------
    matrix : ndarray, shape (..., 7, 7)

    Returns
    -------
    ndarray, shape (4, ..., 7, 7)
        As given, small swapped, large swapped, both swapped.

    References
    ----------
    .. [1] Lian et al. (2026), arXiv:2604.22649.
    """
    matrix = np.asarray(matrix)
    if matrix.shape[-2:] != (7, 7):
        raise ValueError(f"a relation matrix ends in shape (7, 7), this one has {matrix.shape}")
    small, large = EXCHANGEABLE
    versions = []
    for swaps in ((), (small,), (large,), (small, large)):
        order = np.arange(7)
        for i, j in swaps:
            order[[i, j]] = order[[j, i]]
        versions.append(matrix[..., order[:, None], order])
    return np.stack(versions)


def place(
    pieces: Pieces, x: float, y: float, radius: float, rotation: float = 0.0, mirror: bool = False
) -> Pieces:
    """Move a figure into a picture.

    Parameters
    ----------
    x, y : float
        Centre of the bounding box of the turned figure, in fractions of the frame, y down.
    radius : float
        Half the diagonal of the bounding box of the *upright* figure, in fractions of the frame.
    rotation : float
        Degrees, anticlockwise as seen in the picture.
    mirror : bool
        Left and right exchanged before turning.

    Returns
    -------
    list of ndarray, each (n_vertices, 2)
        Fractions of the frame, y down.
    """
    points = np.concatenate(pieces)
    scale = radius / (np.hypot(*np.ptp(points, axis=0)) / 2)
    angle = np.deg2rad(rotation)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    flip = np.array([-1.0 if mirror else 1.0, 1.0])
    turned = [(p * flip) @ turn.T * scale * np.array([1.0, -1.0]) for p in pieces]
    corners = np.concatenate(turned)
    shift = np.array([x, y]) - (corners.min(axis=0) + corners.max(axis=0)) / 2
    return [p + shift for p in turned]


def render_tangram(
    pieces: Pieces,
    size: int,
    colour: tuple[int, int, int],
    background: tuple[int, int, int] | Image.Image,
    seams: tuple[int, int, int] | None = (255, 255, 255),
    supersampling: int = 4,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw placed tans in one colour with thin seams between them.

    Parameters
    ----------
    pieces : list of ndarray, each (n_vertices, 2)
        Fractions of the frame, y down (the result of `place`).
    size : int
        Height and width of the picture in pixels.
    background : RGB or PIL image of `size * supersampling` pixels
    seams : RGB or None
        Colour of the seams, about 1/60 of the frame wide; None draws none.

    Returns
    -------
    picture : ndarray, shape (size, size, 3), uint8
    piece_map : ndarray, shape (size, size), uint8
        0 background, 1 to 7 the piece at the centre of the pixel.
    """
    large = size * supersampling
    if isinstance(background, Image.Image):
        if background.size != (large, large):
            raise ValueError(
                f"the background image must have {large} x {large} pixels (size x supersampling), "
                f"this one has {background.size[0]} x {background.size[1]}"
            )
        canvas = background.copy()
    else:
        canvas = Image.new("RGB", (large, large), background)
    labels = Image.new("L", (large, large), 0)
    draw, draw_label = ImageDraw.Draw(canvas), ImageDraw.Draw(labels)
    outlines = [[tuple(c) for c in p * large - 0.5] for p in pieces]
    for i, outline in enumerate(outlines):
        draw.polygon(outline, fill=colour)
        draw_label.polygon(outline, fill=i + 1)
    label_map = np.asarray(labels)
    if seams is not None:
        left, top, right, bottom = seen = labels.getbbox() or (0, 0, 0, 0)
        mask = _seam_mask(label_map[top:bottom, left:right], max(3, large // 60))
        if mask.size:
            canvas.paste(seams, seen, Image.fromarray(mask))
    middle = supersampling // 2
    piece_map = label_map[middle::supersampling, middle::supersampling].copy()
    return np.asarray(canvas.reduce(supersampling)), piece_map


def _seam_mask(labels: np.ndarray, width: int) -> np.ndarray:
    """Return 255 where two different tans meet within `width` pixels, shape of `labels`, uint8."""
    mask = np.zeros(labels.shape, dtype=np.uint8)
    for axis in (0, 1):
        first = labels[:-1] if axis == 0 else labels[:, :-1]
        second = labels[1:] if axis == 0 else labels[:, 1:]
        border = (first != second) & (first > 0) & (second > 0)
        mask[tuple(slice(0, n) for n in border.shape)][border] = 255
    for axis in (0, 1):
        thin, mask = mask.swapaxes(0, axis), mask.copy()
        thick = mask.swapaxes(0, axis)
        for shift in range(-(width // 2), width - width // 2):
            to, source = thick[max(shift, 0) :], thin[max(-shift, 0) :]
            n = len(thin) - abs(shift)
            if n > 0:
                np.maximum(to[:n], source[:n], out=to[:n])
    return mask * (labels > 0)
