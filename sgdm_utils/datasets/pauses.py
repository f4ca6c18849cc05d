"""Recordings that were paused or cut, in files that put the pieces end to end; bad stretches.

MNE reads them as if nothing was missing. What an onset after the pause means is then open (seconds
on the clock, or samples of the file), and epochs and filters run across the seam. Where the column
`sample` of events.tsv settles it, the seam is marked, filters stop there and events beside it are
left out; everything else is refused.

References
----------
Kemp & Olivan (2003), Clinical Neurophysiology 114:1755 (EDF+D and its time-keeping annotations);
EEGLAB, "boundary" events; Brain Products, "New Segment" markers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import mne
import numpy as np
import pandas as pd

from sgdm_utils.errors import DatasetError

_CUT = re.compile(r"(Comment/)?(BAD |EDGE )?boundary|-99|BAD_ACQ_SKIP|New Segment.*", re.IGNORECASE)


BAD = re.compile(
    r"bad(?! boundary)([ _].*)?", re.IGNORECASE
)  # MNE: "BAD_x", Brain Products: "Bad Interval/x"
SEAM = "EDGE boundary"  # MNE's filters treat what lies before and behind it apart
BESIDE_S = 1.0  # events this close to a seam are left out


class Pause(NamedTuple):
    """A seam: `sample` is the first one behind it, `seconds` what is missing (NaN: unknown)."""

    sample: int
    seconds: float
    on_clock: bool = False  # the file tells the time (EDF+D), so its onsets may count it


def find_pauses(path: Path, *raws: mne.io.BaseRaw) -> list[Pause]:
    """List the seams inside a recording; those at its very ends are none.

    Parameters
    ----------
    path : Path of the data file
    raws : the recording as opened from the data file and with the annotations of events.tsv

    Returns
    -------
    list of Pause, in order
    """
    sfreq, n_times = raws[0].info["sfreq"], raws[0].n_times
    found = {}
    for raw in raws:
        for mark in raw.annotations:
            # -99 stands for "boundary" where EEGLAB's types are numbers
            numeric = mark["description"] == "-99" and path.suffix.lower() != ".set"
            # MNE marks so what it fills the last record of an exported EDF file with
            padded = mark["description"] == "BAD_ACQ_SKIP" and (
                (mark["onset"] + mark["duration"]) * sfreq >= n_times - 1
            )
            if _CUT.fullmatch(mark["description"]) and not numeric and not padded:
                sample = int(np.ceil(mark["onset"] * sfreq - 1e-6))
                found[sample] = Pause(sample, mark["duration"] or np.nan)
    if path.suffix.lower() in (".edf", ".bdf"):
        found |= {pause.sample: pause for pause in _record_gaps(path, sfreq)}
    return [found[sample] for sample in sorted(found) if 1 < sample < n_times - 1]


def mark_seams(
    raw: mne.io.BaseRaw, path: Path, pauses: list[Pause], events: pd.DataFrame | None = None
) -> None:
    """Mark seams as MNE's filters know them, in place, where the events count samples; else refuse.

    Parameters
    ----------
    raw : mne.io.BaseRaw
    path : Path, for the message
    pauses : list of Pause
    events : DataFrame of text, `onset` and `sample` of events.tsv

    Raises
    ------
    DatasetError
        With sample and length of each seam, and how to make runs of the pieces.
    """
    sfreq = raw.info["sfreq"]
    if events is not None and {"onset", "sample"} <= set(events):
        numbers = events[["onset", "sample"]].apply(pd.to_numeric, errors="coerce").dropna()
        behind = numbers["sample"] >= min((p.sample for p in pauses), default=0)
        counted = (numbers["onset"] * sfreq - numbers["sample"]).abs()[behind] < 1
        if len(counted) and counted.all() and not any(p.on_clock for p in pauses):
            seams = [p.sample / sfreq for p in pauses]
            raw.set_annotations(
                raw.annotations + mne.Annotations(seams, 0.0, SEAM, raw.annotations.orig_time),
                verbose="error",
            )
            return
    if not pauses:
        return
    seams = ", ".join(
        f"before sample {p.sample} ({p.sample / sfreq:.3f} s into the samples"
        f"{'' if np.isnan(p.seconds) else f', {p.seconds:.3f} s missing'})"
        for p in pauses[:5]
    )
    raise DatasetError(
        f"{path} was paused or cut {len(pauses)} times: {seams}. An onset behind a seam may count "
        "the time on the clock or the samples of the file, and filters and epochs would run across "
        "it. Give the column `sample` of events.tsv the index of each event in the file, where "
        "`onset` is that index over the sampling rate (not for EDF+D and BDF+D), or save each piece "
        "as a run of its own (run-01, run-02, ...; EDFbrowser converts EDF+D "
        "and BDF+D to such files), with the onsets of its events counted from its own first sample"
    )


def beside_seams(raw: mne.io.BaseRaw, sample: np.ndarray, margin_s: float) -> np.ndarray:
    """Tell which events lie so close to a marked seam that an epoch would run across it.

    Parameters
    ----------
    raw : mne.io.BaseRaw
    sample : int array of shape (n_events,)
    margin_s : float, seconds that are kept free; at least `BESIDE_S`

    Returns
    -------
    bool array of shape (n_events,)
    """
    at = raw.annotations.onset[raw.annotations.description == SEAM]
    distance = np.abs(np.subtract.outer(np.asarray(sample) / raw.info["sfreq"], at))
    return (distance < max(margin_s, BESIDE_S)).any(axis=1)


def bad_stretches(raw: mne.io.BaseRaw) -> np.ndarray:
    """List what is marked as bad ("BAD lost", "bad_cough"; not "badger").

    Returns
    -------
    float array of shape (n_stretches, 2), start and end in seconds from the first sample
    """
    marks = raw.annotations
    chosen = [bool(BAD.fullmatch(text)) for text in marks.description]
    onset = np.asarray(marks.onset, float)[chosen]
    return np.column_stack([onset, onset + np.asarray(marks.duration, float)[chosen]])


def carry_bad(raw: mne.io.BaseRaw, header: mne.io.BaseRaw) -> None:
    """Take over, in place, what the data file marks as bad and events.tsv does not repeat."""
    known = bad_stretches(raw)[:, 0]
    stretches = bad_stretches(header)
    new = (np.abs(np.subtract.outer(stretches[:, 0], known)) > 2 / raw.info["sfreq"]).all(axis=1)
    onset, stop = stretches[new & (stretches[:, 1] > stretches[:, 0])].T
    if len(onset):
        found = mne.Annotations(onset, stop - onset, "BAD", raw.annotations.orig_time)
        raw.set_annotations(raw.annotations + found, verbose="error")


def _record_gaps(path: Path, sfreq: float) -> list[Pause]:
    """Compare the times that the records of an EDF+ or BDF+ file state with their lengths."""
    width = 3 if path.suffix.lower() == ".bdf" else 2
    with path.open("rb") as stream:
        head = stream.read(256)
        if head[192:197] not in (b"EDF+D", b"BDF+D"):  # plain or declared continuous
            return []
        n_header, length, count = int(head[184:192]), float(head[244:252]), int(head[252:256])
        fields = stream.read(256 * count)
    labels = [fields[16 * i : 16 * (i + 1)].decode("latin-1").strip() for i in range(count)]
    start = 216 * count  # eight fields of each signal come before its samples per record
    sizes = [width * int(fields[start + 8 * i : start + 8 * (i + 1)]) for i in range(count)]
    marks = [i for i, label in enumerate(labels) if label in ("EDF Annotations", "BDF Annotations")]
    n_records = (path.stat().st_size - n_header) // max(1, sum(sizes))
    if not marks or not n_records or not length:
        return []
    begin = sum(sizes[: marks[0]])
    records = np.memmap(path, np.uint8, "r", n_header, (n_records, sum(sizes)))
    gaps, expected = [], None
    for i, record in enumerate(records[:, begin : begin + sizes[marks[0]]]):
        time = re.match(rb"[+-]\d+(\.\d*)?", record.tobytes())
        if time is None:
            return []  # no time-keeping: MNE reads the records as they come
        time = float(time[0])
        if expected is not None and abs(time - expected) > max(1 / sfreq, 1e-3):
            gaps.append(Pause(round(i * length * sfreq), time - expected, on_clock=True))
        # the mean pace, not the last record: rounded times do not add up to a gap
        if expected is None or gaps and gaps[-1].sample == round(i * length * sfreq):
            origin, first = time, i
        expected = origin + (i + 1 - first) * length
    return gaps
