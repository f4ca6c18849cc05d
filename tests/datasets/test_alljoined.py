"""Alljoined-1.6M in its real form, written small: EDF blocks, parquet tables, pickled flat arrays.

Two of the four test blocks and two of the fifteen training blocks of each session, ten pictures in
a block; the headset's technical channels, one of them at another rate, its spelling of AFz, its
file names, markers as the recorder writes them.
"""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pytest
from alljoined_files import (
    ELECTRODES,
    SECONDS,
    TEST_BLOCKS,
    TRAINING_BLOCKS,
    block_file,
    block_markers,
    experiment,
    picture_of,
    samples_of,
    table_file,
    write_edf,
    write_flat,
    write_tree,
)

from sgdm_utils.datasets import readers, tables
from sgdm_utils.datasets.alljoined import forms
from sgdm_utils.datasets.alljoined import order as alljoined_order
from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE
from sgdm_utils.datasets.pickles import UnsafePickleError
from sgdm_utils.errors import ChannelError, DatasetError


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Two people, both forms, and the image set; read only."""
    root = tmp_path_factory.mktemp("alljoined") / "Alljoined-1.6M"
    write_tree(root)
    return root


@pytest.fixture
def study(whole, tmp_path) -> Path:
    """A copy to be spoilt."""
    return shutil.copytree(whole, tmp_path / "copy")


def read(root: Path, form: str = "alljoined_edf", subjects=("sub-01", "sub-02"), **options):
    return forms.tables(root, form, subjects, **{"sessions": [1, 2]} | options)


def refuses(message: str, root: Path, form: str = "alljoined_edf", subjects=("sub-01",), **options):
    with pytest.raises(DatasetError, match=message):
        read(root, form, subjects, **options)


# ------------------------------------------------------------------------- what is good: EDF


def test_blocks_are_paired_with_the_table(whole):
    found = read(whole, n_channels=32)
    assert found.layout == "continuous" and len(found.recordings) == 2 * 2 * 4
    assert list(found.events) == list(tables.EVENT_COLUMNS)
    first = found.recordings.iloc[0]
    assert first["path"].endswith(
        "block_01/Subject 1, Session 1, Block 1 Recording_FLEX2_213075.md.edf"
    )
    assert found.recordings["run"].unique().tolist() == ["01", "02", "05", "06"]
    assert found.recordings["session"].unique().tolist() == ["01", "02"]
    table = experiment(1)
    table = table[(table["partition"] != "oddball") & ~table["dropped"]]
    one = found.events[found.events["subject"] == "sub-01"]
    assert len(one) == len(table) == 2 * 4 * 9
    pictures = forms.things_eeg2_images.load_image_set(whole).set_index(["partition", "number"])
    for (_, event), (_, row) in zip(one.iterrows(), table.iterrows(), strict=True):
        index = picture_of(row["image_path"])
        # training images count from 0, test images from 16540; the image set counts both from 1
        key = ("train", index + 1) if index < 16540 else ("test", index - 16539)
        assert event["image_id"] == pictures.loc[key, "image_id"]
        assert event["concept"] == pictures.loc[key, "concept"]
        assert event["stim_file"] == pictures.loc[key, "stim_file"]
        assert (event["session"], event["run"]) == (f"0{row['session']}", f"0{row['block_id']}")
        assert event["onset_s"] == pytest.approx(1 + 0.5 * row["sequence_image_id"])
        assert event["sample"] == 256 + 128 * row["sequence_image_id"]
        assert event["trial"] == row["sequence_image_id"]
    assert found.notes["markers_of_dropped_rows"] == 2 * 2 * 4
    assert found.notes["rows_without_marker"] == 0
    assert found.notes["transductive"] is False


def test_partitions_and_repetitions_are_published_ones(whole):
    found = read(whole)
    assert set(found.images["partition"]) == {"train", "test"}
    test = found.images[found.images["partition"] == "test"]
    assert test["stim_file"].str.startswith("test_images/").all()
    assert not set(test["concept"]) & set(
        found.images.loc[found.images["partition"] == "train", "concept"]
    )
    for (_, _), group in found.events.groupby(["subject", "image_id"]):
        assert group["repetition"].tolist() == list(range(len(group)))


def test_the_signal_comes_in_volts_with_places_and_without_technical_channels(whole):
    found = read(whole)
    raw = forms.read_raw(found.recordings.iloc[1], whole)
    assert raw.ch_names == ["AFz" if n == "Afz" else n for n in ELECTRODES]
    assert raw.info["sfreq"] == 256 and set(raw.get_channel_types()) == {"eeg"}
    step = 8400e-6 / 65535  # one bit
    np.testing.assert_allclose(raw.get_data(), samples_of(1, 1, 2) * 1e-6, atol=step)
    place = {c["ch_name"]: c["loc"][:3] for c in raw.info["chs"]}
    reference = mne.create_info(["AFz", "O1"], 256.0, "eeg").set_montage(STANDARD_MONTAGE)
    for channel in reference["chs"]:
        np.testing.assert_allclose(place[channel["ch_name"]], channel["loc"][:3], atol=1e-6)
    stimuli = [t for t in raw.annotations.description if t.startswith("stim")]
    assert stimuli == [t for _, t in block_markers(experiment(1), 1, 2) if t.startswith("stim")]


def test_without_dropped_rows_that_lack_a_marker_are_counted(study):
    table_file(study, 1).unlink()
    experiment(1, dropped=False).to_parquet(table_file(study, 1, "stim_order.parquet"))
    markers = block_markers(experiment(1), 1, 5)
    write_edf(block_file(study, 1, 1, 5), samples_of(1, 1, 5), markers[:3] + markers[5:])
    found = read(study, subjects=["sub-01"])
    assert found.notes["rows_without_marker"] == 2
    run = found.events.query("session == '01' and run == '05'")
    table = experiment(1).query("session == 1 and block_id == 5 and partition != 'oddball'")
    left = [picture_of(p) for i, p in enumerate(table["image_path"]) if i not in (3, 4)]
    numbers = forms.things_eeg2_images.load_image_set(study).query("partition == 'train'")
    assert run["image_id"].tolist() == numbers["image_id"].iloc[left].tolist()
    np.testing.assert_allclose(run["onset_s"], [1 + 0.5 * i for i in range(10) if i not in (3, 4)])


def test_a_block_that_was_never_recorded_may_be_missing(study):
    shutil.rmtree(block_file(study, 1, 2, 6).parent)
    table = experiment(1)
    gone = (table["session"] == 2) & (table["block_id"] == 6)
    refuses("10 rows of session 2, block 6, and no such folder", study)
    table.assign(dropped=table["dropped"] | gone).to_parquet(table_file(study, 1))
    assert len(read(study, subjects=["sub-01"]).events) == 7 * 9


def test_without_block_id_blocks_are_counted_through_the_partition(study, whole):
    table = experiment(1).drop(columns="block_id")
    table.to_parquet(table_file(study, 1))
    pd.testing.assert_frame_equal(
        read(study, subjects=["sub-01"]).events, read(whole, subjects=["sub-01"]).events
    )
    shutil.rmtree(block_file(study, 1, 2, 6).parent)
    refuses(r"no marker for row \d+ of .*experiment_metadata", study)


def test_markers_that_name_no_picture_are_matched_by_count(study):
    table = experiment(1)
    for block in (*TEST_BLOCKS, *TRAINING_BLOCKS):
        markers = [(t, m.split(",")[0]) for t, m in block_markers(table, 1, block)]
        write_edf(block_file(study, 1, 1, block), samples_of(1, 1, block), markers)
    refuses(r"10 stimulus markers, .* has 9 pictures", study, sessions=[1])
    table.assign(dropped=table["partition"] == "oddball").to_parquet(table_file(study, 1))
    found = read(study, subjects=["sub-01"], sessions=[1])
    assert len(found.events) == 40


def test_the_authors_own_pictures_or_none_do_as_well(study):
    shutil.rmtree(study / "image_set")
    found = read(study, subjects=["sub-01"])
    assert set(found.images["stim_file"]) == {""} and "stimuli.zip" in found.notes["pictures"]
    concepts = found.images.set_index("image_id")["concept"]
    for image_id, concept in concepts.items():
        number = int(image_id)
        name = (
            f"test concept {number - 16539}"
            if number >= 16540
            else f"training concept {number // 10 + 1}"
        )
        assert concept == name
    for image_id in concepts.index:
        file = study / "image_set" / "images" / f"{image_id}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    found = read(study, subjects=["sub-01"])
    assert set(found.images["stim_file"]) == {f"images/{i}.jpg" for i in concepts.index}
    file.unlink()
    refuses(rf"{file.name} is missing \(1 pictures are\)", study)


# ------------------------------------------------------------------------- what is good: flat


def test_flat_trials_are_the_rows_that_were_kept(whole):
    found = read(whole, "alljoined_flat", n_channels=32)
    assert found.layout == "epochs"
    assert list(found.events) == [*tables.EVENT_COLUMNS, "recorded_session"]
    assert found.recordings["run"].tolist() == ["training", "test"] * 2
    assert (
        found.notes["transductive"] is False and "training epochs only" in found.notes["whitening"]
    )
    edf = read(whole)
    for run, partition in (("training", "train"), ("test", "test")):
        one = found.events.query(f"subject == 'sub-01' and run == '{run}'")
        assert one["sample"].tolist() == list(range(2 * 2 * 9)) and one["onset_s"].isna().all()
        ids = found.images.loc[found.images["partition"] == partition, "image_id"]
        same = edf.events[(edf.events["subject"] == "sub-01") & edf.events["image_id"].isin(ids)]
        assert one["image_id"].tolist() == same["image_id"].tolist()
        assert [f"0{s}" for s in one["recorded_session"]] == same["session"].tolist()


def test_flat_signal_is_that_of_the_file(whole):
    found = read(whole, "alljoined_flat")
    signal = forms.read_epochs(found.recordings.iloc[0], whole)
    assert signal.data.shape == (36, 32, 250)
    np.testing.assert_array_equal(signal.data, np.random.default_rng(1).normal(size=(36, 32, 250)))
    assert signal.unit == "whitened" and signal.sfreq == pytest.approx(250)
    assert (signal.times[0], signal.times[-1]) == (0, 0.996)
    assert signal.ch_names[2] == "AFz"


def test_a_session_of_flat_trials_keeps_its_place_in_the_file(whole):
    found = read(whole, "alljoined_flat", sessions=[2])
    one = found.events.query("subject == 'sub-01' and run == 'training'")
    assert one["sample"].tolist() == list(range(18, 36)) and set(one["recorded_session"]) == {2}


def test_a_table_out_of_session_order_is_put_in_order(study, whole):
    table = experiment(1)
    late = table["session"] == 2
    pd.concat([table[late], table[~late]]).to_parquet(table_file(study, 1))
    pd.testing.assert_frame_equal(
        read(study, "alljoined_flat", ["sub-01"]).events,
        read(whole, "alljoined_flat", ["sub-01"]).events,
    )


def test_unwhitened_files_are_volts(study):
    write_flat(study, 1, experiment(1), configs={"mvnn_dim": None})
    signal = forms.read_epochs(
        {"path": "preprocessed_eeg/sub-01/preprocessed_eeg_test_flat.npy"}, study
    )
    assert signal.unit == "volts"


# ------------------------------------------------------------------------- sub-06


def long_table(session: int = 4) -> pd.DataFrame:
    """A published order as long as the real one, of which nothing before the end was kept."""
    n = 73_800
    pictures = np.arange(n) % 20
    return pd.DataFrame(
        {
            "session": session,
            "image_path": [f"/srv/images/{p:05d}.jpg" for p in pictures],
            "partition": "stim_train",
            "block_id": np.where(np.arange(n) < n - 60, 5, 6),
        }
    )


def moved(table: pd.DataFrame) -> pd.DataFrame:
    """The correction, written out another way: by a sort key between the rows 73759 and 73760."""
    key = np.arange(len(table), dtype=float)
    key[73762] = 73759.5
    return table.iloc[np.argsort(key)]


def test_the_misplaced_row_of_sub_06_is_moved_as_described():
    table = long_table()
    order = table.assign(row=np.arange(len(table)))
    corrected = alljoined_order.correct_sub06(order)
    assert corrected["row"].tolist() == moved(table).index.tolist()
    assert corrected["row"].iloc[73758:73765].tolist() == [
        73758,
        73759,
        73762,
        73760,
        73761,
        73763,
        73764,
    ]


def test_sub_06_is_moved_when_the_markers_say_so(study):
    table = long_table()
    shown = moved(table).iloc[-60:]
    for block, rows in ((5, table.iloc[:3]), (6, shown)):
        markers = [
            (1 + 0.1 * i, f"stim_train,{picture_of(p)},-1,{i}")
            for i, p in enumerate(rows["image_path"])
        ]
        write_edf(block_file(study, 6, 4, block), samples_of(6, 4, block), markers)
    table.to_parquet(table_file(study, 6, "stim_order.parquet"))
    found = read(study, subjects=["sub-06"], sessions=[4])
    assert "agree" in found.notes["sub-06"]
    numbers = forms.things_eeg2_images.load_image_set(study).query("partition == 'train'")
    ids = found.events.query("run == '06'")["image_id"].tolist()
    assert ids == numbers["image_id"].iloc[[picture_of(p) for p in shown["image_path"]]].tolist()
    # as the table is listed, they do not fit, and nobody else's table is moved
    shutil.move(study / "raw_eeg/sub-06", study / "raw_eeg/sub-07")
    shutil.move(study / "preprocessed_eeg/sub-06", study / "preprocessed_eeg/sub-07")
    refuses(r"marker \d+ of 60 .*does not list after row", study, subjects=["sub-07"], sessions=[4])


def flat_06(study: Path, table: pd.DataFrame, **options):
    test = table.iloc[:4].assign(
        partition="stim_test", image_path=[f"/srv/{16540 + i}.jpg" for i in range(4)]
    )
    table = pd.concat([table, test.set_axis([80_000 + i for i in range(4)])])
    position = np.arange(len(table))
    table = table.assign(dropped=position < len(table) - 64)
    table.to_parquet(table_file(study, 6))
    write_flat(study, 6, table)
    return read(study, "alljoined_flat", ["sub-06"], sessions=[4], **options)


def test_sub_06_in_the_flat_form_needs_evidence_or_a_decision(study):
    found = flat_06(study, moved(long_table()))
    assert "corrected" in found.notes["sub-06"]
    right = found.events.query("run == 'training'")["image_id"].tolist()
    plain = moved(long_table()).reset_index(drop=True)  # row numbers lost: it could be either
    with pytest.raises(
        DatasetError, match=r"row 73762 belongs two places earlier .*sub06='as_listed'"
    ):
        flat_06(study, plain)
    found = flat_06(study, plain, sub06="as_listed")
    assert found.events.query("run == 'training'")["image_id"].tolist() == right
    assert "caller's decision" in found.notes["sub-06"]
    found = flat_06(study, long_table(), sub06="corrected")
    assert found.events.query("run == 'training'")["image_id"].tolist() == right
    found = flat_06(study, long_table(), sub06="as_listed")
    assert found.events.query("run == 'training'")["image_id"].tolist() != right


# -------------------------------------------------------------------------- what is bad: EDF


def rewrite(root: Path, markers=None, **options) -> None:
    markers = block_markers(experiment(1), 1, 1) if markers is None else markers
    write_edf(block_file(root, 1, 1, 1), samples_of(1, 1, 1), markers, **options)


def renamed(old: str, new: str) -> list[str]:
    return [new if n == old else n for n in ELECTRODES]


def test_a_truncated_file_is_named(study):
    file = block_file(study, 1, 1, 1)
    file.write_bytes(file.read_bytes()[:-5000])
    refuses(r"Block 1 Recording.* was truncated: \d+ bytes, its header", study)
    file.write_bytes(b"<html>not found</html>" * 40)
    refuses("no header of an EDF file", study)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("O1", "X1", r"Block 1 Rec.*'X1' is neither an electrode .* nor a technical channel"),
        ("O1", "oz", r"Block 1 Rec.*two channels 'Oz'"),
        ("O1", "C5", r"has other EEG channels than .*Block 1 Rec.*C5 missing, O1 new"),
    ],
)
def test_a_renamed_channel_is_named(study, old, new, message):
    rewrite(study, names=renamed(old, new))
    refuses(message, study)


def test_another_number_of_channels_or_another_rate_is_named(study):
    refuses("32 EEG channels, 63 are asked for", study, n_channels=63)
    data = samples_of(1, 1, 1)[:, : SECONDS * 128]
    write_edf(block_file(study, 1, 1, 1), data, block_markers(experiment(1), 1, 1), rate=128)
    refuses(r"sampled at 128 Hz, Alljoined-1\.6M at 256 Hz", study)


def test_microvolts_taken_for_volts_and_flat_channels_are_named(study):
    rewrite(study, unit="")
    row = read(study, subjects=["sub-01"]).recordings.iloc[0]
    with pytest.raises(DatasetError, match=r"10\^6 times too large.*physical dimension"):
        readers.read_raw("alljoined_edf", row, study)
    data = samples_of(1, 1, 1)
    data[4] = 4200
    write_edf(block_file(study, 1, 1, 1), data, block_markers(experiment(1), 1, 1))
    with pytest.raises(ChannelError, match="no signal at all in F5"):
        forms.read_raw(row, study)


def test_channels_in_another_order_are_stacked_by_name_or_refused(study):
    data = samples_of(1, 1, 2)
    markers = block_markers(experiment(1), 1, 2)
    write_edf(block_file(study, 1, 1, 2), data[::-1], markers, names=ELECTRODES[::-1])
    recordings = read(study, subjects=["sub-01"]).recordings
    first, second = (
        readers.read_raw("alljoined_edf", row, study) for row in recordings.to_dict("records")[:2]
    )
    assert first.ch_names == second.ch_names
    np.testing.assert_allclose(second.get_data(), data * 1e-6, atol=8400e-6 / 65535)
    names = ["AFz" if n == "Afz" else n for n in ELECTRODES]
    for subject, ch_names in ((1, names), (2, names[::-1])):
        write_flat(study, subject, experiment(subject), ch_names=ch_names)
    message = r"sub-02.* channels in another order than .*sub-01"
    refuses(message, study, "alljoined_flat", ("sub-01", "sub-02"))


def exchange(markers):
    picture = [m.split(",")[1] for _, m in markers]
    i = next(i for i in range(8) if picture[i] != picture[i + 1])
    (t, m), (u, n) = markers[i : i + 2]
    return [*markers[:i], (t, n), (u, m), *markers[i + 2 :]]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m[:3] + m[4:], r"Block 1 Rec.*no marker for row 3 of .*not dropped"),
        (exchange, r"Block 1 Rec.*(does not list after row|no marker for row)"),
        (lambda m: [*m, (6.7, "stim_test,16543,-1,60"), (6.8, "stim_test,16543,-1,61")],
         r"Block 1 Rec.*marker 1[01] of 12 \(at 6\.[78]00 s\) shows picture 16543"),
        (lambda m: [(m[i - i % 2][0], text) for i, (_, text) in enumerate(m)],
         r"Block 1 Rec.*10 of 10 markers share their sample .*Leave the session out"),
        (lambda m: [(t, text.replace("stim_test", "stim_train")) for t, text in m],
         r"marker 0 is of the partition train, .* under test"),
        (lambda m: m[-1:], r"no annotation that matches \.\*stim"),
    ],
)  # fmt: skip
def test_markers_that_do_not_fit_are_named(study, spoil, message):
    rewrite(study, spoil(block_markers(experiment(1), 1, 1)))
    refuses(message, study)


def test_a_marker_written_twice_counts_once(study, whole):
    markers = block_markers(experiment(1), 1, 1)
    rewrite(study, [*markers, markers[3]])
    pd.testing.assert_frame_equal(
        read(study, subjects=["sub-01"]).events, read(whole, subjects=["sub-01"]).events
    )


@pytest.mark.parametrize("late", ["next", "foreign", "oddball"])
def test_markers_at_one_instant_are_left_out_and_counted(study, whole, late):
    """The others keep their pictures; which one was on the screen at that instant nobody can say."""
    markers = block_markers(experiment(1), 1, 1)
    t = markers[3][0]
    extra = {"foreign": "stim_test,16543,-1,50", "oddball": "oddball,3,-1,50"}
    if late == "next":  # two rows of the table, written at once
        markers[4] = (t, markers[4][1])
    else:
        markers.append((t, extra[late]))
    rewrite(study, markers)
    found, before = (read(r, subjects=["sub-01"]) for r in (study, whole))
    old = before.events
    first = (old["session"] == "01") & (old["run"] == "01")
    gone = first & old["onset_s"].isin([t, t + 0.5] if late == "next" else [t])
    assert gone.sum() == (2 if late == "next" else 1)
    columns = ["session", "run", "onset_s", "sample", "image_id"]
    left = old.loc[~gone, columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(found.events[columns].reset_index(drop=True), left)
    assert found.notes["markers_at_one_instant"] == (1 if late == "oddball" else 2)
    assert before.notes["markers_at_one_instant"] == 0


def test_another_persons_or_blocks_recording_is_refused(study):
    one, two = block_file(study, 1, 1, 1), block_file(study, 1, 1, 2)
    shutil.copy(two, one)
    refuses(r"block_01.*(does not list|no marker for row)", study)


def test_a_copy_under_another_name_is_refused(study):
    experiment(1).assign(subject=3).to_parquet(table_file(study, 3))
    shutil.copytree(study / "raw_eeg" / "sub-01", study / "raw_eeg" / "sub-03")
    refuses(r"sub-03.* and .*sub-01.* hold the same signal", study, subjects=["sub-01", "sub-03"])


def test_missing_parts_are_named(study):
    with pytest.raises(DatasetError, match="no rows of session 3; leave it out"):
        forms.tables(study, "alljoined_edf", ["sub-01"])  # all four by default
    refuses(r"sub-05: none of experiment_metadata\.parquet", study, subjects=["sub-05"])
    refuses("sub-01 is listed twice", study, subjects=["sub-01", "1"])
    refuses("subject 'sub-anna': Alljoined-1.6M numbers them", study, subjects=["sub-anna"])
    refuses("alljoined_edf, alljoined_flat, not 'alljoined'", study, "alljoined")
    block = block_file(study, 1, 1, 1)
    shutil.copy(block, block.with_name("second.edf"))
    refuses("block_01: 2 EDF files", study)
    shutil.rmtree(block.parent)
    refuses(r"10 rows of session 1, block 1, and no such folder", study)
    shutil.rmtree(block.parents[1])
    refuses("session_01 is missing: fetch session 1", study)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda t: t.drop(columns="partition"),
            r"metadata\.parquet: no column partition; there is",
        ),
        (lambda t: t.assign(subject=7), "table of another subject"),
        (lambda t: t.assign(partition="train"), "unknown partition 'train'"),
        (
            lambda t: t.assign(image_path="16541.jpg/"),
            "row 0: image_path '16541.jpg/' does not end",
        ),
        (
            lambda t: t.assign(block_id=t["block_id"] + 7),
            r"no row for session 1, block (1|2|5|6)\b",
        ),
    ],
)
def test_a_wrong_table_is_named(study, spoil, message):
    spoil(experiment(1)).to_parquet(table_file(study, 1))
    refuses(message, study)


def test_a_file_that_is_no_parquet_is_named(study):
    table_file(study, 1).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refuses(r"metadata\.parquet cannot be read as a parquet table", study)


def test_pictures_of_another_set_are_refused(study):
    table = experiment(1)
    index = table["image_path"].map(picture_of)
    names = np.where(index < 10, "aardvark", np.where(index < 20, "abacus", "aircraft_carrier"))
    table.assign(category_name=np.where(index < 16541, names, None)).to_parquet(
        table_file(study, 1)
    )
    assert "not compared" not in str(read(study, subjects=["sub-01"]).notes)
    # one picture too many at the front shifts all numbers
    (study / "image_set/training_images/00001_aardvark/aardvark_00a.jpg").touch()
    refuses(r"picture 00010 is 'abacus' there and 'aardvark' in image_set", study)


def test_a_picture_that_the_image_set_lacks_is_named(study):
    shutil.rmtree(study / "image_set/training_images/00002_abacus")
    refuses(r"train event \d+ shows training_images number 1[1-9]", study)


def test_a_picture_in_the_wrong_partition_is_named(study):
    table = experiment(1)
    table["image_path"] = table["image_path"].str.replace("/165", "/105")
    table.to_parquet(table_file(study, 1))
    refuses(r"picture 105\d\d is listed as test", study, "alljoined_flat")


# -------------------------------------------------------------------------- what is bad: flat


def test_flat_trials_that_do_not_fit_the_table_are_counted(study):
    table = experiment(1)
    table.loc[0, "dropped"] = True
    table.to_parquet(table_file(study, 1))
    refuses(r"test_flat\.npy holds 36 trials, .* has 35 pictures", study, "alljoined_flat")
    table_file(study, 1).unlink()
    experiment(1, dropped=False).to_parquet(table_file(study, 1, "stim_order.parquet"))
    refuses(r"has 40 pictures .*fetch experiment_metadata\.parquet", study, "alljoined_flat")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": np.arange(300) / 250}, r"\(36, 32, 250\), with 32 channel names and 300 times"),
        ({"ch_names": ELECTRODES[:31]}, r"with 31 channel names"),
        ({"ch_names": renamed("Pz", "EEG 17")}, r"channel 'EEG 17' is no electrode"),
    ],
)
def test_flat_shapes_that_contradict_each_other_are_named(study, changes, message):
    write_flat(study, 1, experiment(1), **changes)
    refuses(r"preprocessed_eeg_training_flat\.npy: .*" + message, study, "alljoined_flat")


def test_a_missing_truncated_or_foreign_flat_file_is_named(study):
    path = table_file(study, 1, "preprocessed_eeg_training_flat.npy")
    with path.open("wb") as out:
        pickle.dump({"eeg": np.zeros((3, 32, 250))}, out)
    refuses("no key 'preprocessed_eeg_data'; there is 'eeg'", study, "alljoined_flat")
    write_flat(study, 1, experiment(1))
    path.write_bytes(path.read_bytes()[:100_000])
    refuses("training_flat.npy is truncated", study, "alljoined_flat")
    path.unlink()
    refuses("training_flat.npy is missing: fetch preprocessed_eeg", study, "alljoined_flat")


class _Malicious:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_malicious_flat_file_does_nothing_and_is_reported(study, tmp_path):
    path = table_file(study, 1, "preprocessed_eeg_training_flat.npy")
    with path.open("wb") as out:
        pickle.dump({"preprocessed_eeg_data": _Malicious(tmp_path / "trace")}, out)
    with pytest.raises(UnsafePickleError, match=r"training_flat\.npy asks for .*athlib"):
        read(study, "alljoined_flat", ["sub-01"])
    assert not (tmp_path / "trace").exists()


def test_a_flat_file_copied_under_another_subject_is_refused(study):
    experiment(2).assign(subject=3).to_parquet(table_file(study, 3))
    for file in ("training", "test"):
        name = f"preprocessed_eeg_{file}_flat.npy"
        shutil.copy(table_file(study, 2, name), table_file(study, 3, name))
    refuses(
        r"sub-03.* and .*sub-02.* hold the same signal",
        study,
        "alljoined_flat",
        ["sub-02", "sub-03"],
    )
