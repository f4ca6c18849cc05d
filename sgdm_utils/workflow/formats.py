"""JSON, arrays and tables, read with bounds: what a header claims is believed only where bytes follow.

A damaged length asks for gigabytes, a nested text for a stack without end, a packed one for more than
the machine has. Every reader of this package comes here for these formats, so that such a file is
refused by name and nothing is built of it.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from sgdm_utils.errors import DatasetError, reading

if TYPE_CHECKING:
    import pandas as pd

MOST_CELLS = (
    1 << 25
)  # of a parquet table; the 80,000 trials of a person in Alljoined have a million
AGAIN = "Make it again, or copy it from where it came"


def read_json(
    path: Path, kind: type = dict, remedy: str = AGAIN, error: type[Exception] = DatasetError
) -> Any:
    """Read a JSON file that holds an object (or a list, or either: `kind=object`).

    Raises
    ------
    error
        Names the file and what is wrong in it, or that it is not there.
    """
    with reading(path, "JSON", remedy, error):
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        if not isinstance(content, kind):
            raise TypeError(f"it holds a {type(content).__name__}, not a {kind.__name__}")
    return content


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
        if min(shape, default=0) < 0 or not all(type(n) is int for n in shape):
            raise ValueError(f"shape {shape}")
    except Exception as error:  # the header is Python's notation, parsed by Python
        raise DatasetError(
            f"{path} has no header of a .npy array that can be read ({error}). Download the file "
            "again and compare its checksum"
        ) from error
    return shape, dtype, fortran_order, stream.tell()


def read_npy(path: Path, mmap: bool = False, error: type[Exception] = DatasetError) -> np.ndarray:
    """Read or map a `.npy` file of numbers or text.

    Raises
    ------
    error
        Another content, objects, or a length that contradicts the header.
    """
    with reading(path, "an array", AGAIN, error):
        try:
            with open(path, "rb") as stream:
                _require_length(stream, Path(path).stat().st_size, Path(path))
        except DatasetError as problem:
            raise error(str(problem)) from problem
        return np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)


def read_npz(
    path: Path, names: Sequence[str] = (), error: type[Exception] = DatasetError
) -> dict[str, np.ndarray]:
    """Read a `.npz` file as `numpy.savez` writes it (nothing compressed, no objects).

    Parameters
    ----------
    path : Path
    names : sequence of str, arrays that have to be there

    Returns
    -------
    dict of name to array, in memory
    """
    arrays = {}
    with reading(path, "a file of arrays", AGAIN, error):
        size = Path(path).stat().st_size
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.file_size > size:  # a header that lies, or bytes packed by somebody else
                    raise ValueError(f"{member.filename} claims {member.file_size} bytes of {size}")
                content = io.BytesIO(archive.read(member))
                _require_length(content, member.file_size, Path(path))
                content.seek(0)
                arrays[member.filename.removesuffix(".npy")] = np.lib.format.read_array(
                    content, allow_pickle=False
                )
        if lost := sorted(set(names) - set(arrays)):
            raise ValueError(f"{lost[0]} is missing")
    return arrays


def read_parquet(
    path: Path, columns: Sequence[str] = (), error: type[Exception] = DatasetError
) -> pd.DataFrame:
    """Read a parquet table that has these columns, among others, and `MOST_CELLS` at most."""
    import pandas as pd
    import pyarrow.parquet

    with reading(path, "a parquet table", AGAIN, error):
        about = pyarrow.parquet.read_metadata(path)
        if not 0 <= about.num_rows * max(1, about.num_columns) <= MOST_CELLS:
            raise ValueError(f"it claims {about.num_rows} rows of {about.num_columns} columns")
        table = pd.read_parquet(path)
        if lost := [name for name in columns if name not in table]:
            raise ValueError(f"no column {lost[0]!r}; there is {', '.join(map(str, table))}")
    return table


def _require_length(stream: BinaryIO, size: int, path: Path) -> None:
    """Compare the shape that a header states with the bytes that follow it."""
    shape, dtype, _, offset = read_header(stream, path)
    if dtype.hasobject:
        raise ValueError("it holds objects, which are not read")
    expected = offset + math.prod(shape) * dtype.itemsize
    if size != expected:
        raise ValueError(
            f"{size} bytes where an array of shape {shape} and dtype {dtype} takes {expected}"
        )
