"""A real recording through the front door: Muse CSV -> BIDS -> notebooks 00 and 01 -> decoding.

The recording lies beside the checkout and is not part of it; without it, the tests that need it
skip. Those on planted faults write their own CSV files.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from sgdm_utils.datasets import bids, muse
from sgdm_utils.errors import ChannelError, DatasetError
from sgdm_utils.workflow import artifacts, paths

SOURCE = paths.project_root().parent / "shared" / "data" / "muse_n170"
needs_recording = pytest.mark.skipif(
    not SOURCE.is_dir(), reason="the Muse recording is not beside the checkout (shared/data)"
)
MAPPING = bids.EventMapping(stimulus_column="", label_column="trial_type")


# ------------------------------------------------------------------ the real recording


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """A data folder with the recording as BIDS, converted by the command that the docs give."""
    folder = tmp_path_factory.mktemp("muse")
    done = command(folder, "sgdm_utils", "convert-muse", str(SOURCE), "muse_n170")
    assert done.returncode == 0, done.stderr
    assert "run 6: data_2017-09-13-15.45.08.csv, 120.0 s, 199 events" in done.stdout
    return folder


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "SGDM_DATA": str(folder / "data"),
        "SGDM_REPORTS": str(folder / "reports"),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=paths.project_root(), env=environment, capture_output=True, text=True,
    )  # fmt: skip


@needs_recording
def test_the_conversion_loses_nothing(data_dir):
    root = data_dir / "data" / "raw" / "muse_n170"
    recordings, table = bids.read_study(root, MAPPING, task="n170")
    files = sorted(SOURCE.glob("*.csv"))
    assert len(recordings) == len(files) == 6
    for (_, recording), file in zip(recordings.iterrows(), files, strict=True):
        csv = pd.read_csv(file)
        raw = bids.read_recording(recording, root)
        assert raw.ch_names == ["TP9", "AF7", "AF8", "TP10"]
        assert raw.info["sfreq"] == 256 and raw.n_times == len(csv)
        expected = csv[raw.ch_names].to_numpy().T
        np.testing.assert_allclose(raw.get_data() * 1e6, expected, rtol=1e-6, atol=1e-3)
        run = table[table["run"] == recording["run"]]
        at = np.flatnonzero(csv["Marker0"])
        assert run["sample"].tolist() == at.tolist()
        names = csv["Marker0"].iloc[at].map({1: "house", 2: "face"})
        assert run["concept"].tolist() == names.tolist()
    assert len(table) == 1174


@needs_recording
def test_electrodes_are_where_the_headband_has_them(data_dir):
    root = data_dir / "data" / "raw" / "muse_n170"
    raw = bids.read_recording(bids.find_recordings(root).iloc[0], root, preload=False)
    place = {c["ch_name"]: c["loc"][:3] for c in raw.info["chs"]}  # x right, y nose, z up, metres
    for left, right in (("TP9", "TP10"), ("AF7", "AF8")):
        assert place[left][0] < -0.02 and place[right][0] > 0.02
        # the two sides mirror each other
        np.testing.assert_allclose(place[left] * [-1, 1, 1], place[right], atol=0.01)
    assert place["AF7"][1] > 0.05 and place["TP9"][1] < -0.01


@needs_recording
def test_a_session_is_converted_once_only(data_dir):
    root = data_dir / "data" / "raw" / "muse_n170"
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    again = command(data_dir, "sgdm_utils", "convert-muse", str(SOURCE), "muse_n170")
    assert again.returncode == 1 and "already has session 01 of subject 01" in again.stderr
    other = command(
        data_dir, "sgdm_utils", "convert-muse", str(SOURCE), "muse_n170", "--session", "02"
    )
    assert other.returncode == 1 and "has the same content as sub-01_ses-01" in other.stderr
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def bin_means(eeg: np.ndarray, time_s: np.ndarray, start: float, stop: float) -> np.ndarray:
    """Mean of every channel in 50 ms bins: (n_trials, n_bins * n_channels)."""
    edges = np.arange(start, stop - 1e-6, 0.05)
    bins = [(time_s >= a - 1e-9) & (time_s < a + 0.05 - 1e-9) for a in edges]
    return np.concatenate([eeg[:, :, b].mean(-1) for b in bins], axis=1)


def leave_one_run_out_auc(features: np.ndarray, face: np.ndarray, run: np.ndarray) -> float:
    """Mean over runs of the AUC of shrinkage LDA trained on all other runs."""
    values = []
    for left_out in np.unique(run):
        test = run == left_out
        lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        lda.fit(features[~test], face[~test])
        values.append(roc_auc_score(face[test], lda.decision_function(features[test])))
    return float(np.mean(values))


@needs_recording
@pytest.mark.timeout(300)
def test_faces_and_houses_differ_after_the_stimulus_and_not_before(data_dir, monkeypatch):
    for notebook in (["00_data"], ["01_preprocessing", "--subject", "sub-01"]):
        done = command(data_dir, "sgdm_utils", "run", *notebook, "--study", "my_bids")
        assert done.returncode == 0, done.stderr
    monkeypatch.setenv("SGDM_DATA", str(data_dir / "data"))
    artifact = artifacts.read_artifact("my_bids", "sub-01", "preprocessing")
    eeg = np.load(artifact / "eeg.npy")
    trials = pd.read_parquet(artifact / "trials.parquet")
    parameters = artifact.parameters
    assert parameters["filter_phase"] == "minimum", "only a causal filter keeps the control honest"
    assert len(eeg) == len(trials) and eeg.dtype == np.float32 and eeg.shape[1] == 4
    assert 1000 < len(trials) < 1174, "most epochs are kept, those with blinks are not"

    time_s = parameters["tmin"] + np.arange(eeg.shape[2]) / parameters["resample_hz"]
    assert time_s[-1] > 0.78
    face, run = (trials["concept"] == "face").to_numpy(), trials["run"].to_numpy()
    after, before = bin_means(eeg, time_s, 0.0, 0.8), bin_means(eeg, time_s, -0.2, 0.0)
    assert leave_one_run_out_auc(after, face, run) >= 0.60
    assert 0.45 <= leave_one_run_out_auc(before, face, run) <= 0.55

    # the decoder itself finds nothing where there is nothing: labels shuffled within each run
    rng = np.random.default_rng(0)
    chance = []
    for _ in range(5):
        shuffled = face.copy()
        for r in np.unique(run):
            shuffled[run == r] = rng.permutation(shuffled[run == r])
        chance.append(leave_one_run_out_auc(after, shuffled, run))
    assert 0.45 <= np.mean(chance) <= 0.55


# ---------------------------------------------------------------------- planted faults


def table_of(seconds: float = 4.0, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    n = int(seconds * 256)
    table = pd.DataFrame({"timestamps": 1000 + np.arange(n) / 256})
    for name in ("TP9", "AF7", "AF8", "TP10", "Right AUX"):
        table[name] = rng.normal(0, 10, n).round(3)
    table["Marker0"] = 0
    table.loc[[256, 512, 768], "Marker0"] = [1, 2, 1]
    return table


def convert(tmp_path: Path, table: pd.DataFrame, **options) -> Path:
    (tmp_path / "csv").mkdir(exist_ok=True)
    table.to_csv(tmp_path / "csv" / "run.csv", index=False)
    muse.convert(tmp_path / "csv", tmp_path / "bids", **options)
    return tmp_path / "bids"


def lose_packet(table):
    table.loc[500:, "timestamps"] += 12 / 256


def rename_channel(table):
    table["Fp1"] = table.pop("AF7")


def flatten(table):
    table["TP10"] = 0.0


def break_channel(table):
    table.loc[40:49, "AF8"] = np.nan


def other_rate(table):
    table["timestamps"] = 1000 + np.arange(len(table)) / 220


def no_marker(table):
    table["Marker0"] = 0


def unnamed_marker(table):
    table.loc[512, "Marker0"] = 7


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lose_packet, DatasetError, r"gap of 51 ms after sample 499 \(line 501\)"),
        (rename_channel, DatasetError, r"no column AF7; there is .*Fp1"),
        (flatten, ChannelError, r"run\.csv.*TP10"),
        (break_channel, ChannelError, r"'AF8' holds 10 samples"),
        (other_rate, DatasetError, r"220\.00 samples per second"),
        (no_marker, DatasetError, r"Marker0 holds no marker"),
        (unnamed_marker, DatasetError, r"marker 7 has no name \(line 514\)"),
    ],
)
def test_a_faulty_file_is_named_and_nothing_is_written(tmp_path, spoil, error, message):
    table = table_of()
    spoil(table)
    with pytest.raises(error, match=message):
        convert(tmp_path, table)
    assert not (tmp_path / "bids").exists()


def test_sessions_with_the_same_file_names_lie_side_by_side(tmp_path):
    root = convert(tmp_path, table_of(seed=1), session="01")
    with pytest.raises(DatasetError, match="already has session 01"):
        convert(tmp_path, table_of(seed=2), session="01")
    with pytest.raises(DatasetError, match="has the same content as sub-01_ses-01"):
        convert(tmp_path, table_of(seed=1), session="02")
    convert(tmp_path, table_of(seed=2), session="02")
    recordings, table = bids.read_study(root, MAPPING)
    assert recordings["session"].tolist() == ["01", "02"]
    assert table["concept"].tolist() == ["house", "face", "house"] * 2


def test_numbers_of_one_experiment_say_nothing_of_another(tmp_path):
    """1 and 2 are house and face in the N170 recordings only."""
    with pytest.raises(DatasetError, match=r"markers 1, 2 mean in the task 'p300'") as refused:
        convert(tmp_path, table_of(), task="p300")
    assert not (tmp_path / "bids").exists()
    asked = str(refused.value).partition("--events ")[2].split()
    named = dict(muse._event(f"{name}{text.removeprefix('NAME')}") for name, text in
                 zip(("standard", "target"), asked, strict=True))  # fmt: skip
    root = convert(tmp_path, table_of(), task="p300", events=named)
    _, shown = bids.read_study(root, MAPPING)
    assert set(shown["concept"]) == {"standard", "target"}


def test_jitter_of_the_transport_is_reported_not_refused(tmp_path):
    table = table_of()
    table.loc[256:259, "timestamps"] -= 0.015
    timing = muse.check_timing(table["timestamps"].to_numpy(), "run.csv")
    assert timing["largest_back_step"] == pytest.approx(0.015 - 1 / 256)
    assert timing["largest_step"] == pytest.approx(0.015 + 1 / 256)
    assert timing["rate_hz"] == pytest.approx(256)
    convert(tmp_path, table)
