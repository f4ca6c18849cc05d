"""Temperature and calibration error, against what is known about drawn probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sgdm_utils.decoding.calibration import expected_calibration_error, fit_temperature


@pytest.fixture
def drawn():
    """Logits of an honest observer and labels drawn from their probabilities."""
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(20_000, 6, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return logits, labels


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_the_factor_that_made_logits_too_sure(drawn, factor):
    logits, labels = drawn
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.05)


def test_items_of_no_known_class_are_left_out_and_none_at_all_leaves_things_as_they_are(drawn):
    logits, labels = drawn
    spoilt = torch.where(torch.arange(len(labels)) % 2 == 0, labels, -1)
    half = fit_temperature(2 * logits[::2], labels[::2])
    assert fit_temperature(2 * logits, spoilt) == pytest.approx(half)
    assert fit_temperature(logits, torch.full_like(labels, -1)) == 1.0


def test_honest_probabilities_have_no_calibration_error_and_too_sure_ones_have(drawn):
    logits, labels = drawn
    honest, sure = (x.softmax(1).numpy() for x in (logits, 4 * logits))
    assert expected_calibration_error(honest, labels.numpy(), 10) < 0.02
    assert expected_calibration_error(sure, labels.numpy(), 10) > 0.15


def test_the_error_by_hand():
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    labels = np.array([0, 1, 0, 0])  # of the sure pair one is right, of the unsure pair both
    assert expected_calibration_error(p, labels, 2) == pytest.approx((0.4 + 0.4) / 2)
