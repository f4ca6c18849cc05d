"""Writing that is whole or not there.

Folders and files appear under their name only when they are complete.

A writer fills a hidden folder beside its target and holds a lock on it. At the end everything is
flushed to the disk and the folder takes the target's name. A process that is killed leaves a hidden
folder whose lock nobody holds; the next writer of the same target removes it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from sgdm_utils.workflow import locks

_CHUNK = 1 << 20  # bytes read at once for a digest
_TOKEN_BYTES = 6
_TOKEN_GLOB = "[0-9a-f]" * (2 * _TOKEN_BYTES)


@contextlib.contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Write a folder so that readers see the old one or the whole new one.

    Parameters
    ----------
    target : Path
        Folder to create or to replace.

    Yields
    ------
    Path
        An empty folder beside `target`, to be filled. When the block ends well it takes the name
        `target`; when the block raises it is removed and `target` stays as it was.

    Notes
    -----
    Two writers at once each fill a folder of their own; the one that finishes last stays.
    """
    with hidden_folder(target) as part:
        recover(Path(target))
        yield part
        _flush(part)
        _publish(part, Path(target))


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Write one file so that readers see the old one or the whole new one.

    Parameters
    ----------
    target : Path
        File to create or to replace; its folder is made if need be.

    Yields
    ------
    Path
        A path of the same name in a hidden folder beside `target`, to be written.
    """
    target = Path(target)
    with hidden_folder(target) as folder:
        part = folder / target.name
        yield part
        _fsync(part)
        os.replace(part, target)
        _fsync(target.parent)


@contextlib.contextmanager
def hidden_folder(target: Path) -> Iterator[Path]:
    """Make an empty hidden folder beside `target`, and remove it in the end.

    While it is there a lock is held on it, which dies with the process: `sweep` removes the folders
    whose lock nobody holds.

    Raises
    ------
    DiskFull
        When the disk is full, also where a library reports it in words of its own.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, target.name)
    part = target.parent / f".{target.name}.{secrets.token_hex(_TOKEN_BYTES)}.part"
    lock = FileLock(f"{part}.lock")
    with lock:  # taken before the folder exists: a folder without a held lock is a leftover
        try:
            part.mkdir()
            yield part
        except (OSError, RuntimeError) as error:  # torch says it in a RuntimeError
            if _is_full(error, target.parent):
                raise DiskFull(target, part) from error
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)


class DiskFull(OSError):
    """There is no room for a result; the message says where, how much is needed and what to do.

    Parameters
    ----------
    target : Path, what could not be written
    part : Path, folder of what has been written of it
    """

    def __init__(self, target: Path, part: Path) -> None:
        written = max(map(_size, (part, target)))
        free = shutil.disk_usage(target.parent).free
        super().__init__(
            errno.ENOSPC,
            f"the disk of {target.parent} is full: {free / 1e6:.1f} MB are free and {target.name} "
            f"needs at least {written / 1e6:.1f} MB more than other files leave. It was not replaced. "
            "Free some space, or set SGDM_DATA and SGDM_REPORTS to folders on a larger disk, and run "
            "again",
        )


def sweep(folder: Path, name: str = "*") -> None:
    """Remove the hidden folders in `folder` of processes that are gone.

    Parameters
    ----------
    folder : Path
        Where to look; folders below it are not searched.
    name : str
        Only those that were to become a file or folder of this name.
    """
    pattern = f".{name}.{_TOKEN_GLOB}.part"
    left = {*folder.glob(pattern), *(p.with_suffix("") for p in folder.glob(f"{pattern}.lock"))}
    for part in left:
        lock = FileLock(f"{part}.lock")
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            continue  # its process is alive, or it is somebody else's
        shutil.rmtree(part, ignore_errors=True)
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def recover(target: Path) -> None:
    """Give `target` its folder back if a writer was killed between the two renames."""
    target = Path(target)
    if _holds_something(target) or not target.parent.is_dir() or not _retired(target):
        return
    with _publishing(target):
        retired = _retired(target)
        if not _holds_something(target) and retired:
            os.rename(max(retired, key=lambda path: path.stat().st_mtime), target)


def list_files(folder: Path) -> list[Path]:
    """Return the files below `folder` in a fixed order, without JupyterLab's checkpoints."""
    folder = Path(folder)
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and ".ipynb_checkpoints" not in path.relative_to(folder).parts
    )


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's content as hexadecimal text."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def digest_listing(listing: dict[str, str]) -> str:
    """Return one SHA-256 for a mapping of names to digests, whatever its order."""
    text = "".join(f"{name}\0{listing[name]}\n" for name in sorted(listing))
    return hashlib.sha256(text.encode()).hexdigest()


def _publish(part: Path, target: Path) -> None:
    """Let `part` take the place of `target`, which steps aside: a full folder blocks a rename."""
    with _publishing(target):
        retired = target.parent / f".{target.name}.{secrets.token_hex(_TOKEN_BYTES)}.old"
        replaced = target.exists()
        if replaced:
            os.rename(target, retired)
        try:
            os.rename(part, target)
        except OSError:
            if replaced:
                os.rename(retired, target)
            raise
        _fsync(target.parent)
        for old in _retired(target):
            shutil.rmtree(old, ignore_errors=True)


def _is_full(error: Exception, folder: Path) -> bool:
    """Tell a full disk; numpy and torch report it without its number."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return True
    return number is None and shutil.disk_usage(folder).free < _CHUNK


def _size(path: Path) -> int:
    files = [path] if path.is_file() else list_files(path) if path.is_dir() else []
    return sum(file.stat().st_size for file in files)


def _holds_something(folder: Path) -> bool:
    """Tell a result from nothing; workflow engines make empty folders for what they expect."""
    return folder.is_dir() and any(folder.iterdir())


def _retired(target: Path) -> list[Path]:
    return list(target.parent.glob(f".{target.name}.{_TOKEN_GLOB}.old"))


def _publishing(target: Path) -> FileLock:
    return locks.shared_lock(target.parent / f".{target.name}.lock")


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise ValueError(
                f"{path} is a link: an artifact holds its own files only, write the content itself"
            )
        _fsync(path)
    _fsync(folder)


def _fsync(path: Path) -> None:
    flags = os.O_RDONLY if os.name == "posix" else os.O_RDWR
    if path.is_dir() and os.name != "posix":
        return  # only POSIX systems open folders
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
