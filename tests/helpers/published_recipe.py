"""The official THINGS-EEG2 preprocessing as plain loops over MNE and scikit-learn.

Written from its description, without regard to time or memory, as what the package's own functions
are compared with in tests and benchmarks. `test` and `training` are the two partitions of a session.
"""

from __future__ import annotations

import re

import mne
import numpy as np
import scipy.linalg
from sklearn.discriminant_analysis import _cov
from sklearn.utils import shuffle

SEED = 20200220
TARGET = 99999


def picked(ch_names: list[str]) -> list[str]:
    """Names that begin with O or P, in recording order."""
    return [name for name in ch_names if re.search("^O *|^P *", name)]


def epochs_of(
    raw: mne.io.BaseRaw,
    events: np.ndarray,
    tmin: float = -0.2,
    tmax: float = 0.8,
    resample_hz: float = 100.0,
    baseline: tuple | None = (None, 0),
) -> mne.Epochs:
    """Cut (the end belongs to the epoch), subtract the baseline, then resample."""
    epochs = mne.Epochs(
        raw, events, tmin=tmin, tmax=tmax, baseline=baseline, preload=True, verbose="error"
    )
    if resample_hz:
        epochs.resample(resample_hz, verbose="error")
    return epochs


def sorted_conditions(raw: mne.io.BaseRaw, max_repetitions: int, **options) -> np.ndarray:
    """Read the events from the stimulus channel and sort the epochs by condition.

    Returns
    -------
    float64 array of shape (n_conditions, max_repetitions, n_channels, n_times), and the conditions
    """
    events = mne.find_events(raw, stim_channel="stim", verbose="error")
    raw = raw.copy().pick(picked(raw.ch_names))
    events = events[events[:, 2] != TARGET]
    epochs = epochs_of(raw, events, **options)
    data, shown = epochs.get_data(), epochs.events[:, 2]
    conditions = np.unique(shown)
    kept = []
    for condition in conditions:
        index = np.where(shown == condition)[0]
        index = shuffle(index, random_state=SEED, n_samples=max_repetitions)
        kept.append(data[index])
    return np.array(kept), conditions


def covariance(data: np.ndarray, mode: str) -> np.ndarray:
    """Mean of the noise covariances of one partition, one scikit-learn estimate after another.

    Parameters
    ----------
    data : float64 array of shape (n_conditions, n_repetitions, n_channels, n_times), or a list of
        arrays of shape (n_repetitions, n_channels, n_times) when the numbers differ
    mode : 'time' or 'epochs'
    """
    of_conditions = []
    for trials in data:
        if mode == "time":
            some = [_cov(trials[:, :, t], shrinkage="auto") for t in range(trials.shape[2])]
        else:
            some = [_cov(trial.T, shrinkage="auto") for trial in trials]
        of_conditions.append(np.mean(some, axis=0))
    return np.mean(of_conditions, axis=0)


def whitened(
    test: np.ndarray, training: np.ndarray, mode: str, fit_on: str = "train+test"
) -> tuple[np.ndarray, np.ndarray]:
    """Whiten both partitions of one session; `fit_on` "train" is not the published form."""
    sigma = covariance(training, mode)
    if fit_on == "train+test":
        sigma = (covariance(test, mode) + sigma) / 2
    matrix = scipy.linalg.fractional_matrix_power(sigma, -0.5)
    return (
        (test.swapaxes(2, 3) @ matrix).swapaxes(2, 3),
        (training.swapaxes(2, 3) @ matrix).swapaxes(2, 3),
    )


def merged(sessions: list[np.ndarray], conditions: list[np.ndarray]) -> np.ndarray:
    """Join the repetitions of all sessions that showed a condition, then permute them."""
    joined = []
    for condition in np.unique(np.concatenate(conditions)):
        parts = [
            data[np.where(shown == condition)[0][0]]
            for data, shown in zip(sessions, conditions, strict=True)
            if condition in shown
        ]
        joined.append(np.concatenate(parts))
    joined = np.array(joined)
    return joined[:, shuffle(np.arange(joined.shape[1]), random_state=SEED)]


def official_chain(
    sessions: list[dict[str, mne.io.BaseRaw]],
    mode: str = "time",
    max_repetitions: dict[str, int] | None = None,
    fit_on: str = "train+test",
) -> dict[str, np.ndarray]:
    """Everything from the stimulus channel to the merged, whitened arrays of one subject.

    Parameters
    ----------
    sessions : list of {"test": Raw, "training": Raw}, each with a channel `stim`
    mode : 'time' or 'epochs'
    max_repetitions : per session, published {"test": 20, "training": 2}
    fit_on : 'train+test' (published) or 'train'

    Returns
    -------
    dict of float64 arrays of shape (n_conditions, n_repetitions, n_channels, n_times)
    """
    keep = max_repetitions or {"test": 20, "training": 2}
    data, shown = {"test": [], "training": []}, {"test": [], "training": []}
    for session in sessions:
        cut = {part: sorted_conditions(session[part], keep[part]) for part in keep}
        test, training = whitened(cut["test"][0], cut["training"][0], mode, fit_on)
        for part, values in (("test", test), ("training", training)):
            data[part].append(values)
            shown[part].append(cut[part][1])
    return {part: merged(data[part], shown[part]) for part in keep}
