"""Alljoined-1.6M: 20 people, a consumer headset of 32 channels, the pictures of THINGS-EEG2.

Two forms. `alljoined_edf` is what was recorded, one EDF file for each block, with the picture of
every marker in its text (`stim_train,12345,-1,7`). `alljoined_flat` is what the authors cut and
whitened, one array for each partition, whose rows only the table of the experiment explains.

    raw_eeg/sub-01/session_01/block_01/*.edf
    preprocessed_eeg/sub-01/preprocessed_eeg_{training,test}_flat.npy
    preprocessed_eeg/sub-01/{experiment_metadata,experiment_metadata_categories,stim_order}.parquet
    image_set/                     the pictures, see below

The table has one row for each picture that was to be shown: `session` (1-4), `block_id` (the number
of the block's folder: 1-4 test, 5-19 training), `partition` ("stim_train", "stim_test" or
"oddball"), `image_path` (its last five digits are the picture's index) and, except in `stim_order`,
`dropped`. The index counts from 0 through the 16,540 training images and on through the 200 test
images of THINGS-EEG2, so `image_set/` of that data set serves; the authors' own pictures may lie in
`image_set/images/` instead. Without either, pictures are known by index only.

References
----------
Alljoined-1.6M, arXiv:2508.18571.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import mne
import numpy as np
import pandas as pd

from sgdm_utils.datasets import pickles
from sgdm_utils.datasets.alljoined import blocks
from sgdm_utils.datasets.alljoined import order as alljoined_order
from sgdm_utils.datasets.bids import image_table
from sgdm_utils.datasets.tables import EVENT_COLUMNS, EpochedSignal, StudyTables, check_signal
from sgdm_utils.datasets.things_eeg2 import images as things_eeg2_images
from sgdm_utils.errors import DatasetError, reading
from sgdm_utils.stimuli.files import require_inside

SESSIONS = (1, 2, 3, 4)
N_TRAINING_IMAGES = 16540  # index of the first test image
FLAT_FILES = {
    "training": ("train", "preprocessed_eeg_training_flat.npy"),
    "test": ("test", "preprocessed_eeg_test_flat.npy"),
}


def tables(
    root: Path,
    form: str,
    subjects: Sequence[str],
    sessions: Sequence[int] | None = None,
    n_channels: int | None = None,
    sub06: Literal["refuse", "as_listed", "corrected"] = "refuse",
) -> StudyTables:
    """List recordings, picture events and images of Alljoined-1.6M, checked.

    Continuous form: the markers of a block, in order, have to be the rows of the table for that
    block that were not dropped. Rows that the authors dropped may have a marker (their epoch
    crossed the end of the block); they are left out. A table without `block_id` is paired over all
    test blocks, and over all training blocks, of a session; one without `dropped` may have rows
    without a marker. Flat form: trial i is row i of the partition that was not dropped, sessions in
    order; nothing in the files can confirm it but the count.

    Parameters
    ----------
    root : Path
    form : 'alljoined_edf' or 'alljoined_flat'
    subjects : sequence of str
    sessions : sequence of int, default all four; each has to be there
    n_channels : int, refuse another number of EEG channels
    sub06 : what to do about the misplaced row of sub-06 where the files cannot tell (flat form, or
        markers without pictures): refuse, take the table as it is, or move the row. With pictures
        in the markers the row is moved when, and only when, that makes the two agree.

    Returns
    -------
    StudyTables; `events` of the flat form have the extra column `recorded_session`, since one file
    holds all sessions

    Raises
    ------
    DatasetError
        Missing folder, file, session, column or picture; a truncated EDF file; a channel that is
        neither electrode nor technical; markers or trials that do not fit the table; a subject
        listed twice; one recording under two names.
    """
    root = Path(root)
    readers = {"alljoined_edf": blocks.read_subject, "alljoined_flat": _flat_subject}
    if form not in readers:
        raise DatasetError(f"Alljoined-1.6M comes as {', '.join(readers)}, not {form!r}")
    odd = [s for s in subjects if not str(s).removeprefix("sub-").isdigit()]
    if odd:
        raise DatasetError(f"subject {odd[0]!r}: Alljoined-1.6M numbers them, sub-01 to sub-20")
    names = [f"sub-{int(str(s).removeprefix('sub-')):02d}" for s in subjects]
    double = sorted({n for n in names if names.count(n) > 1})
    if double:
        raise DatasetError(f"subject {double[0]} is listed twice: name each once (subjects)")
    wanted = tuple(sessions or SESSIONS)
    recordings, shown, notes = [], [], {"transductive": False}
    seen: dict[str, Path] = {}
    first: list[tuple[Path, list[str]]] = []
    for name in names:
        order, source = alljoined_order.read_order(root, name, wanted)
        rows, events, facts = readers[form](root, name, wanted, order, source, sub06)
        for row in rows:
            _compare(root / row["path"], row.pop("_channels"), row.pop("_digest"), first, seen,
                     n_channels)  # fmt: skip
            row["channels"] = first[0][1]  # `readers.read_raw` puts them into this order
        recordings += rows
        shown.append(events)
        for key, value in facts.items():
            notes[key] = notes.get(key, 0) + value if isinstance(value, int) else value
    events = _name_pictures(root, pd.concat(shown, ignore_index=True), notes)
    events["repetition"] = events.groupby(["subject", "image_id"]).cumcount()
    images = image_table(events)
    partition = events.drop_duplicates("image_id").set_index("image_id")["partition"]
    images = images.assign(partition=images["image_id"].map(partition))
    if form == "alljoined_flat":
        notes["whitening"] = "by the authors, per session, fitted on training epochs only"
    columns = [c for c in (*EVENT_COLUMNS, "recorded_session") if c in events]
    layout = "continuous" if form == "alljoined_edf" else "epochs"
    return StudyTables(layout, pd.DataFrame(recordings), events[columns], images, notes)


def read_raw(recording: Mapping[str, Any], root: Path) -> mne.io.BaseRaw:
    """Read the electrodes of one block: volts, positions of the standard 10-05 system.

    Raises
    ------
    DatasetError
        A truncated file, an unknown channel, another rate than 256 Hz.
    sgdm_utils.errors.ChannelError
        A NaN or flat channel.
    """
    path = Path(root) / recording["path"]
    raw = blocks.open_edf(path)
    with reading(path, "EDF", "Copy the recording again"):
        raw.load_data(verbose="error")
    check_signal(raw.get_data(), raw.ch_names, str(path))
    return raw


def read_epochs(recording: Mapping[str, Any], root: Path) -> EpochedSignal:
    """Open the trials of one flat file.

    Raises
    ------
    sgdm_utils.datasets.pickles.UnsafePickleError
        A file that asks for more than arrays and plain containers.
    DatasetError
        A missing or truncated file, a missing key, shapes that do not belong together.
    """
    path = Path(root) / recording["path"]
    if not path.is_file():
        raise DatasetError(f"{path} is missing: fetch preprocessed_eeg/ of Alljoined-1.6M")
    with reading(path, "epochs of Alljoined-1.6M", "Fetch it again"):
        return _checked_epochs(path)


def _checked_epochs(path: Path) -> EpochedSignal:
    keys = ("preprocessed_eeg_data", "ch_names", "times", "configs")
    content = things_eeg2_images.as_dictionary(pickles.load(path), path, keys)
    data, times = content["preprocessed_eeg_data"], np.asarray(content["times"], dtype=np.float64)
    names = [blocks.SPELLING.get(str(n), str(n)) for n in content["ch_names"]]
    numbers = isinstance(data, np.ndarray) and data.dtype.kind == "f" and times.ndim == 1
    if not numbers or data.ndim != 3 or data.shape[1:] != (len(names), len(times)):
        raise DatasetError(
            f"{path}: data of shape {getattr(data, 'shape', None)}, with {len(names)} channel names "
            f"and {len(times)} times. Is the file whole?"
        )
    unknown = [n for n in names if n.lower() not in blocks.standard_names()]
    if unknown:
        raise DatasetError(f"{path}: channel {unknown[0]!r} is no electrode of the 10-05 system")
    whitened = (content["configs"] or {}).get("mvnn_dim") not in (None, "none", "off")
    return EpochedSignal(data, names, times, "whitened" if whitened else "volts")


def _flat_subject(
    root: Path, name: str, sessions: Sequence[int], order: pd.DataFrame, source: Path, sub06: str
) -> tuple[list[dict], pd.DataFrame, dict]:
    facts: dict = {"dropped_rows": 0}
    order = alljoined_order.settle_sub06(order, name, source, sub06, facts)
    recordings, parts = [], []
    for run, (partition, file) in FLAT_FILES.items():
        path = Path("preprocessed_eeg") / name / file
        signal = read_epochs({"path": path}, root)
        rows = order[order["partition"] == partition]
        kept = rows[~rows["dropped"]] if "dropped" in rows else rows
        if len(kept) != len(signal.data):
            hint = (
                "It does not tell which trials were dropped: fetch experiment_metadata.parquet too"
                if "dropped" not in rows
                else "Do the two belong to one version of the data set?"
            )
            raise DatasetError(
                f"{root / path} holds {len(signal.data)} trials, {source} has {len(kept)} pictures "
                f"of this partition that were not dropped. {hint}"
            )
        facts["dropped_rows"] += len(rows) - len(kept)
        kept = kept.sort_values("session", kind="stable").reset_index(drop=True)
        kept = kept.assign(
            subject=name, session="", run=run, sample=np.arange(len(kept)), onset_s=np.nan,
            recorded_session=kept["session"], where=str(source),
        )  # fmt: skip
        kept = kept[kept["recorded_session"].isin(sessions)].reset_index(drop=True)
        parts.append(kept.assign(trial=np.arange(len(kept))).drop(columns="row"))
        start = np.ascontiguousarray(signal.data[:16])
        recordings.append(
            {
                "subject": name, "session": "", "task": "images", "run": run,
                "path": path.as_posix(), "_channels": list(signal.ch_names),
                "_digest": hashlib.sha256(start).hexdigest() if np.ptp(start) else "",
            }
        )  # fmt: skip
    return recordings, pd.concat(parts, ignore_index=True), facts


def _compare(
    path: Path, channels: list[str], digest: str, first: list[tuple[Path, list[str]]],
    seen: dict[str, Path], n_channels: int | None,
) -> None:  # fmt: skip
    """Refuse another number or set of channels, and a signal that was there before."""
    if n_channels and len(channels) != n_channels:
        raise DatasetError(
            f"{path}: {len(channels)} EEG channels, {n_channels} are asked for (n_channels)"
        )
    if not first:
        first.append((path, channels))
    if set(channels) != set(first[0][1]):
        extra = sorted(set(channels) - set(first[0][1]))
        missing = sorted(set(first[0][1]) - set(channels))
        raise DatasetError(
            f"{path} has other EEG channels than {first[0][0]}: {', '.join(missing) or 'none'} "
            f"missing, {', '.join(extra) or 'none'} new"
        )
    if path.suffix == ".npy" and channels != first[0][1]:  # trials are taken as they lie
        raise DatasetError(
            f"{path} lists its channels in another order than {first[0][0]}. Sort the second axis "
            "and `ch_names` as they are there, and save the file again"
        )
    if digest and digest in seen:
        raise DatasetError(
            f"{path} and {seen[digest]} hold the same signal: a recording was copied. Remove one"
        )
    seen[digest] = path


def _name_pictures(root: Path, events: pd.DataFrame, notes: dict) -> pd.DataFrame:
    """Add `image_id`, `concept` and `stim_file`."""
    folder = root / things_eeg2_images.FOLDER
    index, test = events["index"].to_numpy(), (events["partition"] == "test").to_numpy()
    wrong = np.flatnonzero(test != (index >= N_TRAINING_IMAGES))
    if len(wrong):
        raise DatasetError(
            f"{events['where'][wrong[0]]}: picture {index[wrong[0]]:05d} is listed as "
            f"{events['partition'][wrong[0]]}; test pictures count from {N_TRAINING_IMAGES}"
        )
    if (folder / "training_images").is_dir() or (folder / "image_metadata.npy").is_file():
        image_set = things_eeg2_images.load_image_set(root)
        events = events.assign(image_id="", concept="", stim_file="")
        for partition, offset in (("train", -1), ("test", N_TRAINING_IMAGES - 1)):
            rows = np.flatnonzero(events["partition"] == partition)
            found = things_eeg2_images.identify(
                index[rows] - offset, partition, image_set, str(root), rows=f"{partition} event"
            )
            for column in ("image_id", "concept", "stim_file"):
                events.iloc[rows, events.columns.get_loc(column)] = found[column].to_numpy()
        notes["pictures"] = "image_set of THINGS-EEG2"
        _compare_names(events, notes)
        return events
    concept = np.where(
        test, np.char.add("test concept ", (index - N_TRAINING_IMAGES + 1).astype(str)),
        np.char.add("training concept ", (index // 10 + 1).astype(str)),  # ten pictures of each
    )  # fmt: skip
    named = events["category"].notna()
    events = events.assign(
        image_id=[f"{i:05d}" for i in index], concept=events["category"].where(named, concept)
    )
    if not (folder / "images").is_dir():
        notes["pictures"] = (
            f"{folder} is not there, pictures are known by index only. Unpack the image set of "
            "THINGS-EEG2 there, or the authors' stimuli.zip (as image_set/images/)"
        )
        return events.assign(stim_file="")
    notes["pictures"] = "image_set/images, by index"
    files = "images/" + events["image_id"] + ".jpg"
    require_inside(folder, files.unique(), root, lambda name: str(folder / name))
    missing = [f for f in files.unique() if not (folder / f).is_file()]
    if missing:
        raise DatasetError(
            f"{folder / missing[0]} is missing ({len(missing)} pictures are). Unpack stimuli.zip again"
        )
    return events.assign(stim_file=files)


def _compare_names(events: pd.DataFrame, notes: dict) -> None:
    """Refuse pictures whose concept the table of the experiment calls by another name."""
    pairs = events.dropna(subset="category").drop_duplicates("index")

    def plain(names: pd.Series) -> pd.Series:
        names = names.astype(str).str.lower().str.replace("_", " ")
        return names.str.replace(r"^\d{5} | \(\d{5}\)$", "", regex=True)

    same = plain(pairs["category"]) == plain(pairs["concept"])
    if not same.any():  # no names, or names of another kind: nothing to compare
        notes["picture_names"] = "not compared: the table of the experiment has no such names"
    elif not same.all():
        row = pairs[~same].iloc[0]
        raise DatasetError(
            f"{row['where']}: picture {row['index']:05d} is {row['category']!r} there and "
            f"{row['concept']!r} in {things_eeg2_images.FOLDER} ({int((~same).sum())} such pictures). Is "
            "it the image set of THINGS-EEG2, complete?"
        )
