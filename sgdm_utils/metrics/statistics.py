"""Intervals and tests on per-item scores: how sure are we, and could it be chance?

Nothing here assumes a distribution. Randomness comes from the generator that is handed in, so the
same seed gives the same interval. All draws are vectorised, in chunks of bounded memory.

A comparison that is "not shown" says something only when a difference of interesting size would
have been found. The power is that of the paired t-test, which the sign-flip test of
`paired_permutation_test` equals for all but very few items or heavy tails; the floor that a
permutation test has, where few items allow few sign patterns, is taken into account.

References
----------
Efron & Tibshirani, An Introduction to the Bootstrap (1993), ch. 8 and 13: nested resampling and
percentile interval. Phipson & Smyth, Stat. Appl. Genet. Mol. Biol. 9, 39 (2010): a p-value from
random permutations is never 0. Holm, Scand. J. Statist. 6, 65 (1979). Cohen, Statistical Power
Analysis for the Behavioral Sciences (1988), ch. 2: power of the paired t-test from the noncentral
t distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import ArrayLike

N_RESAMPLES = 10_000
_CHUNK_ELEMENTS = 4_000_000  # random numbers held at once, about 32 MB


@dataclass(frozen=True)
class PermutationTest:
    """Outcome of a permutation test.

    Attributes
    ----------
    statistic : float
        Observed mean (or mean difference).
    p_value : float
        In (0, 1].
    null : ndarray of shape (n_draws,) or (2 ** n,) when exact
        The statistic under the null hypothesis.
    exact : bool
        All sign patterns were enumerated instead of drawn.
    """

    statistic: float
    p_value: float
    null: np.ndarray
    exact: bool


def nested_mean(values: ArrayLike, groups: ArrayLike | None = None) -> float:
    """Mean over items, or the mean of the group means so that every subject counts alike."""
    values = _check_values(values, "values")
    return float(np.mean([part.mean() for part in _split(values, groups)]))


def bootstrap_interval(
    values: ArrayLike,
    rng: np.random.Generator,
    n_resamples: int = N_RESAMPLES,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (without groups) or of `nested_mean`.

    Parameters
    ----------
    values : array of shape (n,)
        One score per item, no NaN.
    groups : array of shape (n,) or None
        Subject of each item. Subjects are drawn with replacement, then items within each drawn
        subject; the interval then speaks of new subjects and new items. With fewer than about
        eight subjects it is too narrow, and the reader should be told so.

    Returns
    -------
    low, high : float
        Equal when all values are equal, as those of a rate of 0 or 1 are.

    Raises
    ------
    ValueError
        Fewer than two items in all (or in a group), NaN, or lengths that differ.
    """
    values = _check_values(values, "values")
    parts = _split(values, groups)
    if min(len(part) for part in parts) < 2:
        raise ValueError("a bootstrap interval needs at least 2 items in every group")
    if not 0 < level < 1 or n_resamples < 1:
        raise ValueError(f"need 0 < level < 1 and n_resamples >= 1, got {level}, {n_resamples}")
    if len(parts) == 1:
        result = scipy.stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=n_resamples,
            batch=max(1, _CHUNK_ELEMENTS // len(values)),
            vectorized=True,
            confidence_level=level,
            method="percentile",
            rng=rng,
        )
        interval = result.confidence_interval
        return float(interval.low), float(interval.high)
    means = np.concatenate(
        [_nested_means(parts, count, rng) for count in _chunks(n_resamples, len(values))]
    )
    return percentile_interval(means, level)


def percentile_interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Ends of the interval that leaves (1 - level) / 2 of the draws on either side."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_permutation_test(
    a: ArrayLike,
    b: ArrayLike,
    rng: np.random.Generator,
    n_draws: int = N_RESAMPLES,
    alternative: Literal["greater", "less", "two-sided"] = "greater",
) -> PermutationTest:
    """Is the mean of `a` above that of `b`, item by item? Signs of the differences are flipped.

    Items must be independent: average over the repetitions of an item, and over whatever else
    shares its fate (subjects who saw the same picture), before testing.

    Parameters
    ----------
    a, b : array of shape (n,)
        Scores of the same items in two conditions, in the same order.
    n_draws : int
        Random sign patterns; when all 2 ** n patterns are no more than that, they are enumerated
        and the p-value is exact, otherwise it is (hits + 1) / (n_draws + 1).
    """
    a, b = _check_values(a, "a"), _check_values(b, "b")
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} items, b has {len(b)}: the test is paired")
    if alternative not in ("greater", "less", "two-sided"):
        raise ValueError(f"alternative {alternative!r}: expected greater, less or two-sided")
    difference = a - b
    n = len(difference)
    exact = n < 63 and 2**n <= n_draws
    if exact:
        flips = [(np.arange(2**n)[:, None] >> np.arange(n)) & 1]
    else:
        flips = (
            rng.integers(0, 2, size=(count, n), dtype=np.int8) for count in _chunks(n_draws, n)
        )
    null = np.concatenate([difference.mean() - 2 * (flip @ difference) / n for flip in flips])
    p_value = _p_value(difference.mean(), null, alternative, exact, np.abs(difference).mean())
    return PermutationTest(float(difference.mean()), p_value, null, exact)


def label_permutation_null(
    scores: np.ndarray,
    rng: np.random.Generator,
    n_draws: int = N_RESAMPLES,
    targets: ArrayLike | None = None,
) -> PermutationTest:
    """Could the mean score come from answers that know nothing of which item was shown?

    The identities of the gallery items are permuted, queries of one item staying together, which
    keeps hubs and the spread of the predictions as they are.

    Parameters
    ----------
    scores : array of shape (n_queries, n_gallery)
        Entry [i, j] is the score of query i if item j were its target: for top-k accuracy
        `metrics.rank_matrix(similarity) <= k`, for two-way `metrics.identification_matrix(...)`.
    targets : int array of shape (n_queries,) or None
        True gallery index of each query; None when query i belongs to item i.

    Returns
    -------
    PermutationTest
        One-sided: larger scores are better.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or not np.isfinite(scores).all():
        raise ValueError(f"scores: expected a finite matrix, got shape {scores.shape}")
    n_queries, n_gallery = scores.shape
    if targets is None and n_queries != n_gallery:
        raise ValueError(f"{n_queries} queries and {n_gallery} gallery items: give targets")
    targets = np.arange(n_queries) if targets is None else np.asarray(targets)
    if targets.shape != (n_queries,):
        raise ValueError(f"targets has shape {targets.shape}, expected ({n_queries},)")
    rows = np.arange(n_queries)
    null = []
    for count in _chunks(n_draws, n_queries + n_gallery):
        identity = rng.permuted(np.tile(np.arange(n_gallery), (count, 1)), axis=1)
        null.append(scores[rows, identity[:, targets]].mean(1))
    null = np.concatenate(null)
    observed = scores[rows, targets].mean()
    p_value = _p_value(observed, null, "greater", False, np.abs(scores).mean())
    return PermutationTest(float(observed), p_value, null, exact=False)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm-adjusted p-values of one family of tests, in the order given.

    The family is declared before looking at the numbers; rows without a p-value are left out.
    """
    p = _check_values(p_values, "p_values")
    if (p <= 0).any() or (p > 1).any():
        raise ValueError("p-values must lie in (0, 1]")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _nested_means(parts: list[np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `count` resamples of the groups and of the items within each drawn group."""
    chosen = rng.integers(len(parts), size=(count, len(parts)))
    means = np.empty(chosen.shape)
    for index, part in enumerate(parts):
        slots = chosen == index
        items = rng.integers(len(part), size=(int(slots.sum()), len(part)))
        means[slots] = part[items].mean(1)
    return means.mean(1)


def _p_value(
    observed: float, null: np.ndarray, alternative: str, exact: bool, scale: float
) -> float:
    if alternative == "two-sided":
        observed, null = abs(observed), np.abs(null)
    elif alternative == "less":
        observed, null = -observed, -null
    # Draws that equal the observed value up to rounding are as extreme as it is.
    hits = int((null >= observed - 1e-12 * scale).sum())
    return hits / len(null) if exact else (hits + 1) / (len(null) + 1)


def _chunks(n_draws: int, elements_per_draw: int) -> Iterator[int]:
    if n_draws < 1:
        raise ValueError(f"need at least 1 draw, got {n_draws}")
    size = max(1, _CHUNK_ELEMENTS // elements_per_draw)
    for start in range(0, n_draws, size):
        yield min(size, n_draws - start)


def _check_values(values: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{name}: shape {values.shape}, expected one value per item (n,)")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"{name}: NaN or infinite values at items {bad[:8].tolist()}")
    return values


def _split(values: np.ndarray, groups: ArrayLike | None) -> list[np.ndarray]:
    if groups is None:
        return [values]
    groups = np.asarray(groups)
    if groups.shape != values.shape:
        raise ValueError(f"groups has shape {groups.shape}, values has {values.shape}")
    return [values[groups == group] for group in np.unique(groups)]


Alternative = Literal["two-sided", "greater"]


def power_of_difference(
    difference: float,
    sd: float,
    n: int,
    alpha: float = 0.05,
    family: int = 1,
    alternative: Alternative = "two-sided",
) -> float:
    """Probability that a true mean difference is found.

    Parameters
    ----------
    difference : float, true mean of the paired differences, >= 0
    sd : float, their standard deviation over items (ddof 1), > 0
    n : int, items (pairs), >= 2
    alpha : float, level of the whole family
    family : int
        Comparisons that Holm's procedure corrects together. The power is that of its first step,
        alpha / family, which every comparison can count on; later steps are more generous.
    alternative : 'two-sided' counts findings in the right direction and the wrong one

    Returns
    -------
    float in [0, 1]; 0 when no sign pattern of n items is rare enough (see `smallest_p_value`)
    """
    _check(sd, n, alpha, family, alternative)
    if not math.isfinite(difference) or difference < 0:
        raise ValueError(f"difference is {difference}, expected a finite number >= 0")
    level = alpha / family
    if smallest_p_value(n, alternative) > level:
        return 0.0
    tails = 2 if alternative == "two-sided" else 1
    shift = difference / sd * math.sqrt(n)
    critical = scipy.stats.t.ppf(1 - level / tails, n - 1)
    found = scipy.stats.nct.sf(critical, n - 1, shift)
    if tails == 2:  # Student's t is symmetric: the lower tail is the upper one of the mirror image
        found += scipy.stats.nct.sf(critical, n - 1, -shift)
    return float(min(found, 1.0))


def smallest_difference(
    sd: float,
    n: int,
    alpha: float = 0.05,
    family: int = 1,
    power: float = 0.8,
    alternative: Alternative = "two-sided",
) -> float:
    """Smallest true mean difference that is found with probability `power`.

    Parameters
    ----------
    sd, n, alpha, family, alternative : see `power_of_difference`
    power : float, between alpha and 1

    Returns
    -------
    float, in the unit of `sd`; infinite when n items allow no p-value of alpha / family
    """
    _check(sd, n, alpha, family, alternative)
    if not alpha < power < 1:
        raise ValueError(f"power is {power}, expected a number between alpha ({alpha}) and 1")
    if smallest_p_value(n, alternative) > alpha / family:
        return math.inf

    def lacking(shift: float) -> float:
        """Power that is missing at a difference of `shift` standard errors."""
        difference = shift * sd / math.sqrt(n)
        return power_of_difference(difference, sd, n, alpha, family, alternative) - power

    far = 2.0
    while lacking(far) < 0:
        far *= 2
    return float(scipy.optimize.brentq(lacking, 0.0, far) * sd / math.sqrt(n))


def smallest_p_value(
    n: int, alternative: Alternative = "two-sided", n_draws: int = N_RESAMPLES
) -> float:
    """Smallest p-value that the sign-flip test of n pairs can give, whatever the difference.

    With all 2 ** n patterns enumerated it is the share of the most extreme one (or two), with
    patterns drawn at random 1 / (n_draws + 1).
    """
    if n < 1 or n_draws < 1:
        raise ValueError(f"need at least one pair and one draw, got {n} and {n_draws}")
    exact = n < 63 and 2**n <= n_draws
    if not exact:
        return 1 / (n_draws + 1)
    return min(1.0, (2 if alternative == "two-sided" else 1) / 2**n)


def power_statement(
    differences: ArrayLike,
    what: str,
    alpha: float = 0.05,
    family: int = 1,
    power: float = 0.8,
    alternative: Alternative = "two-sided",
) -> str:
    """One sentence: what these items could have shown.

    Parameters
    ----------
    differences : array of shape (n,)
        Paired differences, one for each item; their standard deviation is what counts, their mean
        does not enter.
    what : str, the score, for the sentence
    alpha, family, power, alternative : see `smallest_difference`
    """
    differences = np.asarray(differences, dtype=np.float64)
    if differences.ndim != 1 or len(differences) < 2 or not np.isfinite(differences).all():
        raise ValueError(
            f"{what}: expected at least 2 finite paired differences, one for each item, got an "
            f"array of shape {differences.shape}"
        )
    n, sd = len(differences), float(differences.std(ddof=1))
    if sd == 0:
        return (
            f"{what}: all {n} items differ by the same amount, so nothing can be said of how large "
            "a difference would have been found."
        )
    smallest = smallest_difference(sd, n, alpha, family, power, alternative)
    test = f"{alternative}, alpha = {alpha:g}"
    test += f" shared by {family} comparisons after Holm" if family > 1 else ""
    if math.isinf(smallest):
        return (
            f"{what}: {n} items cannot show any difference ({test}): their sign patterns give no "
            f"p-value below {smallest_p_value(n, alternative):.2g}."
        )
    return (
        f"{what}: with {n} items whose differences have a standard deviation of {sd:.2g}, a true "
        f"difference of {smallest:.2g} or more is found in at least {100 * power:.0f} of 100 such "
        f"studies ({test}); a smaller one may go unnoticed."
    )


def _check(sd: float, n: int, alpha: float, family: int, alternative: str) -> None:
    if not math.isfinite(sd) or sd <= 0:
        raise ValueError(
            f"the standard deviation of the differences is {sd}: it must be a finite number > 0"
        )
    if n < 2 or family < 1 or not 0 < alpha < 1:
        raise ValueError(
            f"need n >= 2 items, a family of >= 1 comparisons and 0 < alpha < 1, got n = {n}, "
            f"family = {family}, alpha = {alpha}"
        )
    if alternative not in ("two-sided", "greater"):
        raise ValueError(f"alternative {alternative!r}: expected two-sided or greater")
