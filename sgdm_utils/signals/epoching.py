"""From continuous EEG to trials: cut, subtract the baseline, resample, choose repetitions.

Baseline correction and FFT resampling of an epoch are together one fixed linear map. MNE is asked
once what it does to the unit vectors; the answer is then applied to blocks of events as a matrix
product. The numbers stay MNE's, whatever its version, and no full-rate epoch outlives its block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import mne
import numpy as np

from sgdm_utils.datasets.pauses import bad_stretches
from sgdm_utils.errors import DatasetError

PUBLISHED_CHANNELS = "^O *|^P *"  # O... and P..., case sensitive: occipital and parietal
PUBLISHED_SEED = 20200220
_BLOCK_BYTES = 32 << 20  # few large products: threads of a product wait for each other


class EpochMap(NamedTuple):
    """What baseline correction and resampling do to one channel of one epoch.

    Attributes
    ----------
    matrix : float64 array of shape (n_times_in, n_times_out), read-only; epoch @ matrix
    times : float64 array of shape (n_times_out,), seconds from onset, read-only
    """

    matrix: np.ndarray
    times: np.ndarray


@lru_cache(maxsize=8)
def epoch_map(
    n_times_in: int, sfreq: float, tmin: float, resample_hz: float, baseline: bool
) -> EpochMap:
    """Ask MNE for the linear map from an epoch as recorded to an epoch as analysed.

    Parameters
    ----------
    n_times_in : int, samples of an epoch as recorded
    sfreq : float, Hz, of the recording
    tmin : float, seconds, first sample from onset
    resample_hz : float, 0 keeps the recording's rate
    baseline : bool, subtract the mean of the time up to onset before resampling

    Returns
    -------
    EpochMap
    """
    units = mne.EpochsArray(
        np.eye(n_times_in)[:, None], mne.create_info(1, sfreq, "eeg"), tmin=tmin, verbose="error"
    )
    if baseline:
        units.apply_baseline((None, 0), verbose="error")
    if resample_hz and resample_hz != sfreq:
        units.resample(resample_hz, verbose="error")
    matrix = np.ascontiguousarray(units.get_data(copy=False)[:, 0])
    times = units.times.copy()
    matrix.flags.writeable = times.flags.writeable = False
    return EpochMap(matrix, times)


def cut_epochs(
    recording: mne.io.BaseRaw | np.ndarray,
    sample: np.ndarray,
    sfreq: float,
    tmin: float,
    tmax: float,
    baseline: bool,
    resample_hz: float,
    end: Literal["exclusive", "inclusive"] = "exclusive",
    picks: Sequence[int] | None = None,
    dtype: np.dtype | type = np.float32,
    out: np.ndarray | None = None,
    chunk: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Epochs around picture onsets: cut, subtract the baseline, resample (in this order).

    The order is the one of the official THINGS-EEG2 preprocessing, which subtracts the mean from
    -0.2 to 0 s, both ends included; after resampling that mean is only nearly 0.

    Parameters
    ----------
    recording : mne.io.BaseRaw, or array of shape (n_channels, n_samples), volts
        Read block by block: a Raw that was not preloaded and a memory map stay on the disk.
    sample : int array of shape (n_events,), index of each onset, counted from the first sample
    sfreq : float, Hz, of the recording
    tmin, tmax : float, seconds from onset
    baseline : bool, subtract the mean of the time up to onset (nothing when `tmin` is not before it)
    resample_hz : float, 0 keeps the recording's rate
    end : 'exclusive' or 'inclusive'
        Whether the sample at `tmax` belongs to the epoch. Without it, `tmax - tmin` seconds give
        `(tmax - tmin) * sfreq` samples; with it one more, which is the published form (-0.2 to
        0.8 s at 1000 Hz: 1001 samples, 100 of them at 100 Hz).
    picks : sequence of int, rows of the recording, in the order wanted
        Default: all EEG channels of a Raw, bad ones included; all rows of an array.
    dtype : float32 or float64, of the computation and of the result
    out : array or memory map of shape (n_events, n_channels, n_times), optional
        Also anything with `append(block)`, when `sample` is ascending.
    chunk : int, events held at once at the recording's rate (default about 32 MB); it bounds the
        memory and has no influence on the result beyond rounding

    Returns
    -------
    epochs : array of shape (n_events, n_channels, n_times), `dtype`, volts, or `out`
    times : float64 array of shape (n_times,), seconds from onset

    Raises
    ------
    DatasetError
        Events too close to an end of the recording, two events at one sample, samples that are no
        whole numbers, a sampling rate that is not the recording's, projectors that were not
        applied, a result that does not fit into `out`.

    Notes
    -----
    float32 differs from MNE by 1e-9 V at most also under a large offset: the first sample of each
    window is subtracted in the recording's precision before the rest is rounded.
    """
    if end not in ("exclusive", "inclusive"):
        raise ValueError(f"unknown end {end!r} of an epoch: 'exclusive' or 'inclusive'")
    read, n_channels, n_samples = _reader(recording, sfreq, picks)
    first = round(tmin * sfreq)
    stop = round((tmax if end == "inclusive" else tmax - 1 / sfreq) * sfreq) + 1
    sample = np.asarray(sample)
    _check_events(sample, sfreq, first, stop, n_samples, (tmin, tmax))
    n_in = stop - first
    if n_in < 2:
        raise DatasetError(f"an epoch from {tmin} to {tmax} s has {n_in} samples at {sfreq:g} Hz")
    subtract = bool(baseline and first < 0)
    exact, times = epoch_map(n_in, float(sfreq), first / sfreq, float(resample_hz), subtract)
    matrix = exact.astype(dtype)
    shape = (len(sample), n_channels, len(times))
    out = np.empty(shape, dtype) if out is None else out
    order = np.argsort(sample, kind="stable")
    ascending = bool((order == np.arange(len(order))).all())
    append = getattr(out, "append", None)
    if append is None and tuple(out.shape) != shape:
        raise DatasetError(f"the epochs have the shape {shape}, the place for them {out.shape}")
    if append is not None and not ascending:
        raise DatasetError("epochs can be appended in ascending order of their samples only")
    chunk = chunk or max(1, _BLOCK_BYTES // (np.dtype(dtype).itemsize * n_channels * n_in))
    chunk = min(chunk, max(1, len(sample)))
    window = np.empty((chunk, n_channels, n_in), dtype)
    offset = np.empty((chunk, n_channels, 1))
    product = np.empty((chunk * n_channels, len(times)), dtype)
    for events in _blocks(sample[order], n_in, chunk):
        start = sample[order[events]] + first
        block = read(int(start[0]), int(start[-1]) + n_in)
        for i, s in enumerate(start - start[0]):
            cut = block[:, s : s + n_in]
            offset[i] = cut[:, :1]
            np.subtract(cut, cut[:, :1], out=window[i], casting="same_kind")
        n = len(start)
        np.matmul(window[:n].reshape(-1, n_in), matrix, out=product[: n * n_channels])
        epochs = product[: n * n_channels].reshape(n, n_channels, -1)
        if not subtract:  # with a baseline the map takes every constant to 0
            epochs += offset[:n] * exact.sum(0)
        if append is None:
            out[events if ascending else order[events]] = epochs
        else:
            append(epochs.copy())
    return out, times.copy()


def touches_bad(raw: mne.io.BaseRaw, sample: np.ndarray, tmin: float, tmax: float) -> np.ndarray:
    """Tell which epochs touch a stretch that is marked as bad ("BAD lost", see `pauses.BAD`).

    Parameters
    ----------
    raw : mne.io.BaseRaw
    sample : int array of shape (n_events,), index of each onset
    tmin, tmax : float, seconds from onset

    Returns
    -------
    bool array of shape (n_events,)
    """
    onset = np.asarray(sample)[:, None] / raw.info["sfreq"]
    start, stop = bad_stretches(raw).T
    return ((onset + tmin < stop) & (onset + tmax > start)).any(1)


def published_channels(ch_names: Sequence[str]) -> list[int]:
    """Rows of the 17 occipital and parietal channels of the official THINGS-EEG2 preprocessing.

    Raises
    ------
    DatasetError
        When no name begins with O or P (upper case).
    """
    rows = mne.pick_channels_regexp(list(ch_names), PUBLISHED_CHANNELS)
    if not rows:
        raise DatasetError(
            f"no channel whose name begins with O or P among {', '.join(ch_names)}: the published "
            "choice is case sensitive (Oz, not oz). Rename the channels as in channels.tsv"
        )
    return list(rows)


def choose_repetitions(
    condition: np.ndarray, max_repetitions: int, seed: int = PUBLISHED_SEED
) -> np.ndarray:
    """Which repetitions of each condition are kept, by the published draw.

    The generator starts anew for every condition, so the choice depends on nothing but how often
    the condition was shown: 2 of 2 are taken as [1, 0], 2 of 3 as [1, 2], 2 of 4 as [2, 1].

    Parameters
    ----------
    condition : array of shape (n_trials,), in the order of presentation
    max_repetitions : int, how many to keep (THINGS-EEG2 per session: 20 in test, 2 in training)
    seed : int, the published one by default

    Returns
    -------
    int array of shape (n_conditions, max_repetitions), row numbers; conditions in sorted order

    Raises
    ------
    DatasetError
        When a condition was shown less often than that.

    References
    ----------
    Gifford, Dwivedi, Roig & Cichy (2022), NeuroImage 264:119754, and the code of its data set:
    `sklearn.utils.shuffle(rows, random_state=seed, n_samples=max_repetitions)`.
    """
    condition = np.asarray(condition)
    label, count = np.unique(condition, return_counts=True)
    if len(label) and count.min() < max_repetitions:
        raise DatasetError(
            f"{int((count < max_repetitions).sum())} of {len(label)} conditions have fewer than "
            f"{max_repetitions} repetitions (first: {label[count.argmin()]!r} with {count.min()}). "
            "Is a session or a part of it missing? Otherwise keep fewer repetitions"
        )
    grouped = np.argsort(condition, kind="stable")
    begin = np.cumsum(count) - count
    chosen = np.empty((len(label), max_repetitions), dtype=np.intp)
    for n in np.unique(count):
        same = count == n
        draw = np.arange(n)
        np.random.RandomState(seed).shuffle(draw)  # noqa: NPY002 (the published generator)
        chosen[same] = grouped[begin[same, None] + draw[:max_repetitions]]
    return chosen


def _reader(
    recording: mne.io.BaseRaw | np.ndarray, sfreq: float, picks: Sequence[int] | None
) -> tuple[Callable[[int, int], np.ndarray], int, int]:
    """Return a function that reads samples start to stop, and the numbers of channels and samples."""
    if not isinstance(recording, mne.io.BaseRaw):
        n_rows, n_samples = recording.shape
        rows = np.arange(n_rows) if picks is None else np.asarray(picks)
        if picks is None:
            return lambda start, stop: recording[:, start:stop], n_rows, n_samples
        return lambda start, stop: recording[rows, start:stop], len(rows), n_samples
    if recording.info["sfreq"] != sfreq:
        raise DatasetError(
            f"the recording was sampled at {recording.info['sfreq']:g} Hz, not at {sfreq:g} Hz"
        )
    if picks is None:
        picks = mne.pick_types(recording.info, eeg=True, exclude=[])
    waiting = [p["desc"] for p in recording.info["projs"] if not p["active"]]
    if waiting:
        raise DatasetError(
            f"the projector {waiting[0]!r} of the recording was not applied: raw.apply_proj() "
            "first, or raw.del_proj()"
        )
    rows = np.asarray(picks)
    if not len(rows):
        raise DatasetError("the recording has no EEG channel to cut epochs from")
    return (
        lambda start, stop: recording.get_data(rows, start, stop, verbose="error"),
        len(rows),
        recording.n_times,
    )


def _check_events(
    sample: np.ndarray,
    sfreq: float,
    first: int,
    stop: int,
    n_samples: int,
    limits: tuple[float, float],
) -> None:
    if sample.ndim != 1 or not (np.issubdtype(sample.dtype, np.integer) or not sample.size):
        raise DatasetError(
            f"event samples are whole numbers in one row, not {sample.dtype} of shape "
            f"{sample.shape}: np.round(onset_s * sfreq).astype(int)"
        )
    lost = np.flatnonzero((sample + first < 0) | (sample + stop > n_samples))
    if len(lost):
        raise DatasetError(
            f"{len(lost)} of {len(sample)} events lie too close to an end of the run for an epoch "
            f"from {limits[0]} to {limits[1]} s (first: event {lost[0]} at "
            f"{sample[lost[0]] / sfreq:.3f} s). "
            f"Leave them out (margin_s of 00_data, {max(-limits[0], limits[1]):g} here) or shorten the "
            "epoch (tmin, tmax)"
        )
    value, count = np.unique(sample, return_counts=True)
    if (count > 1).any():
        twice = np.flatnonzero(sample == value[count.argmax()])
        raise DatasetError(
            f"{int((count > 1).sum())} samples carry more than one event (first: events {twice[0]} "
            f"and {twice[1]} at {value[count.argmax()] / sfreq:.3f} s). Remove the doubled ones "
            "from events.tsv"
        )


def _blocks(sample: np.ndarray, n_in: int, chunk: int) -> Iterator[slice]:
    """Split ascending events where `chunk` are together or a gap need not be read."""
    start = 0
    far = np.diff(sample) > n_in
    for i in range(1, len(sample) + 1):
        if i == len(sample) or i - start == chunk or far[i - 1]:
            yield slice(start, i)
            start = i
