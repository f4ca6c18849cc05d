"""Pickled data sets, opened without running them and without reading them.

Public EEG is handed around as pickles, and a pickle is a program: it names functions and has them
called. The reader here answers to the few names that NumPy arrays and plain containers need and
refuses all others before anything is looked up or called. The large arrays inside are not read but
mapped where they lie, so an 8 GB file opens in milliseconds.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sgdm_utils.datasets.unpickling import (
    AGAIN,
    MAP_ABOVE,
    Payload,
    Source,
    Unpickler,
    UnsafePickleError,
    make_array,
)
from sgdm_utils.errors import DatasetError

__all__ = ["MAP_ABOVE", "UnsafePickleError", "load", "read_header"]

_NPY_MAGIC = b"\x93NUMPY"


def load(path: Path) -> Any:
    """Read a `.npy` file or a pickle of arrays and plain containers, under whatever name.

    Parameters
    ----------
    path : Path
        A `.npy` array, a `.npy` that wraps a pickled object (0-d object array), or a plain pickle
        of protocol 0 to 5, told apart by their first bytes and not by the name.

    Returns
    -------
    ndarray, dict, list, tuple, set, str, bytes, number, ...
        A 0-d object array comes back as the object in it. Numeric arrays are read-only. Those of
        a `.npy` file, and those of more than 64 KiB in a pickle, are `np.memmap` views of `path`
        itself, which must not be changed while they are in use; in a pickle they begin at any
        byte, so they need not be aligned.

    Raises
    ------
    UnsafePickleError
        The pickle names a function or class that arrays and plain containers do not need, or uses
        an instruction of the pickle machine that they do not need.
    DatasetError
        No such file, an empty or truncated one, one that is no pickle, one that contradicts itself.

    Notes
    -----
    The bytes of arrays that Python 2 or protocol 0 to 2 wrote are stored as text: they cannot be
    mapped and are decoded in memory.
    """
    path = Path(path)
    try:
        stream = open(path, "rb")
    except OSError as error:
        raise DatasetError(f"{path} cannot be opened ({error.strerror}): is the path right?") from (
            error
        )
    with stream:
        source = Source(stream, path)
        if not source.size:
            raise DatasetError(f"{path} is empty (0 bytes). {AGAIN}")
        magic = stream.read(len(_NPY_MAGIC))
        stream.seek(0)
        try:
            if _NPY_MAGIC.startswith(magic) and len(magic) < len(_NPY_MAGIC):
                source.truncated("the header of the array")
            value = _read_npy(source) if magic == _NPY_MAGIC else Unpickler(source).load()
            if isinstance(value, np.ndarray) and value.dtype.kind == "O" and not value.ndim:
                value = value.item()
        except DatasetError:
            raise
        except Exception as error:  # a damaged pickle leads the machine into any of them
            if magic[:1] not in (pickle.PROTO, _NPY_MAGIC[:1]):  # protocols 0 and 1 have no mark
                source.foreign(error)
            raise DatasetError(
                f"{path} is damaged near byte {stream.tell()} ({type(error).__name__}: {error}). "
                f"{AGAIN}"
            ) from error
        if stream.tell() != source.size:
            raise DatasetError(
                f"{path}: {source.size - stream.tell()} bytes follow after the end of the data. "
                f"Was something appended to the file? {AGAIN}"
            )
    return value


def read_header(stream: BinaryIO, path: Path) -> tuple[tuple[int, ...], np.dtype, bool, int]:
    """Read the header of a `.npy` file and leave the stream behind it.

    Returns
    -------
    shape : tuple of int
    dtype : dtype
    fortran_order : bool
    offset : int, where the data begin, bytes

    Raises
    ------
    DatasetError
        When there is no such header or it cannot be understood.
    """
    try:
        version = np.lib.format.read_magic(stream)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:  # 3.0 differs in the names of record fields only
            raise ValueError(f"version {version} of the format")
        shape, fortran_order, dtype = readers[version](stream)
    except ValueError as error:
        raise DatasetError(
            f"{path} has no header of a .npy array that can be read ({error}). {AGAIN}"
        ) from error
    return shape, dtype, fortran_order, stream.tell()


def _read_npy(source: Source) -> Any:
    shape, dtype, fortran_order, offset = read_header(source.stream, source.path)
    if dtype.kind == "O":
        value = Unpickler(source).load()
        if not isinstance(value, np.ndarray) or value.shape != shape or value.dtype.kind != "O":
            raise DatasetError(
                f"{source.path}: its header promises an object array of shape {shape}, its content "
                f"is something else. {AGAIN}"
            )
        return value
    if dtype.hasobject:
        raise UnsafePickleError(
            f"{source.path} holds records with objects in them ({dtype}); only numbers, text, bytes "
            "and plain objects are read. Export each field as an array of its own"
        )
    payload = Payload(offset, math.prod(shape) * dtype.itemsize)
    source.skip(payload.length)
    return make_array(source, shape, dtype, "F" if fortran_order else "C", payload)
