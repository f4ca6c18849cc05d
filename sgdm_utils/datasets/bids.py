"""Recordings in BIDS: find them, read them, refuse what cannot be analysed.

One reader serves the simulated recording, public BIDS studies and a user's own. Every error names
the file, what is wrong in it and what to do. What was shown when is in `events`, who is trained on
in `splits`.

What was shown when: picture events of BIDS recordings, matched to the picture files.

What differs between studies is which column of `events.tsv` says what was seen; that is an
`EventMapping`. Every error names the file and its line, what is wrong there and what to do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import mne
import mne_bids
import numpy as np
import pandas as pd

from sgdm_utils.datasets.pauses import BESIDE_S, SEAM, beside_seams, find_pauses, mark_seams
from sgdm_utils.datasets.positions import AS_MEASURED, place_electrodes
from sgdm_utils.datasets.same_signal import require_different
from sgdm_utils.datasets.sidecars import entities, find_sidecar, read_tsv
from sgdm_utils.datasets.tables import check_magnitude, check_signal, in_order, natural_order
from sgdm_utils.datasets.unreadable import explain, json_problem, require_beside
from sgdm_utils.errors import DatasetError, reading
from sgdm_utils.stimuli.files import leading_out
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
    eeg = mne.pick_types(raw.info, eeg=True, exclude=[])
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
        bads = [raw.ch_names[i] for i in eeg if raw.ch_names[i] in raw.info["bads"]]
        if bads:  # one NaN would spread to all channels through ICA and the reference
            raw.apply_function(lambda x: np.nan_to_num(x, posinf=0.0, neginf=0.0), picks=bads)
    return raw


def _types_by_name(raw: mne.io.BaseRaw) -> dict[str, str]:
    """Types of the channels that are typed EEG and whose names say that they are none."""
    return {
        name: kind
        for name in (raw.ch_names[i] for i in mne.pick_types(raw.info, eeg=True, exclude=[]))
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
    pauses = find_pauses(path, header, raw)
    if pauses:
        events = find_sidecar(path, root, "events.tsv")
        mark_seams(raw, path, pauses, read_tsv(events) if events else None)
    if not len(mne.pick_types(raw.info, eeg=True, exclude=[])):
        raise DatasetError(
            f"{path}: no channel of type EEG; see the column `type` of its channels.tsv"
        )
    return raw, place_electrodes(raw, header.get_montage(), path, root)


def check_recordings(recordings: pd.DataFrame, bids_root: Path) -> pd.DataFrame:
    """Refuse a study whose recordings cannot be put side by side.

    Returns
    -------
    DataFrame, `recordings` with `channels` (names of the EEG channels in the order of the first
    recording; `read_recording` puts the others into it), `positions` (where those of the electrodes
    are from) and `seams` (pauses within)

    Raises
    ------
    DatasetError
        A sampling rate or a set of EEG channels that differs from the first recording's; values
        that are not volts.
    """
    return _check_recordings(recordings, bids_root)[0]


def _check_recordings(
    recordings: pd.DataFrame, bids_root: Path
) -> tuple[pd.DataFrame, list[mne.io.BaseRaw]]:
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
        names, expected = raw.copy().pick("eeg").ch_names, first.copy().pick("eeg").ch_names
        if set(names) != set(expected):
            extra, missing = sorted(set(names) - set(expected)), sorted(set(expected) - set(names))
            raise DatasetError(
                f"{where} has other EEG channels than {start}: {', '.join(missing) or 'none'} "
                f"missing, {', '.join(extra) or 'none'} new. If a channel was renamed, give it "
                "one name in the data file's header and in channels.tsv"
            )
    channels = [first.copy().pick("eeg").ch_names for _ in positions]
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


@dataclass(frozen=True)
class EventMapping:
    """Which columns of `events.tsv` say what was seen. Empty strings mean "no such column".

    Attributes
    ----------
    stimulus_column : str or None
        Picture file, relative to `stimuli/` of the data set. None where the pictures are not at
        hand: then only the label is known, which is enough to preprocess and to decode classes, not
        to rebuild.
    label_column : str or None
        Concept of the picture. None takes the picture's folder, or its name when it lies in no
        folder.
    keep : mapping of column to list of values
        Only these rows are picture events. Without it, rows whose stimulus is `n/a` are left out.
    margin_s : float, seconds
        Events closer than this to either end of a run, beyond it, or close to a marked pause in it, are
        left out (no room for an epoch there).
    """

    stimulus_column: str | None = "stim_file"
    label_column: str | None = None
    keep: Mapping[str, list] = field(default_factory=dict)
    margin_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("stimulus_column", "label_column"):
            # a notebook's parameter is a str, so "" says None there
            object.__setattr__(self, name, getattr(self, name) or None)
        if self.stimulus_column is None and self.label_column is None:
            raise DatasetError(
                "the event mapping names neither a stimulus column nor a label column, so nothing "
                "says what was seen. Set stimulus_column or label_column in config/<study>.yaml"
            )


def read_events(
    recording: Any, bids_root: Path, mapping: EventMapping, raw: mne.io.BaseRaw | None = None
) -> pd.DataFrame:
    """Read the picture events of one recording.

    Parameters
    ----------
    recording : row of `find_recordings`
    bids_root : Path
    mapping : EventMapping
    raw : mne.io.BaseRaw, the recording (its length and rate); read from the header when left out

    Returns
    -------
    DataFrame with `onset_s` (seconds from the first sample), `sample`, `image_id`, `concept`,
    `stim_file` ("" without pictures), sorted by onset; `attrs["left_out"]` counts what `margin_s`
    left out

    Raises
    ------
    DatasetError
        Missing file or column, no picture event, an onset that is no number, twice there or outside
        the recording, a stimulus that is not in `stimuli/`. The message names the line of
        events.tsv.
    """
    bids_root = Path(bids_root)
    path = bids_root / recording["path"]
    sidecar = find_sidecar(path, bids_root, "events.tsv")
    if sidecar is None:
        own = path.name.rsplit("_", 1)[0] + "_events.tsv"
        raise DatasetError(
            f"{path.with_name(own)} is missing, and no events.tsv of a folder above applies: nothing "
            "says when which picture was shown"
        )
    raw = read_recording(recording, bids_root, preload=False) if raw is None else raw
    table = read_tsv(sidecar)
    for column in ("onset", mapping.stimulus_column, mapping.label_column, *mapping.keep):
        if column is not None and column not in table:
            close = difflib.get_close_matches(column, table.columns, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise DatasetError(
                f"{sidecar}: no column {column!r}{hint}; there is {', '.join(table.columns)}. "
                "Set stimulus_column, label_column or keep in the config"
            )
    for column, values in mapping.keep.items():
        table = table[table[column].isin([str(v) for v in values])]
    stimulus, label = mapping.stimulus_column, mapping.label_column
    if not mapping.keep:
        table = table[table[stimulus or label].notna()]
    if table.empty:
        raise DatasetError(
            f"{sidecar}: no event is left after {mapping}. Compare its values with the file"
        )

    def refuse(rows: pd.Series, what: Callable[[int], str], remedy: str) -> None:
        if rows.any():
            i = table.index[rows.to_numpy()][0]  # line 1 is the header
            raise DatasetError(
                f"{sidecar}, line {i + 2} (of {rows.sum()} such lines): {what(i)}. {remedy}"
            )

    onset = pd.to_numeric(table["onset"], errors="coerce")
    refuse(
        ~(onset.abs() < 1e9),
        lambda i: f"the onset {table['onset'][i]!r} is no number",
        "Correct it",
    )
    duration = raw.n_times / raw.info["sfreq"]
    sample = (onset * raw.info["sfreq"]).round().astype(int)
    outside = (sample < 0) | (sample >= raw.n_times)
    refuse(  # also with a margin where most are outside: a wrong unit is no event near the end
        outside & (mapping.margin_s <= 0 or outside.mean() > 0.5),
        lambda i: f"the onset {onset[i]:g} s lies outside the recording (0 to {duration:.3f} s)",
        "BIDS onsets are seconds from the first sample: are these milliseconds or samples? If they "
        "are right, margin_s of 00_data (e.g. 1.0) leaves such events out",
    )
    inside = ~outside & (onset >= mapping.margin_s) & (onset < duration - mapping.margin_s)
    inside |= ~outside & (mapping.margin_s <= 0)
    inside &= ~beside_seams(raw, sample, mapping.margin_s)
    if not inside.any():
        raise DatasetError(
            f"{sidecar}: margin_s = {mapping.margin_s:g} leaves no event of the run (a pause in it "
            f"counts as an end, with {BESIDE_S:g} s at least). Lower it, or leave the run out"
        )
    left_out = len(table) - int(inside.sum())
    table, onset, sample = table[inside], onset[inside], sample[inside]
    refuse(
        sample.duplicated(),
        lambda i: f"there is an earlier event at the same sample (onset {onset[i]:g} s)",
        "Remove the doubled event, or choose the rows that are pictures (keep)",
    )
    for column in filter(None, (stimulus, label)):
        refuse(
            table[column].isna(),
            lambda i, c=column: f"{c} is n/a",
            "Fill it in or exclude it (keep)",
        )
    events = pd.DataFrame({"onset_s": onset, "sample": sample})
    if stimulus:
        files = table[stimulus].str.replace("\\", "/")
        folder = bids_root / "stimuli"
        left = leading_out(folder, files.unique(), bids_root)
        refuse(
            files.isin(list(left)),
            lambda i: f"the stimulus {files[i]!r} {left[files[i]]}",
            f"A table must not reach other files of this machine: copy the picture into {folder}. If "
            f"all pictures are kept elsewhere, let {folder} itself be a link to their folder",
        )
        require_content(*(folder / f for f in files.unique()))
        whole = {f: (folder / f).is_file() for f in files.unique()}
        refuse(
            ~files.map(whole).astype(bool),
            lambda i: f"the stimulus {files[i]!r} is not in {folder}{_hint(files[i], folder)}",
            "Put the picture there, or correct the column",
        )
        events["image_id"] = [PurePosixPath(f).with_suffix("").as_posix() for f in files]
        events["concept"] = table[label] if label else [_concept_of(f) for f in files]
    else:
        files = ""
        events["image_id"] = events["concept"] = table[label]
    events["stim_file"] = files
    events = events.sort_values("sample").reset_index(drop=True)
    events.attrs["left_out"] = left_out
    return events


def read_study(
    bids_root: Path,
    mapping: EventMapping,
    task: str | None = None,
    subjects: Iterable[str] | None = None,
    sessions: Sequence[int | str] | None = None,
    n_channels: int | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Check all recordings of a study and list all its picture events.

    Parameters
    ----------
    bids_root, task, subjects : see `find_recordings`
    mapping : EventMapping
    sessions : sessions that each subject has to have, others are left out; None takes all
    n_channels : int, refuse another number of EEG channels; None takes any

    Returns
    -------
    recordings : DataFrame, see `find_recordings`
    events : DataFrame with `subject`, `session`, `run`, `trial` (from 0 in each run), the columns
        of `read_events`, and `repetition` (how often this subject had seen the image before);
        `attrs["left_out"]` counts the events that `margin_s` left out
    """
    recordings = find_recordings(bids_root, task, subjects)
    if sessions:
        recordings = choose_sessions(recordings, sessions, bids_root)
    recordings, raws = _check_recordings(recordings, bids_root)
    if n_channels:
        require_channels(recordings.iloc[0], bids_root, n_channels)
    parts = []
    for (_, recording), raw in zip(recordings.iterrows(), raws, strict=True):
        part = read_events(recording, bids_root, mapping, raw)
        part.insert(0, "trial", np.arange(len(part)))
        for column in ("run", "session", "subject"):
            part.insert(0, column, recording[column])
        parts.append(part)
    refuse_copies(recordings, parts, bids_root)
    events = pd.concat(parts, ignore_index=True)
    events["repetition"] = events.groupby(["subject", "image_id"]).cumcount()
    events.attrs["left_out"] = sum(part.attrs["left_out"] for part in parts)
    return recordings, events


def reading_notes(
    recordings: pd.DataFrame, events: pd.DataFrame, bids_root: Path
) -> dict[str, str]:
    """What a reader of the study should know: channels that are no EEG, events left out, positions.

    Parameters
    ----------
    recordings, events : DataFrames of `read_study`; `attrs["left_out"]` is taken off `events`
    """
    raw = read_recording(recordings.iloc[0], bids_root, preload=False)
    kinds = zip(raw.ch_names, raw.get_channel_types(), strict=True)
    others = ", ".join(f"{name} ({kind})" for name, kind in kinds if kind != "eeg")
    return {
        "channels that are no EEG": others or "none",
        "events left out near the ends (margin_s)": str(events.attrs.pop("left_out", 0)),
    } | notes_of(recordings)


def notes_of(recordings: pd.DataFrame) -> dict[str, str]:
    """Return what has to be said: where electrode positions are from, which runs were paused."""
    notes, counts = {}, recordings["positions"].value_counts()
    if set(counts.index) != {AS_MEASURED}:
        notes["electrodes"] = " | ".join(f"{source} ({n} runs)" for source, n in counts.items())
    paused = recordings["path"][recordings["seams"] > 0]
    if len(paused):
        notes["paused"] = (
            f"{', '.join(paused)}: events within {BESIDE_S:g} s of a seam are left out"
        )
    return notes


def image_table(events: pd.DataFrame) -> pd.DataFrame:
    """List the images of a study, one row each, sorted by `image_id`.

    Parameters
    ----------
    events : DataFrame with `image_id`, `concept` and `stim_file`

    Returns
    -------
    DataFrame with `image_id`, `concept`, `stim_file`, `n_trials`

    Raises
    ------
    DatasetError
        When one image_id stands for two files or two concepts.
    """
    images = events[["image_id", "concept", "stim_file"]].drop_duplicates()
    double = images["image_id"][images["image_id"].duplicated()]
    if len(double):
        rows = images[images["image_id"] == double.iloc[0]]
        raise DatasetError(
            f"image {double.iloc[0]!r} has several files or concepts: "
            f"{'; '.join(rows['stim_file'] + ' is ' + rows['concept'])}. "
            "Rename the files, or correct the label column of events.tsv"
        )
    counts = events["image_id"].value_counts()
    images = images.assign(n_trials=images["image_id"].map(counts))
    return images.sort_values("image_id").reset_index(drop=True)


def _hint(name: str, folder: Path) -> str:
    """Say which picture may be meant: another case, the folder written twice, no extension."""
    paths = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    there = sorted(p.relative_to(folder).as_posix() for p in paths)
    low = PurePosixPath(name.lower().removeprefix("/").removeprefix("stimuli/"))
    for alike in (
        lambda p: p == low,
        lambda p: p.with_suffix("") == low,
        lambda p: p.name == low.name,
        lambda p: p.stem == low.stem,
    ):
        found = [t for t in there if alike(PurePosixPath(t.lower()))]
        if found:
            break
    else:
        found = difflib.get_close_matches(low.as_posix(), there, n=1)
    return f" (did you mean {' or '.join(map(repr, found[:3]))}?)" if found else ""


def _concept_of(stim_file: str) -> str:
    path = PurePosixPath(stim_file)
    return path.parent.name or path.stem
