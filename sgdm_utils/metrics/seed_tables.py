"""Tables that hold the rows of several training seeds: a new run replaces its own seed only.

Each run of a notebook knows the rows of one seed. Written to the report as they are, the last seed
would stand for all; here its rows take the place of the earlier rows of the same study and seed,
and the rows of other seeds stay.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
from filelock import FileLock

from sgdm_utils.metrics.tables import COLUMNS, TableError, read_table, write_table

SEED_KEY = ("study", "seed")


def of_seed(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Rows of one training seed, and those that depend on none."""
    return table[table["seed"].isna() | (table["seed"] == seed)].reset_index(drop=True)


def replace_seeds(old: pd.DataFrame | None, new: pd.DataFrame) -> pd.DataFrame:
    """Put the rows of a run into a table that may hold those of other seeds.

    Parameters
    ----------
    old : DataFrame or None
        With the columns of `new`, among them `study` and `seed`; None or empty where there is
        nothing yet.
    new : DataFrame
        Rows of one or several (study, seed). A missing seed is a seed of its own: rows that depend
        on no training seed replace rows that depend on none.

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
    """Write the rows of one or more runs into a table in the form of `tables`.

    Parameters
    ----------
    target : path of the CSV; rows of other seeds that it holds stay
    *sources : tables (paths), or rows from `tables.make_row`
        Later ones replace rows of the same study and seed in earlier ones.

    Returns
    -------
    Path, of the target, which was replaced whole or not at all

    Raises
    ------
    TableError, FileNotFoundError
        Something is wrong with the target, a source or a row; the target stays as it was.
    """
    target = Path(target)
    parts = [_rows_of(source) for source in sources]
    if not parts:
        raise TableError(f"{target}: no source was given, there is nothing to merge")
    # Seeds that run side by side each read, change and write the same file. The lock does not lie
    # beside the table, because reports are committed.
    name = hashlib.sha256(str(target.resolve()).encode()).hexdigest()[:16]
    with FileLock(Path(tempfile.gettempdir()) / f"sgdm-table-{name}.lock"):
        table = read_table(target) if target.is_file() else None
        for part in parts:
            table = replace_seeds(table, part)
        return write_table(target, table.astype(object).to_dict("records"))


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
