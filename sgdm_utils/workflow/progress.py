"""How far a notebook is: one line that rewrites itself on a terminal, a line now and then in a log.

A thread beside the execution tells the time and samples the memory of the kernel's processes.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from types import TracebackType
from typing import TextIO

import psutil

_LOG_EVERY_S = 15.0
_SAMPLE_EVERY_S = 0.5
_HEADING = re.compile(r"^#{1,4}\s+(.+?)\s*#*$", re.MULTILINE)


class Progress:
    """Display of one execution; use it as a context manager.

    Parameters
    ----------
    label : str
        What runs, e.g. ``"01_preprocessing sub-01"``.
    cells : list of dict
        The notebook's cells, whose headings name the sections.
    stream : TextIO
        Where to write. On a terminal the line is rewritten; elsewhere a line is written for every
        new section and at least every 15 s.
    """

    def __init__(self, label: str, cells: list[dict], stream: TextIO):
        self.label = label
        self.peak_rss = 0  # bytes
        self._stream = stream
        self._live = stream.isatty()
        self._sections, self.n_cells = _sections(cells)
        self._position = 0
        self._section = ""
        self._started = time.monotonic()
        self._written = self._started
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        if self._live:
            self._stream.write("\r\x1b[K")
        if kind is None:
            self._line(f"done in {clock(self.elapsed)}, peak {self.peak_rss / 1e9:.1f} GB")

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._started

    def cell(self, index: int) -> None:
        """Tell that cell `index` (from 0, all kinds of cells counted) begins."""
        position, section = self._sections[index]
        if position is None:
            return  # markdown
        with self._lock:
            new = section != self._section or self._position == 0
            self._position, self._section = position, section
            if new or self._live:
                self._show()

    def section(self, index: int) -> str:
        """Return the heading above cell `index`."""
        return self._sections[index][1]

    def _watch(self) -> None:
        while not self._done.wait(_SAMPLE_EVERY_S):
            self.peak_rss = max(self.peak_rss, memory_of_children())
            with self._lock:
                pause = 1.0 if self._live else _LOG_EVERY_S
                if self._position and time.monotonic() - self._written >= pause:
                    self._show()

    def _show(self) -> None:
        self._written = time.monotonic()
        where = f"cell {self._position}/{self.n_cells}"
        section = f'  "{self._section}"' if self._section else ""
        text = f"[{self.label}] {where}{section}  {clock(self.elapsed)}"
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r\x1b[K{text[:width]}")
            self._stream.flush()
        else:
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def _line(self, text: str) -> None:
        self._stream.write(f"[{self.label}] {text}\n")
        self._stream.flush()


def clock(seconds: float) -> str:
    """Return a duration as ``m:ss``, or ``h:mm:ss`` from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def memory_of_children() -> int:
    """Return the resident memory of all processes that this one has started, in bytes."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue  # it has just ended
    return total


def _sections(cells: list[dict]) -> tuple[list[tuple[int | None, str]], int]:
    """Return for each cell its number among the code cells and the heading above.

    And their count.
    """
    found, position, section = [], 0, ""
    for cell in cells:
        if cell["cell_type"] == "markdown":
            headings = _HEADING.findall(cell["source"])
            section = headings[-1] if headings else section
            found.append((None, section))
        else:
            position += 1
            found.append((position, section))
    return found, position
