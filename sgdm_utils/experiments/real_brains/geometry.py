"""Geometry of brain responses: what dissimilarities of pictures say about their form and category.

A dissimilarity matrix is all there is: no signal, no voxels. Classical scaling turns it into scalar
products, and kernel ridge regression from these to anything known of the other pictures predicts
the one that was left out, from its distances to them.

References
----------
Kriegeskorte, Mur & Bandettini (2008), Front. Syst. Neurosci. 2:4 (representational similarity).
Nili et al. (2014), PLoS Comput. Biol. 10:e1003553 (noise ceiling). Torgerson (1952), Psychometrika
17:401 (classical scaling). Gower (1968), Biometrika 55:582 (a point added to it).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_erosion
from scipy.stats import rankdata
from skimage.transform import resize

from sgdm_utils.metrics.retrieval import TIE_TOLERANCE
from sgdm_utils.stimuli.maps import structure_map

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # of the mean eigenvalue


def upper(rdm: np.ndarray) -> np.ndarray:
    """Entries above the diagonal, (..., n * (n - 1) / 2)."""
    return rdm[..., *np.triu_indices(rdm.shape[-1], 1)]


def rank_matrix(rdm: np.ndarray) -> np.ndarray:
    """Ranks of the dissimilarities as a symmetric matrix (n, n), centred, of unit length above the diagonal."""
    ranks = rankdata(upper(rdm))
    ranks -= ranks.mean()
    matrix = np.zeros(rdm.shape)
    matrix[np.triu_indices(len(rdm), 1)] = ranks / np.linalg.norm(ranks)
    return matrix + matrix.T


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation of two dissimilarity matrices (n, n), pairs above the diagonal."""
    return float(upper(rank_matrix(a)) @ upper(rank_matrix(b)))


def noise_ceiling(rdms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How well any model could agree with each person, from the agreement between people.

    Parameters
    ----------
    rdms : array of shape (n_people, n, n), at least two people

    Returns
    -------
    lower, upper : arrays of shape (n_people,)
        Rank correlation of each person with the mean rank of all others, and of all.
    """
    if len(rdms) < 2:
        raise ValueError("one person has no noise ceiling: at least two are needed")
    ranks = rankdata(upper(rdms), axis=1)
    total = ranks.sum(0)
    low = [np.corrcoef(r, total - r)[0, 1] for r in ranks]
    high = [np.corrcoef(r, total)[0, 1] for r in ranks]
    return np.array(low), np.array(high)


def partition_variance(
    rdm: np.ndarray, first: np.ndarray, second: np.ndarray
) -> tuple[float, float, float]:
    """Variance of ranks that two models explain alone and in common.

    Parameters
    ----------
    rdm, first, second : arrays of shape (n, n)

    Returns
    -------
    unique to the first, unique to the second, common to both : float
        Shares of the variance of the ranked dissimilarities. Unique shares are at least 0, also by
        chance: compare them with those of exchanged pictures, or between brains.
    """
    y, a, b = (rankdata(upper(m)) for m in (rdm, first, second))
    r = np.corrcoef([y, a, b])
    both = r[0, 1:] @ np.linalg.solve(r[1:, 1:], r[0, 1:])
    alone = r[0, 1:] ** 2
    return float(both - alone[1]), float(both - alone[0]), float(alone.sum() - both)


class GeometryDecoder:
    """Predict what is known of pictures from a brain's dissimilarities, leaving one picture out.

    The penalty is chosen for each left-out picture anew, by the error of leaving one more
    picture out of the others. What can be computed without targets is computed here, so that a
    permutation costs a few matrix products.

    Parameters
    ----------
    rdm : array of shape (n, n), as `files.check_rdms` accepts it
        1 - r of two patterns, which is half the squared distance between the normalised patterns
    penalties : ridge penalties, in units of the mean eigenvalue

    Notes
    -----
    With the products centred on the training pictures, H = 1/m + K (K + p)^-1 maps the targets to
    their fit, and (y - Hy) / (1 - h) is what leaving each out gives, exactly. The left-out picture's
    distances to the others are used; nothing else of it is.
    """

    def __init__(
        self,
        rdm: np.ndarray,
        penalties: Sequence[float] = PENALTIES,
    ) -> None:
        n = self.n = len(rdm)
        self.penalties = tuple(penalties)
        m, products = n - 1, scalar_products(rdm)
        self._hat = np.empty((len(penalties), n, m, m), np.float32)
        self._error = np.empty_like(self._hat)
        self._weights = np.empty((len(penalties), n, m))
        self._rest = np.array([np.delete(np.arange(n), i) for i in range(n)])
        for i, rest in enumerate(self._rest):
            k = products[np.ix_(rest, rest)]
            means = k.mean(0)
            across = products[i, rest] - means
            values, vectors = np.linalg.eigh(k - means - means[:, None] + means.mean())
            values = np.maximum(values, 0)
            for c, penalty in enumerate(penalties):
                filtered = vectors / (values + penalty * values.mean())
                hat = 1 / m + (filtered * values) @ vectors.T
                left_out = (np.eye(m) - hat) / (1 - np.diagonal(hat))[:, None]
                self._hat[c, i], self._error[c, i] = hat, left_out.T @ left_out
                w = filtered @ (vectors.T @ (across - across.mean()))
                self._weights[c, i] = 1 / m + w - w.mean()

    def predict(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predict each picture's targets from those of all others.

        Parameters
        ----------
        targets : array of shape (n, n_targets)

        Returns
        -------
        predicted : array of shape (n, n_targets)
        chosen : int array of shape (n,), index into `penalties`
        agreement : array of shape (n,)
            Correlation of prediction and truth when the *other* pictures are left out in turn, each
            target centred: what is known in advance of how good the prediction will be.
        """
        y = np.asarray(targets, np.float32)
        if y.shape[:1] != (self.n,) or y.ndim != 2 or not np.isfinite(y).all():
            raise ValueError(
                f"targets {y.shape}: expected {self.n} finite rows, one for each picture"
            )
        rows = y[self._rest]  # (n, m, n_targets)
        each = np.arange(self.n)
        # the summed squared error is a quadratic form in the targets, so their products suffice
        products = (y @ y.T)[self._rest[:, :, None], self._rest[:, None]]
        chosen = np.einsum("cijk,ijk->ci", self._error, products).argmin(0)
        hat = self._hat[chosen, each]
        inner = rows - (rows - hat @ rows) / (1 - np.diagonal(hat, axis1=1, axis2=2)[..., None])
        inner, centred = (x - x.mean(1, keepdims=True) for x in (inner, rows))
        length = np.sqrt((inner**2).sum((1, 2)) * (centred**2).sum((1, 2)))
        agreement = (inner * centred).sum((1, 2)) / np.maximum(length, 1e-12)
        predicted = np.einsum("im,imt->it", self._weights[chosen, each], rows)
        return predicted, chosen, agreement


def scalar_products(squared: np.ndarray) -> np.ndarray:
    """Classical scaling: squared distances (n, n) to scalar products around their mean."""
    rows = squared.mean(0)
    return -0.5 * (squared - rows - rows[:, None] + rows.mean())


def nearest_in(values: np.ndarray, k: int) -> np.ndarray:
    """Mark for each item the k others nearest in one number, bool (n, n), diagonal False."""
    values = np.asarray(values, np.float64)
    if not 1 <= k < len(values):
        raise ValueError(f"k = {k} of {len(values)} items: give 1 to {len(values) - 1}")
    distance = np.abs(values[:, None] - values)
    np.fill_diagonal(distance, np.inf)
    near = np.zeros(distance.shape, bool)
    np.put_along_axis(near, np.argsort(distance, axis=1, kind="stable")[:, :k], True, axis=1)
    return near


def two_way_among(
    real: np.ndarray, decoded: np.ndarray, others: np.ndarray | None = None
) -> np.ndarray:
    """Two-way identification of each item against some of the others.

    Parameters
    ----------
    real, decoded : arrays of shape (n, ...)
    others : bool array of shape (n, n), optional
        Row i marks what item i is compared with; default all others, which is
        `metrics.two_way_identification` but for items that are constant: they fail.

    Returns
    -------
    float64 array of shape (n,), chance 0.5; ties fail
    """
    a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (real, decoded))
    if a.shape != b.shape:
        raise ValueError(f"real {a.shape} and decoded {b.shape} differ in shape")
    a, b = (x - x.mean(1, keepdims=True) for x in (a, b))
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b))
    r = b @ a.T
    others = ~np.eye(len(a), dtype=bool) if others is None else others & ~np.eye(len(a), dtype=bool)
    below = r < np.diagonal(r)[:, None] - TIE_TOLERANCE
    return (below & others).sum(1) / others.sum(1)


def fit_into(silhouettes: np.ndarray, size: int, scale: float) -> tuple[np.ndarray, slice]:
    """Bring silhouettes to the size of a study, with a margin around them.

    Parameters
    ----------
    silhouettes : bool array of shape (n, height, width), square
    size : int, pixels per side of the study's maps
    scale : float in (0, 1], side of the pictures as a share of the map's

    Returns
    -------
    maps : bool array of shape (n, size, size)
    inside : slice, rows (and columns) of the pictures in the maps, for scores without the margin
    """
    if not 0 < scale <= 1:
        raise ValueError(f"scale is {scale}: a share above 0 and at most 1")
    n = round(size * scale)
    start = (size - n) // 2
    maps = np.zeros((len(silhouettes), size, size), bool)
    inside = slice(start, start + n)
    for i, picture in enumerate(silhouettes):
        maps[i, inside, inside] = resize(picture.astype(float), (n, n), anti_aliasing=True) > 0.5
    return maps, inside


def outlined(silhouettes: np.ndarray) -> np.ndarray:
    """Structure maps of silhouettes whose only edges are their outlines, float32 (n, 2, size, size)."""
    inner = np.stack([binary_erosion(mask, border_value=0) for mask in silhouettes])
    return structure_map(silhouettes, silhouettes & ~inner)


def spread_of(draws: np.ndarray) -> str:
    """Mean and range of draws in one text, for tables."""
    return f"{np.mean(draws):.3f} [{np.min(draws):.3f}, {np.max(draws):.3f}]"
