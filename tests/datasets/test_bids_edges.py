"""What real studies bring: order, names, frames, pauses and units of BIDS recordings.

Each study is written here: 14 channels, 20 s at 100 Hz, twelve pictures.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import bids_files as files
import mne
import mne_bids
import numpy as np
import pandas as pd
import pytest
from bids_files import CAP, HEAD, MNI

from sgdm_utils import signals
from sgdm_utils.datasets import bids_recordings, readers
from sgdm_utils.datasets.bids import EventMapping
from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE, electrode_positions
from sgdm_utils.errors import DatasetError

SFREQ = 100.0
ONSETS = np.arange(1.0, 19.0, 1.5)
PICTURES = [f"c{i % 4}/p{i}.png" for i in range(12)]
FORMATS = [".vhdr", ".edf", ".bdf", ".set"]


def noise(seed: int = 0, n_channels: int = len(CAP)) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 10e-6, (n_channels, int(20 * SFREQ)))


def write(root: Path, name: str = "sub-01_task-see_run-01", volts=None, **options) -> Path:
    volts = noise(len(name)) if volts is None else volts
    options = {"onsets": ONSETS, "pictures": PICTURES} | options
    return files.write_recording(root, name, volts, **options)


def study(root: Path, subjects=("sub-01",), **options):
    """What 00 gets, and every recording as 01 reads it."""
    tables = readers.open_study("bids", root, list(subjects), EventMapping(**options))
    rows = tables.recordings.to_dict("records")
    return tables, [readers.read_raw("bids", row, root) for row in rows]


def angles(raw: mne.io.BaseRaw) -> np.ndarray:
    """Degrees between where the electrodes are and where they were put."""
    info = mne.create_info(raw.ch_names, 1.0, "eeg").set_montage(STANDARD_MONTAGE)
    cosine = (electrode_positions(raw.info["chs"]) * electrode_positions(info["chs"])).sum(1)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


# ------------------------------------------------------------------ the order of channels


@pytest.mark.parametrize(
    "other", ["sub-01_task-see_run-02", "sub-01_ses-02_task-see", "sub-02_task-see"]
)
def test_channels_are_stacked_by_name(tmp_path, other):
    """80 µV in Oz of a recording that lists its channels the other way round stay in row Oz."""
    wave = 80e-6 * np.sin(2 * np.pi * 10 * np.arange(2000) / SFREQ)
    first = noise(1)
    first[CAP.index("Oz")] += wave
    write(tmp_path, volts=first)
    turned = CAP[::-1]
    second = noise(2)
    second[turned.index("Oz")] += wave
    subject = other.partition("_")[0]
    folder = f"{subject}/ses-02/eeg" if "ses-" in other else f"{subject}/eeg"
    write(tmp_path, other, second, names=turned, folder=folder)
    tables, raws = study(tmp_path, sorted({"sub-01", subject}))
    assert len(raws) == 2 and all(raw.ch_names == CAP for raw in raws)
    for raw in raws:
        epochs, _ = signals.cut_epochs(raw, np.arange(100, 1800, 100), SFREQ, 0, 0.5, False, 0)
        assert CAP[epochs.std(axis=(0, 2)).argmax()] == "Oz"
        assert np.allclose(raw.info["chs"][12]["loc"][:3], HEAD["Oz"], atol=1e-6)
    row = tables.recordings.iloc[1].to_dict() | {"channels": [*CAP[1:], "E1"]}
    with pytest.raises(DatasetError, match="no longer those of the study.*E1, Fp1"):
        readers.read_raw("bids", row, tmp_path)


# ------------------------------------------------------------------------- what it is called


def test_recordings_that_differ_in_acq_are_two(tmp_path):
    for i, acq in enumerate(("low", "high")):
        write(tmp_path, f"sub-01_task-see_acq-{acq}_run-01", noise(i))
    tables, _ = study(tmp_path)
    assert tables.recordings["run"].tolist() == ["acq-high_01", "acq-low_01"]
    assert len(tables.events) == 24 and tables.events.groupby("run").size().tolist() == [12, 12]
    key = ["subject", "session", "run", "sample"]
    assert not tables.events.duplicated(key).any()


def rename(path: Path, old: str, new: str) -> None:
    for file in path.parent.glob(f"{path.stem.removesuffix('_eeg')}_*"):
        text = file.read_bytes()
        renamed = file.with_name(file.name.replace(old, new))
        file.unlink()
        renamed.write_bytes(text.replace(f"{path.stem}".encode(), renamed.stem.encode()))


@pytest.mark.parametrize(
    "entity", ["rec-x", "recording-x", "proc-x", "desc-x", "echo-1", "split-02", "old"]
)
def test_other_entities_are_named_and_the_advice_is_right(tmp_path, entity):
    write(tmp_path, volts=noise(1))
    path = write(tmp_path, f"sub-01_task-see_run-01_{entity}", noise(2))
    with pytest.raises(DatasetError, match=rf"not {entity}: .*acq- or run-.*derivatives/"):
        study(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path, copy, ignore=shutil.ignore_patterns("copy"))
    rename(copy / path.relative_to(tmp_path), f"_run-01_{entity}", "_run-02")
    assert len(study(copy)[0].events) == 24
    for file in path.parent.glob(f"*{entity}*"):
        file.unlink()
    assert len(study(tmp_path)[0].events) == 12


def test_one_recording_in_two_files_is_refused(tmp_path):
    write(tmp_path, volts=noise(1))
    second = write(tmp_path, volts=noise(2), extension=".edf")
    with pytest.raises(
        DatasetError, match=r"run-01_eeg\.edf and .*run-01_eeg\.vhdr are files of one"
    ):
        study(tmp_path)
    second.unlink()
    third = write(tmp_path, "sub-01_task-see_run-1", noise(3))
    with pytest.raises(
        DatasetError, match=r"run-01_eeg\.vhdr and .*run-1_eeg\.vhdr are files of one"
    ):
        study(tmp_path)
    rename(third, "run-1", "run-3")
    assert len(study(tmp_path)[0].events) == 24
    (tmp_path / "sub-01/eeg/sub-01_task-see_run-04_eeg.EDF").touch()
    with pytest.raises(DatasetError, match=r"small letters.*run-04_eeg\.edf"):
        study(tmp_path)


# ------------------------------------------------------------------------------- inheritance


@pytest.mark.parametrize(
    "place",
    ["sub-01/eeg/sub-01_task-see_events.tsv", "sub-01/sub-01_task-see_events.tsv",
     "sub-01/sub-01_events.tsv", "task-see_events.tsv", "events.tsv"],
)  # fmt: skip
def test_events_are_inherited(tmp_path, place):
    path = write(tmp_path)
    own = path.with_name("sub-01_task-see_run-01_events.tsv")
    shutil.copy(own, tmp_path / place)
    # what is said closer to the recording, and of another one, has to lose against it
    wrong = pd.read_csv(own, sep="\t").assign(onset=ONSETS + 0.5)
    files.write_tsv(tmp_path / "run-02_events.tsv", wrong)
    own.unlink()
    np.testing.assert_allclose(study(tmp_path)[0].events["onset_s"], ONSETS)
    files.write_tsv(own, wrong)
    np.testing.assert_allclose(study(tmp_path)[0].events["onset_s"], ONSETS + 0.5)


def test_two_tables_that_apply_alike_are_refused(tmp_path):
    path = write(tmp_path)
    own = path.with_name("sub-01_task-see_run-01_events.tsv")
    for name in ("sub-01_task-see_events.tsv", "sub-01_run-01_events.tsv"):
        shutil.copy(own, path.with_name(name))
    content = own.read_bytes()
    own.unlink()
    with pytest.raises(
        DatasetError, match=r"apply to .* alike\. Copy the right one to .*run-01_events"
    ):
        study(tmp_path)
    own.write_bytes(content)
    assert len(study(tmp_path)[0].events) == 12
    # the same of channels.tsv, which MNE-BIDS reads by rules of its own
    channels = path.with_name("sub-01_task-see_run-01_channels.tsv")
    table = pd.read_csv(channels, sep="\t").assign(status=["bad", *["good"] * 13])
    files.write_tsv(path.with_name("sub-01_task-see_acq-x_channels.tsv"), table)
    channels.unlink()
    with pytest.raises(
        DatasetError, match=r"no channels\.tsv applies.*MNE-BIDS takes .*acq-x_channels"
    ):
        study(tmp_path)
    files.write_tsv(channels, table)
    assert study(tmp_path)[1][0].info["bads"] == ["Fp1"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [("stimuli/c0/p0.png", "c0/p0.png"), ("C0/P0.PNG", "c0/p0.png"), ("c0/p0", "c0/p0.png"),
     ("p0", "c0/p0.png"), ("p0.png", "c0/p0.png"), ("/data/stimuli/c0/p0.png", "c0/p0.png"),
     ("c0/p0.jpg", "c0/p0.png")],
)  # fmt: skip
def test_a_stimulus_that_is_written_otherwise_is_suggested(tmp_path, written, meant):
    path = write(tmp_path, pictures=PICTURES)
    sidecar = path.with_name("sub-01_task-see_run-01_events.tsv")
    text = sidecar.read_text()
    sidecar.write_text(text.replace(f"\t{PICTURES[0]}\n", f"\t{written}\n"))
    with pytest.raises(DatasetError, match=rf"line 2.*did you mean '{meant}'\?"):
        study(tmp_path)
    sidecar.write_text(text)
    assert study(tmp_path)[0].events["stim_file"][0] == meant


# ------------------------------------------------------------------------ where electrodes are


def turned(positions: dict) -> dict:
    """Axes of EEGLAB: x to the nose, y to the left."""
    return {name: (y, -x, z) for name, (x, y, z) in positions.items()}


def times(positions: dict, factor: float) -> dict:
    return {name: np.asarray(xyz) * factor for name, xyz in positions.items()}


LANDMARKS = {"NAS": (0, 0.1, 0), "LPA": (-0.08, 0, 0), "RPA": (0.08, 0, 0)}


@pytest.mark.parametrize(
    ("positions", "system", "source"),
    [
        (HEAD, {"frame": "CapTrak"}, r"electrodes\.tsv \(CapTrak\)"),
        (times(HEAD, 1000), {"frame": "CapTrak", "unit": "mm"}, "CapTrak"),
        (times(HEAD, 100), {"frame": "CapTrak", "unit": "cm"}, "CapTrak"),
        (turned(HEAD), {"frame": "EEGLAB"}, "EEGLAB"),
        (turned(HEAD), {"frame": "CTF"}, "CTF"),
        (times(MNI, 1000), {"frame": "MNIColin27", "unit": "mm"}, "MNIColin27"),
        (MNI, {"frame": "fsaverage"}, "fsaverage"),
        (turned(HEAD), {"frame": "Other", "AnatomicalLandmarkCoordinates": turned(LANDMARKS)}, "Other"),
        # what cannot be placed: the names say where, and the notice says so
        (times(turned(HEAD), 1000), {"frame": "Other", "unit": "mm"}, "10-05 .* frame is not known"),
        (MNI, {"frame": "CapTrak"}, r"10-05 .* electrodes lie [23]\d degrees"),
        (turned(HEAD), {"frame": "CapTrak"}, "10-05 .* electrodes lie"),
        (HEAD | {"Oz": HEAD["Fz"]}, {"frame": "CapTrak"}, "10-05 .* Oz 1"),
        ({**HEAD, "Cz": ("n/a",) * 3}, {"frame": "CapTrak"}, "10-05 .* no coordinates for Cz"),
        (times(HEAD, 10), {"frame": "CapTrak"}, "10-05 .* not a head in any unit"),
        # a unit that is missing or wrong is taken from the size of the head
        (times(HEAD, 850), {"frame": "CapTrak", "unit": "n/a"}, "unit 'n/a' read as mm"),
        (times(HEAD, 1000), {"frame": "CapTrak", "unit": "m"}, "unit 'm' read as mm"),
        (times(turned(HEAD), 1000), {"frame": "EEGLAB", "unit": "n/a"}, "unit 'n/a' read as mm"),
    ],
)  # fmt: skip
def test_electrodes_are_where_they_were(tmp_path, positions, system, source):
    path = write(tmp_path)
    files.write_positions(path.parent, "sub-01_task-see_run-01", positions, **system)
    tables, (raw,) = study(tmp_path)
    assert angles(raw).max() < 5, source  # a smaller head has its centre elsewhere
    assert pd.Series(tables.recordings["positions"]).str.contains(source).all()
    note = tables.notes.get("electrodes", "electrodes.tsv (CapTrak) (1 runs)")
    assert note == f"{tables.recordings['positions'][0]} (1 runs)"


def test_the_measured_of_two_spaces_is_taken(tmp_path):
    path = write(tmp_path)
    rng = np.random.default_rng(5)
    measured = {name: xyz + rng.normal(0, 0.004, 3) for name, xyz in HEAD.items()}
    for space, xyz in (("CapTrak", measured), ("MNIColin27", MNI)):
        files.write_positions(path.parent, "sub-01", xyz, space, space=space)
    tables, (raw,) = study(tmp_path)
    for channel in raw.info["chs"]:
        np.testing.assert_allclose(channel["loc"][:3], measured[channel["ch_name"]], atol=1e-6)
    assert tables.recordings["positions"][0] == "electrodes.tsv (CapTrak)"


def test_positions_in_a_frame_that_is_not_known_are_not_used_without_names(tmp_path):
    odd = [f"E{i}" for i in range(len(CAP))]
    path = write(tmp_path, names=odd)
    measured = dict(zip(odd, HEAD.values(), strict=True))
    options = {"folder": path.parent, "stem": "sub-01_task-see_run-01"}
    files.write_positions(positions=turned(measured), frame="Other", **options)
    with pytest.raises(DatasetError, match=r"'E0' has no position.*frame is not known.*CapTrak"):
        study(tmp_path)
    files.write_positions(positions=measured, frame="CapTrak", **options)
    raw = study(tmp_path)[1][0]
    loc = np.array([ch["loc"][:3] for ch in raw.info["chs"]])
    np.testing.assert_allclose(loc, list(HEAD.values()), atol=1e-6)


@pytest.mark.parametrize("right", [True, False])
def test_positions_of_the_data_file_are_checked_as_well(tmp_path, right):
    where = times(turned(HEAD) if right else HEAD, 1000)  # EEGLAB: x to the nose
    write(tmp_path, extension=".set", chanlocs=where)
    tables, (raw,) = study(tmp_path)
    assert angles(raw).max() < 12  # EEGLAB has no fiducials; its origin lies elsewhere
    expected = "positions of the data file" if right else "10-05 system by name"
    assert tables.recordings["positions"][0].startswith(expected)


def test_what_mne_bids_writes_comes_back_to_the_digit(tmp_path):
    raw = mne.io.RawArray(noise(), mne.create_info(CAP, SFREQ, "eeg"), verbose="error")
    raw.set_montage(STANDARD_MONTAGE)
    where = mne_bids.BIDSPath(root=tmp_path, subject="01", task="see", datatype="eeg")
    mne_bids.write_raw_bids(raw, where, format="BrainVision", allow_preload=True, verbose="error")
    read = bids_recordings.read_recording(
        bids_recordings.find_recordings(tmp_path).iloc[0], tmp_path
    )
    by_mne_bids = mne_bids.read_raw_bids(where, verbose="error")
    for ours, theirs in zip(read.info["chs"], by_mne_bids.info["chs"], strict=True):
        assert ours["loc"][:3].tolist() == theirs["loc"][:3].tolist()


# ------------------------------------------------------------------------------------ pauses


@pytest.mark.parametrize("extension", [".edf", ".bdf"])
def test_a_paused_recording_is_refused_and_its_pieces_are_read(tmp_path, extension):
    path = write(tmp_path, extension=extension)
    files.pause(path, after_record=10, seconds=0)  # EDF+D without a pause is continuous
    assert len(study(tmp_path)[0].events) == 12
    files.pause(path, after_record=10, seconds=10)
    message = r"before sample 1000 \(10\.000 s into the samples, 10\.000 s missing\)"
    with pytest.raises(DatasetError, match=message):
        study(tmp_path)
    pieces = tmp_path / "pieces"
    volts = noise(3)
    for run, begin in (("01", 0), ("02", 10)):
        inside = (ONSETS >= begin) & (ONSETS < begin + 10)
        write(pieces, f"sub-01_task-see_run-{run}", volts[:, begin * 100 : begin * 100 + 1000],
              extension=extension, onsets=ONSETS[inside] - begin,
              pictures=np.array(PICTURES)[inside])  # fmt: skip
    tables, raws = study(pieces)
    assert len(tables.events) == 12
    np.testing.assert_allclose(raws[1].get_data(), volts[:, 1000:], atol=2e-8)


@pytest.mark.parametrize(
    ("extension", "text"),
    [(".set", "boundary"), (".set", "-99"), (".edf", "boundary"), (".vhdr", "BAD boundary"),
     (".edf", "EDGE boundary"), (".bdf", "BAD_ACQ_SKIP")],
)  # fmt: skip
def test_boundaries_are_pauses(tmp_path, extension, text):
    mark = (10.0 - 0.003, 2.0, text)  # between two samples, as EEGLAB has it
    write(tmp_path, extension=extension, annotations=[(0.0, 0.0, text), mark])
    with pytest.raises(DatasetError, match="paused or cut 1 times: before sample 1000"):
        study(tmp_path)
    write(tmp_path, extension=extension, annotations=[(0.0, 0.0, text)])
    assert len(study(tmp_path)[0].events) == 12


def test_the_filled_end_of_a_last_record_is_no_pause(tmp_path):
    write(tmp_path, extension=".edf", annotations=[(19.5, 0.5, "BAD_ACQ_SKIP")])
    assert len(study(tmp_path)[0].events) == 12


def test_a_new_segment_of_brainvision_is_a_pause(tmp_path):
    path = write(tmp_path, annotations=[(0.0, 0.0, "x"), (10.0, 0.0, "x")])
    marks = path.with_suffix(".vmrk")  # the first one is the start of the recording
    marks.write_text(marks.read_text().replace("Comment,x,", "New Segment,,"))
    with pytest.raises(DatasetError, match="before sample 1000"):
        study(tmp_path)


def test_a_boundary_that_only_the_events_tell_is_a_pause(tmp_path):
    path = write(tmp_path)
    sidecar = path.with_name("sub-01_task-see_run-01_events.tsv")
    table = pd.read_csv(sidecar, sep="\t")
    table.loc[len(table)] = [10.2, 0.0, "boundary", "n/a"]
    files.write_tsv(sidecar, table)
    with pytest.raises(DatasetError, match="before sample 1020"):
        study(tmp_path)


@pytest.mark.parametrize("extension", [".set", ".vhdr"])
def test_a_seam_is_marked_where_the_events_count_samples(tmp_path, extension):
    volts = noise()
    volts[:, 1000:] += 3e-3  # electrodes were dry after the pause
    text = "boundary" if extension == ".set" else "BAD boundary"
    path = write(tmp_path, volts=volts, extension=extension, annotations=[(10.0, 0.0, text)])
    sidecar = path.with_name("sub-01_task-see_run-01_events.tsv")
    table = pd.read_csv(sidecar, sep="\t")
    files.write_tsv(sidecar, table.assign(sample=np.round(table["onset"] * SFREQ).astype(int)))
    tables, (raw,) = study(tmp_path)
    assert tables.events["onset_s"].tolist() == [t for t in ONSETS if abs(t - 10) >= 1]
    assert "within 1 s of a seam" in tables.notes["paused"]
    filtered = raw.copy().filter(1.0, 30.0, verbose="error").get_data()
    apart = mne.filter.filter_data(volts[:, :1000], SFREQ, 1.0, 30.0, verbose="error")
    np.testing.assert_allclose(filtered[:, :1000], apart, atol=2e-7)
    # on the clock a sample is another one: nothing settles it
    later = table.assign(sample=np.round(table["onset"] * SFREQ).astype(int) - 200)
    files.write_tsv(sidecar, later)
    with pytest.raises(DatasetError, match="column `sample` of events.tsv"):
        study(tmp_path)


# ----------------------------------------------------------------------------- bad stretches


@pytest.mark.parametrize("where", ["events.tsv", "data file"])
@pytest.mark.parametrize("text", ["BAD_cough", "bad", "Bad Interval/x"])
def test_epochs_that_touch_a_bad_stretch_are_known(tmp_path, where, text):
    """From 5.2 to 6.0 s; the row is no picture, and a concept called badger is no stretch."""
    mark = (5.2, 0.8, text)
    in_file = where == "data file"
    pictures = [f"badger/p{i}.png" for i in range(12)]
    path = write(
        tmp_path, extension=".edf", annotations=[mark] if in_file else [], pictures=pictures
    )
    sidecar = path.with_name("sub-01_task-see_run-01_events.tsv")
    table = pd.read_csv(sidecar, sep="\t").assign(trial_type="badger")
    if not in_file:
        table.loc[len(table)] = [5.2, 0.8, text, "n/a"]
    files.write_tsv(sidecar, table)
    for mapping in ({}, {"stimulus_column": "", "label_column": "trial_type"}):
        tables, (raw,) = study(tmp_path, **mapping)
        assert tables.events["onset_s"].tolist() == pytest.approx(ONSETS)
        assert set(tables.events["concept"]) == {"badger"}
        assert tables.notes["marked as bad"].startswith("0.8 s")
    for tmin, tmax in ((-0.2, 0.6), (-2.0, 0.0), (0.0, 0.69)):
        touching = signals.touches_bad(raw, tables.events["sample"], tmin, tmax)
        expected = [o + tmin < 6.0 and o + tmax > 5.2 for o in ONSETS]
        assert (
            touching.tolist() == expected and 0 < sum(expected) < 4 or (tmin, tmax) == (0.0, 0.69)
        )


# --------------------------------------------------------------------------------- magnitude


@pytest.mark.parametrize("extension", [".edf", ".bdf"])
@pytest.mark.parametrize(("unit", "power"), [("", 6), ("nV", 9)])
def test_units_that_mne_takes_for_volts_are_refused(tmp_path, extension, unit, power):
    write(tmp_path, extension=extension, unit=unit)
    match = rf"looks 10\^{power} times too large.*physical dimension.*multiplied by 1e-{power}"
    with pytest.raises(DatasetError, match=match):
        study(tmp_path)
    path = write(tmp_path, extension=extension, unit="uV")
    raw = study(tmp_path)[1][0]
    assert raw.get_data().std() == pytest.approx(10e-6, rel=0.02)
    row = {"path": path.relative_to(tmp_path).as_posix()}
    write(tmp_path, extension=extension, unit=unit)  # changed after 00
    with pytest.raises(DatasetError, match=match):
        readers.read_raw("bids", row, tmp_path)


@pytest.mark.parametrize(("factor", "power"), [(1e6, 6), (1e3, 3), (1e-3, -3), (1e-6, -6)])
@pytest.mark.parametrize("extension", [".vhdr", ".set"])
def test_values_in_another_unit_are_refused_with_their_factor(tmp_path, extension, factor, power):
    write(tmp_path, volts=noise() * factor, extension=extension)
    size = "large" if power > 0 else "small"
    with pytest.raises(DatasetError, match=rf"10\^{abs(power)} times too {size}.*by 1e{-power}$"):
        study(tmp_path)
    write(tmp_path, volts=noise() * factor * float(f"1e{-power}"), extension=extension)
    assert study(tmp_path)[1][0].get_data().std() == pytest.approx(10e-6, rel=0.02)


def test_one_channel_in_another_unit_is_named_unless_it_is_bad(tmp_path):
    volts = noise()
    volts[3] *= 1e6
    path = write(tmp_path, volts=volts)
    with pytest.raises(DatasetError, match=r"channel 'Fz' spans .*10\^6 times too large"):
        study(tmp_path)
    channels = path.with_name("sub-01_task-see_run-01_channels.tsv")
    table = pd.read_csv(channels, sep="\t")
    table.loc[3, "status"] = "bad"
    files.write_tsv(channels, table)
    assert study(tmp_path)[1][0].info["bads"] == ["Fz"]


@pytest.mark.parametrize("scale", [0.2, 1.0, 20.0])
def test_quiet_and_noisy_recordings_with_an_offset_are_let_through(tmp_path, scale):
    volts = noise() * scale + 0.03  # an amplifier without high-pass
    write(tmp_path, volts=volts)
    np.testing.assert_allclose(study(tmp_path)[1][0].get_data(), volts, atol=1e-8)
