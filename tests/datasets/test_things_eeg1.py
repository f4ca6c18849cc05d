"""THINGS-EEG1 in its real form, written small: BrainVision in BIDS, the published columns, backslashes.

Six concepts of two pictures each at ten pictures a second, then two pictures four times over; every
seventh row a target, as in the published tables whose numbers count from 0.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pytest
from things_eeg1_files import HEADER, add_pictures, add_subject

from sgdm_utils.datasets import splits, things_eeg1
from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE
from sgdm_utils.errors import DatasetError


def edit(sidecar: Path, row: int, column: str, value) -> None:
    table = pd.read_csv(sidecar, sep="\t", dtype=object, keep_default_na=False)
    table.loc[row, column] = value
    table.to_csv(sidecar, sep="\t", index=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Two people and all pictures; read only."""
    root = tmp_path_factory.mktemp("eeg1") / "ds003825"
    add_subject(root, "02", seed=2)
    add_subject(root, "03", seed=3)
    add_pictures(root)
    return root


@pytest.fixture
def study(whole, tmp_path) -> Path:
    """A copy to be spoilt."""
    return shutil.copytree(whole, tmp_path / "ds003825")


def sidecar_of(root: Path, subject: str = "02") -> Path:
    return root / f"sub-{subject}" / "eeg" / f"sub-{subject}_task-rsvp_events.tsv"


def read(root: Path, subjects=("sub-02", "sub-03"), **options):
    return things_eeg1.tables(root, "things_eeg1", subjects, **options)


# ------------------------------------------------------------------------- what is good


def test_the_published_columns_are_these():
    assert list(things_eeg1.COLUMNS) == HEADER


def test_a_study_is_read_whole(whole):
    found = read(whole, n_channels=7)
    assert found.layout == "continuous"
    assert found.recordings["path"].tolist() == [
        "sub-02/eeg/sub-02_task-rsvp_eeg.vhdr",
        "sub-03/eeg/sub-03_task-rsvp_eeg.vhdr",
    ]
    one = found.events[found.events["subject"] == "sub-02"]
    # 20 rows, of which rows 6 and 13 are targets
    assert len(one) == 18 and len(found.events) == 36
    assert found.notes["targets_left_out"] == 4
    assert one["sample"].tolist() == [2000 + 100 * i for i in range(20) if i not in (6, 13)]
    np.testing.assert_allclose(one["onset_s"] * 1000, one["sample"])
    assert one["trial"].tolist() == list(range(18))
    first = one.iloc[0]
    assert first["image_id"] == "carousel/carousel_01b" and first["concept"] == "carousel"
    assert first["stim_file"] == "carousel/carousel_01b.jpg"
    assert set(one["session"]) == set(one["run"]) == {""}
    assert not one["stim_file"].str.contains(r"\\").any()


def test_repeated_pictures_are_marked_and_are_no_published_test_set(whole):
    found = read(whole)
    assert set(found.images["partition"]) == {""}
    repeated = found.images[found.images["repeated"]]
    assert repeated["image_id"].tolist() == ["carousel/carousel_11s", "egg/egg_12n"]
    # four showings each and person; the target at row 13 fell on the egg
    assert repeated["n_trials"].tolist() == [8, 6]
    carousel = found.events[
        (found.events["image_id"] == "carousel/carousel_11s")
        & (found.events["subject"] == "sub-02")
    ]
    assert carousel["repetition"].tolist() == [0, 1, 2, 3]
    assert not found.images.loc[~found.images["repeated"], "n_trials"].gt(2).any()
    # why it is none: every one of their concepts is also in the main stream
    main = set(found.images.loc[~found.images["repeated"], "concept"])
    assert set(repeated["concept"]) <= main
    assert "no held-out test" in found.notes["split"]
    rng = np.random.default_rng(0)
    table = splits.assign_split(found.images, rng, "concepts")
    for concept in repeated["concept"]:
        assert table.loc[table["concept"] == concept, "split"].nunique() == 1


def test_the_signal_comes_in_volts_with_places(whole):
    found = read(whole)
    raw = things_eeg1.read_raw(found.recordings.iloc[0], whole)
    expected = np.random.default_rng(2).normal(0, 10e-6, (7, 6000))
    np.testing.assert_allclose(raw.get_data(), expected, rtol=1e-5, atol=1e-11)
    standard = mne.channels.make_standard_montage(STANDARD_MONTAGE).get_positions()["ch_pos"]
    place = {c["ch_name"]: c["loc"][:3] for c in raw.info["chs"]}
    assert place["Oz"][1] < -0.05 < 0.05 < place["Fp1"][1]
    assert np.sign(place["O1"][0]) == np.sign(standard["O1"][0]) == -1
    # as MNE-BIDS reads the table, pictures of 50 s would overlap 500-fold
    assert len(raw.annotations) == 20 and set(raw.annotations.duration) == {0.05}


def test_derivatives_and_a_person_without_the_second_stream_are_told_apart(study):
    copy = study / "derivatives" / "filtered" / "sub-02" / "eeg"
    copy.mkdir(parents=True)
    for file in (study / "sub-02" / "eeg").iterdir():
        shutil.copy(file, copy / file.name.replace("task-rsvp", "task-rsvp_run-02"))
    sidecar = sidecar_of(study, "03")
    table = pd.read_csv(sidecar, sep="\t", dtype=object, keep_default_na=False)
    table[table["blocksequencenumber"] != "-1"].to_csv(sidecar, sep="\t", index=False)
    (study / "participants.tsv").write_text(
        "\ufeffparticipant_id\texclude\nsub-02\t0\nsub-03\t1\n", encoding="utf-8"
    )
    found = read(study)
    assert len(found.recordings) == 2
    assert found.notes["subjects_without_repeated_images"] == "sub-03"
    assert found.notes["excluded_by_the_authors"] == "sub-03"


# -------------------------------------------------------------------------- what is bad


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (4, "duration", "0.05", r"events\.tsv, line 6 .*duration 0\.05, not 50 \(milliseconds\)"),
        (4, "sample", "2900", r"line 6 .*sample 2900 is not 1000 times the onset 2\.4 s"),
        (4, "onset", "soon", r"line 6 .*onset is 'soon', no number"),
        (4, "stim", r"stimuli\carousel_01b.jpg", r"line 6 .*is not stimuli\\<concept>\\<file>"),
        (4, "stimname", "drum_02b.jpg", r"line 6 .*stimname 'drum_02b\.jpg' disagree"),
        (4, "object", "egg", r"line 6 .*does not show the object 'egg'"),
        (4, "istarget", "n/a", r"line 6 .*istarget is nan, no number"),
    ],
)
def test_a_row_that_contradicts_itself_is_named(study, row, column, value, message):
    edit(sidecar_of(study), row, column, value)
    with pytest.raises(DatasetError, match=message):
        read(study)


def test_an_event_twice_is_named(study):
    sidecar = sidecar_of(study)
    table = pd.read_csv(sidecar, sep="\t", dtype=object, keep_default_na=False)
    pd.concat([table, table.iloc[[3]]]).to_csv(sidecar, sep="\t", index=False)
    with pytest.raises(DatasetError, match=r"line 22 .*earlier event at the same sample"):
        read(study)


def test_onsets_beyond_the_recording_are_named(study):
    edit(sidecar_of(study), 4, "onset", "2400")
    edit(sidecar_of(study), 4, "sample", "2400000")
    with pytest.raises(DatasetError, match=r"line 6 .*2400 s lies outside"):
        read(study)


def test_a_missing_picture_says_what_to_fetch(study):
    (study / "stimuli" / "drum" / "drum_02b.jpg").unlink()
    with pytest.raises(
        DatasetError, match=r"line 12: .*drum_02b\.jpg is missing\. .*osf\.io/jum2f"
    ):
        read(study)
    shutil.rmtree(study / "stimuli")
    with pytest.raises(DatasetError, match=r"line 2: .*not part of OpenNeuro ds003825"):
        read(study)


def test_missing_column_file_person_or_folder_is_named(study, tmp_path):
    sidecar = sidecar_of(study)
    text = sidecar.read_text()
    sidecar.write_text(text.replace("stimname", "stimulusname"))
    with pytest.raises(DatasetError, match=r"events\.tsv: no column stimname; there is .*stimulus"):
        read(study)
    sidecar.unlink()
    with pytest.raises(DatasetError, match=r"sub-02_task-rsvp_events\.tsv is missing"):
        read(study)
    with pytest.raises(DatasetError, match=r"no recording of sub-07; there is sub-02, sub-03"):
        read(study, ["sub-07"])
    with pytest.raises(DatasetError, match="is no BIDS data set"):
        read(tmp_path / "elsewhere")


def test_a_subject_or_a_session_that_makes_no_sense_is_named(whole):
    with pytest.raises(DatasetError, match="sub-02 is listed twice"):
        read(whole, ["sub-02", "02"])
    with pytest.raises(DatasetError, match="one session"):
        read(whole, sessions=[1])
    with pytest.raises(DatasetError, match=r"sub-02.*7 EEG channels, 63 are asked for"):
        read(whole, n_channels=63)
    with pytest.raises(DatasetError, match="'things_eeg1', not 'things_eeg2'"):
        things_eeg1.tables(whole, "things_eeg2", ["sub-02"])


def test_a_copy_under_another_name_is_refused(study):
    add_subject(study, "04", seed=2)
    with pytest.raises(DatasetError, match=r"sub-04_.* and .*sub-02_.* hold the same signal"):
        read(study, ["sub-02", "sub-04"])


def test_a_truncated_recording_is_named(study):
    data = study / "sub-02" / "eeg" / "sub-02_task-rsvp_eeg.eeg"
    data.write_bytes(data.read_bytes()[: 7 * 4 * 3000])
    with pytest.raises(DatasetError, match=r"sub-02_task-rsvp_eeg.* holds 3\.0 s, .*truncated"):
        read(study)


def test_a_channel_without_a_place_is_named(study):
    add_subject(study, "05", seed=5, names=["Fp1", "Fz", "Pz", "P3", "Oz", "O1", "E77"])
    with pytest.raises(DatasetError, match=r"sub-05.*'E77' has no position"):
        read(study, ["sub-05"])
