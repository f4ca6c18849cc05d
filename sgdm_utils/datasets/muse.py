"""Convert recordings of the Muse headband (CSV files of muse-lsl or Mind Monitor) to BIDS.

    python -m sgdm_utils convert-muse SOURCE_DIR DEST_NAME [--subject 01] [--session 01] [--task n170] ...

Each CSV file is one run, of muse-lsl or Mind Monitor (`muse_csv` says what it looks like). Samples that
were lost are put in as a straight line and marked `BAD lost`: 01 drops the trials that touch them. One
call converts one folder as one session; the data set appears under `data/raw/DEST_NAME` when it is
complete.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import mne
import mne_bids
import numpy as np
import pandas as pd

from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE
from sgdm_utils.datasets.muse_csv import PACKET, SFREQ, MuseRun, read_csv
from sgdm_utils.datasets.tables import check_magnitude, natural_order
from sgdm_utils.errors import DatasetError
from sgdm_utils.workflow import paths
from sgdm_utils.workflow.atomic import atomic_directory
from sgdm_utils.workflow.formats import read_json

N170_EVENTS = {"house": 1, "face": 2}
LOST = "BAD lost"  # what MNE leaves out of fits, and 01 out of the trials
README = """Recordings of a Muse headband, converted from CSV files.

EEG at 256 Hz, referenced to FPz; the auxiliary channel was left out unless it is listed. Events lie at
the sample that carries the marker. Lost samples are straight lines, marked as BAD lost. The delay between marker and picture was not calibrated: it is
constant but unknown, so latencies cannot be compared with the literature.
"""


def to_raw(run: MuseRun, events: Mapping[str, int]) -> mne.io.RawArray:
    """Make an MNE recording: volts, 10-05 positions, an annotation for each marker and each loss.

    Raises
    ------
    DatasetError
        When a marker has no name in `events`.
    """
    names = {number: name for name, number in events.items()}
    numbers = run.events[:, 1]
    if unknown := sorted(set(numbers.tolist()) - set(names)):
        at = run.events[numbers == unknown[0], 0][0] / SFREQ
        raise DatasetError(
            f"{run.source}: marker {unknown[0]} has no name (first at {at:.2f} s). Give all of them: "
            f"--events {' '.join(f'{k}={v}' for k, v in events.items())} NAME={unknown[0]}"
        )
    info = mne.create_info(list(run.ch_names), SFREQ, "eeg", verbose="error")
    raw = mne.io.RawArray(run.microvolts * 1e-6, info, verbose="error")
    check_magnitude(raw, str(run.source))
    raw.set_montage(STANDARD_MONTAGE, verbose="error")
    # lateness hides between which packets it was: the one on either side goes with them
    lost = [(max(0, start - PACKET), start + n + PACKET) for start, n in run.lost]
    start, stop = np.array(lost, float).reshape(-1, 2).T / SFREQ
    onsets = np.append(run.events[:, 0] / SFREQ, start)
    durations = np.append(np.zeros(len(numbers)), stop - start)
    labels = [names[n] for n in numbers] + [LOST] * len(lost)
    raw.set_annotations(mne.Annotations(onsets, durations, labels))
    return raw


def convert(
    source: Path,
    destination: Path,
    subject: str = "01",
    session: str = "01",
    task: str = "n170",
    events: Mapping[str, int] | None = None,
    marker_column: str = "Marker0",
    aux: str = "",
    max_lost: float = 0.1,
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
    marker_column, aux, max_lost : see `muse_csv.read_csv`

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
    runs = [read_csv(file, marker_column, aux, max_lost) for file in files]
    if events is None and task.lower() != "n170":  # 1 and 2 mean something else in each experiment
        there = sorted({int(n) for run in runs for n in run.events[:, 1]})
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
        names = events | ({LOST: max(events.values()) + 1} if run.lost else {})
        mne_bids.write_raw_bids(
            raw, where, event_id=names, format="BrainVision", allow_preload=True, verbose="error"
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
    parser.add_argument("--aux", default="", metavar="ELECTRODE",
                        help="electrode of the 10-05 system at the auxiliary input, e.g. POz")  # fmt: skip
    parser.add_argument("--max-lost", type=float, default=0.1, metavar="SHARE",
                        help="largest share of lost samples (default 0.1)")  # fmt: skip
    parser.add_argument("--events", nargs="+", type=_event, metavar="NAME=NUMBER",
                        help="house=1 face=2 for the task n170, to be given for others")  # fmt: skip
    given = parser.parse_args(arguments)
    try:
        destination = paths.raw_dir(given.name)
        runs = convert(given.source, destination, given.subject, given.session, given.task,
                       dict(given.events) if given.events else None, given.marker_column,
                       given.aux, given.max_lost)  # fmt: skip
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for number, run in enumerate(runs, start=1):
        timing = run.timing
        print(
            f"run {number}: {run.source.name}, {run.microvolts.shape[1] / SFREQ:.1f} s, "
            f"{len(run.events)} events, time stamps within "
            f"{1e3 * timing['largest_deviation']:.0f} ms of {timing['rate_hz']:.2f} Hz"
            + f", {timing['lost_samples']} samples lost in {timing['gaps']} gaps" * bool(run.lost)
            + f", {timing['events_left_out']} events left out" * bool(timing["events_left_out"])
        )
    print(f"written: {paths.relative(destination)}")
    return 0
