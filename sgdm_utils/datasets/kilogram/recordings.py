"""KiloGram tangrams shown to people with EEG: the recordings, through BIDS.

KiloGram holds 1,013 figures as SVG files and what people call them [1]_; EEG-Kilogram showed such
figures to 24 people [2]_. No description of the recording's files could be verified, so the way in
is BIDS: `events.tsv` names the figure in one column ("page1-12", with or without ".svg") and the
SVG files lie in `stimuli/`. The figures are read by `kilogram_svg`; their pictures and what people
call them are in `kilogram_pictures`.

The figures are not free: they were digitised from a book for research and teaching. Keep them out
of what you publish; the annotations are MIT.

References
----------
.. [1] Ji et al. (2022), EMNLP, arXiv:2211.16492.
.. [2] Lian et al. (2026), arXiv:2604.22649.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import mne
import numpy as np
import pandas as pd

from sgdm_utils.datasets import bids, bids_recordings, sidecars
from sgdm_utils.datasets.kilogram.figures import Tangram, read_svg
from sgdm_utils.datasets.tables import StudyTables
from sgdm_utils.errors import DatasetError
from sgdm_utils.stimuli.files import require_inside
from sgdm_utils.workflow.formats import read_json

SPLIT_FILE = "data_split.json"
PARTITION = {"train": "train", "development": "train", "heldout": "test", "dense": "test"}


def read_partition(path: Path) -> dict[str, str]:
    """Read KiloGram's split of the figures.

    Returns
    -------
    dict of figure to "train", "development", "heldout" or "dense"

    Raises
    ------
    DatasetError
        No JSON of this form, an unknown part, a figure in two of them.
    """
    content = read_json(path, object, "Copy it again")
    lists = list(content.values()) if isinstance(content, dict) else [None]
    if not all(isinstance(v, list) and all(isinstance(n, str) for n in v) for v in lists):
        raise DatasetError(f"{path} is not a mapping of parts to lists of figures")
    unknown = sorted(set(content) - set(PARTITION))
    if unknown:
        raise DatasetError(f"{path}: unknown part {unknown[0]!r}; there is {', '.join(PARTITION)}")
    parts: dict[str, str] = {}
    for part, names in content.items():
        for name in names:
            if parts.setdefault(name, part) != part:
                raise DatasetError(
                    f"{path}: {name!r} is in {parts[name]} and in {part}; a figure that is trained "
                    "on cannot be tested on. Take it out of one of them"
                )
    return parts


def tables(
    root: Path,
    form: str = "kilogram",
    subjects: Sequence[str] | None = None,
    sessions: Sequence[int | str] | None = None,
    n_channels: int | None = None,
    task: str = "",
    stimulus_column: str = "stim_file",
    keep: Mapping[str, list] | None = None,
    margin_s: float = 0.0,
) -> StudyTables:
    """List the recordings, events and figures of a study with KiloGram tangrams in BIDS.

    Every figure is its own concept; two names of the same figure (same corners) are one concept, so
    that it cannot be trained on under one name and tested under the other.

    With `data_split.json` in `stimuli/` or in `root` the partition is KiloGram's: "train" and
    "development" count as "train", "heldout" and "dense", which its models never saw, as "test".
    Where a figure is in no part, or all figures are on one side, every partition is "" and the
    notes say so.

    Parameters
    ----------
    root : Path, BIDS root with the SVG files anywhere below `stimuli/`
    form : 'kilogram'
    subjects : names with or without "sub-"; None takes all
    sessions : sessions that each subject has to have, others are left out; None takes all
    n_channels : int, refuse another number of EEG channels; None takes any
    task : str, "" where the data set has one only
    stimulus_column : str, column of events.tsv that names the figure; rows with `n/a` are left out
    keep, margin_s : see `bids.EventMapping`

    Returns
    -------
    StudyTables, continuous; `stim_file` is relative to `stimuli/`

    Raises
    ------
    DatasetError
        Whatever `bids` and `bids_recordings` refuse, a missing session, another number of channels, a
        figure without a file (with its line), a file that `read_svg` refuses.
    """
    root = Path(root)
    if form != "kilogram":
        raise DatasetError(f"form {form!r} is unknown here: 'kilogram' is the only one")
    double = sorted({s for s in subjects or () if list(subjects).count(s) > 1})
    if double:
        raise DatasetError(f"subject {double[0]!r} is listed twice: name each once (subjects)")
    recordings = bids_recordings.find_recordings(root, task or None, subjects)
    if sessions is not None:
        recordings = bids_recordings.choose_sessions(recordings, sessions, root)
    recordings, raws = bids_recordings.check_recordings(recordings, root)
    if n_channels is not None:
        bids_recordings.require_channels(recordings.iloc[0], root, n_channels)
    files = _figure_files(root / "stimuli")
    listed = [name for names in files.values() for name in names]
    require_inside(root / "stimuli", listed, root, lambda name: str(root / "stimuli" / name))
    # the column names a figure, not always a file, so it is read as a label
    mapping = bids.EventMapping(None, stimulus_column, keep or {}, margin_s)
    parts = []
    for (_, recording), raw in zip(recordings.iterrows(), raws, strict=True):
        part = bids.read_events(recording, root, mapping, raw)
        sidecar = sidecars.find_sidecar(root / recording["path"], root, "events.tsv")
        part["image_id"] = _figure_names(part["concept"], files, sidecar, mapping)
        part.insert(0, "trial", np.arange(len(part)))
        for column in ("run", "session", "subject"):
            part.insert(0, column, recording[column])
        parts.append(part)
    bids_recordings.refuse_copies(recordings, parts, root)
    shown = pd.concat(parts, ignore_index=True)
    shown["repetition"] = shown.groupby(["subject", "image_id"]).cumcount()
    shown["stim_file"] = shown["image_id"].map(lambda name: files[name][0])
    names = sorted(shown["image_id"].unique())
    figures = {name: read_svg(root / "stimuli" / files[name][0]) for name in names}
    first_name = _first_names(figures)
    shown["concept"] = shown["image_id"].map(first_name)
    images = bids.image_table(shown)
    images["partition"], why = _partition(images["image_id"], root)
    shown.attrs = bids.gather(parts)
    notes = bids.reading_notes(recordings, shown, root) | {
        "figures": len(images),
        "figures_that_are_no_regular_tangram": {n: f.note for n, f in figures.items() if f.note},
        "figures_with_two_names": {a: b for a, b in first_name.items() if a != b},
        "partition": why,
        "transductive": False,
    }
    return StudyTables("continuous", recordings, shown, images, notes)


def read_raw(recording: Any, root: Path) -> mne.io.BaseRaw:
    """Read one recording of `tables`, checked; see `bids_recordings.read_recording`."""
    return bids_recordings.read_recording(recording, root)


def _figure_files(folder: Path) -> dict[str, list[str]]:
    """List the SVG files below a folder by the name of the figure."""
    files: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.svg")):
        files.setdefault(path.stem, []).append(path.relative_to(folder).as_posix())
    if not files:
        raise DatasetError(
            f"{folder} holds no SVG file: put the content of KiloGram's dataset/tangrams-svg there"
        )
    return files


def _figure_names(
    labels: pd.Series, files: dict[str, list[str]], sidecar: Path, mapping: bids.EventMapping
) -> pd.Series:
    """Turn what the events say ("page1-12", "tangrams-svg/page1-12.svg") into figures."""
    paths = labels.map(lambda text: PurePosixPath(str(text).strip().replace("\\", "/")))
    # a figure that was shown as a PNG is known by the SVG file of the same name
    names = paths.map(lambda p: p.stem if p.suffix.lower() in (".svg", ".png", ".jpg") else p.name)
    for label, name in zip(labels, names, strict=True):
        if len(files.get(name, ())) == 1:
            continue
        column = sidecars.read_tsv(sidecar)[mapping.label_column]
        line = int(np.flatnonzero(column == label)[0]) + 2  # line 1 is the header
        if name in files:
            what = f"is there more than once: {', '.join(files[name])}. Remove the copy"
        else:
            close = difflib.get_close_matches(name, files, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            what = f"has no file {name}.svg in stimuli/{hint}. Put it there, or correct the column"
        raise DatasetError(f"{sidecar}, line {line}: the figure {label!r} {what}")
    return names


def _first_names(figures: Mapping[str, Tangram]) -> dict[str, str]:
    """Map each figure to the first one that has the same corners."""
    first: dict[tuple, str] = {}
    same = {}
    for name, figure in figures.items():
        # sorted, because equal triangles and the corners of a tan may come in another order
        key = tuple(sorted(tuple(sorted(map(tuple, p.round(3)))) for p in figure.pieces))
        same[name] = first.setdefault(key, name)
    return same


def _partition(names: pd.Series, root: Path) -> tuple[pd.Series | str, str]:
    """Return KiloGram's split of these figures as "train" and "test", and what was done."""
    path = next(
        (p for p in (root / "stimuli" / SPLIT_FILE, root / SPLIT_FILE) if p.is_file()), None
    )
    if path is None:
        return "", f"none: no {SPLIT_FILE}"
    parts = names.map(read_partition(path))
    if parts.isna().any():
        example = names[parts.isna()].iloc[0]
        return "", f"none: {parts.isna().sum()} figures are not in {SPLIT_FILE} (e.g. {example})"
    sides = parts.map(PARTITION)
    if sides.nunique() == 1:
        return "", f"none: all figures are of {', '.join(sorted(set(parts)))}"
    counts = ", ".join(f"{n} {part}" for part, n in parts.value_counts().sort_index().items())
    return sides, f"KiloGram's ({counts})"
