"""Each leak is planted into clean data and must be refused; the clean data must pass.

The study is made here: 2 subjects, 12 images of 12 concepts (8 train, 2 val, 2 test), 3 repetitions,
EEG of 4 channels and 25 samples.
"""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance
from skimage import data as photographs

from sgdm_utils.datasets import splits
from sgdm_utils.datasets.leakage import assertions
from sgdm_utils.datasets.leakage.copies import (
    assert_files_unique,
    assert_pictures,
    assert_trials_unique,
    perceptual_hash,
)
from sgdm_utils.datasets.leakage.fits import (
    CheckpointRecord,
    Finding,
    FitRecord,
    LeakageError,
    assert_checkpoint,
    assert_fitted_on,
    read_records,
    record_choice,
    record_fit,
    write_records,
)
from sgdm_utils.errors import DatasetError
from sgdm_utils.stimuli import pictures as stimuli_pictures

SPLIT = ["train"] * 8 + ["val"] * 2 + ["test"] * 2


@pytest.fixture
def images() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": [f"i{k:02d}" for k in range(12)],
            "concept": [f"c{k:02d}" for k in range(12)],
            "split": SPLIT,
        }
    )


@pytest.fixture
def trials(images) -> pd.DataFrame:
    parts = []
    for subject in ("sub-01", "sub-02"):
        for run in ("01", "02", "03"):
            onset = 2.0 + 0.2 * np.arange(12)
            parts.append(
                images.assign(
                    subject=subject, session="01", run=run, onset_s=onset, repetition=int(run) - 1
                )
            )
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def eeg(trials) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(trials), 4, 25)).astype(np.float32)


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (12, 48, 48, 3), dtype=np.uint8)


# ------------------------------------------------------------------------------------- image


def test_image(trials):
    assert assertions.assert_images(trials) == Finding("image", "image ids between splits", 12)
    trials.loc[trials.index[-1], ["image_id", "concept"]] = ["i00", "c00"]  # a test trial
    with pytest.raises(LeakageError, match="1 images .*: 'i00' is in test and train"):
        assertions.assert_images(trials)


# ----------------------------------------------------------------------------------- concept


@pytest.mark.parametrize(
    ("image", "concept", "message"),
    [
        ("i11", "c03", r"1 concepts of test .* train or val: 'c03' \(image 'i11'\) and 'c03' "
                       r"\(image 'i03', train\)"),
        ("i11", "c08", r"'c08' \(image 'i08', val\)"),
        ("i08", "c00", r"1 concepts of val are also in train: 'c00' \(image 'i08'\)"),
        ("i10", "00003_C05", r"'00003_C05' \(image 'i10'\) and 'c05'"),
    ],
)  # fmt: skip
def test_concept(trials, image, concept, message):
    assert assertions.assert_concepts(trials).n == 12
    trials.loc[trials["image_id"] == image, "concept"] = concept
    with pytest.raises(LeakageError, match=message):
        assertions.assert_concepts(trials)


def test_validation_may_share_concepts_when_that_is_said(trials):
    trials.loc[trials["image_id"] == "i08", "concept"] = "c00"
    finding = assertions.assert_concepts(trials, validation=False)
    assert finding.compared == "concepts of test and the rest"


# -------------------------------------------------------------------------------- repetition


def test_repetitions_of_an_image_on_both_sides(trials):
    assert assertions.assert_repetitions(trials).n == 72
    own = (trials["image_id"] == "i02") & (trials["repetition"] == 2)
    trials.loc[own, "split"] = "test"  # the mistake of splitting trials
    with pytest.raises(LeakageError, match="1 images .*: 'i02' has 2 in test, 4 in train"):
        assertions.assert_repetitions(trials)


def test_a_trial_that_is_listed_twice(trials):
    double = pd.concat([trials, trials.iloc[[5]]], ignore_index=True)
    with pytest.raises(
        LeakageError,
        match=r"1 trials .* twice, the first in row 72: subject sub-01, session 01, run 01, "
        r"onset_s 3\.0",
    ):
        assertions.assert_repetitions(double)
    renamed = double.assign(onset_s=np.nan)  # epochs of a published file: no onset is known
    with pytest.raises(LeakageError, match="subject sub-01, image_id i05, repetition 0"):
        assertions.assert_repetitions(renamed)


def test_the_same_onset_in_another_run_is_no_copy(trials):
    assert trials.duplicated("onset_s").any()
    assertions.assert_repetitions(trials.drop(columns="repetition"))


def test_trials_that_cannot_be_told_apart_are_refused(trials):
    with pytest.raises(DatasetError, match="neither onset_s nor repetition"):
        assertions.assert_repetitions(trials.drop(columns=["onset_s", "repetition"]))
    with pytest.raises(DatasetError, match="no column split, which the check for leaks needs"):
        assertions.assert_images(trials.drop(columns="split"))


# ----------------------------------------------------------------------------------- subject


def test_subject(trials):
    table = splits.leave_one_subject_out(trials, "sub-02")
    assert assertions.assert_subjects(table).n == 2
    with pytest.raises(LeakageError, match="'sub-01' has 6 trials in test and 30 in train or val"):
        assertions.assert_subjects(trials)


# ----------------------------------------------------------------------------------- picture


def variants(picture: np.ndarray) -> dict[str, np.ndarray]:
    """What happens to a picture on its way from one collection to another."""
    image = Image.fromarray(picture)
    width, height = image.size
    saved = io.BytesIO()
    image.save(saved, "JPEG", quality=30)
    noise = np.random.default_rng(0).normal(0, 4, picture.shape)
    changed = {
        "JPEG": Image.open(saved).convert("RGB"),
        "halved": image.resize((width // 2, height // 2), Image.Resampling.BICUBIC),
        "brighter": ImageEnhance.Brightness(image).enhance(1.1),
        "grey": image.convert("L").convert("RGB"),
        "noise": Image.fromarray(np.clip(picture + noise, 0, 255).astype(np.uint8)),
    }
    return {name: np.asarray(value) for name, value in changed.items()}


def test_the_same_pixels_under_another_name(images, pictures):
    assert assert_pictures(images, pictures).n == 12
    pictures[9] = pictures[4]
    with pytest.raises(LeakageError, match=r"'i04' \(train\) and 'i09' \(val\) are the same"):
        assert_pictures(images, pictures)
    with pytest.raises(LeakageError, match="pixel by pixel"):
        assert_pictures(images, pictures, max_distance=None)


@pytest.mark.parametrize("what", ["JPEG", "halved", "brighter", "grey", "noise"])
@pytest.mark.parametrize("row", [9, 11])
def test_nearly_the_same_picture(images, what, row):
    drawn = stimuli_pictures.make_stimuli(17, 0, 2, 2, 64, np.random.default_rng(5)).pictures[:12]
    pictures = list(drawn)
    assert_pictures(images, pictures)
    pictures[row] = variants(drawn[4])[what]
    message = rf"'i{row:02d}' \({SPLIT[row]}\) and 'i04' \(train\) are nearly the same .* of 255"
    with pytest.raises(LeakageError, match=message):
        assert_pictures(images, pictures)
    assert_pictures(images, pictures, max_distance=None)  # the pixels do differ


def test_the_threshold_stands_between_variants_and_other_pictures():
    """The figures in the documentation of `perceptual_hash`, on photographs."""
    shown = [getattr(photographs, n)() for n in ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field")]  # fmt: skip
    shown = [np.ascontiguousarray(p[:300, :300]) for p in shown]

    def distance(a, b):
        bits = [perceptual_hash(p)[0].view(np.uint8) for p in (a, b)]
        return int((np.unpackbits(bits[0]) != np.unpackbits(bits[1])).sum())

    near = [distance(p, v) for p in shown for v in variants(p).values()]
    far = [distance(a, b) for i, a in enumerate(shown) for b in shown[:i]]
    assert max(near) <= 20 < assertions.MAX_DISTANCE < 60 < min(far)


def test_drawings_of_different_splits_are_different_pictures():
    drawn = stimuli_pictures.make_stimuli(120, 80, 20, 20, 64, np.random.default_rng(3))
    assert assert_pictures(drawn.table, drawn.pictures).n == 240


def test_plain_pictures_are_compared_by_their_pixels_only(images):
    plain = [np.full((48, 48, 3), 20 * k, np.uint8) for k in range(12)]
    assert_pictures(images, plain)
    plain[10] = plain[3]
    with pytest.raises(LeakageError, match="'i03' .* and 'i10'"):
        assert_pictures(images, plain)


def test_pictures_in_files(images, pictures, tmp_path):
    files = [tmp_path / f"{i}.png" for i in images["image_id"]]
    for file, picture in zip(files, pictures, strict=True):
        Image.fromarray(picture).save(file)
    assert assert_pictures(images, files).n == 12
    Image.fromarray(pictures[0]).save(files[11], compress_level=0)  # other bytes, same pixels
    with pytest.raises(LeakageError, match="'i00' .* and 'i11'"):
        assert_pictures(images, files)
    files[2].write_bytes(files[2].read_bytes()[:100])
    with pytest.raises(DatasetError, match=r"i02\.png cannot be read as a picture"):
        assert_pictures(images, files)


def test_pictures_that_cannot_be_compared(images, pictures):
    with pytest.raises(DatasetError, match="11 pictures for 12 images"):
        assert_pictures(images, pictures[:11])
    with pytest.raises(DatasetError, match=r"a picture is float32 \(48, 48, 3\)"):
        assert_pictures(images, pictures.astype(np.float32))


# ------------------------------------------------------------------------ duplicate recording


def test_trials_that_were_copied(trials, eeg):
    assert assert_trials_unique(eeg, trials).n == 72
    source, target = 3, 47  # sub-01 train, sub-02 test
    eeg[target] = eeg[source]
    message = r"1 trials .*, 1 of them of another split or subject: row 3 \(sub-01, train\) and row 47 \(sub-02, test\)\. Was a recording copied"
    with pytest.raises(LeakageError, match=message):
        assert_trials_unique(eeg, trials, chunk=7)


def test_a_pair_between_subjects_is_named_before_one_within(trials, eeg):
    eeg[1], eeg[40] = eeg[0], eeg[30]
    assert trials["subject"][[30, 40]].tolist() == ["sub-01", "sub-02"]
    with pytest.raises(LeakageError, match=r"2 trials .*, 1 of them .*: row 30 .* and row 40"):
        assert_trials_unique(eeg, trials)


def test_one_bit_makes_another_trial(trials, eeg):
    eeg[47] = eeg[3]
    eeg[47, 3, 24] = np.nextafter(eeg[47, 3, 24], np.float32(9))
    assert_trials_unique(eeg, trials)


def test_trials_without_signal_are_called_that(trials, eeg):
    eeg[[5, 50]] = 0
    with pytest.raises(LeakageError, match="hold no signal at all"):
        assert_trials_unique(eeg, trials)


def test_rows_say_which_trials_are_meant(trials, eeg):
    eeg[47] = eeg[3]
    table = splits.leave_one_subject_out(trials, "sub-02")
    assert 3 in table.index and 47 in table.index
    rows = table.index.to_numpy()
    with pytest.raises(LeakageError, match=r"row 3 \(sub-01, train\) and row 47 \(sub-02, test\)"):
        assert_trials_unique(eeg, table, rows)
    keep = table.drop(index=47)
    assert assert_trials_unique(eeg, keep, keep.index.to_numpy()).n == len(keep)
    with pytest.raises(DatasetError, match="72 rows of EEG for 35 trials"):
        assert_trials_unique(eeg, keep)


def test_recordings_larger_than_memory_are_streamed():
    class Signal:
        """Reads like an array, holds nothing, and says how much it was asked for at once."""

        asked = []

        def __len__(self):
            return 2000

        def __getitem__(self, rows):
            self.asked.append(len(rows))
            return np.repeat(np.asarray(rows, np.float32), 20_000).reshape(len(rows), 20, 1000)

    trials = pd.DataFrame({"subject": "sub-01", "split": ["train"] * 2000})
    tracemalloc.start()
    finding = assert_trials_unique(Signal(), trials, chunk=16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert finding.n == 2000 and max(Signal.asked) == 16
    assert peak < 10e6  # 160 MB in all, 1.3 MB in a block


def test_files_that_were_copied(tmp_path):
    rng = np.random.default_rng(0)
    files = []
    for name in ("sub-01", "sub-02", "sub-03"):
        header = tmp_path / f"{name}.vhdr"
        header.write_text(f"DataFile={name}.eeg\n")
        header.with_suffix(".eeg").write_bytes(rng.bytes(1000))
        files.append(header)
    assert assert_files_unique(files).n == 3
    (tmp_path / "sub-03.eeg").write_bytes((tmp_path / "sub-01.eeg").read_bytes())
    with pytest.raises(LeakageError, match=r"sub-01\.eeg and .*sub-03\.eeg have the same content"):
        assert_files_unique(files)
    with pytest.raises(LeakageError, match=r"b\.edf have the same content"):
        for name in ("a.edf", "b.edf"):
            (tmp_path / name).write_bytes(b"one recording")
        assert_files_unique([tmp_path / "a.edf", tmp_path / "b.edf"])
    with pytest.raises(DatasetError, match=r"c\.edf is not there"):
        assert_files_unique([tmp_path / "c.edf"])


# -------------------------------------------------------------------------------- normaliser


def rows_of(trials, *which, subject="sub-01"):
    return np.flatnonzero(trials["split"].isin(which) & (trials["subject"] == subject))


def test_a_fit_on_training_rows(trials):
    record = record_fit("whitener sub-01", trials, rows_of(trials, "train"))
    assert record.n == 24 and record.splits == ("train",) and record.subjects == ("sub-01",)
    finding = assert_fitted_on(record, trials)
    assert finding.compared == "whitener sub-01: rows of train" and finding.verdict == "clean"
    # whatever the order of the rows, and after a table with gaps made numbers of the repetitions
    shuffled = trials.sample(frac=1, random_state=1)
    assert_fitted_on(record, shuffled.assign(repetition=shuffled["repetition"] * 1.0))
    own = trials[trials["subject"] == "sub-01"]
    assert record_fit("whitener sub-01", own, rows_of(own, "train")) == record


def test_a_fit_that_saw_the_test(trials):
    record = record_fit("whitener", trials, rows_of(trials, "train", "test"))
    with pytest.raises(LeakageError, match="whitener was fitted with rows of test; allowed is train and val"):  # fmt: skip
        assert_fitted_on(record, trials)
    with pytest.raises(LeakageError, match="rows of val; allowed is train"):
        record = record_fit("scaler", trials, rows_of(trials, "train", "val"))
        assert_fitted_on(record, trials, allowed=("train",))


def test_a_declared_transductive_fit_is_labelled(trials):
    rows = rows_of(trials, "train", "test")
    record = record_fit("whitener", trials, rows, transductive=True)
    assert assert_fitted_on(record, trials).verdict == "transductive, declared"
    published = FitRecord("MVNN", "", (), ("sub-01",), ("train", "test"), 0, True)
    assert "not verifiable" in assert_fitted_on(published, trials).verdict
    fewer = record_fit("whitener", trials, rows[1:], transductive=True)
    with pytest.raises(LeakageError, match="saw other rows"):  # a declaration is no free ride
        assert_fitted_on(fewer, trials)


@pytest.mark.parametrize(
    "rows",
    [
        lambda t: rows_of(t, "train")[:-1],
        lambda t: np.append(rows_of(t, "train")[1:], rows_of(t, "train", subject="sub-02")[0]),
    ],
)
def test_a_fit_that_claims_training_but_saw_other_rows(trials, rows):
    record = record_fit("whitener", trials, rows(trials))
    assert record.splits == ("train",)
    with pytest.raises(LeakageError, match="claims to be fitted with train of sub-01.* saw other rows"):  # fmt: skip
        assert_fitted_on(record, trials)


def test_a_forged_claim_is_found_by_the_digest(trials):
    honest = record_fit("whitener", trials, rows_of(trials, "train"))
    sneaky = record_fit("whitener", trials, rows_of(trials, "train", "test"))
    forged = FitRecord(
        "whitener", sneaky.digest, honest.keys, honest.subjects, honest.splits, honest.n
    )
    with pytest.raises(LeakageError, match="saw other rows"):
        assert_fitted_on(forged, trials)


def test_a_split_that_changed_since_the_fit(trials):
    record = record_fit("whitener", trials, rows_of(trials, "train"))
    trials.loc[trials["image_id"] == "i00", "split"] = "test"
    with pytest.raises(LeakageError, match=r"\(24\) than these are now \(21\)"):
        assert_fitted_on(record, trials)


def test_a_fit_of_the_left_out_subject_is_no_leaving_out(trials):
    record = record_fit("whitener sub-02", trials, rows_of(trials, "train", subject="sub-02"))
    assert_fitted_on(record, trials)
    with pytest.raises(LeakageError, match=r"\(24\) than these are now \(0\)"):
        assert_fitted_on(record, splits.leave_one_subject_out(trials, "sub-02"))


def test_a_fit_on_images(images, trials):
    train = np.flatnonzero(images["split"] == "train")
    record = record_fit("centre of the targets", images, train)
    assert record.keys == ("image_id",) and record.subjects == ()
    assert_fitted_on(record, images)
    assert_fitted_on(record, trials)  # the same images, many times
    whole = record_fit("centre of the targets", images, np.arange(12))
    with pytest.raises(LeakageError, match="rows of test"):
        assert_fitted_on(whole, images)
    by_trial = record_fit("whitener", trials, rows_of(trials, "train"))
    with pytest.raises(DatasetError, match="has no column subject, repetition"):
        assert_fitted_on(by_trial, images)


# -------------------------------------------------------------------------------- checkpoint


def history() -> pd.DataFrame:
    top5 = [0.1, np.nan, 0.4, np.nan, 0.3]  # scored every other epoch
    return pd.DataFrame({"epoch": [0, 1, 2, 3, 4], "top-5": top5, "loss": [5.0, 4, 3, 2, 2]})


def test_a_choice_on_validation():
    record = record_choice(history(), "top-5", "val", 2)
    assert record.epochs == (0, 2, 4) and record.values == (0.1, 0.4, 0.3)
    assert assert_checkpoint(record).n == 3
    for tied in (3, 4):
        assert_checkpoint(record_choice(history(), "loss", "train", tied, mode="min"))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (record_choice(history(), "top-5", "test", 2), "chosen by top-5 on 'test'"),
        (record_choice(history(), "top-5", "val", 4),
         "epoch 4 was kept with top-5 = 0.3 on val, but epoch 2 has 0.4"),
        (record_choice(history(), "loss", "val", 0, mode="min"), "epoch 3 has 2"),
        (record_choice(history(), "top-5", "val", 3), "epoch 3 .* not among the 3"),
        (CheckpointRecord("top-5", "val", (0, 1), (0.1,), 0), "2 epochs and 1 values"),
        (CheckpointRecord("top-5", "val", (0,), (np.nan,), 0), "no numbers"),
    ],
)  # fmt: skip
def test_a_choice_that_is_refused(record, message):
    with pytest.raises(LeakageError, match=message):
        assert_checkpoint(record)


def test_records_are_stored_and_read(trials, tmp_path):
    path = tmp_path / "fits.json"
    records = [
        record_fit("whitener", trials, rows_of(trials, "train")),
        record_choice(history(), "top-5", "val", 2),
    ]
    write_records(path, records)
    assert read_records(path) == records
    for broken in ("[{}]", "{", '[{"kind": "Other"}]', '[{"kind": "FitRecord", "name": "x"}]', "[3]"):  # fmt: skip
        path.write_text(broken)
        with pytest.raises(DatasetError, match=r"fits\.json cannot be read as (JSON|records)"):
            read_records(path)
    with pytest.raises(DatasetError, match="cannot be read as JSON"):
        read_records(tmp_path / "none.json")


# ------------------------------------------------------------------------------- all together


def test_the_audit_of_clean_data(trials, images, pictures, eeg, tmp_path):
    files = [tmp_path / f"{k}.edf" for k in range(2)]
    for k, file in enumerate(files):
        file.write_bytes(bytes([k]) * 100)
    table = splits.leave_one_subject_out(trials, "sub-02")
    records = [
        record_fit("whitener sub-01", trials, rows_of(trials, "train")),
        record_fit("centre", images, np.flatnonzero(images["split"] == "train")),
        record_choice(history(), "top-5", "val", 2),
    ]
    audit = assertions.audit(
        table, images=images, pictures=pictures, eeg=eeg, rows=table.index.to_numpy(), files=files,
        records=records, new_subjects=True,
    )  # fmt: skip
    assert audit["check"].tolist() == [
        "image", "picture", "concept", "repetition", "subject", "duplicate recording",
        "duplicate recording", "normaliser", "normaliser", "checkpoint",
    ]  # fmt: skip
    assert set(audit["verdict"]) == {"clean"} and (audit["n"] > 0).all()
    assert list(audit) == ["check", "compared", "n", "verdict"]


def test_the_audit_says_what_it_could_not_check(trials):
    audit = assertions.audit(trials).set_index("check")["verdict"]
    assert (audit[["image", "concept", "repetition"]] == "clean").all()
    rest = ["picture", "subject", "duplicate recording", "normaliser", "checkpoint"]
    assert (audit[rest] == "not checked").all()


def test_the_audit_names_all_leaks_at_once(trials, eeg):
    eeg[47] = eeg[3]
    choice = record_choice(history(), "top-5", "test", 2)
    with pytest.raises(LeakageError) as caught:
        assertions.audit(trials, eeg=eeg, records=[choice])
    message = str(caught.value)
    assert message.startswith("2 of 9 checks found a leak")
    assert "duplicate recording: 1 trials" in message and "checkpoint: the checkpoint" in message
    audit = assertions.audit(trials, eeg=eeg, records=[choice], strict=False)
    assert audit.loc[audit["verdict"] == "LEAK", "check"].tolist() == [
        "duplicate recording", "checkpoint",
    ]  # fmt: skip
