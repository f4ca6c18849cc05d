"""Data sets whose classes were shown in blocks: read them, show why they prove nothing, refuse.

perceivelab (Spampinato et al., CVPR 2017; 40 classes of ImageNet) and EEG-ImageNet (80 classes)
showed all pictures of a class in one go. Whatever drifts in a recording (electrode gels, sweat,
wakefulness, the amplifier) then differs between classes, and segments of training and of test come
from the same minute. A decoder that tells the time tells the class, without a brain in between.
`drift_baseline` is such a decoder; `tables` raises.

References
----------
Li, Johansen, Ahmed, Ilyevsky, Wilbur, Bharadwaj & Siskind (2021), IEEE TPAMI 43:316, "The Perils
and Pitfalls of Block Design for EEG Classification Experiments".
Kilgallen, Pearlmutter & Siskind (2024), arXiv:2406.16902 (the same exemplar in training and test).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import pandas as pd

from sgdm_utils.block_files import TITLES, Segments, read_segments, read_splits
from sgdm_utils.datasets import DatasetError
from sgdm_utils.recordings import EpochedSignal, StudyTables

__all__ = [
    "BlockDesignError", "DriftBaseline", "Segments", "block_overlap", "describe", "drift_baseline",
    "read_epochs", "read_segments", "read_splits", "tables",
]  # fmt: skip


class BlockDesignError(DatasetError):
    """These recordings cannot carry the claim that is asked of them."""


@dataclass(frozen=True)
class DriftBaseline:
    """What can be decoded without looking at any response to a picture.

    Attributes
    ----------
    accuracy : float, mean over blocks
    chance : float, one over the number of classes
    by_block : Series, accuracy in each block; blocks, not segments, are the independent draws
    leave_out : 'segments' or 'blocks'
    """

    accuracy: float
    chance: float
    by_block: pd.Series
    leave_out: str


def tables(
    root: Path,
    form: str,
    subjects: Sequence[str],
    sessions: Sequence[int] | None = None,
    n_channels: int | None = None,
) -> StudyTables:
    """Refuse: no split of these data tests what a decoder knows of a picture.

    Raises
    ------
    BlockDesignError
        Always, with the reason and with what may be done instead.
    """
    _refuse(form, Path(root))


def read_epochs(recording: Mapping[str, Any], root: Path) -> EpochedSignal:
    """Refuse, see `tables`; `read_segments` opens the files for a look.

    Raises
    ------
    BlockDesignError
    """
    _refuse("", Path(root))


def block_overlap(segments: Segments, split: Mapping[str, np.ndarray]) -> float:
    """Share of test segments that were recorded in a block of which training has seen a part.

    1 for every published split: that is the confound. 0 is what a test of blocks would need.
    """
    block = segments.table["block"].to_numpy()
    return float(np.isin(block[split["test"]], np.unique(block[split["train"]])).mean())


def describe(segments: Segments) -> pd.DataFrame:
    """Count segments, classes, images and blocks of every subject, and blocks of each class.

    Returns
    -------
    DataFrame indexed by `subject`
    """
    groups = segments.table.groupby("subject")
    described = groups.agg(
        segments=("label", "size"),
        usable=("usable", "sum"),
        classes=("label", "nunique"),
        images=("image", "nunique"),
        blocks=("block", "nunique"),
    )
    per_class = segments.table.groupby(["subject", "label"])["block"].nunique()
    return described.assign(fewest_blocks_of_a_class=per_class.groupby("subject").min())


def drift_baseline(
    segments: Segments,
    leave_out: Literal["segments", "blocks"],
    rng: np.random.Generator,
    subject: int | None = None,
    features: Literal["mean", "power"] = "mean",
    n_folds: int = 5,
    n_neighbors: int = 1,
) -> DriftBaseline:
    """Decode the class from what a response to a picture cannot be: the level of each channel.

    Each segment is reduced to one number a channel, its mean (or the logarithm of its standard
    deviation), in which no time course is left. A segment gets the class of the most similar segment
    in training. Levels drift, so the most similar one is a neighbour in time; in a block design
    neighbours in time are of one class.

    With `leave_out="segments"` random segments of every block are held out, as the published splits
    do. With `leave_out="blocks"` fold j holds out the j-th block of every class, so that training
    stays balanced and guessing is right once in the number of classes; it needs two blocks or more
    of every class, which the published sets do not have.

    Parameters
    ----------
    segments : Segments; rows in the order of recording where that is known
    leave_out : 'segments' or 'blocks'
    rng : numpy.random.Generator, draws the folds of segments
    subject : int, default the only one
    features : 'mean', or 'power' for files whose slow signal was filtered out (eeg_5_95_std). That a
        filtered file gives nothing away in the mean does not acquit it
    n_folds : int, folds of segments
    n_neighbors : int

    Returns
    -------
    DriftBaseline

    Raises
    ------
    BlockDesignError
        `leave_out="blocks"` where a class has one block only.
    DatasetError
        Fewer than two classes, an unknown subject, or several and none named.
    """
    table = segments.table
    people = sorted(table["subject"].unique())
    if subject is None and len(people) > 1:
        raise DatasetError(f"{len(people)} subjects; name one of {', '.join(map(str, people))}")
    chosen = np.flatnonzero(
        (table["subject"] == (people[0] if subject is None else subject)) & table["usable"]
    )
    table = table.iloc[chosen]
    if table["label"].nunique() < 2:
        raise DatasetError(
            f"{len(table)} usable segments of {table['label'].nunique()} class(es) of subject "
            f"{subject}; there are the subjects {', '.join(map(str, people))}"
        )
    mean, spread = np.stack([_level(segments, i) for i in chosen], axis=1)
    if features == "power":
        x = np.log(spread + 1e-30)
    elif features == "mean":
        x = mean
        # a mean that was taken out leaves rounding errors, which still tell the amplitude
        x[:, x.std(0) < 1e-6 * spread.mean(0)] = 0.0
    else:
        raise DatasetError(f"features={features!r}: 'mean' or 'power'")
    y, block = table["label"].to_numpy(), table["block"].to_numpy()
    fold = _folds(table, leave_out, rng, n_folds)
    right = np.zeros(len(y), bool)
    from sklearn.neighbors import KNeighborsClassifier  # not for the readers of other data sets
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for held_out in np.unique(fold):
        test = fold == held_out
        decoder = make_pipeline(StandardScaler(), KNeighborsClassifier(n_neighbors))
        right[test] = decoder.fit(x[~test], y[~test]).predict(x[test]) == y[test]
    by_block = pd.Series(right).groupby(block).mean()
    return DriftBaseline(float(by_block.mean()), 1 / len(set(y)), by_block, leave_out)


def _folds(
    table: pd.DataFrame, leave_out: str, rng: np.random.Generator, n_folds: int
) -> np.ndarray:
    if leave_out == "segments":  # spread over each block, in random order
        order = pd.Series(rng.permutation(len(table)), index=table.index)
        return (order.groupby(table["block"]).rank().astype(int) % n_folds).to_numpy()
    if leave_out != "blocks":
        raise DatasetError(f"leave_out={leave_out!r}: 'segments' or 'blocks'")
    blocks = table.drop_duplicates("block")
    number = blocks.groupby("label").cumcount().set_axis(blocks["block"])
    counts = blocks["label"].value_counts()
    if counts.min() < 2:
        raise BlockDesignError(
            f"class {counts.idxmin()!r} was shown in one block only. Without it there is nothing to "
            "train on, with a part of it the test is no test: in such data class and time cannot be "
            "told apart by any split"
        )
    if counts.min() != counts.max():
        raise BlockDesignError(
            f"class {counts.idxmin()!r} has {counts.min()} blocks, {counts.idxmax()!r} has "
            f"{counts.max()}: what guessing gets right is then not known. Take equally many of each"
        )
    return table["block"].map(number).to_numpy()


def _level(segments: Segments, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of one segment."""
    signal = np.asarray(segments.signals[i][:, slice(*segments.crop)], dtype=np.float64)
    return signal.mean(1), signal.std(1)


def _refuse(form: str, root: Path) -> NoReturn:
    raise BlockDesignError(
        f"{TITLES.get(form, 'This data set')} ({root}) is a block design: all pictures of a class were "
        "shown in one go, so that the class is the time, and training and test segments come from "
        "the same block. Accuracy on it measures slow drift of the recording and not the response to "
        "a picture (Li et al. 2021, IEEE TPAMI 43:316), and trials of one exemplar on both sides add "
        "to it (Kilgallen et al. 2024, arXiv:2406.16902). No split of it supports a result, so none "
        "is made. What may be done: look at it (block_designs.read_segments, describe), measure the "
        "confound (block_overlap, drift_baseline), or pretrain an encoder without labels. For a "
        "result take a data set with shuffled presentation: THINGS-EEG2, THINGS-EEG1, Alljoined-1.6M"
    )
