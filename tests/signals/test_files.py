"""Trials come from the disk as from an array, with little memory, and files appear whole."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from sgdm_utils.errors import DatasetError
from sgdm_utils.signals import files as signals_files
from sgdm_utils.signals.files import Averages, TrialFile, TrialFiles
from sgdm_utils.signals.writing import TrialWriter, convert
from sgdm_utils.workflow import paths

SHAPE = (23, 4, 7)


def trials(n: int = 23, seed: int = 0, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, *SHAPE[1:])).astype(dtype)


def save(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.fixture(params=["preadv", "memory map"])
def way(request, monkeypatch):
    """Reading with and without the system's call for it."""
    if request.param == "memory map":
        monkeypatch.delattr(os, "preadv", raising=False)
    elif not hasattr(os, "preadv"):
        pytest.skip("the system has no preadv")
    return request.param


@pytest.fixture(params=["one file", "three files"])
def pair(request, tmp_path, way):
    """A reader and the array it stands for."""
    array = trials()
    if request.param == "one file":
        return TrialFile(save(tmp_path / "eeg.npy", array)), array
    parts = [array[:9], array[9:10], array[10:]]
    return TrialFiles([save(tmp_path / f"{i}.npy", p) for i, p in enumerate(parts)]), array


INDICES = {
    "int": 5,
    "negative int": -1,
    "numpy int": np.int16(-23),
    "all": slice(None),
    "slice": slice(3, 17),
    "steps": slice(1, 20, 4),
    "backwards": slice(None, None, -1),
    "negative slice": slice(-5, None),
    "beyond": slice(20, 99),
    "nothing": slice(5, 5),
    "list": [4, 2, 9],
    "one run, reversed": [12, 11, 10, 9, 8],
    "mixed runs": [3, 4, 5, 20, 0, 1, 9, 10, 8],
    "repeated": [4, 4, 22, 0, 4, 22],
    "negative list": [-1, 0, -23, 22],
    "empty list": [],
    "unsigned": np.array([1, 200], np.uint8) % 23,
    "two axes": np.array([[1, 2], [22, 9]]),
    "mask": np.arange(23) % 3 == 0,
    "mask list": [True] * 10 + [False] * 13,
    "empty mask": np.zeros(23, bool),
    "ellipsis": Ellipsis,
    "no index": (),
    "int and channel": (5, 2),
    "int and channels": (5, [0, 2], slice(1, 3)),
    "slice and list": (slice(2, 9), [0, 3]),
    "slice and mask": (slice(2, 9), np.array([True, False, True, False])),
    "list and slices": ([4, 2, 9], slice(None, 2), slice(None, None, -2)),
    "list and channel": ([4, 2], -1, 3),
    "last axis": (Ellipsis, 3),
    "new axis": (slice(None), None, 1),
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES.keys())
def test_an_index_gives_what_it_gives_in_an_array(pair, index):
    file, array = pair
    read, expected = file[index], array[index]
    assert type(read) is type(expected) and read.dtype == expected.dtype
    assert read.shape == expected.shape
    np.testing.assert_array_equal(read, expected)


def test_random_batches_equal_the_array(pair):
    file, array = pair
    rng = np.random.default_rng(1)
    for _ in range(60):
        rows = rng.integers(-23, 23, rng.integers(1, 60))
        np.testing.assert_array_equal(file[rows], array[rows])
        out = np.full((len(rows), *SHAPE[1:]), np.nan, np.float32)
        assert file.read(rows, out=out) is out
        np.testing.assert_array_equal(out, array[rows])


def test_it_looks_like_an_array(pair):
    file, array = pair
    assert (file.shape, file.dtype, file.ndim, len(file)) == (SHAPE, np.float32, 3, 23)
    np.testing.assert_array_equal(np.asarray(file), array)
    assert np.asarray(file, dtype=np.float64).dtype == np.float64
    assert [row.shape for row in (file[0], file[-1])] == [(4, 7)] * 2
    assert sum(1 for _ in file) == 23, "iteration ends at the last trial"
    with pytest.raises(ValueError, match="always a copy"):
        np.array(file, copy=False)
    file[0][:] = 0  # a copy of the reader's own
    np.testing.assert_array_equal(file[0], array[0])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (23, "range"),
        (-24, "range"),
        ([0, 23], "trial 23 is not there: 23 trials"),
        ([0, -24], "trial -24 is not there"),
        ([0.0, 1.0], "integers or a mask, not by float64"),
        (["a"], "integers or a mask"),
        (True, "mask of shape"),
        (np.ones(22, bool), r"mask of shape \(22,\) does not select among 23"),
        (np.ones((23, 4), bool), "mask of shape"),
        (([1, 2], [0, 1]), "take the trials first"),
        ((0, 9), "out of bounds"),
        (None, "integers or a mask"),
    ],
)
def test_a_wrong_index_is_refused(pair, index, message):
    with pytest.raises(IndexError, match=message):
        pair[0][index]


def test_an_unfitting_output_is_refused(pair):
    file, _ = pair
    for out in (
        np.empty((2, 4, 7), np.float32),
        np.empty((3, 4, 7), np.float64),
        np.empty((7, 4, 3), np.float32).T,
    ):
        with pytest.raises(ValueError, match=r"shape \(3, 4, 7\) and dtype float32"):
            file.read([0, 1, 2], out=out)


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="needs preadv")
def test_neighbouring_rows_are_one_read_in_file_order(tmp_path, monkeypatch):
    file = TrialFile(save(tmp_path / "eeg.npy", trials()))
    calls = []

    def preadv(handle, buffers, offset, read=os.preadv):
        calls.append((offset, len(buffers)))
        return read(handle, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    row, data = 4 * 7 * 4, 128
    for rows, expected in [
        (slice(3, 9), [(3, 1)]),
        ([9, 3, 4, 5], [(3, 1), (9, 1)]),  # neighbours in the result too: one buffer
        ([9, 4, 3, 5], [(3, 3), (9, 1)]),
        ([8, 7, 7, 1], [(1, 1), (7, 2)]),
    ]:
        calls.clear()
        file[rows]
        assert calls == [(data + first * row, n_buffers) for first, n_buffers in expected]


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="needs preadv")
@pytest.mark.parametrize("at_once", [1, 100, 1000])
def test_short_reads_are_continued(tmp_path, monkeypatch, at_once):
    array = trials()
    file = TrialFile(save(tmp_path / "eeg.npy", array))

    def preadv(handle, buffers, offset, read=os.preadv):
        part, left = [], at_once
        for buffer in buffers:
            part.append(buffer[:left])
            left -= len(part[-1])
            if not left:
                break
        return read(handle, part, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    rows = [5, 3, 4, 20, 21, 0]
    np.testing.assert_array_equal(file[rows], array[rows])


def test_more_neighbours_than_one_call_takes(tmp_path, way):
    array = np.arange(3000 * 2, dtype=np.float32).reshape(3000, 1, 2)
    file = TrialFile(save(tmp_path / "eeg.npy", array))
    np.testing.assert_array_equal(file[::-1], array[::-1])


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<i2"])
def test_dtypes_are_those_of_the_file(tmp_path, way, dtype):
    array = (trials() * 100).astype(dtype)
    read = TrialFile(save(tmp_path / "eeg.npy", array))[[2, 1, 1]]
    assert read.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(read, array[[2, 1, 1]])


def fill_from(file, queue):
    queue.put(file[[2, 0, 1]])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_forked_process_reads_too(pair):
    read_in_another_process(*pair, "fork")


def test_a_spawned_process_opens_the_file_again(tmp_path):
    read_in_another_process(TrialFiles([save(tmp_path / "eeg.npy", trials())]), trials(), "spawn")


def read_in_another_process(file, array, method):
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    worker = context.Process(target=fill_from, args=(file, queue))
    worker.start()
    np.testing.assert_array_equal(queue.get(timeout=60), array[[2, 0, 1]])
    worker.join()
    np.testing.assert_array_equal(file[3], array[3])


def test_threads_share_one_reader(pair):
    file, array = pair
    wrong = []

    def read(seed):
        rng = np.random.default_rng(seed)
        for _ in range(30):
            rows = rng.integers(0, 23, 8)
            wrong.extend(np.flatnonzero(file[rows] != array[rows]))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_pickled_reader_opens_the_file_again(tmp_path, way):
    path = save(tmp_path / "eeg.npy", trials())
    written = pickle.dumps(TrialFile(path))
    assert len(written) < 1000
    np.testing.assert_array_equal(pickle.loads(written)[:], trials())
    save(path, trials(20))
    with pytest.raises(
        DatasetError, match=r"replaced: it had shape \(23, 4, 7\).*now \(20, 4, 7\)"
    ):
        pickle.loads(written)


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="needs preadv")
def test_handles_are_closed_and_replaced_files_stay_readable(tmp_path):
    path = save(tmp_path / "eeg.npy", trials())
    count = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    file = TrialFile(path)
    convert(trials(seed=1), path)
    np.testing.assert_array_equal(file[:], trials(), err_msg="the file that was opened")
    np.testing.assert_array_equal(TrialFile(path)[:], trials(seed=1))
    del file
    if count is not None:
        assert len(os.listdir("/proc/self/fd")) == count


# ---------------------------------------------------------------------- faulty files


def test_faulty_files_are_named(tmp_path):
    path = save(tmp_path / "eeg.npy", trials())
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(DatasetError, match=r"eeg\.npy is truncated: it has 2699 bytes.*takes 2704"):
        TrialFile(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(DatasetError, match=r"eeg\.npy is too long: it has 2705 bytes"):
        TrialFile(path)
    path.write_bytes(whole[:50])
    with pytest.raises(DatasetError, match=r"eeg\.npy has no header"):
        TrialFile(path)
    path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"eeg\.npy has no header"):
        TrialFile(path)
    with pytest.raises(DatasetError, match=r"none\.npy cannot be opened \(No such file"):
        TrialFile(tmp_path / "none.npy")
    for other, message in [
        (np.asfortranarray(trials()), r"shape \(23, 4, 7\) in Fortran order; trials are numbers"),
        (trials().reshape(23, 28), r"shape \(23, 28\) in C order"),
        (np.zeros(SHAPE, "U2"), "holds <U2"),
        (np.zeros(SHAPE, complex), "holds complex128"),
        (np.array([[[{}]]]), "holds object"),
    ]:
        with pytest.raises(
            DatasetError, match=rf"other\.npy holds .*{message.split('holds ')[-1]}"
        ):
            TrialFile(save(tmp_path / "other.npy", other))


def test_a_file_that_shrinks_is_told(tmp_path, way):
    path = save(tmp_path / "eeg.npy", trials())
    file = TrialFile(path)
    os.truncate(path, 1000)
    with pytest.raises(DatasetError, match=r"eeg\.npy has become shorter"):
        file[:]


def test_files_that_do_not_fit_together_are_both_named(tmp_path):
    one = save(tmp_path / "sub-01.npy", trials())
    for other in (trials()[:, :3], trials()[..., :5], trials().astype(np.float64)):
        two = save(tmp_path / "sub-02.npy", other)
        with pytest.raises(DatasetError, match=r"sub-02\.npy holds .*sub-01\.npy"):
            TrialFiles([one, two])
    with pytest.raises(DatasetError, match="at least one"):
        TrialFiles([])


def test_trials_without_content(tmp_path, way):
    for shape in ((0, 4, 7), (3, 0, 7)):
        file = TrialFile(save(tmp_path / "eeg.npy", np.zeros(shape, np.float32)))
        assert file[:].shape == shape
        assert file[1:].shape == np.zeros(shape)[1:].shape


# ---------------------------------------------------------------------- averages


@pytest.mark.parametrize("kind", ["array", "file", "files"])
def test_averages_are_the_means_of_their_groups(tmp_path, kind, monkeypatch):
    array = trials() + np.float32(1000)
    parts = [array] if kind == "file" else [array[:6], array[6:]]
    files = [save(tmp_path / f"{i}.npy", part) for i, part in enumerate(parts)]
    eeg = {"array": array, "file": TrialFile(files[0]), "files": TrialFiles(files)}[kind]
    groups = [[0, 5, 7], [3], np.arange(23), [22, 22]]
    averages = Averages(eeg, groups)
    expected = np.stack([array[g].astype(np.float64).mean(0) for g in groups]).astype(np.float32)
    assert (averages.shape, len(averages), averages.dtype) == ((4, 4, 7), 4, np.float32)
    for index in (slice(None), 2, -1, [3, 0, 0], [True, False, True, True], (slice(1, 3), 2)):
        read = averages[index]
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, expected[index])
    np.testing.assert_array_equal(np.asarray(averages), expected)
    monkeypatch.setattr(signals_files, "_BLOCK_BYTES", 5 * 4 * 7 * 4)  # five trials at once
    np.testing.assert_allclose(averages[2], expected[2], rtol=1e-7)


def test_averages_accumulate_in_double_precision():
    eeg = np.ones((4, 1, 1), np.float32)
    eeg[0] = 2.0**25  # the ones after it vanish in single precision
    assert Averages(eeg, [[0, 1, 2, 3]])[0] == np.float32((2.0**25 + 3) / 4)


def test_averages_read_only_what_is_asked_for():
    class Counted:
        shape, dtype, asked = (23, 4, 7), np.dtype(np.float32), []

        def __len__(self):
            return 23

        def __getitem__(self, rows):
            self.asked.extend(rows)
            return trials()[rows]

    eeg = Counted()
    Averages(eeg, [[0, 1], [2, 3], [4]])[[1]]
    assert eeg.asked == [2, 3]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[0], []], "group 1 of 2 is no list of trials"),
        ([[0], [1.5]], "group 1 of 2"),
        ([[0], 3], "group 1 of 2"),
        ([[True, False]], "group 0 of 1"),
        ([[0], [5, 23]], "group 1 asks for trial 23; there are the trials 0 to 22"),
        ([[-1]], "group 0 asks for trial -1"),
    ],
)
def test_impossible_groups_are_named(groups, message):
    with pytest.raises(DatasetError, match=message):
        Averages(trials(), groups)


# ---------------------------------------------------------------------- writing


@pytest.mark.parametrize("chunk_bytes", [1, 1000, 1 << 20])
def test_convert_writes_what_astype_makes(tmp_path, chunk_bytes):
    array = trials(dtype=np.float64).reshape(23, 2, 2, 7)
    seen = []
    path = convert(
        array, tmp_path / "new" / "eeg.npy", chunk_bytes=chunk_bytes,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert path == tmp_path / "new" / "eeg.npy"
    read = np.load(path)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, array.astype(np.float32))
    step = max(1, chunk_bytes // (28 * 8))
    assert seen == [(min(i + step, 23), 23) for i in range(0, 23, step)]
    assert [p.name for p in path.parent.iterdir()] == ["eeg.npy"]


@pytest.mark.parametrize(
    "kind", ["memmap", "unaligned", "fortran", "view", "file", "list", "int16"]
)
def test_convert_takes_any_source(tmp_path, kind, monkeypatch):
    array = trials(300, dtype=np.float64)
    if kind == "unaligned":
        (tmp_path / "raw").write_bytes(b"abc" + array.tobytes())
        source = np.memmap(tmp_path / "raw", array.dtype, "r", 3, array.shape)
    elif kind == "int16":
        source = array = (array * 1000).astype(np.int16)
    elif kind == "list":
        source = array.tolist()
    elif kind == "fortran":
        source = np.load(save(tmp_path / "f.npy", np.asfortranarray(array)), mmap_mode="r")
    else:
        source = np.load(save(tmp_path / "source.npy", array), mmap_mode="r")
        if kind == "view":
            source, array = source[7::3, 1:], array[7::3, 1:]
        elif kind == "file":
            source = TrialFile(tmp_path / "source.npy")
    convert(source, tmp_path / "eeg.npy", chunk_bytes=20_000)
    expected = array.astype(np.float32)
    np.testing.assert_array_equal(np.load(tmp_path / "eeg.npy"), expected)
    if not isinstance(source, list):
        np.testing.assert_array_equal(source[:], array)  # still readable
    monkeypatch.delattr(mmap, "MADV_DONTNEED", raising=False)
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    convert(source, tmp_path / "eeg.npy", chunk_bytes=20_000)
    np.testing.assert_array_equal(np.load(tmp_path / "eeg.npy"), expected)


def test_convert_refuses_what_float32_cannot_hold(tmp_path):
    array = trials(dtype=np.float64)
    before = trials(seed=5)
    target = save(tmp_path / "eeg.npy", before)
    for value, message in [
        (np.nan, r"trial 17, value \[2, 3\] \(nan\) is not a finite number"),
        (-np.inf, r"trial 17, value \[2, 3\] \(-inf\) is not a finite number"),
        (1e39, r"trial 17, value \[2, 3\] \(1e\+39\) is beyond the range of float32"),
    ]:
        array[17, 2, 3] = value
        source = np.load(save(tmp_path / "source.npy", array), mmap_mode="r")
        with pytest.raises(DatasetError, match=rf"source\.npy: {message}"):
            convert(source, target, chunk_bytes=1000)
    with pytest.raises(DatasetError, match="beyond the range of float32"):
        convert(source, target, check_finite=False)
    for other in (array + 1j, array.astype(str), np.array(3.0)):
        with pytest.raises(DatasetError, match="the array holds .* does not become trials"):
            convert(other, target)
    np.testing.assert_array_equal(np.load(target), before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["eeg.npy", "source.npy"]
    array[17, 2, 3] = np.nan
    assert np.isnan(np.load(convert(array, target, check_finite=False))[17, 2, 3])


def test_convert_asks_for_space_first(tmp_path):
    class Huge:
        shape, ndim, dtype, filename = (10**9, 63, 250), 3, np.dtype(float), "huge.npy"

    with pytest.raises(DatasetError, match=r"eeg\.npy takes 63000\.0 GB, the disk has"):
        convert(Huge(), tmp_path / "eeg.npy")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_conversion_leaves_nothing(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(trials(), tmp_path / "eeg.npy", chunk_bytes=1000, progress=interrupt)
    assert not list(tmp_path.iterdir())


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from sgdm_utils.signals import writing
def wait(done, total):
    print("writing", flush=True)
    time.sleep(60)
writing.convert(np.zeros((9, 4, 7)), Path(sys.argv[1]), chunk_bytes=1, progress=wait)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_killed_conversion_leaves_nothing_under_the_name(tmp_path):
    before = trials()
    target = save(tmp_path / "eeg.npy", before)
    worker = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(target)],
        cwd=paths.project_root(),
        stdout=subprocess.PIPE,
    )
    assert worker.stdout.readline() == b"writing\n"
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    np.testing.assert_array_equal(np.load(target), before)
    assert all(p.name.startswith(".") for p in tmp_path.iterdir() if p != target)
    convert(trials(seed=1), target)
    np.testing.assert_array_equal(np.load(target), trials(seed=1))


def test_a_writer_appends_until_the_end_of_its_block(tmp_path):
    path = tmp_path / "new" / "eeg.npy"
    with TrialWriter(path) as writer:
        for part in np.split(trials(dtype=np.float64), [1, 1, 10]):
            assert not path.exists()
            writer.append(part)
    assert writer.n_trials == 23 and [p.name for p in path.parent.iterdir()] == ["eeg.npy"]
    read = np.load(path, mmap_mode="r")
    assert read.shape == SHAPE and read.dtype == np.float32
    np.testing.assert_array_equal(read, trials())
    np.testing.assert_array_equal(TrialFile(path)[:], trials())
    with pytest.raises(ValueError, match="within the `with` block"):
        writer.append(trials())
    with TrialWriter(path, dtype=">f8") as writer:
        for _ in range(1_234):
            writer.append(np.ones((1, 1, 2)))
    assert np.load(path).shape == (1_234, 1, 2) and np.load(path).dtype == np.dtype(">f8")


def test_a_failing_writer_leaves_what_was_there(tmp_path):
    path = save(tmp_path / "eeg.npy", trials())
    bad = trials()
    bad[2, 1, 6] = np.nan
    for faulty, message in [
        (trials()[:, :3], r"eeg\.npy: trials of shape \(3, 7\) after 23 of shape \(4, 7\)"),
        (trials()[0], r"eeg\.npy: trials are numbers of shape .* not float32 of shape \(4, 7\)"),
        (trials().astype(str), "not <U32"),
        (bad, r"eeg\.npy: trial 25, value \[1, 6\] \(nan\) is not a finite number"),
        (trials(dtype=np.float64) * 1e40, r"trial 23, value \[0, 0\] .* beyond the range"),
    ]:
        with pytest.raises(DatasetError, match=message), TrialWriter(path) as writer:
            writer.append(trials(seed=1))
            writer.append(faulty)
    with pytest.raises(DatasetError, match=r"eeg\.npy was not written: there was no trial"):
        with TrialWriter(path):
            pass
    with pytest.raises(ZeroDivisionError), TrialWriter(path) as writer:
        writer.append(trials(seed=1))
        1 / 0  # noqa: B018
    assert [p.name for p in tmp_path.iterdir()] == ["eeg.npy"]
    np.testing.assert_array_equal(np.load(path), trials())


# ---------------------------------------------------------------------- memory

BATCHES = """
import sys
from pathlib import Path
import numpy as np
import psutil
from sgdm_utils.signals.files import TrialFiles
eeg = TrialFiles(sorted(Path(sys.argv[1]).glob("*.npy")))
rng = np.random.default_rng(0)
out = np.empty((64, *eeg.shape[1:]), np.float32)
memory = lambda: psutil.Process().memory_info()
out[:] = 0
before = memory()
for _ in range(100):
    eeg.read(rng.integers(0, len(eeg), 64), out=out)
after = memory()
print(eeg.shape[0], after.rss - before.rss, (after.rss - after.shared) - (before.rss - before.shared))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="private memory is told by Linux")
def test_random_batches_from_ten_files_keep_the_memory_as_it_is(tmp_path):
    array = np.zeros((100, 63, 250), np.float32)
    for subject in range(10):  # 63 MB
        array[:] = subject
        np.save(tmp_path / f"sub-{subject:02}.npy", array)
    done = subprocess.run(
        [sys.executable, "-c", BATCHES, str(tmp_path)],
        cwd=paths.project_root(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    n, resident, private = map(int, done.stdout.split())
    assert n == 1000
    assert resident < 8e6 and private < 8e6, "nothing but the batch itself stays in memory"
