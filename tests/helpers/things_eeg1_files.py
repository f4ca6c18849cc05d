"""THINGS-EEG1 in its real form, written small: BrainVision in BIDS, the published columns, backslashes.

Six concepts of two pictures each at ten pictures a second, then two pictures four times over; every
seventh row a target, as in the published tables whose numbers count from 0.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import mne
import mne_bids
import numpy as np
import pandas as pd
from PIL import Image

HEADER = (
    "onset duration eventnumber objectnumber object sequencenumber presentationnumber "
    "blocksequencenumber withinsequencenumber stimnumber stim istarget stimname response rt correct "
    "time_stimon time_stimoff stimdur sample"
).split()
CHANNELS = ["Fp1", "Fz", "Pz", "P3", "Oz", "O1", "O2"]
CONCEPTS = ["aardvark", "bat1", "bat2", "carousel", "drum", "egg"]
REPEATED = [("carousel", "carousel_11s.jpg"), ("egg", "egg_12n.jpg")]


def events_table() -> pd.DataFrame:
    """Twelve main pictures in two blocks, then two pictures four times; samples from 2,000 on."""
    rows = []
    for block in range(2):
        for position, number in enumerate([3, 0, 5, 1, 4, 2]):
            name = f"{CONCEPTS[number]}_{block + 1:02d}b.jpg"
            rows.append((number, CONCEPTS[number], block, position, block, name))
    for repeat in range(4):
        for position, (concept, name) in enumerate(REPEATED):
            rows.append((-1, -1, 72 + repeat, position, -1, (concept, name)))
    table = []
    for i, (number, concept, sequence, position, block, name) in enumerate(rows):
        folder, name = name if isinstance(name, tuple) else (concept, name)
        sample = 2000 + 100 * i
        table.append(
            [sample / 1000, 50, i, number, concept, sequence, position, block, -1 if block < 0 else 0,
             -1 if block < 0 else block, rf"stimuli\{folder}\{name}", int(i % 7 == 6), name, 0, 0, 0,
             10 + i / 10, 10.05 + i / 10, 0.05, sample]
        )  # fmt: skip
    return pd.DataFrame(table, columns=HEADER, dtype=object)


def add_subject(root: Path, subject: str, seed: int, names: list[str] | None = None) -> Path:
    """Write one person's recording, events and channels; returns events.tsv."""
    names = names or CHANNELS
    data = np.random.default_rng(seed).normal(0, 10e-6, (len(names), 6000))
    raw = mne.io.RawArray(data, mne.create_info(names, 1000.0, "eeg"), verbose="error")
    where = mne_bids.BIDSPath(root=root, subject=subject, task="rsvp", datatype="eeg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mne_bids.write_raw_bids(
            raw, where, format="BrainVision", allow_preload=True, overwrite=True, verbose="error"
        )
    sidecar = where.copy().update(suffix="events", extension=".tsv").fpath
    events_table().to_csv(sidecar, sep="\t", index=False)
    return sidecar


def add_pictures(root: Path) -> None:
    for stim in events_table()["stim"].unique():
        file = root / stim.replace("\\", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file)
