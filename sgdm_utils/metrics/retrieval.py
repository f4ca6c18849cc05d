"""Identification and retrieval: which of the candidates is meant, one score per item.

Features and embeddings are arrays or tensors whose first axis is the item. A tie never counts in
favour of the model: one that gives the same answer to everything scores nothing.

References
----------
Two-way identification: Ozcelik & VanRullen, Scientific Reports 13, 15666 (2023), as computed by
Scotti et al., MindEye2 (2024). Hubness: Radovanovic et al., JMLR 11, 2487 (2010).
"""

from __future__ import annotations

import numpy as np
import scipy  # loads its parts when they are used
import torch
from numpy.typing import ArrayLike

TIE_TOLERANCE = 1e-12  # correlations and cosines closer than this differ by rounding only


def identification_matrix(real_features: ArrayLike, recon_features: ArrayLike) -> np.ndarray:
    """Two-way scores that reconstruction j would have if real picture i were its target.

    Parameters
    ----------
    real_features, recon_features : array of shape (n, ...), flattened per item

    Returns
    -------
    ndarray of shape (n, n), float64
        Entry [j, i] is the share of the n - 1 other reals whose Pearson correlation with
        reconstruction j is below that of real i; ties fail. The diagonal is the score itself,
        the rest is what `statistics.label_permutation_null` draws from.
    """
    real = _check_features(real_features, "real_features")
    recon = _check_features(recon_features, "recon_features")
    if len(real) != len(recon) or real.shape[1] != recon.shape[1]:
        raise ValueError(f"real features {real.shape} and recon features {recon.shape} differ")
    if len(real) < 2:
        raise ValueError("two-way identification needs at least 2 items")
    real, recon = _centre_rows(real, "real_features"), _centre_rows(recon, "recon_features")
    # Pearson's correlation is the cosine of centred rows.
    correlation = cosine_similarity(recon, real)
    below = len(real) - _count_at_least(correlation)
    return below / (len(real) - 1)


def two_way_identification(real_features: ArrayLike, recon_features: ArrayLike) -> np.ndarray:
    """Two-way identification score of each reconstruction, shape (n,); chance is 0.5."""
    return np.diagonal(identification_matrix(real_features, recon_features)).copy()


def cosine_similarity(predicted: ArrayLike, gallery: ArrayLike) -> np.ndarray:
    """Cosine of each predicted embedding with each gallery embedding, (n_queries, n_gallery)."""
    predicted = _check_features(predicted, "predicted")
    gallery = _check_features(gallery, "gallery")
    if predicted.shape[1] != gallery.shape[1]:
        raise ValueError(f"predicted has {predicted.shape[1]} features, gallery {gallery.shape[1]}")
    return _unit_rows(predicted, "predicted") @ _unit_rows(gallery, "gallery").T


def rank_matrix(similarity: np.ndarray) -> np.ndarray:
    """Rank (1 = best) of each gallery item for each query; of tied items all get the worst rank.

    A model that gives one answer to everything thus scores nothing, instead of everything.
    """
    return _count_at_least(np.asarray(similarity, dtype=np.float64))


def retrieval_ranks(similarity: np.ndarray, targets: ArrayLike | None = None) -> np.ndarray:
    """Rank of the true gallery item of each query, shape (n_queries,).

    `targets` holds the gallery index of each query; without it query i belongs to item i.
    Top-k accuracy per item is `ranks <= k`, its chance level `k / n_gallery`.
    """
    n_queries, n_gallery = np.shape(similarity)
    if targets is None:
        if n_queries != n_gallery:
            raise ValueError(f"{n_queries} queries and {n_gallery} gallery items: give targets")
        targets = np.arange(n_queries)
    targets = np.asarray(targets)
    if targets.shape != (n_queries,) or targets.dtype.kind not in "iu":
        raise ValueError(
            f"targets must be {n_queries} integers, got {targets.dtype} {targets.shape}"
        )
    if targets.min() < 0 or targets.max() >= n_gallery:
        raise ValueError(
            f"targets run from {targets.min()} to {targets.max()}, the gallery from 0 to "
            f"{n_gallery - 1}"
        )
    return rank_matrix(similarity)[np.arange(n_queries), targets]


def n_way_accuracy(ranks: ArrayLike, n_gallery: int, n_way: int, k: int = 1) -> np.ndarray:
    """Probability of a top-k hit among the target and n_way - 1 random others; chance k / n_way.

    It is the exact expectation over all draws of the others, so there is no sampling noise.
    """
    if not 1 <= k <= n_way <= n_gallery:
        raise ValueError(f"need 1 <= k <= n_way <= n_gallery, got {k}, {n_way}, {n_gallery}")
    # Of n_gallery - 1 others, rank - 1 beat the target; fewer than k of them may be drawn.
    return scipy.stats.hypergeom.cdf(k - 1, n_gallery - 1, np.asarray(ranks) - 1, n_way - 1)


def k_occurrence(similarity: np.ndarray, k: int = 1) -> np.ndarray:
    """How often each gallery item is among the k nearest of a query, shape (n_gallery,)."""
    nearest = np.argsort(-np.asarray(similarity), axis=1, kind="stable")[:, :k]
    return np.bincount(nearest.ravel(), minlength=np.shape(similarity)[1])


def hubness_skewness(similarity: np.ndarray, k: int = 1) -> float:
    """Skewness of the k-occurrence: 0 for an even gallery, large when a few items are hubs."""
    counts = k_occurrence(similarity, k)
    return 0.0 if np.ptp(counts) == 0 else float(scipy.stats.skew(counts))


def _check_features(features: ArrayLike | torch.Tensor, name: str) -> np.ndarray:
    if torch.is_tensor(features):
        features = features.detach().cpu().double()
    features = np.asarray(features, dtype=np.float64)
    if features.ndim < 2 or 0 in features.shape:
        raise ValueError(f"{name}: shape {features.shape}, expected (n, n_features)")
    features = features.reshape(len(features), -1)
    bad = ~np.isfinite(features).all(1)
    if bad.any():
        raise ValueError(
            f"{name}: NaN or infinite features in items {np.flatnonzero(bad)[:8].tolist()}"
        )
    return features


def _centre_rows(features: np.ndarray, name: str) -> np.ndarray:
    constant = np.ptp(features, axis=1) == 0
    if constant.any():
        items = np.flatnonzero(constant)[:8].tolist()
        raise ValueError(f"{name}: items {items} have constant features, no correlation is defined")
    return features - features.mean(1, keepdims=True)


def _unit_rows(features: np.ndarray, name: str) -> np.ndarray:
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    if not norm.all():
        items = np.flatnonzero(norm[:, 0] == 0)[:8].tolist()
        raise ValueError(f"{name}: items {items} are zero vectors, no cosine is defined")
    return features / norm


def _count_at_least(scores: np.ndarray) -> np.ndarray:
    """Count, for each entry, the entries of its row that are not smaller (itself included)."""
    if scores.ndim != 2 or not np.isfinite(scores).all():
        raise ValueError(f"expected a finite (n_queries, n_gallery) matrix, got {scores.shape}")
    smaller = [np.searchsorted(np.sort(row), row - TIE_TOLERANCE) for row in scores]
    return scores.shape[1] - np.stack(smaller)


def derangement(n: int, rng: np.random.Generator) -> np.ndarray:
    """For each of n items another one, int (n,), each taken once: nobody keeps their own.

    The shuffled control: everything but the pairing of EEG and picture stays.
    """
    if n < 2:
        raise ValueError(f"{n} item(s) cannot be exchanged: at least two are needed")
    order = rng.permutation(n)
    other = np.empty(n, int)
    other[order] = np.roll(order, 1)
    return other
