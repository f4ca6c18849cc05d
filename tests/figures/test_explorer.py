"""The data of the explorer: the right picture, score and neighbour for every item."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from sgdm_utils.figures import explorer

IDS = ["a", "b", "c"]


@pytest.fixture
def scores():
    """Scores in another order than that of the page."""
    sets = [("eeg", "sub-01"), ("mean_image", "all")]
    rows = [
        {"condition": c, "subject": s, "image_id": i, "ssim": k + 0.1 * "abc".index(i)}
        for k, (c, s) in enumerate(sets)
        for i in "cab"
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def sprites():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    sets = {("eeg", "sub-01"): pictures, ("mean_image", "all"): pictures}
    maps = [pictures[..., 0]]
    return explorer.picture_sprites(pictures, maps[0] > 99, sets, maps, 90)


def test_nearest_pictures_are_named_by_their_position():
    rows = [("sub-01", i, r, n) for i, order in zip("abc", ("bac", "bca", "abc"), strict=True)
            for r, n in enumerate(order, 1)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["subject", "image_id", "rank", "neighbour"])
    found = explorer.nearest_pictures(table, "sub-01", IDS, 2)
    assert [item["nearest"] for item in found] == [[1, 0], [1, 2], [0, 1]]
    assert [item["rank"] for item in found] == [2, 1, 3]


def test_scores_follow_the_items_and_chance_without_formula_is_none(scores, sprites):
    items = [{"id": i, "concept": i, "caption": i} for i in IDS]
    data = explorer.explorer_data(
        items, ["sub-01"], scores, {"ssim": np.nan}, sprites, [[]], {"maps": None}
    )
    assert data["scores"]["ssim"]["eeg|sub-01"] == [0.0, 0.1, 0.2]
    assert [(c["name"], c["joint"]) for c in data["conditions"]] == [
        *(("eeg", False), ("mean_image", True))
    ]
    assert data["metrics"] == [{"name": "ssim", "label": "SSIM", "chance": None}]
    assert set(data["sprites"]) >= {"seen", "true_map", "map_0", "eeg|sub-01"}
    json.dumps(data, allow_nan=False)


def test_what_depends_on_no_person_stands_first_in_the_gallery(scores, sprites):
    columns = explorer.gallery_columns(sprites, ["sub-01"], scores)
    assert [(group, label) for group, label, _ in columns] == [
        *(("", "seen"), ("", "mean picture"), ("sub-01", "EEG"))
    ]


def test_few_electrodes_give_no_scalp_maps():
    averages = [np.random.default_rng(0).normal(size=(3, 4, 10))]
    positions = np.eye(4, 3) * 0.09
    assert explorer.scalp_sprites(averages, [2, 5], positions) == {}
    eeg = explorer.explorer_eeg(
        averages, [[8] * 3], np.arange(10) / 100, list("ABCD"), positions, [2, 5], {}
    )
    assert eeg["maps"] is None and eeg["moments"] == [0.02, 0.05]
    assert len(eeg["colours"]) == 4 and eeg["averaged"] == [[8, 8, 8]]
