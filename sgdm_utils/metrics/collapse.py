"""Do all reconstructions look alike?

A generator that knows nothing of the EEG can still give one good picture, or a few in turn. Two
statistics tell: how different the reconstructions are from each other, and in how many ways they
vary, both beside the pictures that were seen.

References
----------
Gao et al., bioRxiv 214262 (2017): participation ratio as the dimension of a set of responses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.spatial.distance import pdist, squareform

from sgdm_utils.metrics.audits import CLEAN, VIOLATED, AuditFinding, judge, listed

MIN_DIVERSITY = 0.1  # of the seen pictures' mean distance; variance below one hundredth of theirs
N_MODES = 3  # a set that repeats so few pictures counts as collapsed


def audit_diversity(
    reconstructions: ArrayLike,
    seen: ArrayLike,
    ids: Sequence[str],
    minimum: float = MIN_DIVERSITY,
    strict: bool = True,
) -> AuditFinding:
    """Are the reconstructions as different from each other as pictures are?

    Parameters
    ----------
    reconstructions, seen : arrays of shape (n, ...)
        Pixels or features, one row per item, of one condition and subject.
    ids : n strings, the items
    minimum : float
        Lowest mean pairwise distance, as a share of that of the seen pictures. The limit is a
        convention and meant for collapse only: an honest decoder of weak signals regresses to the
        mean and has less variety than pictures have.
    strict : bool, raise when violated

    Returns
    -------
    AuditFinding
        Items: those that have a near twin (nearer than `minimum` of the mean distance of seen).
    """
    made, real, ids = _check_pair(reconstructions, seen, ids)
    distances = squareform(pdist(made))
    typical = float(pdist(real).mean())
    if typical == 0:
        raise ValueError("the seen pictures are all alike: nothing to compare diversity with")
    value = float(distances[np.triu_indices(len(made), 1)].mean() / typical)
    np.fill_diagonal(distances, np.inf)
    twins = tuple(ids[i] for i in np.flatnonzero(distances.min(1) < minimum * typical))
    return judge(
        AuditFinding(
            "collapse", "mean pairwise distance, share of that of the seen pictures", value,
            minimum, "convention, too low below", len(made),
            VIOLATED if value < minimum else CLEAN, twins,
        ), strict,
    )  # fmt: skip


def audit_dimension(
    reconstructions: ArrayLike,
    seen: ArrayLike,
    ids: Sequence[str],
    rng: np.random.Generator,
    n_modes: int = N_MODES,
    n_draws: int = 500,
    strict: bool = True,
) -> AuditFinding:
    """Do the reconstructions vary in more ways than a handful of fixed pictures would?

    Parameters
    ----------
    reconstructions, seen, ids, strict : see `audit_diversity`
    rng : numpy.random.Generator
    n_modes : int
        The reference are sets of n items that repeat only so many of the seen pictures; their
        dimension is at most n_modes - 1.
    n_draws : int, such sets drawn

    Returns
    -------
    AuditFinding
        The statistic is the participation ratio of the covariance, see `participation_ratio`, along
        the axes in which the seen pictures vary, each scaled to variance 1 for them. Unscaled,
        brightness takes up nearly all variance of pixels, and pictures themselves look collapsed.

    Raises
    ------
    ValueError
        When the seen pictures themselves do not vary in more ways than `n_modes` pictures.
    """
    made, real, ids = _check_pair(reconstructions, seen, ids)
    if not 2 <= n_modes < len(made):
        raise ValueError(f"n_modes is {n_modes}, expected at least 2 and less than {len(made)}")
    axes = _axes_of(real)
    if axes.shape[1] <= n_modes:
        raise ValueError(
            f"the seen pictures vary along {axes.shape[1]} axes only: {n_modes} of them repeated "
            "cannot be told from all; take another space, or more pictures"
        )
    scaled = real @ axes
    gram, drawn = scaled @ scaled.T, []
    for _ in range(n_draws):
        modes = rng.choice(len(real), size=n_modes, replace=False)
        repeated = modes[np.arange(len(made)) % n_modes]
        drawn.append(_participation(gram[np.ix_(repeated, repeated)]))
    limit = float(np.quantile(drawn, 0.95))
    value, of_seen = participation_ratio(made @ axes), participation_ratio(scaled)
    # Of a collapsed set all items are concerned; the message rather names which are alike.
    near = squareform(pdist(made)) + np.diag(np.full(len(made), np.inf))
    twins = near.min(1) < MIN_DIVERSITY * pdist(real).mean()
    return judge(
        AuditFinding(
            "output dimension", f"participation ratio on axes of the seen ({of_seen:.1f})", value, limit,
            f"95 % quantile of {n_draws} sets that repeat {n_modes} seen pictures, too low below",
            len(made), VIOLATED if value <= limit else CLEAN,
            tuple(ids[i] for i in np.flatnonzero(twins)),
        ), strict,
    )  # fmt: skip


def participation_ratio(responses: ArrayLike) -> float:
    """Effective dimension of a set of vectors: squared trace of the covariance over its squared norm.

    With eigenvalues l of the covariance it is (sum l) ** 2 / sum l ** 2: d for a cloud that is
    equally wide in d directions, 1 on a line, 0 for a point.

    Parameters
    ----------
    responses : array of shape (n, ...), one vector per item

    References
    ----------
    Gao et al. (2017), eq. for the participation ratio.
    """
    flat = np.asarray(responses, dtype=np.float64).reshape(len(responses), -1)
    return _participation(flat @ flat.T)


def _participation(gram: np.ndarray) -> float:
    """Participation ratio from inner products, which share their eigenvalues with the covariance."""
    gram = gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()
    trace, norm = float(np.trace(gram)), float((gram**2).sum())
    return trace**2 / norm if norm > 0 and trace > 0 else 0.0


def _axes_of(real: np.ndarray) -> np.ndarray:
    """Principal axes that hold 95 % of the variance, scaled to variance 1: (n_features, n_axes)."""
    _, strength, axes = np.linalg.svd(real - real.mean(0), full_matrices=False)
    power = strength**2
    if not power.sum():
        raise ValueError("the seen pictures are all alike: they have no dimension to compare with")
    kept = int(np.searchsorted(np.cumsum(power) / power.sum(), 0.95 - 1e-12)) + 1
    return axes[:kept].T / strength[:kept] * np.sqrt(len(real))


def _check_pair(
    reconstructions: ArrayLike, seen: ArrayLike, ids: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    made, real = (
        np.asarray(x.detach().cpu() if torch.is_tensor(x) else x, dtype=np.float64)
        for x in (reconstructions, seen)
    )
    if made.ndim < 2 or made.shape != real.shape or len(ids) != len(made) or len(made) < 4:
        raise ValueError(
            f"reconstructions {made.shape}, seen {real.shape}, {len(ids)} ids: expected the same "
            "(n, ...) with n >= 4"
        )
    for name, values in (("reconstructions", made), ("seen", real)):
        bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
        if bad.any():
            items = listed([ids[i] for i in np.flatnonzero(bad)])
            raise ValueError(f"{name}: NaN or infinite values in {items}")
    return made.reshape(len(made), -1), real.reshape(len(real), -1), list(map(str, ids))
