"""Scores of a human test: share of right answers, who was awake, paired comparisons.

What is scored are the answers that `design.read_ratings` finds in the files. A simulated rater, who
compares pixels, tries the test out.

References
----------
Clopper & Pearson, Biometrika 26, 404 (1934): exact interval of a share. Wichmann & Hill, Perception &
Psychophysics 63, 1293 (2001): lapses, which a share of correct answers does not tell from blindness.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from sgdm_utils.experiments.human_test.design import RatingsError
from sgdm_utils.metrics import statistics

CHANCE = 0.5


def score_conditions(ratings: pd.DataFrame) -> pd.DataFrame:
    """Share of correct answers per condition, for all raters together and for each.

    Parameters
    ----------
    ratings : DataFrame with `rater`, `condition`, `correct`

    Returns
    -------
    DataFrame with `rater` ("all" first), `condition`, `n`, `value`, `ci_low`, `ci_high` (95 %),
    `chance`, `p_value` (exact binomial, one-sided against chance)

    Notes
    -----
    Interval and test take answers for independent. Several raters who judge the same pictures are
    not: their pooled interval is too narrow for a statement about other pictures.
    """
    rows = []
    everybody = [("all", ratings), *ratings.groupby("rater", sort=True)]
    for rater, own in everybody:
        for condition, part in own.groupby("condition", sort=True):
            k, n = int(part["correct"].sum()), len(part)
            low, high = binomtest(k, n).proportion_ci(0.95, method="exact")
            p = binomtest(k, n, CHANCE, alternative="greater").pvalue
            rows.append((rater, condition, n, k / n, low, high, CHANCE, p))
    columns = ["rater", "condition", "n", "value", "ci_low", "ci_high", "chance", "p_value"]
    return pd.DataFrame(rows, columns=columns)


def catch_trials(
    ratings: pd.DataFrame, catch: str = "oracle", minimum: float = 0.8
) -> pd.DataFrame:
    """Who was awake: share correct and lapse rate on the catch trials of each rater.

    Returns
    -------
    DataFrame with `rater`, `n`, `share`, `lapse_rate`, `kept` (share at least `minimum`). A lapse is
    a guess, and half of the guesses are right: lapse_rate = 2 (1 - share).
    """
    rows = []
    for rater, own in ratings.groupby("rater", sort=True):
        answers = own.loc[own["condition"] == catch, "correct"]
        if answers.empty:
            raise RatingsError(
                f"{rater} has answered no trial of {catch!r}: no catch trial to judge by"
            )
        share = float(answers.mean())
        rows.append((rater, len(answers), share, min(1.0, 2 * (1 - share)), share >= minimum))
    return pd.DataFrame(rows, columns=["rater", "n", "share", "lapse_rate", "kept"])


def compare_conditions(
    ratings: pd.DataFrame,
    comparisons: Sequence[str],
    rng: np.random.Generator,
    n_draws: int = statistics.N_RESAMPLES,
) -> pd.DataFrame:
    """Paired permutation test of "a > b" over pictures, nested in raters.

    Within a rater, a picture's answer in `a` is paired with that in `b`; every rater counts alike.
    Signs are flipped by picture, for all its raters together, since they judged the same thing.

    Parameters
    ----------
    ratings : DataFrame with `rater`, `condition`, `image_id`, `correct`
    comparisons : sequence of str, such as "eeg > shuffled_eeg"
    n_draws : int, draws of the null distribution and resamples of the interval over pictures

    Returns
    -------
    DataFrame with `comparison`, `difference`, `ci_low`, `ci_high`, `n_raters`, `n_items`, `p_value`
    """
    table = ratings.pivot(index=["rater", "image_id"], columns="condition", values="correct")
    rows = []
    for comparison in comparisons:
        a, separator, b = (part.strip() for part in comparison.partition(">"))
        if not separator or {a, b} - set(table):
            raise RatingsError(
                f"comparison {comparison!r}: write 'a > b' with conditions that were rated: "
                f"{', '.join(table)}"
            )
        both = table[[a, b]].dropna().astype(float)
        difference = both[a] - both[b]
        if difference.index.get_level_values("image_id").nunique() < 2:
            raise RatingsError(f"{comparison}: fewer than two pictures were answered in both")
        per_rater = difference.groupby("rater").transform("size")
        n_raters = difference.index.get_level_values("rater").nunique()
        weighted = (difference / (per_rater * n_raters)).groupby("image_id").sum()
        values = weighted.to_numpy() * len(weighted)  # their mean is the mean of the raters' means
        test = statistics.paired_permutation_test(values, np.zeros(len(values)), rng, n_draws)
        low, high = statistics.bootstrap_interval(values, rng, n_draws)
        rows.append((comparison, test.statistic, low, high, n_raters, len(values), test.p_value))
    columns = ["comparison", "difference", "ci_low", "ci_high", "n_raters", "n_items", "p_value"]
    return pd.DataFrame(rows, columns=columns)


def family(scores: pd.DataFrame, comparisons: pd.DataFrame, claimed: Sequence[str]) -> pd.DataFrame:
    """Holm over one declared family: `claimed` conditions against chance, and the comparisons.

    Returns
    -------
    DataFrame with `test`, `p_value`, `p_holm`
    """
    overall = scores[scores["rater"] == "all"].set_index("condition")["p_value"]
    tests = {f"{condition} > {CHANCE:g}": float(overall.loc[condition]) for condition in claimed}
    tests |= dict(zip(comparisons["comparison"], comparisons["p_value"], strict=True))
    table = pd.DataFrame({"test": list(tests), "p_value": list(tests.values())})
    return table.assign(p_holm=statistics.holm(table["p_value"]))


def simulated_rater(
    design: pd.DataFrame,
    pictures: Mapping[str, np.ndarray],
    made: Mapping[tuple[str, str], Mapping[str, np.ndarray]],
    rng: np.random.Generator,
    noise: float = 0.3,
    lapse: float = 0.0,
) -> list[str]:
    """Answers of a machine that compares pixels: for trying the test out, no evidence of seeing.

    It picks the candidate whose pixels correlate more with the reconstruction, after Gaussian noise
    of standard deviation `noise` on the difference; with probability `lapse` it guesses.

    Returns
    -------
    list of 'left' or 'right', one for each trial of the design
    """
    answers = []
    for trial in design.to_dict("records"):
        shown = made[trial["condition"], trial["subject"]][trial["image_id"]]
        image, foil = (_likeness(shown, pictures[trial[k]]) for k in ("image_id", "foil_id"))
        picks_image = image - foil + noise * rng.standard_normal() > 0
        picks_left = picks_image == (trial["left"] == "image")
        if rng.random() < lapse:
            picks_left = rng.random() < 0.5
        answers.append("left" if picks_left else "right")
    return answers


def _likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of all pixels; 0 where a picture is constant and none is defined."""
    a, b = (x.astype(float).ravel() - x.mean() for x in (a, b))
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else 0.0
