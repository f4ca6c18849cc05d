"""Scenes: one coloured, textured object on a background, and the palette all pictures share.

Lengths are fractions of the frame (the picture is 1 x 1, x to the right, y down), so one
description draws the same picture at 64 or at 512 pixels. Everything is drawn at four times the
size and averaged down, which gives smooth outlines.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw
from shapely.affinity import translate
from shapely.geometry import Point, Polygon, box

SUPERSAMPLING = 4

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 48),
    "orange": (247, 127, 24),
    "yellow": (250, 204, 21),
    "green": (56, 158, 60),
    "teal": (20, 178, 170),
    "blue": (52, 112, 235),
    "purple": (142, 68, 201),
    "pink": (246, 120, 178),
}
# Top and bottom colour; they differ where the background is a smooth vertical gradient.
BACKGROUNDS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "white": ((252, 252, 250), (252, 252, 250)),
    "sand": ((240, 229, 204), (219, 201, 165)),
    "slate": ((92, 100, 112), (66, 73, 84)),
    "navy": ((12, 18, 48), (28, 40, 84)),
}
TEXTURES = ("plain", "striped", "dotted")
_STRIPE_PERIOD = 0.094  # of the frame: six pixels of 64
_DOT_SPACING = 0.11


def _polar(radii: np.ndarray, angles: np.ndarray) -> Polygon:
    """Return the polygon through points in polar coordinates, angle 0 up, clockwise."""
    return Polygon(np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1))


def _heart() -> Polygon:
    t = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return Polygon(np.stack([x, -y], axis=1))


def _shapes() -> dict[str, Polygon]:
    """Return the outlines before they are centred and scaled; any unit, y down."""
    disc = Point(0, 0).buffer(1, quad_segs=24)
    tips = np.arange(10) * np.pi / 5
    return {
        "circle": disc,
        "square": box(-1, -1, 1, 1),
        "triangle": Polygon([(-1, 0.8), (1, 0.8), (0, -0.93)]),
        "star": _polar(np.where(np.arange(10) % 2 == 0, 1.0, 0.45), tips),
        "heart": _heart(),
        "cross": box(-1, -0.33, 1, 0.33).union(box(-0.33, -1, 0.33, 1)),
        "crescent": disc.difference(translate(Point(0, 0).buffer(0.86, quad_segs=24), 0.52, -0.08)),
        "ring": disc.difference(Point(0, 0).buffer(0.52, quad_segs=24)),
        "arrow": Polygon(
            [(-1, -0.3), (0.05, -0.3), (0.05, -0.85), (1, 0), (0.05, 0.85), (0.05, 0.3), (-1, 0.3)]
        ),
        "hourglass": Polygon(
            [(-0.75, -1), (0.75, -1), (0.14, 0), (0.75, 1), (-0.75, 1), (-0.14, 0)]
        ),
    }


def _contours(outline: Polygon) -> list[np.ndarray]:
    """Centre the bounding box at 0, scale its half diagonal or the farthest point to 1."""
    left, top, right, bottom = outline.bounds
    outline = translate(outline, -(left + right) / 2, -(top + bottom) / 2)
    rings = [np.asarray(r.coords)[:-1] for r in (outline.exterior, *outline.interiors)]
    radius = np.linalg.norm(rings[0], axis=1).max()
    return [r / radius for r in rings]


SHAPES: dict[str, list[np.ndarray]] = {name: _contours(p) for name, p in _shapes().items()}


def place_shape(
    shape: str, x: float, y: float, radius: float, rotation: float = 0.0
) -> list[np.ndarray]:
    """Return the contours of a shape in a picture: the outline, then its holes.

    Parameters
    ----------
    x, y : float
        Centre of the bounding box of the turned shape.
    radius : float
        Distance of the farthest point of the upright shape from its centre.
    rotation : float
        Degrees, anticlockwise as seen in the picture.

    Returns
    -------
    list of ndarray, each (n_vertices, 2)

    Raises
    ------
    KeyError
        If there is no such shape.
    """
    if shape not in SHAPES:
        raise KeyError(f"no shape named {shape!r}; choose one of {', '.join(SHAPES)}")
    angle = np.deg2rad(rotation)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned = [c @ turn.T * radius for c in SHAPES[shape]]
    centre = (turned[0].min(axis=0) + turned[0].max(axis=0)) / 2
    return [c - centre + np.array([x, y]) for c in turned]


def tone(colour: str) -> tuple[int, int, int]:
    """Return the second colour of stripes, dots and seams: darker for light colours, else lighter.

    Yellow, orange, pink and teal get a darker tone, red, green, blue and purple a lighter one.
    """
    rgb = np.array(COLOURS[colour], dtype=float)
    luminance = rgb @ (0.2126, 0.7152, 0.0722)
    mixed = rgb * 0.68 if luminance > 135 else rgb * 0.52 + 255 * 0.48
    return tuple(int(v) for v in mixed.round())


@lru_cache(maxsize=16)
def _background(name: str, pixels: int) -> Image.Image:
    if name not in BACKGROUNDS:
        raise KeyError(f"no background named {name!r}; choose one of {', '.join(BACKGROUNDS)}")
    top, bottom = (np.array(c, dtype=float) for c in BACKGROUNDS[name])
    way = np.linspace(0, 1, pixels)[:, None]
    column = (top * (1 - way) + bottom * way).round().astype(np.uint8)
    return Image.fromarray(np.repeat(column[:, None, :], pixels, axis=1))


def background_image(name: str, size: int) -> Image.Image:
    """Return a background of `size * SUPERSAMPLING` pixels; the caller may draw on it."""
    return _background(name, size * SUPERSAMPLING).copy()


@lru_cache(maxsize=96)
def _texture(colour: str, texture: str, pixels: int) -> Image.Image:
    """Return a tile of 1.25 x the frame, cut at a random phase by `draw_scene`."""
    if texture not in TEXTURES:
        raise KeyError(f"no texture named {texture!r}; choose one of {', '.join(TEXTURES)}")
    y, x = np.mgrid[0 : pixels * 5 // 4, 0 : pixels * 5 // 4] / pixels
    if texture == "striped":
        second = ((x + y) / (_STRIPE_PERIOD * np.sqrt(2))) % 1 < 0.42
    elif texture == "dotted":
        row = np.floor(y / (_DOT_SPACING * 0.75))
        across = (x / _DOT_SPACING + row % 2 / 2) % 1 - 0.5
        down = (y / (_DOT_SPACING * 0.75)) % 1 - 0.5
        second = np.hypot(across, down * 0.75) < 0.30
    else:
        second = np.zeros(x.shape, dtype=bool)
    picture = np.where(second[..., None], np.array(tone(colour)), np.array(COLOURS[colour]))
    return Image.fromarray(picture.astype(np.uint8))


def draw_scene(
    contours: list[np.ndarray],
    size: int,
    colour: str,
    texture: str,
    background: str,
    phase: tuple[float, float] = (0.0, 0.0),
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one object.

    Parameters
    ----------
    contours : list of ndarray, each (n_vertices, 2)
        The result of `place_shape`: the outline, then holes.
    size : int
        Height and width of the picture in pixels.
    phase : tuple of float
        Shift of the texture in fractions of the frame, each between 0 and 0.25.

    Returns
    -------
    picture : ndarray, shape (size, size, 3), uint8
    silhouette : ndarray, shape (size, size), bool
        True where the object covers at least half of the pixel.
    """
    if colour not in COLOURS:
        raise KeyError(f"no colour named {colour!r}; choose one of {', '.join(COLOURS)}")
    large = size * SUPERSAMPLING
    canvas = background_image(background, size)
    mask = Image.new("L", (large, large), 0)
    draw = ImageDraw.Draw(mask)
    for i, contour in enumerate(contours):
        draw.polygon([tuple(c) for c in contour * large - 0.5], fill=0 if i else 255)
    # only the rectangle around the object is filled: most of a picture is background
    seen = mask.getbbox() or (0, 0, 0, 0)
    left, top = (int(p * large) for p in phase)
    tile = (left + seen[0], top + seen[1], left + seen[2], top + seen[3])
    canvas.paste(_texture(colour, texture, large).crop(tile), seen, mask.crop(seen))
    silhouette = np.asarray(mask.reduce(SUPERSAMPLING)) >= 128
    return np.asarray(canvas.reduce(SUPERSAMPLING)), silhouette
