"""One door for every data set: list it, read its signal, find its pictures.

`00_data` names a form (`dataset`), and everything after it goes through here. A form is one way in
which one data set is distributed; what it looks like is in `data/README.md`, who reads it in the
table below.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mne
import pandas as pd

from sgdm_utils.datasets import bids, bids_recordings, things_eeg1
from sgdm_utils.datasets.alljoined import forms
from sgdm_utils.datasets.kilogram import pictures as kilogram_pictures
from sgdm_utils.datasets.kilogram import recordings as kilogram_recordings
from sgdm_utils.datasets.tables import (
    EpochedSignal,
    StudyTables,
    check_epochs,
    check_magnitude,
    in_order,
)
from sgdm_utils.datasets.things_eeg2 import arrays, runs
from sgdm_utils.errors import DatasetError, reading
from sgdm_utils.stimuli import pictures as stimuli_pictures


@dataclass(frozen=True)
class Form:
    """How one form of a data set is read.

    Attributes
    ----------
    module : module with `tables` and `read_raw` (continuous) or `read_epochs` (epochs)
    layout : 'continuous' or 'epochs'
    stimuli : str, folder of the pictures below the root
    title : str, for messages and tables
    """

    module: Any
    layout: str
    stimuli: str
    title: str


FORMS: dict[str, Form] = {
    "things_eeg2_raw": Form(
        arrays, "continuous", "image_set", "THINGS-EEG2, raw .npy dictionaries"
    ),
    "things_eeg2_preprocessed": Form(
        arrays, "epochs", "image_set", "THINGS-EEG2, whitened epochs (17 or 63 channels)"
    ),
    "things_eeg2_bids": Form(runs, "continuous", "image_set", "THINGS-EEG2, BIDS conversion"),
    "things_eeg2_source": Form(
        runs, "continuous", "image_set", "THINGS-EEG2, BrainVision and behaviour files"
    ),
    "things_eeg1": Form(things_eeg1, "continuous", "stimuli", "THINGS-EEG1, BIDS"),
    "alljoined_edf": Form(forms, "continuous", "image_set", "Alljoined-1.6M, EDF blocks"),
    "alljoined_flat": Form(forms, "epochs", "image_set", "Alljoined-1.6M, flat epochs"),
    "kilogram": Form(
        kilogram_recordings, "continuous", "stimuli", "tangrams of KiloGram with EEG in BIDS"
    ),
}
#: Known by name and refused: all pictures of a class were shown in one go.
BLOCK_DESIGNS = {
    "perceivelab": "perceivelab (Spampinato et al., CVPR 2017; 40 classes of ImageNet)",
    "eeg_imagenet": "EEG-ImageNet (80 classes of ImageNet)",
}
OWN = ("simulated", "bids")  # read through the event mapping of `events`


class BlockDesignError(DatasetError):
    """These recordings cannot carry the claim that is asked of them."""


def require_form(dataset: str) -> None:
    """Refuse a name that no reader has, and data sets from which no split supports a result.

    Whatever drifts in a recording (electrode gels, sweat, wakefulness, the amplifier) differs
    between classes that were shown in blocks, and segments of training and of test come from the
    same minute. A decoder that tells the time tells the class, without a brain in between.

    Raises
    ------
    BlockDesignError
        For a data set whose classes were shown in blocks, with the reason and with what to do.
    DatasetError
        With the names there are.

    References
    ----------
    Li, Johansen, Ahmed, Ilyevsky, Wilbur, Bharadwaj & Siskind (2021), IEEE TPAMI 43:316, "The
    Perils and Pitfalls of Block Design for EEG Classification Experiments".
    Kilgallen, Pearlmutter & Siskind (2024), arXiv:2406.16902 (one exemplar in training and test).
    """
    if dataset in BLOCK_DESIGNS:
        raise BlockDesignError(
            f"{BLOCK_DESIGNS[dataset]} is a block design: all pictures of a class were shown in one "
            "go, so that the class is the time, and training and test segments come from the same "
            "block. Accuracy on it measures slow drift of the recording and not the response to a "
            "picture (Li et al. 2021, IEEE TPAMI 43:316), and trials of one exemplar on both sides "
            "add to it (Kilgallen et al. 2024, arXiv:2406.16902). No split of it supports a result, "
            "so it is not read. For a result take a data set with shuffled presentation: "
            "THINGS-EEG2, THINGS-EEG1, Alljoined-1.6M"
        )
    names = [*OWN, *FORMS]
    if dataset not in names:
        close = difflib.get_close_matches(dataset, names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise DatasetError(f"dataset={dataset!r} is unknown; there is {', '.join(names)}.{hint}")


def open_study(
    dataset: str,
    root: Path,
    subjects: Sequence[str],
    mapping: bids.EventMapping | None = None,
    task: str = "",
    sessions: Sequence[int] = (),
    n_channels: int = 0,
) -> StudyTables:
    """List recordings, picture events and images of a data set, checked.

    Parameters
    ----------
    dataset : str, 'simulated', 'bids', or a name in `FORMS`
    root : Path, folder of the data set
    subjects : sequence of str, "sub-01"
    mapping : EventMapping, for 'simulated' and 'bids'
    task : str, for 'bids' and 'kilogram'; "" where there is one only
    sessions : sequence of int, which sessions there have to be; () takes the published number
    n_channels : int, refuse another number of EEG channels; 0 takes any

    Returns
    -------
    StudyTables

    Raises
    ------
    DatasetError
        Whatever cannot be used, with file, cause and remedy; a subject that is listed twice.
    """
    require_form(dataset)
    double = sorted({s for s in subjects if list(subjects).count(s) > 1})
    if double:
        raise DatasetError(f"subject {double[0]!r} is listed twice: name each once (subjects)")
    if not Path(root).is_dir():
        raise DatasetError(
            f"{root} is not there. Put the data set under data/raw/<name> and name it (raw_name), "
            "or let the notebook fetch it (catalogue); data/README.md has a section for each"
        )
    if dataset in OWN:
        recordings, shown = bids.read_study(
            root, mapping, task or None, subjects, sessions, n_channels
        )
        images = bids.image_table(shown).assign(partition="")
        notes = bids.reading_notes(recordings, shown, root)
        return StudyTables("continuous", recordings, shown, images, notes)
    asked = {"task": task}
    if mapping is not None:
        asked |= {"keep": mapping.keep, "margin_s": mapping.margin_s}
    extra: dict[str, Any] = {}
    if dataset == "kilogram":
        column = mapping.stimulus_column if mapping else None
        extra = {"stimulus_column": column or "stim_file"} | asked
    elif ignored := [name for name, value in asked.items() if value]:
        raise DatasetError(
            f"{ignored[0]} is not read for dataset={dataset!r}, whose published events are taken as "
            "they are: leave it out, or read the files with dataset='bids' or 'kilogram'"
        )
    return FORMS[dataset].module.tables(
        Path(root), dataset, subjects, list(sessions) or None, n_channels or None, **extra
    )


def layout(dataset: str) -> str:
    """Return 'continuous' or 'epochs'."""
    return "continuous" if dataset in OWN else FORMS[dataset].layout


def read_raw(dataset: str, recording: Mapping[str, Any], root: Path) -> mne.io.BaseRaw:
    """Read one continuous recording: volts, electrode positions, channels in the study's order.

    Raises
    ------
    DatasetError
        Values whose size is not that of EEG in volts, or what the module of the form refuses.
    """
    read = bids_recordings.read_recording if dataset in OWN else FORMS[dataset].module.read_raw
    where = str(Path(root) / recording["path"])
    with reading(where, "a recording", "Copy it again, or export it again"):
        raw = read(recording, root)
        check_magnitude(raw, where)
        return in_order(raw, recording["channels"], where) if "channels" in recording else raw


def read_epochs(dataset: str, recording: Mapping[str, Any], root: Path) -> EpochedSignal:
    """Open the trials of one file that holds epochs; 20 of them are read, to see their size.

    Raises
    ------
    DatasetError, ChannelError
        Values whose size is not that of their unit, or what the module of the form refuses.
    """
    where = str(Path(root) / recording["path"])
    with reading(where, "epochs", "Download it again"):
        signal = FORMS[dataset].module.read_epochs(recording, root)
        check_epochs(signal, where)
        return signal


def picture_folder(dataset: str) -> str | None:
    """Return the folder of the picture files below the root; None where they are drawings (SVG)."""
    if dataset == "kilogram":
        return None
    return "stimuli" if dataset in OWN else FORMS[dataset].stimuli


def read_pictures(
    dataset: str, root: Path, images: pd.DataFrame, size: int
) -> stimuli_pictures.StimulusSet:
    """Read the pictures of a study and what is known of their structure.

    Parameters
    ----------
    images : DataFrame with `image_id`, `concept`, `split`, `stim_file`
    size : int, pixels per side

    Raises
    ------
    DatasetError
        When the data set came without its pictures.
    """
    folder = Path(root) / ("stimuli" if dataset in OWN else FORMS[dataset].stimuli)
    nameless = (images["stim_file"] == "").sum()
    if nameless:
        raise DatasetError(
            f"{nameless} of {len(images)} images have no picture file: put the pictures into {folder} "
            f"(data/README.md says which), or stop after 01_preprocessing (until)"
        )
    read: Callable = stimuli_pictures.from_files
    if dataset == "kilogram":
        read = kilogram_pictures.stimulus_set
    return read(folder, images, size, Path(root))
