"""The forward model of one THINGS-EEG2 person beside ridge regression by scikit-learn.

    pytest tests/benchmarks/bench_forward.py

Synthetic trials of 63 electrodes and 250 samples, 16,540 pictures four times each, lie on the disk (4
gigabytes, removed afterwards); `SGDM_BENCH_PICTURES` makes them fewer, `SGDM_BENCH_BASE` is an earlier checkout
to compare with. Ours: noise in full, signal
space, model, and the choice of the lack of fit on validation pictures. Theirs: `RidgeCV` of every
sample of the averaged epochs on the same features, which chooses one penalty for each output and has
neither noise model nor likelihood. Each side is a process of its own; seconds are processor time of all
its threads, which busy neighbours hardly lengthen, and peak memory is what it needs beyond the imports.
`ratio` compares everything from the file on. `ratio_fit` is the regression and the choice of the penalty
alone: theirs of the 15,750 samples of the averages, ours of the 200 outputs that stand for them, without
what found those. The parts of ours: noise, answers (reading, averaging, whitening, signal space), fit.
Results go to `reports/benchmarks/forward.csv`, a row for each size.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sgdm_utils.workflow import machine, paths
from sgdm_utils.workflow.atomic import atomic_file

PICTURES = int(os.environ.get("SGDM_BENCH_PICTURES", "16540"))
BASE = os.environ.get("SGDM_BENCH_BASE", "")
REPETITIONS, CHANNELS, TIMES, FEATURES, N_VAL = 4, 63, 250, 534, 100
LACK_OF_FIT = (0.05, 0.1, 0.2, 0.4)


def write_trials(folder: Path) -> None:
    """A linear brain with noise that is correlated over channels and time."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((PICTURES, FEATURES)) / FEATURES**0.5
    space = rng.standard_normal((FEATURES, 12)), rng.standard_normal((12, CHANNELS * TIMES))
    mixing = np.linalg.cholesky(0.5 * np.eye(CHANNELS) + 0.5).astype(np.float32)
    shape = (PICTURES * REPETITIONS, CHANNELS, TIMES)
    eeg = np.lib.format.open_memmap(folder / "eeg.npy", "w+", np.float32, shape)
    for start in range(0, PICTURES, 250):
        part = x[start : start + 250]
        answers = (part @ space[0] @ space[1]).reshape(-1, 1, CHANNELS, TIMES).astype(np.float32)
        noise = rng.standard_normal((len(part), REPETITIONS, CHANNELS, TIMES), dtype=np.float32)
        noise = mixing @ (np.cumsum(noise, axis=-1) / 8)
        rows = slice(start * REPETITIONS, (start + len(part)) * REPETITIONS)
        eeg[rows] = (0.05 * answers + noise).reshape(-1, CHANNELS, TIMES)
    eeg.flush()
    np.save(folder / "features.npy", x)


def fit_ours(folder: Path) -> tuple[float, dict[str, float]]:
    """Correlation of predicted and measured outputs on pictures that were left out, and seconds."""
    from sgdm_utils.decoding import forward
    from sgdm_utils.signals import NoiseModel, TrialFile

    eeg, x = TrialFile(folder / "eeg.npy"), np.load(folder / "features.npy")
    picture = np.repeat(np.arange(PICTURES), REPETITIONS)
    train = np.flatnonzero(picture < PICTURES - N_VAL)
    clock = [time.process_time()]
    noise = NoiseModel.fit(eeg, picture, train)
    clock.append(time.process_time())
    responses = forward.measure_responses(eeg, picture, noise, train, n_outputs=200)
    clock.append(time.process_time())
    held_out = np.asarray(eeg[np.flatnonzero(picture >= PICTURES - N_VAL)])
    held_out = responses.space.project(
        held_out.reshape(N_VAL, REPETITIONS, CHANNELS, TIMES).mean(1)
    )
    found = []
    for share in LACK_OF_FIT:
        model = forward.ForwardModel.fit(x, responses, share)
        scores = model.log_likelihood(held_out, x[-N_VAL:], REPETITIONS)
        found.append((np.diagonal(scores).mean(), model))
    predicted, _ = max(found, key=lambda pair: pair[0])[1].predict(x[-N_VAL:])
    clock.append(time.process_time())
    parts = dict(zip(("noise", "answers", "fit"), np.diff(clock).tolist(), strict=True))
    return float(np.corrcoef(predicted.ravel(), held_out.ravel())[0, 1]), parts


def fit_theirs(folder: Path) -> tuple[float, dict[str, float]]:
    """The same for ridge regression of all samples of the averages."""
    from sklearn.linear_model import RidgeCV

    eeg, x = np.load(folder / "eeg.npy", mmap_mode="r"), np.load(folder / "features.npy")
    averages = np.empty((PICTURES, CHANNELS * TIMES), np.float32)
    for start in range(0, PICTURES, 250):
        rows = slice(start * REPETITIONS, min(start + 250, PICTURES) * REPETITIONS)
        block = np.asarray(eeg[rows]).reshape(-1, REPETITIONS, CHANNELS * TIMES)
        averages[start : start + len(block)] = block.mean(1)
    train = slice(0, PICTURES - N_VAL)
    began = time.process_time()
    model = RidgeCV(alphas=np.logspace(-2, 4, 7), alpha_per_target=True)
    model.fit(x[train].astype(np.float32), averages[train])
    predicted = model.predict(x[-N_VAL:].astype(np.float32))
    parts = {"fit": time.process_time() - began}
    return float(np.corrcoef(predicted.ravel(), averages[-N_VAL:].ravel())[0, 1]), parts


def peak_gb() -> float:
    """Largest resident memory of this process so far (Linux; ru_maxrss would be the parent's)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e9


def measured(side: str, folder: Path, root: str = "") -> dict[str, float]:
    """Seconds, peak gigabytes beyond the imports, and accuracy of one side, in its own process."""
    command = [sys.executable, __file__, side, str(folder)]
    env = os.environ | ({"PYTHONPATH": root} if root else {})
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    return json.loads(out.splitlines()[-1])


def write(before: dict, ours: dict, theirs: dict) -> None:
    """Put a row into the table of results, in place of an older one of the same size and cores."""
    row = {
        "case": f"{PICTURES} x {REPETITIONS} x {CHANNELS} x {TIMES}",
        "sklearn_s": theirs["s"], "before_s": before.get("s"), "ours_s": ours["s"],
        "ratio": theirs["s"] / ours["s"],
        "sklearn_fit_s": theirs["fit"], "ours_noise_s": ours["noise"],
        "ours_answers_s": ours["answers"], "ours_fit_s": ours["fit"],
        "ratio_fit": theirs["fit"] / ours["fit"],
        "sklearn_gb": theirs["gb"], "before_gb": before.get("gb"), "ours_gb": ours["gb"],
        "sklearn_r": theirs["r"], "ours_r": ours["r"],
        "cores": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "processor": machine.processor(),
    }  # fmt: skip
    path = paths.project_root() / "reports" / "benchmarks" / "forward.csv"
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=list(row))
    same = (table["case"] == row["case"]) & (table["cores"] == row["cores"])
    table = pd.DataFrame([*table[~same].to_dict("records"), row], columns=list(row))
    with atomic_file(path) as part:
        table.to_csv(part, index=False, float_format="%.4g", lineterminator="\n")
    print(f"\n{table.to_string(index=False)}")


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_one_person_of_things_eeg2(tmp_path):
    write_trials(tmp_path)
    before = measured("ours", tmp_path, BASE) if BASE else {}  # this file, with the package of BASE
    ours, theirs = (measured(side, tmp_path) for side in ("ours", "theirs"))
    write(before, ours, theirs)
    assert ours["gb"] < 4
    if PICTURES >= 16_000:  # noise is measured on 2,000 pictures, whatever their number
        assert theirs["s"] / ours["s"] >= 2
        assert theirs["fit"] / ours["fit"] >= 10


if __name__ == "__main__":
    fit = {"ours": fit_ours, "theirs": fit_theirs}[sys.argv[1]]
    import sklearn.linear_model  # noqa: F401

    import sgdm_utils.decoding.forward.model  # noqa: F401

    before = peak_gb()
    began = time.process_time()
    r, parts = fit(Path(sys.argv[2]))
    seconds = time.process_time() - began
    print(json.dumps({"s": seconds, "gb": peak_gb() - before, "r": r} | parts))
