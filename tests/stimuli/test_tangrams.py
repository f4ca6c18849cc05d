"""Tangram geometry: the 36 figures, the relation matrix, the picture."""

from itertools import combinations, product

import numpy as np
import pytest
from shapely.geometry import Polygon

from sgdm_utils.stimuli import tangrams
from sgdm_utils.stimuli.tangrams import (
    equivalent_relations,
    place,
    relation_matrix,
    render_tangram,
    tangram_pieces,
)

FIGURES = list(product(tangrams.BODY_NAMES, tangrams.CROWN_NAMES))


def validate_pieces(pieces: list[np.ndarray]) -> None:
    """Check that seven polygons are a tangram figure of any size, rotation or mirror image.

    The rules: the areas have the shares of `PIECE_AREAS`, no two pieces overlap, and the pieces
    hang together along boundary segments of positive length (contact at a point is not enough).

    Raises
    ------
    ValueError
        Names the first broken rule, the piece and the number that broke it.
    """
    if len(pieces) != 7:
        raise ValueError(f"a tangram figure has 7 pieces, this one has {len(pieces)}")
    polygons = [Polygon(p) for p in pieces]
    for i, polygon in enumerate(polygons):
        if not polygon.is_valid:
            raise ValueError(f"piece {i + 1} ({tangrams.PIECE_NAMES[i]}) crosses itself")
    # the median, so that the message blames the piece that is wrong and not all others
    total = np.median([p.area / s for p, s in zip(polygons, tangrams.PIECE_AREAS, strict=True)])
    for i, (polygon, share) in enumerate(zip(polygons, tangrams.PIECE_AREAS, strict=True)):
        corners = 4 if i < 2 else 3
        if len(pieces[i]) != corners:
            raise ValueError(
                f"piece {i + 1} ({tangrams.PIECE_NAMES[i]}) has {len(pieces[i])} corners "
                f"instead of {corners}"
            )
        if abs(polygon.area / total - share) > 1e-9:
            raise ValueError(
                f"piece {i + 1} ({tangrams.PIECE_NAMES[i]}) has {polygon.area / total:.6f} of the area "
                f"instead of {share}"
            )
    for i, j in combinations(range(7), 2):
        overlap = polygons[i].intersection(polygons[j]).area * tangrams.TOTAL_AREA / total
        if overlap > 1e-9:
            raise ValueError(
                f"pieces {i + 1} ({tangrams.PIECE_NAMES[i]}) and {j + 1} ({tangrams.PIECE_NAMES[j]}) overlap by "
                f"{overlap:.3g} square legs"
            )
    joined = relation_matrix(pieces) >= 3
    reached = {0}
    while new := {j for i in reached for j in np.flatnonzero(joined[i])} - reached:
        reached |= new
    if len(reached) < 7:
        loose = [f"{i + 1} ({tangrams.PIECE_NAMES[i]})" for i in range(7) if i not in reached]
        raise ValueError(
            f"not connected edge to edge: no chain of shared edges leads from piece 1 to {loose}"
        )


@pytest.mark.parametrize(("body", "crown"), FIGURES)
def test_figure_is_a_valid_tangram(body, crown):
    pieces = tangram_pieces(body, crown)
    validate_pieces(pieces)
    assert sum(Polygon(p).area for p in pieces) == pytest.approx(tangrams.TOTAL_AREA, abs=1e-9)
    # each polygon is the tan it claims to be, not only one of its area
    sides = [np.sort(np.linalg.norm(p - np.roll(p, 1, axis=0), axis=1)) for p in pieces]
    root = 2**0.5
    expected = [[1] * 4, [1, 1, root, root], [1, 1, root], [1, 1, root]]
    expected += [[root, root, 2], [2, 2, 2 * root], [2, 2, 2 * root]]
    for got, want in zip(sides, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-12)
    square = pieces[0] - np.roll(pieces[0], 1, axis=0)
    assert abs(square[0] @ square[1]) < 1e-12


def test_there_are_36_clearly_different_figures():
    assert len(FIGURES) == 36
    masks = []
    for body, crown in FIGURES:
        placed = place(tangram_pieces(body, crown), 0.5, 0.5, 0.44)
        masks.append(render_tangram(placed, 64, (0, 0, 0), (255, 255, 255))[1] > 0)
    for i in range(36):
        for j in range(i):
            iou = (masks[i] & masks[j]).sum() / (masks[i] | masks[j]).sum()
            assert iou < 0.86, (FIGURES[i], FIGURES[j], iou)


def test_broken_figures_are_named():
    good = tangram_pieces("boat", "cat")
    with pytest.raises(ValueError, match="7 pieces, this one has 6"):
        validate_pieces(good[:6])
    with pytest.raises(ValueError, match=r"pieces 1 \(square\) and 2 .* overlap by"):
        validate_pieces([good[0], good[1] + (good[0].mean(0) - good[1].mean(0)), *good[2:]])
    with pytest.raises(ValueError, match=r"not connected .*6 \(large triangle 1\)"):
        validate_pieces([*good[:5], good[5] - 50.0, good[6]])
    with pytest.raises(ValueError, match=r"piece 5 \(medium triangle\) has .* of the area"):
        validate_pieces([*good[:4], good[4] * 1.1, *good[5:]])
    corner = [p.copy() for p in good]
    corner[3] = corner[3] + 1e-3  # a gap of a thousandth of a leg is a gap
    with pytest.raises(ValueError, match="not connected|overlap"):
        validate_pieces(corner)
    with pytest.raises(KeyError, match="no tangram crown named 'hat'"):
        tangram_pieces("boat", "hat")


def test_relation_classes_on_cases_one_can_check_by_eye():
    unit = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=float)
    long = np.array([(0, 1), (2, 1), (2, 2), (0, 2)], dtype=float)

    def relation(a, b):
        filler = 8 - Polygon(a).area - Polygon(b).area  # makes the leg of the "figure" 1
        far = np.array([(90, 90), (90 + filler, 90), (90 + filler, 91), (90, 91)], dtype=float)
        return relation_matrix([a, b, far])[0, 1]

    assert relation(unit, unit + [1, 0]) == 5
    assert relation(unit, long) == 4
    assert relation(unit, unit + [1, 0.5]) == 3
    assert relation(unit, unit + [1, 1]) == 2
    assert relation(unit, unit + [1.5, 0]) == 1
    assert relation(unit, unit + [2.0, 0]) == 0


@pytest.mark.parametrize(("body", "crown"), FIGURES[::5])
def test_relations_are_symmetric_and_invariant(body, crown):
    pieces = tangram_pieces(body, crown)
    matrix = relation_matrix(pieces)
    assert matrix.shape == (7, 7) and matrix.dtype == np.int8
    assert (matrix == matrix.T).all() and (np.diag(matrix) == 5).all()
    for rotation, mirror, radius in [(33.3, False, 0.2), (180, True, 0.44), (-71, True, 30.0)]:
        moved = place(pieces, 0.3, 0.6, radius, rotation, mirror)
        validate_pieces(moved)
        np.testing.assert_array_equal(relation_matrix(moved), matrix)
    reversed_corners = [p[::-1] for p in pieces]
    np.testing.assert_array_equal(relation_matrix(reversed_corners), matrix)


def test_relations_use_all_classes_and_tell_figures_apart():
    matrices = np.stack([relation_matrix(tangram_pieces(*f)) for f in FIGURES])
    upper = matrices[:, *np.triu_indices(7, 1)]
    assert set(np.unique(upper)) == {0, 1, 2, 3, 4, 5}
    assert len(np.unique(upper, axis=0)) >= 30


def test_equivalent_relations_swap_identical_triangles_only():
    pieces = tangram_pieces("mountain", "swan")
    matrix = relation_matrix(pieces)
    versions = equivalent_relations(matrix)
    assert versions.shape == (4, 7, 7)
    orders = [[0, 1, 2, 3, 4, 5, 6], [0, 1, 3, 2, 4, 5, 6], [0, 1, 2, 3, 4, 6, 5]]
    orders.append([0, 1, 3, 2, 4, 6, 5])
    for version, order in zip(versions, orders, strict=True):
        np.testing.assert_array_equal(version, relation_matrix([pieces[i] for i in order]))
    assert not (versions[1] == versions[0]).all() and not (versions[2] == versions[0]).all()
    batch = equivalent_relations(np.stack([matrix, matrix]))
    assert batch.shape == (4, 2, 7, 7)
    np.testing.assert_array_equal(batch[:, 1], versions)
    with pytest.raises(ValueError, match=r"\(7, 7\)"):
        equivalent_relations(np.zeros((6, 6)))


@pytest.mark.parametrize("size", [64, 128])
def test_render_places_pieces_of_the_right_size(size):
    radius, colour, ground = 0.42, (10, 120, 130), (250, 250, 250)
    placed = place(tangram_pieces("table", "hut"), 0.45, 0.55, radius, 6.0)
    picture, piece_map = render_tangram(placed, size, colour, ground, seams=None)
    assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
    assert piece_map.shape == (size, size) and piece_map.dtype == np.uint8
    shares = np.bincount(piece_map.ravel(), minlength=8)[1:] / (piece_map > 0).sum()
    np.testing.assert_allclose(shares, tangrams.PIECE_AREAS, atol=0.02)
    rows, columns = np.nonzero(piece_map)
    assert (columns.min() + columns.max() + 1) / 2 / size == pytest.approx(0.45, abs=1.5 / size)
    assert (rows.min() + rows.max() + 1) / 2 / size == pytest.approx(0.55, abs=1.5 / size)
    true_area = sum(Polygon(p).area for p in placed)
    assert (piece_map > 0).mean() == pytest.approx(true_area, rel=0.05)
    inside = (piece_map > 0) & (picture == colour).all(axis=-1)
    assert inside.sum() > 0.75 * (piece_map > 0).sum()


def test_seams_lie_inside_the_figure():
    placed = place(tangram_pieces("shield", "tail"), 0.5, 0.5, 0.44)
    red, white, ground = (200, 0, 0), (255, 255, 255), (0, 0, 90)
    plain, piece_map = render_tangram(placed, 128, red, ground, seams=None)
    seamed, _ = render_tangram(placed, 128, red, ground, seams=white)
    changed = (plain != seamed).any(axis=-1)
    assert changed.sum() > 100
    assert not changed[piece_map == 0].any() or changed[piece_map == 0].mean() < 0.01


def test_rotation_is_anticlockwise_in_the_picture():
    flag = place([np.array([(0, 0), (3, 0), (0, 1)], dtype=float)], 0.5, 0.5, 0.4, 90)[0]
    tip = flag[1]  # the tip pointed right, now it points up: smaller y
    assert tip[1] == flag[:, 1].min()


def test_background_image_must_fit():
    from PIL import Image

    placed = place(tangram_pieces("boat", "cap"), 0.5, 0.5, 0.4)
    with pytest.raises(ValueError, match="256 x 256"):
        render_tangram(placed, 64, (0, 0, 0), Image.new("RGB", (64, 64)))


@pytest.mark.parametrize("width", [1, 3, 4, 40])
def test_seams_are_as_wide_as_asked_and_do_not_come_back_on_the_other_side(width):
    """Each pixel by itself: is there a border of two tans within the reach of the seam?"""
    labels = np.zeros((9, 12), np.uint8)
    labels[:, :5], labels[:4, 5:9], labels[4:, 5:] = 1, 2, 3  # they touch the frame
    border = np.zeros(labels.shape, bool)
    for y, x in np.ndindex(labels.shape):
        for dy, dx in ((0, 1), (1, 0)):
            if y + dy < 9 and x + dx < 12:
                a, b = labels[y, x], labels[y + dy, x + dx]
                border[y, x] |= bool(a and b and a != b)
    reach = range(-(width // 2), width - width // 2)
    expected = np.zeros(labels.shape, bool)
    for y, x in np.argwhere(border):
        for dy in reach:
            for dx in reach:
                if 0 <= y + dy < 9 and 0 <= x + dx < 12:
                    expected[y + dy, x + dx] = True
    mask = tangrams._seam_mask(labels, width)
    assert np.array_equal(mask > 0, expected & (labels > 0)) and set(np.unique(mask)) <= {0, 255}
