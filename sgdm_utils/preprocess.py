"""From continuous EEG to trials: bad channels, epochs, noise normalisation, averaging, ceilings.

Filtering and ICA are calls of MNE and stay in the notebook; here is what is used by more than one
notebook or needs an estimator that MNE does not have.
"""

from __future__ import annotations

from typing import Literal

import mne
import numpy as np
import pandas as pd


class ChannelError(ValueError):
    """A channel cannot be used as it is: the message names it and says what to do."""


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


def find_bad_channels(raw: mne.io.BaseRaw, threshold: float = 5.0) -> list[str]:
    """Channels whose power or whose likeness to the others is out of line.

    Two robust z scores over channels, on 1-45 Hz data: the logarithm of the standard deviation, and
    the median absolute correlation with all other channels (a low one is suspicious).

    Parameters
    ----------
    raw : mne.io.BaseRaw with EEG channels, volts
    threshold : float, robust z beyond which a channel is bad

    Returns
    -------
    list of str, channel names in recording order
    """
    picks = mne.pick_types(raw.info, eeg=True, exclude=[])
    if len(picks) < 8:
        return []  # robust statistics over channels need channels
    high = min(45.0, 0.45 * raw.info["sfreq"])
    data = mne.filter.filter_data(
        raw.get_data(picks), raw.info["sfreq"], 1.0, high, method="iir", verbose="error"
    )
    correlation = np.abs(np.corrcoef(data))
    np.fill_diagonal(correlation, np.nan)

    def robust_z(x: np.ndarray) -> np.ndarray:
        centre = np.median(x)
        return (x - centre) / max(1.4826 * np.median(np.abs(x - centre)), 1e-12)

    loud = np.abs(robust_z(np.log(data.std(1)))) > threshold
    # Fisher z keeps the scale of correlations near 1 comparable
    lonely = robust_z(np.arctanh(np.nanmedian(correlation, axis=1))) < -threshold
    return [raw.ch_names[p] for p, out in zip(picks, loud | lonely, strict=True) if out]


def cut_epochs(
    raw: mne.io.BaseRaw,
    onset_s: np.ndarray,
    tmin: float,
    tmax: float,
    baseline: bool,
    resample_hz: float,
) -> mne.EpochsArray:
    """Epochs around picture onsets: cut, subtract the baseline, resample (in this order).

    The order is the one of the official THINGS-EEG2 preprocessing. The end is exclusive, so
    `tmax - tmin` seconds give exactly `(tmax - tmin) * resample_hz` samples.

    Parameters
    ----------
    raw : mne.io.BaseRaw, cleaned, volts
    onset_s : array of shape (n_events,), seconds from the first sample
    tmin, tmax : float, seconds from onset
    baseline : bool, subtract the mean of the time before onset
    resample_hz : float, 0 keeps the recording's rate

    Returns
    -------
    mne.EpochsArray with the EEG channels of `raw`
    """
    sfreq = raw.info["sfreq"]
    sample = np.round(np.asarray(onset_s) * sfreq).astype(int) + raw.first_samp
    events = np.stack([sample, np.zeros_like(sample), np.ones_like(sample)], axis=1)
    epochs = mne.Epochs(
        raw, events, {"picture": 1}, tmin, tmax - 1 / sfreq, picks="eeg", preload=True,
        baseline=(None, 0) if baseline and tmin < 0 else None, reject=None, verbose="error",
        event_repeated="error",
    )  # fmt: skip
    if len(epochs) != len(sample):
        lost = sorted(set(range(len(sample))) - set(epochs.selection.tolist()))
        raise ValueError(
            f"{len(lost)} of {len(sample)} events lie too close to an end of the run for an epoch "
            f"from {tmin} to {tmax} s (first: event {lost[0]} at {onset_s[lost[0]]:.3f} s). "
            "Drop them from events.tsv or shorten the epoch (tmin, tmax)."
        )
    if resample_hz and resample_hz != sfreq:
        epochs.resample(resample_hz, verbose="error")
    return epochs


def ledoit_wolf_covariance(trials: np.ndarray) -> np.ndarray:
    """Shrunken channel covariance of every trial, over its time points, in one pass.

    Parameters
    ----------
    trials : array of shape (n_trials, n_channels, n_times)

    Returns
    -------
    float64 array of shape (n_trials, n_channels, n_channels)

    References
    ----------
    Ledoit & Wolf (2004), J. Multivariate Analysis 88:365, eq. 14, on variables standardised by their
    biased standard deviation, as scikit-learn's discriminant analysis does ('auto' shrinkage).
    """
    x = np.asarray(trials, dtype=np.float64)
    n, p = x.shape[2], x.shape[1]
    x = x - x.mean(2, keepdims=True)
    sd = x.std(2, keepdims=True)
    z = x / np.where(sd == 0, 1.0, sd)
    s = z @ z.transpose(0, 2, 1) / n
    mu = np.trace(s, axis1=1, axis2=2) / p
    squares = (s**2).sum((1, 2))
    # sum_ij sum_t z_it^2 z_jt^2 = sum_t (sum_i z_it^2)^2: no second p x p product is needed
    fourth = ((z**2).sum(1) ** 2).sum(1)
    beta = (fourth / n - squares) / (p * n)
    delta = (squares - p * mu**2) / p
    beta = np.minimum(np.maximum(beta, 0.0), delta)
    shrinkage = np.where(beta > 0, beta / np.where(delta > 0, delta, 1.0), 0.0)[:, None, None]
    r = (1 - shrinkage) * s + shrinkage * mu[:, None, None] * np.eye(p)
    scale = np.where(sd == 0, 1.0, sd)
    return r * scale * scale.transpose(0, 2, 1)


def noise_covariance(
    eeg: np.ndarray, method: Literal["epochs"] = "epochs", chunk: int = 512
) -> np.ndarray:
    """Average noise covariance of a set of trials (multivariate noise normalisation).

    Parameters
    ----------
    eeg : array of shape (n_trials, n_channels, n_times), training trials only
    method : 'epochs', covariance over the time points of each trial, averaged over trials
    chunk : int, trials per block, bounds the memory

    Returns
    -------
    float64 array of shape (n_channels, n_channels)

    References
    ----------
    Guggenmos, Sterzer & Cichy (2018), NeuroImage 173:434.
    """
    if method != "epochs":
        raise ValueError(f"unknown method {method!r}: 'epochs' is available")
    total = np.zeros((eeg.shape[1], eeg.shape[1]))
    for start in range(0, len(eeg), chunk):
        total += ledoit_wolf_covariance(eeg[start : start + chunk]).sum(0)
    return total / len(eeg)


def whitening_matrix(covariance: np.ndarray) -> np.ndarray:
    """Symmetric inverse square root: W with W cov W = identity.

    Raises
    ------
    ChannelError
        If the covariance is not positive definite (two identical channels, or rank lost to the
        reference without shrinkage).
    """
    values, vectors = np.linalg.eigh(covariance)
    if values[0] <= 1e-12 * values[-1]:
        raise ChannelError(
            f"noise covariance has a condition number above 1e12 (smallest eigenvalue "
            f"{values[0]:.3g}): are two channels identical? Remove one of them."
        )
    return (vectors / np.sqrt(values)) @ vectors.T


def average_repetitions(
    eeg: np.ndarray,
    trials: pd.DataFrame,
    rows: np.ndarray | None = None,
    max_repetitions: int | None = None,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Mean over the repetitions of each image.

    Parameters
    ----------
    eeg : array of shape (n_trials, n_channels, n_times)
    trials : DataFrame with `subject`, `image_id`, `concept`, `split`; row i belongs to `eeg[i]`
    rows : int array, the trials to use (default all)
    max_repetitions : int, use only the first so many repetitions in time order

    Returns
    -------
    averaged : float32 array of shape (n_images, n_channels, n_times), sorted by image_id
    table : DataFrame with one row per average and `n_averaged`
    """
    if len(eeg) != len(trials):
        raise ValueError(f"{len(eeg)} trials in eeg.npy but {len(trials)} rows in trials.parquet")
    chosen = trials if rows is None else trials.iloc[rows]
    chosen = chosen.assign(_row=np.arange(len(trials)) if rows is None else np.asarray(rows))
    means, table = [], []
    for (subject, image_id), group in chosen.groupby(["subject", "image_id"], sort=True):
        index = group["_row"].to_numpy()[:max_repetitions]
        means.append(eeg[index].mean(0, dtype=np.float64))
        first = group.iloc[0]
        table.append((subject, image_id, first["concept"], first["split"], len(index)))
    columns = ["subject", "image_id", "concept", "split", "n_averaged"]
    return np.stack(means).astype(np.float32), pd.DataFrame(table, columns=columns)


def split_half_reliability(
    eeg: np.ndarray, trials: pd.DataFrame, rng: np.random.Generator, n_splits: int = 10
) -> np.ndarray:
    """How well one half of the repetitions predicts the other, per channel and time.

    Correlation over images between the averages of two random halves, Spearman-Brown corrected to
    the full number of repetitions. The square root is the highest correlation that any model of the
    average can reach (the noise ceiling).

    Parameters
    ----------
    eeg : array of shape (n_trials, n_channels, n_times)
    trials : DataFrame, one row per trial
    rng : numpy.random.Generator
    n_splits : int, random halvings to average over

    Returns
    -------
    float64 array of shape (n_channels, n_times), reliability; around 0 where nothing repeats

    References
    ----------
    Spearman (1910), Brown (1910): r_full = 2 r_half / (1 + r_half).
    """
    groups = [
        g.to_numpy()
        for _, g in pd.Series(np.arange(len(trials))).groupby(trials["image_id"].to_numpy())
    ]
    groups = [g for g in groups if len(g) >= 2]
    if len(groups) < 3:
        raise ValueError("fewer than 3 images were repeated: a noise ceiling cannot be estimated")
    total = 0.0
    for _ in range(n_splits):
        halves = []
        shuffled = [rng.permutation(g) for g in groups]
        for side in (0, 1):
            halves.append(np.stack([eeg[g[side::2]].mean(0) for g in shuffled]))
        a, b = (h - h.mean(0) for h in halves)
        total = total + (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0) + 1e-30)
    r = total / n_splits  # not clipped: where nothing repeats the mean over channels must be 0
    return 2 * r / (1 + r)
