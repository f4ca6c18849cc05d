"""The explorer of the page: one test picture from the eye to the rebuilt picture, as data.

The script of the page (``assets/report.js``) draws it from what `explorer_data` returns. All
pictures of one condition and subject are one sprite, which the gallery uses as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from sgdm_utils.figures.page import Sprite, pack_int8, sprite
from sgdm_utils.figures.panels import scalp_images
from sgdm_utils.figures.results import CONDITIONS, SHORT, metric_label

MIN_ELECTRODES = 8  # with fewer a scalp map shows the interpolation and not the EEG


def picture_sprites(
    seen: np.ndarray,
    silhouettes: np.ndarray,
    reconstructions: Mapping[tuple[str, str], np.ndarray],
    decoded_maps: Sequence[np.ndarray],
    quality: int,
) -> dict[str, Sprite]:
    """Sprites of what was seen, rebuilt and decoded.

    Parameters
    ----------
    seen : uint8 array of shape (n, height, width, 3)
    silhouettes : bool array of shape (n, height, width), the true ones
    reconstructions : mapping of (condition, subject) to uint8 arrays like `seen`
    decoded_maps : for each subject a uint8 array of shape (n, height, width)
    quality : int, of the reconstructions as JPEG; everything else is PNG

    Returns
    -------
    dict of str to Sprite
        ``seen``, ``true_map``, ``<condition>|<subject>``, ``map_<subject's number>``
    """
    sprites = {"seen": sprite("s-seen", seen)}
    sprites["true_map"] = sprite("s-true-map", silhouettes.astype(np.uint8) * 255, colours=2)
    for k, ((condition, subject), pictures) in enumerate(reconstructions.items()):
        sprites[f"{condition}|{subject}"] = sprite(f"s-{k}", pictures, "jpeg", quality)
    for s, maps in enumerate(decoded_maps):
        sprites[f"map_{s}"] = sprite(f"s-map-{s}", maps // 8 * 8, colours=32)
    return sprites


def scalp_sprites(
    averages: Sequence[np.ndarray], moments: Sequence[int], positions: np.ndarray
) -> dict[str, Sprite]:
    """Scalp maps of every picture's averaged EEG, none where there are too few electrodes.

    Parameters
    ----------
    averages : for each subject a float array of shape (n, n_channels, n_times)
    moments : indices of samples; the maps of one picture follow each other
    positions : float array of shape (n_channels, 3), metres

    Returns
    -------
    dict of str to Sprite, ``scalp_<subject's number>``
    """
    if len(positions) < MIN_ELECTRODES:
        return {}
    sprites = {}
    for s, average in enumerate(averages):
        values = average[:, :, list(moments)].transpose(0, 2, 1).reshape(-1, len(positions))
        drawn = scalp_images(values, positions)
        sprites[f"scalp_{s}"] = sprite(f"s-scalp-{s}", drawn, colours=32)
    return sprites


def nearest_pictures(
    neighbours: pd.DataFrame, subject: str, ids: Sequence[str], n: int
) -> list[dict[str, object]]:
    """For each test picture the `n` nearest to what the EEG says, and the rank of the seen one.

    Parameters
    ----------
    neighbours : table with the columns subject, image_id, rank, neighbour, as 06 wrote it
    ids : image ids in the order of the page; pictures are named by their position in it
    """
    position = {image_id: i for i, image_id in enumerate(ids)}
    rows = neighbours[neighbours["subject"] == subject]
    first = rows[rows["rank"] <= n].groupby("image_id")["neighbour"].agg(list)
    rank = rows[rows["image_id"] == rows["neighbour"]].set_index("image_id")["rank"]
    return [{"nearest": [position[x] for x in first[i]], "rank": int(rank[i])} for i in ids]


def explorer_eeg(
    averages: Sequence[np.ndarray],
    n_averaged: Sequence[Sequence[int]],
    times: np.ndarray,
    channels: Sequence[str],
    positions: np.ndarray,
    moments: Sequence[int],
    sprites: Mapping[str, Sprite],
) -> dict[str, object]:
    """Averaged EEG for the explorer, at 8 bits; lines are coloured from front to back.

    Parameters
    ----------
    averages : for each subject a float array of shape (n, n_channels, n_times), microvolts
    n_averaged : for each subject the number of trials behind each average
    times : float array of shape (n_times,), seconds
    channels, positions : names, and float array of shape (n_channels, 3)
    moments : indices of the samples that the scalp maps show
    sprites : with ``scalp_<number>`` where there are scalp maps
    """
    y = positions[:, 1]
    front = (y - y.min()) / max(np.ptp(y), 1e-9)
    scalps = [sprites[f"scalp_{s}"].name for s in range(len(averages)) if f"scalp_{s}" in sprites]
    return {
        "subjects": [pack_int8(average) for average in averages],
        "times": times.round(4).tolist(),
        "channels": list(channels),
        "colours": [f"hsl(204 75% {25 + 45 * f:.0f}%)" for f in front],
        "unit": "µV",
        "averaged": [list(n) for n in n_averaged],
        "moments": times[list(moments)].tolist(),
        "maps": scalps or None,
    }


def explorer_data(
    items: Sequence[Mapping[str, str]],
    subjects: Sequence[str],
    scores: pd.DataFrame,
    chance: Mapping[str, float],
    sprites: Mapping[str, Sprite],
    neighbours: Sequence[Sequence[Mapping[str, object]]],
    eeg: Mapping[str, object],
) -> dict[str, object]:
    """Everything that the explorer shows.

    Parameters
    ----------
    items : one mapping with `id`, `concept`, `caption` for each test picture
    scores : table with condition, subject, image_id and the metrics, one row for each picture
    chance : mapping of metric to chance level, NaN where it has no formula; in the order shown
    sprites : see `picture_sprites`, `scalp_sprites`
    neighbours : for each subject what `nearest_pictures` returns
    eeg : what `explorer_eeg` returns
    """
    ids = [item["id"] for item in items]
    joint = _joint(scores)
    by_set = {
        f"{condition}|{subject}": part.set_index("image_id").loc[ids]
        for (condition, subject), part in scores.groupby(["condition", "subject"])
    }
    return {
        "items": list(items),
        "subjects": list(subjects),
        "conditions": [
            {"name": c, "label": CONDITIONS[c], "joint": c in joint} for c in _conditions(scores)
        ],
        "metrics": [
            {
                "name": metric,
                "label": metric_label(metric),
                "chance": None if np.isnan(level) else float(level),
            }
            for metric, level in chance.items()
        ],
        "scores": {m: {k: v[m].round(3).tolist() for k, v in by_set.items()} for m in chance},
        "sprites": {key: value.name for key, value in sprites.items()},
        "neighbours": list(neighbours),
        "eeg": dict(eeg),
    }


def gallery_columns(
    sprites: Mapping[str, Sprite], subjects: Sequence[str], scores: pd.DataFrame
) -> list[tuple[str, str, Sprite]]:
    """Columns of the gallery: seen, what depends on no person, then every person's conditions."""
    joint, conditions = _joint(scores), _conditions(scores)
    columns = [("", "seen", sprites["seen"])]
    columns += [("", SHORT[c], sprites[f"{c}|all"]) for c in conditions if c in joint]
    for subject in subjects:
        own = [c for c in conditions if c not in joint]
        columns += [(subject, SHORT[c], sprites[f"{c}|{subject}"]) for c in own]
    return columns


def _conditions(scores: pd.DataFrame) -> list[str]:
    """Conditions that were scored, the best first."""
    present = set(scores["condition"])
    return [c for c in reversed(CONDITIONS) if c in present]


def _joint(scores: pd.DataFrame) -> set[str]:
    """Conditions that are the same for all people."""
    return set(scores.loc[scores["subject"] == "all", "condition"])
