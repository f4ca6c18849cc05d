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

from sgdm_utils.electrodes import STANDARD_MONTAGE
from sgdm_utils.errors import ChannelError, DatasetError

RECORDING_COLUMNS = ("subject", "session", "task", "run", "path")
EVENT_COLUMNS = (
    "subject", "session", "run", "trial", "onset_s", "sample", "image_id", "concept", "stim_file",
    "repetition",
)  # fmt: skip
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
    """Refuse samples that are not numbers and channels without any signal.

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
    finite = np.isfinite(data)
    if not finite.all():
        worst = int((~finite).sum(1).argmax())
        raise ChannelError(
            f"{where}: channel {ch_names[worst]!r} holds {int((~finite[worst]).sum())} samples that "
            "are NaN or infinite. Mark it as bad in channels.tsv (status 'bad') or export the "
            "recording again."
        )
    flat = np.ptp(data, axis=1) == 0
    if flat.any():
        names = [ch_names[i] for i in np.flatnonzero(flat)]
        raise ChannelError(
            f"{where}: no signal at all in {', '.join(names)}. Mark these channels as bad in "
            "channels.tsv (status 'bad'); they are interpolated then."
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
