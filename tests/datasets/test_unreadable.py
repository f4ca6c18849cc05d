"""What stops a reader is said in its own words, and who does what is said can read the recording."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import mne_bids
import numpy as np
import pytest
import scipy.io
from small_bids import CHANNELS, PICTURES, add_recording, channels_tsv

from sgdm_utils.datasets import bids, bids_recordings
from sgdm_utils.datasets.unreadable import explain
from sgdm_utils.errors import DatasetError
from sgdm_utils.workflow.content import require_content

RUN = "sub-01/eeg/sub-01_task-see_run-01_"
EVENTS, CHANNEL_TABLE, SIDECAR = RUN + "events.tsv", RUN + "channels.tsv", RUN + "eeg.json"
SPACE = "sub-01/eeg/sub-01_space-CapTrak_"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("once")
    add_recording(root, seed=1)
    return root


@pytest.fixture
def root(written, tmp_path) -> Path:
    """A study of one run, which a test may spoil."""
    return shutil.copytree(written, tmp_path / "study")


def read(root: Path) -> int:
    """Number of picture events; everything is opened and the samples are read."""
    recordings, events = bids.read_study(root, bids.EventMapping())
    assert bids_recordings.read_recording(recordings.iloc[0], root).n_times == 2000
    return len(events)


def replace(old: bytes, new: bytes):
    def change(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, new, 1)

    return change


def cell(column: str, value: str, row: int = 1):
    """Change one cell of a table; line 1 is the header."""

    def change(content: bytes) -> bytes:
        rows = [line.split("\t") for line in content.decode("utf-8-sig").splitlines()]
        rows[row][rows[0].index(column)] = value
        return "\n".join(map("\t".join, rows)).encode()

    return change


def fields(**values):
    return lambda content: json.dumps(json.loads(content) | values).encode()


def new_column(name: str):
    """A column more, at the end."""

    def change(content: bytes) -> bytes:
        first, *rows = content.decode("utf-8-sig").splitlines()
        return "\n".join([f"{first}\t{name}", *(f"{row}\tx" for row in rows)]).encode()

    return change


RESERVED = ("description", "ch_names", "hed_string")
TABLES = [
    *(
        (EVENTS, new_column(name), rf"events\.tsv: a column is called '{name}'.*'{name}_'",
         replace(name.encode(), name.encode() + b"_"))
        for name in RESERVED
    ),
    (EVENTS, replace(b"duration", b"length"), r"events\.tsv: no column 'duration'.*correct its name",
     replace(b"length", b"duration")),
    (EVENTS, replace(b"\tduration", b"\t duration "), r"'duration' \(it is written ' duration ', ",
     replace(b"\t duration ", b"\tduration")),
    (EVENTS, cell("duration", "long", 3), r"events\.tsv, line 4: duration 'long'.*write n/a",
     replace(b"long", b"n/a")),
    (EVENTS, cell("onset", "soon"), r"events\.tsv, line 2: onset 'soon' is no number. Correct it$",
     replace(b"soon", b"1.0")),
    (EVENTS, lambda c: c + b"18.9\t0.1\n", r"line 12: 2 cells under 6 columns. Fill .* n/a",
     replace(b"18.9\t0.1\n", b"18.9\t0.1\tn/a\tn/a\tn/a\tn/a\n")),
    (CHANNEL_TABLE, replace(b"type", b"kind"), r"channels\.tsv: no column 'type'",
     replace(b"kind", b"type")),
    (SIDECAR, lambda c: b"\xef\xbb\xbf" + c, r"eeg\.json begins with a byte order mark.*EF BB BF",
     lambda c: c[3:]),
    (SPACE + "coordsystem.json", lambda c: b"\xef\xbb\xbf" + c, r"coordsystem\.json begins with",
     lambda c: c[3:]),
    (SIDECAR, lambda c: c.rstrip()[:-1], r"eeg\.json is no JSON .*line \d+", lambda c: c + b"}"),
    (SIDECAR, lambda c: b"[" + c + b"]", r"eeg\.json holds a list", lambda c: c[1:-1]),
    (SIDECAR, fields(RecordingType="epoched"), r"eeg\.json says RecordingType epoched",
     fields(RecordingType="continuous")),
    (SIDECAR, fields(PowerLineFrequency="50 Hz"), r"PowerLineFrequency is '50 Hz'",
     fields(PowerLineFrequency=50)),
    (SPACE + "electrodes.tsv", cell("x", "left"), r"electrodes\.tsv, line 2: x 'left'",
     cell("x", "0.0")),
    ("participants.tsv", replace(b"participant_id", b"who"), r"participants\.tsv: no column 'part",
     replace(b"who", b"participant_id")),
    ("sub-01/sub-01_scans.tsv", replace(b"filename", b"file"), r"scans\.tsv: no column 'filename'",
     replace(b"file", b"filename")),
    (RUN + "eeg.vhdr", replace(b"DataFile=sub", b"DataFile=my"), r"without my.*, which it names",
     replace(b"DataFile=my", b"DataFile=sub")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "spoil", "message", "remedy"), TABLES)
def test_a_cause_is_named_and_its_remedy_helps(root, name, spoil, message, remedy):
    file = root / name
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(DatasetError, match=message) as refused:
        read(root)
    assert "damaged" not in str(refused.value) and "opy the" not in str(refused.value)
    assert file.name in str(refused.value)
    file.write_bytes(remedy(file.read_bytes()))
    assert read(root) >= 10


def test_channels_tsv_may_have_another_order_than_the_header(root):
    before = bids_recordings.read_recording(bids_recordings.find_recordings(root).iloc[0], root)
    file = root / CHANNEL_TABLE
    header, *rows = file.read_text(encoding="utf-8-sig").splitlines()
    rows[1] = rows[1].replace("good", "bad")  # Cz
    file.write_text("\n".join([header, *rows[::-1]]))
    raw = bids_recordings.read_recording(bids_recordings.find_recordings(root).iloc[0], root)
    for name in CHANNELS:  # by name: samples, place and state are the same electrode's
        np.testing.assert_array_equal(raw.get_data(name), before.get_data(name))
        places = [r.info["chs"][r.ch_names.index(name)]["loc"][:3] for r in (raw, before)]
        np.testing.assert_array_equal(*places)
    assert raw.info["bads"] == ["Cz"]


def test_a_recording_of_bad_channels_only_is_refused(root):
    channels_tsv(root / EVENTS).write_text(
        (root / CHANNEL_TABLE).read_text().replace("good", "bad")
    )
    with pytest.raises(DatasetError, match="all EEG channels are marked as bad"):
        read(root)


@pytest.mark.parametrize("content", [b"", b"Brain Vision Data Exchange Header File\n[Common"])
def test_what_is_damaged_is_copied_again(root, content):
    header = root / (RUN + "eeg.vhdr")
    whole = header.read_bytes()
    header.write_bytes(content)
    with pytest.raises(
        DatasetError, match=r"(?s)eeg\.vhdr (is empty|cannot be read).*opy it again"
    ):
        read(root)
    header.write_bytes(whole)
    assert read(root) == 10


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_file_that_may_not_be_read_is_no_damaged_one(root):
    (root / EVENTS).chmod(0)
    with pytest.raises(DatasetError, match=r"may not be read by you: chmod u\+r"):
        read(root)


def test_an_unknown_cause_is_sought_where_it_is(root):
    path = mne_bids.get_bids_path_from_fname(root / (RUN + "eeg.vhdr"))
    assert "The recording itself opens" in explain(path, RuntimeError("odd"))
    path.fpath.write_bytes(b"nothing")
    assert "Compare its size and checksum" in explain(path, RuntimeError("odd"))


# ------------------------------------------------------------------- files of EEGLAB


def save_set(file: Path, n_trials: int = 1) -> None:
    """The fields that MNE asks for, as EEGLAB saves them."""
    data = np.random.default_rng(0).normal(0, 10, (len(CHANNELS), 2000 // n_trials, n_trials))
    places = np.zeros(len(CHANNELS), dtype=[("labels", object), ("X", float)])
    places["labels"] = CHANNELS
    content = {
        "nbchan": len(CHANNELS), "srate": 100.0, "trials": n_trials, "pnts": data.shape[1],
        "xmin": 0.0, "xmax": 19.99, "data": data.squeeze(), "chanlocs": places, "event": [],
        "epoch": [], "icawinv": [], "icasphere": [], "icaweights": [], "setname": "x",
    }  # fmt: skip
    scipy.io.savemat(file, {"EEG": content}, appendmat=False, oned_as="row")


@pytest.fixture
def eeglab(root):
    """The study with a .set file in place of the BrainVision files."""
    for file in root.glob(RUN + "eeg.[ve]*"):
        file.unlink()
    save_set(root / (RUN + "eeg.set"))
    assert read(root) == 10
    return root


def test_epochs_of_eeglab_are_no_damaged_recording(eeglab):
    save_set(eeglab / (RUN + "eeg.set"), n_trials=4)
    with pytest.raises(DatasetError, match=r"eeg\.set holds epochs.*before they were cut"):
        read(eeglab)
    save_set(eeglab / (RUN + "eeg.set"))  # exported as they were before
    assert read(eeglab) == 10


def test_matlab_7_3_is_read_or_its_remedy_helps(eeglab):
    file = eeglab / (RUN + "eeg.set")
    file.write_bytes(
        b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512, b" ") + b"\x89HDF\r\n\x1a\n"
    )
    lacking = find_spec("pymatreader") is None
    expected = "pip install pymatreader, or save it" if lacking else "Save it"
    with pytest.raises(DatasetError, match=rf"MATLAB 7\.3.*{expected} again.*'version', '6'"):
        read(eeglab)
    save_set(file)
    assert read(eeglab) == 10


def test_matlab_7_3_is_read(eeglab):
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("pymatreader")
    file = eeglab / (RUN + "eeg.set")
    content = scipy.io.loadmat(file, simplify_cells=True)["EEG"]
    expected = content["data"]
    with h5py.File(file, "w", userblock_size=512) as out:
        group = out.create_group("EEG")
        for name in ("nbchan", "srate", "trials", "pnts", "xmin", "xmax"):
            group[name] = np.array([[float(content[name])]])
        group["data"] = expected.T
        labels = [np.frombuffer(name.encode("utf-16-le"), np.uint16)[:, None] for name in CHANNELS]
        refs = out.create_group("#refs#")
        places = group.create_group("chanlocs")
        column = np.empty((len(CHANNELS), 1), object)
        for i, label in enumerate(labels):
            refs[f"l{i}"] = label
            refs[f"l{i}"].attrs["MATLAB_class"] = np.bytes_("char")
            column[i, 0] = refs[f"l{i}"].ref
        places.create_dataset("labels", data=column, dtype=h5py.ref_dtype)
        for name in ("event", "epoch", "icawinv", "icasphere", "icaweights"):
            group[name] = np.zeros((2,), np.uint64)
            group[name].attrs["MATLAB_empty"] = 1
            group[name].attrs["MATLAB_class"] = np.bytes_("double")
    with file.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124, b" ") + b"\x00\x02IM")
    raw = bids_recordings.read_recording(bids_recordings.find_recordings(eeglab).iloc[0], eeglab)
    np.testing.assert_allclose(raw.get_data() * 1e6, expected, rtol=1e-6)


# ---------------------------------------------------------- clones without their content


def lock(file: Path) -> bytes:
    """Leave a link into the annex, as git-annex does for content that was not fetched."""
    content = file.read_bytes()
    file.unlink()
    file.symlink_to(f"../../.git/annex/objects/Xy/{file.name}")
    return content


def unlock(file: Path) -> bytes:
    content = file.read_bytes()
    file.write_bytes(b"/annex/objects/MD5E-s40000--0123456789abcdef.eeg\n")
    return content


def lfs(file: Path) -> bytes:
    content = file.read_bytes()
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 40000\n")
    return content


BELONGING = (EVENTS, CHANNEL_TABLE, SIDECAR, SPACE + "coordsystem.json", SPACE + "electrodes.tsv")


@pytest.mark.parametrize(
    ("name", "absent"),
    [(RUN + "eeg.eeg", unlock), (RUN + "eeg.eeg", lfs), (f"stimuli/{PICTURES[3]}", unlock)]
    + [(name, lock) for name in (RUN + "eeg.vhdr", *BELONGING)],
)
def test_content_that_was_not_fetched_is_fetched(root, tmp_path, monkeypatch, name, absent):
    (root / "stimuli" / PICTURES[3]).write_bytes(b"a picture")
    file = root / name
    kept = tmp_path / "kept"
    kept.write_bytes(absent(file))
    with pytest.raises(DatasetError, match="content was not fetched") as refused:
        read(root)
    assert "RecordingDuration" not in str(refused.value)
    # the command of the message, with stand-ins for git and datalad that bring the content
    programs = tmp_path / "bin"
    programs.mkdir()
    for program, last in (("datalad", "$2"), ("git", "$4")):
        script = f'#!/bin/sh\nrm -f "{last}" && cp "{kept}" "{last}"\n'
        (programs / program).write_text(script)
        (programs / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    command = re.search(r"cd .*", str(refused.value)).group()
    subprocess.run(command, shell=True, check=True)
    assert read(root) == 10


def test_a_run_whose_content_is_absent_is_not_left_out_in_silence(root):
    add_recording(root, run="02", seed=2)
    lock(root / (RUN.replace("run-01", "run-02") + "eeg.vhdr"))
    with pytest.raises(DatasetError, match=r"run-02_eeg\.vhdr is known by name only"):
        read(root)
    with pytest.raises(DatasetError, match="no task 'hear'"):  # of the chosen recordings only
        bids_recordings.find_recordings(root, task="hear")


def test_a_link_to_nowhere_is_no_annex(root):
    picture = root / "stimuli" / PICTURES[0]
    picture.unlink()
    picture.symlink_to("elsewhere.png")
    with pytest.raises(DatasetError, match=r"is a link to elsewhere\.png.*Copy the file itself"):
        read(root)
    require_content(root / EVENTS, root / "nothing of this name")
