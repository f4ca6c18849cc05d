"""Pairs of picture files from two folders, by name, whatever order a folder lists its files in.

A target is `<stem>.png` (or another format). Its reconstruction is `<stem>.png`; several samples of
one picture are `<stem>_0.png`, `<stem>_1.png`, ..., or the files of a folder `<stem>/`. Anything that
leaves open which file belongs to which is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sgdm_utils.errors import DatasetError
from sgdm_utils.stimuli.files import SUFFIXES


class PictureFolderError(DatasetError):
    """Folders cannot be paired, or a picture cannot be used: the message names the files."""


@dataclass(frozen=True)
class Pair:
    """A target and the samples of its reconstruction.

    Attributes
    ----------
    stem : str
    target : Path
    samples : tuple of Path, sorted by the number of the sample, or by name
    """

    stem: str
    target: Path
    samples: tuple[Path, ...]


def pair_folders(pred: Path, target: Path, samples_separator: str = "_") -> list[Pair]:
    """Pair reconstructions with targets.

    Parameters
    ----------
    pred, target : Path, folders
    samples_separator : str, between the stem and the number of a sample

    Returns
    -------
    list of Pair, sorted by stem

    Raises
    ------
    PictureFolderError
        A missing or empty folder, two files of one stem, targets without reconstruction or the
        reverse, unequal numbers of samples, or a mixture of the ways to name samples.
    """
    targets, folders = _list(Path(target))
    if folders:
        raise PictureFolderError(
            f"{folders[0]} is a folder among the targets: targets lie side by side, one file each"
        )
    wanted = _by_stem(targets, Path(target))
    files, folders = _list(Path(pred))
    if files and folders:
        raise PictureFolderError(
            f"{pred} holds pictures ({files[0].name}) and folders ({folders[0].name}): samples are "
            "either numbered files or files in a folder for each picture"
        )
    if folders:
        found = {folder.name: tuple(_only_files(folder)) for folder in folders}
    else:
        found = _samples(_by_stem(files, Path(pred)), wanted, samples_separator, Path(pred))
    _require_same(found.keys(), wanted.keys(), Path(pred), Path(target))
    counts = {stem: len(samples) for stem, samples in found.items()}
    usual = max(counts.values())
    short = sorted(stem for stem, count in counts.items() if count != usual)
    if short:
        raise PictureFolderError(
            f"{pred}: {len(short)} of {len(counts)} pictures have fewer than {usual} samples: "
            f"{_some(f'{stem} has {counts[stem]}' for stem in short)}. Every picture needs as many"
        )
    return [Pair(stem, wanted[stem], found[stem]) for stem in sorted(wanted)]


def _list(folder: Path) -> tuple[list[Path], list[Path]]:
    """Pictures and folders in a folder; hidden ones and files of other kinds are passed over."""
    if not folder.is_dir():
        raise PictureFolderError(f"{folder} is no folder: give the folder that holds the pictures")
    entries = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".")]
    files = [p for p in entries if p.is_file() and p.suffix.lower() in SUFFIXES]
    folders = [p for p in entries if p.is_dir()]
    if not files and not folders:
        raise PictureFolderError(f"{folder} holds no picture ({', '.join(SUFFIXES)})")
    return files, folders


def _only_files(folder: Path) -> list[Path]:
    files, folders = _list(folder)
    if folders:
        raise PictureFolderError(f"{folders[0]}: a folder within the samples of one picture")
    _by_stem(files, folder)
    return sorted(files, key=lambda p: (_number(p.stem), p.stem))


def _by_stem(files: Iterable[Path], folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files:
        if path.stem in found:
            raise PictureFolderError(
                f"{folder}: {found[path.stem].name} and {path.name} bear one name. Remove the one "
                "that is not meant"
            )
        found[path.stem] = path
    if not found:
        raise PictureFolderError(f"{folder} holds no picture ({', '.join(SUFFIXES)})")
    return found


def _samples(
    files: Mapping[str, Path], wanted: Mapping[str, Path], separator: str, pred: Path
) -> dict[str, tuple[Path, ...]]:
    numbered = re.compile(f"(.+){re.escape(separator)}([0-9]+)", re.DOTALL)
    whole = [stem for stem in files if stem in wanted]
    parts = {stem: m for stem in files if stem not in wanted and (m := numbered.fullmatch(stem))}
    samples = {stem: m for stem, m in parts.items() if m[1] in wanted}
    if whole and samples:
        raise PictureFolderError(
            f"{pred} holds {files[whole[0]].name}, named as a target, and "
            f"{files[next(iter(samples))].name}, named as a sample: name all in one way"
        )
    if not samples:
        return {stem: (path,) for stem, path in files.items()}
    found: dict[str, dict[int, Path]] = {}
    for stem, path in files.items():
        match = parts.get(stem)
        base, number = (match[1], int(match[2])) if match else (stem, 0)
        other = found.setdefault(base, {}).setdefault(number, path)
        if other != path:
            raise PictureFolderError(f"{pred}: {other.name} and {path.name} are one sample")
    return {base: tuple(by[n] for n in sorted(by)) for base, by in found.items()}


def _require_same(found: Iterable[str], wanted: Iterable[str], pred: Path, target: Path) -> None:
    found, wanted = set(found), set(wanted)
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if missing or extra:
        what = []
        if missing:
            what.append(f"{len(missing)} targets have no reconstruction: {_some(missing)}")
        if extra:
            what.append(f"{len(extra)} reconstructions have no target: {_some(extra)}")
        raise PictureFolderError(
            f"{pred} and {target} do not hold the same pictures. {'; '.join(what)}. Files belong "
            "together by the name before the dot"
        )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _number(stem: str) -> int:
    digits = re.search(r"([0-9]+)$", stem)
    return int(digits[1]) if digits else -1
