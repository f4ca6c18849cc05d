"""THINGS-EEG2 as separate runs: the BIDS conversion, and the BrainVision source files.

A session is one run with the test images and five with training images. What was shown in a run is
read by `things_eeg2_events`.

References
----------
Gifford, Dwivedi, Roig & Cichy (2022), NeuroImage 264:119754; NEMAR nm000232 (BIDS conversion).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mne
import mne_bids
import numpy as np
import pandas as pd

from sgdm_utils.datasets import bids
from sgdm_utils.datasets.bids import (
    EEG_EXTENSIONS,
    STANDARD_MONTAGE,
    DatasetError,
    read_recording,
    read_tsv,
)
from sgdm_utils.datasets.tables import StudyTables
from sgdm_utils.datasets.things_eeg2.design import (
    CHANNELS,
    SESSIONS,
    RecordingList,
    assemble,
    check_channels,
    check_coverage,
    choose_subjects,
)
from sgdm_utils.datasets.things_eeg2.events import bids_events, source_events
from sgdm_utils.datasets.things_eeg2.images import load_image_set
from sgdm_utils.signals.quality import check_signal

FORMS = ("things_eeg2_bids", "things_eeg2_source")
SOURCE_FOLDERS = ("sourcedata", "source_data", "")
_NAME = re.compile(
    r"(?P<subject>sub-[^_]+)_ses-(?P<session>\d+)_task-(?P<task>test|train)"
    r"(_(?:part|run)-(?P<run>\d+))?_eeg$"
)


def tables(
    root: Path,
    form: str,
    subjects: Sequence[str],
    sessions: Sequence[int] | None = None,
    n_channels: int | None = None,
) -> StudyTables:
    """List recordings, events and images of the BIDS or source form, checked.

    Parameters
    ----------
    root : Path, the BIDS data set, or the folder that holds `sourcedata/` (or `source_data/`);
        either with `image_set/` in it
    form : 'things_eeg2_bids' or 'things_eeg2_source'
    subjects : sequence of str, "sub-01"; empty takes all there are
    sessions : sequence of int, default 1 to 4
    n_channels : int, refuse another number of EEG channels; default 63

    Returns
    -------
    StudyTables, one recording for each task ("test", "train") and run ("" or "01" ...)

    Raises
    ------
    DatasetError
        Missing subject, session, run or file; events that contradict the markers, the image set or
        each other; images that were not shown; channels or rates that do not fit; a copy.
    """
    if form not in FORMS:
        raise DatasetError(f"form {form!r} is not one of {', '.join(FORMS)}")
    root, wanted = Path(root), tuple(dict.fromkeys(sessions or SESSIONS))
    find, read_events = {
        "things_eeg2_bids": (_find_bids, bids_events),
        "things_eeg2_source": (_find_source, source_events),
    }[form]
    image_set = load_image_set(root)
    found = find(root)
    chosen = choose_subjects(subjects, sorted(found["subject"].unique()), root)
    found = found[found["subject"].isin(chosen)]
    _require_runs(found, chosen, wanted, root)
    found = found[found["session"].astype(int).isin(wanted)].assign(form=form)
    recordings, events, n_dropped = RecordingList(n_channels or len(CHANNELS)), [], 0
    for row in found.to_dict("records"):
        raw = _header(row, root)
        sfreq = raw.info["sfreq"]
        recordings.add(row, raw.ch_names, sfreq, raw.get_data(stop=min(raw.n_times, int(sfreq))))
        shown, dropped = read_events(row, root, raw, image_set)
        n_dropped += dropped
        part = {k: row[k] for k in ("subject", "session", "run")}
        events.append(shown.assign(**part, trial=np.arange(len(shown))))
    check_coverage(pd.concat(events), image_set, wanted, root)
    notes = {
        "form": form, "unit": "volts", "transductive": False, "sessions": list(wanted),
        "n_targets_dropped": n_dropped,
        "identity": "tot_img_number of events.tsv" if form == "things_eeg2_bids" else
        "tot_img_number of the behaviour files",
    }  # fmt: skip
    return assemble("continuous", recordings, events, image_set, notes)


def read_raw(recording: Mapping[str, Any], root: Path) -> mne.io.BaseRaw:
    """Read one run.

    Parameters
    ----------
    recording : row of `StudyTables.recordings`
    root : Path

    Returns
    -------
    mne.io.BaseRaw, volts, EEG channels only, with standard positions as in the other forms

    Raises
    ------
    DatasetError
        A file that is missing, damaged or shorter than its sidecar says.
    sgdm_utils.signals.quality.ChannelError
        A NaN or flat channel.
    """
    root = Path(root)
    if recording["form"] == "things_eeg2_bids":
        raw = read_recording(recording, root).pick("eeg")
    else:
        raw = _open(recording, root).load_data(verbose="error")
        for name in raw.ch_names:  # one by one: all at once would double the memory
            check_signal(raw.get_data(name), [name], str(root / recording["path"]))
    check_channels(raw.ch_names, recording["path"], len(raw.ch_names))
    return raw.set_montage(STANDARD_MONTAGE, verbose="error")


def _find_bids(root: Path) -> pd.DataFrame:
    if not (root / "dataset_description.json").is_file():
        raise DatasetError(
            f"{root} is no BIDS data set: dataset_description.json is not there. Is it one of the "
            "other forms of THINGS-EEG2?"
        )
    found = mne_bids.find_matching_paths(
        root, datatypes="eeg", suffixes="eeg", extensions=EEG_EXTENSIONS, tasks=["test", "train"]
    )
    return _listing([p.fpath for p in found], root)


def _find_source(root: Path) -> pd.DataFrame:
    base = [root / n for n in SOURCE_FOLDERS if any((root / n).glob("sub-*/ses-*/eeg/*.vhdr"))]
    if len(base) > 1:
        raise DatasetError(
            f"{root}: subjects are there twice, in {' and in '.join(map(str, base))}: remove one"
        )
    return _listing([p for b in base for p in b.glob("sub-*/ses-*/eeg/*_eeg.vhdr")], root)


def _listing(files: Sequence[Path], root: Path) -> pd.DataFrame:
    rows = []
    for path in files:
        match = _NAME.match(path.stem)
        if match:  # the resting-state runs have no pictures
            row = {k: v or "" for k, v in match.groupdict().items()}
            rows.append(row | {"path": path.relative_to(root).as_posix()})
    if not rows:
        raise DatasetError(
            f"{root}: no recording sub-XX_ses-YY_task-test or -train in sub-*/ses-*/eeg/"
        )
    order = ["subject", "session", "task", "run", "path"]
    return pd.DataFrame(rows, dtype=object)[order].sort_values(order).reset_index(drop=True)


def _require_runs(
    found: pd.DataFrame, subjects: Sequence[str], sessions: Sequence[int], root: Path
) -> None:
    """Every session that is wanted has the test run and the same training runs, from 1 on."""
    last = pd.to_numeric(found["run"][found["task"] == "train"]).max()
    runs = [""] if np.isnan(last) else [f"{i:02d}" for i in range(1, int(last) + 1)]
    for subject in subjects:
        own = found[found["subject"] == subject]
        there = sorted(own["session"].unique())
        for number in sessions:
            part = own[own["session"].astype(int) == number]
            if part.empty:
                raise DatasetError(
                    f"{root}: session missing: {subject} has the sessions {', '.join(there)}, "
                    f"{', '.join(map(str, sessions))} are wanted. Download session {number:02d}, or "
                    "name the sessions to be used (sessions)"
                )
            names = [" ".join(x).strip() for x in zip(part["task"], part["run"], strict=True)]
            missing = [n for n in ("test", *(f"train {r}".strip() for r in runs)) if n not in names]
            double = [n for n in names if names.count(n) > 1]
            if missing or double:
                what = f"no run {missing[0]!r}" if missing else f"run {double[0]!r} twice"
                raise DatasetError(
                    f"{root}: session {number:02d} of {subject} has {what}; there is "
                    f"{', '.join(names)}"
                )


def _header(recording: Mapping[str, Any], root: Path) -> mne.io.BaseRaw:
    """Open a recording for its channels, rate and length; nothing is loaded."""
    raw = _open(recording, root)
    if recording["form"] == "things_eeg2_source":
        return raw
    # not read_recording: it turns thousands of events into annotations, 0.4 s for each run
    path = mne_bids.get_bids_path_from_fname(root / recording["path"])
    bids.check_channel_table(path)
    bids.check_duration(raw, path)
    sidecar = path.find_matching_sidecar("channels", ".tsv", on_error="ignore")
    if sidecar is not None:
        table = read_tsv(Path(sidecar))
        if "type" in table:
            raw.pick(table["name"][table["type"] == "EEG"].tolist())
    return raw


def _open(recording: Mapping[str, Any], root: Path) -> mne.io.BaseRaw:
    path = root / recording["path"]
    try:
        return mne.io.read_raw(path, preload=False, verbose="error").pick("eeg")
    except Exception as error:  # readers raise whatever a broken header leads them to
        raise DatasetError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Are the files that belong to "
            "it (.eeg, .vmrk) beside it, and whole? Download the recording again"
        ) from error
