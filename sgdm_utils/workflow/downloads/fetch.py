"""Fetch what the catalogue lists: licence first, resumed when interrupted, verified before use.

A file takes its name only when size and checksum are right; pooch verifies and keeps what is there,
`transfers` continues what broke off. Where no checksum was published, the SHA-256 of the first
download is written to `downloads.json` beside the files and later ones must match it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fnmatch
import json
import re
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pooch
from filelock import Timeout

from sgdm_utils.errors import DatasetError
from sgdm_utils.workflow import locks, paths
from sgdm_utils.workflow.atomic import atomic_directory, atomic_file, digest_file
from sgdm_utils.workflow.downloads.catalogue import (
    Entry,
    LicenceError,
    RemoteFile,
    describe,
    find_entry,
    listing,
    load_catalogue,
    manual_route,
    require_licence,
)
from sgdm_utils.workflow.downloads.transfers import (
    DownloadError,
    Retry,
    Transfer,
    check_space,
    mismatch,
    part_of,
)


def fetch(
    name: str,
    files: str | Sequence[str] | None = None,
    accept_licence: str = "",
    destination: Path | None = None,
    catalogue: Mapping[str, Entry] | Path | None = None,
    progress: bool = True,
    *,
    unpack_archives: bool = False,
    retry: Retry | None = None,
    source: Path | None = None,
) -> list[Path]:
    """Fetch the files of one entry of the catalogue; what is there already is only checked.

    Parameters
    ----------
    name : str
    files : pattern or patterns of paths (`"sub-01/*"`), optional, all files by default
    accept_licence : str
        The licence's identifier, for entries that ask for it.
    destination : Path, optional, `data/raw/<folder of the entry>` by default
    catalogue : Path or what `load_catalogue` returned, optional, `data/licences.yaml` by default
    progress : bool, show a bar for each file
    unpack_archives : bool
        Unpack archives into a folder beside them, named like them without the suffix.
    retry : Retry, optional, how often and how long a broken transfer is tried again
    source : Path, optional
        A folder that holds the files already (another disk, a copy from another machine): they are
        verified and copied from there, and no network is used.

    Returns
    -------
    list of Path, the files in the order of the catalogue; for an unpacked archive its folder

    Raises
    ------
    sgdm_utils.workflow.downloads.catalogue.LicenceError
        The licence must be accepted and was not.
    DownloadError
        No network, a server that breaks off again and again, a wrong file, a full disk; the message
        holds the manual route. Files fetched before stay, and so does what had arrived of this one.
    """
    entry = find_entry(name, catalogue)
    require_licence(entry, accept_licence)
    folder = Path(destination) if destination else entry.raw_dir
    chosen = _choose(entry, files, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        ledger = Ledger(folder, entry)
        missing = [file for file in chosen if not _is_there(file, folder, ledger)]
        parts = {file.path: part_of(folder / file.path) for file in missing}
        arrived = sum(p.stat().st_size for p in parts.values() if p.exists())
        check_space(folder, sum(file.size or 0 for file in missing) - arrived)
        for file in missing:
            try:
                if source is None:
                    _fetch_one(file, folder, ledger, retry or Retry(), progress)
                else:
                    _copy_one(file, folder, ledger, Path(source))
            except DownloadError as error:
                with contextlib.suppress(OSError):  # an empty `sub-01` would look like lost files
                    (folder / file.path).parent.rmdir()
                rest = [f for f in chosen if not (folder / f.path).exists()]
                route = manual_route(entry, folder, rest)
                raise DownloadError(f"{name}: {error}\n{route}") from error
        return [
            _unpack_once(folder / file.path, file, ledger)
            if unpack_archives and _ARCHIVE.search(file.path)
            else folder / file.path
            for file in chosen
        ]


# ------------------------------------------------------------------ one file


def _choose(
    entry: Entry, patterns: str | Sequence[str] | None, folder: Path
) -> tuple[RemoteFile, ...]:
    if not entry.files:
        raise DownloadError(
            f"{entry.name}: no address of a single file is known, so it cannot be fetched from "
            f"here.\n{manual_route(entry, folder, [])}"
        )
    if patterns is None:
        return entry.files
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(file.path, pattern) for file in entry.files):
            raise DownloadError(
                f"{entry.name}: no file matches {pattern!r}; there is "
                f"{', '.join(file.path for file in entry.files)}"
            )
    return tuple(
        file for file in entry.files if any(fnmatch.fnmatchcase(file.path, p) for p in patterns)
    )


def _is_there(file: RemoteFile, folder: Path, ledger: Ledger) -> bool:
    """Check a file that is there; False when there is none.

    A file that the ledger knows with this size and time is not read again: a set may be 100 GB.
    """
    path = folder / file.path
    if not path.exists():
        return False
    if ledger.unchanged(file, path):
        return True
    found, known = mismatch(file, path), ledger.sha256(file)
    if not found and known and (received := digest_file(path)) != known:
        found = f"expected sha256:{known} as recorded in {LEDGER}, received {received}"
    if found:
        raise DownloadError(
            f"{path} is there but is not the published file: {found}. It was left as it is. Move it "
            "away and run again to fetch it anew"
        )
    ledger.record(file, path)
    return True


def _fetch_one(
    file: RemoteFile, folder: Path, ledger: Ledger, retry: Retry, progress: bool
) -> None:
    path = folder / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    transfer = Transfer(file, path, retry, progress)
    trusted = ledger.sha256(file)
    known = file.known_hash or (trusted and f"sha256:{trusted}")
    try:
        # below warnings it tells to use the hash as `known_hash`, which is not how it is recorded
        pooch.get_logger().setLevel("WARNING")
        pooch.retrieve(file.url, known, path.name, path.parent, downloader=transfer)
    except DatasetError:
        raise
    except ValueError as error:  # pooch: the checksum is another one; it removed the file
        transfer.forget()
        why = ""
        if not file.known_hash:
            why = (
                f". The checksum was recorded in {LEDGER} when the file was first fetched; if its "
                "publisher has replaced it, remove it from there"
            )
        raise DownloadError(
            f"{file.path}: {file.url} sent another file, it was removed: {error}{why}"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DownloadError(
            f"{file.path}: the disk is full; what has arrived is kept in {transfer.part}. Free some "
            "space, or set SGDM_DATA to a folder on a larger disk, and run again"
        ) from error
    transfer.forget()
    ledger.record(file, path)


def _copy_one(file: RemoteFile, folder: Path, ledger: Ledger, source: Path) -> None:
    """Take a file from a folder of the user's, by its path below it or by its name alone."""
    there = [p for p in (source / file.path, source / Path(file.path).name) if p.is_file()]
    if not there:
        raise DownloadError(
            f"{file.path}: {source} holds no such file. Name the folder that it lies in, or leave "
            "the folder out to fetch it"
        )
    with atomic_file(folder / file.path) as part:
        shutil.copyfile(there[0], part)
        found, known = mismatch(file, part), ledger.sha256(file)
        if not found and known and (received := digest_file(part)) != known:
            found = f"expected sha256:{known} as recorded in {LEDGER}, received {received}"
        if found:
            raise DownloadError(
                f"{there[0]} is not the published file: {found}. Nothing was copied: get the file anew"
            )
    ledger.record(file, folder / file.path)


def _unpack_once(archive: Path, file: RemoteFile, ledger: Ledger) -> Path:
    folder = archive.with_name(_ARCHIVE.sub("", archive.name))
    if not (folder.is_dir() and ledger.unpacked(file) == ledger.sha256(file)):
        unpack(archive, folder)
        ledger.record_unpacked(file)
    return folder


# ------------------------------------------------------------------ archives

_ARCHIVE = re.compile(r"\.(tar(\.(gz|bz2|xz))?|tgz|zip)$", re.IGNORECASE)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)  # none of the archive's
_OUTSIDE = re.compile(r"^/|[\\:\0]|(^|/)\.\.(/|$)")  # backslash, colon: for other systems


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive; `folder` appears when everything is unpacked, or not at all.

    When the archive consists of a single folder, its content is taken, so that
    `training_images.zip` does not become `training_images/training_images`.

    Parameters
    ----------
    archive : Path
    folder : Path, must not exist or be empty

    Raises
    ------
    DownloadError
        A member would land outside the folder or is a link; the archive is damaged, empty or needs
        a password; the disk is too small; `folder` holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DownloadError(
            f"{folder} is there already and was not unpacked from {archive.name} as it is now. Move "
            "it away, or use it as it is and leave unpacking out"
        )
    is_zip = archive.suffix.lower() == ".zip"
    try:
        with (zipfile.ZipFile if is_zip else tarfile.open)(archive) as bundle:
            members = bundle.infolist() if is_zip else bundle.getmembers()
            for m in members:
                name = m.orig_filename if is_zip else m.name
                links = (m.external_attr >> 28 not in (0, 4, 8)) if is_zip else not m.isreg()
                if _OUTSIDE.search(name) or (links and not (m.is_dir() if is_zip else m.isdir())):
                    what = "link or device" if links else "member outside the folder"
                    raise DownloadError(
                        f"{archive}: {name} is a {what}. Nothing was unpacked: do not trust this "
                        "archive, fetch it anew or ask its provider"
                    )
            check_space(archive.parent, sum(m.file_size if is_zip else m.size for m in members))
            with atomic_directory(folder) as part:
                bundle.extractall(part, **({} if is_zip else {"filter": "data"}))
                inside = list(part.iterdir())
                if len(inside) == 1 and inside[0].is_dir():
                    only = inside[0].rename(part / f".{part.name}")
                    for path in only.iterdir():
                        shutil.move(path, part)
                    only.rmdir()
                if not inside:
                    raise DownloadError(f"{archive} holds no file")
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise DownloadError(f"{archive}: {error.filename} stands there twice") from error
    except (
        Exception
    ) as error:  # compressors have errors of their own, and damaged names the system's
        known = isinstance(error, DownloadError) or getattr(error, "errno", None) in _DISK
        if known:
            raise
        raise DownloadError(
            f"{archive} cannot be unpacked ({error}). If it needs a password, unpack it by hand "
            "with the one that the provider gives; if it is damaged, remove it and fetch it again"
        ) from error


# ------------------------------------------------------------------ around it


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two processes that append to one `.part` would spoil it."""
    lock = locks.shared_lock(folder / ".downloads.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DownloadError(
            f"another process is fetching into {folder}: wait until it has ended, and run again"
        ) from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


# ------------------------------------------------------------------ command line


def _with_command(arguments: Sequence[str] | None) -> list[str]:
    """``fetch NAME`` means ``fetch fetch NAME``; list and show are asked for by name."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    known = ("list", "show", "fetch", "-h", "--help")
    return given if not given or given[0] in known else ["fetch", *given]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, 1 (failed), 3 (licence not accepted) or 130 (interrupted)."""
    parser = argparse.ArgumentParser(
        prog="python -m sgdm_utils fetch", description=__doc__.split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names, sizes and licences")
    show = commands.add_parser("show", help="everything about one data set")
    get = commands.add_parser("fetch", help="fetch the files of one data set")
    for command in (show, get):
        command.add_argument("name")
    get.add_argument("--accept", default="", metavar="LICENCE", help="identifier of its licence")
    get.add_argument("--files", nargs="+", metavar="PATTERN", help='e.g. "sub-01/*"')
    get.add_argument("--destination", type=Path, help="folder, below data/raw by default")
    get.add_argument("--from", type=Path, dest="source", metavar="FOLDER",
                     help="a folder that holds the files: verified and copied, no network")  # fmt: skip
    get.add_argument("--unpack", action="store_true", help="unpack archives beside themselves")
    given = parser.parse_args(_with_command(arguments))
    try:
        if given.command == "list":
            print(listing(load_catalogue()))
        elif given.command == "show":
            print(describe(find_entry(given.name)))
        else:
            there = fetch(
                given.name, given.files, given.accept, given.destination,
                unpack_archives=given.unpack, progress=sys.stderr.isatty(), source=given.source,
            )  # fmt: skip
            print("\n".join(paths.relative(path) for path in there))
            print(
                "".join(f"next: {step.strip()}\n" for step in find_entry(given.name).after), end=""
            )
    except LicenceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what has arrived is kept, the same command continues", file=sys.stderr)
        return 130
    return 0


LEDGER = "downloads.json"


class Ledger:
    """The records of one folder.

    Parameters
    ----------
    folder : Path
    entry : Entry, what new records are noted under; entries may share a folder

    Raises
    ------
    DownloadError
        The file is there and cannot be read.
    """

    def __init__(self, folder: Path, entry: Entry):
        self._path, self._entry = folder / LEDGER, entry
        self._files: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            try:
                self._files = json.loads(self._path.read_text(encoding="utf-8"))["files"]
                ok = all(isinstance(about["sha256"], str) for about in self._files.values())
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                ok = False
            if not ok:
                raise DownloadError(
                    f"{self._path} is damaged: it holds the checksums of what was fetched. Restore "
                    "it, or remove it to record the files as they are now"
                )

    def sha256(self, file: RemoteFile) -> str | None:
        """The recorded checksum, if this file was fetched before."""
        return self._files.get(file.path, {}).get("sha256")

    def unchanged(self, file: RemoteFile, path: Path) -> bool:
        """Whether a file still has the size and time it was recorded with, and should have."""
        about, now = self._files.get(file.path), path.stat()
        return (
            about is not None
            and (about.get("size"), about.get("mtime_ns")) == (now.st_size, now.st_mtime_ns)
            and about.get("published") == _published(file)
            and file.size in (None, now.st_size)
        )

    def record(self, file: RemoteFile, path: Path) -> None:
        """Write a file down; says so when its checksum rests on this first use alone."""
        now, before = path.stat(), self._files.get(file.path, {})
        sha256 = file.sha256 or digest_file(path)
        published = _published(file)
        if not published and "sha256" not in before:
            print(
                f"{file.path}: no checksum was published; its SHA-256 is {sha256}, recorded in "
                f"{paths.relative(self._path)}"
            )
        self._files[file.path] = before | {
            "entry": self._entry.name,
            "licence": self._entry.licence,
            "url": file.url,
            "size": now.st_size,
            "mtime_ns": now.st_mtime_ns,
            "sha256": sha256,
            "published": published,  # null: nothing but this first download vouches for it
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._save()

    def unpacked(self, file: RemoteFile) -> str | None:
        """SHA-256 of the archive that was unpacked, None when none was."""
        return self._files[file.path].get("unpacked")

    def record_unpacked(self, file: RemoteFile) -> None:
        """Write down that an archive was unpacked."""
        self._files[file.path]["unpacked"] = self._files[file.path]["sha256"]
        self._save()

    def _save(self) -> None:
        content = {"files": dict(sorted(self._files.items()))}
        with atomic_file(self._path) as path:
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _published(file: RemoteFile) -> str | None:
    """The checksum, or its beginning, that the catalogue knew when a file was checked."""
    return file.known_hash or file.sha256_prefix
