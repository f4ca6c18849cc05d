"""Is anything of the test known before it? One assertion for each way in which it could be.

Each assertion can be called alone: it returns a `Finding` when the data are clean and raises a
`LeakageError` that names the first offender when they are not. `audit` calls all that it has the
material for and returns a table to print; what it could not check, it says.

What the assertions cannot see: a recording that was copied and then filtered or scaled, a picture
that was mirrored, cropped by more than a little or photographed again, a history of scores that was
itself computed on the test and called something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from sgdm_utils.datasets import splits
from sgdm_utils.datasets.leakage.copies import (
    MAX_DISTANCE,
    assert_files_unique,
    assert_pictures,
    assert_trials_unique,
    perceptual_hash,
)
from sgdm_utils.datasets.leakage.fits import (
    CheckpointRecord,
    Finding,
    FitRecord,
    LeakageError,
    assert_checkpoint,
    assert_fitted_on,
    read_records,
    record_choice,
    record_fit,
    write_records,
)
from sgdm_utils.datasets.splits import SplitError, folded_concept
from sgdm_utils.errors import DatasetError

__all__ = [
    "MAX_DISTANCE", "CheckpointRecord", "Finding", "FitRecord", "LeakageError", "assert_checkpoint",
    "assert_concepts", "assert_files_unique", "assert_fitted_on", "assert_images", "assert_pictures",
    "assert_repetitions", "assert_subjects", "assert_trials_unique", "audit", "perceptual_hash",
    "read_records", "record_choice", "record_fit", "write_records",
]  # fmt: skip


def _need(trials: pd.DataFrame, *columns: str) -> None:
    missing = [c for c in columns if c not in trials]
    if missing:
        raise DatasetError(
            f"the table has no column {', '.join(missing)}, which the check for leaks needs; there "
            f"is {', '.join(map(str, trials))}"
        )


def assert_images(trials: pd.DataFrame) -> Finding:
    """Refuse an image id that is in more than one split.

    Parameters
    ----------
    trials : DataFrame with `image_id`, `split`; trials or images
    """
    _need(trials, "image_id", "split")
    pairs = trials[["image_id", "split"]].drop_duplicates()
    double = pairs["image_id"][pairs["image_id"].duplicated()]
    if len(double):
        where = sorted(pairs["split"][pairs["image_id"] == double.iloc[0]])
        raise LeakageError(
            f"{double.nunique()} images are in more than one split: {double.iloc[0]!r} is in "
            f"{' and '.join(where)}. Split by image (splits.assign_split), not by trial"
        )
    return Finding("image", "image ids between splits", pairs["image_id"].nunique())


def assert_concepts(trials: pd.DataFrame, validation: bool = True) -> Finding:
    """Refuse a concept of the test in train or val, and one of val in train.

    Names are compared without a folder's number and without capitals (`splits.folded_concept`).

    Parameters
    ----------
    trials : DataFrame with `image_id`, `concept`, `split`; trials or images
    validation : bool, False allows val and train to share concepts
    """
    _need(trials, "image_id", "concept", "split")
    table = trials[["image_id", "concept", "split"]].drop_duplicates()
    table = table.assign(folded=table["concept"].map(folded_concept))
    pairs = [("test", ("train", "val"))] + [("val", ("train",))] * validation
    for held_out, known in pairs:
        held = table[table["split"] == held_out]
        other = table[table["split"].isin(known)]
        shared = sorted(set(held["folded"]) & set(other["folded"]))
        if shared:
            a, b = (t[t["folded"] == shared[0]].iloc[0] for t in (held, other))
            raise LeakageError(
                f"{len(shared)} concepts of {held_out} are also in {' or '.join(known)}: "
                f"{a['concept']!r} (image {a['image_id']!r}) and {b['concept']!r} (image "
                f"{b['image_id']!r}, {b['split']}). Split by concept"
            )
    compared = "concepts of test, val and train" if validation else "concepts of test and the rest"
    return Finding("concept", compared, table["folded"].nunique())


def assert_repetitions(trials: pd.DataFrame) -> Finding:
    """Refuse repetitions of an image on both sides of the split, and a trial listed twice.

    Parameters
    ----------
    trials : DataFrame with `subject`, `image_id`, `split`; with `onset_s` (and `session`, `run`,
        `task` where there are) or `repetition`, which say which presentation a row is
    """
    _need(trials, "subject", "image_id", "split")
    n_splits = trials.groupby("image_id")["split"].nunique()
    if (n_splits > 1).any():
        image = n_splits.index[n_splits > 1][0]
        counts = trials["split"][trials["image_id"] == image].value_counts().sort_index()
        raise LeakageError(
            f"repetitions of {int((n_splits > 1).sum())} images are spread over splits: "
            f"{image!r} has {', '.join(f'{n} in {s}' for s, n in counts.items())}. All trials of an "
            "image belong together"
        )
    where = [c for c in ("subject", "session", "task", "run") if c in trials]
    tried = []
    if "onset_s" in trials and trials["onset_s"].notna().any():
        tried.append([*where, "onset_s"])
    if "repetition" in trials:
        tried.append(["subject", "image_id", "repetition"])
    if not tried:
        raise DatasetError(
            "the trials have neither onset_s nor repetition: nothing tells one presentation of a "
            "picture from a copy of it. Take the table of 01_preprocessing"
        )
    for key in tried:
        rows = trials[trials[key[-1]].notna()]
        double = np.flatnonzero(rows.duplicated(key))
        if len(double):
            named = ", ".join(f"{c} {rows[c].iloc[double[0]]}" for c in key)
            raise LeakageError(
                f"{len(double)} trials are in the table twice, the first in row "
                f"{rows.index[double[0]]}: {named}. Was a run read, or a table appended, twice?"
            )
    return Finding("repetition", "trials of one image; rows of the table", len(trials))


def assert_subjects(trials: pd.DataFrame) -> Finding:
    """Refuse a subject of the test in train or val; for claims about new people.

    Parameters
    ----------
    trials : DataFrame with `subject`, `split`
    """
    _need(trials, "subject", "split")
    try:
        splits.assert_subjects_disjoint(trials)
    except SplitError as error:
        raise LeakageError(str(error)) from error
    return Finding("subject", "subjects of test and the rest", trials["subject"].nunique())


def audit(
    trials: pd.DataFrame,
    *,
    images: pd.DataFrame | None = None,
    pictures: Sequence[np.ndarray | Path] | None = None,
    eeg: np.ndarray | None = None,
    rows: np.ndarray | None = None,
    files: Iterable[Path] | None = None,
    records: Iterable[FitRecord | CheckpointRecord] = (),
    new_subjects: bool = False,
    shared_validation: bool = False,
    max_distance: int | None = MAX_DISTANCE,
    strict: bool = True,
) -> pd.DataFrame:
    """Look for every leak that the given material can show.

    Parameters
    ----------
    trials : DataFrame with `subject`, `image_id`, `concept`, `split`, `onset_s` or `repetition`
    images, pictures : see `assert_pictures`; records of fits on images are compared with `images`
    eeg, rows : see `assert_trials_unique`
    files : recording files
    records : of fits and checkpoints
    new_subjects : bool, the claim is about people who were not trained on
    shared_validation : bool, val may share concepts with train
    max_distance : int or None, see `assert_pictures`
    strict : bool, raise when there is a leak; False shows it in the table

    Returns
    -------
    DataFrame with `check`, `compared`, `n`, `verdict`, one row for each check; what there was no
    material for is 'not checked'

    Raises
    ------
    LeakageError
        With the messages of all checks that found something.
    """
    plan: list[tuple[str, str, Callable[[], Finding] | None]] = []

    def add(check: str, missing: str, given: bool, assertion: Callable[[], Finding]) -> None:
        plan.append((check, missing, assertion if given else None))

    add("image", "", True, lambda: assert_images(trials))
    add("picture", "no pictures given", images is not None and pictures is not None,
        lambda: assert_pictures(images, pictures, max_distance))  # fmt: skip
    add("concept", "", True, lambda: assert_concepts(trials, not shared_validation))
    add("repetition", "", True, lambda: assert_repetitions(trials))
    add("subject", "no claim about new people", new_subjects, lambda: assert_subjects(trials))
    add("duplicate recording", "no EEG given", eeg is not None,
        lambda: assert_trials_unique(eeg, trials, rows))  # fmt: skip
    add("duplicate recording", "no files given", files is not None,
        lambda: assert_files_unique(files))  # fmt: skip
    records = list(records)
    for kind, check in ((FitRecord, "normaliser"), (CheckpointRecord, "checkpoint")):
        own = [r for r in records if isinstance(r, kind)]
        for record in own:
            add(check, "", True, lambda r=record: _check_record(r, trials, images))
        if not own:
            plan.append((check, "no record given", None))
    found, leaks = [], []
    for check, missing, assertion in plan:
        if assertion is None:
            found.append(asdict(Finding(check, missing, 0, "not checked")))
            continue
        try:
            found.append(asdict(assertion()))
        except LeakageError as error:
            leaks.append(f"{check}: {error}")
            found.append(asdict(Finding(check, str(error), 0, "LEAK")))
    if leaks and strict:
        raise LeakageError(f"{len(leaks)} of {len(plan)} checks found a leak.\n" + "\n".join(leaks))
    return pd.DataFrame(found, columns=["check", "compared", "n", "verdict"])


def _check_record(
    record: FitRecord | CheckpointRecord, trials: pd.DataFrame, images: pd.DataFrame | None
) -> Finding:
    if isinstance(record, CheckpointRecord):
        return assert_checkpoint(record)
    of_images = "subject" not in record.keys and images is not None
    return assert_fitted_on(record, images if of_images else trials)
