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

from sgdm_utils.datasets import bids, bids_recordings, muse, muse_csv
from sgdm_utils.datasets.muse_csv import ELECTRODES
from sgdm_utils.datasets.pauses import bad_stretches
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
        raw = bids_recordings.read_recording(recording, root)
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
    raw = bids_recordings.read_recording(
        bids_recordings.find_recordings(root).iloc[0], root, preload=False
    )
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


def lose(table: pd.DataFrame, *gaps: tuple[int, int]) -> pd.DataFrame:
    """Take rows out as a Bluetooth connection does: (first, number)."""
    lost = np.concatenate([np.arange(start, start + n) for start, n in gaps])
    return table.drop(index=lost).reset_index(drop=True)


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


def two_recordings(table):
    table.loc[512:, "timestamps"] -= 0.3


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (rename_channel, DatasetError, r"no column AF7; there is .*Fp1"),
        (flatten, ChannelError, r"run\.csv.*TP10"),
        (break_channel, ChannelError, r"'AF8' holds 10 samples"),
        (other_rate, DatasetError, r"220\.00 samples per second"),
        (no_marker, DatasetError, r"Marker0 holds no marker"),
        (unnamed_marker, DatasetError, r"marker 7 has no name \(first at 2\.00 s\)"),
        (two_recordings, DatasetError, r"at line 514 the time stamps go back by 300 ms"),
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
    timing = muse_csv.find_losses(table["timestamps"].to_numpy(), "run.csv")[2]
    assert timing["largest_back_step"] == pytest.approx(0.015 - 1 / 256)
    assert timing["largest_step"] == pytest.approx(0.015 + 1 / 256)
    assert timing["rate_hz"] == pytest.approx(256) and timing["lost_samples"] == 0
    convert(tmp_path, table)


# ---------------------------------------------------------------------------- lost and late


LATE = [(430, 12, 0.040), (730, 36, 0.120), (2000, 12, 0.047)]  # first sample, samples, seconds


@pytest.mark.parametrize("jitter", [0.0, 0.004])
@pytest.mark.parametrize(
    "gaps", [(), ((600, 12),), ((600, 12), (624, 12)), ((100, 24), (1000, 512), (2460, 12))]
)
def test_lost_samples_are_put_in_and_late_ones_are_not(tmp_path, gaps, jitter):
    """Samples and markers lie where they were; what is lost is a straight line that is marked."""
    whole = table_of(10.0)
    marked = np.arange(300, 2500, 110)
    whole["Marker0"] = 0
    whole.loc[marked, "Marker0"] = 1
    stamps = (
        whole["timestamps"].to_numpy()
        + np.repeat(np.random.default_rng(1).uniform(0, jitter, 214), 12)[: len(whole)]
    )
    for start, n, seconds in LATE:
        stamps[start : start + n] += seconds
    recorded = (
        lose(whole.assign(timestamps=stamps), *gaps) if gaps else whole.assign(timestamps=stamps)
    )
    root = convert(tmp_path, recorded, max_lost=0.25)
    raw = bids_recordings.read_recording(bids_recordings.find_recordings(root).iloc[0], root)
    assert raw.n_times == len(whole)
    kept = np.setdiff1d(
        np.arange(len(whole)), np.concatenate([range(a, a + n) for a, n in gaps] or [[]])
    )
    kept = kept.astype(int)
    expected = whole[raw.ch_names].to_numpy().T
    np.testing.assert_allclose(1e6 * raw.get_data()[:, kept], expected[:, kept], atol=1e-2)
    bad = bad_stretches(raw) * 256
    np.testing.assert_allclose(
        bad, [(a - 12, a + n + 12) for a, n in gaps] or np.empty((0, 2)), atol=1e-3
    )
    for start, n in gaps:
        filled = raw.get_data()[:, start - 1 : start + n + 1]
        np.testing.assert_allclose(np.diff(filled, 2), 0, atol=1e-9)
    _, shown = bids.read_study(root, MAPPING)
    late = [m for m in marked if any(a <= m < a + n and s > 0.04 for a, n, s in LATE)]
    assert late, "one marker lies in a packet that is later than an event may be"
    assert shown["sample"].tolist() == sorted(set(marked) & set(kept) - set(late))
    assert set(shown["concept"]) == {"house"}, "a stretch is no picture"


def test_losses_are_found_in_the_jitter_of_a_telephone():
    """Packets arrive 27 to 71 ms apart and carry one stamp; 2 % of them are lost."""
    rng = np.random.default_rng(3)
    sent = np.arange(2560) * 12 / 256
    arrived = np.sort(sent + rng.gamma(4.0, 0.006, len(sent)))
    for _ in range(3):
        lost = np.sort(rng.choice(np.arange(60, 2500, 50), 20, replace=False))
        stamps = np.repeat(np.delete(arrived, lost), 12) + np.tile(np.arange(12) * 1e-4, 2540)
        found = muse_csv.find_losses(stamps, "run.csv")[0]
        place = np.arange(len(stamps)) + np.cumsum(found)
        true = np.delete(np.arange(2560 * 12).reshape(-1, 12), lost, axis=0).ravel()
        assert (np.abs(place - true) > 12).mean() < 0.02 and abs(place[-1] - true[-1]) <= 12


def test_a_file_that_lost_too_much_is_refused_and_its_pieces_are_read(tmp_path):
    whole = table_of(8.0).assign(Marker0=0)
    whole.loc[[600, 1600], "Marker0"] = 1
    recorded = lose(whole, (800, 480))
    with pytest.raises(
        DatasetError, match=r"480 samples were lost \(23 %, 1 gaps.* more than 10 %"
    ) as no:
        convert(tmp_path, recorded)
    assert not (tmp_path / "bids").exists()
    line = int(str(no.value).partition("Cut the file before line ")[2].partition(" ")[0])
    (tmp_path / "csv" / "run.csv").unlink()
    for name, piece in (("a", recorded[: line - 2]), ("b", recorded[line - 2 :])):
        piece.to_csv(tmp_path / "csv" / f"{name}.csv", index=False)
    muse.convert(tmp_path / "csv", tmp_path / "bids")
    _, shown = bids.read_study(tmp_path / "bids", MAPPING)
    assert shown["sample"].tolist() == [600, 1600 - 1280]


@pytest.mark.slow
def test_trials_at_a_loss_are_dropped_and_counted(tmp_path):
    """00 says what is marked, 01 drops the trials that touch it and writes how many into quality.csv."""
    rng = np.random.default_rng(4)
    for run in range(3):
        table = table_of(60.0, seed=run).assign(Marker0=0)
        onsets = np.arange(400, 15000, 163)
        table.loc[onsets, "Marker0"] = rng.permutation(len(onsets)) % 2 + 1
        for onset in onsets:  # 40 µV, 100 ms after each picture
            table.loc[onset + 20 : onset + 32, "TP9"] += 40
        (tmp_path / "csv").mkdir(exist_ok=True)
        table = lose(table, (5000, 12), (9000, 36)) if run == 1 else table
        table.to_csv(tmp_path / "csv" / f"{run}.csv", index=False)
    done = command(tmp_path, "sgdm_utils", "convert-muse", str(tmp_path / "csv"), "muse_n170")
    assert "48 samples lost in 2 gaps" in done.stdout, done.stderr
    for notebook in (["00_data"], ["01_preprocessing", "--subject", "sub-01"]):
        done = command(tmp_path, "sgdm_utils", "run", *notebook, "--study", "my_bids")
        assert done.returncode == 0, done.stderr
    found = tmp_path / "data" / "derived" / "my_bids" / "sub-01" / "preprocessing"
    quality = pd.read_csv(next(found.rglob("quality.csv")))
    marked = ((4988, 5024), (8988, 9048))  # a packet on either side
    there = [o for o in onsets if not (5000 <= o < 5012 or 9000 <= o < 9036)]
    touching = sum(any(o - 51.2 < b and o + 204.8 > a for a, b in marked) for o in there)
    assert quality["touch_bad"].fillna(0).tolist() == [0, touching, 0] and touching > 2
    eeg = np.load(next(found.rglob("eeg.npy")))
    trials = pd.read_parquet(next(found.rglob("trials.parquet")))
    assert len(eeg) == len(trials) == quality["kept"].sum()
    late = trials["onset_s"] > 40  # behind both losses
    peak = {
        run: eeg[late & (trials["run"] == run), 0].mean(0)[:80].argmax() for run in ("01", "02")
    }
    assert abs(peak["01"] - peak["02"]) <= 1 and 36 < peak["01"] < 44, "12 samples are 6 here"


# ---------------------------------------------------------------------------- other columns


def test_a_marker_column_that_begins_later_is_read(tmp_path):
    """muse-lsl writes pieces: the header before the first marker, the marker column with it."""
    table = table_of()
    expected = np.flatnonzero(table["Marker0"])
    (tmp_path / "csv").mkdir()
    file = tmp_path / "csv" / "run.csv"
    table[:200].drop(columns="Marker0").to_csv(file, index=False)
    table[200:].to_csv(file, index=False, header=False, mode="a")
    assert muse_csv.read_csv(file).events[:, 0].tolist() == expected.tolist()
    table["Marker0"] = table["Marker0"].astype(object).where(table.index >= 200, "")
    table.to_csv(file, index=False)  # a column that is blank until then
    assert muse_csv.read_csv(file).events[:, 0].tolist() == expected.tolist()
    file.write_text(file.read_text().replace("Marker0\n", "Marker0\n1,2,3,4,5,6,7,8,9\n", 1))
    with pytest.raises(DatasetError, match=r"line 2: 9 cells under 7 columns"):
        muse_csv.read_csv(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-30],  # broke off within a line
        lambda text: "\ufeff" + text.replace("\n", "\r\n"),
        lambda text: '"' + text.replace("\n", '"\n', 1).replace(",", '","', 6),
        lambda text: text.replace("\n", "\n\n", 2),
    ],
)
def test_a_file_may_break_off_and_be_quoted(tmp_path, change):
    file = tmp_path / "run.csv"
    file.write_bytes(change(table_of().to_csv(index=False)).encode())
    run = muse_csv.read_csv(file)
    assert run.events.tolist() == [[256, 1], [512, 2], [768, 1]]
    assert 1023 <= run.microvolts.shape[1] <= 1024 and not run.lost


def test_blank_samples_are_a_gap_when_the_advice_is_followed(tmp_path):
    table = table_of(6.0)
    table.loc[600:611, "AF8"] = np.nan
    with pytest.raises(ChannelError, match=r"'AF8' holds 12 samples .* from line 602 on\. Take"):
        convert(tmp_path, table)
    root = convert(tmp_path, table.dropna())
    recording = bids_recordings.find_recordings(root).iloc[0]
    raw = bids_recordings.read_recording(recording, root)
    assert raw.n_times == len(table) and len(bad_stretches(raw)) == 1
    (tmp_path / "x.csv").write_text(table.to_csv(sep=";", decimal=",", index=False))
    with pytest.raises(DatasetError, match="separated by semicolons"):
        muse_csv.read_csv(tmp_path / "x.csv")


def test_the_auxiliary_input_is_an_electrode_where_it_is_named(tmp_path):
    table = table_of()
    root = convert(tmp_path, table, aux="poz")
    raw = bids_recordings.read_recording(bids_recordings.find_recordings(root).iloc[0], root)
    assert raw.ch_names == ["TP9", "AF7", "AF8", "TP10", "POz"]
    np.testing.assert_allclose(1e6 * raw.get_data(["POz"])[0], table["Right AUX"], atol=1e-3)
    assert raw.info["chs"][4]["loc"][1] < -0.05, "at the back of the head"
    for name in ("AF7", "Right AUX"):
        with pytest.raises(DatasetError, match=rf"'{name}' is no electrode .*--aux POz"):
            convert(tmp_path, table, aux=name, session="02")
    with pytest.raises(DatasetError, match=r"no column Right AUX"):
        convert(tmp_path, table.drop(columns="Right AUX"), aux="POz", session="02")


def mind_monitor(table: pd.DataFrame) -> pd.DataFrame:
    """The same recording as Mind Monitor writes it: packets, offset, markers in rows of their own."""
    begun = pd.Timestamp("2025-07-01 14:56:05.422")
    arrival = table["timestamps"].to_numpy()[
        np.minimum(np.arange(len(table)) // 12 * 12 + 11, len(table) - 1)
    ]

    def stamp(seconds) -> pd.Series:
        times = begun + pd.to_timedelta(np.asarray(seconds) - 1000, unit="s")
        return times.strftime("%Y-%m-%d %H:%M:%S.%f").str[:-3]

    rows = pd.DataFrame({"TimeStamp": stamp(pd.Series(arrival)), "Delta_TP9": 0.5})
    for name in ELECTRODES:
        rows[f"RAW_{name}"] = 800 + table[name]
    rows["AUX_RIGHT"], rows["Elements"] = 700 + table["Right AUX"], None
    marks = table[table["Marker0"] > 0]
    extra = pd.DataFrame(
        {
            "TimeStamp": stamp(marks["timestamps"]),
            "Elements": [f"/Marker/{m}" for m in marks["Marker0"]],
        }
    )
    blink = pd.DataFrame({"TimeStamp": rows["TimeStamp"][:1], "Elements": ["/muse/elements/blink"]})
    at = np.concatenate([np.arange(len(rows)), marks.index - 0.5, [-1]])
    return pd.concat([rows, extra, blink], ignore_index=True).iloc[np.argsort(at, kind="stable")]


def test_files_of_mind_monitor_are_read(tmp_path):
    table = table_of(8.0)
    root = convert(tmp_path, lose(mind_monitor(table).reset_index(drop=True), (1400, 24)), aux="Oz")
    raw = bids_recordings.read_recording(bids_recordings.find_recordings(root).iloc[0], root)
    assert raw.ch_names == [*ELECTRODES, "Oz"] and raw.n_times == len(table)
    kept = np.r_[0:1380, 1430 : len(table)]
    np.testing.assert_allclose(
        1e6 * raw.get_data(["AF8"])[0][kept], 800 + table["AF8"][kept], atol=1e-2
    )
    _, shown = bids.read_study(root, MAPPING)
    assert shown["concept"].tolist() == ["house", "face", "house"]
    # the delay of the transmission is constant (up to a packet), the distances are right
    assert np.ptp(shown["sample"] - [256, 512, 768]) <= 1
    assert np.abs(shown["sample"] - [256, 512, 768]).max() <= 12
    for spoil, message in (
        (lambda t: t.assign(TimeStamp=t["TimeStamp"].str[14:19]), r"is no date with milliseconds"),
        (lambda t: t[(np.arange(len(t)) % 128 == 0) | t["Elements"].notna()], r"interval Constant"),
        (lambda t: t[t["Elements"].isna()], r"Elements holds no marker"),
    ):
        with pytest.raises(DatasetError, match=message):
            convert(tmp_path, spoil(mind_monitor(table_of(60.0))), session="02")
