"""How THINGS-EEG2 was recorded, and what every form of it has to agree with.

Ten subjects, four sessions each. A session shows all 200 test images about 20 times and one half of
the training concepts twice: sessions 1 and 2 divide the 1,654 training concepts between them,
sessions 3 and 4 divide them anew. Pictures follow each other every 200 ms.

References
----------
Gifford, Dwivedi, Roig & Cichy (2022), NeuroImage 264:119754. The order of the channels and the
counts were taken from the published channel and event tables of subject 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sgdm_utils.datasets.bids import image_table
from sgdm_utils.datasets.tables import EVENT_COLUMNS, RECORDING_COLUMNS, StudyTables
from sgdm_utils.errors import DatasetError

CHANNELS = tuple(
    "Fp1 F3 F7 FT9 FC5 FC1 C3 T7 TP9 CP5 CP1 Pz P3 P7 O1 Oz O2 P4 P8 TP10 CP6 CP2 Cz C4 T8 FT10 FC6 "
    "FC2 F4 F8 Fp2 AF7 AF3 AFz F1 F5 FT7 FC3 FCz C1 C5 TP7 CP3 P1 P5 PO7 PO3 POz PO4 PO8 P6 P2 CPz "
    "CP4 TP8 C6 C2 FC4 FT8 F6 F2 AF4 AF8".split()
)
OCCIPITAL = tuple(c for c in CHANNELS if c.startswith(("O", "P")))  # the 17 of the official package
SESSIONS = (1, 2, 3, 4)
PAIRS = ((1, 2), (3, 4))  # sessions that divide the training concepts between them
EXPECTED = {"train": (16540, 4), "test": (200, 80)}  # images, presentations that everybody has
SOA_S = 0.2
REFERENCE = "Fz"
PACKAGES = (
    "the official preprocessed package (preprocessed_data/, 100 Hz) has the 17 occipital and "
    "parietal channels; the 250 Hz repackaging (Preprocessed_data_250Hz/) and the recordings "
    "themselves have all 63"
)


class RecordingList:
    """Recordings of one study, each compared with those before it.

    Parameters
    ----------
    n_channels : int, how many EEG channels there have to be; None takes 17 or 63
    """

    def __init__(self, n_channels: int | None):
        self.n_channels = n_channels
        self.rows: list[dict[str, Any]] = []
        self._first: tuple[str, list[str], float] | None = None
        self._seen: dict[str, str] = {}

    def add(
        self, row: dict[str, Any], ch_names: Sequence[str], sfreq: float, block: np.ndarray
    ) -> None:
        """Check a recording and take it in.

        Refused are channels, a number of them or a rate (Hz) that do not fit, and a copy: no two
        recordings have the same samples in `block`. `row` holds `RECORDING_COLUMNS` and more.
        """
        where, names = row["path"], list(ch_names)
        check_channels(names, where, self.n_channels)
        if self._first is None:
            self._first = where, names, sfreq
        start, expected, rate = self._first
        if names != expected:
            raise DatasetError(
                f"{where} has other channels, or another order of them, than {start} "
                f"(first difference: {_first_difference(names, expected)}). Do both files come "
                f"from the same package? {PACKAGES}"
            )
        if sfreq != rate:
            raise DatasetError(
                f"{where} was sampled at {sfreq:g} Hz, {start} at {rate:g} Hz. Do both files come "
                "from the same package?"
            )
        digest = hashlib.sha256(np.ascontiguousarray(block, dtype=np.float64)).hexdigest()
        if not np.ptp(block, axis=-1).any():
            digest = where  # nothing was recorded yet, which says nothing of the recording
        if digest in self._seen:
            raise DatasetError(
                f"{where} and {self._seen[digest]} hold the same signal: a recording was copied. "
                "Counted twice it would stand in training and test at once; restore the right file"
            )
        self._seen[digest] = where
        self.rows.append(row)

    def table(self) -> pd.DataFrame:
        """Return the recordings, `RECORDING_COLUMNS` first."""
        table = pd.DataFrame(self.rows)
        further = [c for c in table if c not in RECORDING_COLUMNS]
        return table[[*RECORDING_COLUMNS, *further]]


def check_channels(ch_names: Sequence[str], where: str, n_channels: int | None = None) -> None:
    """Refuse channels that the cap of THINGS-EEG2 does not have under this name.

    Raises
    ------
    DatasetError
        A name that is not in `CHANNELS` (case matters: the published channel choice goes by it), a
        name that is there twice, another number than `n_channels`.
    """
    names = list(ch_names)
    proper = {c.lower(): c for c in CHANNELS}
    unknown = [n for n in names if n not in CHANNELS]
    if unknown:
        right = proper.get(str(unknown[0]).lower())
        missing = [c for c in CHANNELS if c not in names]
        hint = f"it is spelt {right!r} there" if right else f"not there: {', '.join(missing[:5])}"
        raise DatasetError(
            f"{where}: channel {unknown[0]!r} is not one of the 63 of THINGS-EEG2 ({hint}; "
            f"{len(unknown)} such channels). Channels are chosen by name, so a renamed one would be "
            "lost without notice: give it its published name"
        )
    double = [n for n in names if names.count(n) > 1]
    if double:
        raise DatasetError(f"{where}: channel {double[0]!r} occurs more than once")
    wanted = (len(OCCIPITAL), len(CHANNELS)) if n_channels is None else (n_channels,)
    if len(names) not in wanted:
        raise DatasetError(
            f"{where} has {len(names)} EEG channels, {' or '.join(map(str, wanted))} "
            f"{'are configured' if n_channels else 'are expected'} (n_channels): {PACKAGES}. Get "
            "the other package, or change n_channels"
        )


def check_spacing(sample: np.ndarray, sfreq: float, where: str) -> None:
    """Refuse doubled events, and a sampling rate (Hz) that contradicts the pace of the pictures.

    `sample`, int of shape (n_events,), are all events of one recording in time order, targets too.
    """
    step = np.diff(np.asarray(sample, dtype=np.int64)) / sfreq
    if not len(step):
        return
    near = np.flatnonzero(step < SOA_S / 2)
    if len(near):
        i = int(near[0])
        raise DatasetError(
            f"{where}: doubled event: events {i} and {i + 1} lie {1e3 * step[i]:.0f} ms apart, at "
            f"the samples {sample[i]} and {sample[i + 1]} ({len(near)} such pairs); pictures follow "
            f"each other every {1e3 * SOA_S:.0f} ms. Remove one of them"
        )
    middle = float(np.median(step))
    if abs(middle / SOA_S - 1) > 0.1:
        raise DatasetError(
            f"{where}: the median time between pictures is {1e3 * middle:.0f} ms, not "
            f"{1e3 * SOA_S:.0f} ms. Is the sampling rate of {sfreq:g} Hz right?"
        )


def choose_subjects(subjects: Sequence[str], available: Sequence[str], where: Path) -> list[str]:
    """Return the subjects to read as "sub-01"; all there are when none is named.

    Raises
    ------
    DatasetError
        A subject that is named twice or not there.
    """
    wanted = [f"sub-{str(s).removeprefix('sub-')}" for s in subjects] or sorted(available)
    double = [s for s in wanted if wanted.count(s) > 1]
    if double:
        raise DatasetError(f"subject {double[0]!r} is named twice: name each once (subjects)")
    missing = [s for s in wanted if s not in available]
    if missing or not wanted:
        raise DatasetError(
            f"{where}: no recording of {', '.join(missing) or 'any subject'}; there is "
            f"{', '.join(sorted(available)) or 'no folder sub-*'}"
        )
    return wanted


def check_coverage(
    events: pd.DataFrame, image_set: pd.DataFrame, sessions: Sequence[int], where: Path
) -> None:
    """Compare what was shown in which session with the design.

    Parameters
    ----------
    events : DataFrame with `subject`, `session` ("01"), `image_id`, `partition`
    image_set : DataFrame of `images.load_image_set`
    sessions : sequence of int, the sessions that were read

    Raises
    ------
    DatasetError
        A test image that a session does not show; a training image that is not shown in exactly one
        session of a pair (`PAIRS`), as far as both were read.
    """
    listed = {p: image_set["image_id"][image_set["partition"] == p] for p in EXPECTED}
    for subject, shown in events.groupby("subject", sort=False):
        session = shown["session"].astype(int)
        for number in sessions:
            here = set(shown["image_id"][(session == number) & (shown["partition"] == "test")])
            _require_all(listed["test"], here, f"{where}: {subject}, session {number}: test")
        for pair in PAIRS:
            if not set(pair) <= set(sessions):
                continue
            part = shown[session.isin(pair) & (shown["partition"] == "train")]
            _require_all(
                listed["train"], set(part["image_id"]),
                f"{where}: {subject}, sessions {pair[0]} and {pair[1]}: training",
            )  # fmt: skip
            counts = part.groupby("image_id")["session"].nunique()
            twice = counts.index[counts > 1]
            if len(twice):
                raise DatasetError(
                    f"{where}: {subject}: training image {twice[0]!r} was shown in both sessions "
                    f"{pair[0]} and {pair[1]} ({len(twice)} such images). They divide the training "
                    "images between them: does a file belong to another session or subject?"
                )


def assemble(
    layout: str,
    recordings: RecordingList,
    events: Sequence[pd.DataFrame],
    image_set: pd.DataFrame,
    notes: dict[str, Any],
) -> StudyTables:
    """Put the tables of a study together; count repetitions; compare with the published counts.

    Parameters
    ----------
    events : sequence of DataFrame, one per recording, in time order within each subject
    image_set : DataFrame of `images.load_image_set`
    notes : dict, what is particular to the form

    Returns
    -------
    StudyTables; `notes["complete"]` tells whether it is the whole published data set of its
    subjects, `notes["differences"]` what is missing if not
    """
    shown = pd.concat(events, ignore_index=True)
    if layout == "continuous":
        shown["repetition"] = shown.groupby(["subject", "image_id"]).cumcount()
    further = [c for c in shown if c not in EVENT_COLUMNS]
    shown = shown[[*EVENT_COLUMNS, *further]]
    known = image_set.set_index("image_id")[["partition", "number"]]
    images = image_table(shown).join(known, on="image_id")
    table = recordings.table()
    notes = {"reference": REFERENCE, "image_order": image_set.attrs.get("order", ""), **notes}
    tables = StudyTables(layout, table, shown, images, notes)
    differences = check_complete(tables)
    notes.update(complete=not differences, differences=differences)
    return tables


def check_complete(tables: StudyTables) -> list[str]:
    """Say how a study differs from the published data set; nothing when it is whole.

    A smaller study is no error: subsets and miniatures are read as well.
    """
    differences = []
    partition = tables.events["image_id"].map(tables.images.set_index("image_id")["partition"])
    for subject, shown in tables.events.groupby("subject", sort=False):
        for part, (n_images, n_repetitions) in EXPECTED.items():
            counts = shown["image_id"][partition[shown.index] == part].value_counts()
            if len(counts) != n_images:
                differences.append(f"{subject}: {len(counts)} {part} images of {n_images}")
            few = int((counts < n_repetitions).sum())
            if few:
                differences.append(
                    f"{subject}: {few} {part} images were shown fewer than {n_repetitions} times"
                )
    return differences


def _require_all(listed: pd.Series, shown: set[str], what: str) -> None:
    missing = [i for i in listed if i not in shown]
    if missing:
        raise DatasetError(
            f"{what}: {len(missing)} of {len(listed)} images were never shown (first: "
            f"{missing[0]!r}). Is a run missing, or is the image set another one?"
        )


def _first_difference(names: list[str], expected: list[str]) -> str:
    for i, (a, b) in enumerate(zip(names, expected, strict=False)):
        if a != b:
            return f"channel {i + 1} is {a!r}, not {b!r}"
    return f"{len(names)} channels, not {len(expected)}"
