"""Outlines do not depend on place, size and colour, but on the form."""

from __future__ import annotations

import numpy as np

from sgdm_utils.stimuli.maps import outline_features


def picture(rows, columns, colour, form="square", size=64):
    p = np.full((size, size, 3), 230, np.uint8)
    y, x = np.mgrid[: rows[1] - rows[0], : columns[1] - columns[0]]
    n = rows[1] - rows[0]
    inside = np.ones_like(y, bool) if form == "square" else np.hypot(y - n / 2, x - n / 2) < n / 2
    p[rows[0] : rows[1], columns[0] : columns[1]][inside] = colour
    return p


def test_place_size_and_colour_do_not_matter_but_form_does():
    a = picture((10, 30), (12, 32), (200, 30, 30))
    b = picture((25, 60), (5, 40), (20, 60, 180))
    c = picture((25, 60), (5, 40), (20, 60, 180), "disc")
    square, other_square, disc = outline_features(np.stack([a, b, c]))
    assert square.shape == (24 * 24,)
    assert np.abs(square - other_square).mean() < 0.05
    assert np.abs(square - disc).mean() > 0.12


def test_an_empty_picture_has_no_outline():
    flat = np.full((1, 64, 64, 3), 120, np.uint8)
    assert not outline_features(flat).any()
