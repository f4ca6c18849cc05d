"""Multivariate noise normalisation: noise covariance, whitener, and its use on trials of any number.

Both published modes are computed in closed form. A Ledoit-Wolf estimate is a weighted sum of the
sample covariance and of a diagonal matrix, and what is wanted is the mean of thousands of them: only
the weights need work for each estimate, the rest is one matrix product over a block of trials.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sgdm_utils.errors import ChannelError, DatasetError

MODES = ("epochs", "time")
_BLOCK_BYTES = 4 << 20  # of float64: the passes over a block should find it in the cache


@dataclass(frozen=True)
class Whitener:
    """A whitening matrix and what it was fitted on.

    Attributes
    ----------
    matrix : float64 array of shape (n_channels, n_channels), symmetric
    fitted_on : 'train' or 'train+test'
    transductive : bool, True when EEG of the test trials had a part in it; no label of theirs did,
        but a result on whitened test trials is then no result on unseen recordings
    """

    matrix: np.ndarray
    fitted_on: Literal["train", "train+test"]
    transductive: bool


def noise_covariance(
    eeg: np.ndarray,
    condition: np.ndarray,
    mode: Literal["epochs", "time"] = "epochs",
    rows: np.ndarray | None = None,
    chunk: int | None = None,
) -> np.ndarray:
    """Mean noise covariance of a set of trials, Ledoit-Wolf shrinkage for each estimate.

    Parameters
    ----------
    eeg : array of shape (n_trials, n_channels, n_times)
        An array, a memory map, or anything with `shape` that returns trials for an array of row
        numbers. It is read block by block.
    condition : array of shape (n_trials,), which image each trial of `eeg` shows
    mode : 'epochs' or 'time'
        'epochs': covariance over the time points of each trial, mean over the repetitions of a
        condition. 'time': covariance over the repetitions of a condition at each time point (the
        baseline included), mean over time points. Then, in both, mean over conditions: a condition
        that was shown more often has no more weight.
    rows : int array, the trials to use (default all); give the training trials of one session
    chunk : int, trials held at once in float64 (default about 4 MB); it bounds the memory and has no
        influence on the result beyond rounding

    Returns
    -------
    float64 array of shape (n_channels, n_channels), squared unit of `eeg`

    Raises
    ------
    ValueError
        An unknown mode.
    DatasetError
        Conditions that do not belong to the trials, no trial, a condition with one repetition in
        mode 'time'.
    ChannelError
        A sample that is NaN or infinite.

    Notes
    -----
    With two repetitions the shrinkage of mode 'time' is exactly 0 and the estimate divides by n, so
    that it is half the unbiased one. With n columns of a p x p product the smaller of the two Gram
    matrices is used, ||Z'Z|| = ||ZZ'||.

    References
    ----------
    Guggenmos, Sterzer & Cichy (2018), NeuroImage 173:434 (the two modes).
    Ledoit & Wolf (2004), J. Multivariate Analysis 88:365, eq. 14, on columns divided by their biased
    standard deviation and scaled back, as scikit-learn's discriminant analysis does for 'auto'.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r} of the noise covariance: {' or '.join(MODES)}")
    condition = np.asarray(condition)
    n_trials, n_channels, n_times = eeg.shape
    if condition.shape != (n_trials,):
        raise DatasetError(
            f"{n_trials} trials but conditions of shape {condition.shape}: give one for each trial "
            "of the recording, also when only some `rows` are used"
        )
    rows = np.arange(n_trials) if rows is None else np.asarray(rows)
    if rows.dtype == bool:
        raise DatasetError("rows is a mask: give row numbers (np.flatnonzero(mask))")
    if not rows.size:
        raise DatasetError("no trial to estimate the noise covariance from")
    label, inverse, count = np.unique(condition[rows], return_inverse=True, return_counts=True)
    chunk = chunk or max(1, _BLOCK_BYTES // (8 * n_channels * n_times))
    total = np.zeros((n_channels, n_channels))
    if mode == "epochs":
        weight = 1.0 / (len(label) * count[inverse])
        order = np.argsort(rows, kind="stable")  # the file is read from front to back
        for start in range(0, len(rows), chunk):
            some = order[start : start + chunk]
            block = np.asarray(eeg[rows[some]])
            total += _finite(_over_times(block, weight[some]), block, rows[some])
    else:
        if count.min() < 2:
            raise DatasetError(
                f"{int((count < 2).sum())} of {len(label)} conditions have one repetition only "
                f"(first: {label[count.argmin()]!r}); over repetitions no covariance can be "
                "estimated from it. Use the mode 'epochs', or leave these trials out (rows)"
            )
        # the rows of a condition side by side, the conditions by how many rows they have
        order = np.lexsort((rows, inverse, count[inverse]))
        for n in np.unique(count):
            group = rows[order[count[inverse[order]] == n]].reshape(-1, n)
            step = max(1, chunk // n)
            for start in range(0, len(group), step):
                some = group[start : start + step]
                block = np.asarray(eeg[some.ravel()])
                part = _over_repetitions(block.reshape(*some.shape, n_channels, n_times))
                total += _finite(part, block, some.ravel())
        total /= len(label) * n_times
    return total


def whitening_matrix(covariance: np.ndarray) -> np.ndarray:
    """Symmetric inverse square root: W with W cov W = identity.

    Parameters
    ----------
    covariance : array of shape (n_channels, n_channels)

    Returns
    -------
    float64 array of shape (n_channels, n_channels)

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


def session_whitener(train_cov: np.ndarray, test_cov: np.ndarray | None = None) -> Whitener:
    """Whitener of one session, from its training trials unless the published form is asked for.

    Parameters
    ----------
    train_cov : array of shape (n_channels, n_channels), `noise_covariance` of the training trials
    test_cov : array of the same shape, optional
        That of the test trials. When it is given, the matrix is the published one, from the mean of
        both, and is labelled as transductive.

    Returns
    -------
    Whitener

    Raises
    ------
    ChannelError
        A covariance that is not positive definite.
    """
    if test_cov is None:
        return Whitener(whitening_matrix(train_cov), "train", transductive=False)
    both = (np.asarray(test_cov) + np.asarray(train_cov)) / 2
    return Whitener(whitening_matrix(both), "train+test", transductive=True)


def apply(
    eeg: np.ndarray,
    matrix: np.ndarray,
    out: np.ndarray | None = None,
    rows: np.ndarray | None = None,
    dtype: np.dtype | type = np.float32,
    chunk: int | None = None,
) -> np.ndarray:
    """Multiply the channels of every trial by a matrix, block by block.

    The products are float64 sums: whiteners subtract channels that are nearly alike.

    Parameters
    ----------
    eeg : array of shape (n_trials, n_channels, n_times), see `noise_covariance`
    matrix : array of shape (n_channels, n_channels)
    out : array or memory map of shape (n_rows, n_channels, n_times), optional
        Also anything with `append(block)`, which then gets the blocks in order; `eeg` itself is
        allowed when `rows` is not given.
    rows : int array, the trials to write, in this order (default all)
    dtype : of the array that is made when `out` is not given, and of the blocks for `append`
    chunk : int, trials held at once (default about 4 MB of float64)

    Returns
    -------
    `out`

    Raises
    ------
    ChannelError
        When the matrix is for another number of channels.
    DatasetError
        When `out` has another shape than the result.
    """
    n_trials, n_channels, n_times = eeg.shape
    if np.shape(matrix) != (n_channels, n_channels):
        raise ChannelError(
            f"the whitening matrix has the shape {np.shape(matrix)}, the trials have {n_channels} "
            "channels: it was fitted on another choice of channels. Fit it again on these"
        )
    rows = np.arange(n_trials) if rows is None else np.asarray(rows)
    if out is None:
        out = np.empty((len(rows), n_channels, n_times), dtype)
    append = getattr(out, "append", None)
    if append is None and tuple(out.shape) != (len(rows), n_channels, n_times):
        raise DatasetError(
            f"the whitened trials have the shape {(len(rows), n_channels, n_times)}, the place for "
            f"them {tuple(out.shape)}"
        )
    matrix = np.asarray(matrix, np.float64)
    chunk = chunk or max(1, _BLOCK_BYTES // (8 * n_channels * n_times))
    for start in range(0, len(rows), chunk):
        block = matrix @ np.asarray(eeg[rows[start : start + chunk]], np.float64)
        if append is None:
            out[start : start + chunk] = block
        else:
            append(block.astype(dtype))
    return out


def _finite(covariance: np.ndarray, block: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the covariance of a block of trials, or say which sample spoiled it."""
    if np.isfinite(covariance).all():
        return covariance
    broken = np.argwhere(~np.isfinite(block).all(2))
    if not len(broken):
        raise ChannelError("the noise covariance overflows: is the signal in volts?")
    trial, channel = broken[0]
    raise ChannelError(
        f"trial {rows[trial]}, channel number {channel} (both from 0) holds samples that are NaN "
        "or infinite. Mark the channel as bad and interpolate it, or leave the trial out (rows)"
    )


@np.errstate(invalid="ignore", over="ignore")  # `_finite` says it with the place
def _over_times(trials: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted sum over trials of their shrunken covariances over time: (C, C) from (m, C, T)."""
    x = trials.astype(np.float64)
    n, p = x.shape[2], x.shape[1]
    mean = x.mean(2, keepdims=True)
    x -= mean
    product = x @ x.transpose(0, 2, 1)
    variance = np.diagonal(product, axis1=1, axis2=2) / n
    scale = _squared_scale(variance, mean[:, :, 0], n)
    inverse = 1.0 / np.sqrt(scale)
    s = product * (inverse[:, :, None] / n) * inverse[:, None, :]
    np.multiply(x, x, out=x)
    # sum_ij sum_t z_it^2 z_jt^2 = sum_t (sum_i z_it^2)^2: no second p x p product is needed
    power = ((1.0 / scale)[:, None, :] @ x)[:, 0]
    fourth = np.einsum("kt,kt->k", power, power)
    mu = (variance / scale).mean(1)
    shrinkage = _shrinkage(np.einsum("kij,kij->k", s, s), fourth, mu, n, p)
    total = np.tensordot((1 - shrinkage) * weight / n, product, 1)
    total[np.diag_indices(p)] += (shrinkage * weight * mu) @ scale
    return total


@np.errstate(invalid="ignore", over="ignore")
def _over_repetitions(trials: np.ndarray) -> np.ndarray:
    """Sum over conditions and times of the covariances over repetitions: (C, C) from (m, n, C, T)."""
    n, p = trials.shape[1:3]
    if n == 2:  # never shrunken, and both repetitions are half their difference from the mean
        d = np.subtract(trials[:, 0], trials[:, 1], dtype=np.float64)
        return (d @ d.transpose(0, 2, 1)).sum(0) / 4
    x = trials.transpose(0, 3, 1, 2).astype(np.float64, order="C")  # (m, T, n, C)
    mean = x.mean(2, keepdims=True)
    x -= mean
    power = x * x
    variance = power.mean(2)
    scale = _squared_scale(variance, mean[:, :, 0], n)
    fourth = ((power @ (1.0 / scale)[..., None])[..., 0] ** 2).sum(2)
    z = np.divide(x, np.sqrt(scale)[:, :, None], out=power)
    gram = z.swapaxes(2, 3) @ z if p <= n else z @ z.swapaxes(2, 3)
    squares = np.einsum("ktij,ktij->kt", gram, gram) / n**2
    mu = (variance / scale).mean(2)
    shrinkage = _shrinkage(squares, fourth, mu, n, p)
    x *= np.sqrt((1 - shrinkage) / n)[..., None, None]
    x = x.reshape(-1, p)
    total = x.T @ x
    total[np.diag_indices(p)] += np.tensordot(shrinkage * mu, scale, 2)
    return total


def _squared_scale(variance: np.ndarray, mean: np.ndarray, n: int) -> np.ndarray:
    """Variances to divide by; 1 where a column is constant but for rounding, as in scikit-learn."""
    eps = np.finfo(np.float64).eps
    return np.where(variance <= n * eps * variance + (n * mean * eps) ** 2, 1.0, variance)


def _shrinkage(
    squares: np.ndarray, fourth: np.ndarray, mu: np.ndarray, n: int, p: int
) -> np.ndarray:
    """Ledoit-Wolf shrinkage from ||S||^2, sum_ij sum_t z_it^2 z_jt^2 and the mean of S's diagonal."""
    if p == 1:
        return np.zeros_like(mu)
    delta = (squares - p * mu**2) / p
    beta = (fourth / n - squares) / (p * n)
    beta = np.minimum(np.maximum(beta, 0.0), delta)  # negative by rounding only
    return np.where(beta > 0, beta / np.where(beta > 0, delta, 1.0), 0.0)
