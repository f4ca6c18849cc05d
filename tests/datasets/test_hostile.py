"""Data from elsewhere that reach out of their folder, that nothing can have recorded, or that would fill the memory."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from pathlib import Path

import alljoined_files
import kilogram_files
import mne
import numpy as np
import pandas as pd
import pytest
import small_bids
import things_eeg1_files
import things_eeg2_files

from sgdm_utils.datasets import bids, pickles, readers, tables
from sgdm_utils.datasets.pickles import UnsafePickleError
from sgdm_utils.datasets.tables import EpochedSignal
from sgdm_utils.datasets.things_eeg2 import images
from sgdm_utils.errors import ChannelError, DatasetError
from sgdm_utils.stimuli.files import PictureError, leading_out
from sgdm_utils.stimuli.pictures import from_files
from sgdm_utils.workflow import formats

# ------------------------------------------------------------------ pictures stay in their data set


@pytest.fixture
def data(tmp_path):
    """A data set with a picture, and a private one beside it."""
    (tmp_path / "data/stimuli/a").mkdir(parents=True)
    (tmp_path / "data/stimuli/a/x.png").touch()
    (tmp_path / "private").mkdir()
    (tmp_path / "private/secret.png").touch()
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../../private/secret.png", "upwards"),
        ("a/../../../private/secret.png", "upwards"),
        ("a\\..\\..\\secret.png", "upwards"),
        ("/etc/passwd", "absolute"),
        ("\\\\server\\share\\x.png", "absolute"),
        ("C:\\x.png", "absolute"),
        ("C:x.png", "absolute"),
        ("~/x.png", "absolute"),
        ("a/\0.png", "no name of a file"),
        (" ", "no name of a file"),
    ],
)
def test_a_name_that_leads_out_is_told_whether_or_not_there_is_such_a_file(data, name, why):
    assert why in leading_out(data / "stimuli", ["a/x.png", name], data)[name]


def test_links_may_lead_anywhere_in_the_data_set_and_nowhere_else(data):
    folder = data / "stimuli"
    (data / "sourcedata").mkdir()
    (data / "sourcedata/y.png").touch()
    (folder / "within.png").symlink_to("../sourcedata/y.png")
    assert leading_out(folder, ["within.png", "a/x.png", "b/not_there.png"], data) == {}
    assert "out of the data set" in leading_out(folder, ["within.png"])["within.png"]
    (folder / "out.png").symlink_to("../../private/secret.png")
    (folder / "b").symlink_to("../../private")
    (folder / "loop.png").symlink_to("loop.png")
    found = leading_out(folder, ["out.png", "b/secret.png", "a/x.png", "loop.png"], data)
    assert {"out.png", "b/secret.png"} <= set(found) <= {"out.png", "b/secret.png", "loop.png"}
    assert str(data.parent / "private") in found["b/secret.png"]


def test_the_folder_itself_may_be_a_link_and_git_annex_may_keep_the_pictures(data):
    store = data.parent / "pictures"
    (data / "stimuli").rename(store / "stimuli" if store.mkdir() else store / "stimuli")
    (data / "stimuli").symlink_to(store / "stimuli")
    objects = store / ".git/annex/objects/Xy"
    objects.mkdir(parents=True)
    (objects / "key.png").touch()
    (store / "stimuli/a/annexed.png").symlink_to("../../.git/annex/objects/Xy/key.png")
    assert leading_out(data / "stimuli", ["a/x.png", "a/annexed.png"], data) == {}


def bids_root(root: Path) -> tuple[str, str]:
    sidecar = small_bids.add_recording(root)
    return "concept0/picture0.png", rf"{sidecar.name}, line 2"


def eeg1_root(root: Path) -> tuple[str, str]:
    sidecar = things_eeg1_files.add_subject(root, "01", seed=1)
    things_eeg1_files.add_pictures(root)
    return "carousel/carousel_01b.jpg", rf"{sidecar.name}, line 2"


def eeg2_root(root: Path) -> tuple[str, str]:
    things_eeg2_files.write_image_set(root, 5, 2, 3, np.random.default_rng(3), 8)
    file = images.load_image_set(root)["stim_file"][0]
    return file, r"image_metadata\.npy, entry 1 of train_img_files"


def kilogram_root(root: Path) -> tuple[str, str]:
    names = kilogram_files.write_tree(root, ("01",), ("01",), 8, 1, 2, sfreq=100.0)
    return f"{names[0]}.svg", rf"stimuli/{names[0]}\.svg"


def alljoined_root(root: Path) -> tuple[str, str]:
    alljoined_files.write_tree(root, (1,))
    (root / "image_set/training_images").rename(root / "old")
    (root / "image_set/images").mkdir()
    table = pd.read_parquet(alljoined_files.table_file(root, 1))
    names = sorted({Path(p).name for p in table["image_path"]})
    for name in names:
        (root / "image_set/images" / name).touch()
    used = Path(table["image_path"][(table["session"] == 1) & ~table["dropped"]].iloc[0]).name
    return f"images/{used}", rf"images/{used}"


READERS = {
    "bids": (bids_root, "stimuli", {"subjects": ["sub-01"], "mapping": bids.EventMapping()}),
    "things_eeg1": (eeg1_root, "stimuli", {"subjects": ["sub-01"]}),
    "things_eeg2_raw": (eeg2_root, "image_set", {"subjects": ["sub-01"]}),
    "kilogram": (kilogram_root, "stimuli", {"subjects": ["sub-01"]}),
    "alljoined_flat": (alljoined_root, "image_set", {"subjects": ["sub-01"], "sessions": [1]}),
}


def open_data(form: str, root: Path, **options) -> None:
    if form.startswith("things_eeg2"):
        images.load_image_set(root)  # the recordings hold numbers
    else:
        readers.open_study(form, root, **options)


@pytest.mark.parametrize("form", READERS)
def test_every_reader_refuses_a_picture_behind_a_link_out_of_the_data_set(tmp_path, form):
    write, folder, options = READERS[form]
    root = tmp_path / "root"
    root.mkdir()
    name, where = write(root)
    outside = tmp_path / "private.png"
    (root / folder / name).replace(outside)
    (root / folder / name).symlink_to(outside)
    with pytest.raises(PictureError if form != "bids" else DatasetError, match=where) as refused:
        open_data(form, root, **options)
    assert f"leads to {outside}, out of the data set" in str(refused.value)
    # what the message advises: all pictures elsewhere, and the folder a link to them
    (root / folder / name).unlink()
    outside.replace(root / folder / name)
    (root / folder).replace(tmp_path / "elsewhere")
    (root / folder).symlink_to(tmp_path / "elsewhere")
    open_data(form, root, **options)


@pytest.mark.parametrize("name", ["/etc/hostname", "../../../private.jpg"])
def test_a_name_in_the_metadata_of_things_eeg2_cannot_reach_a_private_picture(tmp_path, name):
    root = tmp_path / "root"
    eeg2_root(root)
    (tmp_path / "private.jpg").touch()
    path = root / "image_set/image_metadata.npy"
    content = np.load(path, allow_pickle=True).item()
    content["test_img_files"][1] = name
    np.save(path, content, allow_pickle=True)
    where = (
        r"image_metadata\.npy, entry 2 of test_img_files.*upwards|1 of 13 .* image_metadata\.npy"
    )
    with pytest.raises(DatasetError, match=where):
        images.load_image_set(root)


@pytest.mark.parametrize("name", ["/etc/hostname", "../private.png", "a/../../private.png"])
def test_a_stimulus_of_events_tsv_cannot_either(tmp_path, name):
    sidecar = small_bids.add_recording(tmp_path / "root")
    (tmp_path / "private.png").touch()
    small_bids.edit(sidecar, 2, "stim_file", name)
    recording = bids.find_recordings(tmp_path / "root").iloc[0]
    with pytest.raises(DatasetError, match=rf"{sidecar.name}, line 4.*leads upwards|absolute"):
        bids.read_events(recording, tmp_path / "root", bids.EventMapping())
    table = pd.DataFrame(
        {"image_id": ["a"], "concept": ["a"], "split": ["train"], "stim_file": [name]}
    )
    with pytest.raises(PictureError, match=re.escape(repr(name))):
        from_files(tmp_path / "root/stimuli", table, 16, tmp_path / "root")


@pytest.mark.parametrize("name", ["/etc/hostname", "../x.eeg", "C:\\x.eeg", ".."])
def test_the_samples_of_a_header_lie_beside_it(tmp_path, name):
    sidecar = small_bids.add_recording(tmp_path)
    header = sidecar.with_name(sidecar.name.replace("_events.tsv", "_eeg.vhdr"))
    text = header.read_text()
    header.write_text(re.sub(r"DataFile=.*", lambda _: f"DataFile={name}", text))
    with pytest.raises(DatasetError, match=rf"{header.name}: DataFile is {re.escape(repr(name))}"):
        readers.open_study("bids", tmp_path, ["sub-01"], mapping=bids.EventMapping())


# ------------------------------------------------------------------ sizes that nothing has


def raw_of(volts: np.ndarray, sfreq: float = 100.0) -> mne.io.BaseRaw:
    return mne.io.RawArray(
        volts, mne.create_info(["Oz", "O1", "O2"], sfreq, "eeg"), verbose="error"
    )


EEG = np.random.default_rng(0).normal(0, 10e-6, (3, 3000))
TRIALS = np.random.default_rng(0).normal(0, 1, (30, 3, 50))


@pytest.mark.parametrize(
    ("factor", "message"),
    [(1e6, "10\\^6 times too large"), (1e-6, "10\\^6 times too small"), (1e12, "large")],
)
def test_eeg_of_another_unit_is_refused_by_one_check(factor, message):
    tables.check_magnitude(raw_of(EEG), "run.edf")
    with pytest.raises(DatasetError, match=f"run.edf: the EEG spans .*{message}"):
        tables.check_magnitude(raw_of(EEG * factor), "run.edf")
    epochs = EpochedSignal(1e-5 * factor * TRIALS, ["Oz", "O1", "O2"], np.arange(50) / 100, "volts")
    with pytest.raises(DatasetError, match=f"run.npy: the EEG spans .*{message}"):
        tables.check_epochs(epochs, "run.npy")


@pytest.mark.parametrize(("factor", "message"), [(1e6, "too large"), (1e-6, "too small")])
def test_whitened_trials_have_a_size_too(factor, message):
    def epochs(data):
        return EpochedSignal(data, ["Oz", "O1", "O2"], np.arange(50) / 100, "whitened")

    tables.check_epochs(epochs(TRIALS), "run.npy")
    with pytest.raises(DatasetError, match=message):
        tables.check_epochs(epochs(TRIALS * factor), "run.npy")
    lost = TRIALS.copy()
    lost[0, 1, 2] = np.nan
    with pytest.raises(ChannelError, match="run.npy: trial 0, channel 'O1'"):
        tables.check_epochs(epochs(lost), "run.npy")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x.__setitem__((1, 1234), 1e30), "'O1' holds 1 samples that are more than 10 V"),
        (lambda x: x.__setitem__((2, slice(5, 9)), -np.inf), "'O2' holds 4 samples .* infinite"),
        (lambda x: np.multiply(x[0], 1e-9, x[0]), "no signal at all in Oz"),
    ],
)
def test_single_samples_and_channels_are_looked_at_too(spoil, message):
    volts = EEG + 0.2  # a direct current of 200 mV is none of it
    tables.check_signal(volts, ["Oz", "O1", "O2"], "run.edf")
    volts = EEG.copy()
    spoil(volts)
    with pytest.raises(ChannelError, match=f"run.edf: .*{message}"):
        tables.check_signal(volts, ["Oz", "O1", "O2"], "run.edf")


@pytest.mark.parametrize("sfreq", [1e-3, 1e9, np.nan, np.inf])
def test_a_rate_that_no_amplifier_has_is_refused(sfreq):
    with pytest.raises(DatasetError, match="run.edf: a sampling rate of"):
        tables.check_rate(sfreq, "run.edf")


# ------------------------------------------------------------------ pickles are measured first


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def laughs(n: int) -> list:
    value = ["ha"]
    for _ in range(n):
        value = [value] * 10
    return value


def copies(n: int) -> bytes:
    """A text of a megabyte that is turned into bytes `n` times."""
    text = b"X" + (10**6).to_bytes(4, "little") + b"a" * 10**6 + b"q\x01"
    once = b"c_codecs\nencode\nh\x01\x85R"
    return b"\x80\x02]q\x00(" + text + once * n + b"e."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(nested(100)), "100 deep|101 deep|65 deep"),
        (pickle.dumps(laughs(8)), "in all, where"),
        (copies(40), "many times its own size"),
        (b"\x80\x02]q\x00h\x00a.", "contains itself"),
        (b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".", "2039 bits|a whole number of"),
        (
            b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"abc.",
            "an item of 1099511627776 bytes",
        ),
        (b"\x80\x04Nr\xff\xff\xff\x7f.", "truncated or damaged"),
    ],
)
def test_a_pickle_that_would_grow_is_refused_before_anything_is_built(
    tmp_path, content, message, monkeypatch
):
    (tmp_path / "d.npy").write_bytes(content)
    monkeypatch.setattr(pickles, "_Unpickler", None)
    with pytest.raises(DatasetError, match=message):
        pickles.load(tmp_path / "d.npy")


@pytest.mark.parametrize("content", [nested(20), laughs(5), [["a"] * 1000] * 100, copies(3)])
def test_what_data_hold_is_read(tmp_path, content):
    written = content if isinstance(content, bytes) else pickle.dumps(content)
    (tmp_path / "d.npy").write_bytes(written)
    assert pickles.load(tmp_path / "d.npy") is not None
    assert issubclass(UnsafePickleError, DatasetError)


# ------------------------------------------------------------------ what headers claim


def npy(shape: tuple, dtype: str = "<f8") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return stream.getvalue() + bytes(24)


def test_arrays_are_as_long_as_their_header_says(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(npy((3,)))
    assert formats.read_npy(path).shape == formats.read_npy(path, mmap=True).shape == (3,)
    for shape in ((4,), (10**15,), (2,)):
        path.write_bytes(npy(shape))
        with pytest.raises(DatasetError, match=r"a\.npy cannot be read as an array .*24|152"):
            formats.read_npy(path)
    path.write_bytes(npy((3,), "|O"))
    with pytest.raises(DatasetError, match="objects"):
        formats.read_npy(path)


def test_a_packed_file_of_arrays_is_not_unpacked(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(9))
    assert formats.read_npz(tmp_path / "a.npz", ["x"])["x"].shape == (9,)
    with pytest.raises(DatasetError, match=r"a\.npz .*y is missing"):
        formats.read_npz(tmp_path / "a.npz", ["y"])
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy((10**6,)) + bytes(8 * 10**6))
    with pytest.raises(DatasetError, match=r"a\.npz .*x\.npy claims 8"):
        formats.read_npz(tmp_path / "a.npz")


def test_a_parquet_table_of_a_billion_rows_in_a_kilobyte_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pd.DataFrame({"x": np.zeros(formats.MOST_CELLS + 1, np.int8)}).to_parquet(path)
    assert path.stat().st_size < 10**6
    with pytest.raises(DatasetError, match=r"a\.parquet .*claims 33554433 rows"):
        formats.read_parquet(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 10**5, "RecursionError|nested"),
        (b'{"a": 1', "JSONDecodeError"),
        (b"[1]", "it holds a list, not a dict"),
        (b"\xff\xfe{}", "UnicodeDecodeError"),
        (json.dumps({"a": 1}).encode()[:-1] + b"9" * 5000 + b"}", "ValueError"),
    ],
)
def test_json_that_fails_is_named(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DatasetError, match=rf"a\.json cannot be read as JSON \(.*({message})"):
        formats.read_json(tmp_path / "a.json")
