"""Files of trials, written piece by piece with little memory and whole or not at all.

`trialfiles` reads them.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from sgdm_utils.errors import DatasetError
from sgdm_utils.workflow import atomic


def convert(
    source: Any,
    target: Path,
    dtype: Any = np.float32,
    chunk_bytes: int = 64 << 20,
    progress: Callable[[int, int], None] | None = None,
    check_finite: bool = True,
) -> Path:
    """Copy an array into a `.npy` file of another precision without holding either in memory.

    Parameters
    ----------
    source : array-like of shape (n_trials, ...)
        Usually a memory map, whose pages are given back as soon as they were read. In Fortran
        order every chunk touches the whole file: correct, but slow.
    target : Path
    dtype : floating dtype
    chunk_bytes : int
        Size of the pieces, bytes of `source`.
    progress : callable, optional
        Called with the trials done and the trials in all after each piece.
    check_finite : bool
        Refuse NaN and infinite values.

    Returns
    -------
    Path
        `target`, which appears when it is complete.

    Raises
    ------
    DatasetError
        NaN, an infinite value or one beyond the range of `dtype`, with its place; content that is
        no numbers; a disk that is too full.
    """
    target, dtype = Path(target), np.dtype(dtype)
    name = str(getattr(source, "filename", None) or getattr(source, "path", None) or "the array")
    if not hasattr(source, "dtype"):
        source = np.asarray(source)
    if not source.ndim or source.dtype.kind not in "biuf" or dtype.kind != "f":
        raise DatasetError(
            f"{name} holds {source.dtype} of shape {tuple(source.shape)}, which does not become "
            f"trials of {dtype}: give an array of real numbers, trials first, and a float dtype"
        )
    n_trials, row_shape = source.shape[0], tuple(source.shape[1:])
    n_values = math.prod(row_shape)
    _check_space(target, n_trials * n_values * dtype.itemsize)
    step = max(1, chunk_bytes // max(1, n_values * source.dtype.itemsize))
    buffer = np.empty((min(step, n_trials), *row_shape), dtype)
    with (
        _Released(source) as released,
        atomic.atomic_file(target) as part,
        open(part, "wb") as stream,
    ):
        _write_header(stream, (n_trials, *row_shape), dtype)
        for start in range(0, n_trials, step):
            chunk = source[start : start + step]
            values, cast = np.asarray(chunk), buffer[: min(step, n_trials - start)]
            _cast(values, cast, name, start, check_finite)
            stream.write(cast.data)
            released.give_back(chunk)
            if progress is not None:
                progress(start + len(cast), n_trials)
    return target


class TrialWriter:
    """Write trials one after another; how many there will be need not be known.

    Use it as a context manager. The file appears under its name when the block ends well; when it
    raises, or no trial was written, what was there before stays.

    Parameters
    ----------
    target : Path
        File to create or to replace.
    dtype : floating dtype
    check_finite : bool
        Refuse NaN and infinite values.

    Raises
    ------
    DatasetError
        At the end of the block, when there was no trial.
    """

    def __init__(self, target: Path, dtype: Any = np.float32, check_finite: bool = True):
        self.target = Path(target)
        self.dtype = np.dtype(dtype)
        self.check_finite = check_finite
        self.n_trials = 0
        self.trial_shape: tuple[int, ...] | None = None
        self._header_bytes = 0
        self._stream: BinaryIO | None = None

    def __enter__(self) -> TrialWriter:
        self._stack = contextlib.ExitStack()
        part = self._stack.enter_context(atomic.atomic_file(self.target))
        self._stream = self._stack.enter_context(open(part, "wb"))
        return self

    def append(self, trials: np.ndarray) -> None:
        """Add trials at the end.

        Parameters
        ----------
        trials : ndarray of shape (n_trials, n_channels, n_times)

        Raises
        ------
        DatasetError
            Another number of channels or times than the first trials had, NaN, an infinite value
            or one beyond the range of the dtype.
        """
        trials = np.asarray(trials)
        if self._stream is None:
            raise ValueError(f"{self.target}: trials can be added within the `with` block only")
        if trials.ndim != 3 or trials.dtype.kind not in "biuf":
            raise DatasetError(
                f"{self.target}: trials are numbers of shape (n_trials, n_channels, n_times), not "
                f"{trials.dtype} of shape {trials.shape}"
            )
        if self.trial_shape is None:
            self.trial_shape = trials.shape[1:]
            _write_header(self._stream, (0, *self.trial_shape), self.dtype)
            self._header_bytes = self._stream.tell()
        if trials.shape[1:] != self.trial_shape:
            raise DatasetError(
                f"{self.target}: trials of shape {trials.shape[1:]} after {self.n_trials} of shape "
                f"{self.trial_shape}. Give all of them the same channels and times"
            )
        cast = np.empty(trials.shape, self.dtype)
        _cast(trials, cast, str(self.target), self.n_trials, self.check_finite)
        self._stream.write(cast.data)
        self.n_trials += len(trials)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException:
            self._stack.__exit__(*sys.exc_info())
            raise
        else:
            self._stack.__exit__(kind, error, trace)
        finally:
            self._stream = None

    def _finish(self) -> None:
        if not self.n_trials:
            raise DatasetError(
                f"{self.target} was not written: there was no trial. Were all of them rejected?"
            )
        self._stream.seek(0)
        _write_header(self._stream, (self.n_trials, *self.trial_shape), self.dtype)
        if self._stream.tell() != self._header_bytes:  # NumPy leaves room for a longer number
            raise RuntimeError(f"{self.target}: the header has outgrown its place")


class _Released:
    """Give the memory and the cached pages of a mapped file back once they were used.

    Where the system offers no way to do so it takes them back itself when memory runs short.
    """

    def __init__(self, source: Any):
        self._mapping = getattr(source, "_mmap", None)
        self._offset = getattr(source, "offset", 0) or 0
        self._path = getattr(source, "filename", None)
        self._handle: int | None = None

    def __enter__(self) -> _Released:
        if hasattr(os, "posix_fadvise") and self._mapping is not None and self._path is not None:
            with contextlib.suppress(OSError):
                self._handle = os.open(self._path, os.O_RDONLY)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            os.close(self._handle)

    def give_back(self, chunk: Any) -> None:
        if getattr(chunk, "_mmap", None) is not self._mapping or not chunk.size:
            return
        if self._mapping is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        low, high = np.lib.array_utils.byte_bounds(chunk)
        base = np.frombuffer(self._mapping, np.uint8).ctypes.data
        start = (low - base) // mmap.PAGESIZE * mmap.PAGESIZE
        length = high - base - start
        self._mapping.madvise(mmap.MADV_DONTNEED, start, length)
        if self._handle is not None:
            mapped_from = self._offset - self._offset % mmap.ALLOCATIONGRANULARITY
            os.posix_fadvise(self._handle, mapped_from + start, length, os.POSIX_FADV_DONTNEED)


def _cast(
    values: np.ndarray, cast: np.ndarray, name: str, first_trial: int, check_finite: bool
) -> None:
    """Copy `values` into `cast` and refuse what it cannot hold."""
    with np.errstate(over="ignore", invalid="ignore"):
        cast[...] = values
    if np.isfinite(cast).all():
        return
    finite = np.isfinite(values)
    if check_finite and not finite.all():
        place, fault = np.argwhere(~finite)[0], "is not a finite number"
        remedy = "Mark the channel as bad or reject the trial before it is stored"
    elif (beyond := finite & ~np.isfinite(cast)).any():
        place, fault = np.argwhere(beyond)[0], f"is beyond the range of {cast.dtype}"
        remedy = "Is the unit right (volts)?"
    else:
        return
    trial, *rest = (int(i) for i in place)
    raise DatasetError(
        f"{name}: trial {first_trial + trial}, value {rest} ({values[tuple(place)]}) {fault}. "
        f"{remedy}"
    )


def _write_header(stream: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Write a `.npy` header, whose length does not depend on the number of trials."""
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        stream, {"descr": descr, "fortran_order": False, "shape": shape}
    )


def _check_space(target: Path, n_bytes: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < n_bytes:
        raise DatasetError(
            f"{target} takes {n_bytes / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left. Free "
            "some space, or set SGDM_DATA to a folder on a larger disk"
        )
