"""The report page: self-contained, whole or not at all, and showing the picture that it names."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sgdm_utils.figures import page as figures_page
from sgdm_utils.figures import panels
from sgdm_utils.workflow.artifacts import Artifact
from sgdm_utils.workflow.downloads.catalogue import load_catalogue

matplotlib.use("Agg")
VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """Collects tags and attributes, and that every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def pictures(rng):
    return rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def decoded(sprite):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(sprite.uri.partition(",")[2]))))


def write(folder, sections, sprites=(), text="a line", **options):
    page = figures_page.Page(folder, text, **options)
    for section in sections:
        page.add(*section)
    return page.write(text, [text], text, sprites)


def test_a_png_sprite_holds_the_pictures_exactly_and_in_order(pictures):
    made = figures_page.sprite("s-1", pictures)
    assert np.array_equal(decoded(made).reshape(pictures.shape), pictures)
    assert made.n == 5
    assert "background-size:100% 500%" in made.css


def test_a_jpeg_sprite_does_not_mix_neighbours(rng):
    flat = np.zeros((3, 64, 64, 3), np.uint8)
    flat[1] = (250, 10, 10)
    seen = decoded(figures_page.sprite("s", flat, "jpeg", 90)).reshape(flat.shape).astype(int)
    assert np.abs(seen - flat).max() <= 6


def test_grey_maps_and_palettes_become_sprites(rng):
    maps = (rng.random((4, 16, 16)) > 0.5).astype(np.uint8) * 255
    made = figures_page.sprite("m", maps, colours=2)
    image = Image.open(io.BytesIO(base64.b64decode(made.uri.partition(",")[2]))).convert("L")
    assert np.array_equal(np.asarray(image).reshape(maps.shape), maps)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("s", np.zeros((2, 4, 4, 3))),
        ("s", np.zeros((4, 4), np.uint8)),
        ("s", np.zeros((0, 4, 4), np.uint8)),
        ("1s", np.zeros((2, 4, 4), np.uint8)),
        ("a{}b", np.zeros((2, 4, 4), np.uint8)),
    ],
)
def test_what_is_no_sprite_is_refused(name, array):
    with pytest.raises(figures_page.ReportError):
        figures_page.sprite(name, array)


def test_a_cell_shows_the_picture_that_it_names(pictures):
    made = figures_page.sprite("s", pictures)
    places = [
        float(
            re.search(r"background-position:0 ([\d.]+)%", figures_page.cell(made, i, "x")).group(1)
        )
        for i in range(5)
    ]
    # CSS: offset = (container - image) * percentage; the image is n containers high
    offsets = [(1 - 5) * p / 100 for p in places]
    assert offsets == pytest.approx([0, -1, -2, -3, -4])
    with pytest.raises(figures_page.ReportError, match="no number 5"):
        figures_page.cell(made, 5, "x")


def test_text_cannot_become_markup(pictures, tmp_path):
    evil = '<script>alert("x")</script>'
    made = figures_page.sprite("s", pictures)
    gallery = figures_page.gallery([{"id": evil, "concept": evil}] * 5, [(evil, evil, made)], evil)
    table = figures_page.table(pd.DataFrame({evil: [evil]}), evil)
    data = figures_page.explorer({"items": [{"caption": "</script><script>alert(1)</script>"}]})
    write(tmp_path, [("a", evil, gallery + table + data)], [made])
    page = Page((tmp_path / "index.html").read_text())
    assert len(page.all("script")) == 2  # the data and the explorer
    assert page.open == []


def test_what_no_macro_made_is_text_wherever_it_stands(pictures, tmp_path):
    """Content of a section or of a fold that is a plain string cannot bring markup in."""
    evil = '</section><img src="https://a.org/x.png" onerror="alert(1)">'
    png = base64.b64decode(figures_page.sprite("s", pictures).uri.partition(",")[2])
    content = figures_page.details(evil, evil) + figures_page.figure(png, evil, evil)
    write(tmp_path, [("a", evil, content), ("b", evil, evil)], text=evil)
    page = Page((tmp_path / "index.html").read_text())
    (image,) = page.all("img")
    assert image["src"].startswith("data:image/png") and image["alt"] == evil
    assert "".join(page.text).count(evil) == 13 and page.open == []


def test_the_data_of_the_explorer_come_back_unchanged():
    data = {"items": [{"caption": 'a < b & "c" </script>'}], "x": [1.5, None]}
    text = re.search(r"explorer-data\">(.*?)</script>", figures_page.explorer(data)).group(1)
    assert json.loads(text) == data
    with pytest.raises(ValueError):
        figures_page.explorer({"x": float("nan")})


def test_the_page_loads_nothing_from_elsewhere_and_says_so(pictures, tmp_path):
    made = figures_page.sprite("s", pictures)
    png = base64.b64decode(made.uri.partition(",")[2])
    content = figures_page.figure(png, "a figure", "caption") + figures_page.cell(made, 0, "seen")
    write(tmp_path, [("a", "A", content)], [made])
    text = (tmp_path / "index.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.all("link") == [] and all("src" not in s for s in page.all("script"))
    assert all(i["src"].startswith("data:image/") and i["alt"] for i in page.all("img"))
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert "default-src 'none'" in policy
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//|url\((?!data:)|@import", text)


def test_without_javascript_the_gallery_is_there_and_the_explorer_says_why_not(pictures, tmp_path):
    made = figures_page.sprite("s", pictures)
    items = [{"id": f"t-{i}", "concept": f"thing {i}"} for i in range(5)]
    gallery = figures_page.gallery(items, [("", "seen", made), ("sub-01", "EEG", made)], "all")
    write(tmp_path, [("e", "E", figures_page.explorer({})), ("g", "G", gallery)], [made])
    page = Page((tmp_path / "index.html").read_text())
    labels = [s["aria-label"] for s in page.all("span")]
    assert labels[:2] == ["seen: thing 0", "sub-01 EEG: thing 0"] and len(labels) == 10
    assert "hidden" in next(d for d in page.all("div") if d.get("id") == "explorer")
    assert "JavaScript" in "".join(page.text)


def test_a_page_that_is_too_large_or_ambiguous_is_not_written(pictures, tmp_path):
    path = tmp_path / "index.html"
    write(tmp_path, [("a", "A", "first")])
    before = path.read_text()
    with pytest.raises(figures_page.ReportError, match="more than 0.001"):
        write(tmp_path, [("a", "A", "second")], limit_mb=0.001)
    made = figures_page.sprite("s", pictures)
    with pytest.raises(figures_page.ReportError, match="two sprites"):
        write(tmp_path, [("a", "A", "second")], [made, made])
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == ["index.html"]


def test_a_page_is_filled_with_figures_and_sections(pictures, tmp_path):
    page = figures_page.Page(tmp_path, "title", dpi=40)
    plt.plot([0, 1])
    page.keep("line", "A line goes up. It is straight.")
    made = figures_page.sprite("s", pictures)
    page.add("figures", "Figures", page.figure("line"))
    table = page.table(pd.DataFrame({"a": [1]}), "numbers")
    page.add("rest", "The rest", page.details("more", table), figures_page.cell(made, 0, "x"))
    size = page.write("headline", ["fact"], "end", [made])
    assert size == pytest.approx(page.path.stat().st_size / 1e6)
    assert [p.relative_to(tmp_path).as_posix() for p in page.files] == [
        *("index.html", "figures/line.png")
    ]
    read = Page(page.path.read_text())
    assert read.open == [] and page.figure_names == ["line"]
    assert [s["id"] for s in read.all("section")] == ["figures", "rest"]
    assert [i["alt"] for i in read.all("img")] == ["A line goes up"]
    plt.close("all")


def test_packed_numbers_are_close_and_rows_have_their_own_scale(rng):
    values = rng.normal(size=(3, 4, 5)) * np.array([1e-3, 1, 100])[:, None, None]
    packed = figures_page.pack_int8(values)
    raw = np.frombuffer(base64.b64decode(packed["data"]), np.int8).reshape(values.shape)
    back = raw * np.array(packed["scale"])[:, None, None]
    assert np.abs(back[1:] - values[1:]).max(axis=(1, 2)) == pytest.approx(
        np.abs(values[1:]).max(axis=(1, 2)) / 254, rel=0.5
    )
    assert figures_page.pack_int8(np.zeros((1, 3)))["scale"] == [1.0]


def test_scalp_images_have_the_nose_on_top_and_the_right_on_the_right():
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    rings = [
        np.column_stack(
            [np.sin(t) * np.cos(angles), np.sin(t) * np.sin(angles), np.cos(t) * np.ones(24)]
        )
        for t in (0.4, 0.9, 1.4)
    ]
    place = np.concatenate(rings) * 0.09 + [0.0, 0.01, 0.04]
    front, right = place[:, 1] - 0.01, place[:, 0]
    maps = panels.scalp_images(np.stack([front, right]), place, size=48).astype(int)
    red = maps[..., 0] - maps[..., 2]
    assert red[0, 8, 24] > 60 and red[0, 40, 24] < -60
    assert red[1, 24, 40] > 60 and red[1, 24, 8] < -60
    assert (maps[:, 0, 0] == 255).all(), "outside the head it is white"


def test_the_page_says_what_it_was_made_from(tmp_path):
    """Commit, dirty flag, packages, licence and parameters; a name from the data is no markup."""
    provenance = {"git": {"commit": "abc123", "dirty": True}}
    identity = {"stage": "reconstructions", "lock": "10ck", "parameters": {"steps": 3}, "raw": None}
    identity["upstream"] = {"encoder": {"width": "<b>8</b>"}}
    result = Artifact(
        tmp_path, {"identity": identity, "provenance": provenance, "content_digest": "r3c"}
    )
    data = {"identity": identity | {"parameters": {"catalogue": ""}}, "content_digest": "d4ta"}
    for notes, licence in (
        ({"dataset": "simulated", "raw_root": "simulated-demo"}, "simulated by this project: MIT"),
        (
            {"dataset": "bids", "raw_root": load_catalogue()["things_eeg1"].raw_dir.name},
            load_catalogue()["things_eeg1"].licence,
        ),
        ({"dataset": "bids", "raw_root": "unheard"}, "not in data/licences.yaml"),
    ):
        page = figures_page.Page(tmp_path, "study")
        text = page.made_from(result, Artifact(tmp_path, data | {"notes": notes}))
        for part in ("abc123", "with changes", "10ck", "r3c", "d4ta", licence, "steps", "width"):
            assert part in text
        assert "<b>" not in text
