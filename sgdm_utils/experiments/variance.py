"""Where does a score vary: between training seeds, between subjects, or between items?

The scores of a study form a balanced crossed table: every item scored for every subject with every
seed. Each factor is a random effect (another seed, other people, other pictures would do as well),
so the score of seed a, subject b, item c is

    y = mean + A_a + B_b + C_c + (AB)_ab + (AC)_ac + (BC)_bc + E_abc

and the variances of the effects are found by the method of moments: mean squares of the table are
set equal to their expectations. A factor with one level has a variance that nobody can know; the
answer is then "cannot be separated", never zero.

References
----------
Searle, Casella & McCulloch, Variance Components (1992), ch. 4: expected mean squares of balanced
crossed designs and the resulting estimators. Weerahandi, J. Am. Stat. Assoc. 88, 899 (1993):
intervals from simulated mean squares. Brennan, Generalizability Theory (2001), ch. 4: variance of a
mean over other numbers of levels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from sgdm_utils.metrics.statistics import N_RESAMPLES, percentile_interval

FACTORS = ("seed", "subject", "item")
RESIDUAL = "residual"
Effect = tuple[int, ...]  # axes of the table


class VarianceError(ValueError):
    """The scores do not form a table in which the variance can be split."""


def score_table(scores: pd.DataFrame, value: str) -> np.ndarray:
    """Bring long scores into a table with one axis for each factor.

    Parameters
    ----------
    scores : DataFrame with the columns `FACTORS` and `value`, one row per cell
    value : str, the score

    Returns
    -------
    float64 array of shape (n_seeds, n_subjects, n_items), levels sorted

    Raises
    ------
    VarianceError
        A missing column, a cell that is missing, doubled or no number: which one, and what to do.
    """
    factors = list(FACTORS)
    missing = [c for c in (*factors, value) if c not in scores]
    if missing:
        raise VarianceError(
            f"the scores have no column {', '.join(missing)}; there is "
            f"{', '.join(map(str, scores.columns))}"
        )
    doubled = scores[scores.duplicated(factors)]
    if len(doubled):
        raise VarianceError(
            f"{len(doubled)} rows are a second score of the same cell, the first "
            f"{_cell(doubled[factors].iloc[0])}: average over samples, or take one condition and "
            "one model at a time"
        )
    levels = [sorted(scores[f].unique()) for f in factors]
    cells = scores.set_index(factors)[value]
    table = cells.reindex(pd.MultiIndex.from_product(levels, names=factors))
    bad = table[~np.isfinite(table.to_numpy(np.float64, na_value=np.nan))]
    if len(bad) or not len(table):
        where = _cell(bad.index[0]) if len(bad) else "all of them"
        raise VarianceError(
            f"{value}: {len(bad)} of {len(table)} cells of the table are missing or no finite "
            f"number, the first {where}. The split needs every item of every subject with "
            "every seed: run what is missing, or leave the incomplete level out"
        )
    return table.to_numpy(np.float64).reshape([len(level) for level in levels])


def mean_squares(table: np.ndarray) -> dict[Effect, tuple[float, int]]:
    """Mean square and degrees of freedom of each effect of a crossed table.

    Parameters
    ----------
    table : array with one axis per factor, at least two levels each

    Returns
    -------
    dict of the axes of an effect to (mean square, degrees of freedom); the effect of all axes
    together is the residual, since there is one score in each cell
    """
    deviation: dict[Effect, np.ndarray] = {(): table.mean(keepdims=True)}
    found = {}
    for effect in _effects(table.ndim):
        others = tuple(a for a in range(table.ndim) if a not in effect)
        part = table.mean(axis=others, keepdims=True)
        for lower, values in deviation.items():  # what smaller effects explain
            if set(lower) < set(effect):
                part = part - values
        deviation[effect] = part
        df = math.prod(table.shape[a] - 1 for a in effect)
        repeats = math.prod(table.shape[a] for a in others)
        found[effect] = (float((part**2).sum() * repeats / df), df)
    return found


def components_of(
    squares: Mapping[Effect, float | np.ndarray], shape: Sequence[int]
) -> dict[Effect, float | np.ndarray]:
    """Variance components from mean squares (Searle et al. 1992, ch. 4).

    The expected mean square of an effect is the sum of the components of all effects that contain
    it, each times the number of scores that share a level of it. Solved for the components:

        variance(e) = sum over f containing e of (-1) ** (|f| - |e|) * MS(f) / n(e)

    with n(e) the number of scores for each combination of levels of e. Estimates can be
    negative; that is what makes them right on average.
    """
    out = {}
    for effect in squares:
        above = [f for f in squares if set(effect) <= set(f)]
        total = sum((-1) ** (len(f) - len(effect)) * squares[f] for f in above)
        out[effect] = total / math.prod(n for a, n in enumerate(shape) if a not in effect)
    return out


def variance_components(
    scores: pd.DataFrame, value: str, rng: np.random.Generator, n_resamples: int = N_RESAMPLES
) -> pd.DataFrame:
    """Split the variance of a score into seed, subject, item, their interactions and the rest.

    The 95 % interval is the parametric bootstrap: every mean square is divided by a drawn
    chi-square over its degrees of freedom, the components are computed from the draws. It is honest
    about three seeds (two degrees of freedom), and assumes normal effects.

    Parameters
    ----------
    scores, value : see `score_table`
    rng : numpy.random.Generator
    n_resamples : int, draws of the interval

    Returns
    -------
    DataFrame with one row per component, in the order seed, subject, item, seed:subject, ...,
    residual, and the columns
        component : str
        variance : float, unbiased and possibly negative; NaN where it cannot be separated
        ci_low, ci_high : float, never below 0; NaN where there is no estimate
        share : float, of the sum of all components, negative ones counted as 0
        levels : int, of the factors of the component, multiplied
        note : str, '' or what one level of a factor leaves unknown or mixed up
    """
    table = score_table(scores, value)
    shape = table.shape
    active = [a for a, n in enumerate(shape) if n > 1]
    if not active:
        raise VarianceError(f"{value}: one single score has no variance")
    squares = mean_squares(table.reshape([shape[a] for a in active]))
    # back from axes of the table without its single levels to axes of the table
    squares = {tuple(active[a] for a in e): v for e, v in squares.items()}
    estimate = components_of({e: ms for e, (ms, _) in squares.items()}, shape)
    drawn = {e: ms * df / rng.chisquare(df, size=n_resamples) for e, (ms, df) in squares.items()}
    draws = components_of(drawn, shape)
    total = sum(max(v, 0.0) for v in estimate.values())
    rows = []
    for effect in _effects(table.ndim):
        whole = tuple(active) if len(effect) == table.ndim else effect  # the residual
        known = whole in estimate and (len(effect) == table.ndim or effect != tuple(active))
        name = RESIDUAL if len(effect) == table.ndim else ":".join(FACTORS[a] for a in effect)
        row = {"component": name, "variance": math.nan, "ci_low": math.nan, "ci_high": math.nan}
        row |= {"share": math.nan, "levels": math.prod(shape[a] for a in effect), "note": ""}
        if known:
            low, high = percentile_interval(draws[whole])
            row |= {"variance": float(estimate[whole])}
            row |= {"ci_low": max(low, 0.0), "ci_high": max(high, 0.0)}
            row["share"] = max(row["variance"], 0.0) / total if total else math.nan
        if len(active) < table.ndim:
            single = [FACTORS[a] for a in range(table.ndim) if a not in active]
            row["note"] = _why(name, single, known)
        rows.append(row)
    return pd.DataFrame(rows)


def standard_error_of_mean(components: pd.DataFrame, **levels: int) -> float:
    """Standard error of the mean score when so many levels of each factor are drawn.

    Parameters
    ----------
    components : DataFrame, from `variance_components`
    **levels : int, for each factor, for example ``seed=3, subject=10, item=200``

    Returns
    -------
    float, NaN as soon as a component could not be separated: an unknown variance is not zero

    References
    ----------
    Brennan (2001), ch. 4: each component divided by the number of its levels in the mean.
    """
    variance = 0.0
    for row in components.itertuples():
        names = list(levels) if row.component == RESIDUAL else row.component.split(":")
        unknown = [name for name in names if name not in levels]
        if unknown or min(levels.values(), default=0) < 1:
            raise VarianceError(
                f"the number of levels of {', '.join(unknown) or 'each factor'} is needed, at "
                f"least 1; given {levels}"
            )
        variance += np.maximum(row.variance, 0.0) / math.prod(levels[n] for n in names)
    return float(np.sqrt(variance))


def _effects(n_axes: int) -> list[Effect]:
    """All effects, main effects first, the residual last."""
    sizes = range(1, n_axes + 1)
    return [e for size in sizes for e in itertools.combinations(range(n_axes), size)]


def _why(name: str, single: Sequence[str], known: bool) -> str:
    """Say what one level of a factor leaves unknown, or mixes into other components."""
    one = " and ".join(f"one {factor}" for factor in single)
    if not known:
        return f"cannot be separated: {one}"
    if name == RESIDUAL:
        return f"{one}: holds what belongs to other components"
    return f"{one}: holds its interactions with {' and '.join(single)}, too"


def _cell(where: Sequence[object]) -> str:
    return ", ".join(f"{f} {v}" for f, v in zip(FACTORS, where, strict=True))
