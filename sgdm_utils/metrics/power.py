"""What could this many items have shown? The smallest paired difference a test would have found.

A comparison that is "not shown" says something only when a difference of interesting size would
have been found. The numbers are those of the paired t-test, which the sign-flip test of
`statistics.paired_permutation_test` equals for all but very few items or heavy tails; the floor
that a permutation test has, where few items allow few sign patterns, is taken into account.

References
----------
Cohen, Statistical Power Analysis for the Behavioral Sciences (1988), ch. 2: power of the paired
t-test from the noncentral t distribution. Holm, Scand. J. Statist. 6, 65 (1979).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from sgdm_utils.metrics.statistics import N_RESAMPLES

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
    critical = stats.t.ppf(1 - level / tails, n - 1)
    found = stats.nct.sf(critical, n - 1, shift)
    if tails == 2:  # Student's t is symmetric: the lower tail is the upper one of the mirror image
        found += stats.nct.sf(critical, n - 1, -shift)
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
    return float(optimize.brentq(lacking, 0.0, far) * sd / math.sqrt(n))


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
