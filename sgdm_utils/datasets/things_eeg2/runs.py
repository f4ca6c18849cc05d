"""THINGS-EEG2 as separate runs: the BIDS conversion, and the BrainVision source files.

A session is one run with the test images and five with training images. The marker in the recording
is one byte and the training images are 16,540, so it carries the first two digits of the number
only. Which picture it was is in the column `tot_img_number` of the BIDS conversion, or in the
behaviour file beside the BrainVision recording; the marker is used to check that the two tell the
same story.

References
----------
Gifford, Dwivedi, Roig & Cichy (2022), NeuroImage 264:119754; NEMAR nm000232 (BIDS conversion).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mne
import mne_bids
import numpy as np
import pandas as pd
import scipy.io

from sgdm_utils.datasets import bids_recordings
from sgdm_utils.datasets.bids_recordings import EEG_EXTENSIONS, read_recording
from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE
from sgdm_utils.datasets.pauses import find_pauses, mark_seams
from sgdm_utils.datasets.sidecars import read_tsv
from sgdm_utils.datasets.tables import StudyTables, check_signal, natural_order
from sgdm_utils.datasets.things_eeg2.design import (
    CHANNELS,
    SESSIONS,
    RecordingList,
    assemble,
    check_channels,
    check_coverage,
    check_spacing,
    choose_subjects,
)
from sgdm_utils.datasets.things_eeg2.images import identify, load_image_set, word_of
from sgdm_utils.datasets.unreadable import explain, require_beside
from sgdm_utils.errors import DatasetError, reading

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
    subjects, sessions, n_channels : see `readers.open_study`; no subject takes all there are

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
        with reading(root / row["path"], "a recording"):
            first = raw.get_data(stop=min(raw.n_times, int(sfreq)))
        recordings.add(row, raw.ch_names, sfreq, first)
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
    """Read one row of `StudyTables.recordings`: volts, EEG channels only, standard positions.

    Raises
    ------
    DatasetError, ChannelError
        A file that is missing, damaged or shorter than its sidecar says; a NaN or flat channel.
    """
    root = Path(root)
    if recording["form"] == "things_eeg2_bids":
        raw = read_recording(recording, root).pick("eeg")
    else:
        with reading(root / recording["path"], "a recording"):
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
    return (
        pd.DataFrame(rows, dtype=object)[order]
        .sort_values(order, key=natural_order)
        .reset_index(drop=True)
    )


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
    with reading(root / recording["path"], "a recording"):
        return _checked_header(recording, root)


def _checked_header(recording: Mapping[str, Any], root: Path) -> mne.io.BaseRaw:
    raw = _open(recording, root)
    if recording["form"] == "things_eeg2_source":
        path = root / recording["path"]
        mark_seams(raw, path, find_pauses(path, raw))
        return raw
    # not read_recording: it turns thousands of events into annotations, 0.4 s for each run
    path = mne_bids.get_bids_path_from_fname(root / recording["path"])
    bids_recordings.check_channel_table(path)
    bids_recordings.check_duration(raw, path)
    sidecar = path.find_matching_sidecar("channels", ".tsv", on_error="ignore")
    if sidecar is not None:
        table = read_tsv(Path(sidecar))
        if "type" in table:
            raw.pick(table["name"][table["type"] == "EEG"].tolist())
    return raw


def _open(recording: Mapping[str, Any], root: Path) -> mne.io.BaseRaw:
    path = root / recording["path"]
    require_beside(path)
    try:
        raw = mne.io.read_raw(path, preload=False, verbose="error").pick("eeg")
    except Exception as error:  # readers raise whatever a broken header leads them to
        raise DatasetError(explain(path, error)) from error
    if not raw.n_times:
        raise DatasetError(f"{path} holds no samples: its signal is missing. Copy it again")
    return raw


BIDS_COLUMNS = ("onset", "sample", "value", "trial_type", "tot_img_number", "category_name")
SHOWN, DROPPED = "image", ("target", "rest_marker")


def trigger_codes(number: int, partition: str) -> tuple[int, ...]:
    """Markers that the recording may carry for a picture.

    Training: the first two digits of the number (11742 -> 11). Test: the number itself, which the
    BIDS conversion has, or its first two digits.
    """
    first = int(str(number)[:2])
    return (first,) if partition == "train" else (number, first)


def bids_events(
    row: Mapping[str, Any], root: Path, raw: mne.io.BaseRaw, image_set: pd.DataFrame
) -> tuple[pd.DataFrame, int]:
    """Read the picture events of one BIDS run.

    Parameters
    ----------
    row : mapping with `path` and `task` ("train", "test")
    raw : mne.io.BaseRaw, its rate and length
    image_set : DataFrame of `images.load_image_set`

    Returns
    -------
    DataFrame with `number`, `image_id`, `concept`, `stim_file`, `partition`, `sample`, `onset_s`,
    in time order
    int, how many targets were left out

    Raises
    ------
    DatasetError
        A missing file or column, an unknown kind of event, onsets that contradict the samples or lie
        outside, doubled events, a marker or a name that does not belong to the picture. The message
        names the line.
    """
    path = root / row["path"]
    sidecar = path.with_name(path.stem.removesuffix("_eeg") + "_events.tsv")
    if not sidecar.is_file():
        raise DatasetError(f"{sidecar} is missing: nothing says when which picture was shown")
    table, partition = read_tsv(sidecar), row["task"]
    missing = [c for c in BIDS_COLUMNS if c not in table]
    if missing:
        raise DatasetError(
            f"{sidecar}: no column {missing[0]!r}; there is {', '.join(table)}. Is it the event "
            "table of the BIDS conversion?"
        )

    def refuse(wrong: pd.Series, what: Callable[[int], str]) -> None:
        if wrong.any():
            i = wrong.index[wrong.to_numpy()][0]  # line 1 is the header
            raise DatasetError(
                f"{sidecar}, line {i + 2} (of {int(wrong.sum())} such lines): {what(i)}"
            )

    kind = table["trial_type"]
    refuse(~kind.isin([SHOWN, *DROPPED]), lambda i: f"trial_type {kind[i]!r} is unknown")
    table = table[kind != "rest_marker"]
    onset = pd.to_numeric(table["onset"], errors="coerce")
    sample = (onset * raw.info["sfreq"]).round()
    stated = pd.to_numeric(table["sample"], errors="coerce")
    refuse(
        ~((sample - stated).abs() <= 1) | ~(sample.abs() < 1e12),
        lambda i: f"the onset {table['onset'][i]!r} s is not the sample {table['sample'][i]!r} at "
        f"{raw.info['sfreq']:g} Hz",
    )  # fmt: skip
    refuse(
        (sample < 0) | (sample >= raw.n_times),
        lambda i: (
            f"the event lies outside the recording (0 to {raw.times[-1]:.3f} s). Was the "
            "file truncated?"
        ),
    )
    table = table.assign(onset=onset, sample=sample.astype(int)).sort_values(
        "sample", kind="stable"
    )
    check_spacing(table["sample"].to_numpy(), raw.info["sfreq"], str(sidecar))
    shown = table[table["trial_type"] == SHOWN]
    number = pd.to_numeric(shown["tot_img_number"], errors="coerce")
    refuse(
        ~(number.abs() < 1e9),
        lambda i: f"no number of the picture ({shown['tot_img_number'][i]!r})",
    )
    pictures = identify(number.to_numpy(), partition, image_set, str(sidecar), "picture event")
    value = pd.to_numeric(shown["value"], errors="coerce")
    agrees = [v in trigger_codes(int(n), partition) for v, n in zip(value, number, strict=True)]
    refuse(
        pd.Series(~np.array(agrees, dtype=bool), index=shown.index),
        lambda i: (
            f"the marker {shown['value'][i]!r} does not belong to picture {number[i]:g}: "
            "marker and picture tell different stories"
        ),
    )
    _compare_names(shown["category_name"], pictures, image_set, refuse)
    pictures = pictures.assign(
        onset_s=shown["sample"].to_numpy() / raw.info["sfreq"], sample=shown["sample"].to_numpy()
    )
    return pictures, len(table) - len(shown)


def source_events(
    row: Mapping[str, Any], root: Path, raw: mne.io.BaseRaw, image_set: pd.DataFrame
) -> tuple[pd.DataFrame, int]:
    """Read the picture events of one BrainVision run, paired with its behaviour file.

    Parameters and results are those of `bids_events`. Refused are a missing or damaged file, more
    or fewer markers than pictures, the first marker that does not belong to its picture, doubled
    events and an unknown picture.
    """
    path, partition = root / row["path"], row["task"]
    behaviour = path.parent.parent / "beh" / (path.stem.removesuffix("_eeg") + "_beh.mat")
    log = _read_behaviour(behaviour)
    if not path.with_suffix(".vmrk").is_file():  # MNE reads the recording without its markers
        raise DatasetError(
            f"{path.with_suffix('.vmrk')} is missing: it tells when pictures came on"
        )
    marks = list(zip(raw.annotations.onset, raw.annotations.description, strict=True))
    if marks and marks[0][1].startswith("New Segment"):
        marks = marks[1:]
    if len(marks) != len(log):
        raise DatasetError(
            f"{path.with_suffix('.vmrk')} has {len(marks)} markers, {behaviour} has {len(log)} "
            "pictures: they cannot be paired. Was the recording truncated, or does the behaviour "
            "file belong to another run?"
        )
    sample = np.array([round(t * raw.info["sfreq"]) for t, _ in marks], dtype=np.int64)
    code = np.array([_code(text, path) for _, text in marks])
    check_spacing(sample, raw.info["sfreq"], str(path.with_suffix(".vmrk")))
    number = log["tot_img_number"].to_numpy()
    written = log["trigger_1"].to_numpy() if "trigger_1" in log else np.full(len(log), -1)
    above = 100 if partition == "train" else 201
    for i, (c, n, w) in enumerate(zip(code, number, written, strict=True)):
        # a target has a marker of its own, which no picture of the partition can have
        wrong = 0 < c < above if n == 0 else c not in trigger_codes(n, partition)
        if wrong or (w >= 0 and c != w):
            expected = "target" if n == 0 else f"picture {n}"
            extra = f", trigger_1 {w}" if w >= 0 else ""
            raise DatasetError(
                f"{path.with_suffix('.vmrk')}: marker {i + 1} is {c}, but row {i + 1} of "
                f"{behaviour.name} is {expected}{extra}: the two files do not belong together, or "
                "one has an event too many before this"
            )
    kept = number != 0
    pictures = identify(number[kept], partition, image_set, str(behaviour), "picture event")
    if "category_name" in log:
        names = log["category_name"][kept].reset_index(drop=True)

        def refuse(wrong: pd.Series, what: Callable[[int], str]) -> None:
            if wrong.any():
                i = int(np.flatnonzero(wrong)[0])
                at = np.flatnonzero(kept)[i] + 1
                raise DatasetError(f"{behaviour}, row {at}: {what(i)}")

        _compare_names(names, pictures, image_set, refuse)
    pictures = pictures.assign(onset_s=sample[kept] / raw.info["sfreq"], sample=sample[kept])
    return pictures, int((~kept).sum())


def _read_behaviour(path: Path) -> pd.DataFrame:
    """The rows of `data.images`: one for each picture, in the order of showing."""
    if not path.is_file():
        raise DatasetError(
            f"{path} is missing: the markers of the recording are ambiguous, only the behaviour "
            "file tells which picture was shown"
        )
    try:
        content = scipy.io.loadmat(path, squeeze_me=True)
    except Exception as error:  # scipy raises whatever a damaged file leads it to
        raise DatasetError(
            f"{path} cannot be read as a MATLAB file ({type(error).__name__}: {error}). Download "
            "it again"
        ) from error
    try:
        images = np.atleast_1d(content["data"]["images"].item())
        fields = images.dtype.names
        numbers = images["tot_img_number"]
        if numbers.ndim != 1:
            raise ValueError(f"numbers of shape {numbers.shape}")
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        there = ", ".join(k for k in content if not k.startswith("__"))
        raise DatasetError(
            f"{path}: no data.images with the field tot_img_number; there is {there or 'nothing'}. "
            "Is it the behaviour file of this experiment?"
        ) from error
    table = {"tot_img_number": [_whole(x, path) for x in numbers]}
    if "trigger_1" in fields:
        table["trigger_1"] = [_whole(x, path) for x in images["trigger_1"]]
    if "category_name" in fields:
        table["category_name"] = [str(x) if np.size(x) else "" for x in images["category_name"]]
    return pd.DataFrame(table)


def _whole(value: Any, path: Path) -> int:
    single = isinstance(value, int | float | np.number) or np.size(value) == 1
    try:
        number = float(np.asarray(value).item()) if single else np.nan
    except (TypeError, ValueError):
        number = np.nan
    if number % 1 != 0 or abs(number) > 1e9:  # NaN too
        raise DatasetError(f"{path}: {value!r} in data.images is no whole number")
    return int(number)


def _code(text: str, path: Path) -> int:
    match = re.fullmatch(r"Stimulus/S\s*(\d+)", text)
    if match is None:
        raise DatasetError(
            f"{path.with_suffix('.vmrk')}: marker {text!r} is no stimulus; markers and pictures are "
            "paired one by one, so nothing else may stand between them"
        )
    return int(match.group(1))


def _compare_names(
    names: pd.Series,
    pictures: pd.DataFrame,
    image_set: pd.DataFrame,
    refuse: Callable[[pd.Series, Callable[[int], str]], None],
) -> None:
    """The recording's name of the concept against the folder of the picture."""
    folder = pictures["image_id"].map(image_set.set_index("image_id")["folder"])
    folder.index = names.index
    known = names.notna() & (names != "")
    words, expected = names[known].astype(str).map(word_of), folder[known].map(word_of)
    refuse(
        words != expected,
        lambda i: (
            f"the picture is called {names[i]!r} there, and number "
            f"{pictures['number'].iloc[names.index.get_loc(i)]} of the image set is {folder[i]!r}. Is "
            "it the image set of this data set, in its order?"
        ),
    )
