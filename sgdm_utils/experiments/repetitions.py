"""How good could any decoder be? Noise ceilings, and the score as a function of the repetitions.

Averaging k repetitions divides the noise power by k, so a score belongs to a number of repetitions.
The functions here draw k of the repetitions of every picture at random, average, decode and score,
for several k; beside it stands what the data themselves allow at that k: the reliability of the
average (from its halves), the noise ceiling of a decoder (its answers to the other repetitions of
the same pictures as the gallery), and, for a simulated recording, the decoder that knows the truth.

References
----------
Spearman, Brit. J. Psychol. 3, 271 (1910) and Brown, ibid., 296: reliability of a longer test.
Schoppe et al., Front. Comput. Neurosci. 10, 10 (2016): the square root of the reliability is the
highest correlation that a model can have with the average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sgdm_utils.metrics.retrieval import rank_matrix
from sgdm_utils.metrics.statistics import N_RESAMPLES, percentile_interval
from sgdm_utils.signals.files import Averages
from sgdm_utils.simulation.truth import pattern_correlation, template_retrieval

#: Similarity of averages, (n_items, n_channels, n_times), to a gallery: (n_items, n_gallery)
Decoder = Callable[[np.ndarray], np.ndarray]


def usable_counts(groups: Sequence[np.ndarray], wanted: Sequence[int]) -> list[int]:
    """Those of the wanted numbers of repetitions that every item has, ascending.

    Raises
    ------
    ValueError
        When a number is not positive, or no wanted number is within the fewest repetitions.
    """
    if not len(groups) or not len(wanted) or min(wanted) < 1:
        raise ValueError(f"{len(groups)} items, repetitions {list(wanted)}: need at least 1 each")
    fewest = min(len(group) for group in groups)
    counts = sorted({int(k) for k in wanted if k <= fewest})
    if not counts:
        raise ValueError(
            f"an item has {fewest} repetitions, the fewest asked for are {min(wanted)}: ask for "
            f"numbers up to {fewest}"
        )
    return counts


def repetition_curve(
    eeg: Any,
    groups: Sequence[np.ndarray],
    decoder: Decoder,
    counts: Sequence[int],
    rng: np.random.Generator,
    n_draws: int = 20,
) -> np.ndarray:
    """Ranks of a decoder on averages of k random repetitions, for several k.

    Within a draw the repetitions of a smaller k are among those of a larger one, so that the
    curve of a draw shows the number of repetitions and not another sample.

    Parameters
    ----------
    eeg : TrialFile, TrialFiles or ndarray of shape (n_trials, n_channels, n_times)
    groups : list of int arrays
        Trials of each item, see `quality.repetition_groups`; item i is gallery item i.
    decoder : callable
        Averages to similarity of shape (n_items, n_gallery).
    counts : numbers of repetitions, each within the fewest that an item has
    n_draws : int, random draws of the repetitions

    Returns
    -------
    int array of shape (n_counts, n_draws, n_items, n_gallery)
        Rank of each gallery item (1 = best, ties get the worst), see `retrieval.rank_matrix`. With
        all repetitions the draws are the same.
    """
    ranks = []
    for order in _draws(groups, counts, rng, n_draws):
        chosen = ([trials[:k] for trials in order] for k in counts)
        ranks.append([rank_matrix(decoder(Averages(eeg, part)[:])) for part in chosen])
    return np.stack(ranks, axis=1).astype(np.int32)


def template_curve(
    eeg: Any,
    groups: Sequence[np.ndarray],
    counts: Sequence[int],
    rng: np.random.Generator,
    n_draws: int = 20,
    compare: Callable[[np.ndarray, np.ndarray], np.ndarray] = template_retrieval,
) -> np.ndarray:
    """Ranks when the gallery holds each picture's answer to its *other* repetitions.

    The average of k repetitions is compared with the averages of all remaining ones. With the
    output of a decoder compared (`compare` applies it to both sides), this is the noise ceiling of
    that decoder's retrieval: errors that it makes in every repetition are in the gallery as well,
    and only noise is left to confuse pictures. The gallery is noisy, too, so the ceiling is rather
    estimated too low. With the signals themselves compared (the default) noise from all channels
    and times counts, and a decoder that knows where to look does much better.

    Parameters
    ----------
    eeg : trials of shape (n_trials, n_channels, n_times); whitened for the default
    groups, rng, n_draws : see `repetition_curve`
    counts : numbers of repetitions, at most one less than every item has
    compare : callable
        Averages and templates, each (n_items, n_channels, n_times), to similarity (n_items,
        n_items), larger for more alike.

    Returns
    -------
    int array of shape (n_counts, n_draws, n_items, n_items), as from `repetition_curve`
    """
    fewest = min(len(group) for group in groups)
    if max(counts) >= fewest:
        raise ValueError(
            f"{max(counts)} of {fewest} repetitions leave none for the template: ask for "
            f"{fewest - 1} at most"
        )
    ranks = []
    for order in _draws(groups, counts, rng, n_draws):
        parts = [([t[:k] for t in order], [t[k:] for t in order]) for k in counts]
        scores = [compare(Averages(eeg, q)[:], Averages(eeg, t)[:]) for q, t in parts]
        ranks.append([rank_matrix(s) for s in scores])
    return np.stack(ranks, axis=1).astype(np.int32)


def hits(ranks: np.ndarray, k: int) -> np.ndarray:
    """Whether the own picture is among the first `k`, (..., n_items, n_gallery) -> (..., n_items)."""
    return np.diagonal(ranks, axis1=-2, axis2=-1) <= k


def curve_interval(
    scores: np.ndarray, rng: np.random.Generator, n_resamples: int = N_RESAMPLES
) -> tuple[float, float]:
    """95 % interval of a mean score over items and over the draws of the repetitions.

    Each resample draws items with replacement and, for each of them, one of the draws of its
    repetitions: what other studies of this size, with other pictures and other trials, would
    have reported.

    Parameters
    ----------
    scores : array of shape (n_draws, n_items)
        Scores of one number of repetitions, averaged over subjects where there are several.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] < 2 or not np.isfinite(scores).all():
        raise ValueError(
            f"scores of shape {scores.shape}: expected finite (n_draws, n_items) with 2 items"
        )
    shape = (n_resamples, scores.shape[1])
    means = scores[
        rng.integers(scores.shape[0], size=shape), rng.integers(scores.shape[1], size=shape)
    ].mean(1)
    return percentile_interval(means)


def spearman_brown(reliability: ArrayLike, factor: ArrayLike) -> np.ndarray:
    """Reliability of an average that is `factor` times as long: f r / (1 + (f - 1) r).

    Raises
    ------
    ValueError
        A factor that is not positive or a reliability outside (-1, 1].
    """
    r, f = np.asarray(reliability, np.float64), np.asarray(factor, np.float64)
    if not (f > 0).all() or not ((r > -1) & (r <= 1)).all():
        raise ValueError(
            f"reliability {r}, factor {f}: expected a correlation in (-1, 1] and a positive factor"
        )
    return f * r / (1 + (f - 1) * r)


def split_half_pattern(
    eeg: Any, groups: Sequence[np.ndarray], rng: np.random.Generator, n_splits: int = 20
) -> tuple[float, float]:
    """Reliability of the response patterns of a whole set of pictures.

    The correlation, over pictures, channels and times, of the averages of two random halves of the
    repetitions, each picture mean removed; the mean of `n_splits` halvings.

    Parameters
    ----------
    eeg, groups, rng : see `repetition_curve`
    n_splits : int, random halvings

    Returns
    -------
    reliability : float, of an average of `half` repetitions
    half : int, repetitions in a half; every item counts with as many as the one with the fewest
    """
    half = min(len(group) for group in groups) // 2
    if half < 1 or len(groups) < 3:
        raise ValueError(
            f"{len(groups)} items with {2 * half} repetitions and more: a reliability needs at "
            "least 3 items that were repeated"
        )
    found = []
    for order in _draws(groups, [2 * half], rng, n_splits):
        a = Averages(eeg, [trials[:half] for trials in order])[:]
        b = Averages(eeg, [trials[half : 2 * half] for trials in order])[:]
        found.append(pattern_correlation(a.astype(np.float64), b.astype(np.float64)))
    return float(np.mean(found)), half


def pattern_ceiling(reliability: float, half: int, counts: Sequence[int]) -> np.ndarray:
    """Highest correlation that a noise-free model can have with averages of k repetitions.

    The root of the reliability that Spearman and Brown predict from `split_half_pattern` for each
    count, float64 (n_counts,); 0 where nothing repeats.
    """
    at_k = spearman_brown(max(reliability, 0.0), np.asarray(counts) / half)
    return np.sqrt(at_k)


def equivalent_repetitions(
    counts: Sequence[int], curve: Sequence[float], value: float
) -> float | None:
    """With how many repetitions does a rising curve reach `value`?

    Linear in the logarithm of the number between the points of the curve, whose dips (chance
    fluctuations) are filled first.

    Returns
    -------
    float, or None when the curve lies above `value` from its first point on or never reaches it
    """
    counts, curve = np.asarray(counts, float), np.maximum.accumulate(np.asarray(curve, float))
    if counts.shape != curve.shape or counts.ndim != 1 or (np.diff(counts) <= 0).any():
        raise ValueError(f"{len(counts)} ascending counts and {len(curve)} values must correspond")
    above = np.flatnonzero(curve >= value)
    if not len(above) or (above[0] == 0 and curve[0] > value):
        return None
    i = int(above[0])
    if i == 0:
        return float(counts[0])
    share = (value - curve[i - 1]) / (curve[i] - curve[i - 1])
    return float(counts[i - 1] * (counts[i] / counts[i - 1]) ** share)


def _draws(
    groups: Sequence[np.ndarray], counts: Sequence[int], rng: np.random.Generator, n_draws: int
) -> Iterator[list[np.ndarray]]:
    """Yield random orders of every item's trials, `n_draws` times."""
    if n_draws < 1:
        raise ValueError(f"need at least one draw, got {n_draws}")
    fewest = min(len(group) for group in groups)
    if min(counts) < 1 or max(counts) > fewest:
        raise ValueError(
            f"repetitions {list(counts)}: an item has only {fewest}; see usable_counts"
        )
    for _ in range(n_draws):
        yield [rng.permutation(group) for group in groups]
