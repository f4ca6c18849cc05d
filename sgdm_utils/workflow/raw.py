"""Has the recording been corrected since it was read?

A channel marked bad, a label put right, a run added: what was computed before is then out of date.
What is kept of a recording is a listing: size and date of every file, and the SHA-256 of those that
people edit (tables, headers; for one person's step also of the signals, which it reads anyway).
Dates alone never count: where only the date differs the content is compared.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sgdm_utils.workflow import atomic, paths

SMALL = 1 << 20  # bytes up to which every file is kept by its digest
_PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".svg", ".tif", ".tiff", ".webp"}
_PERSON = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")


def describe(name: str, people: Collection[str], signals: bool) -> dict[str, Any]:
    """Return what is kept of the part of a raw data set that concerns some people.

    Parameters
    ----------
    name : str
        Its folder in ``data/raw``.
    people : collection of str
        ``"sub-01"``; files that carry another person's name are left out.
    signals : bool
        Whether signal files are kept by their digest (and pictures left out): a step that reads one
        person's signals. Otherwise they are kept by their size.

    Returns
    -------
    dict
        ``root``, ``people``, ``signals``, and ``files``: path -> [bytes, date in ns, SHA-256 or None].
    """
    root = paths.raw_dir(name)
    files = {}
    for path, (size, date) in _listing(root, people, signals).items():
        digest = _digest(root / path, size, date) if signals or size <= SMALL else None
        files[path] = [size, date, digest]
    return {"root": name, "people": sorted(people), "signals": signals, "files": files}


def digest(described: Mapping[str, Any]) -> str:
    """Return one SHA-256 for what `describe` gave; dates do not count."""
    listing = {name: sha or str(size) for name, (size, _, sha) in described["files"].items()}
    return atomic.digest_listing(listing)


def changed(described: Mapping[str, Any], verify: bool = False) -> list[str]:
    """Return which files are not as they were, with what happened to them.

    A data set that has been removed as a whole is not a changed one: what was read from it holds.

    Parameters
    ----------
    described : mapping
        What `describe` gave.
    verify : bool
        Read every file that has a digest, also where size and date are unchanged.
    """
    root, then = paths.raw_dir(described["root"]), described["files"]
    if not root.is_dir():
        return []
    now = _listing(root, described["people"], described["signals"])
    found = [f"{name} (new)" for name in now.keys() - then.keys()]
    found += [f"{name} (gone)" for name in then.keys() - now.keys()]
    for name in now.keys() & then.keys():
        (size, date), (old_size, old_date, sha) = now[name], then[name]
        same = size == old_size and (date == old_date and not verify or sha is None)
        if not same and (size != old_size or _digest(root / name, size, date) != sha):
            found.append(f"{name} (edited)")
    return sorted(found)


def _listing(root: Path, people: Collection[str], signals: bool) -> dict[str, tuple[int, int]]:
    found = {}
    for path in atomic.list_files(root) if root.is_dir() else ():
        name = path.relative_to(root).as_posix()
        person = _PERSON.search(name)
        hidden = any(part.startswith(".") for part in name.split("/"))
        other = person is not None and person[1] not in people
        picture = signals and person is None and path.suffix.lower() in _PICTURES
        if not (hidden or other or picture):
            about = path.stat()
            found[name] = (about.st_size, about.st_mtime_ns)
    return found


@functools.lru_cache(maxsize=65536)
def _digest(path: Path, size: int, date: int) -> str:
    """Digest of a file; size and date are given so that an edited file is read again."""
    return atomic.digest_file(path)
