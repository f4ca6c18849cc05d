"""THINGS-EEG1 (OpenNeuro ds003825): 50 people, 1,854 concepts, ten pictures a second.

BIDS with BrainVision files, so `bids` and `bids_recordings` do the reading. What is its own are four
habits of its `events.tsv`: `duration` is 50 and means milliseconds, `stim` is a Windows path that
starts with `stimuli\\`, numbers count from 0, and `sample` repeats the onset in samples. The pictures
are not in the data set; they go to `stimuli/<concept>/<file>.jpg` of its folder.

References
----------
Grootswagers, Zhou, Robinson, Hebart & Carlson (2022), Scientific Data 9:3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import mne
import numpy as np
import pandas as pd

from sgdm_utils.datasets import bids, bids_recordings, sidecars
from sgdm_utils.datasets.pauses import BAD, find_pauses, mark_seams
from sgdm_utils.datasets.tables import StudyTables
from sgdm_utils.errors import DatasetError, reading
from sgdm_utils.stimuli.files import require_inside

COLUMNS = (
    "onset", "duration", "eventnumber", "objectnumber", "object", "sequencenumber",
    "presentationnumber", "blocksequencenumber", "withinsequencenumber", "stimnumber", "stim",
    "istarget", "stimname", "response", "rt", "correct", "time_stimon", "time_stimoff", "stimdur",
    "sample",
)  # fmt: skip
SFREQ = 1000.0  # Hz
STIMULUS_MS = 50.0  # what `duration` holds; 50 s would outlast the picture a thousand times
PICTURES = (
    "The pictures of THINGS-EEG1 are not part of OpenNeuro ds003825: fetch those of the THINGS "
    "database (https://osf.io/jum2f/, research use) and put the folders of the concepts under "
    "stimuli/ of the data set"
)


def tables(
    root: Path,
    form: str,
    subjects: Sequence[str],
    sessions: Sequence[int] | None = None,
    n_channels: int | None = None,
) -> StudyTables:
    """List recordings, picture events and images of THINGS-EEG1, checked.

    Rows with `istarget` 1 are left out (the fixation mark asked for a response). The main stream
    shows every picture once; 200 pictures are shown twelve times each afterwards. These are no test
    set: their concepts are concepts of the main stream too. So `partition` stays "", the column
    `repeated` of `images` marks them, and a split by concept is to be made (`splits.assign_split`).

    Parameters
    ----------
    root : Path, folder with dataset_description.json, sub-*/ and stimuli/
    form : str, 'things_eeg1'
    subjects : sequence of str
    sessions : the data set has none: leave it out
    n_channels : int, refuse another number of EEG channels

    Returns
    -------
    StudyTables, continuous; `events` has the extra column `repeated`

    Raises
    ------
    DatasetError
        Whatever `find_recordings`, `check_recordings` and `read_events` refuse; a missing column, a
        duration other than 50 ms, a sample that is not 1000 times the onset, a stimulus that
        disagrees with its name or has no picture. The message names the line of events.tsv.
    """
    root = Path(root)
    if form != "things_eeg1":
        raise DatasetError(f"THINGS-EEG1 comes in the form 'things_eeg1', not {form!r}")
    if sessions is not None:
        raise DatasetError(f"{root}: THINGS-EEG1 was recorded in one session; leave `sessions` out")
    names = [f"sub-{str(s).removeprefix('sub-')}" for s in subjects]
    double = sorted({n for n in names if names.count(n) > 1})
    if double:
        raise DatasetError(f"subject {double[0]} is listed twice: name each once (subjects)")
    recordings = bids_recordings.find_recordings(root, "rsvp", names)
    # derivatives/ repeats the same people, filtered
    recordings = recordings[recordings["path"].str.startswith("sub-")].reset_index(drop=True)
    gone = sorted(set(names) - set(recordings["subject"]))
    if gone:
        raise DatasetError(
            f"{root}: no raw recording of {', '.join(gone)}. Fetch sub-*/eeg/ of OpenNeuro ds003825"
        )
    several = recordings[recordings["subject"].duplicated()]
    if len(several):
        raise DatasetError(
            f"{root / several['path'].iloc[0]}: a second recording of "
            f"{several['subject'].iloc[0]}; each person has one. Remove the copy"
        )
    for path in recordings["path"]:  # first: MNE-BIDS reads the events too, and names no line
        _read_table(root / path)
    recordings, _ = bids_recordings.check_recordings(recordings, root)
    parts, targets, pictures = [], 0, {}
    for _, recording in recordings.iterrows():
        part, n_targets = _read_events(recording, root, pictures, n_channels)
        parts.append(part)
        targets += n_targets
    bids_recordings.refuse_copies(recordings, parts, root)
    shown = pd.concat(parts, ignore_index=True)
    shown["repetition"] = shown.groupby(["subject", "image_id"]).cumcount()
    images = bids.image_table(shown)
    repeated = set(shown["image_id"][shown["repeated"]])
    images = images.assign(partition="", repeated=images["image_id"].isin(repeated))
    without = sorted(set(shown["subject"]) - set(shown["subject"][shown["repeated"]]))
    notes = {
        "transductive": False,
        "targets_left_out": targets,
        "repeated_images": len(repeated),
        "subjects_without_repeated_images": ", ".join(without) or "none",
        "duration": "50 in events.tsv is milliseconds; onsets alone are used",
        "split": (
            "none is published. The repeated pictures show concepts of the main stream, so they "
            "are no held-out test; split by concept. The column `repeated` marks them for noise "
            "ceilings"
        ),
    }
    notes |= bids.notes_of(recordings) | _exclusions(root, names)
    return StudyTables("continuous", recordings, shown, images, notes)


def read_raw(recording: Mapping[str, Any], root: Path) -> mne.io.BaseRaw:
    """Read one recording: volts, positions of the data set or else of the 10-05 system.

    Annotations come from events.tsv as well, where MNE-BIDS takes 50 for seconds; here they last
    0.05 s.

    Raises
    ------
    DatasetError, sgdm_utils.errors.ChannelError
        See `bids_recordings.read_recording`.
    """
    raw = bids_recordings.read_recording(recording, Path(root))
    pictures = {text for text in raw.annotations.description if not BAD.fullmatch(text)}
    raw.annotations.set_durations(dict.fromkeys(pictures, STIMULUS_MS / 1000))
    return raw


def _read_events(
    recording: Mapping[str, Any], root: Path, pictures: dict[str, bool], n_channels: int | None
) -> tuple[pd.DataFrame, int]:
    """Events of one person and the number of targets; `pictures` remembers which files exist."""
    path = root / recording["path"]
    # checked before; MNE-BIDS would turn 24,648 rows into annotations again, which takes long
    with reading(path, "a recording"):
        raw = mne.io.read_raw_brainvision(path, verbose="error")
    channels = path.with_name(path.name.rsplit("_", 1)[0] + "_channels.tsv")
    kinds = sidecars.read_tsv(channels).get("type") if channels.is_file() else None
    n_eeg = len(raw.ch_names) if kinds is None else int((kinds == "EEG").sum())
    if n_channels and n_eeg != n_channels:
        raise DatasetError(
            f"{path}: {n_eeg} EEG channels, {n_channels} are asked for (n_channels). sub-49 and "
            "sub-50 are reported to have worn another cap; leave them out, or correct n_channels"
        )
    if raw.info["sfreq"] != SFREQ:
        raise DatasetError(
            f"{path} was sampled at {raw.info['sfreq']:g} Hz, THINGS-EEG1 at {SFREQ:g} Hz. Is it a "
            "derivative? The raw recording lies in sub-*/eeg/"
        )
    sidecar, table, numbers = _read_table(path)
    mark_seams(raw, path, find_pauses(path, raw), table)
    keep = sorted(set(table["istarget"][numbers["istarget"] == 0]))
    mapping = bids.EventMapping(stimulus_column=None, label_column="stim", keep={"istarget": keep})
    part = bids.read_events(recording, root, mapping, raw)
    files = part["image_id"].map(_relative)
    stim = table["stim"].map(_relative, na_action="ignore")

    def where(name: str) -> str:
        return f"{sidecar}, line {table.index[stim == name][0] + 2}"

    require_inside(root / "stimuli", set(files) - set(pictures), root, where)
    for name in files.unique():
        if not pictures.setdefault(name, (root / "stimuli" / name).is_file()):
            raise DatasetError(f"{where(name)}: {root / 'stimuli' / name} is missing. {PICTURES}")
    part["stim_file"] = files
    part["image_id"] = [PurePosixPath(f).with_suffix("").as_posix() for f in files]
    part["concept"] = [PurePosixPath(f).parent.name for f in files]
    # rows of the second stream have no place in a block of the main one, hence -1
    shown = numbers[numbers["istarget"] == 0]
    block = shown.set_index((shown["onset"] * SFREQ).round().astype(int))["blocksequencenumber"]
    part["repeated"] = (block.loc[part["sample"]] < 0).to_numpy()
    part.insert(0, "trial", np.arange(len(part)))
    for column in ("run", "session", "subject"):
        part.insert(0, column, recording[column])
    return part, int((numbers["istarget"] != 0).sum())


def _read_table(path: Path) -> tuple[Path, pd.DataFrame, pd.DataFrame]:
    """The events.tsv of a recording: where it is, its text, the columns of it that are numbers."""
    sidecar = path.with_name(path.name.rsplit("_", 1)[0] + "_events.tsv")
    if not sidecar.is_file():
        raise DatasetError(f"{sidecar} is missing: nothing says when which picture was shown")
    table = sidecars.read_tsv(sidecar)
    missing = [c for c in COLUMNS if c not in table]
    if missing:
        raise DatasetError(
            f"{sidecar}: no column {', '.join(missing)}; there is {', '.join(table)}. Take the file "
            "of OpenNeuro ds003825 as it is"
        )
    return sidecar, table, _check_rows(table, sidecar)


def _check_rows(table: pd.DataFrame, sidecar: Path) -> pd.DataFrame:
    """Refuse rows that contradict themselves; return the numeric columns that are used."""

    def refuse(rows: pd.Series, what: Any, remedy: str) -> None:
        if rows.any():
            i = int(np.flatnonzero(rows.to_numpy())[0])
            raise DatasetError(
                f"{sidecar}, line {i + 2} (of {int(rows.sum())} such lines): {what(i)}. {remedy}"
            )

    columns = ("onset", "duration", "istarget", "blocksequencenumber", "sample")
    numbers = pd.DataFrame({c: pd.to_numeric(table[c], errors="coerce") for c in columns})
    for column in columns:
        refuse(
            numbers[column].isna(),
            lambda i, c=column: f"{c} is {table[c][i]!r}, no number",
            "Take the file of OpenNeuro ds003825 as it is",
        )
    refuse(
        numbers["duration"] != STIMULUS_MS,
        lambda i: f"duration {table['duration'][i]}, not {STIMULUS_MS:g} (milliseconds)",
        "Was the table rewritten? This reader takes the published file, whose durations are in ms",
    )
    refuse(
        (numbers["sample"] - numbers["onset"] * SFREQ).abs() > 0.5,
        lambda i: (
            f"sample {table['sample'][i]} is not {SFREQ:g} times the onset {table['onset'][i]} s"
        ),
        "One of the two is wrong; compare with the markers of the .vmrk file",
    )
    stim = table["stim"].map(_relative, na_action="ignore")
    refuse(stim.isna(), lambda i: "stim is n/a", "Every row of this table shows a picture")
    refuse(
        stim.str.count("/") != 1,
        lambda i: f"stim {table['stim'][i]!r} is not stimuli\\<concept>\\<file>",
        "Take the file of OpenNeuro ds003825 as it is",
    )
    refuse(
        stim.str.rsplit("/").str[-1] != table["stimname"],
        lambda i: f"stim {table['stim'][i]!r} and stimname {table['stimname'][i]!r} disagree",
        "Take the file of OpenNeuro ds003825 as it is",
    )
    main = numbers["blocksequencenumber"] >= 0
    refuse(
        main & (stim.str.split("/").str[0] != table["object"]),
        lambda i: f"stim {table['stim'][i]!r} does not show the object {table['object'][i]!r}",
        "Take the file of OpenNeuro ds003825 as it is",
    )
    return numbers


def _relative(stim: str) -> str:
    """Path below stimuli/ with forward slashes: `stimuli\\carousel\\carousel_11s.jpg`."""
    return stim.replace("\\", "/").removeprefix("stimuli/")


def _exclusions(root: Path, names: Sequence[str]) -> dict[str, str]:
    """What participants.tsv says against some of the people, when it has a column `exclude`."""
    path = root / "participants.tsv"
    if not path.is_file():
        return {}
    table = sidecars.read_tsv(path)
    if not {"participant_id", "exclude"} <= set(table):
        return {}
    flagged = pd.to_numeric(table["exclude"], errors="coerce").fillna(0) != 0
    listed = sorted(set(table["participant_id"][flagged]) & set(names))
    return {"excluded_by_the_authors": ", ".join(listed) or "none"}
