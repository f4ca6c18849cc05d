"""Could the scores be right and the claim still wrong? Audits of what a decoder gives out.

Each audit returns an `AuditFinding`, one row to print: a statistic, what it is compared with and how
that was obtained, how many things were looked at, a verdict. With `strict` it raises an
`AuditError` that names the items, so that a notebook fails. To see the table first, collect findings
with `strict=False`, show `as_table` and call `enforce`.

Here: hubness (is one gallery item everybody's answer?), collapse (do all reconstructions look
alike?) and the transduction label. Copies of training pictures are in `memorisation`, leaks of the
test into training in `datasets.leakage`.

A generator that knows nothing of the EEG can still give one good picture, or a few in turn. Two
statistics tell: how different the reconstructions are from each other, and in how many ways they
vary, both beside the pictures that were seen.

References
----------
Radovanovic et al., JMLR 11, 2487 (2010): k-occurrence and its skewness. Gao et al., bioRxiv 214262
(2017): participation ratio as the dimension of a set of responses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy.spatial.distance import pdist, squareform
from scipy.stats import skew

from sgdm_utils.metrics.retrieval import k_occurrence

CLEAN, VIOLATED = "clean", "VIOLATED"
MAX_HUB_SHARE = 0.25  # of all queries with one item among their nearest
WITHOUT_EEG = ("mean_image", "oracle", "class_only", "seen")  # conditions no trial goes into
_NAMED = 8  # items that a message lists


class AuditError(ValueError):
    """A result is not what it looks like: the message says which audit, by how much, which items."""


@dataclass(frozen=True)
class AuditFinding:
    """Outcome of one audit.

    Attributes
    ----------
    audit : str
    statistic : str, what was computed
    value, reference : float, the statistic and the limit it is held against
    obtained : str, where the limit comes from, and on which side of it trouble lies
    n : int, items looked at
    verdict : str, 'clean', 'VIOLATED', or what has to be reported with the result
    items : tuple of str, those concerned
    """

    audit: str
    statistic: str
    value: float
    reference: float
    obtained: str
    n: int
    verdict: str = CLEAN
    items: tuple[str, ...] = ()


def as_table(findings: Iterable[AuditFinding]) -> pd.DataFrame:
    """One row for each finding, the items as one text, cut after the first few."""
    table = pd.DataFrame([asdict(finding) for finding in findings])
    return table.assign(items=[listed(items) for items in table["items"]]) if len(table) else table


def enforce(findings: Iterable[AuditFinding]) -> None:
    """Raise one `AuditError` with all violations; without one, do nothing."""
    findings = list(findings)
    bad = [f for f in findings if f.verdict == VIOLATED]
    if bad:
        lines = [
            f"{f.audit}: {f.statistic} is {f.value:.3g}, limit {f.reference:.3g} ({f.obtained}), "
            f"n = {f.n}. {f'Items: {listed(f.items)}' if f.items else 'All items alike'}"
            for f in bad
        ]
        raise AuditError(
            f"{len(bad)} of {len(findings)} audits found a violation.\n" + "\n".join(lines)
        )


def audit_hubness(
    similarity: ArrayLike,
    gallery_ids: Sequence[str],
    rng: np.random.Generator,
    k: int = 1,
    max_share: float = MAX_HUB_SHARE,
    n_draws: int = 2000,
    strict: bool = True,
) -> AuditFinding:
    """Is a gallery item everybody's nearest neighbour?

    Parameters
    ----------
    similarity : array of shape (n_queries, n_gallery)
    gallery_ids : n_gallery strings
    rng : numpy.random.Generator
    k : int, how many nearest count
    max_share : float
        Hubs are common in high dimension and are *reported*; a violation is one that is among the k
        nearest of more than this share of the queries.
    n_draws : int
        Simulated galleries without hubs, where every query draws its k nearest at random.
    strict : bool, raise when violated

    Returns
    -------
    AuditFinding
        The statistic is the skewness of the k-occurrence; items: those that occur more often than
        the largest count of 999 in 1000 simulated galleries.
    """
    similarity = np.asarray(similarity, dtype=np.float64)
    if similarity.ndim != 2 or not np.isfinite(similarity).all():
        raise ValueError(f"similarity of shape {similarity.shape}: expected a finite matrix")
    n_queries, n_gallery = similarity.shape
    if len(gallery_ids) != n_gallery or not 1 <= k < n_gallery:
        raise ValueError(
            f"{len(gallery_ids)} ids for {n_gallery} gallery items, k = {k}: they must correspond, "
            "and k must be below the size of the gallery"
        )
    drawn = np.stack([_random_occurrence(n_queries, n_gallery, k, rng) for _ in range(n_draws)])
    counts = k_occurrence(similarity, k)
    limit = float(np.quantile(_skewness(drawn), 0.999))
    hubs = np.flatnonzero(counts > np.quantile(drawn.max(1), 0.999))
    hubs = hubs[np.argsort(-counts[hubs], kind="stable")]
    value, verdict = float(_skewness(counts[None])[0]), CLEAN
    if value > limit or len(hubs):
        verdict = "hubs: report with the result"
    if len(hubs) and counts[hubs[0]] > max_share * n_queries:
        verdict = VIOLATED
    return judge(
        AuditFinding(
            "hubness", f"skewness of the {k}-occurrence, largest {counts.max()}", value, limit,
            f"99.9 % quantile of {n_draws} galleries with random neighbours; violated where an "
            f"item has over {100 * max_share:.0f} % of the queries", n_queries, verdict,
            tuple(f"{gallery_ids[j]} ({counts[j]} of {n_queries})" for j in hubs),
        ), strict,
    )  # fmt: skip


def audit_transduction(
    table: pd.DataFrame | Sequence[Mapping[str, object]],
    upstream: bool | Mapping[str, bool],
    without_eeg: Sequence[str] = WITHOUT_EEG,
    strict: bool = True,
) -> AuditFinding:
    """Does every row say whether it used the test set as a whole, and say it truly?

    Parameters
    ----------
    table : rows in the form of `tables`
    upstream : bool or mapping of model to bool
        What the artifacts say that the numbers were made from (`notes["transductive"]`), the same
        for all models or for each.
    without_eeg : conditions that no trial went into: never transductive
    strict : bool, raise when violated

    Returns
    -------
    AuditFinding
        Items: `subject / model / condition / metric` of the rows that are wrong.
    """
    table = pd.DataFrame(table)
    needed = ["subject", "model", "condition", "metric"]
    missing = [c for c in (*needed, "transductive") if c not in table]
    if missing or not len(table):
        raise AuditError(f"a table of {len(table)} rows, without {missing}: no label to compare")
    models = sorted(table["model"].unique())
    if not isinstance(upstream, Mapping):
        upstream = dict.fromkeys(models, upstream)
    unknown = [m for m in models if not isinstance(upstream.get(m), bool | np.bool_)]
    if unknown:
        raise AuditError(
            f"nothing upstream says whether {', '.join(map(str, unknown))} is transductive: give "
            "the note 'transductive' of the artifact that it was made from"
        )
    wrong = []
    for row in table.itertuples():
        expected = bool(upstream[row.model]) and row.condition not in without_eeg
        label = row.transductive
        if not isinstance(label, bool | np.bool_) or bool(label) != expected:
            where = f"{row.subject} / {row.model} / {row.condition} / {row.metric}"
            wrong.append(f"{where} says {label!r}, upstream {expected}")
    return judge(
        AuditFinding(
            "transduction", "rows whose label is missing or contradicts its inputs", len(wrong), 0,
            "notes of the artifacts", len(table), VIOLATED if wrong else CLEAN, tuple(wrong),
        ), strict,
    )  # fmt: skip


def judge(finding: AuditFinding, strict: bool) -> AuditFinding:
    """Return a finding; with `strict` raise an `AuditError` instead when it is a violation."""
    if strict:
        enforce([finding])
    return finding


def listed(items: Sequence[str]) -> str:
    """The first few items as text."""
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return ", ".join(map(str, items[:_NAMED])) + more


def _random_occurrence(
    n_queries: int, n_gallery: int, k: int, rng: np.random.Generator
) -> np.ndarray:
    if k == 1:
        return rng.multinomial(n_queries, np.full(n_gallery, 1 / n_gallery))
    chosen = rng.random((n_queries, n_gallery)).argpartition(k, axis=1)[:, :k]
    return np.bincount(chosen.ravel(), minlength=n_gallery)


def _skewness(counts: np.ndarray) -> np.ndarray:
    """Skewness of each row; 0 for an even gallery, as in `retrieval.hubness_skewness`."""
    even = np.ptp(counts, axis=1) == 0
    safe = np.where(even[:, None], np.arange(counts.shape[1]), counts)
    return np.where(even, 0.0, skew(safe, axis=1))


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
    """Effective dimension of vectors (n, ...): squared trace over squared norm of the covariance.

    With eigenvalues l of the covariance it is (sum l) ** 2 / sum l ** 2: d for a cloud that is
    equally wide in d directions, 1 on a line, 0 for a point (Gao et al. 2017).
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
