"""Convert recordings of the Muse headband (CSV files of muse-lsl or eeg-notebooks) to BIDS.

    python -m sgdm_utils convert-muse SOURCE_DIR DEST_NAME [--subject 01] [--session 01] [--task n170] ...

Each CSV file is one run: `timestamps` in seconds, one column per electrode in microvolts, an
optional `Right AUX`, and a marker column with 0, or the number of the event at the sample where it
began. One call converts one folder as one session; the data set appears under `data/raw/DEST_NAME`
when it is complete.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mne
import mne_bids
import numpy as np
import pandas as pd

from sgdm_utils.datasets.tables import check_magnitude, check_signal, natural_order
from sgdm_utils.electrodes import STANDARD_MONTAGE
from sgdm_utils.errors import DatasetError, reading
from sgdm_utils.workflow import paths
from sgdm_utils.workflow.atomic import atomic_directory
from sgdm_utils.workflow.formats import read_json

ELECTRODES = ("TP9", "AF7", "AF8", "TP10")
SFREQ = 256.0  # Hz, nominal rate of the device
TOLERANCE_S = 0.04  # a lost Bluetooth packet of 12 samples leaves a gap of 12 / 256 = 0.047 s
N170_EVENTS = {"house": 1, "face": 2}
README = """Recordings of a Muse headband, converted from CSV files.

Four EEG channels at 256 Hz, referenced to FPz; the auxiliary channel was left out. Events lie at
the sample that carries the marker. The delay between marker and picture was not calibrated: it is
constant but unknown, so latencies cannot be compared with the literature.
"""


@dataclass(frozen=True)
class MuseRun:
    """One CSV file, checked.

    Attributes
    ----------
    source : Path
    sha256 : str, of the file
    microvolts : float64 array of shape (4, n_samples), channels in the order of `ELECTRODES`
    marker : int array of shape (n_samples,), 0 where nothing began
    timing : dict, `rate_hz` by the time stamps, and in seconds `largest_step`, `largest_back_step`,
        `largest_deviation` of a stamp from the regular grid
    """

    source: Path
    sha256: str
    microvolts: np.ndarray
    marker: np.ndarray
    timing: dict[str, float]


def check_timing(
    timestamps: np.ndarray, where: str, tolerance_s: float = TOLERANCE_S
) -> dict[str, float]:
    """Measure how regular the samples are; refuse gaps and a wrong rate.

    The samples themselves are regular; their time stamps come in blocks and jitter, also backwards,
    by the Bluetooth transport. Events are therefore placed by sample number, and the jitter is
    reported.

    Parameters
    ----------
    timestamps : array of shape (n_samples,), seconds
    where : str, the file, for the message
    tolerance_s : float, largest irregularity that is put down to the transport

    Returns
    -------
    dict, see `MuseRun.timing`

    Raises
    ------
    DatasetError
        Time stamps that are no numbers, a rate more than 0.5 % off 256 Hz, a gap or a deviation
        from the regular grid above the tolerance.
    """
    if len(timestamps) < SFREQ or not np.isfinite(timestamps).all():
        raise DatasetError(
            f"{where}: the time stamps are fewer than one second's, or not all numbers"
        )
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return _timing(timestamps, where, tolerance_s)


def _timing(timestamps: np.ndarray, where: str, tolerance_s: float) -> dict[str, float]:
    rate = (len(timestamps) - 1) / (timestamps[-1] - timestamps[0])
    step = np.diff(timestamps)
    expected = timestamps[0] + np.arange(len(timestamps)) / rate
    deviation = timestamps - expected
    timing = {
        "rate_hz": float(rate),
        "largest_step": float(step.max()),
        "largest_back_step": float(max(0.0, -step.min())),
        "largest_deviation": float(np.abs(deviation - np.median(deviation)).max()),
    }
    if step.max() > tolerance_s:
        raise DatasetError(
            f"{where}: a gap of {1e3 * step.max():.0f} ms after sample {int(step.argmax())} (line "
            f"{int(step.argmax()) + 2}): packets were lost, later events would be misplaced. Cut "
            "the file there into two"
        )
    if not abs(rate / SFREQ - 1) <= 0.005:
        raise DatasetError(
            f"{where}: {rate:.2f} samples per second by the time stamps, not {SFREQ:g}. Is it a "
            "Muse file, and are the time stamps seconds?"
        )
    for name in ("largest_back_step", "largest_deviation"):
        if timing[name] > tolerance_s:
            raise DatasetError(
                f"{where}: {name.replace('_', ' ')} of the time stamps is "
                f"{1e3 * timing[name]:.0f} ms, more than {1e3 * tolerance_s:.0f} ms. Are parts of "
                "two recordings in one file?"
            )
    return timing


def read_csv(path: Path, marker_column: str = "Marker0") -> MuseRun:
    """Read and check one CSV file.

    Raises
    ------
    DatasetError
        No table, a missing or renamed column, irregular time stamps, no marker.
    sgdm_utils.errors.ChannelError
        A NaN or flat channel.
    """
    path = Path(path)
    with reading(path, "a comma-separated table of numbers", "Export it again"):
        table = pd.read_csv(path, encoding="utf-8-sig", dtype=float, skipinitialspace=True)
        if not isinstance(table.index, pd.RangeIndex):
            raise ValueError("its first line has fewer columns than the others")
    missing = [c for c in ("timestamps", *ELECTRODES, marker_column) if c not in table]
    if missing:
        raise DatasetError(
            f"{path}: no column {', '.join(missing)}; there is {', '.join(table)}. Rename the "
            "column, or name the marker column with --marker-column"
        )
    timing = check_timing(table["timestamps"].to_numpy(), str(path))
    microvolts = table[list(ELECTRODES)].to_numpy().T
    check_signal(1e-6 * microvolts, list(ELECTRODES), str(path))
    marker = table[marker_column].to_numpy()
    if not (np.abs(marker) < 1e9).all() or (marker % 1).any() or not marker.any():
        raise DatasetError(
            f"{path}: {marker_column} holds no marker, or one that is no whole number"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return MuseRun(path, digest, microvolts, marker.astype(int), timing)


def to_raw(run: MuseRun, events: Mapping[str, int]) -> mne.io.RawArray:
    """Make an MNE recording: volts, 10-05 positions, one annotation per marker at its sample.

    Raises
    ------
    DatasetError
        When a marker has no name in `events`.
    """
    names = {number: name for name, number in events.items()}
    at = np.flatnonzero(run.marker)
    unknown = sorted(set(run.marker[at]) - set(names))
    if unknown:
        raise DatasetError(
            f"{run.source}: marker {unknown[0]} has no name (line "
            f"{int(at[run.marker[at] == unknown[0]][0]) + 2}). Give all of them: --events "
            f"{' '.join(f'{k}={v}' for k, v in events.items())} NAME={unknown[0]}"
        )
    info = mne.create_info(list(ELECTRODES), SFREQ, "eeg", verbose="error")
    raw = mne.io.RawArray(run.microvolts * 1e-6, info, verbose="error")
    check_magnitude(raw, str(run.source))
    raw.set_montage(STANDARD_MONTAGE, verbose="error")
    labels = [names[n] for n in run.marker[at]]
    raw.set_annotations(mne.Annotations(at / SFREQ, 0.0, labels))
    return raw


def convert(
    source: Path,
    destination: Path,
    subject: str = "01",
    session: str = "01",
    task: str = "n170",
    events: Mapping[str, int] | None = None,
    marker_column: str = "Marker0",
) -> list[MuseRun]:
    """Convert one folder of CSV files as one session of a BIDS data set.

    All files are checked before anything is written. A data set that exists gets the session added;
    a session that exists is refused, since file names repeat between sessions in these collections.

    Parameters
    ----------
    source : Path, folder of CSV files, in the order of their names
    destination : Path, BIDS root
    subject, session, task : str, BIDS entities
    events : mapping of name to marker number; left out, `N170_EVENTS`, for the task n170 only
    marker_column : str

    Returns
    -------
    list of MuseRun, in the order of the runs

    Raises
    ------
    DatasetError
        A folder without CSV files, a file that cannot be used, a recording that is already there.
    """
    source, destination = Path(source), Path(destination)
    files = sorted(source.glob("*.csv"), key=lambda file: natural_order(pd.Series([file.name]))[0])
    if not files:
        raise DatasetError(f"{source}: no .csv file in this folder")
    if (destination / f"sub-{subject}" / f"ses-{session}").exists():
        raise DatasetError(
            f"{destination} already has session {session} of subject {subject}. Files of "
            "different sessions may have the same names: give another --session, or remove the "
            "old one first"
        )
    if destination.is_dir() and not (destination / "dataset_description.json").is_file():
        raise DatasetError(f"{destination} exists and is no BIDS data set: choose another name")
    runs = [read_csv(file, marker_column) for file in files]
    if events is None and task.lower() != "n170":  # 1 and 2 mean something else in each experiment
        there = sorted({int(n) for run in runs for n in np.unique(run.marker[run.marker != 0])})
        raise DatasetError(
            f"{source}: what the markers {', '.join(map(str, there))} mean in the task {task!r} is "
            f"not known. Name them: --events {' '.join(f'NAME={n}' for n in there)}"
        )
    events = dict(N170_EVENTS if events is None else events)
    _refuse_known(runs, destination)
    raws = [to_raw(run, events) for run in runs]
    with atomic_directory(destination) as out:
        if destination.is_dir():
            shutil.copytree(destination, out, dirs_exist_ok=True)
        else:
            _describe(source, out, destination.name)
        for number, (run, raw) in enumerate(zip(runs, raws, strict=True), start=1):
            where = mne_bids.BIDSPath(
                root=out, subject=subject, session=session, task=task, run=f"{number:02d}",
                datatype="eeg",
            )  # fmt: skip
            _write_run(run, raw, where, events)
    return runs


def _write_run(
    run: MuseRun, raw: mne.io.RawArray, where: mne_bids.BIDSPath, events: dict[str, int]
) -> None:
    with warnings.catch_warnings():  # the conversion to BrainVision is what we ask for
        warnings.filterwarnings("ignore", "Converting data files to BrainVision", RuntimeWarning)
        mne_bids.write_raw_bids(
            raw, where, event_id=events, format="BrainVision", allow_preload=True, verbose="error"
        )
    facts = {
        "Manufacturer": "InteraXon",
        "ManufacturersModelName": "Muse",
        "EEGReference": "FPz",
        "SourceFile": run.source.name,
        "SourceSHA256": run.sha256,
        "TimestampRegularity": run.timing,
    }
    sidecar = where.copy().update(suffix="eeg", extension=".json")
    mne_bids.update_sidecar_json(sidecar, facts, verbose="error")


def _describe(source: Path, out: Path, name: str) -> None:
    """Write what the data set is, and copy the licence of its source."""
    licence = source / "LICENSE"
    first_line = "not stated"
    if licence.is_file():
        shutil.copyfile(licence, out / "LICENSE")
        first_line = licence.read_text(encoding="utf-8").strip().splitlines()[0]
    mne_bids.make_dataset_description(
        path=out, name=name, data_license=first_line, authors=["not stated"], verbose="error"
    )
    (out / "README").write_text(README, encoding="utf-8")


def _refuse_known(runs: list[MuseRun], destination: Path) -> None:
    """Refuse a file that is there twice, also under another name or in an earlier session."""
    seen = {}
    for sidecar in destination.glob("sub-*/ses-*/eeg/*_eeg.json"):
        seen[str(read_json(sidecar).get("SourceSHA256"))] = sidecar.name
    for run in runs:
        if run.sha256 in seen:
            raise DatasetError(
                f"{run.source} has the same content as {seen[run.sha256]}: convert it once only"
            )
        seen[run.sha256] = run.source.name


def _event(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not name or not number.isdigit() or int(number) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER, e.g. face=2")
    return name, int(number)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sgdm_utils convert-muse", description=__doc__.split("\n")[0]
    )
    parser.add_argument("source", type=Path, help="folder with the CSV files of one session")
    parser.add_argument("name", help="name of the data set, written to data/raw/NAME")
    parser.add_argument("--subject", default="01")
    parser.add_argument("--session", default="01")
    parser.add_argument("--task", default="n170")
    parser.add_argument("--marker-column", default="Marker0")
    parser.add_argument("--events", nargs="+", type=_event, metavar="NAME=NUMBER",
                        help="house=1 face=2 for the task n170, to be given for others")  # fmt: skip
    given = parser.parse_args(arguments)
    try:
        destination = paths.raw_dir(given.name)
        runs = convert(given.source, destination, given.subject, given.session, given.task,
                       dict(given.events) if given.events else None, given.marker_column)  # fmt: skip
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for number, run in enumerate(runs, start=1):
        print(
            f"run {number}: {run.source.name}, {run.microvolts.shape[1] / SFREQ:.1f} s, "
            f"{np.count_nonzero(run.marker)} events, time stamps within "
            f"{1e3 * run.timing['largest_deviation']:.0f} ms of {run.timing['rate_hz']:.2f} Hz"
        )
    print(f"written: {paths.relative(destination)}")
    return 0
