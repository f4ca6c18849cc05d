"""The long-form tables that other people compute with: one number per row.

Numbers are written with a fixed count of significant digits and rows in the order given, so the
same seed gives the same bytes. A number that could not be measured leaves its cell empty and says
why in the metric's name, for example ``lpips_alex (weights not available)``.

Each run of a notebook knows the rows of one seed. They take the place of the earlier rows of the
same study and seed, and the rows of other seeds stay: the last seed must not stand for all.
"""

from __future__ import annotations

import csv
import math
import numbers
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from numpy.typing import ArrayLike

from sgdm_utils.errors import reading
from sgdm_utils.metrics.statistics import N_RESAMPLES, bootstrap_interval, nested_mean
from sgdm_utils.workflow import locks
from sgdm_utils.workflow.atomic import atomic_file

TEXT_COLUMNS = ("study", "subject", "model", "condition", "metric")
FLOAT_COLUMNS = ("value", "ci_low", "ci_high", "chance", "p_value")
COLUMNS = (
    *("study", "subject", "seed", "model", "condition", "metric"),
    *("value", "ci_low", "ci_high", "n", "chance", "p_value", "transductive"),
)
KEY = COLUMNS[:6]
SIGNIFICANT_DIGITS = 6


class TableError(ValueError):
    """A row or a file breaks the form of the tables."""


def make_row(
    *,
    study: str,
    subject: str,
    seed: int | None,
    model: str,
    condition: str,
    metric: str,
    value: float = math.nan,
    ci_low: float = math.nan,
    ci_high: float = math.nan,
    n: int,
    chance: float = math.nan,
    p_value: float = math.nan,
    transductive: bool = False,
    note: str | None = None,
) -> dict[str, object]:
    """Build and check one row.

    Parameters
    ----------
    subject : str
        ``sub-01``, or ``all`` for the mean over subjects.
    seed : int or None
        None for numbers that do not depend on a training seed.
    n : int
        Items (pictures, trials) behind the value; 0 where nothing was measured.
    transductive : bool
        The number uses the unlabelled test set as a whole.
    note : str or None
        Why there is no value; goes into the metric's name, ``value`` stays empty.

    Returns
    -------
    dict with the keys `COLUMNS`, in that order

    Raises
    ------
    TableError
        A cell has the wrong type or contradicts another; the message names row and cell.
    """
    if note is not None:
        metric = f"{metric} ({note})"
    cells = locals()
    row = {name: cells[name] for name in COLUMNS}
    where = " / ".join(str(row[name]) for name in KEY)
    for name in TEXT_COLUMNS:
        text = row[name]
        if not isinstance(text, str) or not text or text != text.strip() or "\n" in text:
            raise TableError(f"{where}: {name} is {text!r}, expected text without outer blanks")
    for name in ("seed", "n"):
        number = row[name]
        if name == "seed" and (number is None or number is pd.NA):
            row[name] = None
            continue
        if not isinstance(number, numbers.Integral) or isinstance(number, bool) or number < 0:
            raise TableError(f"{where}: {name} is {number!r}, expected an integer >= 0")
        row[name] = int(number)
    for name in FLOAT_COLUMNS:
        number = row[name]
        if not isinstance(number, numbers.Real) or isinstance(number, bool) or np.isinf(number):
            raise TableError(f"{where}: {name} is {number!r}, expected a finite number or NaN")
        row[name] = float(number)
    if not isinstance(transductive, bool | np.bool_):
        raise TableError(f"{where}: transductive is {transductive!r}, expected True or False")
    row["transductive"] = bool(transductive)
    _check_consistency(row, where)
    return row


def summarise(
    values: ArrayLike,
    *,
    rng: np.random.Generator,
    groups: ArrayLike | None = None,
    n_resamples: int = N_RESAMPLES,
    level: float = 0.95,
    **cells: object,
) -> dict[str, object]:
    """Build the row of a mean over items, with its bootstrap interval.

    Parameters
    ----------
    values : array of shape (n,)
        One score per item.
    groups : array of shape (n,) or None
        Subject of each item; the value is then the mean of the subjects' means.
    **cells
        The other arguments of `make_row`: study, subject, seed, model, condition, metric, and
        chance, p_value, transductive where they apply.
    """
    low, high = bootstrap_interval(values, rng, n_resamples, level, groups)
    mean = nested_mean(values, groups)
    return make_row(value=mean, ci_low=low, ci_high=high, n=len(np.asarray(values)), **cells)


def write_table(path: str | Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """Check all rows and write them as CSV; the file appears whole or not at all.

    Raises
    ------
    TableError
        No rows, a row with other columns than `COLUMNS`, a bad cell, or two rows with one key.
    """
    path = Path(path)
    checked = _check_rows(rows, str(path))
    with atomic_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([_format(row[name]) for name in COLUMNS] for row in checked)
    return path


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table and check it as strictly as `write_table` does.

    Returns
    -------
    DataFrame with the columns `COLUMNS`
        Text as str, seed as Int64 (missing where there is none), n as int64, transductive as
        bool, all else float64 with NaN for empty cells.

    Raises
    ------
    FileNotFoundError, TableError
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no table {path}: run the notebook that writes it")
    with reading(path, "a table", "Run the notebook that writes it again", TableError):
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
    if not lines or tuple(lines[0]) != COLUMNS:
        raise TableError(f"{path}: the header is {lines[:1]}, expected {', '.join(COLUMNS)}")
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if len(cells) != len(COLUMNS):
            raise TableError(f"{path}, line {number}: {len(cells)} cells instead of {len(COLUMNS)}")
        try:
            rows.append({name: _parse(name, c) for name, c in zip(COLUMNS, cells, strict=True)})
        except ValueError as error:
            raise TableError(f"{path}, line {number}: {error}") from None
    with reading(path, "a table", "Run the notebook that writes it again", TableError):
        table = pd.DataFrame(_check_rows(rows, str(path)), columns=list(COLUMNS))
        types = dict.fromkeys(FLOAT_COLUMNS, "float64") | {"seed": "Int64", "n": "int64"}
        return table.astype(types | {"transductive": "bool"})


def _check_rows(rows: Iterable[Mapping[str, object]], where: str) -> list[dict[str, object]]:
    checked: list[dict[str, object]] = []
    seen = set()
    for number, row in enumerate(rows, start=1):
        if set(row) != set(COLUMNS):
            missing, extra = set(COLUMNS) - set(row), set(row) - set(COLUMNS)
            raise TableError(
                f"{where}, row {number}: missing columns {sorted(missing)}, "
                f"unknown columns {sorted(extra)}"
            )
        try:
            checked.append(make_row(**row))
        except TableError as error:
            raise TableError(f"{where}, row {number}: {error}") from None
        key = tuple(checked[-1][name] for name in KEY)
        if key in seen:
            raise TableError(f"{where}, row {number}: a second row for {' / '.join(map(str, key))}")
        seen.add(key)
    if not checked:
        raise TableError(f"{where}: no rows")
    return checked


def _check_consistency(row: Mapping[str, object], where: str) -> None:
    low, high, p_value = row["ci_low"], row["ci_high"], row["p_value"]
    if math.isnan(low) != math.isnan(high) or low > high:
        raise TableError(f"{where}: the interval is [{low}, {high}], give both ends in order")
    if p_value <= 0 or p_value > 1:
        raise TableError(f"{where}: p_value is {p_value}, expected (0, 1]; no test gives exactly 0")
    if not math.isnan(row["value"]):
        return
    if not (math.isnan(low) and math.isnan(p_value)):
        raise TableError(f"{where}: there is an interval or a p-value but no value")
    name, _, note = row["metric"].partition(" (")
    if not name or len(note) < 2 or not note.endswith(")"):
        raise TableError(
            f"{where}: no value and no reason; give note='weights not available' or the like"
        )


def _format(cell: object) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        # adding 0 turns -0.0 into 0.0
        return "" if math.isnan(cell) else f"{cell + 0.0:.{SIGNIFICANT_DIGITS}g}"
    return str(cell)


def _parse(name: str, text: str) -> object:
    if name in TEXT_COLUMNS:
        return text
    if name in FLOAT_COLUMNS:
        return float(text) if text else math.nan
    if name == "transductive":
        if text not in ("True", "False"):
            raise ValueError(f"transductive is {text!r}, expected True or False")
        return text == "True"
    if name == "seed" and not text:
        return None
    return int(text)


SEED_KEY = ("study", "seed")


def of_seed(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Rows of one training seed, and those that depend on none."""
    return table[table["seed"].isna() | (table["seed"] == seed)].reset_index(drop=True)


def replace_seeds(old: pd.DataFrame | None, new: pd.DataFrame) -> pd.DataFrame:
    """Put the rows of a run into a table that may hold those of other seeds.

    Parameters
    ----------
    old : DataFrame with the columns of `new`; None or empty where there is nothing yet
    new : DataFrame with rows of one or several (`study`, `seed`)
        A missing seed is a seed of its own: rows that depend on no training seed replace rows that
        depend on none.

    Returns
    -------
    DataFrame
        Sorted by study and seed (missing first), rows within a seed in the order given: the
        result does not depend on the order in which the seeds ran.

    Raises
    ------
    TableError
        Without rows, without the two columns, or with other columns than the table has.
    """
    missing = [c for c in SEED_KEY if c not in new]
    if missing or not len(new):
        raise TableError(f"new rows: {len(new)} rows, without {missing}: nothing can be replaced")
    new = new.assign(seed=_seeds(new["seed"]))
    if old is None or not len(old):
        parts = [new]
    else:
        if list(old) != list(new):
            raise TableError(
                f"the table has the columns {', '.join(old)}, the new rows {', '.join(new)}: it was "
                "written by another version; remove it and run all seeds again"
            )
        old = old.assign(seed=_seeds(old["seed"]))
        replaced = set(zip(new["study"], new["seed"].fillna(-1), strict=True))
        key = zip(old["study"], old["seed"].fillna(-1), strict=True)
        parts = [old[[k not in replaced for k in key]], new]
    # columns that are empty throughout have no type, which pandas would rather be told
    table = pd.concat([p for p in parts if len(p)], ignore_index=True)
    order = table.assign(_seed=table["seed"].fillna(-1))
    order = order.sort_values(["study", "_seed"], kind="stable").index
    return table.loc[order].reset_index(drop=True)


def merge_seeds(target: str | Path, *sources: str | Path | Iterable[Mapping[str, object]]) -> Path:
    """Write runs into a table in the form of `COLUMNS`; rows of other seeds that it holds stay.

    Each source, the path of a table or rows from `make_row`, replaces rows of the same study and
    seed in those before it.

    Raises
    ------
    TableError, FileNotFoundError
        Something is wrong with the target, a source or a row; the target stays as it was.
    """
    target = Path(target)
    parts = [_rows_of(source) for source in sources]
    if not parts:
        raise TableError(f"{target}: no source was given, there is nothing to merge")
    with _locked(target):
        table = read_table(target) if target.is_file() else None
        for part in parts:
            table = replace_seeds(table, part)
        return write_table(target, table.astype(object).to_dict("records"))


def publish_table(
    target: str | Path, rows: pd.DataFrame | str | Path | Iterable[Mapping[str, object]]
) -> Path:
    """Put what one run found into a table of the report; rows of other seeds stay.

    A DataFrame may have columns of its own, among them `study` and `seed`; everything else (rows
    from `make_row`, the path of a table of those) goes through `merge_seeds`, which names the
    errors.
    """
    target = Path(target)
    if not isinstance(rows, pd.DataFrame):
        return merge_seeds(target, rows)
    with _locked(target):
        with reading(
            target, "a table of the report", "Remove it, and run all its seeds again", TableError
        ):
            earlier = pd.read_csv(target) if target.is_file() else None
            table = replace_seeds(earlier, rows)
        with atomic_file(target) as part:
            digits = f"%.{SIGNIFICANT_DIGITS}g"
            table.to_csv(part, index=False, float_format=digits, lineterminator="\n")
    return target


def _locked(target: Path) -> FileLock:
    """A lock for seeds that run side by side: each reads, changes and writes the same file."""
    return locks.shared_lock(target.with_name(f".{target.name}.lock"))


def _rows_of(source: str | Path | Iterable[Mapping[str, object]]) -> pd.DataFrame:
    if isinstance(source, str | Path):
        return read_table(source)
    rows = [dict(row) for row in source]
    unlike = next((row for row in rows if set(row) != set(COLUMNS)), None)
    if unlike is not None:
        raise TableError(f"a row has the columns {sorted(unlike)}, expected {', '.join(COLUMNS)}")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _seeds(seeds: pd.Series) -> pd.Series:
    try:
        return seeds.astype("Int64")
    except (TypeError, ValueError) as error:
        raise TableError(f"seed: {seeds.tolist()[:5]} are not all integers or empty") from error
