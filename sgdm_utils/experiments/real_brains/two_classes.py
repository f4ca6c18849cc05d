"""Houses and faces from four dry electrodes: the Muse recording through 00 and 01, and its scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from sgdm_utils.datasets import muse
from sgdm_utils.experiments.real_brains.files import RealBrainError
from sgdm_utils.workflow import artifacts, config, paths, run
from sgdm_utils.workflow.artifacts import Artifact

RAW_NAME = "muse_n170"


@dataclass(frozen=True)
class MuseTrials:
    """Epochs of the Muse recording as notebook 01 left them.

    Attributes
    ----------
    eeg : float32 array of shape (n_trials, 4, n_times), microvolts
    times : array of shape (n_times,), seconds from onset
    face : bool array of shape (n_trials,)
    run : array of shape (n_trials,), the run of each trial
    artifacts : results of 00 and 01 that were read
    """

    eeg: np.ndarray
    times: np.ndarray
    face: np.ndarray
    run: np.ndarray
    artifacts: tuple[Artifact, ...]


def prepare_muse(csv_folder: Path, study: str = "my_bids") -> MuseTrials:
    """Convert the recording, run notebooks 00 and 01 of its study where they have not run, open it.

    Parameters
    ----------
    csv_folder : Path, the published CSV files
    study : str, a study in ``config/`` whose `raw_name` is the converted recording

    Raises
    ------
    RealBrainError
        The study reads another recording, or its results are not of houses and faces.
    """
    settings = config.load_study(study)
    name = settings.notebooks.get("00_data", {}).get("raw_name")
    if name != RAW_NAME:
        raise RealBrainError(
            f"config/{study}.yaml reads {name!r}, not {RAW_NAME!r}: name a study of the Muse recording "
            "(muse_study), a copy of my_bids.yaml as it is published"
        )
    if not (paths.raw_dir(RAW_NAME) / "dataset_description.json").is_file():
        muse.convert(csv_folder, paths.raw_dir(RAW_NAME))
    (subject,) = settings.subjects
    opened = []
    for stage, person in (("data", None), ("preprocessing", subject)):
        try:
            found = artifacts.read_artifact(study, person or paths.JOINT, stage)
        except artifacts.ArtifactError:  # missing, or made from something else
            step = config.step(settings, paths.STAGES[stage].notebook, person)
            run.execute(settings, step)
            found = artifacts.read_artifact(study, person or paths.JOINT, stage)
        opened.append(found)
    trials = pd.read_parquet(opened[1] / "trials.parquet")
    concepts = set(trials["concept"])
    if concepts != {"face", "house"}:
        raise RealBrainError(
            f"the trials of study {study!r} show {sorted(concepts)}, expected face and house: name "
            "another study (muse_study)"
        )
    eeg = np.load(opened[1] / "eeg.npy")
    parameters = opened[1].parameters
    times = parameters["tmin"] + np.arange(eeg.shape[2]) / parameters["resample_hz"]
    face = (trials["concept"] == "face").to_numpy()
    return MuseTrials(eeg, times, face, trials["run"].to_numpy(), tuple(opened))


def bin_means(
    eeg: np.ndarray, times: np.ndarray, start: float, stop: float, width: float = 0.05
) -> np.ndarray:
    """Mean of every channel in bins of `width` seconds, (n_trials, n_bins * n_channels)."""
    edges = np.arange(start, stop - 1e-6, width)
    bins = [(times >= a - 1e-9) & (times < a + width - 1e-9) for a in edges]
    if not all(b.any() for b in bins):
        raise ValueError(f"no sample in part of {start} to {stop} s: the epochs are {times[0]:.3g} to "
                         f"{times[-1]:.3g} s")  # fmt: skip
    return np.concatenate([eeg[:, :, b].mean(-1) for b in bins], axis=1)


def auc_over_runs(scores: np.ndarray, positive: np.ndarray, runs: Sequence) -> np.ndarray:
    """Area under the ROC curve of each run, ties counted half, in the order of the runs."""
    scores, positive, runs = np.asarray(scores, float), np.asarray(positive, bool), np.asarray(runs)
    values = []
    for one in np.unique(runs):
        rows = runs == one
        ranks, chosen = rankdata(scores[rows]), positive[rows]
        n, rest = chosen.sum(), (~chosen).sum()
        if not n or not rest:
            raise ValueError(f"run {one} shows one class only: leave it out")
        values.append((ranks[chosen].sum() - n * (n + 1) / 2) / (n * rest))
    return np.array(values)


def within_run_null(
    scores: np.ndarray,
    positive: np.ndarray,
    runs: Sequence,
    rng: np.random.Generator,
    n_draws: int = 2000,
) -> tuple[float, np.ndarray]:
    """Could the mean AUC come from scores that know nothing of the class?

    The scores of a run come from a decoder that has not seen it, so exchanging the classes of its
    trials leaves everything else as it is.

    Returns
    -------
    p_value : float, one-sided, (hits + 1) / (n_draws + 1)
    null : array of shape (n_draws,), mean AUC over runs
    """
    positive, runs = np.asarray(positive, bool), np.asarray(runs)
    observed = auc_over_runs(scores, positive, runs).mean()
    ranks = np.empty(len(runs))
    for one in np.unique(runs):
        ranks[runs == one] = rankdata(np.asarray(scores, float)[runs == one])
    null = np.zeros(n_draws)
    for one in np.unique(runs):
        rows = runs == one
        n, rest = positive[rows].sum(), (~positive[rows]).sum()
        drawn = rng.permuted(np.tile(ranks[rows], (n_draws, 1)), axis=1)[:, :n].sum(1)
        null += (drawn - n * (n + 1) / 2) / (n * rest)
    null /= len(np.unique(runs))
    hits = int((null >= observed - 1e-12).sum())
    return (hits + 1) / (n_draws + 1), null
