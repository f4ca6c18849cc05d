"""Every study of a small grammar is read rightly, or refused with advice that works.

A study is drawn (names, order of channels, formats, units, frames, pauses, inheritance), written,
and read as 00 and 01 do. Its trials have to be those that the generator knows, by electrode, time
and amplitude. Where the reader refuses, what its message says is done, word by word, until it
reads; a message that no rule here knows fails the test.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import bids_files as files
import mne
import mne_bids
import numpy as np
import pandas as pd
import pytest
from bids_files import CAP, HEAD, MNI
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from sgdm_utils import signals
from sgdm_utils.datasets import readers
from sgdm_utils.datasets.bids import EventMapping
from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE, electrode_positions
from sgdm_utils.errors import DatasetError

SFREQ, SECONDS = 100.0, 6
PICTURES = ["ant/a.png", "ant/b.png", "bee/c.png", "cat/d.png"]
WRITTEN = [str, lambda p: f"stimuli/{p}", str.upper, lambda p: p.removesuffix(".png")]
TURNED = {name: (y, -x, z) for name, (x, y, z) in HEAD.items()}
FRAMES = {  # positions in metres
    "none": None, "CapTrak": HEAD, "EEGLAB": TURNED, "CTF": TURNED, "Other": TURNED,
    "MNIColin27": MNI, "fsaverage": MNI, "MNI152Lin": HEAD, "ElektaNeuromag": MNI,
}  # fmt: skip
FACTORS = {"": 1e6, "nV": 1e9, "uV": 1.0}  # of values that are read as volts


@dataclass(frozen=True)
class Run:
    """One recording; `values` are volts as they should be, rows in the order of `names`."""

    name: str
    values: np.ndarray = field(repr=False)
    names: tuple[str, ...]
    onsets: tuple[float, ...]
    stim_files: tuple[str, ...]
    extension: str = ".vhdr"
    unit: str = "uV"  # that the header states
    factor: float = 1.0  # that the values were multiplied with by mistake
    pause: int = 0  # whole seconds after which there is one; 0: none
    frame: str = "none"
    length_unit: str = "m"
    level: int = 0  # folders above the recording that hold events.tsv
    counted: bool = False  # events.tsv has the column `sample`

    @property
    def shown(self) -> list[int]:
        """Numbers of the events that are read: not those beside a marked seam."""
        seam = self.pause and self.counted and self.extension == ".set"
        return [k for k, o in enumerate(self.onsets) if not seam or abs(o - self.pause) >= 1]

    @property
    def folder(self) -> str:
        """Below the root."""
        parts = re.findall(r"(?:sub|ses)-[^_]+", self.name)
        return "/".join([*parts, "eeg"])


@st.composite
def studies(draw: st.DrawFn) -> list[Run]:
    """Draw one or two recordings, mostly valid."""
    one = lambda *options: draw(st.sampled_from(options))  # noqa: E731
    stem = one(
        "sub-01_task-see",
        "sub-01_ses-a_task-see",
        "sub-01_task-see_run-01",
        "sub-01_task-see_acq-x",
    )
    others = ["", "", stem.replace("sub-01", "sub-02"), stem.replace("sub-01", "sub-01_ses-2")]
    if "ses-" in stem:
        others = ["", stem.replace("ses-a", "ses-b")]
    others += [f"{stem.split('_run')[0]}_run-2", f"{stem}_desc-x", f"{stem}_split-02", stem]
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    names = CAP[:: one(1, 2)]
    level, shared, runs = one(0, 0, 0, 1, 2, 3), None, []
    for name in filter(None, (stem, one(*others))):
        order = draw(st.permutations(names)) if one(False, True) else names
        onsets = shared or tuple(
            sorted(draw(st.sets(st.integers(60, 520), min_size=4, max_size=4)))
        )
        shared = onsets if level else None
        values = rng.normal(0, 5e-6, (len(names), int(SFREQ * SECONDS)))
        values[rng.integers(len(names), size=4), np.array(onsets)] += (
            60 + 20 * rng.permutation(4)
        ) * 1e-6
        extension = one(".vhdr", ".edf", ".bdf", ".set", "mne-bids")
        if name == stem and runs:  # a second file of it
            extension = ".bdf" if runs[0].extension == ".edf" else ".edf"
        edf = extension in (".edf", ".bdf")
        stim_files = list(PICTURES)
        if not level:
            stim_files[one(0, 3)] = one(*WRITTEN[:1] * 4, *WRITTEN[1:])(PICTURES[one(0, 3)])
        runs.append(
            Run(
                name, values, tuple(order), tuple(o / SFREQ for o in onsets), tuple(stim_files), extension,
                unit=one("uV", "uV", "uV", "", "nV") if edf else "uV",
                factor=one(1.0, 1.0, 1.0, 1e3, 1e6, 1e-6) if extension in (".vhdr", ".set") else 1.0,
                pause=one(0, 0, 0, 3) if edf or extension == ".set" else 0,
                frame=one(*FRAMES) if extension != "mne-bids" else "none",
                length_unit=one("m", "cm", "mm", "n/a"), counted=one(False, True), level=level,
            )
        )  # fmt: skip
    # pieces have events of their own, and one table says the same of all runs
    runs = [dataclasses.replace(r, pause=0, counted=False) if level else r for r in runs]
    return [r if r.shown else dataclasses.replace(r, counted=False) for r in runs]


def write(runs: list[Run], root: Path) -> None:
    """Write the study as it was drawn, mistakes included."""
    for run in runs:
        data = run.values * run.factor
        options = {"names": list(run.names), "onsets": run.onsets, "pictures": run.stim_files}
        if run.extension == "mne-bids":
            info = mne.create_info(options["names"], SFREQ, "eeg")
            raw = mne.io.RawArray(data, info, verbose="error").set_montage(STANDARD_MONTAGE)
            named = dict(part.split("-") for part in run.name.split("_"))
            where = mne_bids.BIDSPath(
                root=root, subject=named["sub"], session=named.get("ses"), task="see",
                acquisition=named.get("acq"), run=named.get("run"), datatype="eeg",
                description=named.get("desc"), split=named.get("split"), check=False,
            )  # fmt: skip
            mne_bids.write_raw_bids(raw, where, format="BrainVision", allow_preload=True,
                                    overwrite=True, verbose="error")  # fmt: skip
            path = root / run.folder / f"{run.name}_eeg.vhdr"
            table = pd.DataFrame(
                {"onset": run.onsets, "duration": 0.1, "stim_file": run.stim_files}
            )
            files.write_tsv(path.with_name(f"{run.name}_events.tsv"), table)
        else:
            marks = [(run.pause, 2.0, "boundary")] if run.pause and run.extension == ".set" else []
            path = files.write_recording(
                root, run.name, data, sfreq=SFREQ, extension=run.extension, folder=run.folder,
                annotations=marks, stimuli=PICTURES, **options, **({"unit": run.unit} if run.unit != "uV" else {}),
            )  # fmt: skip
            if run.pause and not marks:
                files.pause(path, run.pause, 10)
        files.write_pictures(root, PICTURES)
        if FRAMES[run.frame] is not None:
            factor = {"m": 1, "cm": 100}.get(run.length_unit, 1000)
            positions = {n: np.array(FRAMES[run.frame][n]) * factor for n in run.names}
            files.write_positions(path.parent, run.name, positions, run.frame, run.length_unit)
        own = path.with_name(f"{run.name}_events.tsv")
        if (
            run.level
        ):  # task-see_events.tsv of the root, or of the folder of the person or the session
            level = min(run.level, len(path.relative_to(root).parts) - 1)
            above = path.parents[level]
            named = "_".join(above.relative_to(root).parts)
            own.replace(above / "_".join(filter(None, [named, "task-see", "events.tsv"])))


def read(root: Path) -> tuple[pd.DataFrame, dict[str, mne.io.BaseRaw]]:
    """Events, and the recordings by file, as notebooks 00 and 01 read them."""
    subjects = sorted(p.name for p in root.glob("sub-*"))
    tables = readers.open_study("bids", root, subjects, EventMapping())
    rows = tables.recordings.to_dict("records")
    keys = ["subject", "session", "run"]
    events = tables.events.merge(
        tables.recordings[[*keys, "path"]], on=keys, validate="many_to_one"
    )
    return events, {row["path"]: readers.read_raw("bids", row, root) for row in rows}


def follow(message: str, runs: list[Run]) -> list[Run]:
    """Do what the message says; fails where it says nothing that can be done."""
    at = [i for i, run in enumerate(runs) if re.search(rf"[/\\]{run.name}_(eeg|events)\.", message)]
    levels = [0] if any(run.level for run in runs) else []  # a table above is all runs' own
    (i,) = at[:1] or levels
    run = runs[i]

    def change(*pieces: Run, **fields) -> list[Run]:
        return [*runs[:i], *(pieces or [dataclasses.replace(run, **fields)]), *runs[i + 1 :]]

    if "by an acq- or run- of its own" in message:
        plain = re.sub(r"_(desc|split)-\w+", "", run.name)
        return change(name=re.sub(r"(_run-.*)?$", r"_run-7", plain, count=1))
    if "Keep one of them" in message:
        return runs[:1]
    if "was paused or cut" in message:
        sample = int(re.search(r"before sample (\d+)", message)[1])
        pieces = []
        first = 10 + 2 * i  # both runs may be paused, and their pieces are four
        for number, part in ((first, slice(0, sample)), (first + 1, slice(sample, None))):
            inside = [
                k for k, o in enumerate(run.onsets) if (o * SFREQ < sample) == (number == first)
            ]
            onsets = tuple(run.onsets[k] - (part.start / SFREQ) for k in inside)
            name = f"{re.sub('_run-.*', '', run.name)}_run-{number}"
            files_of = tuple(run.stim_files[k] for k in inside)
            pieces.append(dataclasses.replace(run, name=name, values=run.values[:, part], onsets=onsets,
                                              stim_files=files_of, pause=0))  # fmt: skip
        return change(*(piece for piece in pieces if piece.onsets))
    if found := re.search(r"saves? the data multiplied by (1e-?\d+)", message):
        # a run that is read from another unit is saved anew in µV
        factor = run.factor * FACTORS[run.unit] * float(found[1])
        return change(factor=factor if abs(factor - 1) > 1e-9 else 1.0, unit="uV")
    if found := re.search(r"line (\d+) .*did you mean '([^']+)'", message):
        stim_files = list(run.stim_files)
        stim_files[int(found[1]) - 2] = found[2]
        return change(stim_files=tuple(stim_files))
    raise AssertionError(f"nobody can follow this: {message}")


def check(runs: list[Run]) -> None:
    """Write, read, follow the advice where it is refused, and compare with what was drawn."""
    for _ in range(16):  # a name, and for each of four pieces a unit and a picture
        root = Path(tempfile.mkdtemp())
        try:
            write(runs, root)
            events, raws = read(root)
            break
        except DatasetError as error:
            runs = follow(str(error), runs)
        finally:
            shutil.rmtree(root)
    else:
        raise AssertionError("advice without end")
    assert len(events) == sum(len(run.shown) for run in runs)
    assert len(raws) == len(runs)
    channels = None
    for run in runs:
        extension = ".vhdr" if run.extension == "mne-bids" else run.extension
        path = f"{run.folder}/{run.name}_eeg{extension}"
        raw, mine = raws[path], events[events["path"] == path]
        channels = channels or raw.ch_names
        assert raw.ch_names == channels, "trials are stacked row by row"
        rows = [run.names.index(name) for name in channels]
        np.testing.assert_allclose(raw.get_data(), run.values[rows], atol=5e-8)
        onsets = np.array(run.onsets)[run.shown]
        assert mine["onset_s"].tolist() == pytest.approx(onsets)
        assert mine["stim_file"].tolist() == [run.stim_files[k] for k in run.shown]
        cut, _ = signals.cut_epochs(raw, mine["sample"].to_numpy(), SFREQ, 0, 0.02, False, 0)
        at = np.round(onsets * SFREQ).astype(int)
        np.testing.assert_allclose(cut[..., 0], run.values[rows][:, at].T, atol=5e-8)
        info = mne.create_info(channels, 1.0, "eeg").set_montage(STANDARD_MONTAGE)
        cosine = (electrode_positions(raw.info["chs"]) * electrode_positions(info["chs"])).sum(1)
        assert cosine.min() > np.cos(np.radians(3)), (
            f"{run.frame}: electrodes are not where they were"
        )


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
COMMON = {"deadline": None, "database": None, "suppress_health_check": QUIET}


@given(studies())
@settings(max_examples=40, derandomize=True, **COMMON)
def test_every_study_is_read_rightly_or_refused_with_advice_that_works(runs):
    check(runs)


@pytest.mark.slow
@pytest.mark.timeout(2 * 3600)
@pytest.mark.parametrize("block", range(12))
def test_six_hundred_studies(block):
    """Twelve blocks of fifty, each with a seed of its own, so that they can run side by side."""

    @seed(block)
    @given(studies())
    @settings(max_examples=50, **COMMON)
    def fifty(runs):
        check(runs)

    fifty()
