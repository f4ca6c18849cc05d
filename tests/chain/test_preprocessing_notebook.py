"""Notebook 01 on a small recording: noise in full, and electrodes that are bad in one run only."""

from __future__ import annotations

import numpy as np
import pandas as pd
import papermill
import pytest

from sgdm_utils import signals
from sgdm_utils.workflow import artifacts, paths

SMALL = {
    "subjects": ["sub-01"], "n_train_shown": 60, "n_train_unshown": 4, "n_val": 8, "n_test": 6,
    "train_repetitions": 4, "val_repetitions": 8, "test_repetitions": 4, "sfreq_hz": 125.0,
}  # fmt: skip
QUICK = {"subject": "sub-01", "use_ica": False, "bad_threshold": 0.0}


def execute(name, folder, **parameters):
    papermill.execute_notebook(
        paths.notebook_path(name), folder / f"{name}.ipynb", {"study": "small"} | parameters,
        kernel_name="python3", cwd=str(folder), progress_bar=False,
    )  # fmt: skip


def preprocess(folder, **parameters):
    execute("01_preprocessing", folder, **QUICK | parameters)
    return artifacts.read_artifact("small", "sub-01", "preprocessing")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recording in which run 1 of the first session has `Cz` marked bad."""
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGDM_DATA", str(folder / "data"))
        patch.setenv("SGDM_REPORTS", str(folder / "reports"))
        execute("00_data", folder, **SMALL)
        (first,) = folder.glob("data/raw/*/sub-01/ses-01/eeg/*run-01*channels.tsv")
        channels = pd.read_csv(first, sep="\t", keep_default_na=False)
        channels.loc[channels["name"] == "Cz", "status"] = "bad"
        channels.to_csv(first, sep="\t", index=False)
        yield folder


def test_an_electrode_that_is_bad_in_one_run_is_bad_in_its_session(folder):
    artifact = preprocess(folder)
    left, right = signals.unwhitening(artifact)  # over channels only, the default
    assert np.array_equal(right, np.eye(len(right))) and not np.allclose(left, np.eye(len(left)))
    quality = pd.read_csv(artifact / "quality.csv", dtype=str, keep_default_na=False)
    by_session = quality.groupby("session")["bad_channels"].agg(list)
    assert by_session.iloc[0] == ["Cz", "Cz"] and by_session.iloc[1] == ["", ""]
    assert quality["bad_in_this_run"].tolist() == ["Cz", "", "", ""]


def test_noise_in_full_is_white_on_both_axes_and_can_be_undone(folder):
    plain = preprocess(folder, mvnn="none")
    recorded = np.load(plain / "eeg.npy")
    assert all(np.array_equal(m, np.eye(len(m))) for m in signals.unwhitening(plain))
    full = preprocess(folder, mvnn="full")
    white = np.load(full / "eeg.npy")
    back = signals.Unwhitened(white, *signals.unwhitening(full))
    assert back.shape == white.shape and len(back) == len(white)
    assert np.abs(back[:50] - recorded[:50]).max() < 1e-3 * np.abs(recorded).max()
    trials = pd.read_parquet(full / "trials.parquet")
    noise = []
    for rows in trials[trials["split"] == "val"].groupby("image_id").indices.values():
        part = white[np.flatnonzero(trials["split"] == "val")[rows]]
        noise.append((part - part.mean(0)) * np.sqrt(len(part) / (len(part) - 1)))
    noise = np.concatenate(noise)  # held out: the fit saw training trials
    for samples in (
        noise.swapaxes(0, 1).reshape(noise.shape[1], -1),
        noise.reshape(-1, noise.shape[2]).T,
    ):
        correlation = np.abs(np.corrcoef(samples))
        off = (correlation.sum() - len(correlation)) / (correlation.size - len(correlation))
        assert off < 0.12


def test_noise_in_full_is_fitted_on_training_trials_only(folder):
    with pytest.raises(papermill.PapermillExecutionError, match="'train', or 'all' where mvnn"):
        preprocess(folder, mvnn="full", mvnn_fit="all")
