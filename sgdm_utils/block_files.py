"""Files of perceivelab and EEG-ImageNet, which `block_designs` judges: read without running them.

perceivelab/eeg_5_95_std.pth, eeg_14_70_std.pth, eeg_55_95_std.pth
perceivelab/block_splits_by_image_all.pth, block_splits_by_image_single.pth
EEG-ImageNet/EEG-ImageNet_1.pth (subjects 0-7), EEG-ImageNet_2.pth (8-15)
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from sgdm_utils.datasets import DatasetError

TITLES = {"perceivelab": "perceivelab (CVPR 2017)", "eeg_imagenet": "EEG-ImageNet"}


@dataclass(frozen=True)
class _Layout:
    """How the entries of one data set are written, and what its users cut out of them."""

    signal: str
    n_channels: int
    lengths: tuple[int, int]
    crop: tuple[int, int]


_LAYOUTS = {
    "perceivelab": _Layout("eeg", 128, (450, 600), (20, 460)),
    "eeg_imagenet": _Layout("eeg_data", 62, (440, 10**9), (40, 440)),
}


@dataclass(frozen=True)
class Segments:
    """Segments of a block-design data set.

    Attributes
    ----------
    table : DataFrame, one row for each segment: `subject` (int), `label` and `image` (str),
        `n_channels`, `n_samples`, `usable` (long enough for the usual crop), `block` (what was shown
        in one go: subject, class and, where there is one, granularity), `granularity`
    signals : sequence of arrays or tensors of shape (n_channels, n_samples)
    crop : (first, past the last) of the samples that are usually analysed
    """

    table: pd.DataFrame
    signals: Sequence[Any]
    crop: tuple[int, int | None] = (0, None)

    def __post_init__(self) -> None:
        if len(self.table) != len(self.signals):
            raise DatasetError(
                f"{len(self.signals)} segments, and a table of {len(self.table)} rows for them"
            )


def read_segments(path: Path, form: Literal["perceivelab", "eeg_imagenet"]) -> Segments:
    """Read eeg_*_std.pth of perceivelab, or EEG-ImageNet_1.pth or _2.pth.

    The files are pickles; they are opened with `weights_only`, which admits tensors and plain
    containers and runs nothing.

    Parameters
    ----------
    path : Path
    form : 'perceivelab' or 'eeg_imagenet'

    Returns
    -------
    Segments, in the order of the file, memory-mapped where the file allows

    Raises
    ------
    DatasetError
        A missing, truncated or foreign file, a pickle that asks for more than tensors, a missing
        key, an entry of another shape; the message names the entry.
    """
    path = Path(path)
    if form not in _LAYOUTS:
        raise DatasetError(f"unknown form {form!r}: {', '.join(_LAYOUTS)}")
    layout, content = _LAYOUTS[form], _load(path)
    _require_keys(content, ("dataset", "labels", "images"), path, "the file")
    labels, images = content["labels"], content["images"]
    rows, signals = [], []
    for i, entry in enumerate(content["dataset"]):
        keys = (layout.signal, "subject", "label", "image")
        _require_keys(entry, keys, path, f"entry {i}")
        signal = entry[layout.signal]
        if getattr(signal, "ndim", 0) != 2 or signal.shape[0] != layout.n_channels:
            raise DatasetError(
                f"{path}, entry {i}: a signal of shape {tuple(getattr(signal, 'shape', ()))}, not "
                f"({layout.n_channels}, time). Is it a file of {TITLES[form]}?"
            )
        label = _lookup(labels, entry["label"], path, i, "label")
        image = _lookup(images, entry["image"], path, i, "image")
        rows.append(
            (int(entry["subject"]), label, image, str(entry.get("granularity", "")), *signal.shape)
        )
        signals.append(signal)
    if not rows:
        raise DatasetError(f"{path} holds no segment")
    columns = ["subject", "label", "image", "granularity", "n_channels", "n_samples"]
    table = pd.DataFrame(rows, columns=columns)
    table["usable"] = table["n_samples"].between(*layout.lengths)
    # one class was one block: this is the design, no field of the file says it
    block = "sub-" + table["subject"].astype(str) + "/" + table["label"]
    table["block"] = block + ("/" + table["granularity"]).where(table["granularity"] != "", "")
    return Segments(table, signals, layout.crop)


def read_splits(path: Path, segments: Segments) -> list[dict[str, np.ndarray]]:
    """Read block_splits_by_image_*.pth of perceivelab, to be looked at with `block_overlap`.

    Parameters
    ----------
    path : Path
    segments : Segments the indices point into

    Returns
    -------
    list of dict with `train`, `val`, `test`: int arrays, rows of `segments.table`

    Raises
    ------
    DatasetError
        A missing key, an index outside the data set or in two parts of one split.
    """
    path = Path(path)
    content = _load(path)
    _require_keys(content, ("splits",), path, "the file")
    found = []
    for i, split in enumerate(content["splits"]):
        _require_keys(split, ("train", "val", "test"), path, f"split {i}")
        parts = {k: np.asarray(split[k], dtype=int) for k in ("train", "val", "test")}
        index = np.concatenate(list(parts.values()))
        if len(index) and (index.min() < 0 or index.max() >= len(segments.table)):
            raise DatasetError(
                f"{path}, split {i}: index {max(index.max(), -index.min())} and the data set has "
                f"{len(segments.table)} segments. Do the two files belong together?"
            )
        if len(np.unique(index)) < len(index):
            raise DatasetError(f"{path}, split {i}: a segment is in two of train, val and test")
        found.append(parts)
    return found


def _load(path: Path) -> Any:
    """Open a file of torch.save without running it."""
    if not path.is_file():
        raise DatasetError(f"{path} is missing; data/README.md says where the file comes from")
    try:
        import torch  # a second and a half, which the readers of other data sets need not wait for

        # the format before torch 1.6 cannot be mapped
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None
        )
    except pickle.UnpicklingError as error:  # its own message says how to execute it nevertheless
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        if name is None:
            raise DatasetError(
                f"{path} is truncated, or no file of torch.save. Fetch it again"
            ) from None
        raise DatasetError(
            f"{path} asks for {name[1]}, which is neither a tensor nor a plain container. Nothing of "
            "it was executed. Take the file from its official source and compare its checksum"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise DatasetError(
            f"{path} is truncated, or no file of torch.save ({type(error).__name__}). Fetch it again"
        ) from error


def _require_keys(content: Any, keys: Sequence[str], path: Path, what: str) -> None:
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: {what} is a {type(content).__name__}, not a dictionary")
    missing = [k for k in keys if k not in content]
    if missing:
        raise DatasetError(
            f"{path}: {what} has no {', '.join(missing)}; there is {', '.join(map(str, content))}"
        )


def _lookup(names: Sequence[str], value: Any, path: Path, i: int, what: str) -> str:
    """Name of a class or picture that is given by its place in the list, or by itself."""
    if isinstance(value, str):
        return value
    place = int(value)
    if not 0 <= place < len(names):
        raise DatasetError(f"{path}, entry {i}: {what} {place} of {len(names)}")
    return str(names[place])
