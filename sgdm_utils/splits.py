"""Who is in which split: decided once, frozen with a digest, asserted wherever it is read.

A picture or a concept that is in training and in test makes every later number worthless, and it is
the easiest mistake to make with repeated pictures. So the split belongs to the *images*, not to the
trials.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from sgdm_utils.atomic import atomic_file, digest_file
from sgdm_utils.datasets import DatasetError

SPLITS = ("train", "val", "test")
REQUIRED = ("image_id", "concept", "split")
MIN_CONCEPTS = 10  # with fewer, a test on left-out concepts would stand on one or two of them


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


def write_split(path: Path, table: pd.DataFrame, overwrite: bool = False) -> Path:
    """Freeze a split: the table as TSV, its digest in a JSON file beside it.

    Parameters
    ----------
    path : Path, e.g. `split.tsv`
    table : DataFrame with `image_id`, `concept`, `split` and any further columns, one row per image
    overwrite : bool, replace a frozen split that differs

    Returns
    -------
    Path, `path`

    Raises
    ------
    SplitError
        When the split leaks, an image is listed twice, or another split was frozen there.
    """
    path = Path(path)
    assert_split_integrity(table)
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
    counts = {s: int((table["split"] == s).sum()) for s in SPLITS}
    with atomic_file(path.with_suffix(".json")) as part:
        part.write_text(
            json.dumps({"sha256": digest, "images": counts}, indent=2) + "\n", encoding="utf-8"
        )
    return path


def read_split(path: Path) -> pd.DataFrame:
    """Read a frozen split and refuse it when it was edited or leaks.

    Raises
    ------
    SplitError
        A missing file, a table that does not have the digest it was frozen with, or a leak.
    """
    path = Path(path)
    sidecar = path.with_suffix(".json")
    for file in (path, sidecar):
        if not file.is_file():
            raise SplitError(f"{file} is missing: run notebook 00_data, which freezes the split")
    frozen = json.loads(sidecar.read_text(encoding="utf-8")).get("sha256")
    if digest_file(path) != frozen:
        raise SplitError(
            f"{path} was changed after it was frozen (its digest is not the one in "
            f"{sidecar.name}). Restore it, or freeze the new split on purpose with "
            "write_split(..., overwrite=True)"
        )
    table = pd.read_csv(
        path, sep="\t", dtype=dict.fromkeys(REQUIRED, str), na_values=["n/a"], keep_default_na=False
    )
    assert_split_integrity(table)
    return table
