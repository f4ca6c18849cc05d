"""Preprocessing against the published loops, at the size of one THINGS-EEG2 session.

    pytest tests/benchmarks/bench_preprocessing.py

Both sides run here, one after the other, on the same data; times are the best of three for the
package. Where the published loops take minutes they run on a part of the conditions and their time
is scaled up. Peak memory is measured in a process for each side: what it needs beyond the imports,
the data included. `SGDM_BENCH_MINUTES` (default 6; a session has 57) sets the length of the
recordings to cut. Results go to `reports/benchmarks/preprocessing.csv`, one row for each case and
number of cores (`OMP_NUM_THREADS`). On a machine that others are using, one core is the fairer
measure: MNE cuts and resamples on one, and the two threads of a matrix product wait for each other.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pytest

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1] / "helpers")
)  # also when run as a script

import published_recipe

from sgdm_utils.signals import epoching, whitening
from sgdm_utils.workflow import paths
from sgdm_utils.workflow.atomic import atomic_file

MINUTES = float(os.environ.get("SGDM_BENCH_MINUTES", "6"))
CORES = int(os.environ.get("OMP_NUM_THREADS", "2"))
TRAINING, TEST = (8270, 2), (200, 20)  # conditions, repetitions
# mode, channels, times, conditions of the published side (training, test), ratio to reach
MVNN = [
    ("time", 17, 100, (100, 20), 1000),
    ("epochs", 17, 100, (2000, 50), 40),
    ("time", 63, 250, (16, 8), 300),
    ("epochs", 63, 250, (1000, 50), 8),
]
# channels, rate, share of the recording
EPOCHS = [(17, 100.0, 1.0), (63, 250.0, 0.25)]


@pytest.fixture
def record():
    """Return a function that puts one row into the table of results, in place of an older one."""

    def write(case: str, published, ours, difference: float) -> None:
        path = paths.project_root() / "reports" / "benchmarks" / "preprocessing.csv"
        row = {
            "case": case,
            "published_s": f"{published[0]:.4g}",
            "ours_s": f"{ours[0]:.4g}",
            "ratio": f"{published[0] / ours[0]:.4g}",
            "difference": f"{difference:.2g}",
            "published_gb": f"{published[1]:.3g}",
            "ours_gb": f"{ours[1]:.3g}",
            "cores": CORES,
        }
        old = pd.read_csv(path, dtype=str) if path.is_file() else pd.DataFrame(columns=list(row))
        same = (old["case"] == case) & (old["cores"] == str(CORES))
        table = pd.concat([old[~same], pd.DataFrame([row])])
        with atomic_file(path) as part:
            table.to_csv(part, index=False, lineterminator="\n")
        print(f"\n{table.tail(1).to_string(index=False)}")

    return write


# ------------------------------------------------------------------------------- whitening


def session(n_channels: int, n_times: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trials of one session in float32, their conditions, and which are training trials."""
    condition = np.concatenate(
        [np.repeat(np.arange(n), repetitions) for n, repetitions in (TRAINING, TEST)]
    )
    training = np.arange(len(condition)) < np.prod(TRAINING)
    rng = np.random.default_rng(0)
    eeg = np.empty((len(condition), n_channels, n_times), np.float32)
    for start in range(0, len(eeg), 1000):
        block = eeg[start : start + 1000]
        block[:] = rng.standard_normal(block.shape, np.float32)
        block += 2 * rng.standard_normal((len(block), 1, n_times), np.float32)
    return eeg, condition, training


def covariances(eeg, condition, training, mode):
    """Both partitions with the package."""
    return [
        whitening.noise_covariance(eeg, condition, mode, np.flatnonzero(rows))
        for rows in (training, ~training)
    ]


@pytest.mark.parametrize(("mode", "n_channels", "n_times", "part", "goal"), MVNN)
def test_noise_normalisation(benchmark, record, mode, n_channels, n_times, part, goal):
    eeg, condition, training = session(n_channels, n_times)
    benchmark.pedantic(covariances, (eeg, condition, training, mode), rounds=3, warmup_rounds=1)
    ours = benchmark.stats.stats.min
    published, difference = 0.0, 0.0
    for rows, (n_conditions, n), some in (
        (training, TRAINING, part[0]),
        (~training, TEST, part[1]),
    ):
        chosen = np.flatnonzero(rows)[: some * n]
        literal = eeg[chosen].astype(np.float64).reshape(some, n, n_channels, n_times)
        start = time.perf_counter()
        theirs = published_recipe.covariance(literal, mode)
        published += (time.perf_counter() - start) * n_conditions / some
        mine = whitening.noise_covariance(eeg, condition, mode, chosen)
        difference = max(difference, np.abs(mine - theirs).max() / np.abs(theirs).max())
    float32_gb = eeg.nbytes / 1e9
    del eeg
    gb = {
        side: child("mvnn", side, mode, n_channels, n_times)["gb"] for side in ("published", "ours")
    }
    record(
        f"noise covariance {mode} {n_channels} x {n_times}",
        (published, gb["published"]), (ours, gb["ours"]), difference,
    )  # fmt: skip
    assert difference < 1e-10
    assert gb["ours"] <= 1.5 * float32_gb
    assert published / ours >= goal


# ------------------------------------------------------------------------------- epoching


def recording(minutes: float) -> np.ndarray:
    """64 rows at 1000 Hz in volts, drifting and off zero, float64 as in the raw files."""
    rng = np.random.default_rng(1)
    data = np.empty((64, int(minutes * 60_000)))
    for row in data:
        rng.standard_normal(out=row)
        for start in range(0, len(row), 20_000):  # a slow drift, without a copy of everything
            row[start : start + 20_000] += row[start : start + 20_000].cumsum() / 3
        row *= 5e-6
        row += 2e-4
    return data


def onsets(minutes: float) -> np.ndarray:
    return np.arange(1000, int(minutes * 60_000) - 1000, 200)


@pytest.mark.parametrize(("n_channels", "rate", "share"), EPOCHS)
def test_epoching(benchmark, record, tmp_path, n_channels, rate, share):
    minutes = MINUTES * share
    best = {"published": [], "ours": []}
    for side in 3 * ("ours", "published"):
        best[side].append(
            child("epochs", side, n_channels, rate, minutes, tmp_path / f"{side}.npy")
        )
    benchmark.pedantic(lambda: None, rounds=1)  # the processes above were timed from within
    published, ours = (
        (min(x["s"] for x in best[side]), max(x["gb"] for x in best[side])) for side in best
    )
    theirs, mine = np.load(tmp_path / "published.npy"), np.load(tmp_path / "ours.npy")
    assert theirs.shape == mine.shape
    difference = float(np.abs(mine - theirs).max())
    record(
        f"epochs {n_channels} channels to {rate:g} Hz, {minutes:g} min", published, ours, difference
    )
    assert difference <= 1e-9
    if minutes >= 5:  # shorter ones are over before the fixed costs are
        assert ours[1] <= published[1] / 2
        assert published[0] / ours[0] >= 10


# ------------------------------------------------- one side in a process of its own


def child(*arguments) -> dict:
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": str(CORES)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def peak_gb() -> float:
    """Largest resident memory of this process so far (Linux; ru_maxrss would be the parent's)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e9


def measure_mvnn(side: str, mode: str, n_channels: str, n_times: str) -> dict:
    before, shape = peak_gb(), (int(n_channels), int(n_times))
    if side == "ours":
        covariances(*session(*shape), mode)
        return {"gb": peak_gb() - before}
    # the loops work on float64 arrays of both partitions; a few conditions show what they need
    parts = [np.full((*numbers, *shape), 1.0) for numbers in (TRAINING, TEST)]
    for data in parts:
        data[:2] = np.random.default_rng(0).standard_normal(data[:2].shape)
        published_recipe.covariance(data[:2], mode)
    return {"gb": peak_gb() - before}


def measure_epochs(side: str, n_channels: str, rate: str, minutes: str, saved: str) -> dict:
    picks, rate = np.arange(int(n_channels)), float(rate)
    before = peak_gb()
    cut(side, recording(0.1), onsets(0.1), picks, rate)  # what is made once in a study
    data, sample = recording(float(minutes)), onsets(float(minutes))
    start = time.perf_counter()
    epochs = cut(side, data, sample, picks, rate)
    result = {"s": time.perf_counter() - start, "gb": peak_gb() - before}
    np.save(saved, epochs[::10])
    return result


def cut(side, data, sample, picks, rate) -> np.ndarray:
    raw = mne.io.RawArray(data, mne.create_info(len(data), 1000.0, "eeg"), verbose="error")
    if side == "ours":
        return epoching.cut_epochs(
            raw, sample, 1000.0, -0.2, 0.8, True, rate, end="inclusive", picks=picks
        )[0]
    events = np.stack([sample, np.zeros_like(sample), np.ones_like(sample)], axis=1)
    # the published code picks the channels before it cuts, which drops the others
    raw.pick([raw.ch_names[i] for i in picks])
    return published_recipe.epochs_of(raw, events, resample_hz=rate).get_data(copy=False)


if __name__ == "__main__":
    print(json.dumps({"mvnn": measure_mvnn, "epochs": measure_epochs}[sys.argv[1]](*sys.argv[2:])))
