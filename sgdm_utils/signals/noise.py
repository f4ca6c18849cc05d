"""Noise of single trials over channels and time: its covariance, and the linear map that whitens it.

What does not repeat when a picture repeats is noise, and it is correlated much more over time than
over electrodes: whitening over channels alone leaves most of it in. The covariance of a whole epoch
is modelled as a Kronecker product, channels times time, which needs few numbers, can be inverted
exactly and keeps the axes of the epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sgdm_utils.errors import reading
from sgdm_utils.workflow.formats import read_npz

METHODS = ("flip-flop", "marginals")
_BLOCK_BYTES = 32 << 20  # of float32: trials that are held at once
_KEPT_BYTES = 1 << 30  # of float32 residuals that are kept rather than read and centred six times


class NoiseError(ValueError):
    """Noise cannot be estimated or removed: the message says from what, and what to do."""


@dataclass(frozen=True)
class NoiseModel:
    """Covariance of single-trial noise, channels times time.

    The noise of one trial at (c, t) and (d, u) has the covariance
    ``channel_covariance[c, d] * time_covariance[t, u]``; an average of n trials has 1 / n of it.

    Attributes
    ----------
    channel_covariance : float64 array of shape (n_channels, n_channels), squared unit of the epochs
    time_covariance : float64 array of shape (n_times, n_times), no unit, mean variance 1
    n_trials : int, single trials that the fit saw
    method : 'flip-flop' or 'marginals'
    channel_shrinkage, time_shrinkage : float, weight of the scaled identity in each of the two

    References
    ----------
    Dutilleul (1999), J. Statistical Computation and Simulation 64:105 (flip-flop: maximum likelihood
    of a matrix-normal distribution). Guggenmos, Sterzer & Cichy (2018), NeuroImage 173:434
    (multivariate noise normalisation).
    """

    channel_covariance: np.ndarray
    time_covariance: np.ndarray
    n_trials: int
    method: Literal["flip-flop", "marginals"] = "flip-flop"
    channel_shrinkage: float = 0.05
    time_shrinkage: float = 0.005

    def __post_init__(self) -> None:
        for axis in ("channel", "time"):
            name = f"{axis}_covariance"
            matrix = np.array(getattr(self, name), np.float64)
            if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
                raise NoiseError(f"{name} has shape {matrix.shape}: a covariance is square")
            roots = _roots(matrix, axis)
            for key, value in zip(
                (name, f"_{axis}_root", f"_{axis}_inverse_root"), (matrix, *roots), strict=True
            ):
                object.__setattr__(self, key, value)

    @classmethod
    def fit(
        cls,
        eeg: Any,
        condition: Sequence | np.ndarray,
        rows: np.ndarray | None = None,
        method: Literal["flip-flop", "marginals"] = "flip-flop",
        channel_shrinkage: float = 0.05,
        time_shrinkage: float = 0.005,
        n_iterations: int = 3,
        max_conditions: int = 2000,
    ) -> NoiseModel:
        """Estimate the covariance from trials around the average of their own picture.

        Parameters
        ----------
        eeg : array, memory map or trial file of shape (n_trials, n_channels, n_times)
        condition : sequence of length n_trials, picture that each trial shows
        rows : int array, trials to use (give the training trials); default all
        method : 'flip-flop' or 'marginals'
            'flip-flop': maximum likelihood of the Kronecker model, each axis whitened before the
            other is estimated, in turns. 'marginals': mean covariance over channels and mean over
            time, one pass.
        channel_shrinkage, time_shrinkage : float in [0, 1)
            Weight of the identity (times the mean variance). The band-pass and the subtracted
            baseline leave the time covariance nearly singular: 0 is refused there.
        n_iterations : int, turns of flip-flop
        max_conditions : int
            Pictures that are used at most, evenly spaced in the order of their names: a few
            thousand trials settle two covariances of this size.

        Raises
        ------
        NoiseError
            Wrong shapes, no picture with two trials, NaN, a covariance that is singular.

        Notes
        -----
        A residual of R repetitions has (R - 1) / R of the noise power, so residuals are multiplied
        by sqrt(R / (R - 1)); pictures with one trial are left out.
        """
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}: {' or '.join(METHODS)}")
        for name, value in (("channel", channel_shrinkage), ("time", time_shrinkage)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}_shrinkage is {value}: give a share in [0, 1)")
        groups = repeated_trials(eeg, condition, rows, max_conditions)
        n_channels, n_times = eeg.shape[1:]
        channel, time = np.eye(n_channels), np.eye(n_times)
        n_trials = sum(len(g) for g in groups)
        residuals = partial(_residuals, eeg, groups)
        if 4 * n_trials * n_channels * n_times <= _KEPT_BYTES and method == "flip-flop":
            kept = list(residuals())
            residuals = partial(iter, kept)
        for turn in range(n_iterations if method == "flip-flop" else 1):
            over_time = np.zeros((n_times, n_times))
            left = _roots(channel, "channel")[1].astype(np.float32)
            for block in residuals():
                white = left @ block if turn else block
                flat = white.reshape(-1, n_times)
                over_time += (flat.T @ flat).astype(np.float64)
            time = shrunk(over_time / (n_trials * n_channels), time_shrinkage, "time")
            right = _roots(time, "time")[1].astype(np.float32)
            over_channels = np.zeros((n_channels, n_channels))
            for block in residuals():
                # without turns both marginals are those of unwhitened residuals
                flat = block.reshape(-1, n_times)
                white = (flat @ right if method == "flip-flop" else flat).reshape(block.shape)
                flat = white.swapaxes(0, 1).reshape(n_channels, -1)
                over_channels += (flat @ flat.T).astype(np.float64)
            channel = shrunk(over_channels / (n_trials * n_times), channel_shrinkage, "channel")
        # the scale is measured with both maps in place, so that whitened noise has unit variance
        # where there is noise (shrinkage adds variance where the filter left none)
        scale = np.trace(time) / n_times
        model = cls(
            channel * scale, time / scale, n_trials, method, channel_shrinkage, time_shrinkage
        )
        power = _typical_power(model, eeg, groups)
        return cls(
            channel * scale * power, time / scale, n_trials, method, channel_shrinkage,
            time_shrinkage,
        )  # fmt: skip

    @property
    def n_channels(self) -> int:
        return len(self.channel_covariance)

    @property
    def n_times(self) -> int:
        return len(self.time_covariance)

    @property
    def channel_whitener(self) -> np.ndarray:
        """Matrix (n_channels, n_channels) that `whiten` multiplies from the left."""
        return self._channel_inverse_root

    @property
    def time_whitener(self) -> np.ndarray:
        """Matrix (n_times, n_times) that `whiten` multiplies from the right."""
        return self._time_inverse_root

    def whiten(self, epochs: np.ndarray) -> np.ndarray:
        """Multiply both axes by the inverse square roots: noise of single trials becomes white.

        Parameters
        ----------
        epochs : array of shape (..., n_channels, n_times), trials or averages

        Returns
        -------
        array of the same shape and (floating) type, in standard deviations of single-trial noise
        """
        return self._both_axes(epochs, self._channel_inverse_root, self._time_inverse_root)

    def unwhiten(self, epochs: np.ndarray) -> np.ndarray:
        """Undo `whiten`, up to rounding."""
        return self._both_axes(epochs, self._channel_root, self._time_root)

    def repair(self, epochs: np.ndarray, threshold: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
        """Replace electrodes that say something else than all others expect of them.

        An electrode that went bad after the noise was measured, or in one run only, is spread over
        every output by the whitening. Its *innovation* is what it says beyond its expectation given
        the other electrodes; where the power of that, white over time, is `threshold` times what
        the model knows, the electrode is replaced by the expectation. Each epoch is judged for
        itself, so nothing is learned from the trials that are repaired.

        Parameters
        ----------
        epochs : array of shape (n, n_channels, n_times), single trials
        threshold : float above 1, ratio of variances; the worst electrode of an epoch goes first

        Returns
        -------
        repaired : array like `epochs`
        replaced : bool array of shape (n, n_channels)
        """
        if not threshold > 1:
            raise NoiseError(f"threshold is {threshold}: 1 is what good electrodes have")
        epochs = np.asarray(epochs)
        if epochs.ndim != 3 or epochs.shape[1:] != (self.n_channels, self.n_times):
            raise NoiseError(self._wrong_shape(epochs.shape))
        precision = self._channel_inverse_root @ self._channel_inverse_root
        repaired = epochs.copy()
        replaced = np.zeros(epochs.shape[:2], bool)
        for i, epoch in enumerate(epochs):
            for _ in range(max(1, self.n_channels // 8)):
                gone, kept = replaced[i], ~replaced[i]
                sub = precision[np.ix_(kept, kept)]
                if gone.any():  # precision of the electrodes that are left (Schur complement)
                    cross = precision[np.ix_(kept, gone)]
                    sub = sub - cross @ np.linalg.solve(precision[np.ix_(gone, gone)], cross.T)
                innovation = (sub @ epoch[kept]) / np.diagonal(sub)[:, None]
                white = innovation @ self._time_inverse_root
                power = np.diagonal(sub) * (white**2).mean(1)
                if power.max() <= threshold:
                    break
                replaced[i, np.flatnonzero(kept)[power.argmax()]] = True
            gone, kept = replaced[i], ~replaced[i]
            if gone.any():
                expected = -np.linalg.solve(
                    precision[np.ix_(gone, gone)], precision[np.ix_(gone, kept)] @ epoch[kept]
                )
                repaired[i, gone] = expected
        return repaired, replaced

    def select(self, channels: Sequence[int] | np.ndarray) -> NoiseModel:
        """Model of some electrodes only: rows and columns of the channel covariance.

        Parameters
        ----------
        channels : int sequence, positions of the electrodes that are left, in their order
        """
        channels = np.asarray(channels)
        if channels.ndim != 1 or not channels.size or channels.dtype.kind not in "iu":
            raise NoiseError(
                "select needs the positions of the electrodes, at least one whole number"
            )
        if channels.min() < 0 or channels.max() >= self.n_channels:
            raise NoiseError(
                f"electrode {int(channels.max())} is not among the {self.n_channels} of this model "
                "(numbered from 0)"
            )
        if len(set(channels.tolist())) < len(channels):
            raise NoiseError("an electrode is selected twice: its noise would be singular")
        return NoiseModel(
            self.channel_covariance[np.ix_(channels, channels)], self.time_covariance,
            self.n_trials, self.method, self.channel_shrinkage, self.time_shrinkage,
        )  # fmt: skip

    def log_likelihood(
        self, eeg: Any, condition: Sequence | np.ndarray, rows: np.ndarray | None = None
    ) -> float:
        """Mean log density of held-out noise, in nats for each sample of an epoch.

        For choosing `method` and shrinkages on validation trials; residuals are formed as in `fit`.
        """
        groups = repeated_trials(eeg, condition, rows, None)
        if tuple(eeg.shape[1:]) != (self.n_channels, self.n_times):
            raise NoiseError(self._wrong_shape(eeg.shape))
        squares, n = 0.0, 0
        for block in _residuals(eeg, groups):
            squares += float((self.whiten(block).astype(np.float64) ** 2).sum())
            n += len(block)
        size = self.n_channels * self.n_times
        log_determinant = (
            np.linalg.slogdet(self.channel_covariance)[1] * self.n_times
            + np.linalg.slogdet(self.time_covariance)[1] * self.n_channels
        )
        return -0.5 * (np.log(2 * np.pi) + log_determinant / size + squares / (n * size))

    def save(self, path: str | Path) -> None:
        """Write a plain `.npz` (no pickles inside)."""
        with Path(path).open("wb") as file:
            np.savez(
                file, channel_covariance=self.channel_covariance,
                time_covariance=self.time_covariance, n_trials=self.n_trials,
                method=np.array(self.method, dtype="U12"),
                shrinkage=np.array([self.channel_shrinkage, self.time_shrinkage]),
            )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> NoiseModel:
        """Read what `save` wrote."""
        wanted = ("channel_covariance", "time_covariance", "n_trials", "method", "shrinkage")
        with reading(path, "a noise model", "Measure the noise again", NoiseError):
            f = read_npz(path, wanted)
            channel_shrinkage, time_shrinkage = f["shrinkage"].tolist()
            return cls(
                f["channel_covariance"], f["time_covariance"], int(f["n_trials"]),
                str(f["method"]), channel_shrinkage, time_shrinkage,
            )  # fmt: skip

    def _both_axes(self, epochs: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        epochs = np.asarray(epochs)
        if epochs.ndim < 2 or epochs.shape[-2:] != (self.n_channels, self.n_times):
            raise NoiseError(self._wrong_shape(epochs.shape))
        dtype = epochs.dtype if epochs.dtype.kind == "f" else np.float64
        # float64 products: the roots subtract channels and moments that are nearly alike
        return (left @ (epochs.astype(np.float64) @ right)).astype(dtype)

    def _wrong_shape(self, shape: tuple[int, ...]) -> str:
        return (
            f"epochs have shape {tuple(shape)}, the noise was measured on (..., {self.n_channels} "
            f"channels, {self.n_times} samples): use epochs of the same preprocessing, or `select` "
            "the electrodes that are left"
        )


def repeated_trials(
    eeg: Any, condition: Sequence | np.ndarray, rows: np.ndarray | None, limit: int | None
) -> list[np.ndarray]:
    """Trials of each picture that was shown at least twice.

    Parameters
    ----------
    eeg : anything with the shape (n_trials, n_channels, n_times)
    condition : sequence of length n_trials
    rows : int array or None, trials to look at
    limit : int or None, pictures to keep at most, evenly spaced

    Returns
    -------
    list of int arrays, ordered by picture

    Raises
    ------
    NoiseError
        Wrong shapes, or no picture with two trials.
    """
    condition = np.asarray(condition)
    if len(eeg.shape) != 3 or condition.shape != (eeg.shape[0],):
        raise NoiseError(
            f"trials have shape {tuple(eeg.shape)}, conditions {condition.shape}: expected "
            "(n_trials, n_channels, n_times) and one condition for each trial"
        )
    rows = np.arange(len(condition)) if rows is None else np.asarray(rows)
    if rows.dtype == bool:
        raise NoiseError("rows is a mask: give row numbers (np.flatnonzero(mask))")
    _, inverse, count = np.unique(condition[rows], return_inverse=True, return_counts=True)
    if not rows.size or count.max() < 2:
        raise NoiseError(
            f"{len(rows)} trials of {len(count)} pictures, none with two or more repetitions: noise "
            "is what does not repeat. Give trials before averaging (or whiten with mode 'epochs')"
        )
    order = np.argsort(inverse, kind="stable")
    groups = [rows[part] for part in np.split(order, np.cumsum(count)[:-1])]
    groups = [group for group in groups if len(group) > 1]
    if limit is not None and len(groups) > limit:
        groups = [groups[i] for i in np.linspace(0, len(groups) - 1, limit).astype(int)]
    return groups


def shrunk(covariance: np.ndarray, shrinkage: float, axis: str) -> np.ndarray:
    """Covariance with `shrinkage` parts of the identity times the mean variance; must be regular."""
    size = len(covariance)
    mean = np.trace(covariance) / size
    if not np.isfinite(covariance).all():
        raise NoiseError(f"the {axis} covariance overflows: is the signal in volts?")
    result = (1 - shrinkage) * covariance + shrinkage * mean * np.eye(size)
    _roots(result, axis)
    return result


def _roots(covariance: np.ndarray, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric square root and inverse square root."""
    if not np.isfinite(covariance).all():
        raise NoiseError(f"the {axis} covariance holds NaN or infinity")
    values, vectors = np.linalg.eigh(covariance)
    if values[0] <= 1e-10 * values[-1]:
        why = {
            "channel": "two electrodes are identical, or the average reference took a direction away",
            "time": "the filter or the baseline left moments without noise of their own",
        }[axis]
        raise NoiseError(
            f"the {axis} covariance is singular (smallest eigenvalue {values[0]:.3g}, largest "
            f"{values[-1]:.3g}): {why}. Give {axis}_shrinkage above 0, e.g. 0.01"
        )
    root = np.sqrt(values)
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def _residuals(eeg: Any, groups: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Blocks of trials around their own average, with the power of single trials, float32."""
    size = 4 * eeg.shape[1] * eeg.shape[2]
    block: list[np.ndarray] = []
    held = 0
    for i, rows in enumerate(groups):
        trials = np.asarray(eeg[rows], np.float32)
        if not np.isfinite(trials).all():
            trial, channel = np.argwhere(~np.isfinite(trials).all(2))[0]
            raise NoiseError(
                f"trial {int(rows[trial])}, channel number {channel} (both from 0) holds NaN or "
                "infinity. Mark the channel as bad and interpolate it, or leave the trial out (rows)"
            )
        n = len(rows)
        block.append((trials - trials.mean(0)) * np.float32(np.sqrt(n / (n - 1))))
        held += n * size
        if held >= _BLOCK_BYTES or i == len(groups) - 1:
            yield np.concatenate(block)
            block, held = [], 0


def _typical_power(model: NoiseModel, eeg: Any, groups: list[np.ndarray]) -> float:
    """Median over the samples of the whitened epoch of the noise variance that is left."""
    axes = [np.linalg.eigh(c)[1] for c in (model.channel_covariance, model.time_covariance)]
    total, n = 0.0, 0
    for block in _residuals(eeg, groups[:: max(1, len(groups) // 300)]):
        turned = axes[0].T @ (model.whiten(block).astype(np.float64) @ axes[1])
        total, n = total + (turned**2).sum(0), n + len(block)
    return float(np.median(total / n))
