"""Locks that die with their process and say who holds them.

A lock lies beside what it guards, and everybody who may write there may use it.
"""

from __future__ import annotations

import atexit
import contextlib
import getpass
import os
import platform
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

ENGINE = "SGDM_ENGINE"  # environment variable by which a step knows that an engine started it


class BusyError(RuntimeError):
    """Somebody else is computing this; the message says who."""


def engine_name() -> str:
    """What an engine tells its steps by `ENGINE`: node and process."""
    return f"{platform.node()}:{os.getpid()}"


def engine_is_gone() -> bool:
    """Whether the engine that started this step ran on this node and does not any more."""
    node, _, process = os.environ.get(ENGINE, "").rpartition(":")
    here = node == platform.node() and process.isdigit()
    return here and not psutil.pid_exists(int(process))


def shared_lock(path: Path) -> FileLock:
    """Return a lock that the next user of the machine can take, too; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, mode=0o666)


@contextlib.contextmanager
def held(path: Path, what: str, patience_s: float = 0.0) -> Iterator[None]:
    """Hold a lock, or say who holds it.

    Parameters
    ----------
    path : Path
        The lock's file, ``.lock`` at its end.
    what : str
        What it guards, as messages call it.
    patience_s : float
        How long to wait for a holder that is about to end.

    Raises
    ------
    BusyError
        When another process holds it after that time.
    """
    lock, holder = shared_lock(path), path.with_suffix(".holder")
    try:
        lock.acquire(timeout=patience_s)
    except Timeout:
        who = holder.read_text(encoding="utf-8") if holder.is_file() else "another process"
        raise BusyError(
            f"{what} is being computed by {who}: wait until it has ended, or end it first"
        ) from None
    try:
        with contextlib.suppress(OSError):  # a message less, no reason to stop
            holder.write_text(_self(), encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def hold_until_exit(path: Path, what: str) -> None:
    """Hold a lock, see `held`, as long as this process lives."""
    stack = contextlib.ExitStack()
    stack.enter_context(held(path, what))
    atexit.register(stack.close)


def _self() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = f"user {os.getuid()}"
    since = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return f"process {os.getpid()} of {user} on {platform.node()} since {since}"
