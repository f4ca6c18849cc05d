"""Files whose content is elsewhere: what a clone without its data leaves in their place."""

from __future__ import annotations

from pathlib import Path

from sgdm_utils.errors import DatasetError

_POINTERS = {  # how the text begins that stands for the content of a file
    b"/annex/objects/": "git-annex",
    b"version https://git-lfs": "Git LFS",
}
_LONGEST = 1024  # bytes; the specifications of both allow no longer pointer


def absent_content(path: Path) -> str:
    """Say how the content of a file is fetched that is known by name only.

    Parameters
    ----------
    path : Path

    Returns
    -------
    str, "" where the content is there, and where there is no such file at all

    References
    ----------
    git-annex: a locked file is a link below `.git/annex/objects`, an unlocked one holds
    `/annex/objects/` and its key. Git LFS specification, "The Pointer".
    """
    path = Path(path)
    if path.is_symlink() and not path.exists():
        target = path.readlink().as_posix()
        if "annex/objects/" not in target:
            return f"{path} is a link to {target}, which is not there. Copy the file itself"
        keeper = "git-annex"
    else:
        try:
            if path.stat().st_size > _LONGEST:
                return ""
            start = path.read_bytes()
        except OSError:
            return ""
        keeper = next((name for text, name in _POINTERS.items() if start.startswith(text)), "")
    if not keeper:
        return ""
    command = {"git-annex": "datalad get", "Git LFS": "git lfs pull --include"}[keeper]
    return (
        f"{path} is known by name only, its content was not fetched ({keeper}): "
        f"cd {path.parent} && {command} {path.name}"
    )


def require_content(*paths: Path) -> None:
    """Refuse files whose content was not fetched.

    Raises
    ------
    DatasetError
        Names the first of them, how many there are, and the command that fetches it.
    """
    absent = [text for text in map(absent_content, paths) if text]
    if absent:
        others = f" ({len(absent) - 1} more here are like it)" if len(absent) > 1 else ""
        raise DatasetError(absent[0] + others)
