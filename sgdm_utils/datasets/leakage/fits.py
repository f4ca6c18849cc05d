"""What a fit saw and how a checkpoint was chosen: recorded when it happens, checked when it is used.

Use it through `sgdm_utils.datasets.leakage.assertions`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from sgdm_utils.datasets.splits import SplitError
from sgdm_utils.errors import DatasetError, reading
from sgdm_utils.workflow.atomic import atomic_file
from sgdm_utils.workflow.formats import read_json


class LeakageError(SplitError):
    """Something of the test was known before the test: the message says what and where."""


@dataclass(frozen=True)
class Finding:
    """What one check compared, and that it found nothing.

    Attributes
    ----------
    check : str, name of the leak that was looked for
    compared : str, what with what
    n : int, how many things were compared
    verdict : str, 'clean', or what has to be said with the result
    """

    check: str
    compared: str
    n: int
    verdict: str = "clean"


@dataclass(frozen=True)
class FitRecord:
    """Which trials a whitener, scaler or centre was fitted with. Made by `record_fit`.

    Attributes
    ----------
    name : str, what was fitted
    digest : str, SHA-256 of the sorted keys of the trials; "" where the fit was published with the
        data and nobody can tell, which needs `transductive`
    keys : tuple of str, the columns that make the key of a trial
    subjects, splits : tuple of str, sorted, those of the trials (`subjects` empty for images)
    n : int, rows that were used
    transductive : bool, declared to have seen test rows (without their labels). Every result that
        stands on such a fit has to say so.
    """

    name: str
    digest: str
    keys: tuple[str, ...]
    subjects: tuple[str, ...]
    splits: tuple[str, ...]
    n: int
    transductive: bool = False

    def __post_init__(self) -> None:
        for field in ("keys", "subjects", "splits"):  # JSON has lists only
            object.__setattr__(self, field, tuple(getattr(self, field)))


@dataclass(frozen=True)
class CheckpointRecord:
    """How one of several training states was chosen.

    Attributes
    ----------
    metric : str, what was compared, e.g. "top-5"
    split : str, on which split it was computed
    epochs : tuple of int, the states that were compared
    values : tuple of float, the metric at each of them
    chosen : int, one of `epochs`
    mode : 'max' or 'min', which value is best
    """

    metric: str
    split: str
    epochs: tuple[int, ...]
    values: tuple[float, ...]
    chosen: int
    mode: Literal["max", "min"] = "max"

    def __post_init__(self) -> None:
        object.__setattr__(self, "epochs", tuple(int(e) for e in self.epochs))
        object.__setattr__(self, "values", tuple(float(v) for v in self.values))
        object.__setattr__(self, "chosen", int(self.chosen))


def record_fit(
    name: str, trials: pd.DataFrame, rows: np.ndarray, transductive: bool = False
) -> FitRecord:
    """Record which trials (or images) something was fitted with.

    Parameters
    ----------
    name : str, e.g. "whitener sub-01"
    trials : DataFrame with `image_id`, `split`; for trials also `subject`, and `repetition` or
        `session`, `run`, `trial`
    rows : int array, positions in `trials` of what the fit saw (not of what it should have seen)
    transductive : bool, declare that test rows were used on purpose
    """
    keys = [c for c in ("subject", "image_id", "repetition") if c in trials]
    if "repetition" not in keys:
        keys += [c for c in ("session", "run", "trial") if c in trials]
    seen = trials.iloc[np.asarray(rows)]
    return FitRecord(
        name=name,
        digest=_digest_of(seen, keys),
        keys=keys,
        subjects=sorted(seen["subject"].unique()) if "subject" in seen else (),
        splits=sorted(seen["split"].unique()),
        n=len(seen),
        transductive=transductive,
    )


def _digest_of(trials: pd.DataFrame, keys: Iterable[str]) -> str:
    """SHA-256 of the sorted keys of trials, each counted once, whatever the order of the rows."""
    columns = []
    for key in keys:
        column = trials[key]
        if pd.api.types.is_float_dtype(column) and (column % 1 == 0).all():
            column = column.astype("int64")  # numbers that went through a table with gaps
        columns.append(column.astype(str))
    texts = sorted({"\x1f".join(values) for values in zip(*columns, strict=True)})
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def assert_fitted_on(
    record: FitRecord, trials: pd.DataFrame, allowed: Sequence[str] = ("train", "val")
) -> Finding:
    """Refuse a whitener, scaler or centre that saw other rows than it may.

    The record claims splits and subjects; the digest must be that of exactly all their rows in
    `trials`. So a fit that saw other rows, or a table that changed since, is found.

    Parameters
    ----------
    record : FitRecord
    trials : DataFrame, the table that is evaluated now, with the record's key columns and `split`
    allowed : sequence of str, splits that a fit may see

    Raises
    ------
    LeakageError
        A fit that saw a split it may not and does not declare it, or other rows than it claims.
    """
    others = [s for s in record.splits if s not in allowed]
    if others and not record.transductive:
        raise LeakageError(
            f"{record.name} was fitted with rows of {' and '.join(others)}; allowed is "
            f"{' and '.join(allowed)}. Fit it again without them, or declare the fit transductive "
            "and say so with every result"
        )
    compared = f"{record.name}: rows of {' and '.join(record.splits)}"
    if record.transductive and not record.digest:
        return Finding(
            "normaliser", compared, record.n, "transductive as published, not verifiable"
        )
    missing = [k for k in record.keys if k not in trials]
    if missing:
        raise DatasetError(
            f"{record.name} was recorded by {', '.join(record.keys)}; the table it is compared "
            f"with has no column {', '.join(missing)}"
        )
    expected = trials[trials["split"].isin(record.splits)]
    if record.subjects and "subject" in trials:
        expected = expected[expected["subject"].isin(record.subjects)]
    expected = expected.drop_duplicates(list(record.keys))
    if _digest_of(expected, record.keys) != record.digest:
        who = f" of {', '.join(record.subjects)}" if record.subjects else ""
        raise LeakageError(
            f"{record.name} claims to be fitted with {' and '.join(record.splits)}{who}, but it saw "
            f"other rows ({record.n}) than these are now ({len(expected)}). Fit it again on them, "
            "or was the split or the table changed since?"
        )
    verdict = "transductive, declared" if others else "clean"
    return Finding("normaliser", compared, record.n, verdict)


def record_choice(
    history: pd.DataFrame, metric: str, split: str, chosen: int,
    epoch: str = "epoch", mode: Literal["max", "min"] = "max",
) -> CheckpointRecord:  # fmt: skip
    """Record the choice of a checkpoint from a training history; rows without a value are left out.

    Parameters
    ----------
    history : DataFrame with the columns `epoch` and `metric`
    metric, epoch : str, names of columns
    split : str, on which split the metric was computed
    chosen : int, the epoch whose weights are kept
    mode : 'max' or 'min'
    """
    rows = history[[epoch, metric]].dropna()
    return CheckpointRecord(metric, split, rows[epoch], rows[metric], chosen, mode)


def assert_checkpoint(record: CheckpointRecord) -> Finding:
    """Refuse a checkpoint that was chosen on the test, or not by what the record says.

    Raises
    ------
    LeakageError
        A choice on another split than train or val, one that is not the best of the recorded
        values, or a record from which that cannot be told.
    """
    if record.split not in ("train", "val"):
        raise LeakageError(
            f"the checkpoint was chosen by {record.metric} on {record.split!r}: choose it on 'val' "
            "and compute the test once, at the end"
        )
    if len(record.epochs) != len(record.values) or not np.isfinite(record.values).all():
        raise LeakageError(
            f"{len(record.epochs)} epochs and {len(record.values)} values of {record.metric} were "
            "recorded, or some are no numbers: the choice cannot be followed"
        )
    if record.chosen not in record.epochs:
        raise LeakageError(
            f"epoch {record.chosen} was kept, which is not among the {len(record.epochs)} that were "
            f"compared by {record.metric}"
        )
    best = max(record.values) if record.mode == "max" else min(record.values)
    kept = record.values[record.epochs.index(record.chosen)]
    if kept != best:
        raise LeakageError(
            f"epoch {record.chosen} was kept with {record.metric} = {kept:g} on {record.split}, but "
            f"epoch {record.epochs[record.values.index(best)]} has {best:g}: by what was it chosen?"
        )
    compared = f"{record.metric} on {record.split}, {record.mode} over epochs"
    return Finding("checkpoint", compared, len(record.epochs))


def write_records(path: Path, records: Iterable[FitRecord | CheckpointRecord]) -> None:
    """Store records of fits and choices as JSON, whole or not at all."""
    listed = [{"kind": type(r).__name__} | asdict(r) for r in records]
    with atomic_file(Path(path)) as part:
        part.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


def read_records(path: Path) -> list[FitRecord | CheckpointRecord]:
    """Read what `write_records` stored.

    Raises
    ------
    DatasetError
        A missing file, or one that holds something else.
    """
    kinds = {c.__name__: c for c in (FitRecord, CheckpointRecord)}
    remedy = "Run the notebook that fits the whitener again"
    with reading(path, "records of fits", remedy):
        return [kinds[entry.pop("kind")](**entry) for entry in read_json(path, list, remedy)]
