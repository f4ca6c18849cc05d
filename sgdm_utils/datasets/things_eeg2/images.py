"""The pictures of THINGS-EEG2: which number is which picture, and of which concept.

The recordings say "picture 11742 of the training images". `image_set/image_metadata.npy` says what
that is. Numbers count from 1 in each partition, in the order of the metadata, which is also the
order of the sorted folders.

References
----------
Gifford, Dwivedi, Roig & Cichy (2022), NeuroImage 264:119754; Hebart et al. (2019), PLoS ONE
14:e0223792 (THINGS).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sgdm_utils.datasets import pickles
from sgdm_utils.errors import DatasetError
from sgdm_utils.stimuli.files import require_inside

FOLDER = "image_set"
PARTITIONS = {"train": "training_images", "test": "test_images"}
PICTURES = (".jpg", ".jpeg", ".png")
_METADATA_KEYS = ("img_concepts", "img_concepts_THINGS", "img_files")


def load_image_set(root: Path) -> pd.DataFrame:
    """List the pictures below ``root/image_set`` in the order of their numbers.

    Returns
    -------
    DataFrame with `partition` ("train", "test"), `number` (from 1 in each partition), `image_id`
    (`stim_file` without suffix), `concept` (for people: "aircraft carrier"), `folder`
    ("00001_aircraft_carrier") and `stim_file` (relative to `image_set/`);
    `attrs["order"]` says where the order comes from.

    Raises
    ------
    DatasetError
        No image set; metadata without a key or with lists of unequal length; a picture that is
        listed but not there, or listed twice; a concept that is in both partitions.

    Notes
    -----
    Concepts are told apart by their entry in the list of 1,854 THINGS concepts when the metadata has
    it, otherwise by their name: the index of the folder counts within the partition and would make
    one concept look like two.
    """
    folder = Path(root) / FOLDER
    _require_folders(folder)
    metadata = folder / "image_metadata.npy"
    if metadata.is_file():
        table, order = _from_metadata(metadata), metadata.name
    else:
        table, order = _from_folders(folder), "sorted folders (image_metadata.npy is not there)"
    table["stim_file"] = [
        f"{PARTITIONS[p]}/{c}/{f}"
        for p, c, f in zip(table["partition"], table["folder"], table["file"], strict=True)
    ]
    table["image_id"] = [os.path.splitext(f)[0] for f in table["stim_file"]]
    double = table["image_id"][table["image_id"].duplicated()]
    if len(double):
        raise DatasetError(f"{folder}: the picture {double.iloc[0]!r} is listed twice ({order})")
    entry = table.set_index("stim_file")[["partition", "number"]]

    def where(name: str) -> str:
        partition, number = entry.loc[name]
        return f"{folder / 'image_metadata.npy'}, entry {number} of {partition}_img_files"

    require_inside(folder, table["stim_file"], Path(root), where)
    _require_pictures(folder, table["stim_file"], order)
    table["concept"] = _concepts(table, folder)
    columns = ["partition", "number", "image_id", "concept", "folder", "stim_file"]
    table = table[columns].reset_index(drop=True)
    table.attrs["order"] = order
    return table


def identify(
    numbers: np.ndarray, partition: str, image_set: pd.DataFrame, where: str, rows: str = "event"
) -> pd.DataFrame:
    """Find the pictures that belong to stimulus numbers.

    Parameters
    ----------
    numbers : int array of shape (n_events,), from 1
    partition : 'train' or 'test'
    image_set : DataFrame of `load_image_set`
    where, rows : str, the file and what a position of `numbers` is called, when no picture has it

    Returns
    -------
    DataFrame of n_events rows with `number`, `image_id`, `concept`, `stim_file`, `partition`
    """
    part = image_set[image_set["partition"] == partition]
    numbers = np.asarray(numbers)
    unknown = (numbers < 1) | (numbers > len(part)) | (numbers % 1 != 0)
    if unknown.any():
        i = int(np.flatnonzero(unknown)[0])
        raise DatasetError(
            f"{where}: stimulus missing: {rows} {i} shows {PARTITIONS[partition]} number "
            f"{numbers[i]:g}, and {FOLDER} has {len(part)} of them ({int(unknown.sum())} such "
            f"{rows}s). Is the image set complete, and is it the one of this data set?"
        )
    columns = ["number", "image_id", "concept", "stim_file", "partition"]
    return part[columns].iloc[numbers.astype(int) - 1].reset_index(drop=True)


def as_dictionary(content: Any, path: Path, keys: tuple[str, ...]) -> dict:
    """Take the dictionary with these keys out of what a `.npy` file of this data set holds.

    The official files hold it in an array of no dimension, the repackaged ones directly.
    """
    if isinstance(content, np.ndarray) and content.ndim == 0 and content.dtype == object:
        content = content.item()
    if not isinstance(content, dict):
        raise DatasetError(
            f"{path} holds {type(content).__name__}, not a dictionary with "
            f"{', '.join(keys)}. Is it a file of THINGS-EEG2?"
        )
    missing = [k for k in keys if k not in content]
    if missing:
        raise DatasetError(
            f"{path}: no key {missing[0]!r}; there is {', '.join(map(repr, content))}. Is it "
            "another file of the data set, under this name?"
        )
    return content


def word_of(folder: str) -> str:
    """Return the name of a concept without the index before it ("00001_aardvark" -> "aardvark")."""
    index, _, word = folder.partition("_")
    return word if index.isdigit() and word else folder


def _require_folders(folder: Path) -> None:
    if not folder.is_dir():
        other = [n for n in ("images_set", "stimuli") if (folder.parent / n).is_dir()]
        hint = f" (there is {other[0]}/: rename it)" if other else ""
        raise DatasetError(
            f"{folder} is not there{hint}: the recordings hold numbers, the pictures tell what was "
            f"seen. Download the image set of THINGS-EEG2 and unpack it as {FOLDER}/"
        )
    for name in PARTITIONS.values():
        if not (folder / name).is_dir():
            raise DatasetError(
                f"{folder / name} is not there: unpack {name}.zip of the image set in {folder}"
            )


def _from_metadata(path: Path) -> pd.DataFrame:
    keys = {p: [f"{p}_{k}" for k in _METADATA_KEYS] for p in PARTITIONS}
    content = as_dictionary(pickles.load(path), path, tuple(keys["train"] + keys["test"]))
    parts = []
    for partition, names in keys.items():
        if odd := [k for k in names if np.ndim(content[k]) != 1]:
            raise DatasetError(f"{path}: {odd[0]} is no list of names. Download it again")
        lengths = {k: len(content[k]) for k in names}
        if len(set(lengths.values())) > 1:
            raise DatasetError(
                f"{path}: lists of unequal length: "
                f"{', '.join(f'{k} has {n}' for k, n in lengths.items())}. Download it again"
            )
        folder, things, file = ([str(x) for x in content[k]] for k in names)
        parts.append(_part(partition, folder, file).assign(things=things))
    return pd.concat(parts, ignore_index=True)


def _from_folders(folder: Path) -> pd.DataFrame:
    parts = []
    for partition, name in PARTITIONS.items():
        concepts = sorted(p.name for p in (folder / name).iterdir() if p.is_dir())
        found = [
            (c, f)
            for c in concepts
            for f in sorted(os.listdir(folder / name / c))
            if f.lower().endswith(PICTURES) and not f.startswith(".")
        ]
        if not found:
            raise DatasetError(
                f"{folder / name}: no picture ({', '.join(PICTURES)}) in its folders"
            )
        parts.append(_part(partition, [c for c, _ in found], [f for _, f in found]))
    return pd.concat(parts, ignore_index=True).assign(things=None)


def _part(partition: str, folder: list[str], file: list[str]) -> pd.DataFrame:
    number = np.arange(1, len(file) + 1)
    return pd.DataFrame({"partition": partition, "number": number, "folder": folder, "file": file})


def _require_pictures(folder: Path, stim_files: pd.Series, order: str) -> None:
    # one listing per concept: 16,740 single look-ups take seconds on a network disk
    there: dict[str, set[str]] = {}
    missing = []
    for stim_file in stim_files:
        parent, name = stim_file.rsplit("/", 1)
        if parent not in there:
            path = folder / parent
            there[parent] = set(os.listdir(path)) if path.is_dir() else set()
        if name not in there[parent]:
            missing.append(stim_file)
    if missing:
        raise DatasetError(
            f"{folder / missing[0]} is not there ({len(missing)} of {len(stim_files)} pictures that "
            f"{order} lists are missing). Unpack the image set again"
        )


def _concepts(table: pd.DataFrame, folder: Path) -> list[str]:
    """Names of concepts for people; what differs in the THINGS list differs in name."""
    word = table["folder"].map(word_of)
    key = table["things"].where(table["things"].notna(), word)
    word = word.groupby(key).transform("first")
    both = set(key[table["partition"] == "train"]) & set(key[table["partition"] == "test"])
    if both:
        first = sorted(both)[0]
        raise DatasetError(
            f"{folder}: the concept {first!r} is in the training and in the test images "
            f"({len(both)} such concepts). The published partitions share none: a test on unseen "
            "concepts would not be one. Restore the published image set"
        )
    keys_of = pd.DataFrame({"word": word, "key": key}).drop_duplicates().groupby("word")["key"]
    several = set(keys_of.size()[lambda n: n > 1].index)
    return [
        f"{w.replace('_', ' ')} ({k.split('_', 1)[0]})" if w in several else w.replace("_", " ")
        for w, k in zip(word, key, strict=True)
    ]
