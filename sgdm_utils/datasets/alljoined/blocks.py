"""The EDF files of Alljoined-1.6M: one for each block, with the picture of every marker in its text."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import mne
import numpy as np
import pandas as pd

from sgdm_utils.datasets.alljoined import order as alljoined_order
from sgdm_utils.datasets.alljoined.order import PARTITIONS, SUB06, OrderError
from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE
from sgdm_utils.datasets.pauses import find_pauses, mark_seams
from sgdm_utils.datasets.unreadable import explain
from sgdm_utils.errors import DatasetError, reading

SFREQ = 256.0  # Hz, of the EDF files
LAST_TEST_BLOCK = 4
MOST_SEVERAL = 0.25  # of a block's markers at an instant with others; more is no recording to use
# what the headset writes beside the electrodes, by the beginning of the name, in lower case
TECHNICAL = (
    *("timestamp", "ortimestamp", "counter", "interpolated", "rawcq", "battery", "fwbuffersize"),
    *("fwclocktime", "marker", "highbitflex", "saturationflag", "cq", "eq", "mot"),
    "edf annotations",
)
SPELLING = {"Afz": "AFz"}
_MARKER = re.compile(r"(stim_\w+)(?:,(\d+))?")


def read_subject(
    root: Path, name: str, sessions: Sequence[int], order: pd.DataFrame, source: Path, sub06: str
) -> tuple[list[dict], pd.DataFrame, dict]:
    """Read the blocks of one person and match their markers with the table of the experiment.

    `order` and `source` are what `order.read_order` returns.

    Returns
    -------
    recordings : list of dict, one for each block, with `_channels` and `_digest` for comparison
    events : DataFrame
    facts : dict, for the notes of the study

    Raises
    ------
    DatasetError
        A missing session, block or file, or whatever `open_edf` and `order.align` refuse.
    """
    blocks, rows = {}, []
    for session in sessions:
        folder = root / "raw_eeg" / name / f"session_{session:02d}"
        if not folder.is_dir():
            raise DatasetError(
                f"{folder} is missing: fetch session {session}, or leave it out (sessions)"
            )
        found = sorted(p for p in folder.glob("block_*") if p.is_dir())
        if not found:
            raise DatasetError(f"{folder}: no folder block_01, block_02, ... in it")
        for block in found:
            if not (digits := block.name.removeprefix("block_")).isdecimal():
                raise DatasetError(f"{block}: a block's folder is named block_01, block_02, ...")
            number = int(digits)
            files = sorted(p for p in block.iterdir() if p.suffix.lower() == ".edf")
            if len(files) != 1:
                raise DatasetError(f"{block}: {len(files)} EDF files in it, there has to be one")
            raw = open_edf(files[0])
            blocks[session, number] = _read_markers(raw, files[0]).assign(
                run=f"{number:02d}", where=str(files[0])
            )
            with reading(files[0], "EDF", "Copy the recording again"):
                first = raw.get_data(stop=int(30 * SFREQ))
            digest = hashlib.sha256(np.ascontiguousarray(first)).hexdigest()
            rows.append(
                {
                    "subject": name, "session": f"{session:02d}", "task": "images",
                    "run": f"{number:02d}", "path": files[0].relative_to(root).as_posix(),
                    "_channels": raw.ch_names,
                    # without any signal nothing was recorded yet, in every recording alike
                    "_digest": digest if np.ptp(first, axis=1).any() else "",
                }
            )  # fmt: skip
    facts: dict = {}
    if any((markers["index"] < 0).all() for markers in blocks.values()):
        order = alljoined_order.settle_sub06(order, name, source, sub06, facts)
    try:
        pairs, counts = _pair(order, blocks, sessions, source)
    except OrderError:
        if name != SUB06 or not alljoined_order.sub06_may_be_uncorrected(order):
            raise
        pairs, counts = _pair(alljoined_order.correct_sub06(order), blocks, sessions, source)
        facts["sub-06"] = "misplaced row moved; the pictures named by the markers agree with that"
    events = pairs.assign(subject=name)
    return rows, events, facts | counts


def _pair(
    order: pd.DataFrame,
    blocks: dict[tuple[int, int], pd.DataFrame],
    sessions: Sequence[int],
    source: Path,
) -> tuple[pd.DataFrame, dict]:
    """Give every marker its row, block by block (or session by session without `block_id`)."""
    pictures = order[order["partition"].notna() & order["session"].isin(sessions)]
    by_block = "block" in order
    group = pictures["block"] if by_block else np.where(pictures["partition"] == "test", 0, 99)
    units = dict(list(pictures.groupby([pictures["session"], group])))
    members: dict[tuple[int, int], list[pd.DataFrame]] = {key: [] for key in units}
    for (session, number), markers in blocks.items():
        key = (session, number if by_block else (0 if number <= LAST_TEST_BLOCK else 99))
        if key not in members:
            raise OrderError(
                f"{markers['where'][0]}: {source} has no row for session {session}, block {number}"
            )
        members[key].append(markers)
    names = ("rows_without_marker", "markers_of_dropped_rows", "markers_at_one_instant")
    parts, counts = [], dict.fromkeys(names, 0)
    for key, rows in units.items():
        kept = ~rows["dropped"].to_numpy() if "dropped" in rows else None
        if not members[key]:
            if kept is None or kept.any():
                raise OrderError(
                    f"{source}: {len(rows)} rows of session {key[0]}, "
                    f"{f'block {key[1]}' if by_block else 'one partition'}, and no such folder in "
                    "raw_eeg/. Fetch the block, or experiment_metadata.parquet, which tells whether it "
                    "was dropped"
                )
            continue
        markers = pd.concat(members[key], ignore_index=True)
        at = alljoined_order.align(markers, rows, kept, source)
        counts["markers_at_one_instant"] += int(markers["several"].sum())
        markers = markers[~markers["several"]].reset_index(drop=True)
        taken = rows.iloc[at].reset_index(drop=True)
        markers = markers.assign(
            session=f"{key[0]:02d}", index=taken["index"], category=taken["category"],
            trial=markers.groupby("run").cumcount(),
        )  # fmt: skip
        counts["rows_without_marker"] += len(rows) - len(at)
        if kept is not None:
            counts["markers_of_dropped_rows"] += int((~kept[at]).sum())
            markers = markers[kept[at]]
        parts.append(markers)
    return pd.concat(parts, ignore_index=True), counts


def _read_markers(raw: mne.io.BaseRaw, path: Path) -> pd.DataFrame:
    """List `onset_s`, `sample`, `partition`, `index` (or -1) and `several` of the markers of a file.

    Of several different markers at one sample nobody can say which picture was on the screen.
    """
    rows, oddballs = [], []
    for onset, text in zip(raw.annotations.onset, raw.annotations.description, strict=True):
        match = _MARKER.search(text)
        if text.startswith("oddball"):
            oddballs.append(round(onset * raw.info["sfreq"]))
        if match is None:
            continue  # oddball, response, debugging
        if match[1] not in PARTITIONS:
            raise DatasetError(f"{path}: marker {text!r} at {onset:.3f} s is of no known partition")
        index = -1 if match[2] is None else int(match[2])
        rows.append((onset, round(onset * raw.info["sfreq"]), PARTITIONS[match[1]], index, text))
    table = pd.DataFrame(rows, columns=["onset_s", "sample", "partition", "index", "text"])
    # the recorder repeats a marker now and then, word for word at the same sample
    table = table.drop_duplicates(["sample", "text"]).sort_values("sample", kind="stable")
    table = table.reset_index(drop=True)
    if table.empty:
        raise DatasetError(
            f"{path}: no annotation that matches .*stim: nothing says what was shown"
        )
    several = table["sample"].duplicated(keep=False) | table["sample"].isin(oddballs)
    if several.mean() > MOST_SEVERAL:
        i = int(np.flatnonzero(several)[0])
        raise DatasetError(
            f"{path}: {int(several.sum())} of {len(table)} markers share their sample with another, "
            f"first {table['text'][i]!r} at sample {table['sample'][i]}: what was shown cannot be told. "
            "Leave the session out (sessions)"
        )
    table["several"] = several
    if ((table["index"] < 0) != (table["index"][0] < 0)).any():
        raise DatasetError(f"{path}: some markers name their picture, others do not")
    return table.drop(columns="text")


def open_edf(path: Path) -> mne.io.BaseRaw:
    """Open the electrodes of an EDF file, header only.

    Returns
    -------
    mne.io.BaseRaw, volts, with positions of the standard 10-05 system

    Raises
    ------
    DatasetError
        A truncated file, a channel that is neither electrode nor technical, a name twice, another
        rate than 256 Hz.
    """
    with reading(path, "EDF", "Copy the recording again"):
        return _open_edf(path)


def _open_edf(path: Path) -> mne.io.BaseRaw:
    labels, stated = _read_header(path)
    size = path.stat().st_size
    if stated and size < stated:
        raise DatasetError(
            f"{path} was truncated: {size} bytes, its header says {stated}. Copy the recording again"
        )
    names = [n for n in labels if not n.lower().startswith(TECHNICAL)]
    for name in names:
        if name.lower() not in standard_names():
            raise DatasetError(
                f"{path}: channel {name!r} is neither an electrode of the 10-05 system nor a "
                "technical channel of the headset. Was it renamed?"
            )
    double = sorted({n for n in names if [m.lower() for m in names].count(n.lower()) > 1})
    if double or not names:
        raise DatasetError(f"{path}: {f'two channels {double[0]!r}' if double else 'no electrode'}")
    others = [n for n in labels if n not in names and n.lower() != "edf annotations"]
    try:
        raw = mne.io.read_raw_edf(path, exclude=others, stim_channel=None, verbose="error")
    except Exception as error:  # readers raise whatever a broken header leads them to
        raise DatasetError(explain(path, error)) from error
    if raw.info["sfreq"] != SFREQ:
        raise DatasetError(
            f"{path} was sampled at {raw.info['sfreq']:g} Hz, Alljoined-1.6M at {SFREQ:g} Hz"
        )
    mark_seams(raw, path, find_pauses(path, raw))
    raw.rename_channels({k: v for k, v in SPELLING.items() if k in raw.ch_names})
    raw.set_montage(_standard(), match_case=False, verbose="error")
    return raw


def _read_header(path: Path) -> tuple[list[str], int]:
    """Channel labels of an EDF file and the bytes it should have (0 when the header leaves it open).

    References
    ----------
    Kemp & Olivan (2003), Clinical Neurophysiology 114:1755 (EDF+).
    """
    with path.open("rb") as file:
        head = file.read(256)
        try:
            length, records, count = int(head[184:192]), int(head[236:244]), int(head[252:256])
            if not 0 < count <= 4096:
                raise ValueError(f"{count} signals")
            fields = file.read(256 * count)
            labels = [fields[16 * i : 16 * (i + 1)].decode("latin-1").strip() for i in range(count)]
            start = 216 * count  # eight fields of each signal come before its samples per record
            samples = [int(fields[start + 8 * i : start + 8 * (i + 1)]) for i in range(count)]
        except ValueError as error:
            raise DatasetError(
                f"{path} has no header of an EDF file ({error}). Copy the recording again"
            ) from error
    return labels, length + 2 * records * sum(samples) if records >= 0 else 0


@functools.cache
def _standard() -> mne.channels.DigMontage:
    return mne.channels.make_standard_montage(STANDARD_MONTAGE)  # takes longer than a header


@functools.cache
def standard_names() -> frozenset[str]:
    """Names of the standard 10-05 system in lower case."""
    return frozenset(n.lower() for n in _standard().ch_names)
