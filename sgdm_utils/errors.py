"""What users are told: errors that several rooms raise, and that of a file that cannot be read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


class DatasetError(ValueError):
    """A recording or its events cannot be used as they are: the message says where."""


class ChannelError(ValueError):
    """A channel cannot be used as it is: the message names it and says what to do."""


class WeightsNotAvailable(RuntimeError):
    """Pretrained weights of a metric are not on this machine, so its row holds no number."""


@contextlib.contextmanager
def reading(
    path: Path | str,
    what: str,
    remedy: str = "Copy it again",
    error: type[Exception] = DatasetError,
) -> Iterator[None]:
    """Say which file it was, whatever damaged content leads the software that reads it to.

    Parameters
    ----------
    path : Path, named in the message
    what : str, what the file should be: "a picture"
    remedy : str, what to do
    error : the class that is raised

    Raises
    ------
    error
        For any exception inside, except one of this package that names a file: it passes as it is.
    """
    try:
        yield
    except Exception as cause:  # what a reader makes of arbitrary bytes is anybody's guess
        own = type(cause).__module__.startswith("sgdm_utils")
        if own and (Path(path).name in str(cause) or os.sep in str(cause)):
            raise
        said = str(cause) if own else f"{type(cause).__name__}: {cause}"[:500]
        raise error(f"{path} cannot be read as {what} ({said}). {remedy}") from cause
