"""KiloGram: figures in every style of the collection, their words, and EEG recorded with them.

All figures are the project's own, written by `kilogram_files` in KiloGram's formats.
"""

from __future__ import annotations

import json
import re
import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from kilogram_files import (
    CHANNELS,
    FIGURES,
    STYLES,
    figure_names,
    in_units,
    svg_text,
    write_annotations,
    write_figures,
    write_tree,
)
from PIL import Image
from shapely import contains_xy
from shapely.geometry import Polygon

from sgdm_utils.datasets import bids, readers, splits
from sgdm_utils.datasets.kilogram import pictures as kilogram_pictures
from sgdm_utils.datasets.kilogram import recordings
from sgdm_utils.datasets.kilogram.figures import Tangram, read_svg, relations
from sgdm_utils.datasets.kilogram.pictures import (
    common_names,
    read_annotations,
    render,
    stimulus_set,
)
from sgdm_utils.errors import DatasetError
from sgdm_utils.stimuli import pictures as stimuli_pictures
from sgdm_utils.stimuli import tangrams


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def boat(leg: float = 50.0, rotation: float = 0.0) -> tangrams.Pieces:
    return in_units(tangrams.tangram_pieces("boat", "hut"), leg, rotation)


def framed(points: tangrams.Pieces) -> tangrams.Pieces:
    """Literal centring of points whose corner is 0, 0 in a square frame."""
    w, h = np.concatenate(points).max(0)
    side = max(w, h)
    return [(p + [(side - w) / 2, (side - h) / 2]) / side for p in points]


# --------------------------------------------------------------------------- reading figures


@pytest.mark.parametrize(
    ("style", "units"), [("exact", 1e-9), *((style, 0.51) for style in STYLES[1:])]
)
def test_corners_survive_in_every_style(tmp_path, style, units):
    points = boat(57.3, 17.0)
    figure = read_svg(write(tmp_path / "page1-3.svg", svg_text(points, style)))
    side = np.concatenate(points).max()
    assert figure.name == "page1-3" and figure.svg_ids == tuple("1234567")
    for got, want in zip(figure.pieces, framed(points), strict=True):
        assert got.shape == want.shape
        # the frames of the rounded styles end at the next whole unit
        np.testing.assert_allclose(got * side, want * side, atol=2 * units)


def test_the_frame_is_the_view_box_with_equal_margins(tmp_path):
    points = [p + [10, 20] for p in boat()]
    text = svg_text(points).replace('viewBox="0 0 ', 'viewBox="10 20 ')
    w, h = (float(x) for x in text.split('viewBox="')[1].split('"')[0].split()[2:])
    text = text.replace(f"10 20 {w} {h}", f"10, 20, {w - 10}, {h - 20}")
    figure = read_svg(write(tmp_path / "x.svg", text))
    corners = np.concatenate(figure.pieces)
    assert w - 10 > h - 20
    np.testing.assert_allclose([corners[:, 0].min(), corners[:, 0].max()], [0, 1], atol=1e-12)
    low, high = corners[:, 1].min(), corners[:, 1].max()
    assert low == pytest.approx(1 - high) and high - low == pytest.approx((h - 20) / (w - 10))


@pytest.mark.parametrize(
    ("transform", "inverse"),
    [  # the inverse of each, worked out by hand
        ("translate(3,4)", lambda x, y: (x - 3, y - 4)),
        ("translate(3-4)", lambda x, y: (x - 3, y + 4)),
        ("translate(.5.25)", lambda x, y: (x - 0.5, y - 0.25)),
        ("translate(3)", lambda x, y: (x - 3, y)),
        ("scale(2)", lambda x, y: (x / 2, y / 2)),
        ("scale(2 -4)", lambda x, y: (x / 2, -y / 4)),
        ("rotate(90)", lambda x, y: (y, -x)),
        ("rotate(90 10,20)", lambda x, y: (10 + (y - 20), 20 - (x - 10))),
        ("matrix(0 1 -1 0 5 7)", lambda x, y: (y - 7, -(x - 5))),
        ("translate(3,4) scale(2)", lambda x, y: ((x - 3) / 2, (y - 4) / 2)),
        ("scale(2), translate(3,4)", lambda x, y: (x / 2 - 3, y / 2 - 4)),
    ],
)
def test_transforms_of_polygons_and_of_groups(tmp_path, transform, inverse):
    points = boat()
    want = read_svg(write(tmp_path / "a.svg", svg_text(points))).pieces
    moved = svg_text([np.stack(inverse(*p.T), axis=1) for p in points])
    box = svg_text(points).split('viewBox="')[1].split('"')[0]
    moved = moved.replace(moved.split('viewBox="')[1].split('"')[0], box)
    each = moved.replace("<polygon ", f'<polygon transform="{transform}" ')
    head, body = moved.replace("</svg>", "</g></g></svg>").split("<defs/>")
    # the outer group is undone by the inner one, so only the order of the two can be wrong
    group = f'{head}<g transform="{transform} scale(0.5)"><g transform="scale(2)">{body}'
    for text in (each, group):
        got = read_svg(write(tmp_path / "b.svg", text)).pieces
        np.testing.assert_allclose(np.concatenate(got), np.concatenate(want), atol=1e-12)


def test_the_square_is_found_by_its_angles(tmp_path):
    points = boat()
    want = read_svg(write(tmp_path / "a.svg", svg_text(points)))
    swapped = read_svg(write(tmp_path / "b.svg", svg_text(points, ids="2134567")))
    assert swapped.svg_ids == ("2", "1", "3", "4", "5", "6", "7")
    np.testing.assert_allclose(swapped.pieces[0], want.pieces[0])
    np.testing.assert_array_equal(relations(swapped), relations(want))


def test_a_sign_separates_numbers(tmp_path):
    points = [p - 500 for p in boat()]  # all coordinates below zero
    plain = re.sub('viewBox="[^"]*"', 'viewBox="-500 -500 400 400"', svg_text(points))
    want = read_svg(write(tmp_path / "a.svg", plain))
    glued = re.sub(r'points="([^"]*)"', lambda m: re.sub(r"[\s,]+-", "-", m[0]), plain)
    assert "," not in glued.split('points="')[1].split('"')[0]
    for a, b in zip(read_svg(write(tmp_path / "a.svg", glued)).pieces, want.pieces, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_point_given_twice_at_the_end_is_one_corner(tmp_path):
    points = boat()
    closed = [np.vstack([p, p[:1]]) for p in points]
    figure = read_svg(write(tmp_path / "a.svg", svg_text(closed)))
    assert [len(p) for p in figure.pieces] == [4, 4, 3, 3, 3, 3, 3]


def test_a_tan_of_a_wrong_size_is_read_and_an_exchanged_one_is_not(tmp_path):
    """Hand-drawn figures have tans that are wrong by up to 0.055 of the whole (page-G)."""
    points = boat()
    middle = points[2].mean(0)
    points[2] = middle + (points[2] - middle) * 1.38
    figure = read_svg(write(tmp_path / "a.svg", svg_text(points)))
    area = np.array([Polygon(p).area for p in figure.pieces])
    assert 0.04 < area[2] / area.sum() - 1 / 16 < 0.06
    for ids in ("1254367", "1234657"):  # small with medium, medium with large
        with pytest.raises(DatasetError, match=r"b\.svg: polygon \d has .* Are ids exchanged"):
            read_svg(write(tmp_path / "b.svg", svg_text(boat(), ids=ids)))


GOOD = svg_text(boat())


def points_of(name: int) -> str:
    return GOOD.split(f'id="{name}" points="')[1].split('"')[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('id="4"', 'id="3"', "two polygons have the id '3'"),
        ('id="4"', 'id="8"', "a polygon has the id '8'"),
        ('id="4" ', "", "a polygon has the id None"),
        ("<polygon", "<polyline", "no polygon with the id 1, 2, 3, 4, 5, 6, 7"),
        (points_of(5), points_of(1), "polygon 5 has 4 corners instead of 3"),
        (points_of(1), points_of(5), "polygon 1 has 3 corners instead of 4"),
        (points_of(3), points_of(3) + ",1", "polygon 3 has an x without a y"),
        (points_of(3), "1,2 two,3 4,5", "polygon 3 holds 'two', which is no number"),
        (points_of(3), "1,2 nan,3 4,5", "polygon 3 holds 'nan'"),
        (points_of(3), "1,2 1e999,3 4,5", "polygon 3 holds '1e999'"),
        (points_of(3), "0,0 10,10 20,20", "polygon 3 is degenerate"),
        (points_of(1), "0,0 50,50 50,0 0,50", "polygon 1 is degenerate"),
        (points_of(2), points_of(1), "the polygons 1 and 2 have the same corners"),
        ('id="5"', 'id="5" transform="scale(2)"', "polygon 5 has 0.364 of the area"),
        ('id="5"', 'id="5" transform="skewX(3)"', r"'skewX(3)' is not understood"),
        (
            'id="5"',
            'id="5" style="fill:red;transform: scale(2)"',
            "'transform' moves what is drawn",
        ),
        ('id="5"', 'id="5" style="rotate:9deg"', "'rotate' moves what is drawn"),
        ('id="5"', 'id="5" transform-origin="3 4"', "'transform-origin' moves what is drawn"),
        (
            "<polygon ",
            "<defs><style>polygon { transform: none }</style></defs><polygon ",
            "'transform' moves what is drawn",
        ),
        ("<polygon ", "<svg/><polygon ", "'svg' moves what is drawn"),
        ("<polygon ", "<animateTransform/><polygon ", "'animateTransform' moves what is drawn"),
        ('id="5"', 'id="5" transform="matrix(1,0,0,1)"', r"'matrix(1,0,0,1)' is not understood"),
        ('id="5"', 'id="5" transform="turn left"', "is not understood at 'turn left'"),
        ("viewBox", "viewbox", "has the viewBox None, not four numbers"),
        ('viewBox="0', 'viewBox="', "not four numbers"),
        ("</svg>", "", "x.svg cannot be read as SVG (ParseError: no element found"),
        ("</svg>", "&bomb;</svg>", "cannot be read as SVG (ParseError: undefined entity"),
    ],
)
def test_a_faulty_figure_is_named(tmp_path, old, new, message):
    assert old in GOOD
    path = write(tmp_path / "x.svg", GOOD.replace(old, new))
    with pytest.raises(DatasetError) as error:
        read_svg(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_a_figure_with_two_parallelograms_is_read_with_a_note(tmp_path):
    """Two files of the collection are like this, and people were shown them."""
    points = boat()
    assert read_svg(write(tmp_path / "a.svg", svg_text(points))).note == ""
    square, parallelogram = points[0], points[1]
    points[0] = parallelogram + [200, 0]
    figure = read_svg(write(tmp_path / "b.svg", svg_text(points)))
    assert figure.note.startswith("two parallelograms and no square")
    np.testing.assert_allclose(np.ptp(figure.pieces[0], 0), np.ptp(figure.pieces[1], 0), atol=1e-6)
    assert render(figure, 64)[1].any() and relations(figure).shape == (7, 7)
    points[:2] = [square, square + [200, 0]]
    figure = read_svg(write(tmp_path / "c.svg", svg_text(points)))
    assert figure.note.startswith("two squares and no parallelogram; polygon 2 has the place")


def test_other_files_are_refused(tmp_path):
    for text, message in (("", "no element"), ("<html/>", "root element is 'html'"), ("x", "SVG")):
        with pytest.raises(DatasetError, match=message):
            read_svg(write(tmp_path / "x.svg", text))
    with pytest.raises(DatasetError, match=r"gone\.svg cannot be read as SVG"):
        read_svg(tmp_path / "gone.svg")


def test_entities_are_never_expanded(tmp_path):
    secret = write(tmp_path / "secret.txt", "0,0")
    laughs = '<!ENTITY a0 "ha">' + "".join(
        f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12)
    )
    outside = f'<!ENTITY a11 SYSTEM "{secret.as_uri()}">'
    for entities in (laughs, outside):
        text = GOOD.replace("<svg ", f"<!DOCTYPE svg [{entities}]><svg ", 1)
        path = write(tmp_path / "x.svg", text.replace("</svg>", "<text>&a11;</text></svg>"))
        start = time.process_time()
        with pytest.raises(DatasetError, match=r"x\.svg .*document type"):
            read_svg(path)
        assert time.process_time() - start < 0.5  # eleven levels would be 2e11 characters


# ------------------------------------------------------------------------------- relations


# The cat's parallelogram ends 0.06 legs beside a corner of some bodies: too near to be told apart
# when corners are off by more than 0.005 legs.
SHARP = [f for f in FIGURES if f[1] != "cat"]


@pytest.mark.parametrize(
    ("style", "rotation", "leg", "part"),
    [(s, r, g, i) for s, (i, r, g) in product(STYLES, ((0, 0, 40), (1, 17.3, 50), (2, 45, 120)))],
)
def test_relations_survive_the_file(tmp_path, style, rotation, leg, part):
    for figure in FIGURES[part::3]:
        if figure not in SHARP and style == "whole":
            continue
        pieces = tangrams.tangram_pieces(*figure)
        path = write(tmp_path / "x.svg", svg_text(in_units(pieces, leg, rotation), style))
        matrix = relations(read_svg(path))
        assert matrix.dtype == np.int8
        np.testing.assert_array_equal(matrix, tangrams.relation_matrix(pieces), str(figure))


def test_relations_survive_jitter_that_exact_comparison_does_not(tmp_path):
    rng = np.random.default_rng(1)
    lost = 0
    for figure in SHARP:
        pieces = tangrams.tangram_pieces(*figure)
        moved = [p + rng.uniform(-0.0125, 0.0125, p.shape) for p in pieces]
        read = read_svg(write(tmp_path / "x.svg", svg_text(in_units(moved, 50, 10))))
        want = tangrams.relation_matrix(pieces)
        np.testing.assert_array_equal(relations(read), want, str(figure))
        lost += (tangrams.relation_matrix(read.pieces) != want).any()
    assert lost == len(SHARP)  # otherwise the tolerance was not needed


def test_a_long_edge_on_a_short_one_that_is_a_little_askew(tmp_path):
    """A corner is 0.03 legs off; the line of its edge strays 0.06 along the long edge beside it."""
    points = in_units(tangrams.tangram_pieces("runner", "flag"), 50)
    small, large = 2, 5
    want = relations(read_svg(write(tmp_path / "a.svg", svg_text(points))))
    assert want[small, large] == 4
    points[small][1] += [0.0, -1.5]  # the corner in the middle of the large triangle's edge
    figure = read_svg(write(tmp_path / "b.svg", svg_text(points)))
    np.testing.assert_array_equal(relations(figure), want)
    backwards = Tangram("x", figure.pieces[::-1], figure.svg_ids[::-1])
    np.testing.assert_array_equal(relations(backwards), want[::-1, ::-1])


def test_gaps_wider_than_the_tolerance_are_gaps(tmp_path):
    points = boat()
    before = relations(read_svg(write(tmp_path / "a.svg", svg_text(points))))
    assert (before[2] > 1).sum() > 2
    points[2] = points[2] + [-5, -5]  # 0.1 legs away from its neighbours, up and to the left
    after = relations(read_svg(write(tmp_path / "b.svg", svg_text([p + 9 for p in points]))))
    assert (np.delete(after[2], 2) <= 1).all()
    np.testing.assert_array_equal(
        np.delete(np.delete(after, 2, 0), 2, 1), np.delete(np.delete(before, 2, 0), 2, 1)
    )


# -------------------------------------------------------------------------------- pictures


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> list[Tangram]:
    folder = tmp_path_factory.mktemp("svg")
    return [read_svg(folder / f"{name}.svg") for name in write_figures(folder, 30)]


def test_thirty_pictures_are_quick_and_have_ink(figures):
    start = time.process_time()
    drawn = [render(f, 64) for f in figures]
    assert time.process_time() - start < 1.5  # 0.1 s on an idle core
    ink = np.array([d[1].mean() for d in drawn])
    true = [sum(Polygon(p).area for p in f.pieces) for f in figures]
    np.testing.assert_allclose(ink, true, rtol=0.06)
    assert 0.2 < ink.mean() < 0.45
    picture, silhouette, edges, pieces = drawn[0]
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    assert silhouette.dtype == edges.dtype == bool and pieces.dtype == np.uint8
    assert set(np.unique(pieces)) == set(range(8))
    assert (picture[silhouette].mean() < 90) and (picture[~silhouette].mean() > 230)


def test_the_silhouette_is_where_the_polygons_are(figures):
    for size, least in ((224, 0.97), (64, 0.9)):  # at 64 pixels most of a tan is its border
        for figure in figures:
            # shapely, at the centres of the pixels
            x, y = np.meshgrid(*[(np.arange(size) + 0.5) / size] * 2)
            mask = np.any([contains_xy(Polygon(p), x, y) for p in figure.pieces], axis=0)
            silhouette = render(figure, size)[1]
            iou = (mask & silhouette).sum() / (mask | silhouette).sum()
            assert iou > least, (figure.name, size, iou)


def test_each_piece_is_where_its_tan_is(figures):
    for figure in figures[::6]:
        pieces = render(figure, 128)[3]
        for i, p in enumerate(figure.pieces, start=1):
            y, x = np.nonzero(pieces == i)
            middle = np.array(Polygon(p).centroid.coords[0])
            np.testing.assert_allclose([x.mean() + 0.5, y.mean() + 0.5], middle * 128, atol=1.0)


def test_pictures_are_those_of_the_projects_tangrams(tmp_path):
    points = in_units(tangrams.tangram_pieces("table", "swan"))
    placed = framed(points)
    figure = read_svg(write(tmp_path / "a.svg", svg_text(points)))
    picture, _, edges, pieces = render(figure, 64)
    white, black = (255, 255, 255), (0, 0, 0)
    want, labels = tangrams.render_tangram(placed, 64, black, white)
    np.testing.assert_array_equal(picture, want)
    np.testing.assert_array_equal(pieces, labels)
    # the rule of the simulated study's edges, pixel by pixel
    padded = np.pad(labels, 1).astype(int)
    literal = np.zeros_like(edges)
    for y, x in product(range(64), range(64)):
        here = padded[y + 1, x + 1]
        beside = [padded[y, x + 1], padded[y + 2, x + 1], padded[y + 1, x], padded[y + 1, x + 2]]
        outline = here > 0 and 0 in beside
        literal[y, x] = outline or any(here > b > 0 for b in beside)
    np.testing.assert_array_equal(edges, literal)
    assert pieces[0].any() and pieces[-1].any(), "the figure fills its frame"
    # a frame that cuts through the tans ends all of them: what is beyond the frame is not seen
    text = svg_text(points)
    box = text.split('viewBox="')[1].split('"')[0]
    cut = read_svg(write(tmp_path / "b.svg", text.replace(box, "60 110 80 80")))
    _, _, edges, pieces = render(cut, 64)
    for border in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        np.testing.assert_array_equal(edges[border], pieces[border] > 0)
    assert (pieces[[0, -1]] > 0).all(0).sum() > 10


def test_parts_have_colours(tmp_path):
    figure = read_svg(write(tmp_path / "a.svg", svg_text(boat(), ids="2134567")))
    parts = {"2": "sail", "1": "flag", "3": "flag", "4": "flag", "5": "hull", "6": "hull"}
    picture, silhouette, edges, pieces = render(figure, 128, parts)
    plain = render(figure, 128)
    for got, want in zip((silhouette, edges, pieces), plain[1:], strict=True):
        np.testing.assert_array_equal(got, want)
    colour = {i: np.median(picture[pieces == i], axis=0).astype(int).tolist() for i in range(8)}
    coral, gold, sky, grey = [255, 127, 80], [255, 215, 0], [135, 206, 250], [211, 211, 211]
    # polygon 1 names the first part, and is the parallelogram of this file
    assert colour[2] == colour[3] == colour[4] == coral and colour[1] == gold
    assert colour[5] == colour[6] == sky and colour[7] == grey
    assert colour[0] == [255, 255, 255]


def test_a_stimulus_set_has_the_columns_of_other_peoples_pictures(tmp_path):
    names = write_figures(tmp_path / "svg", 12)
    write_annotations(tmp_path, names, np.random.default_rng(0))  # beside the folder
    images = pd.DataFrame(
        {"image_id": names, "concept": names, "split": "train"}, index=range(5, 17)
    )
    images["stim_file"] = images["image_id"] + ".svg"
    made = stimulus_set(tmp_path / "svg", images, 64)
    for i, name in enumerate(names):
        Image.fromarray(made.pictures[i]).save(tmp_path / f"{name}.png")
    other = stimuli_pictures.from_files(
        tmp_path, images.assign(stim_file=images["image_id"] + ".png"), 64
    )  # fmt: skip
    assert list(made.table) == list(other.table)
    assert made.table["digest"].tolist() == other.table["digest"].tolist()
    for field in ("pictures", "silhouettes", "edges", "pieces", "relations"):
        a, b = getattr(made, field), getattr(other, field)
        assert a.shape == b.shape and a.dtype == b.dtype, field
    assert set(made.table["kind"]) == {"tangram"}
    body, crown = FIGURES[0]
    np.testing.assert_array_equal(
        made.relations[0], tangrams.relation_matrix(tangrams.tangram_pieces(body, crown))
    )
    assert made.table["caption"].iloc[0] == made.table["category"].iloc[0] == "man with a cap"
    (tmp_path / "full.json").unlink()
    (tmp_path / "dense10.json").unlink()
    bare = stimulus_set(tmp_path / "svg", images, 64).table
    assert set(bare["caption"]) == {"a tangram"} and set(bare["category"]) == {"tangram"}
    given = stimulus_set(tmp_path / "svg", images.assign(caption="mine"), 64).table
    assert set(given["caption"]) == {"mine"}


# ----------------------------------------------------------------------------- annotations


def test_three_schemas_say_the_same(tmp_path):
    names = figure_names(12)
    write_annotations(tmp_path, names, np.random.default_rng(0))
    new, bare, old = (
        read_annotations(tmp_path / f"{f}.json") for f in ("full", "dense10", "full_old")
    )
    assert list(new) == ["tangram", "whole", "parts", "worker", "snd", "pnd", "psa"]
    assert len(new) == 120 and new["tangram"].unique().tolist() == names
    for other in (bare, old):
        assert other["whole"].tolist() == new["whole"].tolist()
        assert other["parts"].tolist() == new["parts"].tolist()
        assert other[["snd", "pnd", "psa"]].isna().all().all()
    assert new["parts"][0]["4"] == "UNKNOWN" and set(new["parts"][0]) == set("1234567")
    assert new["snd"].between(0, 1).all() and new.groupby("tangram")["snd"].nunique().eq(1).all()
    assert (old["worker"] == "").all() and bare["worker"].tolist() == new["worker"].tolist()


def test_captions_and_categories():
    def called(*wholes):
        return common_names(pd.DataFrame({"tangram": "t", "whole": wholes})).loc["t"].tolist()

    assert called("Bird", " bird ", "a cat") == ["bird", "bird", 3, 2]
    assert called("A dog.", "the dog", "a cat", "cow", "cow") == ["cow", "dog", 5, 2]
    assert called("a cat", "Swan")[:2] == ["a cat", "tangram"]  # nobody agrees: the first, and none
    assert called("", "  ")[:2] == ["a tangram", "tangram"]
    assert called("T-shirt!", "t-shirt")[1] == "t-shirt"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"page1-0": ', r"x\.json cannot be read as JSON"),
        ("[]", "not a mapping of figures"),
        ("{}", "not a mapping of figures"),
        ('{"page1-0": []}', "holds no annotation"),
        ('{"page1-0": {"snd": 0.5}}', "'page1-0' has no list of annotations"),
        ('{"page1-0": [{"whole": "cat"}]}', "annotation 0 of 'page1-0' has no whole or piece"),
        (
            '{"page1-0": [{"whole": {}, "part": {}}]}',
            "annotation 0 of 'page1-0' has no wholeAnnotation or part",
        ),
        ('{"page1-0": [{"whole": "cat", "piece": {"8": "ear"}}]}', "part of polygon '8'"),
        ('{"page1-0": ["cat"]}', "annotation 0 of 'page1-0' is no mapping"),
    ],
)
def test_faulty_annotations_are_named(tmp_path, content, message):
    with pytest.raises(DatasetError, match=message):
        read_annotations(write(tmp_path / "x.json", content))


# ------------------------------------------------------------------------------- the study


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """The miniature as other tests use it; read only."""
    root = tmp_path_factory.mktemp("data") / "kilogram"
    start = time.process_time()
    write_tree(root, snr=1.0)
    assert time.process_time() - start < 8
    assert sum(p.stat().st_size for p in root.rglob("*")) < 150e6
    return root


def small(root: Path, **options) -> Path:
    """One short recording of five channels and 12 figures; returns its events.tsv."""
    given = {"subjects": ("01",), "sessions": ("01",), "n_tangrams": 12, "test_repetitions": 2}
    given |= {"channels": ["Fz", "Cz", "Pz", "O1", "Oz"], "soa_s": 0.8}
    write_tree(root, **given | options)
    return next(root.glob("sub-01/ses-01/eeg/*_events.tsv"))


def edit(sidecar: Path, column: str, change) -> None:
    """Replace a column by `change(list of its values)`."""
    table = pd.read_csv(sidecar, sep="\t", dtype=object, keep_default_na=False)
    table[column] = change(table[column].tolist())
    table.to_csv(sidecar, sep="\t", index=False)


def test_a_study_is_listed_whole(study):
    found = recordings.tables(study, "kilogram", ["sub-01", "sub-02"], [1, 2], 63)
    assert found.layout == "continuous"
    assert found.recordings["session"].tolist() == ["01", "02"] * 2
    # 5 of 24 figures are held out and shown 8 times, the others twice
    assert found.events.groupby("subject").size().tolist() == [5 * 8 + 19 * 2] * 2
    assert sorted(found.images["n_trials"]) == [4] * 19 + [16] * 5
    assert found.images["image_id"].tolist() == sorted(figure_names(24))
    assert (found.images["concept"] == found.images["image_id"]).all()
    assert (found.images["stim_file"] == found.images["image_id"] + ".svg").all()
    held = found.images[found.images["partition"] == "test"]
    assert sorted(held["image_id"]) == sorted(figure_names(24)[2::5])
    assert set(found.images["partition"]) == {"train", "test"}
    assert found.notes["partition"] == "KiloGram's (2 development, 5 heldout, 17 train)"
    last = found.events.groupby(["subject", "image_id"])["repetition"].max()
    assert sorted(set(last)) == [1, 7]
    assert found.events["trial"].max() < len(found.events) / 2
    splits.assert_split_integrity(
        splits.from_partition(found.images, np.random.default_rng(0), val_concepts=3)
    )
    table = splits.assign_split(found.images, np.random.default_rng(0))
    assert set(table["split"]) == {"train", "val", "test"}


def test_figures_may_be_named_in_any_column_and_way(study, tmp_path):
    by_file = recordings.tables(study, subjects=["01"]).events
    by_name = recordings.tables(study, subjects=["01"], stimulus_column="tangram").events
    pd.testing.assert_frame_equal(by_file, by_name)
    sidecar = small(tmp_path)
    plain = recordings.tables(tmp_path).events
    (tmp_path / "stimuli" / "tangrams-svg").mkdir()
    for path in (tmp_path / "stimuli").glob("*.svg"):
        path.rename(path.parent / "tangrams-svg" / path.name)

    edit(sidecar, "stim_file", lambda names: [
        n if n == "n/a" else "tangrams-svg\\" + n.removesuffix(".svg") + ".png" for n in names
    ])  # fmt: skip
    moved = recordings.tables(tmp_path).events
    assert moved["image_id"].tolist() == plain["image_id"].tolist()
    assert (moved["stim_file"] == "tangrams-svg/" + plain["stim_file"]).all()


def reliability(root: Path, start_s: float, stop_s: float) -> float:
    """Correlation over figures of the responses in odd and even trials, at the back of the head."""
    found = recordings.tables(root)
    cut = []
    for _, recording in found.recordings.iterrows():
        raw = recordings.read_raw(recording, root)
        data = raw.get_data(picks=["O1", "Oz", "O2", "POz", "PO3", "PO4"])
        here = found.events[
            (found.events[["subject", "session"]] == recording[["subject", "session"]]).all(axis=1)
        ]
        low, high = int(start_s * 250), int(stop_s * 250)
        cut += [data[:, s + low : s + high] for s in here["sample"]]
    cut, name = np.stack(cut), found.events["image_id"].to_numpy()
    rows = [np.flatnonzero(name == n) for n in np.unique(name)]
    halves = [np.stack([cut[r[i::2]].mean(0) for r in rows if len(r) > 4]) for i in (0, 1)]
    return np.corrcoef(*[(h - h.mean(0)).ravel() for h in halves])[0, 1]


def test_events_lie_where_the_response_begins(tmp_path):
    back = ["Fz", "Cz", "Pz", "O1", "Oz", "O2", "POz", "PO3", "PO4"]
    one = {"subjects": ("01",), "train_repetitions": 8, "channels": back, "soa_s": 0.8}
    write_tree(tmp_path / "a", snr=1.0, **one)
    assert reliability(tmp_path / "a", 0.05, 0.35) > 0.35
    assert abs(reliability(tmp_path / "a", -0.3, 0.0)) < 0.15
    write_tree(tmp_path / "b", snr=0.0, **one)
    assert abs(reliability(tmp_path / "b", 0.05, 0.35)) < 0.15


def test_recordings_are_read_by_the_one_reader(study):
    raw = recordings.read_raw(recordings.tables(study).recordings.iloc[0], study)
    assert raw.ch_names == CHANNELS and raw.info["sfreq"] == 250
    assert 5e-6 < raw.get_data().std() < 20e-6  # volts
    oz, fpz = (raw.info["chs"][CHANNELS.index(n)]["loc"][:3] for n in ("Oz", "Fp1"))
    assert oz[1] < -0.05 < 0.05 < fpz[1]


def test_the_partition_is_dropped_where_it_would_not_hold(tmp_path):
    small(tmp_path)
    path = tmp_path / "stimuli" / "data_split.json"
    parts = json.loads(path.read_text())
    names = figure_names(12)
    write(path, json.dumps(parts | {"train": parts["train"][:-1]}))
    found = recordings.tables(tmp_path)
    assert set(found.images["partition"]) == {""}
    assert "1 figures are not in data_split.json" in found.notes["partition"]
    write(path, json.dumps({"train": names, "heldout": []}))
    assert recordings.tables(tmp_path).notes["partition"] == "none: all figures are of train"
    write(path, json.dumps({"train": names[:6], "dense": names[6:]}))
    assert recordings.tables(tmp_path).images["partition"].value_counts().to_dict() == {
        "train": 6,
        "test": 6,
    }
    for content, message in (
        ({"train": names, "heldout": names[:1]}, r"'page1-0' is in train and in heldout"),
        ({"training": names}, r"unknown part 'training'"),
        ([names], "not a mapping of parts"),
    ):
        write(path, json.dumps(content))
        with pytest.raises(DatasetError, match=rf"data_split\.json.*{message}"):
            recordings.tables(tmp_path)
    path.unlink()
    assert recordings.tables(tmp_path).notes["partition"] == "none: no data_split.json"


def test_two_names_of_one_figure_are_one_concept(tmp_path):
    small(tmp_path)
    first, second = figure_names(12)[0], figure_names(12)[2]  # trained on, held out
    body, crown = FIGURES[0]
    pieces = tangrams.tangram_pieces(body, crown)
    pieces[2], pieces[3] = pieces[3], pieces[2][[1, 2, 0]]  # another numbering, another size
    write(tmp_path / "stimuli" / f"{second}.svg", svg_text(in_units(pieces, 90)))
    found = recordings.tables(tmp_path)
    concept = found.images.set_index("image_id")["concept"]
    assert concept[second] == concept[first] == first
    assert found.notes["figures_with_two_names"] == {second: first}
    with pytest.raises(splits.SplitError, match="in both published partitions: 'page1-0'"):
        splits.from_partition(found.images, np.random.default_rng(0), val_concepts=1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("page1-1.svg", r"events\.tsv, line 4: the figure 'page1-1\.svg' has no file page1-1\.svg"),
        ("xpage1-0", r"did you mean 'page1-0'"),
        ("../../secret", r"has no file secret\.svg"),
    ],
)
def test_a_figure_without_a_file_is_named_with_its_line(tmp_path, value, message):
    edit(small(tmp_path), "stim_file", lambda names: [*names[:2], value, *names[3:]])
    with pytest.raises(DatasetError, match=message):
        recordings.tables(tmp_path)


def test_figures_that_cannot_be_used_are_named(tmp_path):
    sidecar = small(tmp_path)
    folder = tmp_path / "stimuli"
    (folder / "copy").mkdir()
    (folder / "page1-7.svg").rename(folder / "copy" / "page1-7.svg")
    recordings.tables(tmp_path)
    text = (folder / "copy" / "page1-7.svg").read_text()
    write(folder / "page1-7.svg", text)
    with pytest.raises(DatasetError, match=r"more than once: copy/page1-7\.svg, page1-7\.svg"):
        recordings.tables(tmp_path)
    (folder / "copy" / "page1-7.svg").unlink()
    write(folder / "page1-7.svg", text.replace("</svg>", ""))
    with pytest.raises(DatasetError, match=r"page1-7\.svg cannot be read as SVG"):
        recordings.tables(tmp_path)
    for path in folder.glob("*.svg"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"stimuli holds no SVG file"):
        recordings.tables(tmp_path)
    sidecar.unlink()
    write(folder / "page1-7.svg", text)
    with pytest.raises(DatasetError, match=r"_events\.tsv is missing"):
        recordings.tables(tmp_path)


def test_what_is_asked_for_must_be_there(study):
    with pytest.raises(DatasetError, match=r"sub-01_ses-01.* has 63 EEG channels, 17 are config"):
        recordings.tables(study, n_channels=17)
    with pytest.raises(DatasetError, match=r"sub-01 has no session 3; there is 01, 02"):
        recordings.tables(study, sessions=[1, 3])
    with pytest.raises(DatasetError, match="subject 'sub-01' is listed twice"):
        recordings.tables(study, subjects=["sub-01", "sub-01"])
    with pytest.raises(DatasetError, match="no recording of sub-09"):
        recordings.tables(study, subjects=["sub-09"])
    with pytest.raises(DatasetError, match="form 'svg' is unknown"):
        recordings.tables(study, "svg")
    with pytest.raises(DatasetError, match="no column 'figure'"):
        recordings.tables(study, stimulus_column="figure")
    one = recordings.tables(study, sessions=["ses-02"])
    assert set(one.recordings["session"]) == set(one.events["session"]) == {"02"}
    assert one.events["repetition"].min() == 0


def test_a_doubled_event_is_named_and_a_late_one_can_be_left_out(tmp_path):
    sidecar = small(tmp_path)
    everything = recordings.tables(tmp_path).events
    inside = recordings.tables(tmp_path, margin_s=2.5).events
    assert 0 < len(everything) - len(inside) < 5
    only = recordings.tables(tmp_path, keep={"trial_type": ["tangram"]}).events
    pd.testing.assert_frame_equal(only, everything)
    for asked in ({"margin_s": 2.5}, {"keep": {"trial_type": ["nothing"]}}):  # through the one door
        mapping = bids.EventMapping("stim_file", "concept", **asked)
        if "keep" in asked:
            with pytest.raises(DatasetError, match="no event is left"):
                readers.open_study("kilogram", tmp_path, ["sub-01"], mapping)
        else:
            found = readers.open_study("kilogram", tmp_path, ["sub-01"], mapping)
            pd.testing.assert_frame_equal(found.events, inside)
            assert found.notes["events left out near the ends (margin_s)"] == str(
                len(everything) - len(inside)
            )
    edit(sidecar, "onset", lambda onsets: [*onsets[:3], onsets[2], *onsets[4:]])
    with pytest.raises(DatasetError, match=r"line 5 .*earlier event at the same sample"):
        recordings.tables(tmp_path)


def test_pictures_of_the_study_go_with_its_tables(study):
    found = recordings.tables(study)
    images = splits.assign_split(found.images, np.random.default_rng(0))
    drawn = stimulus_set(study / "stimuli", images, 64)
    assert len(drawn) == 24 and drawn.table["image_id"].tolist() == images["image_id"].tolist()
    assert 2 <= drawn.table["category"].nunique() <= 6
    assert (drawn.relations[:, range(7), range(7)] == 5).all()
    assert len({r.tobytes() for r in drawn.relations}) > 18
    assert bids.image_table(found.events)["image_id"].tolist() == images["image_id"].tolist()
    assert kilogram_pictures.ANNOTATION_FILES[0] == "full.json"
