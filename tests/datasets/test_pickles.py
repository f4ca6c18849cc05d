"""Pickles are read without being run, and damage is told apart."""

from __future__ import annotations

import builtins
import collections
import os
import pickle
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from sgdm_utils.datasets import pickles
from sgdm_utils.datasets.pickles import UnsafePickleError, load
from sgdm_utils.errors import DatasetError

PROTOCOLS = range(6)
MIXED = {
    "eeg": np.arange(2 * 3 * 40 * 50, dtype=np.float64).reshape(2, 3, 40, 50),  # 96 kB
    "fortran": np.asfortranarray(np.arange(20_000.0).reshape(100, 200)),
    "big_endian": np.arange(20_000, dtype=">f8").reshape(200, 100),
    "axes": np.arange(24_000.0).reshape(20, 30, 40).transpose(1, 0, 2),
    "strided": np.arange(40_000.0).reshape(200, 200)[:, ::2],
    "small": np.arange(6, dtype=np.int16).reshape(2, 3),
    "half": np.ones(3, np.float16),
    "complex": np.array([1 + 2j], np.complex64),
    "bool": np.array([True, False]),
    "text": np.array(["Fp1", "O2", "Pö"]),
    "bytes_array": np.array([b"ab", b"c"]),
    "empty": np.empty((0, 63, 250), np.float32),
    "no_dimension": np.array(3.0),
    "objects": np.array([[{"a": 1}, None], ["x", (1, 2)]], dtype=object),
    "objects_fortran": np.asfortranarray(np.array([[1, "b"], [None, 2.0]], dtype=object)),
    "nested_arrays": [np.zeros(2), {"deep": np.ones(30_000, np.float32)}],
    "scalar": np.float64(0.1),
    "integer": np.int64(-5),
    "string_scalar": np.str_("Oz"),
    "empty_scalar": np.str_(""),
    "ch_names": ["Pz", "P3"],
    "plain": (None, True, False, 1, -(2**80), 2.5, "ü", b"", b"\x00\xff"),
    "sets": [{1, 2}, frozenset({"a"}), set(), frozenset()],
    "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
    "long_bytes": bytes(range(256)) * 400,
    "long_text": "ä" * 100_000,
}


def assert_same(read, expected):
    """Compare values and types in depth; NumPy's own comparison knows nothing of nested ones."""
    if isinstance(expected, np.ndarray):
        assert isinstance(read, np.ndarray)
        assert read.shape == expected.shape and read.dtype == expected.dtype
        assert read.dtype.byteorder == expected.dtype.byteorder
        if expected.dtype == object:
            for one, other in zip(read.ravel(), expected.ravel(), strict=True):
                assert_same(one, other)
            assert read.flags.f_contiguous == expected.flags.f_contiguous
        else:
            np.testing.assert_array_equal(np.asarray(read), expected)
        return
    assert type(read) is type(expected)
    if isinstance(expected, dict):
        assert list(read) == list(expected)
        for key in expected:
            assert_same(read[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(read) == len(expected)
        for one, other in zip(read, expected, strict=True):
            assert_same(one, other)
    else:
        assert read == expected


def write(path: Path, value, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_reads_as_pickle_reads_it(tmp_path, protocol):
    path = write(tmp_path / "d.npy", MIXED, protocol)
    with open(path, "rb") as stream:
        expected = pickle.load(stream)
    assert_same(load(path), expected)


@pytest.mark.parametrize("protocol", range(5))
def test_the_python_pickler_frames_differently(tmp_path, protocol):
    path = tmp_path / "d.npy"
    path.write_bytes(pickle._dumps(MIXED, protocol=protocol))
    assert_same(load(path), pickle.loads(path.read_bytes()))


def test_names_of_numpy_1_are_known(tmp_path):
    for protocol in PROTOCOLS:
        written = pickle.dumps(MIXED, protocol=protocol)
        old = written.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        old = old.replace(b"numpy._core.numeric", b"numpy.core.numeric")
        # in binary protocols the length of a name and of a frame stand before it
        old = old.replace(b"\x8c\x16numpy.core.m", b"\x8c\x15numpy.core.m")
        old = old.replace(b"\x8c\x13numpy.core.n", b"\x8c\x12numpy.core.n")
        assert b"_core" not in old
        path = tmp_path / "old.npy"
        path.write_bytes(old)
        assert_same(load(path), pickle.loads(written))


RECORDS = np.array([(1, 2.5), (3, 4.5)], [("onset", "<i4"), ("value", ">f8")])
ARRAYS = {k: v for k, v in MIXED.items() if isinstance(v, np.ndarray)} | {"records": RECORDS}


@pytest.mark.parametrize("key", ARRAYS)
def test_npy_files_read_as_numpy_reads_them(tmp_path, key):
    np.save(tmp_path / "a.npy", ARRAYS[key])
    read = load(tmp_path / "a.npy")
    expected = np.load(tmp_path / "a.npy", allow_pickle=True)
    assert_same(read, expected)
    if expected.dtype != object and expected.size:
        assert isinstance(read, np.memmap) and not read.flags.writeable
        assert read.flags.f_contiguous == expected.flags.f_contiguous


def test_the_object_in_a_0d_array_comes_back(tmp_path):
    np.save(tmp_path / "raw.npy", MIXED)  # how np.save treats a dict
    assert np.load(tmp_path / "raw.npy", allow_pickle=True).shape == ()
    assert_same(load(tmp_path / "raw.npy"), pickle.loads(pickle.dumps(MIXED, protocol=4)))


def test_python_2_pickles_keep_their_bytes(tmp_path):
    content = np.array([1.5, -2.0]).tobytes()
    python_2 = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U" + bytes([len(content)]) + content + b"tb."
    )
    (tmp_path / "py2.npy").write_bytes(python_2)
    assert load(tmp_path / "py2.npy").tolist() == [1.5, -2.0]


def test_shared_objects_stay_shared(tmp_path):
    eeg, names = np.arange(20_000.0), ["Pz"]
    shared = {"a": eeg, "b": [eeg, names], "c": names}
    for protocol in PROTOCOLS:
        read = load(write(tmp_path / "d.npy", shared, protocol))
        assert_same(read, shared)
        assert np.shares_memory(read["a"], read["b"][0])
    shared["self"] = shared
    with pytest.raises(DatasetError, match="contains itself"):  # no published file does
        load(write(tmp_path / "d.npy", shared))


# ---------------------------------------------------------------------- hostile files


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def touch(sentinel: Path) -> list[tuple[str, object]]:
    """Ways to make a reader of pickles create a file."""
    code = f"open({str(sentinel)!r}, 'w').close()"
    return [
        (f"{os.system.__module__}.system", Call(os.system, f"touch '{sentinel}'")),
        ("builtins.eval", Call(eval, code)),
        ("builtins.exec", Call(exec, code)),
        ("builtins.getattr", Call(getattr, [], "append")),
        (r"(io|builtins)\.open", Call(open, str(sentinel), "w")),
        (r"(subprocess|commands)\.Popen", Call(subprocess.Popen, ["touch", str(sentinel)])),
        (r"numpy.*\.load", Call(np.load, "other.npy", None, True)),
        (r"numpy.*\.memmap", Call(np.memmap, str(sentinel), "u1", "w+", 0, (1,))),
        (r"numpy.*\.savetxt", Call(np.savetxt, str(sentinel), [1.0])),
    ]


NESTED = {
    "alone": lambda bad: bad,
    "in a dict": lambda bad: {"eeg": np.zeros(3), "more": [({"x": bad},)]},
    "as a key": lambda bad: {(1, bad): 0},
    "in an object array": lambda bad: np.array([None, bad, 1], dtype=object),
}


@pytest.mark.parametrize("nest", NESTED.values(), ids=NESTED.keys())
@pytest.mark.parametrize("attack", range(len(touch(Path("x")))))
def test_a_hostile_pickle_is_reported_and_not_run(tmp_path, nest, attack):
    sentinel = tmp_path / "executed"
    name, bad = touch(sentinel)[attack]
    for protocol in PROTOCOLS:
        path = write(tmp_path / "eeg.npy", nest(bad), protocol)
        with pytest.raises(UnsafePickleError, match=rf"eeg\.npy asks for (__builtin__|{name})"):
            load(path)
        with pytest.raises(UnsafePickleError, match="Nothing of it was executed"):
            load(path)
    np.save(tmp_path / "wrapped.npy", np.array(nest(bad), dtype=object), allow_pickle=True)
    with pytest.raises(UnsafePickleError, match=rf"wrapped\.npy asks for {name}"):
        load(tmp_path / "wrapped.npy")
    assert not sentinel.exists()


def test_the_attack_would_have_worked(tmp_path):
    path = write(tmp_path / "eeg.npy", Call(open, str(tmp_path / "executed"), "w"))
    pickle.loads(path.read_bytes()).close()
    assert (tmp_path / "executed").exists()


RAW = {
    "instance opcode": (b"(cos\nsystem\nS'x'\no.", "instruction OBJ"),
    "class opcode": (b"(S'x'\nios\nsystem\n.", "uses the pickle instruction INST"),
    "object of an admitted class": (b"\x80\x02(cnumpy\nndarray\nK\x05o.", "instruction OBJ"),
    "new object": (b"\x80\x02cnumpy\nndarray\n)\x81.", "instruction NEWOBJ"),
    "extension registry": (b"\x80\x02\x82\x01.", "instruction EXT1"),
    "persistent id": (b"\x80\x04K\x01Q.", "instruction BINPERSID"),
    "foreign buffer": (b"\x80\x05\x97.", "instruction NEXT_BUFFER"),
    "call of the array class": (b"\x80\x02cnumpy\nndarray\nK\x05\x85R.", "has ndarray called"),
    "the bare class": (b"\x80\x02]cnumpy\nndarray\na.", "function or class itself"),
    "attributes of a class": (b"\x80\x02cnumpy\nndarray\n}b.", "sets attributes of ndarray"),
    "record dtype by text": (
        b"\x80\x02cnumpy\ndtype\nX\x05\x00\x00\x00f4,O8\x89\x88\x87R.",
        "dtype 'f4,O8'",
    ),
    "dotted name": (b"\x80\x04\x8c\x05numpy\x8c\x0dcore.os.systm\x93.", "asks for numpy.core.os"),
    "nested names": (
        b"\x80\x04\x8c\x08builtins\x8c\x10set.__subclasses\x93.",
        "asks for builtins.set.__sub",
    ),
}


@pytest.mark.parametrize(("content", "message"), RAW.values(), ids=RAW.keys())
def test_instructions_that_data_do_not_need_are_refused(tmp_path, content, message):
    (tmp_path / "eeg.npy").write_bytes(content)
    with pytest.raises(UnsafePickleError, match=message):
        load(tmp_path / "eeg.npy")


def test_records_with_objects_are_refused(tmp_path):
    records = np.array([(1, None)], [("a", "i4"), ("b", "O")])
    with pytest.raises(UnsafePickleError, match="holds records"):
        load(write(tmp_path / "d.npy", records))
    np.save(tmp_path / "e.npy", records)
    with pytest.raises(UnsafePickleError, match="records with objects"):
        load(tmp_path / "e.npy")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_bytes_never_become_pointers(tmp_path, protocol):
    """An object dtype over bytes of the file, whatever flags its state claims."""
    written = pickle.dumps(np.arange(20_000.0), protocol=protocol)
    path = tmp_path / "d.npy"
    path.write_bytes(written.replace(b"f8", b"O8"))
    assert b"O8" in path.read_bytes()
    with pytest.raises(DatasetError, match="damaged"):
        load(path)


def test_nothing_is_imported_for_a_name(tmp_path, monkeypatch):
    path = write(tmp_path / "d.npy", Call(collections.Counter))

    def no_import(*arguments, **options):
        raise AssertionError("an import was tried")

    monkeypatch.setattr(builtins, "__import__", no_import)
    with pytest.raises(UnsafePickleError, match="collections.Counter"):
        load(path)


# ---------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_truncated_pickle_is_told_wherever_it_ends(tmp_path, protocol):
    whole = pickle.dumps({"eeg": np.arange(20_000.0), "ch_names": ["Pz"]}, protocol=protocol)
    path = tmp_path / "cut.npy"
    for end in [
        *range(1, 400, 9),
        *range(400, len(whole) - 60, 29_973),
        *range(len(whole) - 60, 0),
    ]:
        path.write_bytes(whole[:end])
        with pytest.raises(DatasetError, match=r"cut\.npy (is truncated|is neither|is damaged)"):
            load(path)


def test_a_truncated_npy_is_told(tmp_path):
    np.save(tmp_path / "whole.npy", np.zeros((10, 20)))
    whole = (tmp_path / "whole.npy").read_bytes()
    path = tmp_path / "cut.npy"
    for end in range(1, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(DatasetError, match=r"cut\.npy (is truncated|is neither|has no header)"):
            load(path)
    path.write_bytes(whole[:-100])
    with pytest.raises(DatasetError, match="truncated.*checksum"):
        load(path)
    path.write_bytes(whole.replace(b"(10, 20), }" + b" " * 16, b"(%d,), }" % 10**20))
    with pytest.raises(DatasetError, match="truncated.*checksum"):
        load(path)


PAGE = b"<!DOCTYPE html><html><body>Too many requests</body></html>"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (PAGE, "neither a .npy array nor a pickle: it begins with b'<!DOCTYPE html>"),
        (b"version https://git-lfs.github.com/spec/v1\n", "neither .* b'version https://git-lfs"),
        (b"PK\x03\x04" + bytes(30), "neither .* a pickle"),
        (b"0       X X X X" + bytes(200), "neither .* a pickle"),  # EDF
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "neither .* a pickle"),
        (b"channel\ttype\nFp1\tEEG\n", "neither .* a pickle"),
        (b"onset\tduration\n", "neither .* a pickle"),
        (bytes(1000), "neither .* a pickle"),
        (pickle.dumps([1]) + b"\n", "1 bytes follow"),
        (pickle.dumps([1]) * 2, "bytes follow"),
        (b"\x80\x09.", "truncated or damaged"),
        (b"\x80\x04K\x01\xff.", "damaged"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.", "truncated"),
        (b"\x80\x04\x8e\x00\x00\x00\x00\x00\x00\x00\x10.", "truncated"),
        (b"\x80\x05\x96\x00\x00\x00\x00\x00\x00\x00\x10.", "truncated"),
        (b"\x80\x04h\x05.", "truncated or damaged"),
        (b"\x80\x04.", "truncated or damaged"),
        (b"\x93NUMPY\x07\x00" + bytes(100), "no header"),
        (b"\x93NUMPY\x01\x00\x10\x00__import__('os') ", "no header"),
    ],
)
def test_what_is_no_data_is_told(tmp_path, content, message):
    path = tmp_path / "preprocessed_eeg_training.npy"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=rf"preprocessed_eeg_training\.npy.*{message}"):
        load(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(DatasetError, match=r"none\.npy cannot be opened \(No such file"):
        load(tmp_path / "none.npy")
    with pytest.raises(DatasetError, match="cannot be opened"):
        load(tmp_path)


@pytest.mark.parametrize("n", [5, 20_000])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_shape_that_contradicts_the_bytes_is_told(tmp_path, n, protocol):
    written = pickle.dumps(np.arange(float(n)), protocol=protocol)
    n_coded, other = (b"K\x05", b"K\x06") if n == 5 else (b"M\x20\x4e", b"M\x21\x4e")
    assert written.count(n_coded + b"\x85") == 1
    path = tmp_path / "d.npy"
    path.write_bytes(written.replace(n_coded + b"\x85", other + b"\x85"))
    with pytest.raises(DatasetError, match="damaged"):
        load(path)
    path.write_bytes(written.replace(n_coded + b"\x85", b"J\xff\xff\xff\xff\x85"))
    with pytest.raises(DatasetError, match="damaged"):
        load(path)


def test_damage_anywhere_is_reported_as_such(tmp_path):
    """Whatever bytes are flipped: a value, or an error that names the file; never another one."""
    rng = np.random.default_rng(0)
    whole = pickle.dumps({"a": MIXED["small"], "b": MIXED["objects"], "c": {1, "x"}}, protocol=4)
    path = tmp_path / "flipped.npy"
    failed = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 2):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            load(path)
        except DatasetError as error:
            assert "flipped.npy" in str(error)
            failed += 1
    assert failed > 150


# ---------------------------------------------------------------------- memory


def test_a_pickle_too_large_is_converted_once(tmp_path, monkeypatch):
    content = {"eeg": MIXED["eeg"], "ch_names": ["Pz", "P3"], "configs": {"mvnn": None}}
    path = write(tmp_path / "eeg.npy", content)
    small = SimpleNamespace(available=path.stat().st_size)
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "virtual_memory", lambda: small)
        with pytest.raises(DatasetError, match=r"eeg\.npy is a pickle of .*pickles\.convert"):
            load(path)
    assert pickles.convert(path) == tmp_path / "eeg.arrays"
    monkeypatch.setattr(psutil, "virtual_memory", lambda: small)
    read = load(path)
    assert isinstance(read["eeg"], np.memmap) and not read["eeg"].flags.writeable
    assert_same(read["eeg"], content["eeg"])
    assert read["ch_names"].tolist() == content["ch_names"]
    assert read["configs"] == content["configs"]
    with pytest.raises(DatasetError, match="nothing to convert"):
        pickles.convert(write(tmp_path / "list.npy", [1]))
