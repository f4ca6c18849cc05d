"""Numbers of the tables as people read them: rounded, with their intervals, no p-value of zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sgdm_utils.figures.results import CONDITIONS, metric_label


def number(value: object, digits: int = 3) -> str:
    """A number as people read it; an empty string for what is missing."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return str(value)
    if isinstance(value, float | np.floating):
        return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def p_text(p: float) -> str:
    """A p-value, never as zero."""
    if math.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def interval(low: float, high: float, form: str = ".3f") -> str:
    """Both ends of an interval, or nothing where there is none."""
    return f"{low:{form}} to {high:{form}}" if np.isfinite(low) else ""


def with_interval(row: Mapping[str, Any] | pd.Series) -> str:
    """The value of a row of a long table with its interval, ``0.71 [0.65, 0.77]``."""
    value, low, high = (round(float(row[c]), 2) + 0.0 for c in ("value", "ci_low", "ci_high"))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def readable_table(table: pd.DataFrame) -> pd.DataFrame:
    """All rows of a long table (see `sgdm_utils.metrics.tables`) with readable names and numbers."""
    ends = zip(table["ci_low"], table["ci_high"], strict=True)
    columns = {
        "subject": table["subject"],
        "model": table["model"],
        "condition": table["condition"].map(lambda c: CONDITIONS.get(c, c)),
        "metric": table["metric"].map(metric_label),
        "value": table["value"].map(number),
        "95 % interval": [interval(low, high) for low, high in ends],
        "n": table["n"],
        "chance": table["chance"].map(number),
        "p": table["p_value"].map(p_text),
        "transductive": table["transductive"].map(number),
    }
    return pd.DataFrame(columns)


def condition_table(overall: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """One row for each condition with all metrics and intervals, and chance as the last row.

    Parameters
    ----------
    overall : rows of the long table of reconstructions for all subjects together
    metrics : sequence of str, the columns in their order
    """
    present = set(overall["condition"])
    lines = []
    for condition in [c for c in reversed(CONDITIONS) if c in present]:
        rows = overall[overall["condition"] == condition].set_index("metric")
        line = {"condition": CONDITIONS[condition], "n": int(rows["n"].max())}
        for metric in metrics:
            known = metric in rows.index
            line[metric_label(metric)] = with_interval(rows.loc[metric]) if known else ""
        lines.append(line)
    chance = overall.groupby("metric")["chance"].max()
    last = {metric_label(m): number(chance[m], 2) or "as shuffled" for m in metrics}
    return pd.DataFrame([*lines, {"condition": "chance", "n": ""} | last])


def comparison_table(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The declared comparisons of notebook 06 with readable names and numbers."""
    ends = zip(comparisons["ci_low"], comparisons["ci_high"], strict=True)
    sides = [text.split(">") for text in comparisons["comparison"]]
    columns = {
        "declared comparison": [" > ".join(CONDITIONS[c.strip()] for c in pair) for pair in sides],
        "metric": comparisons["metric"].map(metric_label),
        "difference": [f"{difference:+.3f}" for difference in comparisons["difference"]],
        "95 % interval": [interval(low, high, "+.3f") for low, high in ends],
        "n": comparisons["n"],
        "p": comparisons["p_value"].map(p_text),
        "p (Holm)": comparisons["p_holm"].map(p_text),
        "verdict": comparisons["verdict"],
    }
    return pd.DataFrame(columns)
