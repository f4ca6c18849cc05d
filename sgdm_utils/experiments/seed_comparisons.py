"""What of a result holds with another training seed, with other people, with other pictures?

The comparisons that notebook 06 declares are repeated with each seed, and the mean of a score is
asked how far it would move if one thing alone were drawn anew.

References
----------
Searle, Casella & McCulloch, Variance Components (1992), ch. 4: the mean square of a factor estimates
how the means of its levels vary, whatever else is held fixed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from sgdm_utils.experiments.variance import FACTORS, score_table
from sgdm_utils.metrics import statistics

MEAN = "mean of seeds"
#: Columns of a comparison, before Holm.
COLUMNS = ("seed", "comparison", "metric", "difference", "ci_low", "ci_high", "n", "p_value")


def declared_family(
    parameters: Mapping[str, Any], two_way: str, metric_names: Sequence[str]
) -> list[tuple[str, str]]:
    """Comparisons and metrics that notebook 06 declares in its parameters, in its order."""
    family = [(c, m) for c in parameters["compare_meaning"] for m in (two_way, "pixcorr")]
    family += [(c, m) for c in parameters["compare_structure"] for m in ("silhouette_iou", "ssim")]
    family += [(c, "category_accuracy") for c in parameters["compare_category"]]
    return [(comparison, metric) for comparison, metric in family if metric in metric_names]


def compare_by_seed(
    scores: pd.DataFrame,
    family: Sequence[tuple[str, str]],
    rng: np.random.Generator,
    n_draws: int = statistics.N_RESAMPLES,
    n_resamples: int = statistics.N_RESAMPLES,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Repeat the declared comparisons with each seed, and with the mean of the seeds.

    As in notebook 06: scores of a picture are averaged over subjects, signs of the differences are
    flipped, Holm corrects within the family of one seed. `MEAN` averages a picture's scores over
    the seeds first; it is one more test of the same pictures, not a test over seeds.

    Parameters
    ----------
    scores : DataFrame with `seed`, `condition`, `subject`, `image_id` and the metrics
    family : sequence of (comparison, metric), a comparison such as "eeg > shuffled_eeg"
    n_draws, n_resamples : int, sign patterns of a test, resamples of an interval over pictures

    Returns
    -------
    DataFrame with `seed` (int, or `MEAN`), `comparison`, `metric`, `difference`, `ci_low`,
    `ci_high`, `n`, `p_value`, `p_holm`, `shown` (p_holm below `alpha`)
    """
    seeds = sorted(scores["seed"].unique())
    measured = sorted({metric for _, metric in family})
    by_seed = scores.groupby(["seed", "condition", "image_id"])[measured].mean()
    tables: list[tuple[int | str, pd.DataFrame]] = [(s, by_seed.loc[s]) for s in seeds]
    if len(seeds) > 1:
        tables.append((MEAN, by_seed.groupby(["condition", "image_id"]).mean()))
    out = []
    for seed, by_item in tables:
        rows = []
        for comparison, metric in family:
            better, worse = (by_item.loc[c.strip(), metric] for c in comparison.split(">"))
            worse = worse.loc[better.index]
            test = statistics.paired_permutation_test(better, worse, rng, n_draws)
            low, high = statistics.bootstrap_interval(better - worse, rng, n_resamples)
            cells = (seed, comparison, metric, test.statistic, low, high, len(better))
            rows.append((*cells, test.p_value))
        rows = pd.DataFrame(rows, columns=list(COLUMNS))
        out.append(rows.assign(p_holm=statistics.holm(rows["p_value"])))
    table = pd.concat(out, ignore_index=True)
    return table.assign(shown=table["p_holm"] < alpha)


def moved_by(
    scores: pd.DataFrame, value: str, factor: str, levels: int | None = None, level: float = 0.95
) -> tuple[float, float, float]:
    """How far would the mean move, if this factor alone were drawn anew? One standard deviation.

    Parameters
    ----------
    scores : DataFrame with the columns `seed`, `subject`, `item` and `value`, one condition
    factor : 'seed', 'subject' or 'item'
    levels : int, of the factor in the mean that is meant; by default as many as there are. With
        factor 'seed' and levels 1: how far a study with one seed moves
    level : float, coverage of the interval

    Returns
    -------
    deviation, low, high : float; NaN when the factor has one level, from which nobody can know

    Notes
    -----
    With the other factors held, the means of the levels are independent draws, so their variance
    (the mean square of the factor over the scores in each) estimates how they vary, interactions
    with the levels at hand included. The interval is that of a variance of normal draws: with three
    levels its ends lie a factor of twelve apart.
    """
    table = score_table(scores, value)
    axis = FACTORS.index(factor)
    means = table.mean(axis=tuple(a for a in range(table.ndim) if a != axis))
    n = len(means)
    if n < 2:
        return math.nan, math.nan, math.nan
    deviation = float(means.std(ddof=1)) / math.sqrt(n if levels is None else levels)
    low, high = stats.chi2.ppf([(1 + level) / 2, (1 - level) / 2], n - 1)
    return deviation, deviation * math.sqrt((n - 1) / low), deviation * math.sqrt((n - 1) / high)
