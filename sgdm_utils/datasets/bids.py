"""What was shown when: picture events of BIDS recordings, matched to the picture files.

What differs between studies is which column of `events.tsv` says what was seen; that is an
`EventMapping`. Every error names the file and its line, what is wrong there and what to do. The
recordings themselves are in `bids_recordings`, who is trained on in `splits`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import mne
import numpy as np
import pandas as pd

from sgdm_utils.datasets.bids_recordings import (
    check_recordings,
    choose_sessions,
    find_recordings,
    read_recording,
    refuse_copies,
    require_channels,
)
from sgdm_utils.datasets.pauses import BAD, BESIDE_S, bad_stretches, beside_seams
from sgdm_utils.datasets.positions import AS_MEASURED
from sgdm_utils.datasets.sidecars import find_sidecar, read_tsv
from sgdm_utils.errors import DatasetError
from sgdm_utils.stimuli.files import leading_out
from sgdm_utils.workflow.content import require_content


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
    left out, `attrs["bad_s"]` the seconds that are marked as bad

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
    if "trial_type" in table:  # a stretch is no picture; what names a picture is no stretch
        stretch = table["trial_type"].str.fullmatch(BAD).eq(True)
        table = table[~stretch | (table[stimulus].notna() if stimulus else False)]
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
            lambda i: f"the stimulus {files[i]!r} {left[files[i]]}{_hint(files[i], folder)}",
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
    events.attrs = {"left_out": left_out, "bad_s": float(np.diff(bad_stretches(raw)).sum())}
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
        `attrs` as of `read_events`, over all recordings
    """
    recordings = find_recordings(bids_root, task, subjects)
    if sessions:
        recordings = choose_sessions(recordings, sessions, bids_root)
    recordings, raws = check_recordings(recordings, bids_root)
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
    events.attrs = gather(parts)
    return recordings, events


def gather(parts: Sequence[pd.DataFrame]) -> dict[str, float]:
    """Add up what `read_events` counted in the attributes of each run, for `reading_notes`."""
    return {name: sum(part.attrs[name] for part in parts) for name in ("left_out", "bad_s")}


def reading_notes(
    recordings: pd.DataFrame, events: pd.DataFrame, bids_root: Path
) -> dict[str, str]:
    """What a reader of the study should know: channels that are no EEG, events left out, positions.

    Parameters
    ----------
    recordings, events : DataFrames of `read_study`; `attrs` are taken off `events`
    """
    counts, events.attrs = events.attrs, {}
    raw = read_recording(recordings.iloc[0], bids_root, preload=False)
    kinds = zip(raw.ch_names, raw.get_channel_types(), strict=True)
    others = ", ".join(f"{name} ({kind})" for name, kind in kinds if kind != "eeg")
    notes = {
        "channels that are no EEG": others or "none",
        "events left out near the ends (margin_s)": str(counts.get("left_out", 0)),
    }
    if bad := counts.get("bad_s"):
        notes["marked as bad"] = f"{bad:.1f} s; 01 drops the trials that touch them (quality.csv)"
    return notes | notes_of(recordings)


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
