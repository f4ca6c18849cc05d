"""What a component is worth: paired differences with and without it, and what may be said of them.

One training with and one without a component differ for two reasons: the component, and everything
that chance decides in a training. Intervals over items know nothing of the second. Therefore
placebos are trained, runs in which something changes that should not matter, and a difference that
is no larger than a placebo's is not called an effect.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from sgdm_utils.metrics.statistics import (
    bootstrap_interval,
    holm,
    nested_mean,
    paired_permutation_test,
)

MATTERS, HURTS, MIXED, NOTHING = "matters", "hurts", "helps and hurts", "not shown to matter"


def paired_effect(
    present: ArrayLike,
    absent: ArrayLike,
    items: ArrayLike,
    groups: ArrayLike | None,
    rng: np.random.Generator,
    n_resamples: int = 10_000,
    n_permutations: int = 10_000,
) -> dict[str, float]:
    """Mean paired difference of a score with and without something.

    Parameters
    ----------
    present, absent : arrays of shape (n,)
        Scores of the same rows, larger is better.
    items : array of shape (n,)
        Picture of each row. Rows of one picture (several people saw it) are averaged for the test,
        whose units must be independent.
    groups : array of shape (n,) or None
        Person of each row, for the nested interval; None where there are none.

    Returns
    -------
    dict with `difference`, `ci_low`, `ci_high` (95 %), `n` (pictures), `p_value` (two-sided)

    Raises
    ------
    ValueError
        When the arrays differ in length or hold NaN.
    """
    present, absent = (np.asarray(x, dtype=np.float64) for x in (present, absent))
    if not len(present) == len(absent) == len(np.asarray(items)):
        raise ValueError(
            f"{len(present)} scores with, {len(absent)} without, {len(np.asarray(items))} items: "
            "rows have to be paired"
        )
    low, high = bootstrap_interval(present - absent, rng, n_resamples, groups=groups)
    mean = pd.DataFrame({"item": items, "present": present, "absent": absent})
    mean = mean.groupby("item", sort=True).mean()
    test = paired_permutation_test(
        mean["present"], mean["absent"], rng, n_permutations, alternative="two-sided"
    )
    found = {"difference": nested_mean(present - absent, groups), "ci_low": low, "ci_high": high}
    return found | {"n": len(mean), "p_value": test.p_value}


def judge(effects: pd.DataFrame, placebos: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """Correct a declared family for its size and say of each row what it shows.

    Parameters
    ----------
    effects : DataFrame, the family
        One row for each component and measure: `component`, `measure`, what `paired_effect` gives.
    placebos : DataFrame
        The same for runs in which nothing of importance was changed; each measure needs one.
    alpha : float, level of the corrected tests

    Returns
    -------
    DataFrame
        `effects` with `p_holm`, `noise` (the largest difference, without sign, of a placebo on this
        measure) and `finding`: "helps", "hurts" or "" for a difference that is not significant,
        has zero in its interval, or is no larger than `noise`.
    """
    noise = placebos["difference"].abs().groupby(placebos["measure"]).max()
    if lost := sorted(set(effects["measure"]) - set(noise.index)):
        raise ValueError(f"no placebo was measured on {', '.join(lost)}")
    judged = effects.assign(
        p_holm=holm(effects["p_value"]), noise=effects["measure"].map(noise).astype(float)
    )
    clear = (judged["p_holm"] < alpha) & (judged["difference"].abs() > judged["noise"])
    helps, hurts = clear & (judged["ci_low"] > 0), clear & (judged["ci_high"] < 0)
    return judged.assign(finding=np.select([helps, hurts], ["helps", "hurts"], ""))


def verdict(findings: ArrayLike) -> str:
    """One word for a component, from its findings on all measures (see `judge`)."""
    found = set(findings) - {""}
    if found == {"helps", "hurts"}:
        return MIXED
    return MATTERS if found == {"helps"} else HURTS if found == {"hurts"} else NOTHING
