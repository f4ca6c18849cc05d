"""THINGS-EEG2 as separate runs (BIDS, BrainVision source): each planted fault has its message."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pytest
import scipy.io
import things_eeg2_files as files
from things_eeg2_files import Design

from sgdm_utils.datasets.things_eeg2 import images, runs
from sgdm_utils.errors import ChannelError, DatasetError

RAW, EPOCHS, BIDS, SOURCE = files.FORMS
SMALL = Design(
    n_train_concepts=4, images_per_concept=2, n_test=3, sessions=(1, 2), test_repetitions=2,
    n_parts=2, snr=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> dict[str, Path]:
    """One subject, two sessions; read only."""
    folder = tmp_path_factory.mktemp("runs")
    for form in (BIDS, SOURCE):
        files.write_tree(folder / form, form, ("sub-01",), SMALL, size=16)
    return {form: folder / form for form in (BIDS, SOURCE)}


@pytest.fixture
def copy_of(trees, tmp_path):
    """A function that copies a tree, to be spoilt."""
    return lambda form: Path(shutil.copytree(trees[form], tmp_path / "tree"))


def tables(root: Path, form: str, sessions=(1,)):
    return runs.tables(root, form, [], sessions=list(sessions))


def plan_of(subject: int) -> list[files.Run]:
    return files.plan(SMALL, np.random.default_rng([SMALL.seed, subject]))


# --------------------------------------------------------------------- planted faults: BIDS


def bids_events(root: Path, run: str = "train_run-01") -> Path:
    return root / "sub-01" / "ses-01" / "eeg" / f"sub-01_ses-01_task-{run}_events.tsv"


def edit_events(path: Path, change) -> None:
    table = pd.read_csv(
        path, sep="\t", dtype=object, keep_default_na=False, encoding="utf-8-sig"
    ).pipe(change)
    files.write_tsv(path, table)


def put(row: int, **values):
    def change(table):
        for column, value in values.items():
            table.loc[row, column] = value
        return table

    return change


def shift_numbers(table):
    """The numbers of the next picture: the marker no longer belongs to the picture."""
    numbers = table["tot_img_number"].replace("n/a", np.nan)
    shown = numbers.notna()
    table.loc[shown, "tot_img_number"] = np.roll(numbers[shown], 1)
    return table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="tot_img_number"), r"no column 'tot_img_number'; there is onset"),
        (put(1, trial_type="Image"), r"line 3 \(of 1 such lines\): trial_type 'Image' is unknown"),
        (lambda t: pd.concat([t.iloc[:3], t.iloc[2:]], ignore_index=True),
         r"doubled event: events 2 and 3 lie 0 ms apart"),
        (lambda t: t.assign(onset=(t["onset"].astype(float) * 1000).astype(str)),
         r"line 2 .*: the onset '.*' s is not the sample"),
        (put(2, onset="n/a"), r"line 4 .*: the onset nan s is not the sample"),
        (put(3, onset="1e4", sample="10000000"), r"line 5 .*: the event lies outside the recording"),
        (shift_numbers, r"line \d+ .*: the marker '\d+' does not belong to picture \d+"),
        (put(0, trial_type="image", tot_img_number="9", value="9"),
         r"stimulus missing: picture event 0 shows training_images number 9, and image_set has 8"),
        (put(0, trial_type="image", tot_img_number="n/a"), r"line 2 .*: no number of the picture"),
        (put(0, trial_type="image", tot_img_number="1", value="1", category_name="00001_yacht"),
         r"line 2 .*: the picture is called '00001_yacht' there, and number 1 of the image set is"),
    ],
)  # fmt: skip
def test_a_faulty_event_table_is_named(copy_of, change, message):
    root = copy_of(BIDS)
    edit_events(bids_events(root), change)
    with pytest.raises(DatasetError, match=message):
        tables(root, BIDS)


def test_identity_comes_from_the_number_and_never_from_the_marker(tmp_path):
    """Pictures 10 to 12 and 1 share the first digits with others: the marker cannot tell them."""
    design = Design(6, 2, 2, sessions=(1, 2), n_parts=1, snr=0)
    files.write_tree(tmp_path, BIDS, ("sub-01",), design, size=16)
    shown = tables(tmp_path, BIDS, [1, 2]).events
    assert set(shown.loc[shown["partition"] == "train", "number"]) == set(range(1, 13))
    table = pd.read_csv(bids_events(tmp_path), sep="\t", encoding="utf-8-sig")
    assert bids_events(tmp_path).read_bytes().startswith(b"\xef\xbb\xbf")
    assert set(table["trial_type"]) == {"image", "target"}
    test = pd.read_csv(bids_events(tmp_path, "test"), sep="\t", encoding="utf-8-sig")
    assert "rest_marker" in set(test["trial_type"])


def remove(root: Path, pattern: str) -> None:
    for path in root.rglob(pattern):
        path.unlink()


def truncate(root):
    path = next((root / "sub-01" / "ses-01" / "eeg").glob("*task-test_eeg.eeg"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 // 252 * 252])


def lower_case(root):
    for path in (root / "sub-01" / "ses-01" / "eeg").iterdir():
        if path.suffix == ".vhdr" or path.name.endswith("channels.tsv"):
            text = path.read_text(encoding="utf-8")
            path.write_text(re.sub(r"\bOz\b", "oz", text), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: remove(root, "*ses-01_task-train_run-02*"),
         r"session 01 of sub-01 has no run 'train 02'; there is test, train 01"),
        (lambda root: remove(root, "*ses-01_task-test*"),
         r"session 01 of sub-01 has no run 'test'; there is train 01, train 02"),
        (lambda root: shutil.rmtree(root / "sub-01" / "ses-01"),
         r"session missing: sub-01 has the sessions 02, 1, 2 are wanted"),
        (lambda root: bids_events(root).unlink(), r"train_run-01_events\.tsv is missing"),
        (lambda root: remove(root, "dataset_description.json"), r"is no BIDS data set"),
        (truncate, r"task-test_eeg\.\w+ holds \S+ s, .* says .* s: the file was truncated"),
        (lower_case, r"channel 'oz' is not one of the 63 .*spelt 'Oz' there"),
    ],
)  # fmt: skip
def test_a_faulty_bids_tree_is_named(copy_of, spoil, message):
    root = copy_of(BIDS)
    spoil(root)
    with pytest.raises(DatasetError, match=message):
        tables(root, BIDS, [1, 2])


# ------------------------------------------------------------------- planted faults: source


def behaviour(root: Path, run: str = "train_part-01") -> Path:
    return root / "sourcedata" / "sub-01" / "ses-01" / "beh" / f"sub-01_ses-01_task-{run}_beh.mat"


def first_run(partition: str = "train") -> files.Run:
    return next(r for r in plan_of(0) if r.partition == partition)


def rewrite(root: Path, **changes) -> None:
    files.write_behaviour(behaviour(root), first_run(), files._concepts(root), **changes)


def renumber(root: Path, change) -> None:
    """Other numbers of pictures (0: a target), and nothing else in the file that tells."""
    number = first_run().number.copy()
    change(number)
    rewrite(root, tot_img_number=number, trigger_1=None, category_name=None)


def swap_two(number):
    i = next(i for i in range(len(number) - 1) if number[i] and number[i + 1] not in (0, number[i]))
    number[[i, i + 1]] = number[[i + 1, i]]


def wrong_trigger(root):
    code = [files.trigger(n, "train") for n in first_run().number]
    code[4] = 77
    rewrite(root, trigger_1=code)


def lose_row(root):
    run = first_run()
    names = ("number", "sequence", "position", "sample")
    shorter = {k: getattr(run, k)[:-1] for k in names}
    run = files.Run(run.session, run.partition, run.part, **shorter)
    files.write_behaviour(behaviour(root), run, files._concepts(root))


def markers(root: Path, change) -> None:
    path = behaviour(root).parent.parent / "eeg" / "sub-01_ses-01_task-train_part-01_eeg.vmrk"
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def double_marker(text):
    line = re.search(r"Mk5=(.*)\n", text).group(1)
    parts = line.split(",")
    parts[2] = str(int(parts[2]) + 3)
    return text.rstrip("\n") + f"\nMk999={','.join(parts)}\n"


def cut_signal(root):
    path = behaviour(root).parent.parent / "eeg" / "sub-01_ses-01_task-train_part-01_eeg.eeg"
    path.write_bytes(path.read_bytes()[: 252 * 1000])


def lose_signal(root):
    path = behaviour(root).parent.parent / "eeg" / "sub-01_ses-01_task-train_part-01_eeg.eeg"
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: renumber(root, swap_two),
         r"part-01_eeg\.vmrk: marker \d+ is \d, but row \d+ of .*_beh\.mat is picture \d"),
        (wrong_trigger, r"marker 5 is \d+, but row 5 of .*, trigger_1 77"),
        (lambda root: renumber(root, lambda n: np.put(n, np.flatnonzero(n == 0)[0], 3)),
         r"marker \d+ is 255, but row \d+ of .* is picture 3"),
        (lambda root: renumber(root, lambda n: np.put(n, np.flatnonzero(n)[2], 0)),
         r"marker \d+ is \d, but row \d+ of .* is target"),
        (lose_row,
         r"_eeg\.vmrk has \d+ markers, .*_beh\.mat has \d+ pictures: they cannot be paired"),
        (lambda root: rewrite(root, category_name=["00009_yacht"] * len(first_run().number)),
         r"_beh\.mat, row \d+: the picture is called '00009_yacht' there"),
        (lambda root: rewrite(root, tot_img_number=first_run().number + 0.5),
         r"in data\.images is no whole number"),
        (lambda root: behaviour(root).unlink(),
         r"_beh\.mat is missing: the markers of the recording are ambiguous"),
        (lambda root: behaviour(root).write_bytes(b"\0" * 200),
         r"_beh\.mat cannot be read as a MATLAB file"),
        (lambda root: behaviour(root).write_bytes(behaviour(root).read_bytes()[:1000]),
         r"_beh\.mat cannot be read as a MATLAB file|no data\.images"),
        (lambda root: scipy.io.savemat(behaviour(root), {"order": np.zeros(3)}),
         r"no data\.images with the field tot_img_number; there is order"),
        (lambda root: rewrite(root, tot_img_number=None),
         r"no data\.images with the field tot_img_number"),
        (lambda root: markers(root, lambda text: re.sub(r"Mk5=.*\n", "", text)),
         r"cannot be paired"),
        (lambda root: markers(root, double_marker), r"cannot be paired"),
        (lambda root: markers(
            root, lambda text: re.sub(r"(Mk5=)Stimulus,S..\d+", r"\1Response,R  1", text)),
         r"marker 'Response/R  1' is no stimulus"),
        (cut_signal, r"cannot be paired. Was the recording truncated"),
        (lose_signal, r"part-01_eeg\.vhdr holds no samples: its signal is missing"),
    ],
)  # fmt: skip
def test_a_faulty_source_is_named(copy_of, spoil, message):
    root = copy_of(SOURCE)
    spoil(root)
    with pytest.raises(DatasetError, match=message):
        tables(root, SOURCE)


def test_a_new_segment_at_the_start_is_no_picture_and_one_in_the_middle_is_refused(trees):
    """MNE leaves the first one out itself; where it does not, the reader has to."""
    root = trees[SOURCE]
    row = {"path": tables(root, SOURCE).recordings["path"].iloc[0], "task": "test"}
    raw = mne.io.read_raw(root / row["path"], verbose="error")
    header = (root / row["path"]).with_suffix(".vmrk").read_text(encoding="utf-8")
    assert "Mk1=New Segment,,1,1,0," in header
    image_set = images.load_image_set(root)
    expected, n_targets = runs.source_events(row, root, raw, image_set)
    marks = raw.annotations
    for onset in (0.0, (marks.onset[2] + marks.onset[3]) / 2):
        segment = mne.Annotations(onset, 0, "New Segment/", orig_time=marks.orig_time)
        more = raw.copy().set_annotations(marks + segment)
        if onset:
            with pytest.raises(DatasetError, match="cannot be paired"):
                runs.source_events(row, root, more, image_set)
        else:
            found, n = runs.source_events(row, root, more, image_set)
            pd.testing.assert_frame_equal(found, expected)
            assert n == n_targets == 1


def test_a_pause_in_a_source_file_is_named(copy_of):
    root = copy_of(SOURCE)
    marks = next(root.rglob("*ses-01_task-test_eeg.vmrk"))
    marks.write_text(marks.read_text() + "Mk9999=New Segment,,500,1,0,20200101000000000000\n")
    with pytest.raises(DatasetError, match="was paused or cut 1 times: before sample 499"):
        tables(root, SOURCE)


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (".vmrk", r"task-test_eeg\.vmrk is missing"),
        (".eeg", r"task-test_eeg\.vhdr cannot be read without .*_eeg\.eeg, which it names"),
    ],
)
def test_a_file_that_belongs_to_the_header_is_missing(copy_of, suffix, message):
    root = copy_of(SOURCE)
    next(root.rglob(f"*ses-01_task-test_eeg{suffix}")).unlink()
    with pytest.raises(DatasetError, match=message):
        tables(root, SOURCE)


def test_a_flat_channel_is_named(copy_of):
    root = copy_of(SOURCE)
    recording = tables(root, SOURCE).recordings.iloc[0]
    path = (root / recording["path"]).with_suffix(".eeg")
    samples = np.memmap(path, np.float32, mode="r+").reshape(-1, 63)
    samples[:, 4] = 0
    samples.flush()
    with pytest.raises(ChannelError, match="no signal at all in FC5"):
        runs.read_raw(recording, root)
