"""Trials and their quality: checks of the signal, bad channels, averaging, noise ceilings.

Filtering and ICA are calls of MNE and stay in the notebook; cutting is in `epoching`, noise
normalisation in `whitening`.
"""

from __future__ import annotations

import mne
import numpy as np
import pandas as pd

MIN_CEILING_IMAGES = 20  # repeated ones; with 20, chance moves a reliability by 0.29 (SD)


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


def repetition_groups(
    trials: pd.DataFrame, rows: np.ndarray | None = None, max_repetitions: int | None = None
) -> tuple[list[np.ndarray], pd.DataFrame]:
    """Which trials show the same image to the same subject.

    Parameters
    ----------
    trials : DataFrame with `subject`, `image_id`, `concept`, `split`; row i belongs to `eeg[i]`
    rows : int array, the trials to use (default all)
    max_repetitions : int, use only the first so many repetitions in time order

    Returns
    -------
    groups : list of int arrays, rows of `trials`, sorted by subject and image_id
    table : DataFrame with one row per group: `subject`, `image_id`, `concept`, `split`, `n_averaged`
    """
    chosen = trials if rows is None else trials.iloc[rows]
    chosen = chosen.assign(_row=np.arange(len(trials)) if rows is None else np.asarray(rows))
    groups, table = [], []
    for (subject, image_id), group in chosen.groupby(["subject", "image_id"], sort=True):
        index = group["_row"].to_numpy()[:max_repetitions]
        groups.append(index)
        first = group.iloc[0]
        table.append((subject, image_id, first["concept"], first["split"], len(index)))
    columns = ["subject", "image_id", "concept", "split", "n_averaged"]
    return groups, pd.DataFrame(table, columns=columns)


def average_repetitions(
    eeg: np.ndarray,
    trials: pd.DataFrame,
    rows: np.ndarray | None = None,
    max_repetitions: int | None = None,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Mean over the repetitions of each image, all in memory.

    Parameters
    ----------
    eeg : array of shape (n_trials, n_channels, n_times)
    trials, rows, max_repetitions : see `repetition_groups`

    Returns
    -------
    averaged : float32 array of shape (n_images, n_channels, n_times), sorted by image_id
    table : DataFrame with one row per average and `n_averaged`
    """
    if len(eeg) != len(trials):
        raise ValueError(f"{len(eeg)} trials in eeg.npy but {len(trials)} rows in trials.parquet")
    groups, table = repetition_groups(trials, rows, max_repetitions)
    means = [eeg[index].mean(0, dtype=np.float64) for index in groups]
    return np.stack(means).astype(np.float32), table


def n_repeated_images(trials: pd.DataFrame) -> int:
    """How many images were shown more than once: `MIN_CEILING_IMAGES` make a noise ceiling.

    Parameters
    ----------
    trials : DataFrame with `image_id`, one row per trial
    """
    return int((trials["image_id"].value_counts() > 1).sum())


def split_half_reliability(
    eeg: np.ndarray, trials: pd.DataFrame, rng: np.random.Generator, n_splits: int = 10
) -> np.ndarray:
    """How well one half of the repetitions predicts the other, per channel and time.

    Correlation r over images between the averages of two random halves, corrected to the full number
    of repetitions: 2 r / (1 + |r|), which is the formula of Spearman and Brown for r >= 0 and its
    mirror image below. Their own formula has no lower bound, so that chance alone gives values far
    below -1 where nothing repeats; the mirrored one lies in [-1, 1] and is 0 in the mean there. The
    square root is the highest correlation that any model of the average can reach (the noise
    ceiling).

    Parameters
    ----------
    eeg : array of shape (n_trials, n_channels, n_times)
    trials : DataFrame, one row per trial
    rng : numpy.random.Generator
    n_splits : int, random halvings to average over

    Returns
    -------
    float64 array of shape (n_channels, n_times), reliability in [-1, 1]; 0 in the mean where nothing
    repeats

    Raises
    ------
    ValueError
        Fewer than `MIN_CEILING_IMAGES` repeated images (`n_repeated_images`).

    Notes
    -----
    Bias, measured on simulated trials of reliability 0 to 0.9, eight repetitions: at most 0.04 (too
    low) with 20 to 40 images and 0.01 with 200. One value varies by 0.29, 0.21 and 0.10 (SD, 20, 40
    and 200 images) where nothing repeats.

    References
    ----------
    Spearman (1910), Brown (1910): r_full = 2 r_half / (1 + r_half).
    """
    if n_repeated_images(trials) < MIN_CEILING_IMAGES:
        raise ValueError(
            f"{n_repeated_images(trials)} images were repeated: a noise ceiling takes "
            f"{MIN_CEILING_IMAGES}"
        )
    groups = [
        g.to_numpy()
        for _, g in pd.Series(np.arange(len(trials))).groupby(trials["image_id"].to_numpy())
    ]
    groups = [g for g in groups if len(g) >= 2]
    total = 0.0
    for _ in range(n_splits):
        halves = []
        shuffled = [rng.permutation(g) for g in groups]
        for side in (0, 1):
            halves.append(np.stack([eeg[g[side::2]].mean(0) for g in shuffled]))
        a, b = (h - h.mean(0) for h in halves)
        total = total + (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0) + 1e-30)
    r = total / n_splits  # not clipped: where nothing repeats the mean over channels must be 0
    return 2 * r / (1 + np.abs(r))
