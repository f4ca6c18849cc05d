"""Temperature and calibration error of notebook 03, against what is known about drawn probabilities.

The notebook checks both by hand; here they meet an observer whose probabilities are true.
"""

from __future__ import annotations

import nbformat
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sgdm_utils.workflow import paths


@pytest.fixture(scope="module")
def notebook():
    """The two functions as the cells of the notebook define them."""
    book = nbformat.read(paths.notebook_path("03_contrastive_alignment"), as_version=4)
    space = {"np": np, "torch": torch, "F": F}
    for name in ("fit_temperature", "expected_calibration_error"):
        (cell,) = [c for c in book.cells if c.cell_type == "code" and f"def {name}(" in c.source]
        exec(cell.source, space)
    return space


@pytest.fixture
def fit_temperature(notebook):
    return notebook["fit_temperature"]


@pytest.fixture
def expected_calibration_error(notebook):
    return notebook["expected_calibration_error"]


@pytest.fixture
def drawn():
    """Logits of an honest observer and labels drawn from their probabilities."""
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(20_000, 6, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return logits, labels


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_the_factor_that_made_logits_too_sure(
    fit_temperature, drawn, factor
):
    logits, labels = drawn
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.05)


def test_items_of_no_known_class_are_left_out_and_none_at_all_leaves_things_as_they_are(
    fit_temperature, drawn
):
    logits, labels = drawn
    spoilt = torch.where(torch.arange(len(labels)) % 2 == 0, labels, -1)
    half = fit_temperature(2 * logits[::2], labels[::2])
    assert fit_temperature(2 * logits, spoilt) == pytest.approx(half)
    assert fit_temperature(logits, torch.full_like(labels, -1)) == 1.0


def test_honest_probabilities_have_no_calibration_error_and_too_sure_ones_have(
    expected_calibration_error, drawn
):
    logits, labels = drawn
    honest, sure = (x.softmax(1).numpy() for x in (logits, 4 * logits))
    assert expected_calibration_error(honest, labels.numpy(), 10) < 0.02
    assert expected_calibration_error(sure, labels.numpy(), 10) > 0.15
