"""Reading BIDS recordings: what is good comes in whole, what is bad is named and refused.

Every data set is written by `small_bids`: 5 channels, 20 s at 100 Hz, ten pictures of five concepts.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pytest
from small_bids import CHANNELS, ONSETS, PICTURES, add_recording, channels_tsv, edit

from sgdm_utils.datasets import bids, bids_recordings, splits
from sgdm_utils.datasets.bids import EventMapping
from sgdm_utils.datasets.splits import SplitError
from sgdm_utils.errors import ChannelError, DatasetError


def read_first(root: Path) -> mne.io.BaseRaw:
    return bids_recordings.read_recording(bids_recordings.find_recordings(root).iloc[0], root)


# ------------------------------------------------------------------------- what is good


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """Two subjects, the first with two runs; read only."""
    root = tmp_path_factory.mktemp("data") / "study"
    add_recording(root, "01", "01", seed=1)
    add_recording(root, "01", "02", seed=2)
    add_recording(root, "02", "01", seed=3)
    return root


def test_a_study_is_read_whole(study):
    recordings, table = bids.read_study(study, EventMapping())
    assert recordings["subject"].tolist() == ["sub-01", "sub-01", "sub-02"]
    assert recordings["run"].tolist() == ["01", "02", "01"]
    assert len(table) == 30
    first = table[(table["subject"] == "sub-01") & (table["run"] == "01")]
    np.testing.assert_allclose(first["onset_s"], ONSETS)
    assert first["sample"].tolist() == np.round(ONSETS * 100).astype(int).tolist()
    assert first["trial"].tolist() == list(range(10))
    assert first["image_id"].tolist() == [p.removesuffix(".png") for p in PICTURES]
    assert first["concept"].tolist() == [f"concept{i % 5}" for i in range(10)]
    assert sorted(table.loc[table["subject"] == "sub-01", "repetition"].unique()) == [0, 1]
    assert set(table.loc[table["subject"] == "sub-02", "repetition"]) == {0}


def test_samples_and_positions_survive(study):
    raw = read_first(study)
    expected = np.random.default_rng(1).normal(0, 10e-6, (5, 2000))
    np.testing.assert_allclose(raw.get_data(), expected, rtol=1e-6, atol=1e-12)
    assert raw.ch_names == CHANNELS and raw.info["sfreq"] == 100
    oz, fz = (raw.info["chs"][CHANNELS.index(n)]["loc"][:3] for n in ("Oz", "Fz"))
    assert oz[1] < -0.05 < 0.05 < fz[1]  # y points to the nose, metres


def test_one_subject_may_be_named_either_way(study):
    for name in ("sub-02", "02"):
        assert bids_recordings.find_recordings(study, subjects=[name])["subject"].tolist() == [
            "sub-02"
        ]


def test_recordings_in_derivatives_are_no_second_recording(tmp_path):
    add_recording(tmp_path)
    before = bids_recordings.find_recordings(tmp_path)
    shutil.copytree(tmp_path / "sub-01", tmp_path / "derivatives" / "cleaned" / "sub-01")
    assert bids_recordings.find_recordings(tmp_path).equals(before)


def test_events_without_pictures_have_their_label(study):
    mapping = EventMapping(stimulus_column="", label_column="trial_type", margin_s=2.0)
    _, table = bids.read_study(study, mapping, subjects=["02"])
    assert set(table["image_id"]) == set(table["concept"]) == {"image"}
    assert set(table["stim_file"]) == {""}
    # 1.0 lies within 2 s of the start; the last, 17.2, does not lie within 2 s of the end
    np.testing.assert_allclose(table["onset_s"], ONSETS[1:])


def test_byte_order_mark_na_and_backslashes_are_understood(tmp_path):
    sidecar = add_recording(tmp_path)
    edit(sidecar, 0, "stim_file", "n/a")  # a target, no picture
    edit(sidecar, 1, "stim_file", PICTURES[1].replace("/", "\\"))
    sidecar.write_bytes(b"\xef\xbb\xbf" + sidecar.read_bytes())
    _, table = bids.read_study(tmp_path, EventMapping())
    assert len(table) == 9
    assert table["image_id"][0] == "concept1/picture1"


def test_positions_come_from_the_standard_by_name_in_any_case(tmp_path):
    names = [n.upper() for n in CHANNELS]
    add_recording(tmp_path, names=names, positions=False)
    raw = read_first(tmp_path)
    assert raw.ch_names == names
    assert np.linalg.norm([c["loc"][:3] for c in raw.info["chs"]], axis=1).min() > 0.05


# -------------------------------------------------------------------------- what is bad


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_channel_that_is_not_a_number_is_named(tmp_path, bad):
    def change(data):
        data[2, 500:520] = bad

    add_recording(tmp_path, change=change)
    with pytest.raises(ChannelError, match=r"run-01_eeg\.vhdr.*'Pz'.*20 samples.*channels\.tsv"):
        read_first(tmp_path)


def test_a_flat_channel_is_named(tmp_path):
    def change(data):
        data[3] = 0

    add_recording(tmp_path, change=change)
    with pytest.raises(ChannelError, match=r"run-01_eeg\.vhdr.*Oz.*channels\.tsv"):
        read_first(tmp_path)


def test_a_channel_marked_as_bad_is_let_through_without_nan(tmp_path):
    def change(data):
        data[2] = np.nan
        data[3] = 0

    table = channels_tsv(add_recording(tmp_path, change=change))
    edit(table, 2, "status", "bad")
    edit(table, 3, "status", "bad")
    raw = read_first(tmp_path)
    assert raw.info["bads"] == ["Pz", "Oz"]
    assert np.isfinite(raw.get_data()).all()


def test_an_event_without_its_picture_is_named(tmp_path):
    edit(add_recording(tmp_path), 4, "stim_file", "concept9/gone.png")
    with pytest.raises(DatasetError, match=r"events\.tsv, line 6.*'concept9/gone\.png'.*stimuli"):
        bids.read_study(tmp_path, EventMapping())


def test_a_picture_outside_the_stimuli_is_refused(tmp_path):
    edit(add_recording(tmp_path), 0, "stim_file", "../dataset_description.json")
    with pytest.raises(DatasetError, match=r"line 2.*dataset_description\.json"):
        bids.read_study(tmp_path, EventMapping())


def test_a_picture_event_that_names_no_picture_is_refused(tmp_path):
    edit(add_recording(tmp_path), 4, "stim_file", "n/a")
    with pytest.raises(DatasetError, match=r"line 6.*stim_file is n/a"):
        bids.read_study(tmp_path, EventMapping(keep={"trial_type": ["image"]}))


def test_a_missing_events_file_is_named(tmp_path):
    sidecar = add_recording(tmp_path)
    sidecar.unlink()
    with pytest.raises(DatasetError, match=r"run-01_events\.tsv is missing"):
        bids.read_study(tmp_path, EventMapping())


def test_a_missing_column_is_named_with_the_closest(tmp_path):
    add_recording(tmp_path)
    with pytest.raises(DatasetError, match=r"no column 'stimfile'.*did you mean 'stim_file'"):
        bids.read_study(tmp_path, EventMapping(stimulus_column="stimfile"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1000", r"line 4.*1000 s lies outside.*milliseconds"),
        ("-1", r"line 4.*outside"),
        ("soon", r"line 4.*'soon' is no number"),
        ("2.8", r"line 4.*same sample"),
    ],
)
def test_a_wrong_onset_is_named(tmp_path, value, message):
    edit(add_recording(tmp_path), 2, "onset", value)
    with pytest.raises(DatasetError, match=message):
        recording = bids_recordings.find_recordings(tmp_path).iloc[0]
        raw = mne.io.RawArray(np.zeros((1, 2000)), mne.create_info(["x"], 100.0, "eeg"))
        bids.read_events(recording, tmp_path, EventMapping(), raw)


def test_a_channel_renamed_in_one_of_two_files_is_named(tmp_path):
    edit(channels_tsv(add_recording(tmp_path)), 3, "name", "O1")
    with pytest.raises(DatasetError, match=r"channels\.tsv lists O1 .*lacks Oz .*renamed"):
        read_first(tmp_path)


def test_a_channel_name_that_occurs_twice_is_named(tmp_path):
    edit(channels_tsv(add_recording(tmp_path)), 3, "name", "pz")
    with pytest.raises(DatasetError, match=r"channels\.tsv: channel name 'Pz' occurs more"):
        read_first(tmp_path)


def test_a_channel_renamed_in_one_run_is_named(tmp_path):
    add_recording(tmp_path, run="01", seed=1)
    add_recording(tmp_path, run="02", seed=2, names=["Fz", "Cz", "Pz", "O1", "POz"])
    with pytest.raises(DatasetError, match=r"run-02_eeg.*Oz missing, O1 new"):
        bids.read_study(tmp_path, EventMapping())


def test_an_electrode_without_a_place_is_named(tmp_path):
    add_recording(tmp_path, names=["Fz", "Cz", "Pz", "Oz", "E77"], positions=False)
    with pytest.raises(DatasetError, match=r"'E77' has no position.*electrodes\.tsv"):
        read_first(tmp_path)


def test_different_sampling_rates_are_refused(tmp_path):
    add_recording(tmp_path, run="01", seed=1)
    add_recording(tmp_path, run="02", seed=2, sfreq=128.0)
    with pytest.raises(DatasetError, match=r"run-02_eeg\.vhdr was sampled at 128 Hz.*at 100 Hz"):
        bids.read_study(tmp_path, EventMapping())


def test_a_copied_recording_is_refused(tmp_path):
    add_recording(tmp_path, "01", seed=1)
    add_recording(tmp_path, "02", seed=1)  # other header, other name, same samples
    with pytest.raises(DatasetError, match=r"sub-02_.* and .*sub-01_.* hold the same signal"):
        bids.read_study(tmp_path, EventMapping())


def test_a_truncated_recording_is_named(tmp_path):
    data = add_recording(tmp_path).with_name("sub-01_task-see_run-01_eeg.eeg")
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(DatasetError, match=r"run-01_eeg.* holds 15\.0 s, .*truncated"):
        read_first(tmp_path)
    data.unlink()
    with pytest.raises(DatasetError, match=r"run-01_eeg\.vhdr cannot be read without .*_eeg\.eeg"):
        read_first(tmp_path)


def test_a_wrong_folder_task_or_subject_is_named(study, tmp_path):
    with pytest.raises(DatasetError, match="is no BIDS data set"):
        bids_recordings.find_recordings(tmp_path)
    with pytest.raises(DatasetError, match="no task 'hear'; there is see"):
        bids_recordings.find_recordings(study, task="hear")
    with pytest.raises(DatasetError, match="no recording of sub-07; there is sub-01, sub-02"):
        bids_recordings.find_recordings(study, subjects=["sub-01", "sub-07"])


def test_a_mapping_that_says_nothing_is_refused():
    with pytest.raises(DatasetError, match="neither a stimulus column nor a label column"):
        EventMapping(stimulus_column="", label_column="")


def test_two_files_under_one_image_id_are_refused(tmp_path):
    sidecar = add_recording(tmp_path)
    shutil.copy(tmp_path / "stimuli" / PICTURES[0], tmp_path / "stimuli/concept0/picture0.jpg")
    edit(sidecar, 1, "stim_file", "concept0/picture0.jpg")
    _, table = bids.read_study(tmp_path, EventMapping())
    with pytest.raises(DatasetError, match=r"'concept0/picture0' has several files"):
        bids.image_table(table)


# ------------------------------------------------------------------------------- splits


def images(n_concepts: int = 20, per_concept: int = 3) -> pd.DataFrame:
    n = n_concepts * per_concept
    return pd.DataFrame(
        {
            "image_id": [f"{i:03d}" for i in range(n)],
            "concept": [f"c{i % n_concepts}" for i in range(n)],
        }
    )


def test_concepts_are_left_out():
    table = splits.assign_split(images(), np.random.default_rng(0))
    concepts = table.groupby("split")["concept"].unique().map(set)
    assert [len(concepts[s]) for s in ("train", "val", "test")] == [14, 2, 4]
    assert not concepts["train"] & concepts["test"] and not concepts["val"] & concepts["test"]
    again = splits.assign_split(images(), np.random.default_rng(0))
    pd.testing.assert_frame_equal(table, again)
    other = splits.assign_split(images(), np.random.default_rng(1))
    assert (other["split"] != table["split"]).any()


def test_too_few_concepts_are_evaluated_by_runs():
    few = images(n_concepts=2)
    assert set(splits.assign_split(few, np.random.default_rng(0))["split"]) == {"train"}
    with pytest.raises(SplitError, match="2 concepts are too few"):
        splits.assign_split(few, np.random.default_rng(0), scheme="concepts")


def leak_concept(table):
    row = table.index[table["split"] == "train"][0]
    table.loc[row, "concept"] = table.loc[table["split"] == "test", "concept"].iloc[0]


def leak_val(table):
    row = table.index[table["split"] == "val"][0]
    table.loc[row, "concept"] = table.loc[table["split"] == "test", "concept"].iloc[0]


def leak_image(table):
    test = table.index[table["split"] == "test"][0]
    train = table.index[table["split"] == "train"][0]
    table.loc[train, ["image_id", "concept"]] = table.loc[test, ["image_id", "concept"]].to_numpy()


def lose_concept(table):
    table.loc[7, "concept"] = None


def lose_split(table):
    table.loc[7, "split"] = np.nan


def invent_split(table):
    table.loc[7, "split"] = "holdout"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (leak_concept, r"test concepts are also trained on: 'c\d+' is in test and in train"),
        (leak_val, r"is in test and in val"),
        (leak_image, r"images have more than one split: '\d+' is in test and train"),
        (lose_concept, r"1 rows have no concept \(first: row 7\)"),
        (lose_split, r"1 rows have no split \(first: row 7\)"),
        (invent_split, r"unknown split 'holdout'"),
    ],
)
def test_a_planted_leak_is_refused(tmp_path, spoil, message):
    table = splits.assign_split(images(), np.random.default_rng(0))
    splits.assert_split_integrity(table)
    spoil(table)
    with pytest.raises(SplitError, match=message):
        splits.assert_split_integrity(table)
    with pytest.raises(SplitError, match=message):
        splits.write_split(tmp_path / "split.tsv", table)
    assert not list(tmp_path.iterdir()), "nothing may be left of a refused split"


def test_a_frozen_split_comes_back_and_is_not_replaced(tmp_path):
    path = tmp_path / "split.tsv"
    table = splits.assign_split(images(), np.random.default_rng(0)).assign(shown=True)
    splits.write_split(path, table)
    read = splits.read_split(path)
    pd.testing.assert_frame_equal(read, table, check_dtype=False)
    assert read["image_id"][0] == "000"  # not the number 0
    splits.write_split(path, table)  # the same one may be written again
    other = splits.assign_split(images(), np.random.default_rng(1)).assign(shown=True)
    with pytest.raises(SplitError, match="holds another split"):
        splits.write_split(path, other)
    pd.testing.assert_frame_equal(splits.read_split(path), read)
    splits.write_split(path, other, overwrite=True)
    assert (splits.read_split(path)["split"] == other["split"]).all()


def test_an_edited_split_is_refused(tmp_path):
    path = splits.write_split(
        tmp_path / "split.tsv", splits.assign_split(images(), np.random.default_rng(0))
    )
    text = path.read_text()
    path.write_text(text.replace("\ttest\n", "\ttrain\n", 1))
    with pytest.raises(SplitError, match=r"split\.tsv was changed after it was frozen"):
        splits.read_split(path)
    path.write_text(text)
    splits.read_split(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(SplitError, match=r"split\.json is missing: run notebook 00_data"):
        splits.read_split(path)
