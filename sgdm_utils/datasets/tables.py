"""What every reader of a data set returns: tables of recordings, trials and images, and the signal.

A data set is either *continuous* (a file for each run, events say when something was shown) or
*epochs* (somebody has cut and perhaps whitened the trials already). Whatever the files look like,
the rest of the study sees the three tables below and asks for one recording at a time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import mne
import numpy as np
import pandas as pd

from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE
from sgdm_utils.errors import ChannelError, DatasetError

RECORDING_COLUMNS = ("subject", "session", "task", "run", "path")
EVENT_COLUMNS = (
    "subject", "session", "run", "trial", "onset_s", "sample", "image_id", "concept", "stim_file",
    "repetition",
)  # fmt: skip
#: Span within a second, or a trial: smallest, typical and largest of the median channel, and the largest
#: of any, which for volts is beyond the range of every amplifier.
SPANS = {"volts": (5e-7, 5e-5, 5e-3, 0.5), "whitened": (0.05, 5.0, 500.0, 1e5)}
SMALLEST_V = 1e-9  # span of a channel over a recording, less than a step of any amplifier
LARGEST_V = 10.0  # distance of a sample from its channel's level, more than any offset
RATES = (1.0, 1e6)  # Hz
IMAGE_COLUMNS = ("image_id", "concept", "stim_file", "n_trials")


@dataclass(frozen=True)
class StudyTables:
    """A data set, listed and checked; no sample of the signal is held.

    Attributes
    ----------
    layout : 'continuous' or 'epochs'
    recordings : DataFrame
        `RECORDING_COLUMNS`, one row for each file that `read_raw` or `read_epochs` can open:
        subject ("sub-01"), session and run ("" where there is none), path relative to the root.
        Where there is a column `channels`, `read_raw` puts the EEG channels into that order.
    events : DataFrame
        `EVENT_COLUMNS`, one row for each picture that was shown, targets and catch trials left out.
        `sample` is the index of the onset in the recording (continuous) or of the trial along the
        first axis of the signal (epochs, where `onset_s` is NaN if the files do not tell it);
        `repetition` counts from 0 how often this subject had seen the image before.
    images : DataFrame
        `IMAGE_COLUMNS`, one row for each image of `events`, sorted by `image_id`; `partition` is the
        published one ("train" or "test"), or "" where the data set has none.
    notes : dict
        Plain facts for the manifest and for the reader: what was skipped, how many targets, which
        reference; `transductive` is True when the published files were made with test data (e.g. a
        whitener that was fitted on them).
    """

    layout: Literal["continuous", "epochs"]
    recordings: pd.DataFrame
    events: pd.DataFrame
    images: pd.DataFrame
    notes: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = (
            ("recordings", RECORDING_COLUMNS),
            ("events", EVENT_COLUMNS),
            ("images", (*IMAGE_COLUMNS, "partition")),
        )
        for name, columns in wanted:
            missing = [c for c in columns if c not in getattr(self, name)]
            if missing:
                raise DatasetError(f"the reader's table {name} lacks {', '.join(missing)}")
        if self.events.empty:
            raise DatasetError("the data set holds no event at which a picture was shown")


@dataclass(frozen=True)
class EpochedSignal:
    """Trials that were cut before they were published.

    Attributes
    ----------
    data : array of shape (n_trials, n_channels, n_times), float
    ch_names : list of str, EEG channels in the order of `data`
    times : float64 array of shape (n_times,), seconds from picture onset
    unit : 'volts' or 'whitened'
    """

    data: np.ndarray
    ch_names: Sequence[str]
    times: np.ndarray
    unit: Literal["volts", "whitened"]

    @property
    def sfreq(self) -> float:
        """Sampling rate in Hz, from `times`."""
        return float((len(self.times) - 1) / (self.times[-1] - self.times[0]))

    def __post_init__(self) -> None:
        shape = (len(self.data), len(self.ch_names), len(self.times))
        if tuple(self.data.shape) != shape:
            raise DatasetError(
                f"the signal has the shape {tuple(self.data.shape)}, but its channel names and "
                f"times make {shape}"
            )


def natural_order(names: pd.Series) -> pd.Series:
    """Sort key by which run 2 precedes run 10: `table.sort_values("run", key=natural_order)`.

    Parameters
    ----------
    names : Series of str

    Returns
    -------
    Series of str, every number in them written with twelve digits
    """
    return names.map(lambda name: re.sub(r"\d+", lambda m: m.group().zfill(12), str(name)))


def check_signal(data: np.ndarray, ch_names: list[str], where: str) -> None:
    """Refuse samples that are no numbers or that nothing records, and channels without any signal.

    Parameters
    ----------
    data : array of shape (n_channels, n_samples), volts
    ch_names : list of str
    where : str, the file, for the message

    Raises
    ------
    ChannelError
        With the channel, the number of samples concerned, and the remedy.
    """
    # row by row, lest memory doubles; away from the channel's own level, which direct current may lift
    count, what = [int((~np.isfinite(row)).sum()) for row in data], "NaN or infinite"
    finite = not any(count)
    if finite:
        count = [int((np.abs(row - np.median(row)) > LARGEST_V).sum()) for row in data]
        what = f"more than {LARGEST_V:g} V off its median"
    # where most channels are like that it is their unit, of which `check_magnitude` says more
    if any(count) and not (finite and np.count_nonzero(count) > len(count) / 2):
        worst = int(np.argmax(count))
        raise ChannelError(
            f"{where}: channel {ch_names[worst]!r} holds {count[worst]} samples that are {what}. Mark it "
            "as bad in channels.tsv (status 'bad') or export the recording again."
        )
    span = np.ptp(data, axis=1)
    small = span < SMALLEST_V
    flat = small if small.mean() <= 0.5 else span == 0
    if flat.any():
        names = [ch_names[i] for i in np.flatnonzero(flat)]
        raise ChannelError(
            f"{where}: no signal at all in {', '.join(names)}. Mark these channels as bad in "
            "channels.tsv (status 'bad'); they are interpolated then."
        )


def eeg_names(raw: mne.io.BaseRaw) -> list[str]:
    """Names of the EEG channels, bad ones included, in the order of the recording."""
    return [raw.ch_names[i] for i in mne.pick_types(raw.info, eeg=True, exclude=[])]


def in_order(raw: mne.io.BaseRaw, channels: Sequence[str], where: str) -> mne.io.BaseRaw:
    """Put the EEG channels of a recording into the order of the study; others keep their places.

    Trials of several recordings are stacked row by row, and files of one study may list the same
    electrodes in another order.

    Raises
    ------
    DatasetError
        When the recording has other EEG channels than the study.
    """
    eeg = eeg_names(raw)
    if eeg == list(channels):
        return raw
    if sorted(eeg) != sorted(channels):
        odd = ", ".join(sorted(set(eeg) ^ set(channels)))
        raise DatasetError(
            f"{where}: its EEG channels are no longer those of the study ({odd}). Were the files "
            "changed after 00_data? Run it again"
        )
    place = iter(channels)
    return raw.reorder_channels(
        [next(place) if name in set(eeg) else name for name in raw.ch_names]
    )


def check_magnitude(raw: mne.io.BaseRaw, where: str) -> None:
    """Refuse EEG whose size is that of another unit, and rates that are none.

    The span of 20 single seconds is compared with what amplifiers on a scalp give: 10 to 300 µV,
    less in a quiet montage, millivolts with mains or loose electrodes.

    Parameters
    ----------
    raw : mne.io.BaseRaw, volts; need not be preloaded
    where : str, the file, for the message

    Raises
    ------
    DatasetError
        With the factor that it looks like and where the unit is written.
    """
    check_rate(raw.info["sfreq"], where)
    names = [raw.ch_names[i] for i in mne.pick_types(raw.info, eeg=True)]  # bad ones are left out
    if not names:
        return
    if not raw.n_times:
        raise DatasetError(f"{where} holds no samples: its signal is missing. Copy it again")
    n_samples = min(raw.n_times, max(2, round(raw.info["sfreq"])))
    starts = np.linspace(0, raw.n_times - n_samples, 20).astype(int)
    blocks = [raw.get_data(names, i, i + n_samples, verbose="error") for i in np.unique(starts)]
    _check_spans([np.ptp(block, axis=1) for block in blocks], names, where, "volts")


def check_epochs(signal: EpochedSignal, where: str) -> None:
    """Refuse trials whose size is not that of their unit; 20 of them are read.

    Raises
    ------
    DatasetError
        With the factor that it looks like.
    ChannelError
        A trial that holds what is no number.
    """
    check_rate(signal.sfreq, where)
    rows = np.unique(np.linspace(0, len(signal.data) - 1, 20).astype(int))
    block = np.asarray(signal.data[rows], dtype=np.float64)
    if not np.isfinite(block).all():
        trial, channel = np.argwhere(~np.isfinite(block))[0][:2]
        raise ChannelError(
            f"{where}: trial {rows[trial]}, channel {signal.ch_names[channel]!r} holds what is NaN or "
            "infinite. Download the file again"
        )
    _check_spans(np.ptp(block, axis=2), list(signal.ch_names), where, signal.unit)


def check_rate(sfreq: float, where: str) -> None:
    """Refuse a sampling rate that no EEG has."""
    if not RATES[0] <= sfreq <= RATES[1]:
        raise DatasetError(
            f"{where}: a sampling rate of {sfreq:g} Hz, and EEG is sampled at {RATES[0]:g} to "
            f"{RATES[1]:g}. Correct it in the header, or copy the file again"
        )


def _check_spans(spans: Sequence[np.ndarray], names: list[str], where: str, unit: str) -> None:
    """Compare spans of channels, shape (n_blocks, n_channels), with those that their unit has."""
    with np.errstate(invalid="ignore"):
        span = np.median(spans, axis=0)
    if not np.isfinite(span).all() or not (span > 0).any():
        return  # `check_signal` says more of these
    smallest, usual, largest, extreme = SPANS[unit]
    typical = float(np.median(span[span > 0]))
    one = smallest <= typical <= largest
    if one and span.max() <= extreme:
        return
    value = span.max() if one else typical
    which = f"channel {names[int(span.argmax())]!r}" if one else "the EEG"
    power = 3 * max(-3, min(3, round(np.log10(value / usual) / 3)))
    power = power or (3 if value > usual else -3)
    looks = f"it looks 10^{abs(power)} times too {'large' if power > 0 else 'small'}"
    if unit == "whitened":
        raise DatasetError(
            f"{where}: {which} spans {value:.2g} within a trial (median), whitened EEG some 3 to 10: "
            f"{looks}. Is it the whitened file? Download it again"
        )
    raise DatasetError(
        f"{where}: {which} spans {value:.2g} V within a second (median), EEG some 10 to 300 µV: "
        f"{looks}. Read as volts is "
        "what the header gives no unit that is known (EDF and BDF: physical dimension uV or mV; "
        "BrainVision: unit of [Channel Infos]; EEGLAB: data are microvolts always). Correct the unit "
        f"there, or save the data multiplied by 1e{-power}"
    )


def montage_info(signal: EpochedSignal) -> mne.Info:
    """MNE's description of the channels of published epochs, with standard positions.

    Raises
    ------
    DatasetError
        A channel that the standard 10-05 system does not know.
    """
    info = mne.create_info(list(signal.ch_names), signal.sfreq, "eeg", verbose="error")
    standard = mne.channels.make_standard_montage(STANDARD_MONTAGE)
    known = {name.lower() for name in standard.ch_names}
    unknown = [name for name in signal.ch_names if name.lower() not in known]
    if unknown:
        raise DatasetError(
            f"channel {unknown[0]!r} has no position in the standard 10-05 system: is it named as "
            "the data set's description says?"
        )
    info.set_montage(standard, match_case=False, verbose="error")
    return info
