"""Fewer electrodes: which ones, and what their signal is once the others are really gone.

Whitened data do not become a recording with fewer electrodes by leaving rows out. The whitener mixes
channels, and so does the average reference: a row of either holds a part of every electrode.
`reduce_trials` goes back to microvolts, keeps the chosen electrodes, refers them to their own mean
and leaves whitening to be done anew. `reduction` is the same as one matrix, from the whitener alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from sgdm_utils.datasets.things_eeg2.design import OCCIPITAL

KINDS = ("posterior", "spread")
SIZES = (63, 32, 17, 8, 4)
BACK = np.array([0.0, -1.0, 0.0])  # x to the right, y to the front, z up
_TIE = 1e-9  # distances closer than this are equal: left and right partners are


def ranking(
    positions: np.ndarray,
    kind: Literal["posterior", "spread"],
    ch_names: Sequence[str] | None = None,
) -> np.ndarray:
    """Electrodes in the order in which a montage would get them, so that smaller sets are nested.

    Parameters
    ----------
    positions : array of shape (n_channels, 3), directions from the centre of the head
    kind : 'posterior' or 'spread'
        'posterior': from the back of the head forward. Where all 17 occipital and parietal electrodes
        of the official THINGS-EEG2 recipe are there by name, they come first, among themselves from
        back to front; the set of 17 is then exactly the published one. 'spread': every next electrode
        is the one that most lowers the mean squared distance from all electrodes to the nearest kept.
    ch_names : sequence of str, optional; without names position alone decides

    Returns
    -------
    int array of shape (n_channels,), all channels, the first n of them are the montage of n

    Raises
    ------
    ValueError
        Unknown kind; positions that are no finite directions, or too many or few for the names.

    References
    ----------
    Gifford et al. (2022), NeuroImage 264:119754 (the 17 electrodes).
    """
    unit = _unit(positions)
    if kind not in KINDS:
        raise ValueError(f"unknown kind of montage {kind!r}: {' or '.join(KINDS)}")
    if ch_names is not None and len(ch_names) != len(unit):
        raise ValueError(f"{len(ch_names)} channel names for {len(unit)} positions")
    if kind == "posterior":
        distance = np.round(np.arccos(np.clip(unit @ BACK, -1, 1)) / _TIE) * _TIE
        published = np.zeros(len(unit), bool)
        if ch_names is not None and set(OCCIPITAL) <= set(ch_names):
            published = np.isin(np.asarray(ch_names), OCCIPITAL)
        return np.lexsort((np.arange(len(unit)), distance, ~published))
    between = ((unit[:, None] - unit[None]) ** 2).sum(axis=2)
    order, nearest = [], np.full(len(unit), np.inf)
    while len(order) < len(unit):
        left = np.minimum(nearest, between).sum(axis=1)  # after adding each of the electrodes
        left[order] = np.inf
        order.append(int(np.argmin(np.round(left / _TIE))))
        nearest = np.minimum(nearest, between[order[-1]])
    return np.array(order)


def pick(
    positions: np.ndarray,
    n: int,
    kind: Literal["posterior", "spread"],
    ch_names: Sequence[str] | None = None,
) -> np.ndarray:
    """Channels of a montage of n electrodes, in the order of the recording; see `ranking`.

    Returns
    -------
    int array of shape (n,), increasing

    Raises
    ------
    ValueError
        Also when there are fewer than n electrodes, or n is below 2 (one electrode has no reference).
    """
    if not 2 <= n <= len(positions):
        raise ValueError(
            f"a montage of {n} electrodes out of {len(positions)}: take 2 to all of them"
        )
    return np.sort(ranking(positions, kind, ch_names)[:n])


def reduce_trials(white: np.ndarray, whitener: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """What the chosen electrodes alone would have recorded, from whitened trials of all.

    Parameters
    ----------
    white : array of shape (n_trials, n_channels, n_times), by the matrix `whitener`
    chosen : int array of shape (n,)

    Returns
    -------
    float32 array of shape (n_trials, n, n_times), microvolts, referred to the mean of the chosen; it
    wants whitening (`whitening.noise_covariance` of its training trials)
    """
    operator = (_reference(len(chosen)) @ np.linalg.inv(_square(whitener))[chosen]).astype(
        np.float32
    )
    return operator @ np.asarray(white, np.float32)


def reduction(whitener: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """One matrix from whitened data of all electrodes to whitened data of the chosen ones.

    The noise covariance of the chosen electrodes is a part of that of all, S = W^-2, so nothing has
    to be estimated anew; what differs from an estimate on the chosen ones is the shrinkage only. Made
    for training with another choice in every batch.

    Parameters
    ----------
    whitener : array of shape (n_channels, n_channels), symmetric, W = S^-1/2
    chosen : int array of shape (n,)

    Returns
    -------
    float32 array of shape (n, n_channels)
    """
    back = np.linalg.inv(_square(whitener))
    select = _reference(len(chosen)) @ back[chosen]
    values, vectors = np.linalg.eigh(select @ select.T)  # its covariance, because white noise is I
    # the mean of the chosen is their reference: no signal in that direction, and none is made up
    keep = values > 1e-9 * values[-1]
    inverse_root = (vectors[:, keep] / np.sqrt(values[keep])) @ vectors[:, keep].T
    return (inverse_root @ select).astype(np.float32)


def _unit(positions: np.ndarray) -> np.ndarray:
    positions = np.asarray(positions, np.float64)
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise ValueError(f"positions have the shape {positions.shape}, expected (n_channels, 3)")
    length = np.linalg.norm(positions, axis=1, keepdims=True)
    if not np.isfinite(length).all() or (length == 0).any():
        bad = np.flatnonzero(~(np.isfinite(length) & (length > 0))[:, 0]).tolist()
        raise ValueError(f"channels {bad} (from 0) have no position: set a montage or drop them")
    return positions / length


def _square(whitener: np.ndarray) -> np.ndarray:
    whitener = np.asarray(whitener, np.float64)
    if whitener.ndim != 2 or whitener.shape[0] != whitener.shape[1]:
        raise ValueError(f"the whitener has the shape {whitener.shape}, expected a square matrix")
    return whitener


def _reference(n: int) -> np.ndarray:
    return np.eye(n) - 1.0 / n
