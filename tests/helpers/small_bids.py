"""Small BIDS studies for the tests: 5 channels, 20 s at 100 Hz, ten pictures of five concepts."""

from __future__ import annotations

import warnings
from pathlib import Path

import mne
import mne_bids
import numpy as np
import pandas as pd

from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE

CHANNELS = ["Fz", "Cz", "Pz", "Oz", "POz"]
PICTURES = [f"concept{i % 5}/picture{i}.png" for i in range(10)]
ONSETS = np.arange(1.0, 19.0, 1.8)


def add_recording(
    root: Path,
    subject: str = "01",
    run: str = "01",
    sfreq: float = 100.0,
    names: list[str] | None = None,
    seed: int = 0,
    change=None,
    positions: bool = True,
) -> Path:
    """Write one run; `change(samples)` spoils the written file. Returns its events.tsv."""
    names = names or CHANNELS
    data = np.random.default_rng(seed).normal(0, 10e-6, (len(names), int(20 * sfreq)))
    raw = mne.io.RawArray(data, mne.create_info(names, sfreq, "eeg"), verbose="error")
    if positions:
        raw.set_montage(STANDARD_MONTAGE, verbose="error")
    raw.set_annotations(mne.Annotations(ONSETS, 0.1, ["image"] * len(ONSETS)))
    where = mne_bids.BIDSPath(root=root, subject=subject, task="see", run=run, datatype="eeg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mne_bids.write_raw_bids(
            raw, where, format="BrainVision", allow_preload=True, overwrite=True, verbose="error"
        )
    if change is not None:
        samples = np.memmap(where.fpath.with_suffix(".eeg"), np.float32, mode="r+")
        change(samples.reshape(-1, len(names)).T)
        samples.flush()
    sidecar = where.copy().update(suffix="events", extension=".tsv").fpath
    table = pd.read_csv(sidecar, sep="\t").assign(stim_file=PICTURES)
    table.to_csv(sidecar, sep="\t", index=False)
    (root / "stimuli").mkdir(exist_ok=True)
    for picture in PICTURES:
        (root / "stimuli" / picture).parent.mkdir(exist_ok=True)
        (root / "stimuli" / picture).touch()
    return sidecar


def edit(sidecar: Path, row: int, column: str, value) -> None:
    table = pd.read_csv(sidecar, sep="\t", dtype=object, keep_default_na=False)
    table.loc[row, column] = value
    table.to_csv(sidecar, sep="\t", index=False)


def channels_tsv(sidecar: Path) -> Path:
    return sidecar.with_name(sidecar.name.replace("_events", "_channels"))
