"""A pickled data set larger than the memory, in the form in which THINGS-EEG2 is handed around."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable
from pathlib import Path
from struct import pack

import numpy as np


class _Streamed:
    """An array of which only the blocks of its bytes exist, one after another."""

    def __init__(self, shape: tuple[int, ...], blocks: Iterable[np.ndarray]):
        self.shape = shape
        self.blocks = blocks

    def __reduce__(self):
        make, arguments, _ = np.empty(0).__reduce__()
        return make, arguments, (1, self.shape, np.dtype(float), False, _Bytes(self))


class _Bytes:
    def __init__(self, array: _Streamed):
        self.array = array


class _Pickler(pickle._Pickler):
    dispatch = dict(pickle._Pickler.dispatch)

    def __init__(self, stream):
        super().__init__(stream, protocol=4)
        self._stream = stream

    def _save_bytes(self, content: _Bytes) -> None:
        n_bytes = math.prod(content.array.shape) * 8
        self._write_large_bytes(pickle.BINBYTES8 + pack("<Q", n_bytes), b"")
        begin = self._stream.tell()
        for block in content.array.blocks:
            self._stream.write(np.ascontiguousarray(block, dtype=np.float64).data)
        assert self._stream.tell() - begin == n_bytes
        self.memoize(content)

    dispatch[_Bytes] = _save_bytes


def write_large_pickle(path: Path, shape: tuple[int, ...], blocks: Iterable[np.ndarray]) -> Path:
    """Write the dictionary of the 250 Hz repackaging, its float64 array block by block.

    Parameters
    ----------
    path : Path
    shape : tuple of int, (n_pictures, n_repetitions, n_channels, n_times)
    blocks : iterable of ndarray, whose values in order make up the array
    """
    with open(path, "wb") as stream:
        _Pickler(stream).dump(
            {
                "preprocessed_eeg_data": _Streamed(shape, blocks),
                "ch_names": [f"E{i}" for i in range(shape[-2])],
                "times": np.arange(-50, 250) / 250,
            }
        )
    return path
