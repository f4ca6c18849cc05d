"""Unpack zip and tar archives from elsewhere: files only, below one folder, all or nothing."""

from __future__ import annotations

import contextlib
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import IO

from sgdm_utils.workflow.atomic import atomic_directory
from sgdm_utils.workflow.downloads.transfers import DownloadError, check_space

_SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".tar", ".zip")
_Member = tuple[str, int, Callable[[], IO[bytes]]]  # name, bytes, opener
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError)


def is_archive(path: str | Path) -> bool:
    """Whether a name is one of an archive that `unpack` takes."""
    return str(path).lower().endswith(_SUFFIXES)


def folder_of(archive: Path) -> Path:
    """Return the folder an archive is unpacked to: beside it, its name without the suffix."""
    suffix = next(s for s in _SUFFIXES if archive.name.lower().endswith(s))
    return archive.with_name(archive.name[: -len(suffix)])


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Unpack a zip or tar archive; `folder` appears when everything is unpacked, or not at all.

    Only files and the folders they lie in are written. When the archive consists of a single
    folder, its content is taken, so that `training_images.zip` does not become
    `training_images/training_images`.

    Parameters
    ----------
    archive : Path
    folder : Path, must not exist or be empty

    Returns
    -------
    list of Path, the files, sorted

    Raises
    ------
    DownloadError
        A member would land outside the folder, is a link or device, stands there twice or needs a
        password; the archive is damaged; the disk is too small; `folder` holds something.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DownloadError(
            f"{folder} is there already and was not unpacked from {archive.name} as it is now. Move "
            "it away, or use it as it is and leave unpacking out"
        )
    try:
        with contextlib.ExitStack() as stack:
            if archive.name.lower().endswith(".zip"):
                members = _zip_members(archive, stack.enter_context(zipfile.ZipFile(archive)))
            else:
                members = _tar_members(archive, stack.enter_context(tarfile.open(archive)))
            targets = _targets(archive, [name for name, _, _ in members])
            check_space(archive.parent, sum(size for _, size, _ in members))
            with atomic_directory(folder) as part:
                for (name, size, opener), target in zip(members, targets, strict=True):
                    path = part / target
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with opener() as source, open(path, "wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
                    if path.stat().st_size != size:
                        raise EOFError(f"{name} ends early")
    except _DAMAGED as error:
        raise DownloadError(
            f"{archive} cannot be unpacked ({error}). If it is damaged, remove it and fetch it again"
        ) from error
    return sorted(folder / target for target in targets)


def _zip_members(archive: Path, bundle: zipfile.ZipFile) -> list[_Member]:
    infos = [info for info in bundle.infolist() if not info.is_dir()]
    for info in infos:
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise _refused(archive, info.filename, "is a link or a device")
        if info.flag_bits & 1:
            raise DownloadError(
                f"{archive}: {info.filename} needs a password. Unpack it by hand with the one that "
                "the provider gives to those who accept the licence"
            )
    return [(i.orig_filename, i.file_size, lambda i=i: bundle.open(i)) for i in infos]


def _tar_members(archive: Path, bundle: tarfile.TarFile) -> list[_Member]:
    members = [member for member in bundle.getmembers() if not member.isdir()]
    for member in members:
        if not member.isreg():
            raise _refused(archive, member.name, "is a link or a device")
    return [(m.name, m.size, lambda m=m: bundle.extractfile(m)) for m in members]


def _targets(archive: Path, names: Iterable[str]) -> list[Path]:
    """Return where each member goes below the folder; refuse those that would not stay there."""
    targets = []
    for name in names:
        parts = PurePosixPath(name).parts
        # backslashes and colons are separators or drives on other systems
        if not parts or name.startswith("/") or ".." in parts or re.search(r"[\\:\0]", name):
            raise _refused(archive, name, "would be written outside the folder")
        targets.append(parts)
    if not targets:
        raise DownloadError(f"{archive} holds no file")
    if len({parts[0] for parts in targets}) == 1 and all(len(parts) > 1 for parts in targets):
        targets = [parts[1:] for parts in targets]
    counts = Counter(targets)
    counts.update({parts[:n] for parts in targets for n in range(1, len(parts))})
    for parts in targets:
        if counts[parts] > 1:
            raise _refused(archive, "/".join(parts), "stands there twice")
    return [Path(*parts) for parts in targets]


def _refused(archive: Path, name: str, why: str) -> DownloadError:
    return DownloadError(
        f"{archive}: {name} {why}. Nothing was unpacked: do not trust this archive, fetch it anew "
        "or ask its provider"
    )
