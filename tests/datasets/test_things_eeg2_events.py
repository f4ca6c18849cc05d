"""The real event tables of THINGS-EEG2, subject 1: the published counts come out of the readers.

The tables lie beside the checkout and are not part of it; without them these tests skip. The signal
that belongs to them cannot be had here: every recording is a second of noise and then a hole of the
real length, so the readers see files of the real size.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pybv
import pytest
import things_eeg2_files as files

from sgdm_utils.datasets.splits import assert_split_integrity
from sgdm_utils.datasets.things_eeg2 import arrays, runs
from sgdm_utils.datasets.things_eeg2 import runs as things_eeg2_events
from sgdm_utils.datasets.things_eeg2.design import CHANNELS
from sgdm_utils.workflow import paths

SOURCE = paths.project_root().parent / "shared" / "data" / "things_eeg2_events"
pytestmark = pytest.mark.skipif(
    not SOURCE.is_dir(), reason="the real event tables are not beside the checkout (shared/data)"
)
SESSIONS = (1, 2, 3, 4)


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", encoding="utf-8-sig")


def tables_of(session: int, task: str) -> list[Path]:
    return sorted((SOURCE / f"sub-01_ses-{session:02d}").glob(f"*_task-{task}*_events.tsv"))


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    """All 24 tables, one under the other."""
    parts = [
        read(path).assign(session=session, partition=task)
        for session in SESSIONS
        for task in ("test", "train")
        for path in tables_of(session, task)
    ]
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory, published) -> Path:
    """The BIDS conversion and the raw dictionaries of subject 1, with the real events."""
    root = tmp_path_factory.mktemp("subject")
    write_image_names(root, published)
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    real = SOURCE / "sub-01_ses-01"
    channels = (real / "sub-01_ses-01_task-test_channels.tsv").read_bytes()
    names = read(real / "sub-01_ses-01_task-test_channels.tsv")["name"].tolist()
    rng = np.random.default_rng(0)
    for session in SESSIONS:
        folder = root / "sub-01" / f"ses-{session:02d}" / "eeg"
        for task, run in (("test", "test"), ("train", "training")):
            events = []
            start = 0
            for path in tables_of(session, task):
                stem = path.name.removesuffix("_events.tsv")
                table = read(path)
                length = int(table["sample"].iloc[-1]) + 2000
                pybv.write_brainvision(
                    data=1e-5 * rng.standard_normal((63, 1000)), sfreq=1000, ch_names=names,
                    fname_base=f"{stem}_eeg", folder_out=str(folder), unit="µV",
                )  # fmt: skip
                os.truncate(folder / f"{stem}_eeg.eeg", length * 63 * 4)
                (folder / f"{stem}_channels.tsv").write_bytes(channels)
                (folder / path.name).write_bytes(path.read_bytes())
                side = {"TaskName": task, "RecordingDuration": length / 1000, "EEGReference": "n/a"}
                (folder / f"{stem}_eeg.json").write_text(json.dumps(side))
                number = table["tot_img_number"].fillna(files.TARGET).to_numpy(dtype=float)
                events.append((table["sample"].to_numpy() + start, number))
                start += length
            write_raw_hole(root, session, run, names, events, start, rng)
    return root


def write_image_names(root: Path, published: pd.DataFrame) -> None:
    """Empty pictures in the real folders; ten for each training concept, one for each test one."""
    metadata = {}
    for partition, count in (("train", 10), ("test", 1)):
        shown = published[published["partition"] == partition]
        concepts = sorted(shown["category_name"].dropna().unique())
        folders = [c for c in concepts for _ in range(count)]
        names = [f"{c[6:]}_{k + 1:02d}s.jpg" for c in concepts for k in range(count)]
        metadata |= {
            f"{partition}_img_concepts": folders,
            f"{partition}_img_concepts_THINGS": [f"{partition}_{c}" for c in folders],
            f"{partition}_img_files": names,
        }
        for concept, name in zip(folders, names, strict=True):
            folder = root / "image_set" / f"{partition}_images".replace("train_", "training_")
            (folder / concept).mkdir(parents=True, exist_ok=True)
            (folder / concept / name).touch()
    np.save(root / "image_set" / "image_metadata.npy", metadata, allow_pickle=True)


def write_raw_hole(root, session, run, names, events, n_samples, rng) -> None:
    """`raw_eeg_{run}.npy` of the real size; the stimulus row and the first second are written."""
    path = root / "raw_data" / "sub-01" / f"ses-{session:02d}" / f"raw_eeg_{run}.npy"
    content = {
        "raw_eeg_data": files.Hole((64, n_samples)), "ch_names": [*names, "stim"],
        "ch_types": ["eeg"] * 63 + ["stim"], "sfreq": 1000, "highpass": 0.01, "lowpass": 100,
    }  # fmt: skip
    offset = files.dump_sparse(path, content)
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(rng.standard_normal(1000).tobytes())
        for sample, number in events:
            row = np.zeros(sample[-1] - sample[0] + 1)
            row[sample - sample[0]] = number
            stream.seek(offset + 8 * (63 * n_samples + int(sample[0])))
            stream.write(row.tobytes())


@pytest.fixture(scope="module")
def bids(root):
    return runs.tables(root, "things_eeg2_bids", ["sub-01"])


@pytest.fixture(scope="module")
def raw(root):
    return arrays.tables(root, "things_eeg2_raw", ["sub-01"])


def test_the_published_counts_come_out(bids):
    events = bids.events
    assert bids.notes["complete"] is True and bids.notes["differences"] == []
    assert len(bids.recordings) == 24 and len(events) == 4 * (4056 + 16_710)
    assert bids.notes["n_targets_dropped"] == 4 * (24 + 90)
    train, test = (events[events["partition"] == p] for p in ("train", "test"))
    assert train["image_id"].nunique() == 16_540 and train["concept"].nunique() == 1654
    assert test["image_id"].nunique() == test["concept"].nunique() == 200
    per_session = train.groupby(["image_id", "session"]).size()
    assert per_session.min() == 2 and per_session.max() == 4
    assert per_session.groupby("image_id").size().eq(2).all(), "each in exactly two sessions"
    assert train.groupby("session")["concept"].nunique().eq(827).all()
    for _, shown in test.groupby("session"):
        assert shown["image_id"].value_counts().value_counts().to_dict() == {20: 144, 21: 56}
    usable = 16_540 * 4 + 200 * 80
    assert usable == 82_160 <= len(events)
    assert_split_integrity(bids.images.rename(columns={"partition": "split"}))


def test_sessions_divide_the_training_images_in_pairs(bids):
    train = bids.events[bids.events["partition"] == "train"]
    images = {s: set(x) for s, x in train.groupby("session")["image_id"]}
    for first, second in (("01", "02"), ("03", "04")):
        assert not images[first] & images[second]
        assert len(images[first] | images[second]) == 16_540
    assert images["01"] != images["03"], "the second pair divides them anew"


def test_every_event_is_the_one_of_its_line(bids, published):
    shown = published[published["trial_type"] == "image"]
    events = bids.events
    assert events["number"].tolist() == shown["tot_img_number"].astype(int).tolist()
    assert events["sample"].tolist() == shown["sample"].tolist()
    folder = events["stim_file"].str.split("/").str[1]
    assert folder.tolist() == shown["category_name"].tolist()
    train = events[events["partition"] == "train"]  # ten images for each concept, in order
    assert ((train["number"] - 1) // 10 + 1).tolist() == shown["img_category"][
        (shown["partition"] == "train").to_numpy()
    ].astype(int).tolist()


def test_markers_are_ambiguous_and_consistent(published):
    """Why identity is read from the number: 99 markers at most for 16,540 pictures."""
    train = published.query("partition == 'train' and trial_type == 'image'")
    assert train["value"].max() <= 99 and train["tot_img_number"].nunique() == 16_540
    for number, value in zip(train["tot_img_number"].astype(int), train["value"], strict=True):
        assert things_eeg2_events.trigger_codes(number, "train") == (value,)


def test_the_raw_form_of_the_same_events_tells_the_same(bids, raw):
    assert raw.notes["complete"] is True
    columns = ["session", "image_id", "concept", "repetition"]
    order = ["session", "partition"]
    mine, other = (t.events.sort_values(order, kind="stable")[columns] for t in (raw, bids))
    assert (mine.to_numpy() == other.to_numpy()).all()
    pd.testing.assert_frame_equal(raw.images, bids.images)
    assert raw.notes["n_targets_dropped"] == 456


def test_the_channels_are_the_published_ones():
    real = SOURCE / "sub-01_ses-01"
    names = read(real / "sub-01_ses-01_task-test_channels.tsv")["name"].tolist()
    assert names == list(CHANNELS) == files.RECORDING_ORDER
    assert "Fz" not in names and "FCz" in names, (
        "so the reference was Fz, whatever the sidecar says"
    )
    electrodes = read(real / "sub-01_ses-01_space-CapTrak_electrodes.tsv")
    assert set(names) <= set(electrodes["name"])
