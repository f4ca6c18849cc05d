"""CSV files of a Muse headband: samples, markers, and what was lost on the way.

Two programs write them. *muse-lsl* (and eeg-notebooks): `timestamps` in seconds, a column for each
electrode in microvolts, `Right AUX`, and a marker column with 0, or the number of the event at the
sample where it began. *Mind Monitor* (a telephone): `TimeStamp` with date, `RAW_TP9` ... in
microvolts, and `Elements`, where `/Marker/1` stands in a row of its own.

The samples are regular, their stamps are not: they come in packets of twelve by Bluetooth, late by
some ten milliseconds, and packets get lost. A packet that was late is taken back: the stamps behind it
are where they would have been without. What is lost shifts all stamps behind it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mne
import numpy as np
import pandas as pd
from scipy.ndimage import median_filter

from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE
from sgdm_utils.errors import ChannelError, DatasetError, reading

ELECTRODES = ("TP9", "AF7", "AF8", "TP10")
AUXILIARY = ("Right AUX", "AUX_RIGHT", "AUX", "AUX_R")  # what the fifth input is called
SFREQ = 256.0  # Hz, nominal rate of the device
PACKET = 12  # samples that one packet holds, and that are lost together
HALF_S = PACKET / SFREQ / 2  # a lasting shift of the stamps beyond it is a loss
TOLERANCE_S = 0.04  # an event whose stamp is further from its sample than this cannot be placed
_SIDE = 257  # samples on either side of a step whose medians are compared, one second
_END = 64  # samples at either end where a shift cannot be told from lateness
_BURST_S = 0.002  # rows whose stamps are closer than this arrived together


@dataclass(frozen=True)
class MuseRun:
    """One CSV file, checked, with the lost samples put in.

    Attributes
    ----------
    source : Path
    sha256 : str, of the file
    ch_names : tuple of str, `ELECTRODES`, and the auxiliary one where it was asked for
    microvolts : float64 array of shape (n_channels, n_samples); a straight line where samples are lost
    events : int array of shape (n_events, 2): sample, number of the marker
    lost : tuple of (first sample, number of samples)
    timing : dict, see `find_losses`, and `events_left_out`: those that could not be placed
    """

    source: Path
    sha256: str
    ch_names: tuple[str, ...]
    microvolts: np.ndarray
    events: np.ndarray
    lost: tuple[tuple[int, int], ...]
    timing: dict[str, float]


def find_losses(
    timestamps: np.ndarray, where: str, max_lost: float = 0.1, line: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Tell lost samples from late ones; refuse stamps that are no Muse recording's.

    At every jump of the stamps the second before is compared with the second behind (medians of stamp
    minus regular grid): what lasts is a loss (below a second of whole packets), what is taken back was late.

    Parameters
    ----------
    timestamps : array of shape (n_samples,), seconds
    where : str, the file, for the message
    max_lost : float, largest share of samples that may be lost
    line : int array of shape (n_samples,), lines of the file; default: from 2 on

    Returns
    -------
    lost : int array of shape (n_samples,), how many samples are missing before each
    deviation : float array of shape (n_samples,), seconds by which a stamp is later than its neighbours say
    timing : dict
        `rate_hz` by the stamps, `lost_samples`, `gaps`, and in seconds `largest_step`,
        `largest_back_step` and `largest_deviation`

    Raises
    ------
    DatasetError
        Stamps that are no numbers, too few or go back for good; a rate more than 0.5 % off 256 Hz; a
        larger share lost than `max_lost`.
    """
    n = len(timestamps)
    line = np.arange(n) + 2 if line is None else line
    if not (np.abs(timestamps) < 1e12).all():
        raise DatasetError(
            f"{where}: {(~(np.abs(timestamps) < 1e12)).sum()} time stamps are no times"
        )
    span = timestamps[-1] - timestamps[0] if n else 0.0
    if n < 2 * SFREQ:
        raise DatasetError(
            f"{where}: {n} samples in {span:.1f} s, two seconds at {SFREQ:g} Hz are the least. Was every "
            "sample written (Mind Monitor: recording interval Constant)?"
        )
    by_second = (timestamps[_SIDE - 1 :] - timestamps[: 1 - _SIDE]) / (_SIDE - 1)
    usual = 1 / max(np.median(by_second), 1e-9)
    step = np.diff(timestamps)
    delay = timestamps - timestamps[0] - np.arange(n) / SFREQ
    # of rows that arrived together the last one was the least late
    arrival = np.append(np.flatnonzero((step > _BURST_S) | (step < 0)), n - 1)
    delay = delay[arrival[np.searchsorted(arrival, np.arange(n))]]
    jump = np.append(0.0, np.diff(delay))
    lost = np.zeros(n, int)
    if abs(usual / SFREQ - 1) < 0.1:
        before = -1
        while np.count_nonzero(lost) > before:  # losses near each other are found one by one
            before = np.count_nonzero(lost)
            rise = _lasting(delay - np.cumsum(lost) / SFREQ)
            rise[(jump < HALF_S / 2) | (lost > 0)] = 0
            while rise[best := int(rise.argmax())] >= HALF_S:
                seconds = min(rise[best], max(jump[best], 2 * HALF_S))
                # packets are lost whole; after a second without any the connection began anew
                unit = PACKET if seconds < 1.0 else 1
                lost[best] = unit * max(1, round(seconds * SFREQ / unit))
                rise[max(0, best - 2 * _SIDE) : best + 2 * _SIDE] = 0
    rest = delay - np.cumsum(lost) / SFREQ
    fall = -_lasting(rest)
    fall[jump > -HALF_S / 2] = 0
    if fall.max() > HALF_S:
        raise DatasetError(
            f"{where}: at line {line[fall.argmax()]} the time stamps go back by "
            f"{1e3 * fall.max():.0f} ms and stay there: parts of two recordings are in one file. Cut "
            "it there into two files, each with the first line"
        )
    total = int(lost.sum())
    rate = (n + total - 1) / span if span > 0 else np.inf
    if abs(rate / SFREQ - 1) > 0.005 + 2 * TOLERANCE_S / max(span, 1.0):
        raise DatasetError(
            f"{where}: {rate:.2f} samples per second by the time stamps, not {SFREQ:g}. Is it a "
            "Muse file, are the time stamps seconds, and was every sample written (Mind Monitor: "
            "recording interval Constant)?"
        )
    if total > max_lost * (n + total):
        worst = int(lost.argmax())
        remedy = (
            f"Cut the file before line {line[worst]} into two, each with the first line"
            if 2 * lost[worst] > total
            else "Leave the file out"
        )
        raise DatasetError(
            f"{where}: {total} samples were lost ({100 * total / (n + total):.0f} %, "
            f"{np.count_nonzero(lost)} gaps; the longest, {lost[worst] / SFREQ:.2f} s, before line "
            f"{line[worst]}), more than {100 * max_lost:g} %. {remedy}, or allow more (--max-lost)"
        )
    expected = timestamps[0] + np.arange(n) / SFREQ + np.cumsum(lost) / SFREQ
    deviation = timestamps - expected - _running_median(rest)
    timing = {
        "rate_hz": float(rate),
        "lost_samples": total,
        "gaps": int(np.count_nonzero(lost)),
        "largest_step": float(step.max()),
        "largest_back_step": float(max(0.0, -step.min())),
        "largest_deviation": float(np.abs(deviation).max()),
    }
    return lost, deviation, timing


def _running_median(values: np.ndarray) -> np.ndarray:
    """Median over a second, turned about the ends so that a step near them stays a step."""
    half = _SIDE // 2
    first, last = np.median(values[:_END]), np.median(values[-_END:])
    before, behind = 2 * first - values[half:0:-1], 2 * last - values[-2 : -half - 2 : -1]
    return median_filter(np.concatenate([before, values, behind]), _SIDE)[half:-half]


def _lasting(values: np.ndarray) -> np.ndarray:
    """Return for each sample the median of the second from it on, less that of the second before."""
    middle = _running_median(values)
    half, n = _SIDE // 2, len(values)
    at = np.arange(n)
    change = middle[np.minimum(at + half, n - 1)] - middle[np.maximum(at - half - 1, 0)]
    change[:_END] = change[n - _END :] = 0
    return change


def read_csv(
    path: Path, marker_column: str = "Marker0", aux: str = "", max_lost: float = 0.1
) -> MuseRun:
    """Read and check one CSV file, of muse-lsl or Mind Monitor.

    Parameters
    ----------
    path : Path
    marker_column : str, of muse-lsl's form; blank cells hold no marker
    aux : str, electrode of the 10-05 system that the auxiliary input was; "" leaves it out
    max_lost : float, see `find_losses`

    Raises
    ------
    DatasetError
        No table, a missing or renamed column, stamps that `find_losses` refuses, no marker, an
        electrode that is not known.
    sgdm_utils.errors.ChannelError
        A NaN or flat channel.
    """
    path = Path(path)
    with reading(path, "a comma-separated table of numbers", "Export it again"):
        return _read_csv(path, marker_column, aux, max_lost)


def _read_csv(path: Path, marker_column: str, aux: str, max_lost: float) -> MuseRun:
    table = _open(path, marker_column)
    monitor = "TimeStamp" in table and "RAW_TP9" in table
    prefix, stamp = ("RAW_", "TimeStamp") if monitor else ("", "timestamps")
    columns = [prefix + name for name in ELECTRODES]
    names = [*ELECTRODES]
    if aux:
        names.append(_electrode(aux))
        columns.append(next((c for c in AUXILIARY if c in table), AUXILIARY[0]))
    label = next((c for c in ("Elements", "Marker") if c in table), "Elements")
    wanted = [stamp, *columns, label if monitor else marker_column]
    if missing := [c for c in wanted if c not in table]:
        raise DatasetError(
            f"{path}: no column {', '.join(missing)}; there is {', '.join(table)}. Rename the "
            "column, or name the marker column with --marker-column"
        )
    if monitor:
        times, rows, marked, numbers = _mind_monitor(table, label, path)
    else:
        times = _numbers(table[stamp], path)
        rows, number = table.index, _numbers(table[marker_column].fillna("0"), path)
        if not (np.abs(number) < 1e9).all() or (number % 1).any():
            raise DatasetError(f"{path}: {marker_column} holds a marker that is no whole number")
        marked = np.flatnonzero(number)
        numbers = number[marked].astype(int)
    if not len(numbers):
        raise DatasetError(f"{path}: {wanted[-1]} holds no marker, so nothing says what was shown")
    microvolts = np.array([_numbers(table.loc[rows, c], path) for c in columns])
    _check_channels(microvolts, names, rows.to_numpy() + 2, path)
    lost, deviation, timing = find_losses(times, str(path), max_lost, rows.to_numpy() + 2)
    place = np.arange(len(times)) + np.cumsum(lost)  # of each row, lost samples counted
    if monitor:  # markers have stamps of their own: on the regular grid
        grid = times - deviation
        nearest = np.clip(np.searchsorted(grid, marked), 0, len(grid) - 1)
        samples = place[nearest] + np.round((marked - grid[nearest]) * SFREQ).astype(int)
        placed = (samples >= 0) & (samples <= place[-1])
    else:
        samples, placed = place[marked], np.abs(deviation[marked]) <= TOLERANCE_S
    full = np.arange(place[-1] + 1)
    timing["events_left_out"] = int((~placed).sum())
    return MuseRun(
        path,
        hashlib.sha256(path.read_bytes()).hexdigest(),
        tuple(names),
        np.array([np.interp(full, place, channel) for channel in microvolts]),
        np.column_stack([samples, numbers])[placed],
        tuple((int(place[i] - lost[i]), int(lost[i])) for i in np.flatnonzero(lost)),
        timing,
    )


def _open(path: Path, marker_column: str) -> pd.DataFrame:
    """Read the table as text. Columns of markers that began after the header was written get names."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is no comma-separated table in UTF-8: {error}") from error
    lines = text.splitlines()
    if not lines:
        raise DatasetError(f"{path} is empty: leave it out")
    if ";" in lines[0] and "," not in lines[0]:
        raise DatasetError(
            f"{path} is separated by semicolons, as spreadsheets save it: write it with commas between "
            "columns and points in numbers, or take the file as it was recorded"
        )
    if not text.endswith(("\n", "\r")):
        lines.pop()  # the recording broke off within this line, perhaps within a number
    header = next(csv.reader(lines[:1], skipinitialspace=True), [])
    widths = np.array([line.count(",") + 1 for line in lines])
    extra = int(widths.max(initial=0)) - len(header)
    if extra > 0:
        first = int(np.argmax(widths > len(header))) + 1
        if marker_column in header or "TimeStamp" in header or "timestamps" not in header:
            raise DatasetError(
                f"{path}, line {first}: {widths[first - 1]} cells under {len(header)} columns. Name all "
                "columns in the first line, or take out what is too much"
            )
        # muse-lsl writes a long recording in pieces, and its header before the first marker
        header += [marker_column, *(f"{marker_column}_{i}" for i in range(1, extra))]
    try:
        table = pd.read_csv(
            io.StringIO("\n".join(lines)), dtype=str, skipinitialspace=True, names=header,
            header=None, skiprows=1, index_col=False, skip_blank_lines=False,
        )  # fmt: skip
    except ValueError as error:
        raise DatasetError(f"{path} is no comma-separated table of numbers: {error}") from error
    return table.dropna(how="all")


def _check_channels(
    microvolts: np.ndarray, names: Sequence[str], line: np.ndarray, path: Path
) -> None:
    for name, values in zip(names, microvolts, strict=True):
        if (gone := ~np.isfinite(values)).any():
            raise ChannelError(
                f"{path}: channel {name!r} holds {gone.sum()} samples that are no numbers, from line "
                f"{line[gone.argmax()]} on. Take these lines out, which makes a gap of them, or leave the "
                "file out"
            )
        if np.ptp(values) == 0:
            raise ChannelError(
                f"{path}: no signal at all in {name}: the electrode had no contact. Leave the file out"
            )


def _numbers(cells: pd.Series, path: Path) -> np.ndarray:
    """Cells as numbers, blank ones NaN; the line of one that is none."""
    values = pd.to_numeric(cells, errors="coerce")
    odd = cells.notna() & values.isna() & (cells.str.lower() != "nan")
    if odd.any():
        i = odd.idxmax()
        raise DatasetError(f"{path}, line {i + 2}: {cells.name} {cells[i]!r} is no number")
    return values.to_numpy(float)


def _mind_monitor(
    table: pd.DataFrame, label: str, path: Path
) -> tuple[np.ndarray, pd.Index, np.ndarray, np.ndarray]:
    """Return stamps and index of the rows with samples, stamps and numbers of the markers."""
    stamps = pd.to_datetime(table["TimeStamp"], format="%Y-%m-%d %H:%M:%S.%f", errors="coerce")
    if stamps.isna().any():
        i = stamps.isna().idxmax()
        raise DatasetError(
            f"{path}, line {i + 2}: TimeStamp {table['TimeStamp'][i]!r} is no date with milliseconds "
            "(2024-05-31 10:11:12.345). Spreadsheets cut them when they save: take the file as Mind "
            "Monitor wrote it"
        )
    seconds = (stamps - stamps.iloc[0]).dt.total_seconds()
    found = table[label].str.extract(r"^/Marker/(\d+)", flags=re.IGNORECASE)[0].dropna()
    raw = [c for c in table if c.startswith("RAW_")]
    rows = table.index[table[raw].notna().any(axis=1)]
    markers = seconds[found.index].to_numpy(), found.astype(int).to_numpy()
    return seconds[rows].to_numpy(), rows, *markers


def _electrode(name: str) -> str:
    known: Sequence[str] = mne.channels.make_standard_montage(STANDARD_MONTAGE).ch_names
    found = [k for k in known if k.lower() == name.lower()]
    if not found or found[0] in ELECTRODES:
        raise DatasetError(
            f"{name!r} is no electrode that the auxiliary input can be: name one of the 10-05 system, not "
            f"{', '.join(ELECTRODES)} (--aux POz)"
        )
    return found[0]
