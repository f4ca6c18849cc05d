"""Trials on the disk, read row by row when they are asked for.

An array of trials is a `.npy` file of shape (n_trials, n_channels, n_times). A memory map of such
a file brings in megabytes around every trial that is touched and keeps them in the process; the
readers here ask the system for exactly the rows of a batch and put them straight into the result.
They index like arrays along the first axis. `trialwriting` makes the files.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sgdm_utils.errors import DatasetError
from sgdm_utils.signals.writing import TrialWriter, convert
from sgdm_utils.workflow.formats import read_header

__all__ = ["Averages", "TrialFile", "TrialFiles", "TrialWriter", "convert"]

_MANY = 1024  # buffers that one call of the system takes, reads announced to it at once
_BLOCK_BYTES = 64 << 20  # read at once for an average of many trials; not announced beyond


class _Rows:
    """What behaves like an array of trials whose rows come from elsewhere.

    Attributes
    ----------
    shape : tuple of int, (n_trials, n_channels, n_times)
    dtype : dtype
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """Read trials.

        Parameters
        ----------
        index : int, slice, integer array, boolean mask, or a tuple that begins with one of these
            The first selects trials, as in an array. The rest of a tuple is applied to the trials
            that were read.

        Returns
        -------
        ndarray
        """
        first, *rest = (index or (slice(None),)) if isinstance(index, tuple) else (index,)
        if first is Ellipsis:
            first, rest = slice(None), [Ellipsis, *rest] if rest else rest
        if isinstance(first, int | np.integer) and not isinstance(first, bool | np.bool_):
            row = self.read(np.array([range(len(self))[first]]))[0]
            return row[tuple(rest)] if rest else row
        if not isinstance(first, slice) and any(not isinstance(r, slice | int) for r in rest):
            raise IndexError(
                "a list of trials cannot be combined with lists or new axes in one index: "
                "take the trials first, then index the result"
            )
        rows = self.read(first)
        return rows[(slice(None), *rest)] if rest else rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("the trials are on the disk: an array of them is always a copy")
        return self.read(slice(None)).astype(dtype or self.dtype, copy=False)

    def read(self, rows: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Read trials in the order in which they are asked for.

        Parameters
        ----------
        rows : slice, integer array (negative ones count from the end) or boolean mask
        out : ndarray of shape (n_rows, n_channels, n_times), optional
            C-contiguous and of this object's dtype; filled instead of a new array.

        Returns
        -------
        ndarray of shape (n_rows, n_channels, n_times)

        Raises
        ------
        IndexError
            A trial that is not there, or a mask of another length.
        ValueError
            When `out` does not fit.
        DatasetError
            When the file has become shorter since it was opened.
        """
        rows = _as_rows(rows, len(self))
        shape = (*rows.shape, *self.shape[1:])
        if out is None:
            out = np.empty(shape, self.dtype)
        elif out.shape != shape or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError(
                f"out must be C-contiguous, of shape {shape} and dtype {self.dtype}; it is of "
                f"shape {out.shape} and dtype {out.dtype}"
            )
        if out.size:
            self._fill(rows.ravel(), out.reshape(-1, *self.shape[1:]), np.arange(rows.size))
        return out

    def _fill(self, rows: np.ndarray, out: np.ndarray, where: np.ndarray) -> None:
        """Put trial `rows[i]` into `out[where[i]]`."""
        raise NotImplementedError


class TrialFile(_Rows):
    """The trials of one `.npy` file, read-only.

    It may be used by several threads, survives a fork and can be pickled: another process opens
    the file again.

    Parameters
    ----------
    path : Path
        A `.npy` file of shape (n_trials, n_channels, n_times), numbers in C order.

    Raises
    ------
    DatasetError
        No such file, another kind of content, or a length that contradicts the header.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            with open(self.path, "rb") as stream:
                self.shape, self.dtype, fortran_order, self._offset = read_header(stream, self.path)
                size = os.fstat(stream.fileno()).st_size
        except OSError as error:
            raise DatasetError(
                f"{self.path} cannot be opened ({error.strerror}): run the step that writes it"
            ) from error
        if self.ndim != 3 or fortran_order or self.dtype.kind not in "biuf":
            raise DatasetError(
                f"{self.path} holds {self.dtype} of shape {self.shape} in "
                f"{'Fortran' if fortran_order else 'C'} order; trials are numbers of shape "
                "(n_trials, n_channels, n_times) in C order. Bring them into this form with "
                "np.load(path, mmap_mode='r') and trialfiles.convert"
            )
        expected = self._offset + math.prod(self.shape) * self.dtype.itemsize
        if size != expected:
            raise DatasetError(
                f"{self.path} is {'truncated' if size < expected else 'too long'}: it has {size} "
                f"bytes, an array of shape {self.shape} takes {expected}. Write it again"
            )
        self._handle: int | None = None
        if hasattr(os, "preadv"):
            self._handle = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._handle)
            if hasattr(os, "posix_fadvise"):  # no read-ahead: the next trial is elsewhere
                os.posix_fadvise(self._handle, 0, 0, os.POSIX_FADV_RANDOM)

    def __repr__(self) -> str:
        return f"TrialFile({str(self.path)!r}, shape={self.shape}, dtype={self.dtype})"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "shape": self.shape, "dtype": self.dtype}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])
        if (self.shape, self.dtype) != (state["shape"], state["dtype"]):
            raise DatasetError(
                f"{self.path} was replaced: it had shape {state['shape']} and dtype "
                f"{state['dtype']}, now {self.shape} and {self.dtype}. Start again"
            )

    def _fill(self, rows: np.ndarray, out: np.ndarray, where: np.ndarray) -> None:
        order = np.argsort(rows, kind="stable")  # disks prefer to go forward
        rows, where = rows[order], where[order]
        new = np.diff(rows, prepend=-1) != 0
        distinct, target = rows[new], where[new]
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        memory = memoryview(out.reshape(-1).view(np.uint8))
        # neighbours in the file are one read; neighbours in the result are one buffer of it
        apart = np.diff(distinct) != 1
        edges = np.flatnonzero(apart | (np.diff(target) != 1)) + 1
        starts, stops = np.append(0, edges), np.append(edges, len(distinct))
        begins_read = np.append(True, apart)[starts]
        reads: list[tuple[int, list[memoryview]]] = []
        for start, stop, begins in zip(starts, stops, begins_read, strict=True):
            if begins:
                reads.append((self._offset + int(distinct[start]) * row_bytes, []))
            first = int(target[start])
            reads[-1][1].append(memory[first * row_bytes : (first + int(stop - start)) * row_bytes])
        for start in range(0, len(reads), _MANY):
            ahead = reads[start : start + _MANY]
            self._announce(ahead)
            for offset, buffers in ahead:
                self._read(offset, buffers)
        if not new.all():
            source = target[np.cumsum(new) - 1]
            out[where[~new]] = out[source[~new]]

    def _announce(self, reads: list[tuple[int, list[memoryview]]]) -> None:
        """Let the system fetch scattered trials side by side: two to three times as fast, cold."""
        if self._handle is None or not hasattr(os, "posix_fadvise") or len(reads) < 2:
            return
        for offset, buffers in reads:
            n_bytes = sum(map(len, buffers))
            if n_bytes <= _BLOCK_BYTES:
                os.posix_fadvise(self._handle, offset, n_bytes, os.POSIX_FADV_WILLNEED)

    def _read(self, offset: int, buffers: list[memoryview]) -> None:
        """Fill the buffers with what follows at byte `offset`."""
        if self._handle is None:  # systems without preadv
            try:
                mapped = np.memmap(self.path, np.uint8, "r", offset, sum(map(len, buffers)))
            except ValueError as error:
                raise self._shorter(offset) from error
            for buffer in buffers:
                buffer[:] = mapped[: len(buffer)]
                mapped = mapped[len(buffer) :]
            return
        position = 0
        while position < len(buffers):
            n = os.preadv(self._handle, buffers[position : position + _MANY], offset)
            if not n:
                raise self._shorter(offset)
            offset += n
            while position < len(buffers) and n >= len(buffers[position]):
                n -= len(buffers[position])
                position += 1
            if n:
                buffers[position] = buffers[position][n:]

    def _shorter(self, offset: int) -> DatasetError:
        return DatasetError(
            f"{self.path} has become shorter since it was opened: it lacks bytes that should "
            f"follow at byte {offset}. Write it again"
        )


class TrialFiles(_Rows):
    """The trials of several files, one file after another, as if they were one array.

    Parameters
    ----------
    files : sequence of TrialFile or Path
        E.g. one per subject; the same channels, times and dtype in each.

    Attributes
    ----------
    offsets : ndarray of shape (n_files + 1,)
        The trials of file `i` are `offsets[i]` to `offsets[i + 1]`.

    Raises
    ------
    DatasetError
        No file, or two that differ in shape or dtype.
    """

    def __init__(self, files: Sequence[TrialFile | Path]):
        self.files = [f if isinstance(f, TrialFile) else TrialFile(f) for f in files]
        if not self.files:
            raise DatasetError("no file of trials was given: name at least one")
        first = self.files[0]
        for file in self.files[1:]:
            if file.shape[1:] != first.shape[1:] or file.dtype != first.dtype:
                raise DatasetError(
                    f"{file.path} holds {file.dtype} trials of shape {file.shape[1:]}, "
                    f"{first.path} {first.dtype} of {first.shape[1:]}: preprocess both in the "
                    "same way"
                )
        self.offsets = np.cumsum([0, *map(len, self.files)])
        self.shape = (int(self.offsets[-1]), *first.shape[1:])
        self.dtype = first.dtype

    def __repr__(self) -> str:
        return f"TrialFiles({len(self.files)} files, shape={self.shape}, dtype={self.dtype})"

    def _fill(self, rows: np.ndarray, out: np.ndarray, where: np.ndarray) -> None:
        for file, start, stop in zip(self.files, self.offsets, self.offsets[1:], strict=False):
            mine = (rows >= start) & (rows < stop)
            if mine.any():
                file._fill(rows[mine] - start, out, where[mine])


class Averages(_Rows):
    """Means over groups of trials, computed when they are asked for.

    Parameters
    ----------
    eeg : TrialFile, TrialFiles or ndarray of shape (n_trials, n_channels, n_times)
    groups : list of integer arrays
        The trials of each average, e.g. the repetitions of one picture.

    Attributes
    ----------
    shape : tuple of int, (n_groups, n_channels, n_times)
    dtype : float32; the sums are formed in float64

    Raises
    ------
    DatasetError
        A group without trials or with one that is not there.
    """

    def __init__(self, eeg: Any, groups: Sequence[Any]):
        self.eeg = eeg
        self.groups = [np.asarray(group) for group in groups]
        for i, group in enumerate(self.groups):
            if group.ndim != 1 or not group.size or group.dtype.kind not in "iu":
                raise DatasetError(
                    f"group {i} of {len(self.groups)} is no list of trials: {group!r}. Every "
                    "average needs at least one trial number; leave conditions without trials out"
                )
            if group.min() < 0 or group.max() >= len(eeg):
                raise DatasetError(
                    f"group {i} asks for trial {group.min() if group.min() < 0 else group.max()}; "
                    f"there are the trials 0 to {len(eeg) - 1} in {eeg!r:.200}"
                )
        self.shape = (len(self.groups), *eeg.shape[1:])
        self.dtype = np.dtype(np.float32)

    def __repr__(self) -> str:
        return f"Averages({self.shape[0]} groups of {self.eeg!r:.200})"

    def _fill(self, rows: np.ndarray, out: np.ndarray, where: np.ndarray) -> None:
        row_bytes = math.prod(self.shape[1:]) * self.eeg.dtype.itemsize
        block = max(1, _BLOCK_BYTES // max(1, row_bytes))
        for row, target in zip(rows, where, strict=True):
            group = self.groups[row]
            total = np.zeros(self.shape[1:], np.float64)
            for start in range(0, len(group), block):
                total += self.eeg[group[start : start + block]].sum(axis=0, dtype=np.float64)
            out[target] = total / len(group)


def _as_rows(index: Any, n: int) -> np.ndarray:
    """Turn what selects trials into their numbers, all of them from 0 to n - 1."""
    if isinstance(index, slice):
        return np.arange(n)[index]
    rows = np.asarray(index)
    if not rows.size and rows.dtype.kind != "b":
        return np.empty(rows.shape, np.intp)
    if rows.dtype.kind == "b":
        if rows.shape != (n,):
            raise IndexError(f"a mask of shape {rows.shape} does not select among {n} trials")
        return np.flatnonzero(rows)
    if rows.dtype.kind not in "iu":
        raise IndexError(f"trials are selected by integers or a mask, not by {rows.dtype}")
    low, high = rows.min(), rows.max()
    if low < -n or high >= n:
        raise IndexError(f"trial {low if low < -n else high} is not there: {n} trials")
    rows = rows.astype(np.intp)
    return np.where(rows < 0, rows + n, rows) if low < 0 else rows
