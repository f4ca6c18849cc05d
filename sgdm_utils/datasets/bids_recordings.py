"""Recordings in BIDS: find them, read them, refuse what cannot be analysed.

One reader serves the simulated recording, public BIDS studies and a user's own. Every error names
the file, what is wrong in it and what to do. What was shown when is in `bids`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mne
import mne_bids
import numpy as np
import pandas as pd

from sgdm_utils.datasets.pauses import SEAM, carry_bad, find_pauses, mark_seams
from sgdm_utils.datasets.positions import place_electrodes
from sgdm_utils.datasets.same_signal import require_different
from sgdm_utils.datasets.sidecars import entities, find_sidecar, read_tsv
from sgdm_utils.datasets.tables import (
    check_magnitude,
    check_signal,
    eeg_names,
    in_order,
    natural_order,
)
from sgdm_utils.datasets.unreadable import explain, json_problem, require_beside
from sgdm_utils.errors import DatasetError, reading
from sgdm_utils.workflow.content import require_content
from sgdm_utils.workflow.formats import read_json

EEG_EXTENSIONS = [".vhdr", ".edf", ".bdf", ".set"]
KEY = ("sub", "ses", "task", "acq", "run")  # entities of a raw EEG recording, BIDS 1.10.0
#: What no electrode of the 10-05 system is called, and the type of such a channel.
_NO_EEG = {
    "eog": r".*eog.*",
    "ecg": r".*e[ck]g.*",
    "emg": r".*emg.*",
    "misc": r"(status|trig(ger)?|sti(m)?|marker|event|photo(diode)?|diode|gsr|eda|resp|temp|acc)"
    r"[ _-]?[\dxyz]*",
}


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
    has none; "acq-low_01" where an acquisition is named) and `path` (relative to `bids_root`),
    sorted by these columns

    Raises
    ------
    DatasetError
        When there is no such folder, recording, task or subject; a name that leaves open whether
        two files are two recordings.
    """
    bids_root = Path(bids_root)
    if not (bids_root / "dataset_description.json").is_file():
        raise DatasetError(
            f"{bids_root} is no BIDS data set: dataset_description.json is not there. Put the "
            "data set under data/raw/<name> and give that name, or convert it first "
            "(data/README.md says how)"
        )
    table = pd.DataFrame([_row_of(p, bids_root) for p in _list_files(bids_root)], dtype=object)
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
    require_content(*(bids_root / path for path in table["path"]))
    _refuse_unclear_names(table, bids_root)
    table = table[["subject", "session", "task", "run", "path"]]
    return table.sort_values(list(table.columns), key=natural_order).reset_index(drop=True)


def choose_sessions(
    recordings: pd.DataFrame, sessions: Sequence[int | str], bids_root: Path
) -> pd.DataFrame:
    """Keep some sessions; 1, "01" and "ses-01" name the same.

    Raises
    ------
    DatasetError
        A subject without one of them.
    """

    def bare(name: int | str) -> str:
        return str(name).removeprefix("ses-").lstrip("0") or "0"

    wanted = {bare(s): s for s in sessions}
    kept = recordings[recordings["session"].map(bare).isin(wanted)]
    for subject, group in recordings.groupby("subject"):
        lacking = sorted(set(wanted) - set(group["session"].map(bare)))
        if lacking:
            raise DatasetError(
                f"{bids_root}: {subject} has no session {wanted[lacking[0]]!r}; there is "
                f"{', '.join(sorted(set(group['session']))) or 'none'}. Copy it, or name fewer "
                "(sessions)"
            )
    return kept.reset_index(drop=True)


def require_channels(recording: Any, bids_root: Path, n_channels: int) -> None:
    """Refuse another number of EEG channels than the study is configured for.

    Parameters
    ----------
    recording : row of `check_recordings`
    bids_root : Path
    n_channels : int

    Raises
    ------
    DatasetError
    """
    count = len(recording["channels"])
    if count != n_channels:
        raise DatasetError(
            f"{Path(bids_root) / recording['path']} has {count} EEG channels, {n_channels} are "
            "configured (n_channels)"
        )


def _list_files(root: Path) -> list[Path]:
    """Recordings below sub-*/[ses-*/]eeg/; those in derivatives/ are no second recording."""
    folders = [*root.glob("sub-*/eeg"), *root.glob("sub-*/ses-*/eeg")]
    files = [path for folder in folders for path in folder.iterdir()]
    endings = tuple(f"_eeg{extension}" for extension in EEG_EXTENSIONS)
    return sorted(path for path in files if path.name.lower().endswith(endings))


def _row_of(path: Path, root: Path) -> dict[str, Any]:
    """Return the key of a recording. An `acq-` is another recording, so it goes into `run`."""
    named = entities(path)
    acquisition = f"acq-{named['acq']}" if "acq" in named else ""
    return {
        "subject": f"sub-{named.get('sub', '')}",
        "session": named.get("ses", ""),
        "task": named.get("task", ""),
        "run": "_".join(filter(None, [acquisition, named.get("run", "")])),
        "path": path.relative_to(root).as_posix(),
        "others": " ".join(f"{k}-{v}" if v else k for k, v in named.items() if k not in KEY),
    }


def _refuse_unclear_names(table: pd.DataFrame, root: Path) -> None:
    """Refuse names that leave open whether two files are two recordings."""
    for _, row in table.iterrows():
        path = root / row["path"]
        if row["others"]:
            raise DatasetError(
                f"{path}: raw EEG in BIDS has the entities {', '.join(KEY)}, not {row['others']}: "
                "are these new trials, or some that are there already? If it is another recording, "
                "name it by an acq- or run- of its own; move a processed copy (proc-, desc-, rec-) "
                "to derivatives/; make the parts of a split recording runs, with onsets counted "
                "from the first sample of each"
            )
        if path.suffix != path.suffix.lower():
            raise DatasetError(
                f"{path}: BIDS writes the extension in small letters. Rename the file to "
                f"{path.with_suffix(path.suffix.lower()).name}"
            )
    plain = table.assign(run=table["run"].str.replace(r"(^|_)0+(?=\d+$)", r"\1", regex=True))
    double = plain.duplicated(["subject", "session", "task", "run"], keep=False)
    if double.any():
        keys = plain[["subject", "session", "task", "run"]]
        files = table["path"][(keys == keys.loc[double.idxmax()]).all(axis=1)].tolist()
        raise DatasetError(
            f"{root}: {' and '.join(files)} are files of one recording, whose trials would be "
            "counted twice. Keep one of them and move the others out of sub-*/ (to sourcedata/), or "
            "give another recording a run of its own"
        )


def read_recording(recording: Any, bids_root: Path, preload: bool = True) -> mne.io.BaseRaw:
    """Read one recording and refuse what cannot be analysed.

    A channel that is typed EEG and called EOG1, ECG, Status or alike is typed by its name: it would
    enter reference and whitening. Channels with `status` bad in channels.tsv may be flat or hold
    NaN: they come back in `info["bads"]` with NaN set to 0, to be interpolated. Where positions
    come from: `positions.place_electrodes`.

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
    sgdm_utils.errors.ChannelError
        A NaN or flat channel that is not marked as bad.
    """
    path = Path(bids_root) / recording["path"]
    with reading(path, "a recording", "Copy it again, or export it again"):
        return _read_recording(path, recording, bids_root, preload)


def _read_recording(path: Path, recording: Any, bids_root: Path, preload: bool) -> mne.io.BaseRaw:
    raw, _ = _open_recording(path, Path(bids_root))
    if "channels" in recording:
        raw = in_order(raw, recording["channels"], str(path))
    if preload:
        raw.load_data(verbose="error")
        used = mne.pick_types(raw.info, eeg=True, exclude="bads")
        if not len(used):
            raise DatasetError(
                f"{path}: all EEG channels are marked as bad (column status of its channels.tsv). "
                "Mark the good ones as good, or leave the recording out"
            )
        check_signal(raw.get_data(used), [raw.ch_names[i] for i in used], str(path))
        bads = [name for name in eeg_names(raw) if name in raw.info["bads"]]
        if bads:  # one NaN would spread to all channels through ICA and the reference
            raw.apply_function(lambda x: np.nan_to_num(x, posinf=0.0, neginf=0.0), picks=bads)
    return raw


def _types_by_name(raw: mne.io.BaseRaw) -> dict[str, str]:
    """Types of the channels that are typed EEG and whose names say that they are none."""
    return {
        name: kind
        for name in eeg_names(raw)
        for kind, pattern in _NO_EEG.items()
        if re.fullmatch(pattern, name, re.IGNORECASE)
    }


def _open_recording(path: Path, root: Path) -> tuple[mne.io.BaseRaw, str]:
    """Header of a recording, checked, and where the positions of its electrodes are from."""
    require_content(*sorted(path.parent.glob(path.name.rsplit("_", 1)[0] + "_*")))
    bids_path = mne_bids.get_bids_path_from_fname(path)
    header = check_channel_table(bids_path)
    # the names tell which row of channels.tsv is whose, so its order may be another
    raw = _open(partial(mne_bids.read_raw_bids, on_ch_mismatch="reorder"), bids_path)
    check_duration(raw, bids_path)
    raw.set_channel_types(_types_by_name(raw), verbose="error")
    carry_bad(raw, header)
    pauses = find_pauses(path, header, raw)
    if pauses:
        events = find_sidecar(path, root, "events.tsv")
        mark_seams(raw, path, pauses, read_tsv(events) if events else None)
    if not eeg_names(raw):
        raise DatasetError(
            f"{path}: no channel of type EEG; see the column `type` of its channels.tsv"
        )
    return raw, place_electrodes(raw, header.get_montage(), path, root)


def check_recordings(
    recordings: pd.DataFrame, bids_root: Path
) -> tuple[pd.DataFrame, list[mne.io.BaseRaw]]:
    """Refuse a study whose recordings cannot be put side by side.

    Returns
    -------
    table : DataFrame, `recordings` with `channels` (names of the EEG channels in the order of the
        first recording; `read_recording` puts the others into it), `positions` (where those of the
        electrodes are from) and `seams` (pauses within)
    raws : list of mne.io.BaseRaw, opened, not loaded

    Raises
    ------
    DatasetError
        A sampling rate or a set of EEG channels that differs from the first recording's; values
        that are not volts.
    """
    first: mne.io.BaseRaw | None = None
    positions, raws = [], []
    for _, recording in recordings.iterrows():
        path = Path(bids_root) / recording["path"]
        with reading(path, "a recording", "Copy it again, or export it again"):
            raw, source = _open_recording(path, Path(bids_root))
            check_magnitude(raw, str(path))
        positions.append(source)
        raws.append(raw)
        where, start = recording["path"], recordings.iloc[0]["path"]
        if first is None:
            first = raw
        if raw.info["sfreq"] != first.info["sfreq"]:
            raise DatasetError(
                f"{where} was sampled at {raw.info['sfreq']:g} Hz, {start} at "
                f"{first.info['sfreq']:g} Hz. Resample one of them in the data set, or leave it "
                "out (task, subjects)"
            )
        names, expected = eeg_names(raw), eeg_names(first)
        if set(names) != set(expected):
            extra, missing = sorted(set(names) - set(expected)), sorted(set(expected) - set(names))
            raise DatasetError(
                f"{where} has other EEG channels than {start}: {', '.join(missing) or 'none'} "
                f"missing, {', '.join(extra) or 'none'} new. If a channel was renamed, give it "
                "one name in the data file's header and in channels.tsv"
            )
    channels = [eeg_names(first) for _ in positions]
    seams = [int((raw.annotations.description == SEAM).sum()) for raw in raws]
    return recordings.assign(channels=channels, positions=positions, seams=seams), raws


def refuse_copies(
    recordings: pd.DataFrame, events: Sequence[pd.DataFrame], bids_root: Path
) -> None:
    """Refuse a recording that is there twice, also in another format, cropped or resampled.

    Parameters
    ----------
    recordings : DataFrame of `check_recordings`
    events : for each recording, its events with `onset_s` and `image_id`
    bids_root : Path

    Raises
    ------
    DatasetError
        See `same_signal.require_different`.
    """
    files = [Path(bids_root) / path for path in recordings["path"]]
    require_different(files, events, recordings["channels"].iloc[0])


def _open(reader: Callable[..., mne.io.BaseRaw], path: Path | mne_bids.BIDSPath) -> mne.io.BaseRaw:
    require_beside(Path(path.fpath if isinstance(path, mne_bids.BIDSPath) else path))
    try:
        return reader(path, verbose="error")
    except Exception as error:  # readers raise whatever a header or a table leads them to
        raise DatasetError(explain(path, error)) from error


def check_duration(raw: mne.io.BaseRaw, bids_path: mne_bids.BIDSPath) -> None:
    """Compare the length with the sidecar's: a truncated file is otherwise a shorter recording."""
    sidecar = bids_path.find_matching_sidecar("eeg", ".json", on_error="ignore")
    stated = None
    if sidecar is not None:
        if problem := json_problem(Path(sidecar)):  # epochs in a format that knows of none
            raise DatasetError(problem)
        stated = read_json(Path(sidecar)).get("RecordingDuration")
    length = raw.n_times / raw.info["sfreq"]
    if isinstance(stated, int | float) and length < stated - 1:  # many sidecars are rounded
        raise DatasetError(
            f"{bids_path.fpath} holds {length:.1f} s, {Path(sidecar).name} says {stated:.1f} s: "
            "the file was truncated. Copy the recording again, or correct RecordingDuration"
        )


def check_channel_table(bids_path: mne_bids.BIDSPath) -> mne.io.BaseRaw:
    """Compare channels.tsv with the header of the data file; say which names differ.

    Returns
    -------
    mne.io.BaseRaw, the data file as opened without its sidecars
    """
    raw = _open(mne.io.read_raw, bids_path.fpath)
    taken = bids_path.find_matching_sidecar("channels", ".tsv", on_error="ignore")
    sidecar = find_sidecar(bids_path.fpath, bids_path.root, "channels.tsv")
    same = taken and sidecar and Path(taken).resolve() == sidecar.resolve()
    if (taken or sidecar) and not same:  # MNE-BIDS goes by other rules and is the one that reads it
        own = bids_path.fpath.stem.removesuffix("_eeg") + "_channels.tsv"
        raise DatasetError(
            f"{bids_path.fpath}: by the names of the files {sidecar or 'no channels.tsv'} applies to "
            f"it, MNE-BIDS takes {taken or 'none'}. Copy the right one to "
            f"{bids_path.fpath.with_name(own)}"
        )
    if sidecar is None:
        return raw
    names = read_tsv(Path(sidecar)).get("name", pd.Series(dtype=object)).fillna("n/a").tolist()
    double = sorted({n for n in names if [str(m).lower() for m in names].count(str(n).lower()) > 1})
    if double:
        raise DatasetError(
            f"{sidecar}: channel name {double[0]!r} occurs more than once. Make it unique"
        )
    header = raw.ch_names
    extra, missing = [n for n in names if n not in header], [n for n in header if n not in names]
    if names and (extra or missing):
        raise DatasetError(
            f"{sidecar} lists {', '.join(map(str, extra)) or 'nothing'} that "
            f"{bids_path.fpath.name} does not have, and lacks {', '.join(missing) or 'nothing'} "
            "that it has. Was a channel renamed in one of the two files? Use one name in both"
        )
    return raw
