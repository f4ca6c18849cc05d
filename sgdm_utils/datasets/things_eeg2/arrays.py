"""THINGS-EEG2 as `.npy` files: raw recordings, and epochs that were cut and whitened.

Both are dictionaries in pickles. `things_eeg2_raw` is what the published preprocessing starts from;
`things_eeg2_preprocessed` is what comes out of it, in the official package (17 channels, 100 Hz) and
in the 250 Hz repackaging that several decoders use (63 channels; plain pickles under an `.npy` name,
whose `times` is longer than the data). Large arrays stay on the disk.

References
----------
Gifford, Dwivedi, Roig & Cichy (2022), NeuroImage 264:119754; Song et al. (2024), ICLR (the 250 Hz
repackaging).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pandas as pd

from sgdm_utils.datasets import pickles
from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE
from sgdm_utils.datasets.tables import EpochedSignal, StudyTables, check_rate, check_signal
from sgdm_utils.datasets.things_eeg2.design import (
    CHANNELS,
    OCCIPITAL,
    PACKAGES,
    SESSIONS,
    RecordingList,
    assemble,
    check_coverage,
    check_spacing,
    choose_subjects,
)
from sgdm_utils.datasets.things_eeg2.images import as_dictionary, identify, load_image_set
from sgdm_utils.errors import DatasetError, reading

FORMS = ("things_eeg2_raw", "things_eeg2_preprocessed")
RUNS = {"training": "train", "test": "test"}  # part of the file name -> partition
TARGET = 99999  # in the stimulus row: the picture that the subject looked out for
RAW_KEYS = ("raw_eeg_data", "ch_names", "ch_types", "sfreq")
EPOCH_KEYS = ("preprocessed_eeg_data", "ch_names", "times")


def tables(
    root: Path,
    form: str,
    subjects: Sequence[str],
    sessions: Sequence[int] | None = None,
    n_channels: int | None = None,
) -> StudyTables:
    """List recordings, events and images of a `.npy` form, checked.

    Parameters
    ----------
    root : Path, holds `image_set/` and `raw_data/`, `preprocessed_data/` or
        `Preprocessed_data_250Hz/` (or the subjects' folders directly)
    form : 'things_eeg2_raw' or 'things_eeg2_preprocessed'
    subjects, sessions, n_channels : see `readers.open_study`; no subject takes all there are, the
        preprocessed files have all sessions in one

    Returns
    -------
    StudyTables. Raw: one recording for each session and run ("training", "test"). Preprocessed: one
    for each run; `sample` is image * n_repetitions + repetition.

    Raises
    ------
    DatasetError
        Missing subject, session or file; a dictionary without the right keys, channels or shape;
        a stimulus that no picture belongs to, doubled events, images that were not shown; a copied
        recording.
    """
    root = Path(root)
    if form == "things_eeg2_raw":
        return _raw_tables(root, subjects, sessions, n_channels)
    if form == "things_eeg2_preprocessed":
        return _epoch_tables(root, subjects, sessions, n_channels)
    raise DatasetError(f"form {form!r} is not one of {', '.join(FORMS)}")


def read_raw(recording: Mapping[str, Any], root: Path) -> mne.io.RawArray:
    """Read one row of `StudyTables.recordings`: volts, standard positions, no stimulus row.

    Raises
    ------
    DatasetError, ChannelError
        As `tables`; a NaN or flat channel.
    """
    path = Path(root) / recording["path"]
    data, ch_names, sfreq = _open_raw(path)
    for i, name in enumerate(ch_names):  # one by one: all at once would take gigabytes more
        check_signal(np.asarray(data[i : i + 1]), [name], str(path))
    eeg = np.require(data, np.float64, ["C", "W"])[:-1]
    info = mne.create_info(ch_names, sfreq, "eeg", verbose="error")
    raw = mne.io.RawArray(eeg, info, verbose="error")
    raw.set_montage(STANDARD_MONTAGE, verbose="error")
    return raw


def read_epochs(recording: Mapping[str, Any], root: Path) -> EpochedSignal:
    """Open the trials of one preprocessed file, (n_images * n_repetitions, n_channels, n_times).

    Parameters and errors are those of `read_raw`; the signal is whitened.
    """
    path = Path(root) / recording["path"]
    data, ch_names, times = _open_epochs(path)
    return EpochedSignal(_merge_axes(data, path), ch_names, times, "whitened")


def _raw_tables(
    root: Path, subjects: Sequence[str], sessions: Sequence[int] | None, n_channels: int | None
) -> StudyTables:
    base = _base(root, ("raw_data", ""), "ses-*/raw_eeg_*.npy")
    wanted = tuple(dict.fromkeys(sessions or SESSIONS))
    image_set = load_image_set(root)
    recordings, events, n_targets = RecordingList(n_channels or len(CHANNELS)), [], 0
    for subject in choose_subjects(subjects, _subjects(base), base):
        for number in wanted:
            for run, partition in RUNS.items():
                path = base / subject / f"ses-{number:02d}" / f"raw_eeg_{run}.npy"
                _require_session(path, wanted)
                data, ch_names, sfreq = _open_raw(path)
                row = {
                    "subject": subject,
                    "session": f"{number:02d}",
                    "task": partition,
                    "run": run,
                    "path": path.relative_to(root).as_posix(),
                }
                # ten seconds of one channel lie together in the file
                recordings.add(row, ch_names, sfreq, data[0, : int(10 * sfreq)])
                sample, stimulus = _pulses(np.asarray(data[-1]), sfreq, str(path))
                shown = stimulus != TARGET
                n_targets += int((~shown).sum())
                found = identify(stimulus[shown], partition, image_set, str(path))
                events.append(
                    found.assign(
                        subject=subject, session=row["session"], run=run,
                        trial=np.arange(len(found)), sample=sample[shown],
                        onset_s=sample[shown] / sfreq,
                    )
                )  # fmt: skip
    check_coverage(pd.concat(events), image_set, wanted, base)
    notes = {
        "form": "things_eeg2_raw", "unit": "volts", "transductive": False,
        "sessions": list(wanted), "n_targets_dropped": n_targets,
        "parts": "the five training parts of a session follow each other without a gap marker",
    }  # fmt: skip
    return assemble("continuous", recordings, events, image_set, notes)


def _epoch_tables(
    root: Path, subjects: Sequence[str], sessions: Sequence[int] | None, n_channels: int | None
) -> StudyTables:
    if sessions and sorted(sessions) != list(SESSIONS):
        raise DatasetError(
            f"sessions {list(sessions)} cannot be chosen in the preprocessed files of {root}: the "
            "repetitions of all four sessions were merged and shuffled. Leave sessions empty, or "
            "start from the raw recordings (things_eeg2_raw)"
        )
    base = _package(root, n_channels)
    image_set = load_image_set(root)
    recordings, events = RecordingList(n_channels), []
    for subject in choose_subjects(subjects, _subjects(base), base):
        for run, partition in RUNS.items():
            path = base / subject / f"preprocessed_eeg_{run}.npy"
            if not path.is_file():
                raise DatasetError(f"{path} is not there: download it into {path.parent}")
            data, ch_names, times = _open_epochs(path)
            n_images, n_repetitions = data.shape[:2]
            listed = int((image_set["partition"] == partition).sum())
            if n_images != listed:
                raise DatasetError(
                    f"{path} has {n_images} images, the image set has {listed} for {run}: "
                    "stimulus missing. A row of the file means the picture of that number, so both "
                    "have to be complete"
                )
            sfreq = round((len(times) - 1) / (times[-1] - times[0]), 6)
            row = {
                "subject": subject, "session": "", "task": partition, "run": run,
                "path": path.relative_to(root).as_posix(),
            }  # fmt: skip
            recordings.add(row, ch_names, sfreq, data[0, 0])
            found = identify(
                np.repeat(np.arange(n_images), n_repetitions) + 1, partition, image_set, str(path)
            )
            events.append(
                found.assign(
                    subject=subject, session="", run=run, trial=np.arange(len(found)),
                    sample=np.arange(len(found)), onset_s=np.nan,
                    repetition=np.tile(np.arange(n_repetitions), n_images),
                )
            )  # fmt: skip
    notes = {
        "form": "things_eeg2_preprocessed",
        "unit": "whitened",
        "package": "official" if len(ch_names) == len(OCCIPITAL) else "250 Hz",
        "transductive": True,
        "transductive_reason": "the published whitener is the mean of the covariances of the "
        "training and of the test trials",
        "sessions": list(SESSIONS),
        "repetitions": "of all sessions, in the shuffled order of the published files",
    }
    return assemble("epochs", recordings, events, image_set, notes)


def _open_raw(path: Path) -> tuple[np.ndarray, list[str], float]:
    """Samples (n_channels + 1, n_samples), names of the EEG channels, rate in Hz."""
    with reading(path, "a recording of THINGS-EEG2", "Download the file again"):
        return _checked_raw(path)


def _checked_raw(path: Path) -> tuple[np.ndarray, list[str], float]:
    content = as_dictionary(pickles.load(path), path, RAW_KEYS)
    data, names = content["raw_eeg_data"], [str(n) for n in content["ch_names"]]
    types, sfreq = [str(t) for t in content["ch_types"]], float(content["sfreq"])
    _require_array(data, 2, path, "(64, n_samples)")
    check_rate(sfreq, str(path))
    if not len(data) == len(names) == len(types):
        raise DatasetError(
            f"{path}: {len(data)} rows of samples, {len(names)} channel names and {len(types)} "
            "channel types: they have to be as many. Download the file again"
        )
    if types[-1] != "stim" or "stim" in types[:-1]:
        raise DatasetError(
            f"{path}: the last row has to be the stimulus channel and the only one; the types end "
            f"with {', '.join(types[-2:])}. Without it nothing says what was shown"
        )
    return data, names[:-1], sfreq


def _open_epochs(path: Path) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Trials (n_images, n_repetitions, n_channels, n_times), channel names, times in seconds."""
    with reading(path, "epochs of THINGS-EEG2", "Download the file again"):
        return _checked_epochs(path)


def _checked_epochs(path: Path) -> tuple[np.ndarray, list[str], np.ndarray]:
    content = as_dictionary(pickles.load(path), path, EPOCH_KEYS)
    data, names = content["preprocessed_eeg_data"], [str(n) for n in content["ch_names"]]
    times = np.asarray(content["times"], dtype=np.float64)
    _require_array(data, 4, path, "(n_images, n_repetitions, n_channels, n_times)")
    if data.shape[2] != len(names):
        raise DatasetError(
            f"{path}: {data.shape[2]} channels of samples but {len(names)} channel names. Download "
            "the file again"
        )
    if times.ndim != 1 or len(times) < data.shape[3]:
        raise DatasetError(
            f"{path}: {len(times)} times for {data.shape[3]} samples of each trial. Download the "
            "file again"
        )
    # the 250 Hz package cut the time before onset off the data and left it in `times`
    times = times[len(times) - data.shape[3] :]
    step = np.diff(times)
    # the other way round, NaN would pass
    if not len(step) or not (step.min() > 0 and np.ptp(step) <= 1e-3 * step.mean()):
        raise DatasetError(f"{path}: `times` does not rise in equal steps. Download the file again")
    return data, names, times


def _require_array(data: Any, ndim: int, path: Path, shape: str) -> None:
    if not isinstance(data, np.ndarray) or data.dtype.kind != "f" or data.ndim != ndim:
        what = type(data).__name__
        if isinstance(data, np.ndarray):
            what = f"{data.dtype} array of shape {data.shape}"
        raise DatasetError(f"{path}: the signal is a {what}, not numbers of shape {shape}")
    if 0 in data.shape:
        raise DatasetError(f"{path}: the signal is empty (shape {data.shape}). Download it again")


def _pulses(row: np.ndarray, sfreq: float, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Where the stimulus row is not zero, and what it holds there."""
    sample = np.flatnonzero(row)
    if not len(sample):
        raise DatasetError(f"{where}: the stimulus row holds no event: nothing says what was shown")
    check_spacing(sample, sfreq, where)
    held = np.asarray(row[sample], dtype=np.float64)
    if not np.isfinite(held).all():
        raise DatasetError(f"{where}: the stimulus row holds what is no number. Download it again")
    return sample, held


def _merge_axes(data: np.ndarray, path: Path) -> np.ndarray:
    """View (n_images, n_repetitions, ...) as (n_trials, ...)."""
    if data.flags.c_contiguous:
        return data.reshape(-1, *data.shape[2:])
    raise DatasetError(
        f"{path}: the signal is not stored trial after trial (Fortran order?), so each trial lies "
        "scattered over the file. Save it again with np.ascontiguousarray(data)"
    )


def _subjects(base: Path) -> list[str]:
    return sorted(p.name for p in base.glob("sub-*") if p.is_dir())


def _base(root: Path, names: Sequence[str], files: str) -> Path:
    """The folder that holds sub-*/`files`; two of them would list a subject twice."""
    found = [root / n for n in names if any((root / n).glob(f"sub-*/{files}"))]
    if not found:
        places = " or ".join(f"{n}/sub-*/" if n else "sub-*/" for n in names)
        raise DatasetError(
            f"{root}: no {files} in {places}. Download the files into {root / names[0]}"
        )
    if len(found) > 1:
        raise DatasetError(
            f"{root}: subjects are there twice, in {' and in '.join(map(str, found))}: remove one"
        )
    return found[0]


def _package(root: Path, n_channels: int | None) -> Path:
    """Folder of the preprocessed package; with both at hand, the number of channels decides."""
    official, repackaged = "preprocessed_data", "Preprocessed_data_250Hz"
    both = [n for n in (official, repackaged) if (root / n).is_dir()]
    names = {len(OCCIPITAL): official, len(CHANNELS): repackaged}
    if len(both) == 2 and n_channels not in names:
        raise DatasetError(
            f"{root} has both {official} and {repackaged}: say which one by n_channels (17 or 63). "
            f"{PACKAGES}"
        )
    candidates = (names[n_channels],) if len(both) == 2 else (*both, "")
    return _base(root, candidates or ("",), "preprocessed_eeg_*.npy")


def _require_session(path: Path, wanted: Sequence[int]) -> None:
    if path.is_file():
        return
    subject = path.parent.parent
    there = sorted(p.name for p in subject.glob("ses-*") if p.is_dir())
    raise DatasetError(
        f"{path} is not there: session missing. {subject.name} has {', '.join(there) or 'none'}, "
        f"sessions {', '.join(map(str, wanted))} are wanted. Download it, or name the sessions to "
        "be used (sessions)"
    )
