"""What maintainers put into the committed notebooks: outputs of the code that stands there, small figures."""

from __future__ import annotations

import base64
import io

import nbformat
import numpy as np
import pytest
from PIL import Image

from sgdm_utils.figures import publish

new = nbformat.v4


def figure(pixels):
    """The output of a cell that draws these pixels, (height, width, 3) uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    return new.new_output("display_data", {"image/png": text})


def pixels_of(output):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"]))))


def test_a_large_figure_is_stored_with_fewer_shades_and_the_same_colours():
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    pixels[:20], pixels[20:40] = 255, 0
    output = figure(pixels)
    before = len(output["data"]["image/png"])
    packed = publish.smaller(output)
    assert len(packed["data"]["image/png"]) < 0.85 * before
    stored = pixels_of(packed)
    assert np.abs(stored.astype(int) - pixels).max() <= 4
    assert (stored[:20] == 255).all() and (stored[20:40] == 0).all()


def test_a_small_figure_stays_as_it_is():
    pixels = np.arange(30 * 30 * 3, dtype=np.uint8).reshape(30, 30, 3)
    assert (pixels_of(publish.smaller(figure(pixels))) == pixels).all()


class Step:
    """What `adopt` asks of a step: its notebook's name and the place of its executed copy."""

    notebook = "00_data"

    def __init__(self, executed):
        self.executed = executed


@pytest.fixture
def committed(tmp_path, monkeypatch):
    """A committed notebook without outputs, and the step whose executed copy has one."""
    path, executed = tmp_path / "00_data.ipynb", tmp_path / "executed.ipynb"
    monkeypatch.setattr(publish.paths, "notebook_path", lambda name: path)
    for place, outputs in ((path, []), (executed, [new.new_output("stream", text="3\n")])):
        cells = [new.new_markdown_cell("Three."), new.new_code_cell("print(3)", outputs=outputs)]
        cells[1].execution_count = 1 if outputs else None
        nbformat.write(new.new_notebook(cells=cells), place)
    return path, Step(executed)


def edit(path, number, source):
    book = nbformat.read(path, as_version=4)
    book.cells[number].source = source
    nbformat.write(book, path)


def test_outputs_are_taken_also_where_the_text_was_edited(committed):
    path, step = committed
    edit(path, 0, "Exactly three.")
    assert publish.adopt(step) is None
    book = nbformat.read(path, as_version=4)
    assert book.cells[0].source == "Exactly three."
    assert book.cells[1].outputs[0].text == "3\n" and book.cells[1].execution_count == 1


def test_code_that_was_edited_gets_no_outputs_of_older_code(committed):
    path, step = committed
    edit(path, 1, "print(4)")
    assert "code cell 1 of 00_data has been edited since it ran" in publish.adopt(step)
    assert nbformat.read(path, as_version=4).cells[1].outputs == []
