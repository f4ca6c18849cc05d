"""Where in an epoch pictures leave a trace: the few whitened directions that carry the answer.

An epoch has thousands of samples and the answers to pictures live in a small part of them. What the
two halves of a picture's repetitions share over pictures is signal (the noise of different trials is
independent), so its covariance over channels and over time is estimated without bias; the products
of both eigenbases, with the signal variance of each, are a basis in which most directions can be
left out and the others be shrunk according to what they hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sgdm_utils.signals.noise import NoiseError, NoiseModel

_BLOCK_BYTES = 64 << 20  # of float32 trials: pictures that are held at once
# Single-trial noise has a variance of about 1 in every direction but those that the filter emptied, in which shrinkage
# decides. Their answers are as small as rounding, and a likelihood would divide by that.
_LEAST_NOISE = 1e-3
_KEPT_BYTES = 5 << 29  # of float32 halves that are kept rather than read and whitened three times


@dataclass(frozen=True)
class SignalSpace:
    """Linear map from epochs to the outputs of a forward model.

    Attributes
    ----------
    noise : NoiseModel
    channel_basis : array of shape (n_channels, n_channels), columns by falling signal variance
    time_basis : array of shape (n_times, n_times)
    selected : int array of shape (n_outputs,), index into the flattened (channel, time) cells
    signal_variance : array of shape (n_outputs,), over pictures, in units of single-trial noise
    noise_variance : array of shape (n_outputs,), of a single trial: about 1
    center : array of shape (n_outputs,), mean over training pictures
    """

    noise: NoiseModel
    channel_basis: np.ndarray
    time_basis: np.ndarray
    selected: np.ndarray
    signal_variance: np.ndarray
    noise_variance: np.ndarray
    center: np.ndarray

    @property
    def n_outputs(self) -> int:
        return len(self.selected)

    def project(self, epochs: np.ndarray) -> np.ndarray:
        """Outputs of epochs: whitened, turned, selected, the training mean taken off.

        Parameters
        ----------
        epochs : array of shape (n, n_channels, n_times), trials or averages of any number

        Returns
        -------
        float64 array of shape (n, n_outputs)

        Raises
        ------
        NoiseError
            For another number of channels or samples, or NaN.
        """
        epochs = np.asarray(epochs)
        if epochs.ndim != 3:
            raise NoiseError(f"epochs have shape {epochs.shape}: give (n, n_channels, n_times)")
        white = self.noise.whiten(epochs)
        if not np.isfinite(white).all():
            row = int(np.argwhere(~np.isfinite(white).all((1, 2)))[0, 0])
            raise NoiseError(f"epoch {row} (from 0) holds NaN or infinity: leave it out")
        return _turned(white, self)[:, self.selected] - self.center

    def epochs(self, outputs: np.ndarray, center: bool = False) -> np.ndarray:
        """Epochs in the unit of the recording that have these outputs, and nothing elsewhere.

        Parameters
        ----------
        outputs : array of shape (n, n_outputs)
        center : bool, add the training mean of the outputs

        Returns
        -------
        float64 array of shape (n, n_channels, n_times)
        """
        n_channels, n_times = len(self.channel_basis), len(self.time_basis)
        cells = np.zeros((len(outputs), n_channels * n_times))
        cells[:, self.selected] = outputs + (self.center if center else 0)
        cells = cells.reshape(-1, n_channels, n_times)
        return self.noise.unwhiten(self.channel_basis @ (cells @ self.time_basis.T))

    def only(self, n_outputs: int) -> SignalSpace:
        """The first `n_outputs` directions, those with most signal."""
        if not 1 <= n_outputs <= self.n_outputs:
            raise ValueError(f"n_outputs is {n_outputs}: 1 to {self.n_outputs} are there")
        kept = {
            k: getattr(self, k)[:n_outputs]
            for k in ("selected", "signal_variance", "noise_variance", "center")
        }
        return SignalSpace(self.noise, self.channel_basis, self.time_basis, **kept)


@dataclass(frozen=True)
class Responses:
    """Averaged answers of one person to the training pictures.

    Attributes
    ----------
    space : SignalSpace
    pictures : int array of shape (n,), ascending: which picture
    outputs : array of shape (n, n_outputs)
    n_repetitions : int array of shape (n,)
    """

    space: SignalSpace
    pictures: np.ndarray
    outputs: np.ndarray
    n_repetitions: np.ndarray

    def only(self, n_outputs: int) -> Responses:
        """The first `n_outputs` directions."""
        space = self.space.only(n_outputs)
        return Responses(space, self.pictures, self.outputs[:, :n_outputs], self.n_repetitions)


def measure_responses(
    eeg: Any,
    picture: np.ndarray,
    noise: NoiseModel,
    rows: np.ndarray | None = None,
    n_outputs: int = 300,
    smoothing: float = 0.3,
) -> Responses:
    """Find the signal space of one person and the answers to the training pictures in it.

    Parameters
    ----------
    eeg : array, memory map or trial file of shape (n_trials, n_channels, n_times)
        It is read a block of pictures at a time: once where the halves of all pictures take no more
        than 2.7 GB (16,540 pictures of 63 x 250 take 2.1), else three times.
    picture : int array of shape (n_trials,), picture that each trial shows
    noise : NoiseModel, fitted on the same kind of epochs
    rows : int array, the training trials; default all
    n_outputs : int
        Directions to keep at most; those without noise of their own (a variance below 0.001), which a
        filter emptied, are left out.
    smoothing : float in [0, 1]
        The signal variance of a direction is this share of (channel variance x time variance), plus
        the rest of what was measured in that direction itself.

    Raises
    ------
    NoiseError
        No training trial, epochs that do not fit the noise model, nothing repeated, no signal.
    """
    picture = np.asarray(picture)
    if len(eeg.shape) != 3 or picture.shape != (eeg.shape[0],):
        raise NoiseError(
            f"trials have shape {tuple(eeg.shape)}, pictures {picture.shape}: expected (n_trials, "
            "n_channels, n_times) and the picture of each trial"
        )
    rows = np.arange(len(picture)) if rows is None else np.asarray(rows)
    if not rows.size:
        raise NoiseError("this person has no training trials: a forward model needs some of them")
    shown, inverse = np.unique(picture[rows], return_inverse=True)
    count = np.bincount(inverse)
    groups = np.split(rows[np.argsort(inverse, kind="stable")], np.cumsum(count)[:-1])
    twice = count > 1
    if twice.sum() < 3:
        raise NoiseError(
            f"{int(twice.sum())} of {len(shown)} pictures were shown twice: the signal is what "
            "repeats, so at least 3 have to be. Give trials before averaging"
        )
    halves = partial(_halves, eeg, groups, noise)
    keep = 8 * len(groups) * noise.n_channels * noise.n_times <= _KEPT_BYTES
    if keep:
        halves = partial(iter, list(halves()))
    space = _bases(halves, twice, noise)
    turned = partial(_turned_halves, halves, space)
    if keep:  # in the place of the whitened halves, which nothing asks for any more
        turned = partial(iter, list(turned()))
    cells = np.zeros(noise.n_channels * noise.n_times)
    power, sums = np.zeros_like(cells), np.zeros((2, len(cells)))
    freedom = 0.0
    for some, first, second, n in turned():
        a, b, n = (_rows(x, twice[some]) for x in (first, second, n.T))
        cells += (a * b).sum(0, dtype=np.float64)
        sums += a.sum(0, dtype=np.float64), b.sum(0, dtype=np.float64)
        weight = (1 / (1 / n).sum(1)).astype(np.float32)
        power += (np.square(a - b) * weight[:, None]).sum(0, dtype=np.float64)
        freedom += len(a)
    cells = (cells - sums[0] * sums[1] / freedom) / (freedom - 1)
    product = np.outer(np.maximum(space.channel, 0), np.maximum(space.time, 0)).ravel()
    signal = (1 - smoothing) * cells + smoothing * product / max(space.total, 1e-12)
    noise_variance = power / freedom
    signal[noise_variance < _LEAST_NOISE] = 0
    order = np.argsort(-signal, kind="stable")[:n_outputs]
    order = order[signal[order] > 0]
    if not len(order) or space.total <= 0:
        raise NoiseError(
            "nothing repeats with the picture in these trials (signal variance is not above 0): "
            "are the pictures assigned to the right trials?"
        )
    outputs = np.empty((len(shown), len(order)))
    for some, first, second, n in turned():
        share = n[0] / n.sum(0)
        outputs[some] = share[:, None] * first[:, order] + (1 - share)[:, None] * second[:, order]
    center = outputs.mean(0)
    found = SignalSpace(
        noise, space.channel_basis, space.time_basis, order, signal[order],
        noise_variance[order], center,
    )  # fmt: skip
    return Responses(found, shown, outputs - center, count)


@dataclass
class _Bases:
    channel_basis: np.ndarray
    time_basis: np.ndarray
    channel: np.ndarray
    time: np.ndarray
    total: float


def _bases(halves: Any, twice: np.ndarray, noise: NoiseModel) -> _Bases:
    """Eigenbases of the signal covariance over channels and over time, from both halves."""
    n_channels, n_times = noise.n_channels, noise.n_times
    time, channel = np.zeros((n_times, n_times)), np.zeros((n_channels, n_channels))
    sums, n = np.zeros((2, n_channels, n_times)), 0
    for some, first, second, _ in halves():
        a, b = (_rows(x, twice[some]) for x in (first, second))
        time += a.reshape(-1, n_times).T @ b.reshape(-1, n_times)
        channel += (a @ b.swapaxes(1, 2)).sum(0, dtype=np.float64)
        sums += a.sum(0, dtype=np.float64), b.sum(0, dtype=np.float64)
        n += len(a)
    time = (time - sums[0].T @ sums[1] / n) / ((n - 1) * n_channels)
    channel = (channel - sums[0] @ sums[1].T / n) / ((n - 1) * n_times)
    (wt, vt), (wc, vc) = (np.linalg.eigh((m + m.T) / 2) for m in (time, channel))
    return _Bases(vc[:, ::-1], vt[:, ::-1], wc[::-1], wt[::-1], float(np.trace(time) / n_times))


def _turned(white: np.ndarray, bases: _Bases | SignalSpace) -> np.ndarray:
    """Whitened epochs in the eigenbases, (n, n_channels * n_times) float64."""
    turned = bases.channel_basis.T @ (white.astype(np.float64) @ bases.time_basis)
    return turned.reshape(len(white), white.shape[1] * white.shape[2])


def _rows(block: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Rows of a block; the block itself, not a copy, where all of them are wanted."""
    return block if which.all() else block[which]


def _both_axes(block: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """`left @ epoch @ right` of every epoch of a block, in place."""
    flat = block.reshape(-1, block.shape[-1])  # one product of all epochs
    np.matmul(left, (flat @ right).reshape(block.shape), out=block)


def _turned_halves(halves: Any, bases: _Bases) -> Iterator[tuple]:
    """Whitened halves in the eigenbases, (n, n_channels * n_times), written over the halves."""
    left = np.ascontiguousarray(bases.channel_basis.T, np.float32)
    right = bases.time_basis.astype(np.float32)
    for some, first, second, n in halves():
        for half in (first, second):
            _both_axes(half, left, right)
        yield some, first.reshape(len(first), -1), second.reshape(len(second), -1), n


def _halves(
    eeg: Any, groups: Sequence[np.ndarray], noise: NoiseModel
) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
    """Whitened averages of even and odd repetitions for blocks of pictures, and their numbers.

    A picture with one trial has it in the first half and zeros, with number 0, in the second.
    Products are float32, as the trials are: they lose no more than storing them has lost.
    """
    left, right = (m.astype(np.float32) for m in (noise.channel_whitener, noise.time_whitener))
    size = 4 * noise.n_channels * noise.n_times
    lengths = [len(group) for group in groups]
    step = max(1, _BLOCK_BYTES // (size * max(2, *lengths)))
    for start in range(0, len(groups), step):
        some = groups[start : start + step]
        trials = np.asarray(eeg[np.concatenate(some)], np.float32)
        ends = np.cumsum(lengths[start : start + step])
        halves = np.zeros((2, len(some), *eeg.shape[1:]), np.float32)
        if len(set(lengths[start : start + step])) == 1:  # one mean of all, to the same digits
            block = trials.reshape(len(some), lengths[start], *trials.shape[1:])
            for h in range(min(block.shape[1], 2)):
                np.mean(block[:, h::2], axis=1, out=halves[h])
        else:
            for i, (end, length) in enumerate(zip(ends, lengths[start:], strict=False)):
                for h in range(min(length, 2)):
                    np.mean(trials[end - length + h : end : 2], axis=0, out=halves[h, i])
        if not np.isfinite(halves).all():
            lost = int(np.flatnonzero(~np.isfinite(trials).all((1, 2)))[0])
            raise NoiseError(
                f"trial {int(np.concatenate(some)[lost])} (from 0) holds NaN or infinity: leave "
                "it out (rows), or mark the channel as bad and interpolate it"
            )
        n = np.array([[(len(rows) + 1) // 2, len(rows) // 2] for rows in some], float).T
        for half in halves:
            _both_axes(half, left, right)
        yield slice(start, start + len(some)), halves[0], halves[1], n
