"""The pickle machine, cut down to what arrays and plain containers need.

A pickle is a program for a stack machine that may name any function and have it called. Here a name
is looked up in a short list and nowhere else, the instructions that data do not need are gone, and
what the file claims about an array is compared with what the file holds. `pickles` is the way in.
"""

from __future__ import annotations

import collections
import math
import os
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import unpack
from typing import Any, BinaryIO, NoReturn

import numpy as np

from sgdm_utils.errors import DatasetError

MAP_ABOVE = 1 << 16  # bytes; smaller arrays are read, a mapping of their own costs more than that

AGAIN = "Download the file again and compare its checksum"
_REMEDY = (
    "Nothing of it was executed. Take the file from its official source and compare the checksum; "
    "if it is what its makers publish, ask them for plain arrays, or convert it on a machine "
    "without anything of value"
)

_DTYPE_NAME = re.compile(r"b1|[iu][1248]|f(2|4|8|12|16)|c(8|16|24|32)|[SUV]\d{1,9}|O8?")
_NAME = re.compile(r"\w+(\.\w+)+")


class UnsafePickleError(DatasetError):
    """A pickle asks for more than arrays and plain containers; nothing of it was executed."""


class Source:
    """The file as the unpickler sees it: every read is compared with what the file still holds."""

    def __init__(self, stream: BinaryIO, path: Path):
        self.stream = stream
        self.path = path
        self.size = os.fstat(stream.fileno()).st_size

    def read(self, n: int) -> bytes:
        self.require(n)
        return self.stream.read(n)

    def readline(self) -> bytes:
        line = self.stream.readline()
        if not line.endswith(b"\n"):
            self.truncated("a line")
        return line

    def skip(self, n: int) -> int:
        """Go on behind the next `n` bytes and tell where they begin."""
        self.require(n)
        offset = self.stream.tell()
        self.stream.seek(n, os.SEEK_CUR)
        return offset

    def require(self, n: int) -> None:
        missing = self.stream.tell() + n - self.size
        if missing > 0:
            raise DatasetError(
                f"{self.path} is truncated: {missing} bytes are missing of the {n} that should "
                f"follow at byte {self.stream.tell()}. {AGAIN}"
            )

    def foreign(self, error: Exception) -> NoReturn:
        self.stream.seek(0)
        raise DatasetError(
            f"{self.path} is neither a .npy array nor a pickle: it begins with "
            f"{self.stream.read(24)!r}. Is it the right file, or an error page of the server's?"
        ) from error

    def truncated(self, what: str) -> NoReturn:
        raise DatasetError(
            f"{self.path} is truncated: it ends within {what}, after {self.size} bytes. {AGAIN}"
        )


class Payload:
    """Bytes of an array that stay in the file: where they begin and how many they are."""

    def __init__(self, offset: int, length: int):
        self.offset = offset
        self.length = length


class _Name:
    """What a pickle gets for a name it may use: a mark, with what to do when it is called."""

    def __init__(self, name: str, call: Callable[..., Any] | None = None):
        self.name = name
        self.call = call


class _Unfinished:
    """An array or dtype between its creation and the state that fills it."""

    def __init__(self, finish: Callable[..., Any]):
        self.finish = finish
        self.keys: list[int] = []  # where the memo keeps it


class _Memo(dict):
    """The values a pickle refers back to."""

    def __init__(self, unpickler: Unpickler):
        super().__init__()
        self._unpickler = unpickler

    def __setitem__(self, key: int, value: Any) -> None:
        if isinstance(value, _Unfinished):
            value.keys.append(key)
        super().__setitem__(key, value)

    def __getitem__(self, key: int) -> Any:
        value = super().__getitem__(key)
        if isinstance(value, _Unfinished):
            raise ValueError("an array that contains itself")
        return self._unpickler.recall(value) if isinstance(value, Payload) else value


class Unpickler(pickle._Unpickler):  # the one in C has no place to hook in
    """A pickle machine that knows arrays and plain containers and leaves array bytes in the file.

    `dispatch` holds the instructions that are left; the others are refused by name.
    """

    dispatch = dict(pickle._Unpickler.dispatch)
    for _opcode in (
        *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID, pickle.BINPERSID, pickle.DUP),
        *(pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX),
        *(pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    ):
        del dispatch[_opcode[0]]

    def __init__(self, source: Source):
        super().__init__(source, encoding="latin1")  # Python 2 stored array bytes as text
        self.source = source
        self.memo = _Memo(self)
        self._start = source.stream.tell()
        self._names = {
            (module, name): _Name(name, call)
            for modules, names in (
                (("numpy",), {"ndarray": None, "dtype": self._new_dtype}),
                (
                    ("numpy.core.multiarray", "numpy._core.multiarray"),
                    {"_reconstruct": self._new_array, "scalar": self._scalar},
                ),
                (
                    ("numpy.core.numeric", "numpy._core.numeric"),
                    {"_frombuffer": self._from_buffer},
                ),
                (("_codecs",), {"encode": _encode}),
                (
                    ("builtins", "__builtin__"),
                    {
                        "set": lambda items=(): set(items),
                        "frozenset": lambda items=(): frozenset(items),
                        "bytes": lambda: b"",
                        "bytearray": _bytearray,
                        "complex": lambda real, imaginary: complex(real, imaginary),
                    },
                ),
                (("collections",), {"OrderedDict": _ordered_dict}),
            )
            for module in modules
            for name, call in names.items()
        }

    def load(self) -> Any:
        path = self.source.path
        try:
            value = super().load()
        except KeyError as error:
            at, opcode = self.source.stream.tell() - 1, error.args[0]
            if at == self._start:
                self.source.foreign(error)
            if isinstance(opcode, int) and opcode in pickle._Unpickler.dispatch:
                raise UnsafePickleError(
                    f"{path} uses the pickle instruction {bytes([opcode])!r} at byte {at}, which "
                    f"arrays and plain containers do not need. {_REMEDY}"
                ) from error
            raise
        for part in _walk(value):
            if isinstance(part, _Name):
                raise UnsafePickleError(
                    f"{path} holds the function or class {part.name} itself, not data. {_REMEDY}"
                )
            if isinstance(part, _Unfinished | Payload):
                raise ValueError("an array without its state")
        return value

    def find_class(self, module: str, name: str) -> _Name:
        """Look a name up in the short list; nothing is imported."""
        if not _NAME.fullmatch(f"{module}.{name}"):
            raise ValueError(f"the name {module}.{name}")
        try:
            return self._names[module, name]
        except KeyError:
            raise UnsafePickleError(
                f"{self.source.path} asks for {module}.{name}, which is neither a NumPy array nor "
                f"a plain container. {_REMEDY}"
            ) from None

    def recall(self, payload: Payload) -> Payload | bytes:
        """Give array bytes a second time: still unread where an array wants them."""
        if self._in_array():
            return payload
        here = self.source.stream.tell()
        self.source.stream.seek(payload.offset)
        data = self.source.read(payload.length)
        self.source.stream.seek(here)
        return data

    def _in_array(self) -> bool:
        """Tell whether the next value on the stack is the content of an array."""
        owner = self.metastack[-1][-1] if self.metastack and self.metastack[-1] else None
        if isinstance(owner, _Unfinished):  # state: version, shape, dtype, order, content
            return len(self.stack) == 4 and isinstance(self.stack[2], np.dtype)
        return isinstance(owner, _Name) and owner.name == "_frombuffer" and not self.stack

    # -- instructions

    def _load_frame(self) -> None:
        """Go on without buffering the frame: what is in it may be larger than the memory."""
        (n,) = unpack("<Q", self.read(8))
        self.source.require(n)

    def _load_content(self, n: int, kind: type = bytes) -> None:
        if not self._in_array():
            self.append(kind(self.read(n)))
        elif n > MAP_ABOVE:
            self.append(Payload(self.source.skip(n), n))
        else:
            self.append(self.read(n))

    def _load_binbytes(self) -> None:
        self._load_content(*unpack("<I", self.read(4)))

    def _load_binbytes8(self) -> None:
        self._load_content(*unpack("<Q", self.read(8)))

    def _load_bytearray8(self) -> None:
        self._load_content(*unpack("<Q", self.read(8)), kind=bytearray)

    def _load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if not isinstance(function, _Name) or function.call is None:
            name = function.name if isinstance(function, _Name) else type(function).__name__
            raise UnsafePickleError(
                f"{self.source.path} has {name} called, which is no constructor of data. {_REMEDY}"
            )
        self.stack[-1] = function.call(*arguments)

    def _load_build(self) -> None:
        state, unfinished = self.stack.pop(), self.stack[-1]
        if not isinstance(unfinished, _Unfinished):
            raise UnsafePickleError(
                f"{self.source.path} sets attributes of a {type(unfinished).__name__}, which plain "
                f"data do not have. {_REMEDY}"
            )
        value = self.stack[-1] = unfinished.finish(*state)
        for key in unfinished.keys:
            if self.memo.get(key) is unfinished:
                self.memo[key] = value

    dispatch[pickle.FRAME[0]] = _load_frame
    dispatch[pickle.BINBYTES[0]] = _load_binbytes
    dispatch[pickle.BINBYTES8[0]] = _load_binbytes8
    dispatch[pickle.BYTEARRAY8[0]] = _load_bytearray8
    dispatch[pickle.REDUCE[0]] = _load_reduce
    dispatch[pickle.BUILD[0]] = _load_build

    # -- what the names do

    def _new_dtype(self, name: str, align: bool = False, copy: bool = True) -> _Unfinished:
        if not isinstance(name, str) or not _DTYPE_NAME.fullmatch(name):
            raise UnsafePickleError(
                f"{self.source.path} holds values of dtype {name!r}: only numbers, text, bytes and "
                f"plain objects are read. {_REMEDY}"
            )
        return _Unfinished(lambda *state: self._dtype(name, *state))

    def _dtype(self, name: str, version: int, endian: str, base: Any, *rest: Any) -> np.dtype:
        names, fields, itemsize = rest[:3]
        if base is not None or (names is not None and any(len(fields[n]) != 2 for n in names)):
            raise UnsafePickleError(
                f"{self.source.path} holds records with fields of a kind that is not read. {_REMEDY}"
            )
        if names is None:
            return np.dtype({"|": "|", "=": "=", "<": "<", ">": ">"}[endian] + name)
        formats, offsets = zip(*(fields[n] for n in names), strict=True)
        if any(not isinstance(f, np.dtype) or f.hasobject for f in formats):
            raise UnsafePickleError(
                f"{self.source.path} holds records with objects in them. {_REMEDY}"
            )
        return np.dtype(
            dict(names=list(names), formats=formats, offsets=offsets, itemsize=itemsize)
        )

    def _new_array(self, kind: Any, shape: Any, typecode: Any) -> _Unfinished:
        if kind is not self._names["numpy", "ndarray"]:
            raise UnsafePickleError(
                f"{self.source.path} has an array made of another class. {_REMEDY}"
            )
        return _Unfinished(self._array_from_state)

    def _array_from_state(self, *state: Any) -> np.ndarray:
        shape, dtype, fortran_order, content = state[-4:]
        return make_array(self.source, shape, dtype, "F" if fortran_order else "C", content)

    def _from_buffer(
        self, content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None
    ) -> np.ndarray:
        if order == "K" and axes is not None:
            return make_array(self.source, shape, dtype, "C", content).transpose(axes)
        return make_array(self.source, shape, dtype, {"C": "C", "F": "F"}[order], content)

    def _scalar(self, dtype: Any, content: Any) -> Any:
        if not isinstance(dtype, np.dtype) or dtype.hasobject:
            raise UnsafePickleError(f"{self.source.path} holds a scalar of objects. {_REMEDY}")
        return make_array(self.source, (), dtype, "C", content)[()]


def make_array(source: Source, shape: Any, dtype: Any, order: str, content: Any) -> np.ndarray:
    """Make the array of which a file tells shape, dtype and content, if these agree."""
    if not isinstance(dtype, np.dtype):
        raise ValueError("an array without a dtype")
    if not isinstance(shape, tuple) or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"an array of shape {shape!r}")
    size = math.prod(shape)
    if dtype.hasobject:
        if not isinstance(content, list) or len(content) != size:
            raise ValueError(f"an object array of shape {shape} without its {size} objects")
        array = np.fromiter(content, dtype=object, count=size).reshape(shape)
        return array if order == "C" else np.asfortranarray(array)
    if isinstance(content, str):
        content = content.encode("latin1")
    if not isinstance(content, bytes | bytearray | Payload):
        raise ValueError("an array without its bytes")
    n_bytes = content.length if isinstance(content, Payload) else len(content)
    if n_bytes != size * dtype.itemsize:
        raise DatasetError(
            f"{source.path}: an array of shape {shape} and dtype {dtype} takes "
            f"{size * dtype.itemsize} bytes, the file holds {n_bytes} for it. {AGAIN}"
        )
    if not n_bytes:
        array = np.zeros(shape, dtype, order)
    elif isinstance(content, Payload):
        return np.memmap(source.path, dtype, "r", content.offset, shape, order)
    else:
        array = np.ndarray(shape, dtype, bytes(content), order=order)
    array.flags.writeable = False
    return array


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes written as {encoding!r}")
    return text.encode("latin1")


def _bytearray(content: bytes | str = b"", encoding: str = "latin-1") -> bytearray:
    if isinstance(content, str):
        content = _encode(content, encoding)
    if not isinstance(content, bytes | bytearray):
        raise ValueError("a bytearray made of something else than bytes")
    return bytearray(content)


def _ordered_dict(items: Any = ()) -> collections.OrderedDict:
    return collections.OrderedDict([(key, value) for key, value in items])


def _walk(value: Any) -> Iterator[Any]:
    """Yield everything in nested containers, each object once."""
    seen: set[int] = set()
    pending = [value]
    while pending:
        part = pending.pop()
        yield part
        if id(part) in seen:
            continue
        if isinstance(part, dict):
            pending += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple | set | frozenset):
            pending += part
        elif isinstance(part, np.ndarray) and part.dtype.kind == "O":
            pending += part.ravel().tolist() if part.ndim else [part.item()]
        else:
            continue
        seen.add(id(part))
