"""Recordings in BIDS: find them, read them, refuse what cannot be analysed.

One reader serves the simulated recording, public BIDS studies and a user's own. Every error names
the file, what is wrong in it and what to do. What was shown when is in `events`, who is trained on
in `splits`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mne
import mne_bids
import numpy as np
import pandas as pd

from sgdm_utils.signals.quality import check_signal

EEG_EXTENSIONS = [".vhdr", ".edf", ".bdf", ".set"]

# MNE 1.13 renamed its template of the 10-05 system; the positions are the same
STANDARD_MONTAGE = next(
    name
    for name in ("colin27_1005", "standard_1005")
    if name in mne.channels.get_builtin_montages()
)


class DatasetError(ValueError):
    """A recording or its events cannot be used as they are: the message says where."""


def find_recordings(
    bids_root: Path, task: str | None = None, subjects: Iterable[str] | None = None
) -> pd.DataFrame:
    """List the EEG recordings of a BIDS data set.

    Parameters
    ----------
    bids_root : Path
    task : str, optional when the data set has one task only
    subjects : names with or without `sub-`, optional

    Returns
    -------
    DataFrame with `subject` ("sub-01"), `session`, `task`, `run` (strings, "" where the data set
    has none) and `path` (relative to `bids_root`), sorted by these columns

    Raises
    ------
    DatasetError
        When there is no such folder, recording, task or subject.
    """
    bids_root = Path(bids_root)
    if not (bids_root / "dataset_description.json").is_file():
        raise DatasetError(
            f"{bids_root} is no BIDS data set: dataset_description.json is not there. Put the "
            "data set under data/raw/<name> and give that name, or convert it first "
            "(data/README.md says how)"
        )
    found = mne_bids.find_matching_paths(
        bids_root, datatypes="eeg", suffixes="eeg", extensions=EEG_EXTENSIONS, check=True,
        ignore_nosub=True,  # recordings in derivatives/ are no second recording
    )  # fmt: skip
    table = pd.DataFrame(
        {
            "subject": [f"sub-{p.subject}" for p in found],
            "session": [p.session or "" for p in found],
            "task": [p.task or "" for p in found],
            "run": [p.run or "" for p in found],
            "path": [p.fpath.relative_to(bids_root).as_posix() for p in found],
        },
        dtype=object,
    )
    if table.empty:
        raise DatasetError(
            f"{bids_root}: no EEG recording ({', '.join(EEG_EXTENSIONS)}) in sub-*/[ses-*/]eeg/"
        )
    tasks = sorted(table["task"].unique())
    if task and task not in tasks:
        raise DatasetError(f"{bids_root}: no task {task!r}; there is {', '.join(tasks)}")
    if not task and len(tasks) > 1:
        raise DatasetError(f"{bids_root} has the tasks {', '.join(tasks)}: name one of them (task)")
    table = table[table["task"] == (task or tasks[0])]
    if subjects is not None:
        wanted = [f"sub-{str(s).removeprefix('sub-')}" for s in subjects]
        missing = sorted(set(wanted) - set(table["subject"]))
        if missing:
            present = ", ".join(sorted(table["subject"].unique()))
            raise DatasetError(
                f"{bids_root}: no recording of {', '.join(missing)}; there is {present}"
            )
        table = table[table["subject"].isin(wanted)]
    return table.sort_values(list(table.columns)).reset_index(drop=True)


def read_recording(recording: Any, bids_root: Path, preload: bool = True) -> mne.io.BaseRaw:
    """Read one recording and refuse what cannot be analysed.

    Channels with `status` bad in channels.tsv may be flat or hold NaN: they come back in
    `info["bads"]` with NaN set to 0, to be interpolated. When an EEG channel has no position,
    all of them get one by name (in any case) from the standard 10-05 montage.

    Parameters
    ----------
    recording : row of `find_recordings` (anything with `recording["path"]`)
    bids_root : Path
    preload : bool, load the samples and check them; False reads the header only

    Returns
    -------
    mne.io.BaseRaw, volts, with electrode positions

    Raises
    ------
    DatasetError
        A file that is unreadable or shorter than its sidecar says; files that disagree about the
        channels; an electrode without a position.
    sgdm_utils.signals.quality.ChannelError
        A NaN or flat channel that is not marked as bad.
    """
    path = Path(bids_root) / recording["path"]
    bids_path = mne_bids.get_bids_path_from_fname(path)
    check_channel_table(bids_path)
    raw = _open(mne_bids.read_raw_bids, bids_path)
    check_duration(raw, bids_path)
    eeg = mne.pick_types(raw.info, eeg=True, exclude=[])
    if not len(eeg):
        raise DatasetError(
            f"{path}: no channel of type EEG; see the column `type` of its channels.tsv"
        )
    _ensure_positions(raw, path)
    if preload:
        raw.load_data(verbose="error")
        used = mne.pick_types(raw.info, eeg=True, exclude="bads")
        check_signal(raw.get_data(used), [raw.ch_names[i] for i in used], str(path))
        bads = [raw.ch_names[i] for i in eeg if raw.ch_names[i] in raw.info["bads"]]
        if bads:  # one NaN would spread to all channels through ICA and the reference
            raw.apply_function(lambda x: np.nan_to_num(x, posinf=0.0, neginf=0.0), picks=bads)
    return raw


def check_recordings(recordings: pd.DataFrame, bids_root: Path) -> None:
    """Refuse a study whose recordings cannot be put side by side.

    Raises
    ------
    DatasetError
        A sampling rate or a set of EEG channels that differs from the first recording's; two
        recordings with the same signal (a copy under another name).
    """
    first: mne.io.BaseRaw | None = None
    seen: dict[str, str] = {}
    for _, recording in recordings.iterrows():
        raw = read_recording(recording, bids_root, preload=False)
        where, start = recording["path"], recordings.iloc[0]["path"]
        if first is None:
            first = raw
        if raw.info["sfreq"] != first.info["sfreq"]:
            raise DatasetError(
                f"{where} was sampled at {raw.info['sfreq']:g} Hz, {start} at "
                f"{first.info['sfreq']:g} Hz. Resample one of them in the data set, or leave it "
                "out (task, subjects)"
            )
        names, expected = raw.copy().pick("eeg").ch_names, first.copy().pick("eeg").ch_names
        if set(names) != set(expected):
            extra, missing = sorted(set(names) - set(expected)), sorted(set(expected) - set(names))
            raise DatasetError(
                f"{where} has other EEG channels than {start}: {', '.join(missing) or 'none'} "
                f"missing, {', '.join(extra) or 'none'} new. If a channel was renamed, give it "
                "one name in the data file's header and in channels.tsv"
            )
        digest = _signal_digest(raw)
        if digest in seen:
            raise DatasetError(
                f"{where} and {seen[digest]} hold the same signal: a recording was copied. "
                "Counted twice it would stand in training and test at once; remove one of them"
            )
        seen[digest] = where


def _signal_digest(raw: mne.io.BaseRaw, seconds: float = 30.0) -> str:
    """Digest of the first half minute as decoded: headers differ between copies, samples do not."""
    block = raw.get_data(stop=min(raw.n_times, int(seconds * raw.info["sfreq"])))
    return hashlib.sha256(np.ascontiguousarray(block, dtype=np.float64)).hexdigest()


def _open(reader: Callable[..., mne.io.BaseRaw], path: Path | mne_bids.BIDSPath) -> mne.io.BaseRaw:
    try:
        return reader(path, verbose="error")
    except Exception as error:  # readers raise whatever a broken header leads them to
        raise DatasetError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Is the file, or one that "
            "belongs to it, missing or damaged? Copy the recording again"
        ) from error


def check_duration(raw: mne.io.BaseRaw, bids_path: mne_bids.BIDSPath) -> None:
    """Compare the length with the sidecar's: a truncated file is otherwise a shorter recording."""
    sidecar = bids_path.find_matching_sidecar("eeg", ".json", on_error="ignore")
    stated = None
    if sidecar is not None:
        stated = json.loads(Path(sidecar).read_text(encoding="utf-8-sig")).get("RecordingDuration")
    length = raw.n_times / raw.info["sfreq"]
    if isinstance(stated, int | float) and length < stated - 1:  # many sidecars are rounded
        raise DatasetError(
            f"{bids_path.fpath} holds {length:.1f} s, {Path(sidecar).name} says {stated:.1f} s: "
            "the file was truncated. Copy the recording again, or correct RecordingDuration"
        )


def check_channel_table(bids_path: mne_bids.BIDSPath) -> None:
    """Compare channels.tsv with the header of the data file; say which names differ."""
    sidecar = bids_path.find_matching_sidecar("channels", ".tsv", on_error="ignore")
    if sidecar is None:
        return
    names = read_tsv(Path(sidecar)).get("name", pd.Series(dtype=object)).tolist()
    double = sorted({n for n in names if [str(m).lower() for m in names].count(str(n).lower()) > 1})
    if double:
        raise DatasetError(
            f"{sidecar}: channel name {double[0]!r} occurs more than once. Make it unique"
        )
    header = _open(mne.io.read_raw, bids_path.fpath).ch_names
    extra, missing = [n for n in names if n not in header], [n for n in header if n not in names]
    if names and (extra or missing):
        raise DatasetError(
            f"{sidecar} lists {', '.join(map(str, extra)) or 'nothing'} that "
            f"{bids_path.fpath.name} does not have, and lacks {', '.join(missing) or 'nothing'} "
            "that it has. Was a channel renamed in one of the two files? Use one name in both"
        )


def _ensure_positions(raw: mne.io.BaseRaw, path: Path) -> None:
    """Give electrodes without a position one from the standard 10-05 montage, by name."""
    picks = mne.pick_types(raw.info, eeg=True, exclude=[])
    place = np.array([raw.info["chs"][i]["loc"][:3] for i in picks])
    known = np.isfinite(place).all(1) & (place != 0).any(1)
    if known.all():
        return
    standard = mne.channels.make_standard_montage(STANDARD_MONTAGE)
    available = {name.lower() for name in standard.ch_names}
    for i in picks[~known]:
        if raw.ch_names[i].lower() not in available:
            raise DatasetError(
                f"{path}: channel {raw.ch_names[i]!r} has no position in electrodes.tsv, and no "
                "position of the standard 10-05 montage has that name. Add electrodes.tsv, rename "
                "the channel, or give it another type (e.g. MISC) in channels.tsv"
            )
    # all of them, so that measured and standard positions never mix; only EEG channels are touched
    raw.set_montage(standard, match_case=False, on_missing="ignore", verbose="error")


def read_tsv(path: Path) -> pd.DataFrame:
    """Read a BIDS table as text: byte order mark skipped, `n/a` and empty cells missing."""
    try:
        table = pd.read_csv(
            path, sep="\t", dtype=object, encoding="utf-8-sig", na_values=["n/a", ""],
            keep_default_na=False, quoting=3,
        )  # fmt: skip
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is no table of tab-separated UTF-8 text: {error}") from error
    return table.rename(columns=str.strip)
