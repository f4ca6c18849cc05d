"""What KiloGram's figures look like and what people call them: annotations and pictures.

Pictures come from the same code as the project's own tangrams (`tangrams.render_tangram`), so that
a piece map, an edge map and a relation matrix mean the same for both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from sgdm_utils.datasets.kilogram import figures as kilogram_figures
from sgdm_utils.datasets.kilogram.figures import Tangram
from sgdm_utils.errors import DatasetError
from sgdm_utils.stimuli import tangrams
from sgdm_utils.stimuli.files import require_inside
from sgdm_utils.stimuli.pictures import StimulusSet, picture_digest
from sgdm_utils.workflow.formats import read_json

ANNOTATION_FILES = ("full.json", "dense.json", "dense10.json")  # the first one that is there
PART_COLOURS = {
    "coral": (255, 127, 80),
    "gold": (255, 215, 0),
    "lightskyblue": (135, 206, 250),
    "lightpink": (255, 182, 193),
    "mediumseagreen": (60, 179, 113),
    "darkgrey": (169, 169, 169),
    "lightgrey": (211, 211, 211),
}
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
_SUPERSAMPLING = 4


def read_annotations(path: Path) -> pd.DataFrame:
    """Read what people called the figures and their parts.

    Three schemas are in circulation and told apart by themselves: `full.json` maps a figure to its
    scores and `annotations`; `dense.json` and `dense10.json` map it to the bare list of such
    annotations; older copies map it to a list of `{"whole": text, "piece": {...}}`.

    Parameters
    ----------
    path : Path

    Returns
    -------
    DataFrame, one row for each annotation in the order of the file
        tangram; whole (text as typed); parts (dict of polygon id "1" to "7" to text, which may be
        "UNKNOWN"); worker ("" in the old schema); snd, pnd, psa (shape naming divergence, part
        naming divergence, part segmentation agreement; NaN where the file has none)

    Raises
    ------
    DatasetError
        No JSON, no figure, an entry of another form; the message names figure and annotation.
    """
    content = read_json(path, object, "Copy it again")
    if not isinstance(content, dict) or not content:
        raise DatasetError(f"{path} is not a mapping of figures to annotations")
    rows = []
    for tangram, entry in content.items():
        scores = dict.fromkeys(("snd", "pnd", "psa"), np.nan)
        if isinstance(entry, dict):
            scores = {name: _score(entry.get(name)) for name in scores}
            entry = entry.get("annotations")
        if not isinstance(entry, list):
            raise DatasetError(f"{path}: {tangram!r} has no list of annotations")
        for i, annotation in enumerate(entry):
            where = f"{path}: annotation {i} of {tangram!r}"
            rows.append({"tangram": tangram, **_annotation(annotation, where), **scores})
    if not rows:
        raise DatasetError(f"{path} holds no annotation")
    return pd.DataFrame(rows)


def common_names(annotations: pd.DataFrame) -> pd.DataFrame:
    """Choose one caption and one category for each figure.

    Parameters
    ----------
    annotations : DataFrame of `read_annotations`

    Returns
    -------
    DataFrame indexed by tangram
        caption: the commonest `whole`, in lower case and stripped, the first of equally common
        ones. category: the same after small words at the front and punctuation were taken off ("A
        dog." is "dog"), but "tangram" where no two people agree on it: a name that one person gave
        is no category. n_annotations, n_agreeing.
    """
    rows = []
    for tangram, group in annotations.groupby("tangram", sort=False):
        wholes = [text for text in (w.strip().lower() for w in group["whole"]) if text]
        caption, _ = _commonest(wholes)
        category, n = _commonest([k for k in map(_coarse, wholes) if k])
        rows.append(
            {
                "tangram": tangram,
                "caption": caption or "a tangram",
                "category": category if n > 1 else "tangram",
                "n_annotations": len(group),
                "n_agreeing": n,
            }
        )
    return pd.DataFrame(rows).set_index("tangram")


def render(
    tangram: Tangram, size: int, parts: Mapping[str, str] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw one figure on white with white seams, filling its frame as in KiloGram.

    Parameters
    ----------
    tangram : Tangram
    size : int, pixels per side
    parts : mapping of polygon id to the name of its part; None draws all in black
        Pieces of one part share a colour of `PART_COLOURS`, taken in the order of the ids; a piece
        without a part is light grey.

    Returns
    -------
    picture : ndarray, shape (size, size, 3), uint8
    silhouette : ndarray, shape (size, size), bool
    edges : ndarray, shape (size, size), bool
        Outline and seams, one pixel wide; a seam lies on the side of the higher number.
    pieces : ndarray, shape (size, size), uint8
        0 background, 1 to 7 the tan in the order of `tangrams.PIECE_NAMES`.
    """
    if parts is None:
        picture, pieces = tangrams.render_tangram(
            tangram.pieces, size, BLACK, WHITE, WHITE, _SUPERSAMPLING
        )
    else:
        n = _SUPERSAMPLING
        black, labels = tangrams.render_tangram(tangram.pieces, size * n, BLACK, WHITE, WHITE, 1)
        coloured = np.array([WHITE, *_colours(tangram, parts)], np.uint8)[labels]
        coloured[black[..., 0] > 0] = WHITE  # the seams
        picture = np.asarray(Image.fromarray(coloured).reduce(n))
        pieces = labels[n // 2 :: n, n // 2 :: n].copy()
    return picture, pieces > 0, _edges(pieces), pieces


def stimulus_set(
    folder: Path, images: pd.DataFrame, size: int, root: Path | None = None
) -> StimulusSet:
    """Read and draw the figures of a study.

    Captions and categories are the columns `caption` and `category` of `images`, or else come from
    `common_names`, where one of `ANNOTATION_FILES` lies in `folder` or beside it, or else are "a tangram"
    and "tangram".

    Parameters
    ----------
    folder : Path, what `stim_file` is relative to
    images : DataFrame with `image_id`, `concept`, `split`, `stim_file` (ending in ".svg")
    size : int, pixels per side
    root : Path, of the data set, if files may be links to elsewhere in it

    Returns
    -------
    StimulusSet
        `images` with kind ("tangram"), category, caption and digest, and the arrays of `render` in
        black; `relations` with the tolerance for digitised figures.

    Raises
    ------
    DatasetError
        A file that is no figure, see `panels.read_svg`.
    """
    folder = Path(folder)
    require_inside(folder, images["stim_file"], root, lambda name: "the table of images")
    figures = [kilogram_figures.read_svg(folder / file) for file in images["stim_file"]]
    arrays = [np.stack(a) for a in zip(*(render(f, size) for f in figures), strict=True)]
    relations = np.stack([kilogram_figures.relations(f) for f in figures])
    places = [d / name for name in ANNOTATION_FILES for d in (folder, folder.parent)]
    file = next((p for p in places if p.is_file()), None)
    words: dict[str, dict] = {}
    if file is not None:
        words = common_names(read_annotations(file)).to_dict("index")
    known = [words.get(f.name, {}) for f in figures]
    extra = {
        "kind": "tangram",
        "category": images.get("category", [k.get("category", "tangram") for k in known]),
        "caption": images.get("caption", [k.get("caption", "a tangram") for k in known]),
        "digest": [picture_digest(p) for p in arrays[0]],
    }
    return StimulusSet(images.assign(**extra), *arrays, relations)


def _score(value: object) -> float:
    return float(value) if isinstance(value, int | float) else np.nan


def _annotation(entry: object, where: str) -> dict:
    """Read one annotation of either schema."""
    if not isinstance(entry, dict):
        raise DatasetError(f"{where} is no mapping")
    whole = entry.get("whole")
    new = isinstance(whole, dict)
    text = whole.get("wholeAnnotation") if new else whole
    parts = entry.get("part" if new else "piece")
    if not isinstance(text, str) or not isinstance(parts, dict):
        raise DatasetError(
            f"{where} has no {'wholeAnnotation or part' if new else 'whole or piece'}: is it a "
            "file of KiloGram, whole?"
        )
    unknown = sorted(set(parts) - set(kilogram_figures.IDS))
    if unknown:
        raise DatasetError(f"{where} names a part of polygon {unknown[0]!r}; there are 1 to 7")
    return {"whole": text, "parts": dict(parts), "worker": str(entry.get("workerId") or "")}


def _commonest(texts: list[str]) -> tuple[str, int]:
    """Return the commonest text, the first of equally common ones, and how often it occurs."""
    if not texts:
        return "", 0
    best = max(texts, key=texts.count)  # max keeps the first
    return best, texts.count(best)


def _coarse(text: str) -> str:
    """Take off punctuation and an article: "a dog." and "the dog" are "dog"."""
    plain = " ".join(re.sub(r"[^\w\s'-]", " ", text).split())
    return re.sub(r"^(?:a|an|the) ", "", plain)


def _colours(tangram: Tangram, parts: Mapping[str, str]) -> list[tuple[int, int, int]]:
    """Return the colour of each piece of the figure, in its order."""
    order = list(dict.fromkeys(parts[i] for i in kilogram_figures.IDS if i in parts))
    palette = dict(zip(order, PART_COLOURS.values(), strict=False))
    return [palette.get(parts.get(i), PART_COLOURS["lightgrey"]) for i in tangram.svg_ids]


def _edges(pieces: np.ndarray) -> np.ndarray:
    """Return the pixels with a neighbour (of four) of a lower number, background included.

    A figure may fill its frame, so the frame's outside counts as background and nothing wraps.
    """
    padded = np.pad(pieces, 1)
    edges = np.zeros(pieces.shape, bool)
    for beside in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
        edges |= pieces > beside
    return edges
