"""What EEG says about a picture, as an average over pictures that could have been seen.

The prior is a set of pictures (of training concepts only), the likelihood comes from a forward
model, and everything that is known of the pictures of the set (silhouette, pixels, embedding,
category) gets its posterior mean as a weighted mean. Nothing is trained.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist


def posterior_weights(log_likelihood: np.ndarray, temperature: float = 0.3) -> np.ndarray:
    """Weights of the pictures of a set, from the likelihood of an epoch under each of them.

    Parameters
    ----------
    log_likelihood : array of shape (n, n_set), `ForwardModel.log_likelihood`
    temperature : float, above 0
        Power of the likelihood. 1 is Bayes' rule for a set that holds the picture that was seen; a
        finite set holds its neighbours only, which deserve less certainty. Choose it on validation.

    Returns
    -------
    float64 array of shape (n, n_set), rows sum to 1
    """
    log_likelihood = np.asarray(log_likelihood, np.float64)
    if log_likelihood.ndim != 2 or not log_likelihood.shape[1]:
        raise ValueError(f"log-likelihoods have shape {log_likelihood.shape}, expected (n, n_set)")
    if not np.isfinite(log_likelihood).all():
        raise ValueError("log-likelihoods hold NaN or infinity: was the EEG free of them?")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}: a power above 0 is needed")
    weights = np.exp(temperature * (log_likelihood - log_likelihood.max(1, keepdims=True)))
    return weights / weights.sum(1, keepdims=True)


def posterior_mean(weights: np.ndarray, values: np.ndarray, n_likeliest: int = 500) -> np.ndarray:
    """Weighted mean of something that is known of every picture of the set.

    Parameters
    ----------
    weights : array of shape (n, n_set)
    values : array or memory map of shape (n_set, ...), e.g. maps (n_set, 2, size, size)
    n_likeliest : int
        Pictures with the largest weights that are averaged for each epoch; the rest is left out, so
        that large values are read for a few pictures only.

    Returns
    -------
    float32 array of shape (n, ...)
    """
    weights = np.asarray(weights)
    if weights.ndim != 2 or weights.shape[1] != len(values):
        raise ValueError(
            f"weights have shape {weights.shape}, values are known of {len(values)} pictures: both "
            "have to be of the same set"
        )
    n_likeliest = min(n_likeliest, len(values))
    result = np.empty((len(weights), *values.shape[1:]), np.float32)
    for i, w in enumerate(weights):
        rows = np.sort(np.argpartition(-w, n_likeliest - 1)[:n_likeliest])
        some = np.asarray(values[rows], np.float32)
        result[i] = np.tensordot((w[rows] / w[rows].sum()).astype(np.float32), some, 1)
    return result


def cross_covariance(features: np.ndarray, values: np.ndarray, block: int = 2048) -> np.ndarray:
    """Covariance of picture features with something else that is known of pictures.

    Parameters
    ----------
    features : array of shape (n, n_features)
    values : array of shape (n, ...), e.g. maps
    block : int, pictures that are read at once

    Returns
    -------
    float32 array of shape (n_features, ...)
    """
    if len(features) != len(values):
        raise ValueError(f"features of {len(features)} pictures, values of {len(values)}")
    centred = np.asarray(features, np.float32) - np.mean(features, axis=0, dtype=np.float64)
    result = np.zeros((features.shape[1], *values.shape[1:]), np.float32)
    for start in range(0, len(values), block):
        some = np.asarray(values[start : start + block], np.float32)
        result += np.tensordot(centred[start : start + block].astype(np.float32).T, some, 1)
    return result / len(values)


def posterior_mode(
    weights: np.ndarray, values: np.ndarray, bandwidth: float, n_likeliest: int = 500
) -> np.ndarray:
    """Where the weights are densest: a value that pictures do have, where a mean need not be one.

    Parameters
    ----------
    weights : array of shape (n, n_set)
    values : array of shape (n_set, d), a few numbers of each picture, e.g. a colour
    bandwidth : float above 0, distance within which values count as alike

    Returns
    -------
    float32 array of shape (n, d): the densest value of the set, moved by five mean-shift steps
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth is {bandwidth}: a distance above 0 is needed")
    n_likeliest, values = min(n_likeliest, len(values)), np.asarray(values, np.float64)
    result = np.empty((len(weights), values.shape[1]), np.float32)
    for i, w in enumerate(np.asarray(weights)):
        rows = np.argpartition(-w, n_likeliest - 1)[:n_likeliest]
        x, share = values[rows], w[rows] / w[rows].sum()
        distance = cdist(x, x, "sqeuclidean")
        center = x[(np.exp(-distance / (2 * bandwidth**2)) @ share).argmax()]
        for _ in range(5):
            near = share * np.exp(-((x - center) ** 2).sum(1) / (2 * bandwidth**2))
            center = near @ x / near.sum()
        result[i] = center
    return result


def with_category(
    features: np.ndarray, category: np.ndarray, n_categories: int, share: float
) -> np.ndarray:
    """Picture features beside what kind of thing each picture shows, for pictures that have labels.

    A category evokes EEG that no feature of the pixels stands for. Of training pictures it is known,
    so a model of *their* answers may use it. A picture that was never labelled has no such row.

    Parameters
    ----------
    features : array of shape (n, n_features), mean squared length 1 (`PictureFeatures`)
    category : int array of shape (n,), 0 to n_categories - 1, or -1 for a picture without label, which
        gets what is common to all labelled ones
    n_categories : int
    share : float in [0, 1), of the mean squared length that the category gets

    Returns
    -------
    array of shape (n, n_features + n_categories), mean squared length of labelled rows as before
    """
    category = np.asarray(category)
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}: of the variance of features, from 0 to below 1")
    if category.shape != (len(features),):
        raise ValueError(f"features of {len(features)} pictures, categories of {category.shape}")
    if category.min(initial=-1) < -1 or category.max(initial=-1) >= n_categories:
        raise ValueError(
            f"categories go from -1 (none) to {n_categories - 1}, not {category.max()}"
        )
    labels = np.eye(n_categories + 1)[category + 1][:, 1:]
    named = category >= 0
    labels[named] -= labels[named].mean(0) if named.any() else 0
    length = (labels[named] ** 2).sum(1).mean() ** 0.5 if named.any() else 0
    labels *= share**0.5 / max(length, 1e-12)
    return np.concatenate([(1 - share) ** 0.5 * np.asarray(features), labels], axis=1)


def effective_size(weights: np.ndarray) -> np.ndarray:
    """Number of pictures among which each posterior is spread, 1 / sum of squares, (n,)."""
    return 1 / (np.asarray(weights) ** 2).sum(1)


def favour_categories(weights: np.ndarray, category: np.ndarray, power: float = 1.0) -> np.ndarray:
    """Weights that favour pictures of the categories that are likely as a whole.

    An average over pictures of several kinds has the outline of none. Every weight is multiplied by
    the posterior probability of its picture's category to a power, so that the average is mostly one
    over pictures of one kind.

    Parameters
    ----------
    weights : array of shape (n, n_set), `posterior_weights`
    category : int array of shape (n_set,), -1 for a picture without one
    power : float, at least 0; 0 changes nothing

    Returns
    -------
    array of shape (n, n_set), rows sum to 1
    """
    if not power >= 0:
        raise ValueError(f"power is {power}: 0 (no preference) or more is needed")
    category = np.asarray(category)
    if category.shape != (weights.shape[1],):
        raise ValueError(f"{weights.shape[1]} pictures have weights, {len(category)} a category")
    codes, index = np.unique(category, return_inverse=True)
    share = weights @ np.eye(len(codes))[index]
    favoured = weights * share[:, index] ** power
    return favoured / favoured.sum(1, keepdims=True)


def spread_out(weights: np.ndarray, largest: float = 0.1) -> np.ndarray:
    """Weights of which none is larger than a share, so that no average is a copy of one picture.

    What is taken from a picture goes to the others of its epoch in proportion to their weights.

    Parameters
    ----------
    weights : array of shape (n, n_set), rows sum to 1
    largest : float, at least 1 / n_set; 1 changes nothing

    Returns
    -------
    array of shape (n, n_set), rows sum to 1
    """
    if not largest * weights.shape[1] >= 1:
        raise ValueError(
            f"largest is {largest}: {weights.shape[1]} pictures cannot share a weight of 1 like that, "
            f"give {1 / weights.shape[1]:.3g} or more"
        )
    weights = np.maximum(weights, 1e-12)
    for _ in range(100):
        weights = np.minimum(weights, largest)
        weights = weights / weights.sum(1, keepdims=True)
        if weights.max(initial=0) <= 1.001 * largest:
            break
    return weights
