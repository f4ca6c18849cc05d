"""One file over HTTP, continued where it broke off: the downloader that pooch is given.

The bytes grow in `<name>.part`; `<name>.part.json` says of which address and version they are, so
that bytes of two versions are never joined, also when another process continues.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pooch
import requests
from tqdm.auto import tqdm

from sgdm_utils.errors import DatasetError
from sgdm_utils.workflow.atomic import atomic_file, digest_file
from sgdm_utils.workflow.downloads.catalogue import RemoteFile, readable

_CHUNK = 16 << 10  # bytes; when a connection breaks off, less than one chunk is lost
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # HTTP states that may be gone in a moment


class DownloadError(DatasetError):
    """A file could not be fetched or is not what it should be; the message says what to do."""


@dataclass(frozen=True)
class Retry:
    """How patient a transfer is.

    Attributes
    ----------
    attempts : int, connections for one file before giving up (what has arrived is kept)
    backoff_s : float, seconds before the second attempt, doubled for each further one
    longest_wait_s : float, seconds, bound of a wait, also of one that a server asks for
    timeout_s : float, seconds without a byte after which a connection counts as broken
    """

    attempts: int = 5
    backoff_s: float = 1.0
    longest_wait_s: float = 60.0
    timeout_s: float = 30.0


class _Interrupted(Exception):
    """A transfer broke off and may be tried again."""

    def __init__(self, reason: str, wait_s: float = 0.0):
        super().__init__(reason)
        self.wait_s = wait_s


class Transfer:
    """A downloader for pooch (`pooch.retrieve(..., downloader=...)`) that continues.

    Parameters
    ----------
    file : RemoteFile
    path : Path, the final name; the parts lie beside it
    retry : Retry
    progress : bool, show a bar
    """

    def __init__(self, file: RemoteFile, path: Path, retry: Retry, progress: bool):
        self.file, self.retry, self.progress = file, retry, progress
        self.part = part_of(path)
        self._about = self.part.with_name(f"{self.part.name}.json")

    def __call__(self, url: str, output_file: str, pooch: Any, check_only: bool = False) -> None:
        """Fetch `url` and leave it under the temporary name that pooch gave.

        Raises
        ------
        DownloadError
            No connection, too many broken ones, or another file than expected.
        """
        output = Path(output_file)
        output.unlink(missing_ok=True)  # an empty file that would stay if this process were killed
        if stray := self._read().get("staged"):  # ... as one did when an earlier process was
            self.part.with_name(stray).unlink(missing_ok=True)
        self._transfer(url)
        if found := mismatch(self.file, self.part, checksum=False):  # pooch compares the checksum
            self.forget()
            raise DownloadError(
                f"{self.file.path}: {url} sent another file, it was removed: {found}"
            )
        self._write(self._read() | {"staged": output.name})
        try:
            os.link(self.part, output)  # the part stays until the checksum has been compared
        except OSError:  # no hard links on this file system
            os.replace(self.part, output)

    def forget(self) -> None:
        """Remove the part and what is known about it."""
        self.part.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)

    def _transfer(self, url: str) -> None:
        pause, reason = self.retry.backoff_s, ""
        bar = tqdm(desc=self.file.path, unit="B", unit_scale=True, disable=not self.progress)
        with bar:
            for attempt in range(1, self.retry.attempts + 1):
                try:
                    return self._attempt(url, bar)
                except _Interrupted as error:
                    reason = str(error)
                    if attempt < self.retry.attempts:
                        time.sleep(min(max(pause, error.wait_s), self.retry.longest_wait_s))
                        pause *= 2
        size = self.part.stat().st_size if self.part.exists() else 0
        kept = f" {readable(size)} have arrived and are kept; the next call continues."
        raise DownloadError(
            f"{self.file.path} could not be fetched from {url} in {self.retry.attempts} attempts: "
            f"{reason}.{kept if size else ''}"
        )

    def _attempt(self, url: str, bar: tqdm) -> None:
        about = self._read()
        if about.get("url") != url:
            self.forget()
            about = {}
        have = self.part.stat().st_size if self.part.exists() else 0
        if have and have == about.get("total"):
            return
        # identity: a range counts the bytes that are sent, and compression would change them
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            headers |= {"If-Range": about["version"]} if about.get("version") else {}
        try:
            with requests.get(
                url, headers=headers, stream=True, timeout=self.retry.timeout_s
            ) as response:
                start, total = self._accept(url, response, have, about)
                if start is not None:
                    self._receive(response, start, total, bar)
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            raise _Interrupted(f"no connection, or it broke off ({_reason(error)})") from error
        except requests.RequestException as error:
            raise DownloadError(f"{self.file.path}: {url} cannot be fetched ({error})") from error

    def _accept(
        self, url: str, response: requests.Response, have: int, about: dict[str, Any]
    ) -> tuple[int | None, int | None]:
        """Judge the header; return at which byte to write, None when all is there, and the size."""
        state, length = response.status_code, response.headers.get("Content-Length", "")
        total, start = (int(length) if length.isdigit() else None), 0
        if state in (206, 416):
            sent = re.fullmatch(
                r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", "")
            )
            first, whole = sent.groups() if sent else (None, None)
            total, start = (int(whole) if whole and whole.isdigit() else None), have
            if state == 416 and have and total == have:
                return None, total  # there was nothing left to send
            if state == 416 or first != str(have) or about.get("total") not in (None, total):
                self.forget()
                raise _Interrupted("the server sent another range or version; it starts anew")
        elif state in _TRANSIENT:
            wait = response.headers.get("Retry-After", "")
            raise _Interrupted(
                f"the server answers {state} {response.reason}",
                float(wait) if wait.isdigit() else 0,
            )
        elif state != 200:  # 200: no ranges, or the file has changed; everything is sent again
            raise DownloadError(
                f"{self.file.path}: {url} answers {state} {response.reason}. The file was moved, or "
                "asks for a login"
            )
        self._refuse(url, response, total)
        check_space(self.part.parent, (total or self.file.size or 0) - start)
        version = response.headers.get("ETag", "")
        if not version or version.startswith("W/"):  # a weak tag does not promise equal bytes
            version = response.headers.get("Last-Modified", "")
        self._write({"url": url, "total": total, "version": version or about.get("version", "")})
        return start, total

    def _receive(
        self, response: requests.Response, start: int, total: int | None, bar: tqdm
    ) -> None:
        if self.progress:
            bar.total, bar.n = total or self.file.size, start
            bar.refresh()
        with open(self.part, "ab" if start else "wb") as stream:
            for chunk in response.iter_content(_CHUNK):
                stream.write(chunk)
                bar.update(len(chunk))
            stream.flush()
            os.fsync(stream.fileno())
        size, expected = self.part.stat().st_size, self.file.size if total is None else total
        if expected is not None and size < expected:
            raise _Interrupted(f"the connection ended after {size:,} of {expected:,} bytes")

    def _refuse(self, url: str, response: requests.Response, total: int | None) -> None:
        """Refuse from the header alone what cannot be the file."""
        kind, path, problem = response.headers.get("Content-Type", ""), self.file.path, ""
        coding = response.headers.get("Content-Encoding", "identity")
        if kind.startswith("text/html") and not path.endswith((".html", ".htm")):
            problem = "a web page (a login, or a notice of the network), not the file"
        elif coding != "identity":
            problem = f"compressed content ({coding}) unasked"
        elif self.file.size is not None and total is not None and total != self.file.size:
            problem = f"another file: expected {self.file.size:,} bytes, received {total:,}"
        if problem:
            self.forget()
            raise DownloadError(f"{path}: {url} sends {problem}. Nothing was kept")

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            about = json.loads(self._about.read_text(encoding="utf-8"))
            if isinstance(about, dict):
                return about
        return {}  # a part of unknown origin is not continued

    def _write(self, about: dict[str, Any]) -> None:
        with atomic_file(self._about) as path:
            path.write_text(json.dumps(about), encoding="utf-8")


def part_of(path: Path) -> Path:
    """Return the name under which a file grows."""
    return path.with_name(f"{path.name}.part")


def mismatch(file: RemoteFile, path: Path, checksum: bool = True) -> str:
    """Say what is wrong with a file by what was published about it; "" when nothing is.

    Parameters
    ----------
    file : RemoteFile
    path : Path
    checksum : bool, False leaves a complete checksum to the caller
    """
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"expected {file.size:,} bytes, received {size:,}"
    if checksum and file.known_hash:
        algorithm = file.known_hash.split(":")[0]
        received = f"{algorithm}:{pooch.file_hash(path, algorithm)}"
        expected = f"expected {file.known_hash}, received {received}"
        return "" if received == file.known_hash else expected
    if file.sha256_prefix and not (received := digest_file(path)).startswith(file.sha256_prefix):
        return f"expected a SHA-256 that begins with {file.sha256_prefix}, received {received}"
    return ""


def check_space(folder: Path, needed: int) -> None:
    """Raise a `DownloadError` when fewer than `needed` bytes are free at `folder`."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{readable(needed)} are needed and {readable(free)} are free at {folder}. Free some "
            "space, set SGDM_DATA to a folder on a larger disk, or fetch some of the files only"
        )


def _reason(error: BaseException) -> str:
    """The end of the chain of exceptions says what happened ("Connection refused")."""
    text = str(error)
    while cause := (error.__cause__ or error.__context__):
        error, text = cause, str(cause) or type(cause).__name__
    return text
