"""The drawn pictures of the simulated study with captions, structure maps and storage.

Two kinds of picture share one palette: a *scene* is one object (`sgdm_utils.stimuli.scenes`), a *tangram* a
figure of seven tans (`sgdm_utils.stimuli.tangrams`). What is a concept, and which concept belongs to which
split, is decided in `sgdm_utils.stimuli.concepts`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from PIL import Image

from sgdm_utils.errors import DatasetError, reading
from sgdm_utils.stimuli import concepts, scenes, tangrams
from sgdm_utils.stimuli.files import read_picture, require_inside
from sgdm_utils.stimuli.maps import _outline, structure_from_picture
from sgdm_utils.workflow.formats import read_npy

COLUMNS = (
    "image_id", "kind", "concept", "category", "split", "shown", "caption", "shape", "colour",
    "texture", "background", "body", "crown", "x", "y", "scale", "rotation", "digest",
)  # fmt: skip
_ARRAYS = ("pictures", "silhouettes", "edges", "pieces", "relations")
_FEWEST_FOR_A_PROCESS = 1500  # pictures: fewer are drawn before another process has started
_BLOCK = 512  # pictures that a process draws at a time


@dataclass
class StimulusSet:
    """Pictures with everything that is known about them; row i of all fields is one picture.

    Attributes
    ----------
    table : DataFrame
        image_id, kind, concept, category, split, shown, caption, digest; shape, texture (scenes),
        body, crown (tangrams), '' where not applicable; colour, background; x, y, scale (fractions
        of the frame), rotation (degrees).
    pictures : ndarray, shape (n, size, size, 3), uint8
    silhouettes : ndarray, shape (n, size, size), bool
    edges : ndarray, shape (n, size, size), bool
        Outline, contour of holes and seams between tans, one pixel wide; no texture.
    pieces : ndarray, shape (n, size, size), uint8
        Tan at each pixel, 1 to 7; 0 is background; all 0 for scenes.
    relations : ndarray, shape (n, 7, 7), int8
        `tangrams.relation_matrix`; -1 for scenes.
    """

    table: pd.DataFrame
    pictures: np.ndarray
    silhouettes: np.ndarray
    edges: np.ndarray
    pieces: np.ndarray
    relations: np.ndarray

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            if len(getattr(self, name)) != len(self.table):
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} rows, the table has {len(self.table)}"
                )
        for name in ("silhouettes", "edges", "pieces"):
            shape, expected = getattr(self, name).shape, self.pictures.shape[:3]
            if shape != expected:
                raise ValueError(f"{name} has the shape {shape}, the pictures have {expected}")
        twice = self.table["image_id"][self.table["image_id"].duplicated()]
        if len(twice):
            raise ValueError(f"image_id {twice.iloc[0]!r} occurs more than once in the table")

    def __len__(self) -> int:
        return len(self.table)

    def save(self, folder: str | Path) -> None:
        """Write `pictures.tsv`, the arrays, and a PNG of each shown picture to `stimuli/`."""
        folder = Path(folder)
        (folder / "stimuli").mkdir(parents=True, exist_ok=True)
        self.table.to_csv(folder / "stimuli.tsv", sep="\t", index=False, float_format="%.17g")
        self.save_arrays(folder)
        for i in np.flatnonzero(self.table["shown"]):
            file = folder / "stimuli" / f"{self.table['image_id'].iloc[i]}.png"
            Image.fromarray(self.pictures[i]).save(file)

    def save_arrays(self, folder: Path) -> None:
        """Write the pictures, masks and relation matrices as `.npy`, one file for each field."""
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: str | Path) -> StimulusSet:
        """Read what `save` wrote and check that table and pictures belong together.

        Raises
        ------
        FileNotFoundError
            Names the missing file.
        DatasetError
            If a file is damaged, row counts differ, or a picture is not the one of its table row.
        """
        folder = Path(folder)
        for name in ("stimuli.tsv", *(f"{a}.npy" for a in _ARRAYS)):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing; write the stimuli again (00)")
        words = dict.fromkeys(("image_id", "shape", "texture", "body", "crown", "digest"), str)
        with reading(folder / "stimuli.tsv", "a table of pictures", "Write the stimuli again (00)"):
            table = pd.read_csv(
                folder / "stimuli.tsv", sep="\t", dtype=words, keep_default_na=False,
                na_values=["NaN"],
            )  # fmt: skip
        arrays = {name: read_npy(folder / f"{name}.npy") for name in _ARRAYS}
        with reading(folder, "pictures with their table", "Write the stimuli again"):
            loaded = cls(table, **arrays)
            for image_id, digest, picture in zip(
                table["image_id"], table["digest"], loaded.pictures, strict=True
            ):
                if picture_digest(picture) != digest:
                    raise DatasetError(
                        f"{folder / 'pictures.npy'}: the picture in the row of {image_id!r} is not "
                        "the one in stimuli.tsv (other order, or another file); write the stimuli "
                        "again"
                    )
        return loaded


def picture_digest(picture: np.ndarray) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of shape and pixels of a picture."""
    content = str(picture.shape).encode() + np.ascontiguousarray(picture).tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


@lru_cache(maxsize=64)
def _relations(body: str, crown: str) -> np.ndarray:
    return tangrams.relation_matrix(tangrams.tangram_pieces(body, crown))


def _render(row: dict, size: int, phase: tuple[float, float]) -> tuple[np.ndarray, ...]:
    """Return picture, silhouette, edges, piece map and relation matrix of one row."""
    if row["kind"] == "scene":
        contours = scenes.place_shape(
            row["shape"], row["x"], row["y"], row["scale"], row["rotation"]
        )
        picture, silhouette = scenes.draw_scene(
            contours, size, row["colour"], row["texture"], row["background"], phase
        )
        pieces = np.zeros((size, size), np.uint8)
        return picture, silhouette, _outline(silhouette), pieces, np.full((7, 7), -1, np.int8)
    figure = tangrams.tangram_pieces(row["body"], row["crown"])
    placed = tangrams.place(figure, row["x"], row["y"], row["scale"], row["rotation"])
    colour, second = scenes.COLOURS[row["colour"]], scenes.tone(row["colour"])
    ground = scenes.background_image(row["background"], size)
    picture, pieces = tangrams.render_tangram(placed, size, colour, ground, seams=second)
    silhouette = pieces > 0
    edges = _outline(silhouette)
    # a seam is drawn on the side of the piece with the higher number
    for part, map_ in ((edges, pieces), (edges.T, pieces.T)):
        for here, beside in ((slice(1, None), slice(-1)), (slice(-1), slice(1, None))):
            part[here] |= (map_[here] > map_[beside]) & (map_[beside] > 0)
    return picture, silhouette, edges, pieces, _relations(row["body"], row["crown"])


def _render_block(
    rows: Sequence[dict], size: int, phases: Sequence[tuple[float, float]]
) -> list[np.ndarray]:
    """Pictures, silhouettes, edges, piece maps and relation matrices of some rows, stacked."""
    rendered = [_render(row, size, phase) for row, phase in zip(rows, phases, strict=True)]
    return [np.stack(parts) for parts in zip(*rendered, strict=True)]


def _render_all(
    rows: Sequence[dict], size: int, phases: Sequence[tuple[float, float]]
) -> list[np.ndarray]:
    """What `_render_block` gives, by several processes where there is enough to draw for them.

    Nothing random is left at this point, so the pictures are the same for any number of processes.
    """
    n_jobs = min(joblib.cpu_count(), len(rows) // _FEWEST_FOR_A_PROCESS)
    if n_jobs < 2:
        return _render_block(rows, size, phases)
    blocks = np.array_split(np.arange(len(rows)), -(-len(rows) // _BLOCK))
    # processes that have nothing more to do leave at once, and their memory with them
    parallel = joblib.Parallel(n_jobs, backend="loky", batch_size=1, idle_worker_timeout=10)
    drawn = parallel(
        joblib.delayed(_render_block)([rows[i] for i in block], size, [phases[i] for i in block])
        for block in blocks
    )
    return [np.concatenate(parts) for parts in zip(*drawn, strict=True)]


def make_stimuli(
    n_train_shown: int = 600,
    n_train_unshown: int = 3400,
    n_val: int = 60,
    n_test: int = 40,
    size: int = 64,
    rng: np.random.Generator | None = None,
) -> StimulusSet:
    """Draw the pictures of a study.

    Parameters
    ----------
    n_train_shown, n_train_unshown : int
        Training pictures that subjects see, and further ones for training the picture models.
        `concepts.TANGRAM_SHARE` of them are tangrams; concepts of a kind occur equally often
        (within one).
    n_val, n_test : int
        Pictures, spread evenly over 16 val and 40 test concepts; with fewer pictures than concepts
        there are as many concepts as pictures and the others stay in training.
    size : int
        Height and width in pixels, 32 or more.
    rng : numpy.random.Generator
        Decides everything. The concepts, val and test pictures do not depend on the number of
        training pictures.

    Returns
    -------
    StimulusSet
        In the order train shown, train unshown, val, test.

    Raises
    ------
    ValueError
        If the counts cannot be met; the message says which and why.
    """
    if rng is None:
        raise ValueError("make_stimuli needs rng=numpy.random.default_rng(seed)")
    if size < 32:
        raise ValueError(f"size is {size}; below 32 pixels the tans cannot be told apart")
    _check_counts(n_train_shown, n_train_unshown)
    streams = dict(zip(("split", "shown", "unshown", "val", "test"), rng.spawn(5), strict=True))
    every = concepts.concept_table(n_val, n_test, streams["split"])
    rows, phases = [], []
    for name, n in zip(
        ("shown", "unshown", "val", "test"), (n_train_shown, n_train_unshown, n_val, n_test),
        strict=True,
    ):  # fmt: skip
        split = name if name in ("val", "test") else "train"
        stream = streams[name]
        first = n_train_shown if name == "unshown" else 0
        for i, concept in enumerate(concepts.pictured(every, split, n, stream)):
            row = concepts.draw_attributes(concept, stream)
            row["image_id"] = f"{split}-{first + i:05d}"
            row["shown"] = name != "unshown"
            row["caption"] = concepts.caption_of(row, style=int(stream.integers(3)))
            is_scene = row["kind"] == "scene"  # tangrams have no texture that could be shifted
            phases.append(tuple(stream.uniform(0, 0.25, 2)) if is_scene else (0.0, 0.0))
            rows.append(row)
    pictures, *others = _render_all(rows, size, phases)
    for row, picture in zip(rows, pictures, strict=True):
        row["digest"] = picture_digest(picture)
    return StimulusSet(pd.DataFrame(rows)[list(COLUMNS)], pictures, *others)


def _check_counts(n_shown: int, n_unshown: int) -> None:
    for name, n in (("n_train_shown", n_shown), ("n_train_unshown", n_unshown)):
        if n < 0:
            raise ValueError(f"{name} is {n}; it must be 0 or more")
    n_tangrams = round(concepts.TANGRAM_SHARE * n_shown)
    needed = {"scenes": len(scenes.SHAPES), "tangrams": len(tangrams.BODY_NAMES)}
    for what, n in (("scenes", n_shown - n_tangrams), ("tangrams", n_tangrams)):
        if n < needed[what]:
            raise ValueError(
                f"n_train_shown={n_shown} makes {n} {what}, fewer than their {needed[what]} "
                "categories, each of which must be shown; ask for 17 or more"
            )


def attribute_matrix(table: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """Return what each picture means, as numbers.

    Returns
    -------
    features : ndarray, shape (n, n_attributes), float32
        One-hot columns ("shape=star"; all 0 where the attribute does not apply), then x, y and
        scale in fractions of the frame.
    names : list of str

    Raises
    ------
    ValueError
        If the table holds a value that no picture can have.
    """
    levels = {
        "kind": ("scene", "tangram"),
        "shape": tuple(scenes.SHAPES),
        "body": tangrams.BODY_NAMES,
        "crown": tangrams.CROWN_NAMES,
        "colour": tuple(scenes.COLOURS),
        "texture": scenes.TEXTURES,
        "background": tuple(scenes.BACKGROUNDS),
    }
    columns, names = [], []
    for attribute, known in levels.items():
        unknown = set(table[attribute]) - set(known) - {""}
        if unknown:
            raise ValueError(f"column {attribute} holds {sorted(unknown)}, known are {list(known)}")
        for level in known:
            columns.append(table[attribute] == level)
            names.append(f"{attribute}={level}")
    for attribute in ("x", "y", "scale"):
        columns.append(table[attribute])
        names.append(attribute)
    return np.stack(columns, axis=1).astype(np.float32), names


def from_files(
    folder: Path, images: pd.DataFrame, size: int, root: Path | None = None
) -> StimulusSet:
    """Pictures of somebody's own study, read from files and brought to one size.

    Structure comes from `structure_from_picture`, the caption from the column `caption` or else
    from the concept, the category from the column `category` or else from the concept.

    Parameters
    ----------
    folder : Path, what `stim_file` is relative to
    images : DataFrame with `image_id`, `concept`, `split`, `stim_file`
    size : int, pixels per side
    root : Path, of the data set, if pictures may be links to elsewhere in it

    Raises
    ------
    PictureError
        A name that leads out of the folder (`files.leading_out`), a file that leaves open what was
        shown (`files.read_rgb`).
    """
    require_inside(Path(folder), images["stim_file"], root, lambda name: "the table of images")
    files = [Path(folder) / name for name in images["stim_file"]]
    pictures = np.stack([read_picture(file, size) for file in files])
    silhouettes, edges = map(np.stack, zip(*map(structure_from_picture, pictures), strict=True))
    concept = images["concept"].astype(str)
    extra = {
        "kind": "picture",
        "category": images.get("category", concept),
        "caption": images.get("caption", "a picture of " + concept),
        "digest": [picture_digest(p) for p in pictures],
    }
    pieces = np.zeros(pictures.shape[:3], np.uint8)
    relations = np.full((len(images), 7, 7), -1, np.int8)
    return StimulusSet(images.assign(**extra), pictures, silhouettes, edges, pieces, relations)
