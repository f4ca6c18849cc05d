"""Pickled data sets, opened without running them.

Public EEG is handed around as pickles, and a pickle is a program: it names functions and has them
called. A pickle is looked through here before it is read: names other than those of NumPy arrays
and plain containers, instructions that these do not need, deep nesting, and references that would make
much of little are refused.
"""

from __future__ import annotations

import collections
import os
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import psutil

from sgdm_utils.datasets.pickle_shape import Shape, TooLarge
from sgdm_utils.errors import DatasetError
from sgdm_utils.workflow import atomic
from sgdm_utils.workflow.formats import read_header

__all__ = ["UnsafePickleError", "convert", "load"]

AGAIN = "Download the file again and compare its checksum"
_REMEDY = (
    "Nothing of it was executed. Take the file from its official source and compare the checksum; "
    "if it is what its makers publish, ask them for plain arrays"
)
_MAGIC = b"\x93NUMPY"
_DTYPE = re.compile(r"b1|[iu][1248]|f(2|4|8|12|16)|c(8|16|24|32)|[SUV]\d{1,9}|O8?")
_REFUSED = (
    "EXT1 EXT2 EXT4 PERSID BINPERSID INST OBJ NEWOBJ NEWOBJ_EX NEXT_BUFFER READONLY_BUFFER".split()
)
_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")
_LARGEST_BITS, _MOST_LARGE = 1024, 1000  # of whole numbers, and how many beyond 64 bits


class UnsafePickleError(DatasetError):
    """A pickle asks for more than arrays and plain containers; nothing of it was executed."""


def load(path: Path) -> Any:
    """Read a `.npy` file or a pickle of arrays and plain containers, under whatever name.

    Parameters
    ----------
    path : Path
        A `.npy` array, a `.npy` that wraps a pickled object (0-d object array), or a plain pickle
        of protocol 0 to 5, told apart by their first bytes and not by the name. What `convert` made
        of a pickle is read in its place.

    Returns
    -------
    ndarray, dict, list, tuple, set, str, bytes, number, ...
        The array of a `.npy` file is a read-only map of it; what a pickle holds is in memory.

    Raises
    ------
    UnsafePickleError
        The pickle names a function or class that arrays and plain containers do not need, uses
        an instruction that they do not need, is nested too deep, refers to itself, or would be far
        larger than its file (`pickle_shape`).
    DatasetError
        No such file, an empty, damaged or truncated one, a pickle too large for the memory.
    """
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if not size:
                raise DatasetError(f"{path} is empty (0 bytes). {AGAIN}")
            if stream.read(len(_MAGIC)) == _MAGIC:
                stream.seek(0)
                _, dtype, _, _ = read_header(stream, path)
                if dtype.kind != "O":
                    return _map(path, dtype)
            else:
                stream.seek(0)
            folder = _converted(path)
            if folder.is_dir():
                return {file.stem: load(file) for file in sorted(folder.glob("*.npy"))}
            if 2 * size > (free := psutil.virtual_memory().available):
                raise DatasetError(
                    f"{path} is a pickle of {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory "
                    "are free. Convert it once where there is twice its size, with "
                    f"sgdm_utils.datasets.pickles.convert, and put {folder.name}/ beside it"
                )
            value = _unpickle(stream, path, size)
    except OSError as error:
        raise DatasetError(f"{path} cannot be opened ({error.strerror}): is the path right?") from (
            error
        )
    if isinstance(value, np.ndarray) and value.dtype.kind == "O" and not value.ndim:
        value = value.item()
    return value


def convert(path: Path) -> Path:
    """Write each entry of a pickled dictionary to a `.npy` file of its own, which can be mapped.

    Parameters
    ----------
    path : Path, the pickle; it must fit into the memory here, and stays where it is

    Returns
    -------
    Path of the folder beside it, from which `load` reads from now on
    """
    content, folder = load(path), _converted(Path(path))
    if not isinstance(content, dict) or not all(re.fullmatch(r"\w+", str(k)) for k in content):
        raise DatasetError(f"{path} holds no dictionary of named arrays: nothing to convert")
    with atomic.atomic_directory(folder) as part:
        for name, value in content.items():
            np.save(part / f"{name}.npy", value)
    return folder


def _converted(path: Path) -> Path:
    return path.with_name(f"{path.stem}.arrays")


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    if dtype.hasobject:
        raise UnsafePickleError(f"{path} holds records with objects in them ({dtype}). {_REMEDY}")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OverflowError) as error:  # too short for its shape, or for any
        raise DatasetError(f"{path} is truncated ({error}). {AGAIN}") from error


# ------------------------------------------------------------------ the pickle machine


def _unpickle(stream: BinaryIO, path: Path, size: int) -> Any:
    start = stream.tell()
    _look_through(stream, path, start, size)
    stream.seek(start)
    try:
        return _plain(_Unpickler(stream, path).load(), path)
    except DatasetError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error  # a name does not know where it stands
    except Exception as error:  # a damaged pickle leads the machine into any of them
        raise DatasetError(
            f"{path} is damaged near byte {stream.tell()} ({type(error).__name__}: {error}). {AGAIN}"
        ) from error


def _look_through(stream: BinaryIO, path: Path, start: int, size: int) -> None:
    """Refuse instructions and sizes that no data need, before any of them is followed."""
    seen, large, shape = 0, 0, Shape(size)
    try:
        for opcode, value, at in pickletools.genops(_Bounded(stream, size)):
            seen += 1
            if opcode.name in _REFUSED and seen > 1:
                raise UnsafePickleError(
                    f"{path} uses the pickle instruction {opcode.name} at byte {at}, which arrays "
                    f"and plain containers do not need. {_REMEDY}"
                )
            # a pickler numbers what it remembers one by one
            limit = seen if opcode.name in _MEMO else size
            too_large = opcode.name in (*_MEMO, "FRAME") and value > limit
            if opcode.name in _REFUSED or too_large:
                raise ValueError(f"{opcode.name} {value}")
            bits = value.bit_length() if type(value) is int else 0
            large += bits > 64  # many such numbers may all look alike to a dictionary
            if large > _MOST_LARGE or bits > _LARGEST_BITS:
                raise ValueError(f"a whole number of {bits} bits, one of {large} beyond 64")
            shape.follow(opcode, value)
        shape.check()
    except TooLarge as error:
        raise UnsafePickleError(f"{path} {error}. {_REMEDY}") from error
    except DatasetError:
        raise
    except Exception as error:
        stream.seek(start)
        begin = stream.read(24)
        if begin[:1] != pickle.PROTO:  # protocols 0 and 1 have no mark
            raise DatasetError(
                f"{path} is neither a .npy array nor a pickle: it begins with {begin!r}. Is it the "
                "right file, or an error page of the server's?"
            ) from error
        raise DatasetError(f"{path} is truncated or damaged ({error}). {AGAIN}") from error
    if stream.tell() != size:
        raise DatasetError(
            f"{path}: {size - stream.tell()} bytes follow after the end of the data. Was something "
            f"appended to the file? {AGAIN}"
        )


class _Bounded:
    """A stream that is asked for no more bytes than it has: `read` reserves them first."""

    def __init__(self, stream: BinaryIO, size: int):
        self._stream, self._size = stream, size
        self.readline, self.tell = stream.readline, stream.tell

    def read(self, n: int) -> bytes:
        if n > (left := self._size - self._stream.tell()):
            raise ValueError(f"an item of {n} bytes, {left} are left")
        return self._stream.read(n)


class _Name:
    """What a pickle gets for a name that it may use; nothing else can be done with it than call."""

    __slots__ = ("_call", "_name")

    def __init__(self, name: str, call: Callable[..., Any] | None):
        self._name, self._call = name, call

    def __call__(self, *arguments: Any) -> Any:
        if self._call is None:
            raise UnsafePickleError(f"a pickle has {self._name} called. {_REMEDY}")
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise UnsafePickleError(f"a pickle sets attributes of {self._name}. {_REMEDY}")


class _Dtype:
    """A dtype whose state is not believed: flags of its own would turn bytes into pointers."""

    __slots__ = ("dtype",)

    def __init__(self, name: str, align: bool = False, copy: bool = True):
        if not isinstance(name, str) or not _DTYPE.fullmatch(name):
            raise UnsafePickleError(f"a pickle holds values of dtype {name!r}. {_REMEDY}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        _, endian, base, names, *_ = state
        if base is not None or names is not None:
            raise UnsafePickleError(f"a pickle holds records, which are not read. {_REMEDY}")
        self.dtype = np.dtype({"|": "|", "=": "=", "<": "<", ">": ">"}[endian] + self.dtype.str[1:])


class _Array(np.ndarray):
    """An array that takes its state as NumPy's do, with a dtype of ours."""

    def __setstate__(self, state: tuple) -> None:
        *version, shape, dtype, fortran_order, content = state
        super().__setstate__((*version, shape, dtype.dtype, fortran_order, content))


class _Unpickler(pickle.Unpickler):
    """An unpickler that looks names up in a short list; nothing is imported."""

    def __init__(self, stream: BinaryIO, path: Path):
        super().__init__(stream, encoding="latin1")  # Python 2 stored array bytes as text
        self._path = path

    def find_class(self, module: str, name: str) -> _Name:
        module = module.replace("numpy._core.", "numpy.core.").replace("__builtin__", "builtins")
        try:
            return _Name(name, _NAMES[f"{module}.{name}"])
        except KeyError:
            raise UnsafePickleError(
                f"{self._path} asks for {module}.{name}, which is neither a NumPy array nor a plain "
                f"container. {_REMEDY}"
            ) from None


def _new_array(kind: Any, shape: Any, typecode: Any) -> _Array:
    return np.ndarray.__new__(_Array, (0,), "b")


def _from_buffer(
    content: Any, dtype: _Dtype, shape: Any, order: str, axes: Any = None
) -> np.ndarray:
    if dtype.dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError(f"{dtype.dtype} of shape {shape} in a buffer")
    array = np.frombuffer(content, dtype.dtype)
    if order == "K" and axes is not None:
        return array.reshape(shape, order="C").transpose(axes)
    return array.reshape(shape, order=order)


def _scalar(dtype: _Dtype, content: Any) -> Any:
    if dtype.dtype.hasobject:
        raise ValueError("a scalar of objects")
    content = content.encode("latin1") if isinstance(content, str) else content
    return np.ndarray((), dtype.dtype, content)[()] if content else dtype.dtype.type()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes written as {encoding!r}")
    return text.encode("latin1")


_NAMES: dict[str, Callable[..., Any] | None] = {
    "numpy.ndarray": None,
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": _new_array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "_codecs.encode": _encode,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.bytes": lambda: b"",
    "collections.OrderedDict": collections.OrderedDict,
}


def _plain(value: Any, path: Path) -> Any:
    """Return nested containers with NumPy's own arrays in them."""
    if isinstance(value, np.ndarray):
        value = value.view(np.ndarray)
        if value.dtype.kind == "O":
            for at, part in np.ndenumerate(value):
                value[at] = _plain(part, path)
        return value
    if isinstance(value, dict):
        pairs = [(_plain(key, path), _plain(part, path)) for key, part in value.items()]
        return type(value)(pairs)
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(_plain(part, path) for part in value)
    if isinstance(value, _Name | _Dtype):
        raise UnsafePickleError(f"{path} holds a function or class itself, not data. {_REMEDY}")
    return value
