"""Who is in which split: decided once, asserted wherever it is read; `frozen_splits` stores it.

A picture or a concept that is in training and in test makes every later number worthless, and it is
the easiest mistake to make with repeated pictures. So the split belongs to the *images*, not to the
trials. `sgdm_utils.datasets.leakage.assertions` looks for the leaks that a table of images cannot show.

A split as a file: written once with its digest and its facts, refused when it was edited since.

Who is in which split is decided in `splits`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from sgdm_utils.errors import DatasetError, reading
from sgdm_utils.workflow.atomic import atomic_file, digest_file
from sgdm_utils.workflow.formats import read_json

SPLITS = ("train", "val", "test")
REQUIRED = ("image_id", "concept", "split")
MIN_CONCEPTS = 10  # with fewer, a test on left-out concepts would stand on one or two of them
PARTITIONS = ("train", "test")
_NUMBER = re.compile(r"^\d+[_-](?=[^\W\d_])")  # "00012_dog": a folder's number, then its word


class SplitError(DatasetError):
    """A split lets test pictures or concepts into training, or is not the one that was frozen."""


def assign_split(
    images: pd.DataFrame,
    rng: np.random.Generator,
    scheme: Literal["auto", "concepts", "runs"] = "auto",
    test_fraction: float = 0.2,
    val_fraction: float = 0.1,
) -> pd.DataFrame:
    """Decide which images are trained on.

    `concepts` leaves whole concepts out: those of `test`, of `val` and of `train` are disjoint.
    `runs` puts every image in `train`: the study has too few concepts to leave some out, and is to
    be evaluated by leaving recordings out (class decoding; no claim about unseen pictures follows
    from it). `auto` takes `concepts` when there are at least `MIN_CONCEPTS` of them.

    Parameters
    ----------
    images : DataFrame with `image_id` and `concept`, one row per image
    rng : numpy.random.Generator
    scheme : 'auto', 'concepts' or 'runs'
    test_fraction, val_fraction : float, of the concepts, each at least one

    Returns
    -------
    DataFrame, `images` with the column `split`

    Raises
    ------
    SplitError
        When there are too few concepts for `concepts`, or the scheme is unknown.
    """
    concepts = np.sort(images["concept"].unique())
    if scheme not in ("auto", "concepts", "runs"):
        raise SplitError(f"unknown split scheme {scheme!r}: 'auto', 'concepts' or 'runs'")
    if scheme == "auto":
        scheme = "concepts" if len(concepts) >= MIN_CONCEPTS else "runs"
    if scheme == "runs":
        return images.assign(split="train")
    n_test = max(1, round(test_fraction * len(concepts)))
    n_val = max(1, round(val_fraction * len(concepts)))
    if len(concepts) - n_test - n_val < 2:
        raise SplitError(
            f"{len(concepts)} concepts are too few to leave {n_test} out for test and {n_val} for "
            "validation: use the scheme 'runs', or smaller fractions"
        )
    shuffled = rng.permutation(concepts)
    split = dict.fromkeys(concepts, "train")
    split.update(dict.fromkeys(shuffled[:n_test], "test"))
    split.update(dict.fromkeys(shuffled[n_test : n_test + n_val], "val"))
    table = images.assign(split=images["concept"].map(split))
    assert_split_integrity(table)
    return table


def folded_concept(name: str) -> str:
    """Return a concept's name without a leading folder number and without capitals.

    Data sets number the folders of each partition anew, so that "00012_dog" of one and "00003_dog"
    of the other are the same concept under two names.
    """
    return _NUMBER.sub("", str(name)).casefold()


def from_partition(
    images: pd.DataFrame,
    rng: np.random.Generator,
    val_concepts: float = 0.06,
    drop_shared: bool = False,
) -> pd.DataFrame:
    """Take the published zero-shot split, and whole training concepts of it for validation.

    A validation set of single training *images*, as in much of the field, shares its concepts with
    training: what is chosen on it is chosen for remembering concepts. Here a validation concept
    comes with all its images, so that validation asks what the test will ask.

    Parameters
    ----------
    images : DataFrame with `image_id`, `concept`, `partition` ("train" or "test"), one row each
    rng : numpy.random.Generator, draws the validation concepts
    val_concepts : number of concepts for validation (1 or more), or their share of the training
        concepts (between 0 and 1; at least one is drawn). With none, the epoch would have to be
        chosen on the test.
    drop_shared : bool, take concepts that occur in both partitions out of *training*

    Returns
    -------
    DataFrame, `images` with the column `split`; images that were dropped are not in it. Its `attrs`
    are the facts to freeze with it (`frozen_splits.write_split(..., facts=table.attrs)`): `scheme`,
    `val_concepts`, and `dropped_concepts` and `dropped_images`, how many of them.

    Raises
    ------
    SplitError
        No published partition, or an unknown one; a concept in both partitions; a number of
        validation concepts that is none, or leaves fewer than two for training.
    """
    missing = [c for c in ("image_id", "concept", "partition") if c not in images]
    if missing:
        raise SplitError(
            f"the images have no column {', '.join(missing)}; there is {', '.join(images)}"
        )
    unknown = images[~images["partition"].isin(PARTITIONS)]
    if len(unknown):
        raise SplitError(
            f"image {unknown['image_id'].iloc[0]!r} (one of {len(unknown)}) has the partition "
            f"{unknown['partition'].iloc[0]!r}, not 'train' or 'test'. A data set without a "
            "published split gets one from assign_split"
        )
    is_test = images["partition"] == "test"
    if is_test.all() or not is_test.any():
        raise SplitError(
            f"all {len(images)} images are of the partition {images['partition'].iloc[0]!r}: the "
            "published split needs both. Was a part of the data set left out?"
        )
    folded = images["concept"].map(folded_concept)
    shared = sorted(set(folded[is_test]) & set(folded[~is_test]))
    if shared and not drop_shared:
        named = ", ".join(map(repr, shared[:5])) + (", ..." if len(shared) > 5 else "")
        raise SplitError(
            f"{len(shared)} concepts are in both published partitions: {named}. The test would not "
            "be zero-shot. drop_shared=True takes them out of training"
        )
    dropped = folded.isin(shared) & ~is_test
    images, is_test = images[~dropped], is_test[~dropped]
    concepts = np.sort(images.loc[~is_test, "concept"].unique())
    chosen = rng.permutation(concepts)[: _count_of(val_concepts, len(concepts))]
    split = np.where(is_test, "test", np.where(images["concept"].isin(chosen), "val", "train"))
    table = images.assign(split=split)
    assert_split_integrity(table)
    table.attrs = {
        "scheme": "published",
        "val_concepts": len(chosen),
        "dropped_concepts": len(shared),
        "dropped_images": int(dropped.sum()),
    }
    return table


def _count_of(val_concepts: float, available: int) -> int:
    """Turn a number or a share of concepts into a number; refuse what leaves a side empty."""
    share = 0 < val_concepts < 1
    if not share and (val_concepts < 1 or val_concepts != int(val_concepts)):
        raise SplitError(
            f"val_concepts = {val_concepts!r}: give a whole number of concepts from 1 on, or a share "
            "between 0 and 1. Without validation concepts the epoch would be chosen on the test"
        )
    count = max(1, round(val_concepts * available)) if share else int(val_concepts)
    if available - count < 2:
        raise SplitError(
            f"{count} validation concepts leave {max(0, available - count)} of {available} for "
            "training: take fewer (val_concepts)"
        )
    return count


def leave_one_subject_out(trials: pd.DataFrame, subject: str) -> pd.DataFrame:
    """Choose trials so that everything about the test is new: the person, the pictures, the concepts.

    `test` are the left-out subject's trials of test images; `train` and `val` are the *other*
    subjects' trials of training and validation images. What is left (the left-out subject's
    training trials, the others' test trials) is not in the table. A subject-specific layer or
    whitener that needs the left-out subject's training trials is no longer leaving the subject out.

    Parameters
    ----------
    trials : DataFrame with `subject`, `image_id`, `concept`, `split`
    subject : str, e.g. "sub-03"

    Returns
    -------
    DataFrame, the chosen rows of `trials`. Their index is kept: where `trials` was numbered from 0,
    it says which rows of the EEG these are.

    Raises
    ------
    SplitError
        No such subject, no other one, no test trial of the subject, no training trial of the
        others, or a split that leaks.
    """
    if "subject" not in trials:
        raise SplitError(f"the trials have no column subject; there is {', '.join(trials)}")
    subjects = sorted(trials["subject"].unique())
    if subject not in subjects:
        raise SplitError(f"no trial of {subject!r}; there is {', '.join(subjects)}")
    if len(subjects) < 2:
        raise SplitError(f"{subject} is the only subject: nobody is left to train on")
    own, is_test = trials["subject"] == subject, trials["split"] == "test"
    table = trials[own == is_test]
    for rows, what in ((own & is_test, f"{subject} has no test trial"),
                       (~own & (trials["split"] == "train"), "the others have no training trial")):  # fmt: skip
        if not rows.any():
            raise SplitError(f"leaving {subject} out: {what}. See the column split of the trials")
    assert_split_integrity(table)
    assert_subjects_disjoint(table)
    return table


def assert_subjects_disjoint(trials: pd.DataFrame) -> None:
    """Refuse a table in which a subject of the test is also trained or validated on.

    Parameters
    ----------
    trials : DataFrame with `subject` and `split`

    Raises
    ------
    SplitError
        Names the subject and counts its trials on both sides.
    """
    is_test = trials["split"] == "test"
    shared = sorted(set(trials["subject"][is_test]) & set(trials["subject"][~is_test]))
    if shared:
        own = trials["subject"] == shared[0]
        raise SplitError(
            f"{len(shared)} test subjects are also trained on: {shared[0]!r} has "
            f"{int((own & is_test).sum())} trials in test and {int((own & ~is_test).sum())} in "
            "train or val. leave_one_subject_out chooses the trials for one subject"
        )


def assert_split_integrity(trials: pd.DataFrame) -> None:
    """Refuse a table in which something of the test is known to training.

    Parameters
    ----------
    trials : DataFrame with `image_id`, `concept`, `split`; trials or images

    Raises
    ------
    SplitError
        Missing column or value, unknown split, an image in two splits or of two concepts, a test
        concept that is also in train or val.
    """
    missing = [c for c in REQUIRED if c not in trials]
    if missing:
        raise SplitError(
            f"the table has no column {', '.join(missing)}; it has {', '.join(trials)}"
        )
    for column in REQUIRED:
        empty = trials[column].isna() | (trials[column].astype(str) == "")
        if empty.any():
            raise SplitError(
                f"{int(empty.sum())} rows have no {column} (first: row "
                f"{int(np.flatnonzero(empty)[0])}). Is every image of the events in split.tsv?"
            )
    unknown = sorted(set(trials["split"]) - set(SPLITS))
    if unknown:
        raise SplitError(f"unknown split {unknown[0]!r}: {', '.join(SPLITS)} are known")
    pairs = trials[list(REQUIRED)].drop_duplicates()
    for column in ("split", "concept"):
        values = pairs.groupby("image_id")[column].agg(lambda x: sorted(set(x)))
        several = values[values.map(len) > 1]
        if len(several):
            raise SplitError(
                f"{len(several)} images have more than one {column}: {several.index[0]!r} is in "
                f"{' and '.join(several.iloc[0])}. Repetitions of an image belong together"
            )
    test = set(pairs["concept"][pairs["split"] == "test"])
    shared = sorted(test & set(pairs["concept"][pairs["split"] != "test"]))
    if shared:
        rows = pairs[(pairs["concept"] == shared[0]) & (pairs["split"] != "test")]
        raise SplitError(
            f"{len(shared)} test concepts are also trained on: {shared[0]!r} is in test and in "
            f"{rows['split'].iloc[0]} (image {rows['image_id'].iloc[0]!r}). Split by concept"
        )


_COUNTED = ("sha256", "images", "concepts")  # what the JSON file says by itself


def write_split(
    path: Path,
    table: pd.DataFrame,
    overwrite: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Freeze a split: the table as TSV; its digest, counts and facts in a JSON file beside it.

    Parameters
    ----------
    path : Path, e.g. `split.tsv`
    table : DataFrame with `image_id`, `concept`, `split` and any further columns, one row per image
    overwrite : bool, replace a frozen split that differs
    facts : mapping of what JSON can hold, how the split came about: `scheme`, `seed`, `subjects`,
        `left_out`. Left out, the facts of the same split, frozen earlier, stay.

    Returns
    -------
    Path, `path`

    Raises
    ------
    SplitError
        When the split leaks, an image is listed twice, or another split (or the same one with
        other facts) was frozen there.
    """
    path = Path(path)
    assert_split_integrity(table)
    facts = None if facts is None else json.loads(json.dumps(dict(facts)))
    reserved = sorted(set(facts or {}) & set(_COUNTED))
    if reserved:
        raise SplitError(f"the fact {reserved[0]!r} is counted from the table: use another name")
    double = table["image_id"][table["image_id"].duplicated()]
    if len(double):
        raise SplitError(
            f"image {double.iloc[0]!r} is listed twice in the split: one row per image"
        )
    with atomic_file(path) as part:
        table.to_csv(part, sep="\t", index=False, na_rep="n/a", lineterminator="\n")
        digest = digest_file(part)
        if path.is_file() and not overwrite and digest_file(path) != digest:
            raise SplitError(
                f"{path} holds another split, which earlier results stand on. Read that one "
                "(read_split), or remove it and everything derived from it"
            )
        if facts is None or not overwrite:
            facts = _agreed_facts(path, digest, facts)
    by_split = {s: table[table["split"] == s] for s in SPLITS}
    counted = {
        "sha256": digest,
        "images": {s: len(rows) for s, rows in by_split.items()},
        "concepts": {s: int(rows["concept"].nunique()) for s, rows in by_split.items()},
    }
    with atomic_file(path.with_suffix(".json")) as part:
        part.write_text(json.dumps(counted | facts, indent=2) + "\n", encoding="utf-8")
    return path


def _agreed_facts(path: Path, digest: str, facts: dict | None) -> dict:
    """Return `facts`, or those frozen earlier with the same table; refuse when they differ."""
    known = read_facts(path) if path.with_suffix(".json").is_file() else {}
    if known.get("sha256") != digest:
        return facts or {}
    earlier = {k: v for k, v in known.items() if k not in _COUNTED}
    facts = earlier if facts is None else facts
    differ = sorted(k for k in earlier if earlier[k] != facts.get(k))
    if differ:
        raise SplitError(
            f"{path.with_suffix('.json')} says of the same split that {differ[0]} is "
            f"{earlier[differ[0]]!r}, not {facts.get(differ[0])!r}. Correct what is wrong, or "
            "freeze it anew on purpose (overwrite=True)"
        )
    return facts


def read_facts(path: Path) -> dict[str, Any]:
    """Return what was frozen with a split: digest, counts, and how it came about.

    Parameters
    ----------
    path : Path of the table, as for `read_split`, which checks the digest

    Raises
    ------
    SplitError
        When the JSON file beside it is missing or no JSON.
    """
    sidecar = Path(path).with_suffix(".json")
    if not sidecar.is_file():
        raise SplitError(f"{sidecar} is missing: run notebook 00_data, which freezes the split")
    return read_json(sidecar, remedy="Restore it, or freeze the split again", error=SplitError)


def read_split(path: Path) -> pd.DataFrame:
    """Read a frozen split and refuse it when it was edited or leaks.

    Raises
    ------
    SplitError
        A missing file, a table that does not have the digest it was frozen with, or a leak.
    """
    path = Path(path)
    sidecar = path.with_suffix(".json")
    if not path.is_file():
        raise SplitError(f"{path} is missing: run notebook 00_data, which freezes the split")
    if digest_file(path) != read_facts(path).get("sha256"):
        raise SplitError(
            f"{path} was changed after it was frozen (its digest is not the one in "
            f"{sidecar.name}). Restore it, or freeze the new split on purpose with "
            "write_split(..., overwrite=True)"
        )
    with reading(path, "a split", "Restore it, or freeze the split again", SplitError):
        table = pd.read_csv(
            path,
            sep="\t",
            dtype=dict.fromkeys(REQUIRED, str),
            na_values=["n/a"],
            keep_default_na=False,
        )
        assert_split_integrity(table)
    return table
