"""THINGS-EEG2 in its five forms: what was published comes in whole, what is spoilt is named.

The files are miniatures in the exact published form, written by `things_eeg2_files`; two tests use
files of the real shape, with holes where the samples would be.
"""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pytest
import things_eeg2_files as files
from things_eeg2_files import Design

from sgdm_utils.datasets import readers
from sgdm_utils.datasets.bids import image_table
from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE
from sgdm_utils.datasets.pickles import UnsafePickleError
from sgdm_utils.datasets.splits import assert_split_integrity
from sgdm_utils.datasets.things_eeg2 import arrays
from sgdm_utils.datasets.things_eeg2 import runs as things_eeg2_runs
from sgdm_utils.datasets.things_eeg2.design import CHANNELS, OCCIPITAL
from sgdm_utils.errors import ChannelError, DatasetError
from sgdm_utils.workflow.atomic import digest_file, list_files

RAW, EPOCHS, BIDS, SOURCE = files.FORMS
CONTINUOUS = (RAW, BIDS, SOURCE)
# shown fewer times than it takes to decode anything: these tests look at the reading
SMALL = Design(
    n_train_concepts=4, images_per_concept=2, n_test=3, test_repetitions=2, n_parts=2, snr=0
)
SUBJECTS = ("sub-01", "sub-02")


def module_of(form: str):
    return arrays if form in arrays.FORMS else things_eeg2_runs


def tables(root: Path, form: str, subjects=(), **options):
    return module_of(form).tables(root, form, subjects, **options)


def refuses(message: str, root: Path, form: str, subjects=(), **options) -> None:
    with pytest.raises(DatasetError, match=message):
        tables(root, form, subjects, **options)


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> dict[str, Path]:
    """One tree for each form, of the same design; read only."""
    folder = tmp_path_factory.mktemp("things")
    for form in files.FORMS:
        files.write_tree(folder / form, form, SUBJECTS, SMALL, size=16)
    files.write_tree(folder / "250hz", EPOCHS, SUBJECTS, SMALL, size=16, kind="250hz")
    return {form: folder / form for form in (*files.FORMS, "250hz")}


@pytest.fixture(scope="module")
def studies(trees):
    """The tables of each tree, both subjects; read only."""
    return {
        name: tables(root, EPOCHS if name == "250hz" else name, SUBJECTS)
        for name, root in trees.items()
    }


@pytest.fixture
def copy_of(trees, tmp_path):
    """A function that copies sub-01 of a tree, to be spoilt."""

    def copy(form: str) -> Path:
        ignore = shutil.ignore_patterns("sub-02", "ses-0[34]" if form in CONTINUOUS else "")
        return Path(shutil.copytree(trees[form], tmp_path / "tree", ignore=ignore))

    return copy


def plan_of(subject: int) -> list[files.Run]:
    return files.plan(SMALL, np.random.default_rng([SMALL.seed, subject]))


def shown_by_plan(subject: int, session: int, partition: str) -> list[tuple[str, int]]:
    """Partition and number of every picture of a session in time order, straight from the plan."""
    runs = [r for r in plan_of(subject) if (r.session, r.partition) == (session, partition)]
    return [(partition, int(n)) for r in runs for n in r.number if n]


# ------------------------------------------------------------------------------- what is good


@pytest.mark.parametrize("form", CONTINUOUS)
def test_every_form_tells_what_was_shown_in_which_order(trees, studies, form):
    result = studies[form]
    assert result.layout == "continuous" and not result.notes["transductive"]
    listed = files.listing(trees[form])
    for i, subject in enumerate(SUBJECTS):
        for session in SMALL.sessions:
            for partition in ("train", "test"):
                want = [listed[p][n - 1] for p, n in shown_by_plan(i, session, partition)]
                rows = result.events.query(
                    f"subject == '{subject}' and session == '{session:02d}' "
                    f"and partition == '{partition}'"
                )
                assert rows["stim_file"].tolist() == want
    assert result.notes["n_targets_dropped"] == 2 * 4 * 3  # subjects, sessions, runs
    assert result.notes["complete"] is False
    assert "sub-01: 8 train images of 16540" in result.notes["differences"]
    first = result.events[result.events["subject"] == "sub-02"]
    for _, rows in first.groupby("image_id"):  # 2 x 2 in training, 4 x 2 in test
        assert rows["repetition"].tolist() == list(range(len(rows)))
        assert len(rows) == (8 if rows["partition"].iloc[0] == "test" else 4)
        assert rows["session"].is_monotonic_increasing


def test_the_forms_agree_with_each_other(studies):
    columns = ["subject", "session", "image_id", "concept", "repetition"]
    raw = studies[RAW].events.sort_values(["subject", "session", "partition"], kind="stable")
    for form in (BIDS, SOURCE):
        other = studies[form].events
        assert other[columns].to_numpy().tolist() == raw[columns].to_numpy().tolist()
        test = other["partition"] == "test"
        assert (
            other.loc[test, "sample"].tolist()
            == raw.loc[raw["partition"] == "test", "sample"].tolist()
        )  # training parts are one file there and several here
        pd.testing.assert_frame_equal(studies[form].images, studies[RAW].images)
    assert set(studies[EPOCHS].images["image_id"]) == set(studies[RAW].images["image_id"])


@pytest.mark.parametrize("form", CONTINUOUS)
def test_the_signal_is_at_the_samples_of_the_events(tmp_path, form):
    """A pulse of 1 mV in Oz at every picture, number by number, comes out where the tables say."""
    design = Design(2, 2, 2, sessions=(1,), test_repetitions=1, n_parts=1, snr=0, targets=1)
    root = tmp_path / form
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "voltage", _pulse_train)
        files.write_tree(root, form, ("sub-01",), design, size=16)
    result = tables(root, form, sessions=[1])
    for _, recording in result.recordings.iterrows():
        raw = module_of(form).read_raw(recording, root)
        same = result.events[["subject", "session", "run"]] == recording[
            ["subject", "session", "run"]
        ].to_list()  # fmt: skip
        mine = result.events[same.all(axis=1)]
        oz = raw.get_data(picks="Oz")[0]
        np.testing.assert_allclose(oz[mine["sample"]] * 1e6, 1000 + mine["number"], atol=0.5)
        np.testing.assert_allclose(mine["onset_s"], mine["sample"] / raw.info["sfreq"])
        assert (oz > 9e-4).sum() == len(mine), "targets carry no pulse and are no events"


def _pulse_train(run, answer, design, rng):
    eeg = 1e-6 * rng.standard_normal((63, run.n_samples), dtype=np.float32)
    shown = run.number > 0
    eeg[files.RECORDING_ORDER.index("Oz"), run.sample[shown]] = 1e-3 + 1e-6 * run.number[shown]
    return eeg


@pytest.mark.parametrize("form", CONTINUOUS)
def test_recordings_have_the_channels_and_standard_positions(trees, studies, form):
    raw = module_of(form).read_raw(studies[form].recordings.iloc[-1], trees[form])
    assert raw.ch_names == files.RECORDING_ORDER and raw.info["sfreq"] == 1000
    assert raw.get_channel_types(unique=True) == ["eeg"]
    assert 3e-6 < raw.get_data().std() < 3e-5, "volts"
    expected = mne.create_info(files.RECORDING_ORDER, 1000, "eeg").set_montage(STANDARD_MONTAGE)
    for mine, standard in zip(raw.info["chs"], expected["chs"], strict=True):
        np.testing.assert_allclose(mine["loc"][:3], standard["loc"][:3], atol=1e-6)


def test_the_raw_file_can_be_filtered_and_stays_as_it_is(trees, studies):
    root, recording = trees[RAW], studies[RAW].recordings.iloc[0]
    before = np.load(root / recording["path"], allow_pickle=True).item()["raw_eeg_data"]
    raw = arrays.read_raw(recording, root)
    np.testing.assert_array_equal(raw.get_data(), before[:63])
    raw.filter(1, 40, verbose="error").set_eeg_reference("average", verbose="error")
    copied = mne.io.RawArray(before[:63].copy(), mne.create_info(raw.ch_names, 1000, "eeg"))
    copied.filter(1, 40, verbose="error").set_eeg_reference("average", verbose="error")
    np.testing.assert_allclose(raw.get_data(), copied.get_data(), rtol=1e-9, atol=1e-15)
    after = np.load(root / recording["path"], allow_pickle=True).item()["raw_eeg_data"]
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(("tree", "names", "sfreq", "start"), [
    (EPOCHS, files.OFFICIAL_17, 100, -0.2), ("250hz", files.REORDERED_63, 250, 0.0),
])  # fmt: skip
def test_preprocessed_trials_are_image_after_image(trees, studies, tree, names, sfreq, start):
    root, result = trees[tree], studies[tree]
    assert result.layout == "epochs" and result.notes["transductive"] is True
    assert result.recordings["session"].tolist() == [""] * 4
    recording = result.recordings.iloc[1]
    signal = arrays.read_epochs(recording, root)
    with open(root / recording["path"], "rb") as stream:
        if tree == "250hz":  # plain pickle, in spite of its name
            content = pickle.load(stream)
        else:
            content = np.load(stream, allow_pickle=True).item()
    x = content["preprocessed_eeg_data"]
    assert signal.ch_names == names and signal.unit == "whitened"
    assert signal.sfreq == pytest.approx(sfreq) and signal.times[0] == pytest.approx(start)
    assert signal.times[-1] == pytest.approx(0.79 if sfreq == 100 else 0.996)
    events = result.events.query("subject == 'sub-01' and run == 'test'")
    listed = files.listing(root)["test"]
    for row in events.itertuples():
        image = listed.index(row.stim_file)
        np.testing.assert_array_equal(signal.data[row.sample], x[image, row.repetition])
    assert events["onset_s"].isna().all()
    assert len(events) == x.shape[0] * x.shape[1] == len(signal.data)


def test_channels_of_the_official_package_are_those_its_pattern_takes(trees):
    taken = [c for c in files.RECORDING_ORDER if re.match(r"^O *|^P *", c)]
    assert taken == files.OFFICIAL_17 == list(OCCIPITAL)
    assert list(CHANNELS) == files.RECORDING_ORDER
    assert sorted(files.REORDERED_63) == sorted(files.RECORDING_ORDER)


def test_subjects_and_sessions_may_be_named_and_folders_lie_directly_in_the_root(copy_of):
    root = copy_of(RAW)
    (root / "raw_data" / "sub-01").rename(root / "sub-01")
    (root / "raw_data").rmdir()
    for names in (["01"], ["sub-01"], []):
        result = tables(root, RAW, names, sessions=[2])
        assert set(result.events["session"]) == {"02"}
        assert set(result.recordings["subject"]) == {"sub-01"}
    assert result.recordings["path"].iloc[0] == "sub-01/ses-02/raw_eeg_training.npy"


def test_source_data_without_trigger_column_and_in_the_other_folder(copy_of):
    root = copy_of(SOURCE)
    (root / "sourcedata").rename(root / "source_data")
    before = tables(root, SOURCE, sessions=[1]).events
    run = next(r for r in plan_of(0) if (r.session, r.partition) == (1, "test"))
    mat = next((root / "source_data").rglob("sub-01_ses-01_task-test_beh.mat"))
    files.write_behaviour(mat, run, files._concepts(root), trigger_1=None, category_name=None)
    pd.testing.assert_frame_equal(tables(root, SOURCE, sessions=[1]).events, before)


def test_with_both_packages_the_number_of_channels_decides(trees, tmp_path):
    root = Path(shutil.copytree(trees[EPOCHS], tmp_path / "both"))
    shutil.copytree(trees["250hz"] / "Preprocessed_data_250Hz", root / "Preprocessed_data_250Hz")
    for n_channels, package in ((17, "official"), (63, "250 Hz")):
        result = tables(root, EPOCHS, n_channels=n_channels)
        assert result.notes["package"] == package
        signal = arrays.read_epochs(result.recordings.iloc[0], root)
        assert len(signal.ch_names) == n_channels
    refuses("has both .* say which one by n_channels", root, EPOCHS)


def test_reading_changes_no_file(trees):
    for form in files.FORMS:
        before = {path: digest_file(path) for path in list_files(trees[form])}
        options = {} if form == EPOCHS else {"sessions": [1]}
        recording = tables(trees[form], form, ["sub-01"], **options).recordings.iloc[0]
        if form == EPOCHS:
            arrays.read_epochs(recording, trees[form])
        else:
            module_of(form).read_raw(recording, trees[form])
        assert {path: digest_file(path) for path in list_files(trees[form])} == before


def test_images_are_told_as_in_the_other_data_sets(studies):
    result = studies[RAW]
    expected = image_table(result.events)
    pd.testing.assert_frame_equal(result.images[list(expected)], expected)
    assert set(result.images["partition"]) == {"train", "test"}


# -------------------------------------------------------------- something is there to decode


def heldout_correlation(x: dict, y: dict) -> float:
    """Ridge from EEG to picture features, fitted on training images; mean r over test images."""
    mean = x["train"].mean(0)
    a, b = x["train"] - mean, y["train"] - y["train"].mean(0)
    weight = a.T @ np.linalg.solve(a @ a.T + 0.1 * np.trace(a @ a.T) / len(a) * np.eye(len(a)), b)
    guess = (x["test"] - mean) @ weight
    return float(
        np.mean(
            [np.corrcoef(guess[:, k], y["test"][:, k])[0, 1] for k in range(y["test"].shape[1])]
        )
    )


@pytest.mark.parametrize(("snr", "low", "high"), [(1.0, 0.5, 1.0), (0.0, -0.3, 0.3)])
def test_a_decoder_finds_the_pictures_in_the_miniature_and_nothing_without_signal(
    tmp_path, snr, low, high
):
    design = Design(
        16, 1, 16, repetitions=2, test_repetitions=2, n_parts=1, snr=snr, gap_s=0.3, targets=1
    )
    found = {}
    for form in (RAW, EPOCHS):
        root = tmp_path / form
        files.write_tree(root, form, ("sub-01",), design, size=32)
        result = tables(root, form)
        means: dict[str, list] = {"train": [], "test": []}
        trials = []
        for _, recording in result.recordings.iterrows():
            keys = ["subject", "session", "run"]
            mine = result.events[
                (result.events[keys] == recording[keys].to_list()).all(axis=1)
            ]  # fmt: skip
            if form == EPOCHS:
                signal = arrays.read_epochs(recording, root)
                cut = signal.data[mine["sample"].to_numpy()][:, :, 28:60].astype(np.float64)
            else:
                raw = arrays.read_raw(recording, root).pick(files.OFFICIAL_17)
                data = raw.get_data()
                cut = np.stack([data[:, s + 80 : s + 400 : 10] for s in mine["sample"]]) * 1e5
            trials.append(mine.assign(cut=list(cut.reshape(len(cut), -1))))
        shown = pd.concat(trials)
        for partition in means:
            group = shown[shown["partition"] == partition].groupby("number")["cut"]
            means[partition] = np.stack([np.stack(g.to_list()).mean(0) for _, g in group])
        found[form] = heldout_correlation(means, files.picture_features(root))
    for form, value in found.items():
        assert low < value < high, (form, found)


# ----------------------------------------------------------------------------- the real shape


@pytest.fixture(scope="module")
def full_image_set(tmp_path_factory) -> Path:
    """16,540 + 200 picture names, empty files."""
    root = tmp_path_factory.mktemp("full")
    files.write_image_set(root, 1654, 10, 200, np.random.default_rng(0), size=0)
    return root


def test_files_of_the_real_shape_are_read(full_image_set, tmp_path):
    """1 GB in the official package; the samples are holes, two of them are filled in."""
    kind, n_channels, n_times = "official", 17, 100
    names, times, kept, folder = files._package(kind)
    root = tmp_path
    (root / "image_set").symlink_to(full_image_set / "image_set")
    value = {}
    for run, shape in (("training", (16540, 4)), ("test", (200, 80))):
        shape = (*shape, n_channels, n_times)
        path = root / folder / "sub-01" / f"preprocessed_eeg_{run}.npy"
        content = {"preprocessed_eeg_data": files.Hole(shape), "ch_names": names, "times": times}
        offset = files.dump_sparse(path, content, wrapped=True)
        value[run] = (shape[0] - 1, 3)  # trial 3 of the last image
        at = np.ravel_multi_index((*value[run], n_channels - 1, n_times - 1), shape)
        with open(path, "r+b") as stream:
            for place, number in ((0, shape[0]), (at, 42.0)):  # the first trials differ: no copy
                stream.seek(offset + 8 * int(place))
                stream.write(np.float64(number).tobytes())
    result = tables(root, EPOCHS, n_channels=n_channels)
    assert result.notes["complete"] is True and result.notes["differences"] == []
    assert len(result.events) == 82_160 and len(result.images) == 16_740
    assert_split_integrity(result.images.rename(columns={"partition": "split"}))
    for (_, recording), run in zip(result.recordings.iterrows(), value, strict=True):
        signal = arrays.read_epochs(recording, root)
        assert signal.data.shape[1:] == (n_channels, n_times)
        events = result.events[result.events["run"] == run]
        image, repetition = value[run]
        row = events.query("number == @image + 1 and repetition == @repetition").iloc[0]
        assert signal.data[row["sample"], -1, -1] == 42.0
        assert np.count_nonzero(signal.data[row["sample"]]) == 1


# --------------------------------------------------------------------- planted faults: raw


def raw_file(root: Path, session: int = 1, run: str = "training") -> Path:
    return root / "raw_data" / "sub-01" / f"ses-{session:02d}" / f"raw_eeg_{run}.npy"


def edit_raw(root: Path, change, **where) -> None:
    path = raw_file(root, **where)
    content = np.load(path, allow_pickle=True).item()
    change(content)
    np.save(path, content, allow_pickle=True)


def rename(old: str, new: str):
    def change(content):
        content["ch_names"] = [new if c == old else c for c in content["ch_names"]]

    return change


def stim(change):
    """Change the stimulus row, given the samples of its pulses."""

    def apply(content):
        row = content["raw_eeg_data"][-1]
        change(row, np.flatnonzero(row))

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename("Oz", "oz"), r"ses-01/raw_eeg_training\.npy: channel 'oz'.*spelt 'Oz' there"),
        (rename("Oz", "EEG 16"), r"channel 'EEG 16' is not one of the 63.*not there: Oz"),
        (rename("Fp1", "F3"), r"channel 'F3' occurs more than once"),
        (lambda c: c.update(raw_eeg_data=np.delete(c["raw_eeg_data"], 5, axis=0)),
         r"63 rows of samples, 64 channel names"),
        (lambda c: c.update(ch_types=[*c["ch_types"][:-1], "misc"]),
         r"types end with eeg, misc.*nothing says what was shown"),
        (lambda c: c.update(other=c.pop("raw_eeg_data")),
         r"no key 'raw_eeg_data'; there is 'ch_names'"),
        (lambda c: c.update(raw_eeg_data=c["raw_eeg_data"].astype("S4")),
         r"the signal is a \|S4 array"),
        (lambda c: c.update(sfreq=500),
         r"median time between pictures is 400 ms, not 200 ms.*500 Hz"),
        (stim(lambda row, at: np.put(row, at[3] + 1, row[at[3]])),
         r"doubled event: events 3 and 4 lie 1 ms apart, at the samples"),
        (stim(lambda row, at: np.put(row, at[row[at] < 9999][2], 17)),
         r"stimulus missing: event \d+ shows training_images number 17, and "),
        (stim(lambda row, at: np.put(row, at[row[at] < 9999][2], 1.5)),
         r"training_images number 1\.5"),
        (stim(lambda row, at: row.fill(0)), r"the stimulus row holds no event"),
        (stim(lambda row, at: np.put(row, at[row[at] < 9999], row[at[row[at] < 9999][0]])),
         r"sessions 1 and 2: training: 3 of 8 images were never shown"),
    ],
)  # fmt: skip
def test_a_faulty_raw_file_is_named(copy_of, change, message):
    root = copy_of(RAW)
    edit_raw(root, change)
    refuses(message, root, RAW, sessions=[1, 2])


def test_another_order_of_channels_is_refused(copy_of):
    root = copy_of(RAW)
    edit_raw(root, lambda c: c["ch_names"].insert(0, c["ch_names"].pop(1)), session=2)
    refuses(r"ses-02.*first difference: channel 1 is 'F3', not 'Fp1'", root, RAW, sessions=[1, 2])


def test_a_truncated_raw_file_is_named(copy_of):
    root = copy_of(RAW)
    path = raw_file(root, run="test")
    path.write_bytes(path.read_bytes()[:-100_000])
    refuses(r"raw_eeg_test\.npy is truncated", root, RAW, sessions=[1, 2])


class _Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("form", [RAW, EPOCHS])
def test_a_program_in_place_of_data_is_not_run(copy_of, tmp_path, form):
    root = copy_of(form)
    if form == RAW:
        raw_file(root).write_bytes(pickle.dumps({"raw_eeg_data": _Bomb(tmp_path / "run")}))
    else:
        epoch_file(root).write_bytes(pickle.dumps(_Bomb(tmp_path / "run")))
    with pytest.raises(UnsafePickleError, match="Nothing of it was executed"):
        tables(root, form, sessions=[1, 2] if form == RAW else None)
    assert not (tmp_path / "run").exists()


def test_a_missing_session_names_those_there_are(copy_of):
    root = copy_of(RAW)
    refuses(r"ses-03.*session missing\. sub-01 has ses-01, ses-02, s", root, RAW)
    assert len(tables(root, RAW, sessions=[1, 2]).recordings) == 4


def test_a_session_under_another_number_is_noticed(copy_of):
    """Other noise, so no copy by content; but sessions 1 and 2 divide the images between them."""
    root = copy_of(RAW)
    content = np.load(raw_file(root), allow_pickle=True).item()
    content["raw_eeg_data"][:63] += 1e-7
    np.save(raw_file(root, session=2), content, allow_pickle=True)
    refuses(r"sessions 1 and 2: training: 4 of 8 images were never", root, RAW, sessions=[1, 2])
    other = np.load(raw_file(root, session=1), allow_pickle=True).item()
    row = other["raw_eeg_data"][-1]
    at = np.flatnonzero((row > 0) & (row < 9999))
    row[at[: len(at) // 2]] = 1 + np.arange(len(at) // 2) % 8  # all images in 1, half of them in 2
    other["raw_eeg_data"][-1, at] = 1 + np.arange(len(at)) % 8
    np.save(raw_file(root, session=1), other, allow_pickle=True)
    refuses("was shown in both sessions 1 and 2", root, RAW, sessions=[1, 2])


@pytest.mark.parametrize("form", [RAW, EPOCHS])
def test_a_copied_subject_is_refused(copy_of, form):
    root = copy_of(form)
    files.copy_subject(root, "sub-01", "sub-05")
    refuses(
        r"sub-05/.* and .*sub-01/.* hold the same signal",
        root,
        form,
        sessions=[1, 2] if form == RAW else None,
    )


@pytest.mark.parametrize("form", files.FORMS)
def test_a_subject_twice_or_missing_is_refused(trees, form):
    refuses("subject 'sub-01' is named twice", trees[form], form, ["sub-01", "01"])
    refuses("no recording of sub-07; there is sub-01, sub-02", trees[form], form, ["sub-07"])


@pytest.mark.parametrize("form", [RAW, SOURCE])
def test_subjects_in_two_folders_are_refused(copy_of, form):
    root = copy_of(form)
    base = root / ("raw_data" if form == RAW else "sourcedata")
    shutil.copytree(base / "sub-01", root / "sub-01")
    refuses("subjects are there twice", root, form, sessions=[1, 2])


@pytest.mark.parametrize("form", files.FORMS)
def test_a_root_with_another_form_in_it_is_refused(trees, form):
    wrong = trees[EPOCHS if form != EPOCHS else RAW]
    refuses(r"no ses-\*/raw_eeg|no preprocessed|no BIDS data|no recording", wrong, form)
    other = things_eeg2_runs if module_of(form) is arrays else arrays
    with pytest.raises(DatasetError, match=f"form '{form}' is not one of"):
        other.tables(wrong, form, [])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda x: np.multiply(x[:63], 1e6, out=x[:63]),
            DatasetError,
            r"10\^6 times too large.*multiplied by 1e-6",
        ),
        (
            lambda x: x[4, 100:103].fill(np.nan),
            ChannelError,
            r"raw_eeg_training\.npy: channel 'FC5' holds 3 samples",
        ),
        (lambda x: x[6].fill(1e-6), ChannelError, "no signal at all in C3"),
    ],
)
def test_a_faulty_raw_signal_is_named(copy_of, change, error, message):
    root = copy_of(RAW)
    edit_raw(root, lambda content: change(content["raw_eeg_data"]))
    recording = tables(root, RAW, sessions=[1, 2]).recordings.iloc[0]
    with pytest.raises(error, match=message):
        readers.read_raw(RAW, recording, root)


# ------------------------------------------------------------ planted faults: preprocessed


def epoch_file(root: Path, run: str = "test") -> Path:
    return root / "preprocessed_data" / "sub-01" / f"preprocessed_eeg_{run}.npy"


def edit_epochs(root: Path, **changes) -> None:
    path = epoch_file(root)
    content = np.load(path, allow_pickle=True).item()
    content = {k: changes[k](v) if k in changes else v for k, v in content.items()}
    content = {k: v for k, v in content.items() if v is not None}
    np.save(path, content, allow_pickle=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ch_names": lambda c: [x.lower() for x in c]},
            r"channel 'pz'.*spelt 'Pz' there; 17 such",
        ),
        ({"ch_names": lambda c: c[:-1]}, r"17 channels of samples but 16 channel names"),
        ({"times": lambda t: t[:-1]}, r"99 times for 100 samples"),
        ({"times": lambda t: t**3}, r"`times` does not rise in equal steps"),
        (
            {"times": lambda t: None},
            r"no key 'times'; there is 'preprocessed_eeg_data', 'ch_names'",
        ),
        ({"preprocessed_eeg_data": lambda x: None}, r"no key 'preprocessed_eeg_data'"),
        (
            {"preprocessed_eeg_data": lambda x: x[:-1]},
            r"has 2 images, the image set has 3 for test",
        ),
        ({"preprocessed_eeg_data": lambda x: x[:, 0]}, r"float64 array of shape \(3, 17, 100\)"),
        ({"preprocessed_eeg_data": lambda x: x[:0]}, r"the signal is empty"),
        ({"preprocessed_eeg_data": lambda x: [1.0]}, r"the signal is a list"),
    ],
)
def test_a_faulty_preprocessed_file_is_named(copy_of, changes, message):
    root = copy_of(EPOCHS)
    edit_epochs(root, **changes)
    refuses(message, root, EPOCHS)


def test_scattered_trials_are_refused(copy_of):
    root = copy_of(EPOCHS)
    edit_epochs(root, preprocessed_eeg_data=np.asfortranarray)
    recordings = tables(root, EPOCHS).recordings
    with pytest.raises(DatasetError, match="not stored trial after trial"):
        arrays.read_epochs(recordings.iloc[1], root)


def test_17_channels_where_63_are_configured_name_the_package_that_has_them(trees):
    refuses(
        r"has 17 EEG channels, 63 are configured.*Preprocessed_data_250Hz",
        trees[EPOCHS],
        EPOCHS,
        n_channels=63,
    )
    refuses(r"has 63 EEG channels, 17 are configured", trees["250hz"], EPOCHS, n_channels=17)
    refuses(r"has 63 EEG channels, 17 are configured", trees[RAW], RAW, n_channels=17)


def test_files_of_two_packages_in_one_folder_are_refused(copy_of, trees):
    root = copy_of(EPOCHS)
    shutil.copytree(
        trees["250hz"] / "Preprocessed_data_250Hz" / "sub-02", root / "preprocessed_data" / "sub-02"
    )
    refuses(r"sub-02/.* has other channels.* than .*sub-01/", root, EPOCHS)


def test_merged_sessions_cannot_be_chosen(trees):
    refuses(
        r"sessions \[1\] cannot be chosen in the preprocessed", trees[EPOCHS], EPOCHS, sessions=[1]
    )
    assert len(tables(trees[EPOCHS], EPOCHS, sessions=[1, 2, 3, 4]).recordings) == 4


def test_a_missing_or_truncated_preprocessed_file_is_named(copy_of):
    root = copy_of(EPOCHS)
    path = epoch_file(root)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refuses(r"preprocessed_eeg_test\.npy is truncated", root, EPOCHS)
    path.unlink()
    with pytest.raises(DatasetError, match=r"preprocessed_eeg_test\.npy is not there"):
        tables(root, EPOCHS)
