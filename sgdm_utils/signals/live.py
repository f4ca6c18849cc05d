"""From a stream to trials while it runs: a filter that keeps its state, lost samples, epochs at markers.

What notebook 01 does to a whole recording, done to blocks of it as they arrive. Everything is linear, so
it is measured on MNE once (an impulse for the filter, unit vectors for the electrodes and for the epoch)
and applied as products; how the stream was cut into blocks has no influence. No stream library is needed
here: `lsl` receives, this module computes. It lies in `signals` and not in `experiments` because a
person with a headset is no experiment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import mne
import numpy as np

from sgdm_utils.signals.epoching import epoch_map

_LONGEST = 256  # samples that are filtered in one product
_AHEAD_S = 60.0  # a marker that is further ahead of the samples has another clock
_FINE, _SETTLING, _LOST = 0, 1, 2


class LiveError(RuntimeError):
    """A stream cannot be used as it is: the message says what was found and what to do."""


@dataclass(frozen=True)
class LiveEpoch:
    """An epoch that has just become complete.

    Attributes
    ----------
    label : what the marker said
    onset : float, seconds, when the marker says that the picture was shown
    data : float64 array of shape (n_channels, n_times), microvolts, as notebook 01 leaves them before
        whitening
    last_sample : float, seconds, stamp of the last sample that it needed
    """

    label: Hashable
    onset: float
    data: np.ndarray
    last_sample: float


def impulse_response(
    filtered: Callable[[mne.io.BaseRaw], mne.io.BaseRaw], sfreq: float, seconds: float = 20.0
) -> np.ndarray:
    """Ask a filter what it makes of one impulse: the taps of the same filter for a stream.

    Parameters
    ----------
    filtered : callable, the filter of notebook 01 with ``filter_phase="minimum"``
    sfreq : float, Hz
    seconds : float, silence before and after the impulse; longer than the response

    Returns
    -------
    float64 array of shape (n_taps,)

    Raises
    ------
    LiveError
        The filter answers before the impulse (zero phase), or longer than `seconds`.
    """
    middle = round(seconds * sfreq)
    impulse = np.zeros((1, 2 * middle))
    impulse[0, middle] = 1.0
    raw = mne.io.RawArray(impulse, mne.create_info(["EEG"], sfreq, "eeg"), verbose="error")
    response = filtered(raw).get_data()[0]
    felt = np.flatnonzero(np.abs(response) > 1e-12 * np.abs(response).max())
    if felt[-1] > 1.9 * middle:
        raise LiveError(f"the filter still answers after {seconds:g} s: give more seconds")
    if felt[0] < middle:
        raise LiveError(
            f"the filter answers {(middle - felt[0]) / sfreq:.2f} s before its input: it looks ahead, "
            "and a stream has no future. Use filter_phase='minimum', and fit the models on trials "
            "that were filtered like that"
        )
    return response[middle : felt[-1] + 1]


def spatial_operator(
    cleaned: Callable[[mne.io.BaseRaw], mne.io.BaseRaw], info: mne.Info
) -> np.ndarray:
    """Ask a cleaning of electrodes (interpolation, eye components, reference) for its matrix.

    Parameters
    ----------
    cleaned : callable; what it adds as a constant is left out, the baseline takes it off anyway
    info : mne.Info of the EEG channels

    Returns
    -------
    float64 array of shape (n_channels, n_channels); ``operator @ samples`` is cleaned
    """
    n = len(info["ch_names"])

    def answer(samples: np.ndarray) -> np.ndarray:
        return cleaned(mne.io.RawArray(samples, info.copy(), verbose="error")).get_data()

    scale = 1e-5  # of EEG in volts
    return (answer(scale * np.eye(n)) - answer(np.zeros((n, n)))) / scale


class CausalFilter:
    """A filter of finite response that goes on where the last block ended.

    Parameters
    ----------
    taps : array of shape (n_taps,), `impulse_response`

    Notes
    -----
    Before the first sample the signal is taken to have always had its value, which spares the filter
    the step from zero to the offset of the electrodes.
    """

    def __init__(self, taps: np.ndarray) -> None:
        self.taps = np.asarray(taps, np.float64)
        self._past: np.ndarray | None = None
        self._matrices: dict[int, np.ndarray] = {}

    def reset(self) -> None:
        """Forget what came before."""
        self._past = None

    def __call__(self, block: np.ndarray) -> np.ndarray:
        """Filter the next samples, (n_channels, n_samples) of any length."""
        block = np.asarray(block, np.float64)
        if not block.shape[1]:
            return block.copy()
        n_past = len(self.taps) - 1
        if self._past is None:
            self._past = np.repeat(block[:, :1], n_past, axis=1)
        parts = []
        for start in range(0, block.shape[1], _LONGEST):
            some = block[:, start : start + _LONGEST]
            known = np.concatenate([self._past, some], axis=1)
            parts.append(known @ self._matrix(some.shape[1]))
            self._past = known[:, known.shape[1] - n_past :]
        return np.concatenate(parts, axis=1)

    def _matrix(self, n: int) -> np.ndarray:
        """Past and block (n_past + n) to the n filtered samples."""
        if n not in self._matrices:
            matrix = np.zeros((len(self.taps) - 1 + n, n))
            for column in range(n):
                matrix[column : column + len(self.taps), column] = self.taps[::-1]
            self._matrices[n] = matrix
        return self._matrices[n]


class EpochCutter:
    """Filtered, cleaned, resampled epochs around markers, from blocks of samples as they arrive.

    Markers may come before their samples, with them, or late, as long as the samples are still kept.
    A stretch that was lost is bridged by the last value, so that the clock goes on, and no epoch that
    touches it, or that the filter's memory of it could reach, is cut: dropped and counted, never
    shifted.

    Parameters
    ----------
    taps : array, of the filter
    operator : array of shape (n_out, n_channels), `spatial_operator`
    sfreq : float, Hz
    tmin, tmax : float, seconds from onset; `tmax` itself does not belong to the epoch
    resample_hz : float, rate of the epochs, 0 keeps the stream's
    baseline : bool, subtract the mean up to onset
    settle_s : float, seconds after the start or a loss until the filter is trusted
    buffer_s : float, seconds of samples that are kept for late markers
    marker_delay_s : float, from the stamp of a marker to what the picture's samples are stamped
    tolerance : float, in samples: two stamps further apart than 1 + tolerance have lost something in
        between. Raise it for amplifiers whose stamps jitter

    Attributes
    ----------
    counts : Counter
        `epochs`, `late_markers` (their epoch was over when they came), `lost_samples`, `gaps`,
        `restarts` (a gap longer than the buffer, or stamps that run backwards), and epochs that were
        dropped: `dropped_lost`, `dropped_settling`, `dropped_outside` (older than the buffer, or
        more than a minute ahead of the samples: a clock of its own).

    Raises
    ------
    LiveError
        Blocks of another number of channels, or with other numbers of samples and stamps.
    """

    def __init__(
        self,
        taps: np.ndarray,
        operator: np.ndarray,
        sfreq: float,
        tmin: float,
        tmax: float,
        resample_hz: float = 0.0,
        baseline: bool = True,
        settle_s: float = 1.5,
        buffer_s: float = 10.0,
        marker_delay_s: float = 0.0,
        tolerance: float = 0.5,
    ) -> None:
        self.filter, self.operator, self.sfreq = CausalFilter(taps), operator, float(sfreq)
        self.first = round(tmin * sfreq)
        self.stop = round((tmax - 1 / sfreq) * sfreq) + 1
        n_in = self.stop - self.first
        subtract = bool(baseline and self.first < 0)
        # the same call as in `cut_epochs`, so that the epochs are the same
        matrix, self.times = epoch_map(
            n_in, self.sfreq, self.first / sfreq, float(resample_hz), subtract
        )
        self._matrix = 1e6 * matrix
        self.settle, self.buffer = round(settle_s * sfreq), round(buffer_s * sfreq)
        if self.buffer < n_in:
            raise LiveError(
                f"buffer_s is {buffer_s:g}, an epoch takes {n_in / sfreq:g} s: keep more"
            )
        self.marker_delay_s, self.tolerance = marker_delay_s, tolerance
        self.counts: Counter[str] = Counter()
        self._waiting: list[tuple[float, Hashable]] = []
        self._last_raw: np.ndarray | None = None
        self._clear()

    @property
    def waiting(self) -> int:
        """Markers whose epoch is not complete yet; at the end of a stream, those that never were."""
        return len(self._waiting)

    def push(self, samples: np.ndarray, stamps: np.ndarray) -> None:
        """Take the next samples, (n_channels, n) in volts, and their stamps (n,) in seconds."""
        samples, stamps = np.asarray(samples, np.float64), np.asarray(stamps, np.float64)
        n_channels = self.operator.shape[1]
        if samples.ndim != 2 or samples.shape != (n_channels, len(stamps)):
            raise LiveError(
                f"a block has the shape {samples.shape} and {len(stamps)} stamps: give ({n_channels} "
                "channels, n samples) in the order of the calibration, and a stamp for each sample"
            )
        if not len(stamps):
            return
        fine = np.isfinite(samples).all(axis=0)
        self.counts["lost_samples"] += int((~fine).sum())
        edges = np.flatnonzero(self._missing(stamps)) + 1
        for part in np.split(np.arange(len(stamps)), edges):
            if len(part):
                self._bridge(stamps[part[0]])
                self._append(samples[:, part], stamps[part], np.where(fine[part], _FINE, _LOST))

    def mark(self, label: Hashable, stamp: float) -> None:
        """Take a marker: the picture that `label` names was shown at `stamp`."""
        onset = float(stamp) + self.marker_delay_s
        if len(self._stamps) and self._stamps[-1] >= onset + (self.stop - 1.5) / self.sfreq:
            self.counts["late_markers"] += 1
        self._waiting.append((onset, label))
        self._waiting.sort(key=lambda pair: pair[0])

    def ready(self) -> list[LiveEpoch]:
        """Epochs that have become complete since the last call, in the order of their onsets."""
        epochs, waiting = [], []
        for onset, label in self._waiting:
            found = self._place(onset)
            if found is None:
                waiting.append((onset, label))
            elif isinstance(found, str):
                self.counts[found] += 1
            else:
                window = slice(found + self.first, found + self.stop)
                data = self.operator @ (self._samples[:, window] @ self._matrix)
                self.counts["epochs"] += 1
                epochs.append(LiveEpoch(label, onset, data, float(self._stamps[window.stop - 1])))
        self._waiting = waiting
        return epochs

    def _place(self, onset: float) -> int | str | None:
        """Index of the sample at onset, why there is no epoch, or None while it is incomplete."""
        if not len(self._stamps):
            return None
        half = 0.5 / self.sfreq
        if onset > self._stamps[-1] + half:
            ahead = onset - self._stamps[-1] > _AHEAD_S
            return "dropped_outside" if ahead else None
        i = int(np.abs(self._stamps - onset).argmin())
        if i + self.first < 0 or onset < self._stamps[0] - half:
            return "dropped_outside"
        if i + self.stop > len(self._stamps):
            return None
        worst = self._state[i + self.first : i + self.stop].max()
        return {_FINE: i, _SETTLING: "dropped_settling", _LOST: "dropped_lost"}[int(worst)]

    def _missing(self, stamps: np.ndarray) -> np.ndarray:
        """Where something is missing between two stamps of a block, or the clock jumps back."""
        steps = np.diff(stamps) * self.sfreq
        return (steps > 1 + self.tolerance) | (steps <= 0)

    def _bridge(self, stamp: float) -> None:
        """Fill what is missing before a sample with the last value, or begin anew."""
        if not len(self._stamps):
            return
        steps = (stamp - self._stamps[-1]) * self.sfreq
        if 0 < steps <= 1 + self.tolerance:
            return
        n = round(steps) - 1
        self.counts["gaps"] += 1
        if n > self.buffer or steps <= 0:
            self.counts["restarts"] += 1
            self.counts["lost_samples"] += max(n, 0)
            self._clear()
            return
        self.counts["lost_samples"] += n
        held = np.repeat(self._last_raw, n, axis=1)
        stamps = self._stamps[-1] + np.arange(1, n + 1) * (stamp - self._stamps[-1]) / (n + 1)
        self._append(held, stamps, np.full(n, _LOST))

    def _append(self, samples: np.ndarray, stamps: np.ndarray, state: np.ndarray) -> None:
        samples = self._held(samples, state == _LOST)
        state = state.copy()
        for i in range(len(state)):  # blocks are short
            if state[i] == _LOST:
                self._unsettled = self.settle
            elif self._unsettled:
                state[i], self._unsettled = _SETTLING, self._unsettled - 1
        filtered = self.filter(samples)
        self._last_raw = samples[:, -1:]
        self._samples = np.concatenate([self._samples, filtered], axis=1)[:, -self.buffer :]
        self._stamps = np.concatenate([self._stamps, stamps])[-self.buffer :]
        self._state = np.concatenate([self._state, state])[-self.buffer :]

    def _held(self, samples: np.ndarray, lost: np.ndarray) -> np.ndarray:
        """The last good value in the place of lost ones; a NaN would stay in the filter for seconds."""
        if not lost.any():
            return samples
        before = self._last_raw
        if before is None:
            before = np.zeros((len(samples), 1))
        known = np.concatenate(
            [before, np.nan_to_num(samples, nan=0.0, posinf=0, neginf=0)], axis=1
        )
        source = np.where(np.concatenate([[False], lost]), 0, np.arange(len(lost) + 1))
        return known[:, np.maximum.accumulate(source)[1:]]

    def _clear(self) -> None:
        self.filter.reset()
        self._samples = np.empty((self.operator.shape[1], 0))
        self._stamps, self._state = np.empty(0), np.empty(0, int)
        self._unsettled = self.settle
