"""Opening a subject and streaming ten, against a memory map and against unpickling.

    pytest tests/benchmarks/bench_trialfiles.py

Every reader runs in a process of its own, on the same files, which are dropped from the system's
cache before. Memory is what the process holds beyond the imports: resident (mapped files included)
and private. `SGDM_BENCH_TRIALS` is the number of trials of the subject to open (a THINGS-EEG2
subject has 66160), `SGDM_BENCH_STREAM_GB` what ten subjects take together, `SGDM_BENCH_DIR` a
folder on the disk to measure. When the first is set, the results go to
`reports/benchmarks/trialfiles.csv` and `.png`, else into the test's temporary folder.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from sgdm_utils.signals import files as signals_files
from sgdm_utils.signals import writing
from sgdm_utils.signals.writing import TrialWriter
from sgdm_utils.workflow import machine, paths
from sgdm_utils.workflow.atomic import atomic_file

TRIALS = int(os.environ.get("SGDM_BENCH_TRIALS", "2000"))
STREAM_GB = float(os.environ.get("SGDM_BENCH_STREAM_GB", "0.5"))
N_SUBJECTS = 10
TRIAL_SHAPE = (63, 250)
TRIAL_BYTES = 63 * 250 * 4
BATCH = 1024
LIMIT_OPEN_S, LIMIT_GB = 1.0, 3.0


# ------------------------------------------------------------------------------- files


def blocks(n_trials: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Noise in float32; one block over and over, because making it takes longer than reading."""
    block = np.random.default_rng(seed).standard_normal((400, *TRIAL_SHAPE), dtype=np.float32)
    for start in range(0, n_trials, len(block)):
        yield block[: n_trials - start]


def write_subject(path: Path, n_trials: int, seed: int = 0) -> Path:
    with TrialWriter(path) as writer:
        for block in blocks(n_trials, seed):
            writer.append(block)
    return path


def drop_cache(path: Path) -> None:
    """Let the next reader fetch the file from the disk, and check that it has to."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        cached, places = 0, range(0, os.fstat(handle).st_size, 1 + os.fstat(handle).st_size // 50)
        for place in places:
            try:
                cached += os.preadv(handle, [bytearray(1)], place, os.RWF_NOWAIT)
            except BlockingIOError:
                continue
        if cached > len(places) // 10:
            raise RuntimeError(f"{path} is still in the system's cache: somebody has it open")
    finally:
        os.close(handle)


# ------------------------------------------------------------------------------- readers


def _unpickled(path: Path) -> np.ndarray:
    data = np.load(path, allow_pickle=True)["preprocessed_eeg_data"]
    return data.reshape(-1, *data.shape[2:])


OPEN: dict[str, Callable[[Path], object]] = {
    "TrialFile": signals_files.TrialFile,
    "np.memmap": lambda path: np.load(path, mmap_mode="r"),
    "unpickling": _unpickled,
}


class _Maps:
    """What one would write without TrialFiles: a memory map per subject."""

    def __init__(self, files: list[Path]):
        self.maps = [np.load(path, mmap_mode="r") for path in files]
        self.offsets = np.cumsum([0, *map(len, self.maps)])

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self.maps[0].shape[1:]), np.float32)
        for mapped, start, stop in zip(self.maps, self.offsets, self.offsets[1:], strict=False):
            mine = (rows >= start) & (rows < stop)
            out[mine] = mapped[rows[mine] - start]
        return out


STREAM: dict[str, Callable[[list[Path]], object]] = {
    "TrialFiles": signals_files.TrialFiles,
    "np.memmap": _Maps,
}


class _Memory:
    """Resident and private memory beyond those at the start, in GB."""

    def __init__(self):
        self._process = psutil.Process()
        self._start = self._now()

    def _now(self) -> np.ndarray:
        info = self._process.memory_info()
        return np.array([info.rss, info.rss - getattr(info, "shared", 0)])

    def grown(self) -> list[float]:
        return ((self._now() - self._start) / 1e9).tolist()


def measure_open(reader: str, path: Path) -> list[dict]:
    """Open a file and take two random batches, the first one cold."""
    rng = np.random.default_rng(0)
    memory, rows = _Memory(), []
    start = time.perf_counter()
    eeg = OPEN[reader](path)
    for which in ("first", "second"):
        batch = np.asarray(eeg[rng.permutation(len(eeg))[:BATCH]], dtype=np.float32)
        assert batch.shape == (min(BATCH, len(eeg)), *TRIAL_SHAPE) and batch.std() > 0.9
        resident, private = memory.grown()
        seconds = time.perf_counter() - start
        rows.append(
            dict(case=f"{which} batch", trials=len(batch), seconds=seconds)
            | dict(resident_gb=resident, private_gb=private)
        )
        start = time.perf_counter()
    return rows


def measure_stream(reader: str, files: list[Path], n_batches: int) -> list[dict]:
    """Take random batches until every trial was read once; tell time and memory after each."""
    order = np.random.default_rng(0)
    memory = _Memory()
    eeg = STREAM[reader](files)
    trials = order.permutation(len(eeg))
    rows, start = [], time.perf_counter()
    for n in range(min(n_batches, -(-len(trials) // BATCH))):
        batch = eeg[trials[n * BATCH : (n + 1) * BATCH]]
        seconds = time.perf_counter() - start
        resident, private = memory.grown()
        rows.append(
            dict(case="stream", trials=n * BATCH + len(batch), seconds=seconds)
            | dict(resident_gb=resident, private_gb=private)
        )
    return rows


def measure_convert(path: Path, target: Path) -> list[dict]:
    """Bring a float64 array into a float32 file."""
    memory, most, start = _Memory(), [0.0, 0.0], time.perf_counter()

    def watch(done: int, total: int) -> None:
        most[:] = np.maximum(most, memory.grown()).tolist()

    writing.convert(np.load(path, mmap_mode="r"), target, progress=watch)
    row = dict(case="convert", trials=len(signals_files.TrialFile(target)))
    seconds = time.perf_counter() - start
    return [row | dict(seconds=seconds, resident_gb=most[0], private_gb=most[1])]


def in_a_process(what: str, reader: str, files: list[Path], n_batches: int = 0) -> pd.DataFrame:
    for path in files:
        if path.exists():
            drop_cache(path)
    done = subprocess.run(
        [sys.executable, __file__, what, reader, str(n_batches), *map(str, files)],
        cwd=paths.project_root(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    table = pd.DataFrame(json.loads(done.stdout.splitlines()[-1]))
    table.insert(1, "reader", reader)
    table["file_gb"] = sum(path.stat().st_size for path in files) / 1e9
    table["cores"] = machine.n_threads()
    return table


# ------------------------------------------------------------------------------- results


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """Where the large files go; each test removes its own."""
    chosen = os.environ.get("SGDM_BENCH_DIR")
    yield Path(chosen) if chosen else tmp_path_factory.mktemp("trials")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    if "SGDM_BENCH_TRIALS" in os.environ:
        return paths.project_root() / "reports" / "benchmarks"
    return tmp_path_factory.mktemp("results")


def record(results: Path, table: pd.DataFrame) -> None:
    """Put rows into the table of results, in place of older ones of the same cases."""
    path = results / "trialfiles.csv"
    table = table.round({"seconds": 4, "resident_gb": 4, "private_gb": 4, "file_gb": 3})
    if path.is_file():
        old = pd.read_csv(path)
        table = pd.concat([old[~old["case"].isin(table["case"])], table])
    with atomic_file(path) as part:
        table.to_csv(part, index=False, lineterminator="\n")
    print(
        f"\n{path}\n{table.groupby(['case', 'reader'], sort=False).tail(1).to_string(index=False)}"
    )


def draw(table: pd.DataFrame, path: Path) -> None:
    """Time and resident memory against the trials read, for both ways of reading."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from sgdm_utils.figures import panels

    panels.use_style()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), dpi=120)
    colours = {"TrialFiles": panels.COLOURS["eeg"], "np.memmap": panels.COLOURS["chance"]}
    for reader, rows in table.groupby("reader"):
        thousands = rows["trials"] / 1000
        left.plot(thousands, rows["seconds"], color=colours[reader], label=reader)
        right.plot(thousands, rows["resident_gb"], color=colours[reader], label=reader)
    ours = table[table["reader"] == "TrialFiles"]
    slope = (ours["seconds"] * ours["trials"]).sum() / (ours["trials"] ** 2).sum()
    left.plot(
        ours["trials"] / 1000, slope * ours["trials"], color="black", linestyle=":",
        label=f"line: {slope * 1e3:.2f} ms per trial",
    )  # fmt: skip
    right.axhline(LIMIT_GB, color=panels.STAGE_COLOURS["early"], linestyle="--", label="limit")
    size = ours["file_gb"].iloc[0]
    for axes, label in ((left, "time since opening (s)"), (right, "resident memory (GB)")):
        axes.set(xlabel="trials read (thousands)", ylabel=label, xlim=(0, None), ylim=(0, None))
        axes.legend()
    figure.suptitle(
        f"Random batches of {BATCH} trials from {N_SUBJECTS} files, {size:.1f} GB, "
        f"cold, {ours['cores'].iloc[0]} cores"
    )
    with atomic_file(path) as part:
        figure.savefig(part)
    plt.close(figure)


# ------------------------------------------------------------------------------- measurements


def test_first_batch_of_a_subject(folder, results):
    n_trials = TRIALS // 4 * 4
    eeg, double, pickled = (folder / f"{name}.npy" for name in ("eeg", "double", "pickled"))
    try:
        array = np.lib.format.open_memmap(double, "w+", float, (n_trials, *TRIAL_SHAPE))
        for start, block in zip(itertools.count(0, 400), blocks(n_trials), strict=False):
            array[start : start + len(block)] = block
        with open(pickled, "wb") as stream:
            pickle.dump({"preprocessed_eeg_data": array.reshape(-1, 4, *TRIAL_SHAPE)}, stream)
        del array
        tables = [in_a_process("convert", "convert", [double, eeg])]
        tables += [in_a_process("open", reader, [eeg]) for reader in ("TrialFile", "np.memmap")]
        tables += [in_a_process("open", "unpickling", [pickled])]
    finally:
        for path in (eeg, double, pickled):
            path.unlink(missing_ok=True)
    table = pd.concat(tables, ignore_index=True)
    record(results, table)
    first = table[table["case"] == "first batch"].set_index("reader")
    assert first.loc["TrialFile", "seconds"] < LIMIT_OPEN_S
    assert first.loc["TrialFile", "seconds"] < first.loc["unpickling", "seconds"]
    assert first.loc["TrialFile", "resident_gb"] < 0.3
    assert table.loc[table["case"] == "convert", "resident_gb"].iloc[0] < 0.3


def test_streaming_ten_subjects(folder, results):
    n_each = max(200, int(STREAM_GB * 1e9 / N_SUBJECTS / TRIAL_BYTES))
    files = [folder / f"sub-{i:02}.npy" for i in range(1, N_SUBJECTS + 1)]
    n_batches = -(-n_each * N_SUBJECTS // BATCH)
    try:
        for seed, path in enumerate(files):
            write_subject(path, n_each, seed)
        ours = in_a_process("stream", "TrialFiles", files, n_batches)
        # the memory map takes many times as long; a part of the trials shows where it goes
        theirs = in_a_process("stream", "np.memmap", files, max(4, n_batches // 8))
    finally:
        for path in files:
            path.unlink(missing_ok=True)
    table = pd.concat([ours, theirs], ignore_index=True)
    record(results, table)
    draw(table, results / "trialfiles.png")
    assert ours["trials"].iloc[-1] == n_each * N_SUBJECTS
    assert ours["resident_gb"].max() < LIMIT_GB
    assert ours["private_gb"].max() < ours["private_gb"].iloc[0] + 0.1, "memory grows"
    if len(ours) >= 40:  # fewer batches are over before the disk is in its stride
        half = np.interp(ours["trials"].iloc[-1] / 2, ours["trials"], ours["seconds"])
        assert 0.3 < half / ours["seconds"].iloc[-1] < 0.7, "the cost is not linear in the trials"


@pytest.mark.parametrize("reader", ["TrialFile", "np.memmap"])
def test_warm_batch(benchmark, folder, reader):
    path = folder / f"warm-{reader}.npy"
    n = min(TRIALS, 8000)
    try:
        eeg = OPEN[reader](write_subject(path, n))
        eeg[:]
        batches = itertools.cycle(np.random.default_rng(0).integers(0, n, (20, BATCH)))
        benchmark.group = f"warm batch of {BATCH}"
        benchmark.pedantic(lambda: eeg[next(batches)], rounds=20, warmup_rounds=2)
    finally:
        path.unlink(missing_ok=True)


def main(what: str, reader: str, n_batches: str, *files: str) -> None:
    """Measure one reader in this process and print what was found."""
    selected = [Path(path) for path in files]
    if what == "open":
        rows = measure_open(reader, selected[0])
    elif what == "stream":
        rows = measure_stream(reader, selected, int(n_batches))
    else:
        rows = measure_convert(*selected)
    print(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
