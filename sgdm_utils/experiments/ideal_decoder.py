"""What could have been lost: the ideal linear decoder of a simulation, and whether two maps agree.

Where the sources are known, the map of what a trained decoder loses can be held against the map of
what the best linear decoder would lose.

References
----------
Adebayo et al. (2018), NeurIPS 31 (an attribution has to change when the weights are random). Haufe et
al. (2014), NeuroImage 87:96 (what a decoder uses is not where the sources are).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.linear_model import RidgeCV

from sgdm_utils.metrics.statistics import N_RESAMPLES, PermutationTest, percentile_interval


def noise_autocovariance(eeg: np.ndarray, condition: np.ndarray, floor: float = 0.01) -> np.ndarray:
    """Covariance over time of what does not repeat with the picture, mean over channels.

    Parameters
    ----------
    eeg : array of shape (n_trials, n_channels, n_times), whitened over channels
    condition : array of shape (n_trials,), picture of each trial
    floor : float
        Share of the mean variance that is added to all variances: beyond the edge of a low-pass
        there is no noise, and a decoder that trusts that would find information in rounding errors.

    Returns
    -------
    float array of shape (n_times, n_times)

    Raises
    ------
    ValueError
        When no picture was shown twice.
    """
    total, freedom = np.zeros((eeg.shape[2],) * 2), 0
    for rows in pd.Series(condition).groupby(np.asarray(condition)).indices.values():
        if len(rows) > 1:
            some = eeg[rows].astype(np.float64)
            rest = (some - some.mean(0)).reshape(-1, eeg.shape[2])
            total += rest.T @ rest
            freedom += (len(rows) - 1) * eeg.shape[1]
    if not freedom:
        raise ValueError("no picture has two trials: the noise cannot be told from the answer")
    covariance = total / freedom
    return covariance + floor * np.trace(covariance) / len(covariance) * np.eye(len(covariance))


@dataclass(frozen=True)
class IdealDecoder:
    """The linear decoder with the least squared error, for responses and noise that are known.

    A picture with features f answers with sum_k f_k p_k v_k(t); the noise is white over channels
    and has one covariance over time. The channels' information about f then adds up, and for the
    samples S of channel c it is p_c p_c' times (elementwise) V_S T_SS^-1 V_S'.

    Attributes
    ----------
    topographies : array of shape (n_channels, n_components), whitened
    courses : array of shape (n_components, n_times)
    noise : array of shape (n_times, n_times), of one trial
    n_averaged : float, trials in an average
    root : array of shape (n_components, k), features = root @ k standard normal variables
    readout : array of shape (k, d), target from those variables
    target_variance : float, sum over the dimensions of the target

    References
    ----------
    Kay (1993), Fundamentals of Statistical Signal Processing: Estimation Theory, ch. 12 (the linear
    estimator of least mean squared error).
    """

    topographies: np.ndarray
    courses: np.ndarray
    noise: np.ndarray
    n_averaged: float
    root: np.ndarray
    readout: np.ndarray
    target_variance: float

    def explained(self, keep: np.ndarray) -> float:
        """Share of the target's variance that the best linear decoder of some samples explains.

        `keep`, bool of shape (n_channels, n_times), says which samples it sees.
        """
        known = (self.readout**2).sum()
        error = (self.readout * np.linalg.solve(self._precision(keep), self.readout)).sum()
        # what remains: what the features do not hold, and noise
        return 1 - float(1 - (known - error) / self.target_variance)

    def expected_losses(self, masks: np.ndarray) -> np.ndarray:
        """What the best decoder loses without some samples, being trained anew without them.

        Parameters
        ----------
        masks : bool array of shape (..., n_channels, n_times), True for samples that are taken away

        Returns
        -------
        array of shape (...), shares of the target's variance
        """
        flat = masks.reshape(-1, *masks.shape[-2:])
        whole = self.explained(np.ones(flat.shape[1:], bool))
        return np.array([whole - self.explained(~m) for m in flat]).reshape(masks.shape[:-2])

    def weights(self) -> np.ndarray:
        """(d, n_channels, n_times): target = weights applied to epochs without their mean."""
        every = np.ones((len(self.topographies), self.courses.shape[1]), bool)
        matched = np.linalg.solve(self.noise, self.courses.T).T * self.n_averaged
        load = self.root @ np.linalg.solve(self._precision(every), self.readout)
        return np.einsum("ck,kt,kd->dct", self.topographies, matched, load, optimize=True)

    def _precision(self, keep: np.ndarray) -> np.ndarray:
        """Posterior precision of the standard normal variables, (k, k)."""
        information = np.zeros((len(self.courses),) * 2)
        patterns, group = np.unique(keep, axis=0, return_inverse=True)
        for g, pattern in enumerate(patterns):
            if pattern.any():
                p, v = self.topographies[group.ravel() == g], self.courses[:, pattern]
                noise = self.noise[np.ix_(pattern, pattern)]
                information += (p.T @ p) * (v @ np.linalg.solve(noise, v.T))
        information = self.root.T @ information @ self.root
        return np.eye(len(information)) + self.n_averaged * information


def ideal_decoder(
    topographies: np.ndarray,
    courses: np.ndarray,
    noise: np.ndarray,
    n_averaged: float,
    features: np.ndarray,
    targets: np.ndarray,
) -> IdealDecoder:
    """Build the ideal linear decoder of a target from the truth of a simulation.

    Parameters
    ----------
    topographies : array of shape (n_channels, n_components), whitened, per unit of feature
    courses : array of shape (n_components, n_times)
    noise : array of shape (n_times, n_times), see `noise_autocovariance`
    n_averaged : float, trials in the averages that are decoded
    features : array of shape (n_pictures, n_components), true features of training pictures
    targets : array of shape (n_pictures, d), their targets

    Raises
    ------
    ValueError
        When the features do not differ between pictures (a simulation without signal).
    """
    centred = features - features.mean(0)
    u, s, vt = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    if not s[0] > 1e-12:
        raise ValueError("the features of all pictures are equal: there is nothing to decode")
    k = int((s > 1e-6 * s[0]).sum())
    size = np.sqrt(len(features))
    # how the target depends on the features is learned, with the penalty that cross-validates best
    ridge = RidgeCV(alphas=np.logspace(-1, 4, 11)).fit(u[:, :k] * size, targets - targets.mean(0))
    return IdealDecoder(
        topographies=np.asarray(topographies, np.float64),
        courses=np.asarray(courses, np.float64),
        noise=noise,
        n_averaged=n_averaged,
        root=vt[:k].T * (s[:k] / size),
        readout=np.atleast_2d(ridge.coef_).T,
        target_variance=float(targets.var(0).sum()),
    )


# ------------------------------------------------------------------ do two maps agree


def map_agreement(
    measured: np.ndarray,
    expected: np.ndarray,
    rng: np.random.Generator,
    n_draws: int = 2 * N_RESAMPLES,
) -> PermutationTest:
    """Spearman correlation of two maps over regions and windows, and could it be chance?

    Neighbouring windows are alike, so their values must not be shuffled one by one. The null keeps
    one map as it is and puts it elsewhere: regions exchanged, time rotated.

    Parameters
    ----------
    measured, expected : arrays of shape (n_regions, n_windows)
    n_draws : int
        All arrangements are enumerated when they are no more than that, otherwise so many are drawn.

    Raises
    ------
    ValueError
        When the shapes differ, or a map is constant.
    """
    measured, expected = np.asarray(measured, float), np.asarray(expected, float)
    if measured.shape != expected.shape or measured.ndim != 2:
        raise ValueError(
            f"maps of shape {measured.shape} and {expected.shape}: expected two of "
            "(n_regions, n_windows)"
        )
    for name, values in (("measured", measured), ("expected", expected)):
        if not np.ptp(values) > 0:
            raise ValueError(f"the {name} map is constant: a rank correlation is not defined")
    a, b = (_standard_ranks(m[None])[0] for m in (measured, expected))
    n_regions, n_windows = a.shape
    exact = math.factorial(n_regions) * n_windows <= n_draws
    if exact:
        orders = np.array(list(itertools.permutations(range(n_regions))))
        orders, shifts = np.repeat(orders, n_windows, 0), np.tile(np.arange(n_windows), len(orders))
    else:
        orders = rng.permuted(np.tile(np.arange(n_regions), (n_draws, 1)), axis=1)
        shifts = rng.integers(n_windows, size=n_draws)
    columns = (np.arange(n_windows) + shifts[:, None]) % n_windows
    null = np.array(
        [(a[order][:, column] * b).sum() for order, column in zip(orders, columns, strict=True)]
    )
    rho = float((a * b).sum())
    hits = int((null >= rho - 1e-12).sum())
    p_value = hits / len(null) if exact else (hits + 1) / (len(null) + 1)
    return PermutationTest(rho, p_value, null, exact)


def bootstrap_agreement(
    losses: np.ndarray, expected: np.ndarray, rng: np.random.Generator, n_resamples: int = 2000
) -> tuple[float, float]:
    """95 % percentile interval over pictures of the Spearman correlation of two maps.

    Parameters
    ----------
    losses : array of shape (n_regions, n_windows, n_pictures)
    expected : array of shape (n_regions, n_windows)

    Returns
    -------
    low, high : float
        Resampled maps are noisier than the map itself and agree less with anything, so the interval
        lies rather too low.
    """
    n = losses.shape[-1]
    if n < 2:
        raise ValueError("a bootstrap interval needs at least 2 pictures")
    counts = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples)
    maps = np.moveaxis(losses @ counts.T / n, -1, 0)
    rho = (_standard_ranks(maps) * _standard_ranks(expected[None])).sum((1, 2))
    return percentile_interval(rho)


def _standard_ranks(maps: np.ndarray) -> np.ndarray:
    """Ranks within each map, mean 0 and sum of squares 1, so that products are Spearman's rho."""
    ranks = stats.rankdata(maps.reshape(len(maps), -1), axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    return (ranks / np.sqrt((ranks**2).sum(1, keepdims=True))).reshape(maps.shape)
