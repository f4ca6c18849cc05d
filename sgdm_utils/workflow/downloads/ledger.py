"""`fetch.json` beside fetched files: from where, under which licence, with which checksum.

It is what a file without a published checksum is compared with when it is fetched again.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sgdm_utils.workflow import paths
from sgdm_utils.workflow.atomic import atomic_file, digest_file
from sgdm_utils.workflow.downloads.catalogue import Entry, RemoteFile
from sgdm_utils.workflow.downloads.transfers import DownloadError

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
            except (ValueError, KeyError, TypeError, AttributeError):
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
