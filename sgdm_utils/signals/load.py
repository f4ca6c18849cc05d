"""What training notebooks share: trials of all subjects in one place, batches, schedules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from sgdm_utils.datasets import splits
from sgdm_utils.datasets.electrodes import electrode_positions
from sgdm_utils.errors import reading
from sgdm_utils.signals.files import Averages, TrialFile, TrialFiles
from sgdm_utils.signals.quality import repetition_groups
from sgdm_utils.workflow.artifacts import Artifact
from sgdm_utils.workflow.formats import read_json, read_npy, read_npz, read_parquet
from sgdm_utils.workflow.notebook import Run


@dataclass(frozen=True)
class TrialSet:
    """Preprocessed trials of several subjects with the same channels and samples.

    Attributes
    ----------
    eeg : array or TrialFiles of shape (n_trials, n_channels, n_times), float32
        A small set is in memory; a large one stays on the disk, where `eeg[rows]` reads the rows
        that are asked for and nothing else.
    table : DataFrame, one row per trial: `subject`, `subject_index`, `image_id`, `concept`, `split`, ...
    positions : float32 array of shape (n_channels, 3), unit vectors of the electrodes
    times : array of shape (n_times,), seconds
    sfreq : float, Hz
    artifacts : list of Artifact, one for each subject
    transductive : bool
        True when something that the trials went through was fitted on test trials (a whitener).
    """

    eeg: np.ndarray | TrialFiles
    table: pd.DataFrame
    positions: np.ndarray
    times: np.ndarray
    sfreq: float
    artifacts: list
    transductive: bool = False

    @property
    def subjects(self) -> list[str]:
        """Subjects in the order of `subject_index`."""
        pairs = self.table[["subject", "subject_index"]].drop_duplicates()
        return pairs.sort_values("subject_index")["subject"].tolist()

    def averages(
        self, split: str, max_repetitions: int | None = None
    ) -> tuple[Averages, pd.DataFrame]:
        """One averaged epoch for each picture and subject of a split.

        Returns
        -------
        eeg : Averages of shape (n_subjects * n_images, n_channels, n_times), float32
            Averaged when asked for: `eeg[rows]`, or `eeg[:]` where all of them fit into memory.
        table : DataFrame with `subject`, `subject_index`, `image_id`, `concept`, `n_averaged`
        """
        rows = np.flatnonzero(self.table["split"] == split)
        if not len(rows):
            raise ValueError(f"no trial in split {split!r}")
        groups, table = repetition_groups(self.table, rows, max_repetitions)
        index = {s: i for i, s in enumerate(self.subjects)}
        return Averages(self.eeg, groups), table.assign(subject_index=table["subject"].map(index))


class Unwhitened:
    """Trials as they were before whitening, computed when rows are asked for.

    Parameters
    ----------
    eeg : array or trial file of shape (n_trials, n_channels, n_times)
    left, right : arrays, see `unwhitening`
    """

    def __init__(self, eeg: np.ndarray | TrialFiles, left: np.ndarray, right: np.ndarray) -> None:
        self.eeg, self.left, self.right = eeg, left, right
        self.shape = tuple(eeg.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        """float32 epochs of some rows, in the unit of the recording."""
        epochs = np.asarray(self.eeg[rows], np.float64)
        return (self.left @ epochs @ self.right).astype(np.float32)


def unwhitening(artifact: Artifact) -> tuple[np.ndarray, np.ndarray]:
    """Matrices that bring the trials of notebook 01 back to the unit of the recording.

    Parameters
    ----------
    artifact : `preprocessing` of one person

    Returns
    -------
    left : float64 array of shape (n_channels, n_channels)
    right : float64 array of shape (n_times, n_times)
        ``left @ epoch @ right`` is the epoch before whitening, up to rounding. Both are identities
        where nothing was whitened, and where each session had a whitener of its own: such trials
        are alike as they are, and would not be in microvolts.
    """
    path = artifact / "whiteners.npz"
    with reading(path, "whiteners", "Run 01_preprocessing again"):
        file = read_npz(path, ["channels", "times"])
        left, right = file["channels"], file["times"]
        if len(left) > 1:
            return np.eye(left.shape[1]), np.eye(right.shape[1])
        return np.linalg.inv(left[0]), np.linalg.inv(right[0])


def load_trials(run: Run, subjects: Sequence[str], memory_bytes: int = 1 << 30) -> TrialSet:
    """Read the `preprocessing` artifacts of several subjects, asserting that they fit together.

    Parameters
    ----------
    run : Run of the notebook; the artifacts become inputs of what it writes
    subjects : sequence of str
    memory_bytes : int, trials that take more than this together are left on the disk

    Raises
    ------
    ValueError
        If channels or samples differ between subjects.
    sgdm_utils.datasets.splits.SplitError
        If the split leaks.
    """
    eeg, tables, artifacts, first = [], [], [], None
    for i, subject in enumerate(subjects):
        artifact = run.read("preprocessing", subject)
        montage = read_json(artifact / "montage.json")
        with reading(artifact / "montage.json", "a montage", "Run 01_preprocessing again"):
            key = (list(montage["positions_m"]), float(montage["sfreq"]), float(montage["tmin"]))
            np.array(list(montage["positions_m"].values()), float).reshape(-1, 3)
        first = first or (subject, key)
        if key != first[1]:
            names = ("channels", "sampling rate", "start of the epoch")
            odd = [n for n, a, b in zip(names, key, first[1], strict=True) if a != b]
            if sorted(key[0]) == sorted(first[1][0]):
                odd = [n.replace("channels", "order of channels") for n in odd]
            raise ValueError(
                f"{subject} and {first[0]} differ in {', '.join(odd)}: run 01_preprocessing on one "
                "result of 00_data with the same parameters for both"
            )
        eeg.append(TrialFile(artifact / "eeg.npy"))
        table = read_parquet(artifact / "trials.parquet").assign(subject_index=i)
        tables.append(table)
        artifacts.append(artifact)
    table = pd.concat(tables, ignore_index=True)
    splits.assert_split_integrity(table)
    files = TrialFiles(eeg)
    chs = [{"ch_name": n, "loc": np.array(p)} for n, p in montage["positions_m"].items()]
    return TrialSet(
        eeg=files[:] if 4 * math.prod(files.shape) <= memory_bytes else files,
        table=table,
        positions=electrode_positions(chs),
        times=read_npy(artifacts[0] / "times.npy"),
        sfreq=montage["sfreq"],
        artifacts=artifacts,
        transductive=any(artifact.notes["transductive"] for artifact in artifacts),
    )


class AveragingSampler:
    """Batches of (subject, image) pairs whose repetitions are averaged in random number.

    An epoch visits every pair once. For each visit, a random number of the pair's repetitions is
    averaged: single trials teach noise, averages teach the answer, and the test set holds averages.

    Parameters
    ----------
    trials : TrialSet
    split : str
    batch_size : int
    rng : numpy.random.Generator
    """

    def __init__(
        self, trials: TrialSet, split: str, batch_size: int, rng: np.random.Generator
    ) -> None:
        rows = trials.table[trials.table["split"] == split]
        grouped = rows.groupby(["subject_index", "image_id"], sort=True)
        self.members = [g.to_numpy() for g in grouped.groups.values()]
        keys = list(grouped.groups)
        self.subject = np.array([k[0] for k in keys])
        self.image_id = np.array([k[1] for k in keys])
        self.trials, self.batch_size, self.rng = trials, batch_size, rng

    def __len__(self) -> int:
        return math.ceil(len(self.members) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, np.ndarray]]:
        """Yields (eeg (batch, n_channels, n_times), subject (batch,), image ids (batch,))."""
        order = self.rng.permutation(len(self.members))
        for start in range(0, len(order), self.batch_size):
            pairs = order[start : start + self.batch_size]
            batch = np.empty((len(pairs), *self.trials.eeg.shape[1:]), np.float32)
            for i, pair in enumerate(pairs):
                members = self.members[pair]
                k = self.rng.integers(1, len(members) + 1)
                batch[i] = self.trials.eeg[self.rng.permutation(members)[:k]].mean(0)
            yield (
                torch.from_numpy(batch),
                torch.from_numpy(self.subject[pairs]),
                self.image_id[pairs],
            )
