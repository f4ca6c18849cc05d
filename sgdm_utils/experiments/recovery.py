"""Recovery without labels: what the unlabelled test set as a whole says about a new person.

Every function here looks at all test epochs together, and two of them at the gallery as well. What
comes out is *transductive*: label it so. Decoded points and gallery are rows of the same coordinates.

References
----------
Lample et al. (2018), ICLR (CSLS). He & Wu (2020), IEEE TBME 67:399 (whitening with the covariance of a
person's own unlabelled trials). Schönemann (1966), Psychometrika 31:1 (orthogonal Procrustes).
"""

from __future__ import annotations

import numpy as np

from sgdm_utils.experiments.cross_subject import CrossSubjectError, inverse_root


def rewhitening(trials: np.ndarray, known: np.ndarray, known_trials: float = 400.0) -> np.ndarray:
    """Matrix that makes unlabelled trials as white as those of other people.

    Parameters
    ----------
    trials : array of shape (n, d), unlabelled single trials
    known : array of shape (d, d), covariance of other people's trials
    known_trials : float, it counts like so many trials

    Returns
    -------
    array of shape (d, d), to multiply rows with: the covariance goes over into `known`
    """
    trials = _points(trials, "trials")
    rest = trials - trials.mean(0)
    covariance = (rest.T @ rest + known_trials * known) / (len(rest) + known_trials)
    values, vectors = np.linalg.eigh(known)
    return inverse_root(covariance) @ (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def match_moments(
    decoded: np.ndarray, gallery: np.ndarray, noise: np.ndarray | float = 0.0
) -> np.ndarray:
    """Shift and scale each coordinate to the mean and spread that the gallery lets expect.

    Parameters
    ----------
    decoded : array of shape (n, d)
    gallery : array of shape (n_gallery, d)
    noise : array of shape (d,) or float, variance that decoded points have besides
    """
    decoded, gallery = _points(decoded, "decoded"), _points(gallery, "gallery")
    spread = np.sqrt((gallery.var(0) + noise) / np.maximum(decoded.var(0), 1e-12))
    return (decoded - decoded.mean(0)) * spread + gallery.mean(0)


def procrustes(
    decoded: np.ndarray, target: np.ndarray, towards_identity: float = 1.0
) -> np.ndarray:
    """Rotation R, (d, d), for which decoded @ R is nearest to the target, held towards no rotation.

    Parameters
    ----------
    decoded, target : arrays of shape (n, d), row by row
    towards_identity : float, at least 0
        Weight of the squared distance of R from the identity, in units of the mean squared length
        that decoded and target share, summed over rows and spread over dimensions.

    Notes
    -----
    min ||Z R - T||^2 + w ||R - I||^2 over orthogonal R has the solution U V' of the singular value
    decomposition of Z'T + w I.
    """
    decoded, target = _points(decoded, "decoded"), _points(target, "target")
    if decoded.shape != target.shape or not towards_identity >= 0:
        raise CrossSubjectError(
            f"decoded {decoded.shape} and target {target.shape} need one shape, and towards_identity "
            f"({towards_identity}) 0 or more"
        )
    unit = np.linalg.norm(decoded) * np.linalg.norm(target) / decoded.shape[1]
    cross = decoded.T @ target + towards_identity * unit * np.eye(decoded.shape[1])
    u, _, vt = np.linalg.svd(cross)
    return u @ vt


def recover_rotation(
    decoded: np.ndarray,
    gallery: np.ndarray,
    similarity,
    towards_identity: float = 1.0,
    sharpness: float = 1.0,
    n_rounds: int = 5,
) -> np.ndarray:
    """Turn decoded points so that they lie on the gallery, without being told which is which.

    Each round takes, for every point, the mean of the gallery weighted by how likely each item is
    now, and fits the rotation to that.

    Parameters
    ----------
    decoded : array of shape (n, d)
    gallery : array of shape (n_gallery, d)
    similarity : callable, (decoded, gallery) to (n, n_gallery) in nats
    towards_identity : float, see `procrustes`
    sharpness : float, power of the likelihood
    n_rounds : int

    Returns
    -------
    array of shape (n, d), the turned points
    """
    turned = decoded
    for _ in range(n_rounds):
        logs = sharpness * similarity(turned, gallery)
        weights = np.exp(logs - logs.max(1, keepdims=True))
        expected = weights / weights.sum(1, keepdims=True) @ gallery
        turned = decoded @ procrustes(decoded, expected, towards_identity)
    return turned


def _points(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or len(values) < 2 or not np.isfinite(values).all():
        raise CrossSubjectError(
            f"{name} have shape {values.shape}: give a finite table with at least two rows (one for "
            "each epoch or picture); one epoch alone says nothing about its person"
        )
    return values
