"""What Alljoined-1.6M was to show: the table of the experiment, and markers matched with its rows.

The table has one row for each picture, in order. Markers of a recording are a part of it, in the
same order; where they name their picture, the two confirm each other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from sgdm_utils.errors import DatasetError, reading
from sgdm_utils.workflow.formats import read_parquet

PARTITIONS = {"stim_train": "train", "stim_test": "test"}
TABLES = (
    "experiment_metadata.parquet",
    "experiment_metadata_categories.parquet",
    "stim_order.parquet",
)
# In the published order of sub-06 one row stands two places too late; the authors' own
# preprocessing moves it before it counts trials.
SUB06, SUB06_FROM, SUB06_TO = "sub-06", 73762, 73760
_IMAGE = re.compile(r"(\d{5})\.\w+$")


class OrderError(DatasetError):
    """Markers and table tell different stories."""


def read_order(root: Path, name: str, sessions: Sequence[int]) -> tuple[pd.DataFrame, Path]:
    """Read what was to be shown to one person, in order.

    Returns
    -------
    order : DataFrame with `row` (number in the published order), `session`, `partition` ("train",
        "test", missing for oddballs), `index` (of the picture, from 0), `category` (its name, if
        the table has it), and `block` and `dropped` where the table has them
    path : Path, the table

    Raises
    ------
    DatasetError
        No table, no parquet file, a missing column, a session without rows, another subject's
        table, an unknown partition, a path without picture number.
    """
    folders = [root / "preprocessed_eeg" / name, root / "raw_eeg" / name]
    found = [f / t for t in TABLES for f in folders if (f / t).is_file()]
    if not found:
        raise DatasetError(
            f"{folders[0]}: none of {', '.join(TABLES)} is there, and nothing else says which "
            "picture belongs to which trial. Fetch them with the data set"
        )
    path = found[0]
    with reading(path, "the table of an experiment", "Fetch it again"):
        return _checked_order(read_parquet(path), path, name, sessions), path


def _checked_order(
    table: pd.DataFrame, path: Path, name: str, sessions: Sequence[int]
) -> pd.DataFrame:
    missing = [c for c in ("session", "image_path", "partition") if c not in table]
    if missing:
        there = ", ".join(map(str, table))
        raise DatasetError(f"{path}: no column {', '.join(missing)}; there is {there}")
    if "subject" in table and set(table["subject"].astype(int)) != {int(name[4:])}:
        raise DatasetError(f"{path} is the table of another subject (column subject)")
    unknown = sorted(set(table["partition"]) - {*PARTITIONS, "oddball"}, key=str)
    if unknown:
        raise DatasetError(
            f"{path}: unknown partition {unknown[0]!r} (stim_train, stim_test, oddball)"
        )
    absent = sorted(set(sessions) - set(table["session"].astype(int)))
    if absent:
        raise DatasetError(f"{path}: no rows of session {absent[0]}; leave it out (sessions)")
    index = table["image_path"].astype(str).str.extract(_IMAGE, expand=False)
    if index.isna().any():
        i = int(np.flatnonzero(index.isna())[0])
        raise DatasetError(
            f"{path}, row {i}: image_path {table['image_path'].iloc[i]!r} does not end in five "
            "digits and a suffix, e.g. 00123.jpg"
        )
    order = pd.DataFrame(
        {
            "row": table.index.to_numpy()
            if table.index.dtype.kind in "iu"
            else np.arange(len(table)),
            "session": table["session"].astype(int).to_numpy(),
            "partition": table["partition"].map(PARTITIONS).to_numpy(),
            "index": index.astype(int).to_numpy(),
            "category": table.get(
                "category_name", pd.Series(index=table.index, dtype=object)
            ).to_numpy(),
        }
    )
    if "block_id" in table:
        order["block"] = table["block_id"].astype(int).to_numpy()
    if "dropped" in table:
        order["dropped"] = table["dropped"].astype(bool).to_numpy()
    return order


def sub06_may_be_uncorrected(order: pd.DataFrame) -> bool:
    """Tell whether the table reaches to the misplaced row and does not show that it was moved."""
    return len(order) > SUB06_FROM and order["row"].iloc[SUB06_TO] != SUB06_FROM


def correct_sub06(order: pd.DataFrame) -> pd.DataFrame:
    """Move the misplaced row of sub-06 two places up."""
    rows = np.delete(np.arange(len(order)), SUB06_FROM)
    return order.iloc[np.insert(rows, SUB06_TO, SUB06_FROM)].reset_index(drop=True)


def settle_sub06(
    order: pd.DataFrame, name: str, source: Path, sub06: str, facts: dict
) -> pd.DataFrame:
    """Deal with the misplaced row of sub-06 where only the table can tell whether it was moved.

    `sub06` is 'refuse' (an error unless the row numbers show it), 'as_listed' or 'corrected'; what
    was done is added to `facts`. Other people's tables come back untouched.
    """
    if name != SUB06:
        return order
    if len(order) > SUB06_FROM and order["row"].iloc[SUB06_TO] == SUB06_FROM:
        facts["sub-06"] = f"{source.name} has the misplaced row corrected"
        return order
    if sub06 == "refuse" or (sub06 == "corrected" and len(order) <= SUB06_FROM):
        raise DatasetError(
            f"{source}: in the published order of sub-06 row {SUB06_FROM} belongs two places "
            "earlier (swapped triggers), and this table does not tell whether it was moved. Take "
            "experiment_metadata.parquet as the authors' preprocessing writes it (it keeps the row "
            "numbers), leave sub-06 out, or decide: tables(..., sub06='as_listed' or 'corrected')"
        )
    facts["sub-06"] = f"order {sub06.replace('_', ' ')}, by the caller's decision"
    return correct_sub06(order) if sub06 == "corrected" else order


def align(
    markers: pd.DataFrame, rows: pd.DataFrame, kept: np.ndarray | None, source: Path
) -> np.ndarray:
    """Find the row of every marker.

    Markers that name their pictures have to be a subsequence of the rows, and every row that was
    kept has to have one. The first row that fits is taken: where a picture occurs twice in a block
    and one marker is lost, which of the two it was does not change what was seen. Markers without
    pictures are matched by count. Markers at one instant (`several`) get no row, but account for
    those of their pictures.

    Parameters
    ----------
    markers : DataFrame with `index` (-1: not named), `partition`, `onset_s`, `where`, `several`
    rows : DataFrame, part of `read_order`'s
    kept : bool array, rows that were not dropped; None when the table does not tell

    Returns
    -------
    int array, positions in `rows` of the markers that are not `several`, increasing; an `OrderError`
    names the first marker or row that does not fit
    """
    several = markers["several"].to_numpy(dtype=bool)
    unnamed, among_all = (markers["index"] < 0).any(), len(markers)
    at_once = markers["index"][several].tolist()
    markers = markers[~several].reset_index(drop=True)
    everything = np.arange(len(rows))
    candidates = everything if kept is None else everything[kept]
    shown, listed = markers["index"].to_numpy(), rows["index"].to_numpy()
    session = rows["session"].iloc[0]
    wrong = np.flatnonzero(markers["partition"].to_numpy() != rows["partition"].iloc[0])
    if len(wrong):
        raise OrderError(
            f"{markers['where'][wrong[0]]}: marker {wrong[0]} is of the partition "
            f"{markers['partition'][wrong[0]]}, {source.name} lists the block under "
            f"{rows['partition'].iloc[0]}. Are two blocks exchanged?"
        )
    if unnamed:  # the markers do not name pictures: only the count can be compared
        if among_all != len(candidates):
            raise OrderError(
                f"{markers['where'].iloc[0]}: {among_all} stimulus markers, {source.name} has "
                f"{len(candidates)} pictures that were not dropped (session {session}). Is it the "
                "right block, and the table of this recording?"
            )
        return candidates[~several]
    if len(shown) == len(candidates) and (shown == listed[candidates]).all():
        return candidates
    at, row = np.empty(len(shown), int), 0
    for i, picture in enumerate(shown):
        start = row
        while row < len(listed) and listed[row] != picture:
            row += 1
        if row == len(listed):
            raise OrderError(
                f"{markers['where'][i]}: marker {i} of {len(shown)} (at {markers['onset_s'][i]:.3f} s) "
                f"shows picture {picture:05d}, which {source} does not list after row "
                f"{rows['row'].iloc[max(start - 1, 0)]} (session {session}). Is it the right block, "
                "and the table of this recording?"
            )
        at[i], row = row, row + 1
    lost = np.setdiff1d(candidates, at)
    left = Counter(at_once)
    for i in lost.tolist():
        if left[listed[i]] > 0:
            left[listed[i]] -= 1
            lost = lost[lost != i]
    if kept is not None and len(lost):
        raise OrderError(
            f"{markers['where'].iloc[0]}: no marker for row {rows['row'].iloc[lost[0]]} of {source} "
            f"(picture {listed[lost[0]]:05d}, session {session}; {len(lost)} such rows), which was "
            "not dropped. Is the file whole, and the table of this recording?"
        )
    return at
