"""Features of a list of pictures in a file: ordered ids, a checksum, and a way to resume.

A feature file `name.npy` is worthless without knowing which row belongs to which image, and
dangerous when that is guessed. So `name.ids.json` lies beside it with the ordered image ids, the
SHA-256 of the file and what the features are of (`identity`: model, digest of its weights, ...).
While features are computed they grow in `name.part.npy`, and `name.part.json` says how far they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from sgdm_utils.decoding.feature_files import (
    FeatureError,
    FeatureOrderError,
    load_features,
    npy_path,
    read_identity,
    read_ids,
    save_features,
    select_features,
    write_ids,
)
from sgdm_utils.workflow.atomic import atomic_file, digest_file

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "FeatureError", "FeatureOrderError", "PartialFeaturesIgnored", "clip_features",
    "compute_features", "load_features", "read_identity", "read_picture", "save_features",
    "select_features", "weights_digest",
]  # fmt: skip


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
    with FileLock(path.parent / f".{path.name}.lock"):
        if path.is_file():
            _refuse_other(path, read_ids(path), {"identity": identity}, ids)
        else:
            with contextlib.closing(_Growing(path, ids, batch, identity)) as growing:
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
    there. The state holds the SHA-256 of the file up to its last counted row: rows that were
    altered meanwhile are noticed, and at the end it is the checksum of the whole file. The file is
    written, not mapped: a full disk is an error then, and does not kill the process.
    """

    def __init__(self, path: Path, ids: list[str], batch: int, identity: dict) -> None:
        self.path, self.ids, self.batch, self.identity = path, ids, batch, identity
        self.part, self.state = path.with_suffix(".part.npy"), path.with_suffix(".part.json")
        self.done, self.shape, self.stream, self.sha = 0, None, None, hashlib.sha256()
        if self.state.is_file():
            damage = self._resume()
            if damage:
                warnings.warn(
                    f"{damage}: the features of {path.name} are computed from the beginning.",
                    PartialFeaturesIgnored,
                    stacklevel=3,
                )
                self.close()
                self.done, self.shape, self.stream, self.sha = 0, None, None, hashlib.sha256()

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
        if self.stream is None:
            self.shape = block.shape[1:]
            self.stream = open(self.part, "wb")
            self._write(_header(len(self.ids), self.shape))
        if block.shape[1:] != self.shape:
            raise FeatureError(
                f"{self.path.name}: features of shape {block.shape[1:]} after {self.shape}, from "
                f"image {some[0]!r} on"
            )
        self._write(block)
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.done += len(block)
        content = {
            "identity": self.identity, "batch": self.batch, "done": self.done,
            "shape": self.shape, "sha256": self.sha.hexdigest(), "ids": self.ids,
        }  # fmt: skip
        with atomic_file(self.state) as part:
            part.write_text(json.dumps(content) + "\n", encoding="utf-8")

    def finish(self) -> None:
        """Give the file its name, the checksum first."""
        self.close()
        write_ids(self.path, self.ids, self.sha.hexdigest(), self.identity)
        os.replace(self.part, self.path)

    def close(self) -> None:
        """Close the file; what it holds can be resumed."""
        if self.stream is not None:
            self.stream.close()

    def _write(self, content: bytes | np.ndarray) -> None:
        self.stream.write(content)
        self.sha.update(content)

    def _resume(self) -> str:
        """Take up what is there; return what is wrong with it, "" when it is whole."""
        if not self.part.is_file():
            return f"{self.part.name} is gone"
        try:
            stored = json.loads(self.state.read_text(encoding="utf-8"))
            done, shape, digest = stored["done"], tuple(stored["shape"]), stored["sha256"]
            theirs = {name: stored[name] for name in ("ids", "identity", "batch")}
        except (ValueError, KeyError, TypeError) as error:
            return f"{self.state.name} cannot be read ({type(error).__name__})"
        wanted = {"identity": self.identity, "batch": self.batch}
        _refuse_other(self.part, theirs, wanted, self.ids)
        self.stream = open(self.part, "rb+")
        end = len(_header(len(self.ids), shape)) + 4 * done * math.prod(shape)
        while self.stream.tell() < end:
            chunk = self.stream.read(min(1 << 20, end - self.stream.tell()))
            if not chunk:
                break
            self.sha.update(chunk)
        if self.sha.hexdigest() != digest:
            return f"{self.part.name} is not as it was left"
        self.stream.truncate(end)  # rows that the state had not counted yet
        self.done, self.shape = done, shape
        return ""


def _header(n: int, shape: tuple[int, ...]) -> bytes:
    """Return the beginning of a .npy file of n rows, float32."""
    stream = io.BytesIO()
    facts = {"descr": "<f4", "fortran_order": False, "shape": (n, *shape)}
    np.lib.format.write_array_header_1_0(stream, facts)
    return stream.getvalue()


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of names, types, shapes and values of a model's weights and buffers."""
    import torch  # only models need it: reading feature files does not

    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_picture(path: Path, size: int | tuple[int, int]) -> np.ndarray:
    """Read one picture file as RGB, cropped to its centre and resized, as `pictures.from_files` does.

    Parameters
    ----------
    path : Path
    size : int, or (height, width), pixels

    Returns
    -------
    uint8 array of shape (height, width, 3)

    Raises
    ------
    FeatureError
        When the file cannot be read as a picture; the message names it.
    """
    height, width = (size, size) if isinstance(size, int) else size
    try:
        with Image.open(path) as file:
            rgb = file.convert("RGB")
            return np.asarray(ImageOps.fit(rgb, (width, height), Image.Resampling.LANCZOS))
    except OSError as error:
        raise FeatureError(
            f"{path} cannot be read as a picture ({error}). Copy it again, or export it as PNG or "
            "JPEG"
        ) from error


def clip_features(
    model: nn.Module,
    image_ids: Sequence[str],
    pictures: Sequence[Path] | np.ndarray,
    path: Path,
    name: str = "",
    batch: int = 128,
    progress: bool = True,
) -> np.ndarray:
    """Compute unnormalised CLIP image embeddings into a file; see `compute_features`.

    Pictures are read when their turn comes, so `batch` of them are in memory. Files are brought to
    the size of the model's image tower at once (`read_picture`).

    Parameters
    ----------
    model : open_clip model
    image_ids : sequence of str
    pictures : paths, or uint8 array of shape (n, height, width, 3), in the order of `image_ids`
    path : Path, `name.npy`
    name : str, of the model, kept with the features beside the digest of its weights
    batch : int
    progress : bool, show a bar

    Returns
    -------
    float32 array of shape (n_images, embed_dim), mapped read-only from `path`

    Raises
    ------
    FeatureError
        As for `compute_features`; a picture that is missing or cannot be read.
    FeatureOrderError
        As for `compute_features`; more or fewer pictures than ids.
    """
    from sgdm_utils.decoding import clip  # which takes reading and writing from here

    ids = list(image_ids)
    if len(pictures) != len(ids):
        raise FeatureOrderError(f"{len(pictures)} pictures for {len(ids)} images")
    size = model.visual.image_size
    identity = {"model": name, "weights_sha256": weights_digest(model)}
    row_of = {image: row for row, image in enumerate(ids)}
    if isinstance(pictures, np.ndarray) and pictures.ndim > 1:
        digest = hashlib.sha256(f"{pictures.dtype} {pictures.shape}\n".encode())
        for picture in pictures:
            digest.update(np.ascontiguousarray(picture))
        identity["pictures_sha256"] = digest.hexdigest()

        def load(some: list[str]) -> np.ndarray:
            return np.ascontiguousarray(pictures[[row_of[i] for i in some]])
    else:
        files = [Path(p) for p in pictures]
        absent = [p for p in files if not p.is_file()]
        if absent:
            raise FeatureError(
                f"{len(absent)} of {len(ids)} picture files are missing, the first is {absent[0]}"
            )
        digests = "".join(f"{digest_file(p)}\n" for p in files)
        identity["pictures_sha256"] = hashlib.sha256(digests.encode()).hexdigest()
        identity["picture_size"] = list(size) if isinstance(size, tuple) else size

        def load(some: list[str]) -> np.ndarray:
            return np.stack([read_picture(files[row_of[i]], size) for i in some])

    return compute_features(
        lambda some: clip.image_features(model, some, batch),
        ids, load, path, batch, progress, identity,
    )  # fmt: skip
