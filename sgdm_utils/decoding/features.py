"""Features of a list of pictures in a file: ordered ids, a checksum, and a way to resume.

A feature file `name.npy` is worthless without knowing which row belongs to which image, and
dangerous when that is guessed. So `name.ids.json` lies beside it with the ordered image ids, the
SHA-256 of the file and what the features are of (`identity`: model, digest of its weights, ...).
While features are computed they grow in `name.part.npy`, and `name.part.json` says how far they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from sgdm_utils.errors import DatasetError, reading
from sgdm_utils.workflow import locks
from sgdm_utils.workflow.atomic import atomic_file, digest_file
from sgdm_utils.workflow.formats import read_json, read_npy


class PartialFeaturesIgnored(UserWarning):
    """What an interrupted computation left is damaged, so it starts anew."""


def compute_features(
    model_fn: Callable[[Any], np.ndarray],
    image_ids: Sequence[str],
    load_pictures: Callable[[list[str]], Any],
    path: Path,
    batch: int = 128,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """Compute features batch by batch into a file, going on where an earlier call stopped.

    Parameters
    ----------
    model_fn : callable, what `load_pictures` returns for some images -> array of shape (n, ...)
    image_ids : sequence of str, each once
    load_pictures : callable, list of image ids -> their pictures, in this order
    path : Path, `name.npy`. Keep it out of folders that vanish when a notebook fails: what is
        computed there cannot be resumed.
    batch : int, images at a time. A run that is resumed must keep it, or the last digits of its
        results could differ from those of an undisturbed one.
    progress : bool, show a bar
    identity : mapping of what JSON can hold, everything that decides the numbers: name of the
        model, digest of its weights (`weights_digest`), of the pictures, their size

    Returns
    -------
    float32 array of shape (n_images, ...), mapped read-only from `path`

    Raises
    ------
    FeatureError
        What is there (whole or in part) is of another identity, another list of images or another
        batch size; a batch of the wrong length or shape; features that are no finite numbers.
    FeatureOrderError
        What is there is of the same images in another order; an id that is asked for twice.

    Warns
    -----
    PartialFeaturesIgnored
        When an interrupted run left a damaged file; it is computed from the beginning.
    """
    path, ids = npy_path(path), list(image_ids)
    if not ids or batch < 1:
        raise FeatureError(f"{path}: {len(ids)} images in batches of {batch} make no features")
    if len(set(ids)) != len(ids):
        twice = next(i for n, i in enumerate(ids) if i in ids[:n])
        raise FeatureOrderError(f"{path}: image {twice!r} is asked for twice, list each id once")
    identity = json.loads(json.dumps(dict(identity or {})))  # as it will be read back
    path.parent.mkdir(parents=True, exist_ok=True)
    # a second process waits here, and then finds the work done
    with locks.shared_lock(path.parent / f".{path.name}.lock"):
        if path.is_file():
            _refuse_other(path, read_ids(path), {"identity": identity}, ids)
        else:
            growing = _Growing(path, ids, batch, identity)
            with tqdm(total=len(ids), initial=growing.done, unit="picture", desc=path.stem,
                      disable=not progress) as bar:  # fmt: skip
                while growing.done < len(ids):
                    some = ids[growing.done : growing.done + batch]
                    growing.append(model_fn(load_pictures(some)), some)
                    bar.update(len(some))
            growing.finish()
        for left in (path.with_suffix(".part.json"), path.with_suffix(".part.npy")):
            left.unlink(missing_ok=True)
        return load_features(path, ids, mmap=True)


def _refuse_other(path: Path, stored: Mapping, wanted: Mapping, ids: list[str]) -> None:
    """Refuse to go on with, or to replace, features of something else."""
    remedy = f"Remove {path} to compute it anew, or write to another file"
    if stored["ids"] != ids:
        same = sorted(stored["ids"]) == sorted(ids)
        kind, what = (FeatureOrderError, "order") if same else (FeatureError, "list of images")
        raise kind(
            f"{path} holds features of another {what} ({len(stored['ids'])} images, "
            f"{len(ids)} asked for). {remedy}"
        )
    theirs, ours = ({**s["identity"], "batch": s.get("batch")} for s in (stored, wanted))
    differ = [k for k in sorted(theirs.keys() | ours) if theirs.get(k) != ours.get(k)]
    if differ:
        raise FeatureError(
            f"{path} holds features of another kind: {differ[0]} is {theirs.get(differ[0])!r} "
            f"there, {ours.get(differ[0])!r} was asked for. {remedy}"
        )


class _Growing:
    """The unfinished file and its state.

    Rows are on the disk before the state counts them, so a state never promises rows that are not
    there. The state holds the SHA-256 of the counted rows: altered ones are noticed. The room for
    all rows is taken at the beginning: a full disk is an error then, and does not kill the process.
    """

    def __init__(self, path: Path, ids: list[str], batch: int, identity: dict) -> None:
        self.path, self.ids, self.batch, self.identity = path, ids, batch, identity
        self.part, self.state = path.with_suffix(".part.npy"), path.with_suffix(".part.json")
        self.done, self.rows, self.sha = 0, None, hashlib.sha256()
        if self.state.is_file() and (damage := self._resume()):
            warnings.warn(
                f"{damage}: the features of {path.name} are computed from the beginning.",
                PartialFeaturesIgnored,
                stacklevel=3,
            )
            self.done, self.rows, self.sha = 0, None, hashlib.sha256()

    def append(self, features: np.ndarray, some: list[str]) -> None:
        """Add the features of the next images."""
        block = np.ascontiguousarray(features, dtype="<f4")
        if block.ndim < 2 or len(block) != len(some):
            raise FeatureError(
                f"{self.path.name}: the model returned {block.shape} for {len(some)} pictures"
            )
        finite = np.isfinite(block).reshape(len(block), -1).all(1)
        if not finite.all():
            raise FeatureError(
                f"{self.path.name}: the features of image {some[int(finite.argmin())]!r} are no "
                "finite numbers. Half precision overflows: compute in float32 or bfloat16"
            )
        if self.rows is None:
            shape = (len(self.ids), *block.shape[1:])
            self.rows = np.lib.format.open_memmap(self.part, "w+", "<f4", shape)
            if hasattr(os, "posix_fallocate"):  # not on every system; there a full disk shows later
                with open(self.part, "rb+") as stream:
                    os.posix_fallocate(stream.fileno(), 0, self.rows.offset + self.rows.nbytes)
        if block.shape[1:] != self.rows.shape[1:]:
            raise FeatureError(
                f"{self.path.name}: features of shape {block.shape[1:]} after "
                f"{self.rows.shape[1:]}, from image {some[0]!r} on"
            )
        self.rows[self.done : self.done + len(block)] = block
        self.rows.flush()
        self.sha.update(block)
        self.done += len(block)
        content = {
            "identity": self.identity, "batch": self.batch, "done": self.done,
            "sha256": self.sha.hexdigest(), "ids": self.ids,
        }  # fmt: skip
        with atomic_file(self.state) as part:
            part.write_text(json.dumps(content) + "\n", encoding="utf-8")

    def finish(self) -> None:
        """Give the file its name, the checksum first."""
        self.rows = None
        write_ids(self.path, self.ids, digest_file(self.part), self.identity)
        os.replace(self.part, self.path)

    def _resume(self) -> str:
        """Take up what is there; return what is wrong with it, "" when it is whole."""
        if not self.part.is_file():
            return f"{self.part.name} is gone"
        try:
            stored = read_json(self.state)
            done, digest = stored["done"], stored["sha256"]
            theirs = {name: stored[name] for name in ("ids", "identity", "batch")}
            if type(done) is not int or not isinstance(theirs["ids"], list):
                raise TypeError(f"done is {done!r}")
            if not isinstance(theirs["identity"], dict):
                raise TypeError("no identity")
        except (ValueError, KeyError, TypeError) as error:
            return f"{self.state.name} cannot be read ({type(error).__name__})"
        wanted = {"identity": self.identity, "batch": self.batch}
        _refuse_other(self.part, theirs, wanted, self.ids)
        try:
            rows = np.lib.format.open_memmap(self.part, "r+")
            whole = len(rows) == len(self.ids) and rows.dtype == "<f4"
        except (ValueError, OSError, OverflowError):
            whole = False
        if whole:
            self.sha.update(np.ascontiguousarray(rows[:done]))
        if not whole or self.sha.hexdigest() != digest:
            return f"{self.part.name} is not as it was left"
        self.done, self.rows = done, rows
        return ""


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
    with reading(sidecar, "a list of image ids", "Compute the features again", FeatureError):
        content = read_json(sidecar, object, error=FeatureError)
        if isinstance(content, list):
            content = {"ids": content, "sha256": None, "identity": {}}
        if not all(isinstance(image, str) for image in content["ids"]):
            raise TypeError("an id is no text")
        if not isinstance(content["identity"], dict) or not isinstance(content["ids"], list):
            raise TypeError("it holds no list of ids, or no identity")
        return {name: content[name] for name in ("ids", "sha256", "identity")}


def _read_rows(path: Path, stored: Mapping[str, Any], mmap: bool) -> np.ndarray:
    """Open the array and check that it is the one that was written, with a row for each id."""
    if stored["sha256"] is not None and digest_file(path) != stored["sha256"]:
        raise FeatureError(
            f"{path} is not the file that was written (its checksum is not the one in "
            f"{path.with_suffix('.ids.json').name}). Remove it and compute the features again"
        )
    features = read_npy(path, mmap, FeatureError)
    rows = len(features) if features.ndim else 0
    if rows != len(stored["ids"]):
        raise FeatureError(
            f"{path} has {rows} rows for the {len(stored['ids'])} images of its list: "
            "compute the features again"
        )
    return features
