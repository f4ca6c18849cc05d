"""The format of a feature file: rows, and beside them the ids they belong to and a checksum.

Use it through `sgdm_utils.decoding.features`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sgdm_utils.datasets.bids import DatasetError
from sgdm_utils.workflow.atomic import atomic_file, digest_file


class FeatureError(DatasetError):
    """A feature file cannot be read or made: the message says which one and why."""


class FeatureOrderError(FeatureError):
    """Features and the table they should belong to are not in the same order."""


def save_features(
    path: Path,
    features: np.ndarray,
    image_ids: Sequence[str],
    identity: Mapping[str, Any] | None = None,
) -> None:
    """Write features and, beside them, the ordered list of image ids they belong to.

    Parameters
    ----------
    path : Path, `name.npy`
    features : array of shape (n_images, ...)
    image_ids : sequence of str
    identity : mapping of what JSON can hold, optional, what the features are of

    Raises
    ------
    FeatureOrderError
        When there are more or fewer features than ids.
    """
    path, ids = npy_path(path), list(image_ids)
    if len(features) != len(ids):
        raise FeatureOrderError(f"{len(features)} features for {len(ids)} images")
    with atomic_file(path) as part:
        np.save(part, features)
        digest = digest_file(part)
        # ids first: should we be killed here, the checksum says that they do not belong together
        write_ids(path, ids, digest, identity or {})


def load_features(path: Path, image_ids: Sequence[str], mmap: bool = False) -> np.ndarray:
    """Read features, refusing another order of images than the one they were written in.

    Parameters
    ----------
    path : Path, `name.npy`
    image_ids : sequence of str, the order that is relied on
    mmap : bool, map the file read-only instead of reading it

    Returns
    -------
    array of shape (n_images, ...)

    Raises
    ------
    FeatureOrderError
        Names the first position at which the orders differ.
    FeatureError
        A missing or unreadable file, one that was changed since it was written, or one with more
        or fewer rows than ids.
    """
    path = npy_path(path)
    stored, wanted = read_ids(path), list(image_ids)
    if stored["ids"] != wanted:
        ids = stored["ids"]
        pairs = enumerate(zip(ids, wanted, strict=False))
        first = next((i for i, (s, w) in pairs if s != w), min(len(ids), len(wanted)))
        raise FeatureOrderError(
            f"{path.name} holds {len(ids)} images in an order of its own, {len(wanted)} were asked "
            f"for; they differ first at row {first}. Select rows by image id, or compute it again."
        )
    return _read_rows(path, stored, mmap)


def select_features(path: Path, image_ids: Sequence[str]) -> np.ndarray:
    """Read the rows of some images, in the order asked for.

    Parameters
    ----------
    path : Path, `name.npy`
    image_ids : sequence of str, any of the stored ids, in any order, also repeatedly

    Returns
    -------
    array of shape (len(image_ids), ...), only these rows are in memory

    Raises
    ------
    FeatureOrderError
        An id that is not stored, or is stored more than once.
    FeatureError
        As for `load_features`.
    """
    path = npy_path(path)
    stored, wanted = read_ids(path), list(image_ids)
    row_of = {image: row for row, image in enumerate(stored["ids"])}
    if len(row_of) != len(stored["ids"]):
        twice = next(i for r, i in enumerate(stored["ids"]) if row_of[i] != r)
        raise FeatureOrderError(
            f"{path.name} holds image {twice!r} more than once: which is meant?"
        )
    missing = [image for image in wanted if image not in row_of]
    if missing:
        raise FeatureOrderError(
            f"{path.name} has no features of {len(missing)} of {len(wanted)} images, the first is "
            f"{missing[0]!r}. Compute them for the whole list"
        )
    rows = np.array([row_of[image] for image in wanted], dtype=np.intp)
    return np.asarray(_read_rows(path, stored, mmap=True)[rows])


def read_identity(path: Path) -> dict[str, Any]:
    """Return what the features of a file are of; empty for files of older versions."""
    return read_ids(npy_path(path))["identity"]


def npy_path(path: Path) -> Path:
    """Return the path of a feature file; refuse one that `numpy.save` would rename."""
    path = Path(path)
    if path.suffix != ".npy":
        raise FeatureError(f"{path}: the name of a feature file ends in .npy")
    return path


def write_ids(path: Path, ids: list[str], digest: str, identity: Mapping[str, Any]) -> None:
    """Write the list beside a feature file: ids, SHA-256 of the file, identity."""
    with atomic_file(path.with_suffix(".ids.json")) as part:
        content = {"sha256": digest, "identity": dict(identity), "ids": ids}
        part.write_text(json.dumps(content) + "\n", encoding="utf-8")


def read_ids(path: Path) -> dict[str, Any]:
    """Return `ids`, `sha256` (None in files of older versions, a plain list) and `identity`."""
    sidecar = path.with_suffix(".ids.json")
    for file in (path, sidecar):
        if not file.is_file():
            raise FeatureError(
                f"{file} is missing: remove what is left of {path.name}, and compute the features"
            )
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
        if isinstance(content, list):
            return {"ids": content, "sha256": None, "identity": {}}
        return {name: content[name] for name in ("ids", "sha256", "identity")}
    except (ValueError, KeyError, TypeError) as error:
        raise FeatureError(
            f"{sidecar} is no list of image ids ({type(error).__name__}: {error}): compute the "
            "features again"
        ) from error


def _read_rows(path: Path, stored: Mapping[str, Any], mmap: bool) -> np.ndarray:
    """Open the array and check that it is the one that was written, with a row for each id."""
    if stored["sha256"] is not None and digest_file(path) != stored["sha256"]:
        raise FeatureError(
            f"{path} is not the file that was written (its checksum is not the one in "
            f"{path.with_suffix('.ids.json').name}). Remove it and compute the features again"
        )
    try:
        features = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FeatureError(
            f"{path} cannot be read ({error}): compute the features again"
        ) from error
    if len(features) != len(stored["ids"]):
        raise FeatureError(
            f"{path} has {len(features)} rows for the {len(stored['ids'])} images of its list: "
            "compute the features again"
        )
    return features
