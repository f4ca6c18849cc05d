"""Block designs: the drift of a recording without any brain in it decodes the class, and is refused.

The recordings are drawn here, channel by channel: a random walk from segment to segment, noise
within segments, and a response to the class only where a test says so.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sgdm_utils import block_designs
from sgdm_utils.block_designs import BlockDesignError, Segments
from sgdm_utils.datasets import DatasetError

N_CLASSES, N_ROUNDS, PER_BLOCK, CHANCE = 8, 3, 12, 1 / 8
N_RECORDINGS = 16


def recording(
    rng: np.random.Generator,
    design: str = "blocks",
    drift: float = 0.3,
    response: float = 0.0,
    n_rounds: int = N_ROUNDS,
    gain_drift: float = 0.0,
    high_pass: bool = False,
) -> Segments:
    """Three rounds of all classes, each class twelve times in a row, or everything shuffled.

    drift, gain_drift : steps of the random walks of level and of log amplitude, per segment
    response : level of a pattern over channels that belongs to the class, noise being 1
    high_pass : take the mean out of every segment
    """
    n, n_channels, n_times = n_rounds * N_CLASSES * PER_BLOCK, 12, 40
    order = np.concatenate([rng.permutation(N_CLASSES) for _ in range(n_rounds)])
    label, turn = np.repeat(order, PER_BLOCK), np.repeat(np.arange(n_rounds), n // n_rounds)
    if design == "shuffled":
        label = rng.permuted(label.reshape(n_rounds, -1), axis=1).ravel()
    x = rng.normal(size=(n, n_channels, n_times))
    x *= np.exp(gain_drift * rng.normal(size=(n, n_channels, 1)).cumsum(0))
    x += drift * rng.normal(size=(n, n_channels, 1)).cumsum(0)
    x += response * rng.normal(size=(N_CLASSES, n_channels, 1))[label]
    if high_pass:
        x -= x.mean(2, keepdims=True)
    table = pd.DataFrame({"subject": 1, "label": [f"n{k:08d}" for k in label], "usable": True})
    table["image"] = [f"image_{i}" for i in range(n)]
    table["block"] = [f"{t}/{k}" for t, k in zip(turn, label, strict=True)]
    return Segments(table, list(x))


def accuracies(leave_out: str, features: str = "mean", **options) -> np.ndarray:
    """One accuracy for each of independent recordings."""
    values = []
    for seed in range(N_RECORDINGS):
        rng = np.random.default_rng(seed)
        found = block_designs.drift_baseline(
            recording(rng, **options), leave_out, rng, features=features
        )
        assert found.chance == CHANCE
        values.append(found.accuracy)
    return np.array(values)


def assert_at_chance(values: np.ndarray) -> None:
    """Within three standard errors of guessing, where the error is small enough to mean something."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert error < 0.015
    assert abs(values.mean() - CHANCE) < 3 * error + 0.005


# --------------------------------------------------------------------- the demonstration


def test_drift_alone_decodes_the_class_within_blocks():
    values = accuracies("segments")
    assert values.min() > 0.7, "no brain, no picture, and eight classes are told apart"


def test_drift_alone_decodes_nothing_when_whole_blocks_are_left_out():
    assert_at_chance(accuracies("blocks"))


def test_without_drift_there_is_nothing_to_find_within_blocks_either():
    assert_at_chance(accuracies("segments", drift=0.0))


def test_when_presentation_is_shuffled_drift_says_nothing():
    assert_at_chance(accuracies("segments", design="shuffled"))


def test_a_response_to_the_class_survives_leaving_blocks_out():
    """The decoder is not blind: what is bound to the class and not to the time is found."""
    assert accuracies("blocks", drift=0.01, response=0.5).min() > 0.7
    assert accuracies("segments", design="shuffled", drift=0.01, response=0.5).min() > 0.7


def test_a_high_pass_filter_hides_the_mean_and_not_the_confound():
    options = {"high_pass": True, "gain_drift": 0.1}
    assert_at_chance(accuracies("segments", **options))
    assert accuracies("segments", features="power", **options).min() > 0.4
    assert_at_chance(accuracies("blocks", features="power", **options))


def test_blocks_not_segments_are_counted():
    rng = np.random.default_rng(0)
    found = block_designs.drift_baseline(recording(rng), "blocks", rng)
    assert len(found.by_block) == N_CLASSES * N_ROUNDS
    assert found.accuracy == pytest.approx(found.by_block.mean())
    # neighbours in a block share their fate, so the spread over blocks is far beyond binomial
    assert found.by_block.std() > 2 * np.sqrt(CHANCE * (1 - CHANCE) / PER_BLOCK)


def test_every_block_is_left_out_once_with_all_classes_in_training():
    segments = recording(np.random.default_rng(0))
    fold = block_designs._folds(segments.table, "blocks", np.random.default_rng(0), 5)
    assert pd.Series(fold).groupby(segments.table["block"]).nunique().eq(1).all()
    for held_out in range(N_ROUNDS):
        for part in (fold == held_out, fold != held_out):
            assert segments.table[part].groupby("label").size().nunique() == 1
            assert segments.table[part]["label"].nunique() == N_CLASSES
    within = block_designs._folds(segments.table, "segments", np.random.default_rng(0), 4)
    counts = pd.crosstab(segments.table["block"], within)
    assert (counts == PER_BLOCK // 4).all(axis=None)


def test_one_block_of_each_class_cannot_be_tested_at_all():
    rng = np.random.default_rng(0)
    segments = recording(rng, n_rounds=1)
    assert block_designs.drift_baseline(segments, "segments", rng).accuracy > 0.7
    with pytest.raises(BlockDesignError, match=r"shown in one block only\. .*cannot be told apart"):
        block_designs.drift_baseline(segments, "blocks", rng)
    uneven = recording(rng)
    first = uneven.table["block"] == uneven.table["block"].iloc[0]
    part = Segments(
        uneven.table[~first].reset_index(drop=True),
        [s for s, out in zip(uneven.signals, first, strict=True) if not out],
    )
    with pytest.raises(BlockDesignError, match=r"has 2 blocks, .* has 3"):
        block_designs.drift_baseline(part, "blocks", rng)


def test_questions_that_make_no_sense_are_refused():
    rng = np.random.default_rng(0)
    segments = recording(rng)
    with pytest.raises(DatasetError, match="'segments' or 'blocks'"):
        block_designs.drift_baseline(segments, "runs", rng)
    with pytest.raises(DatasetError, match="'mean' or 'power'"):
        block_designs.drift_baseline(segments, "blocks", rng, features="phase")
    with pytest.raises(DatasetError, match=r"0 usable segments of 0 class\(es\) of subject 7"):
        block_designs.drift_baseline(segments, "blocks", rng, subject=7)
    two = Segments(
        segments.table.assign(subject=np.arange(len(segments.table)) % 2), segments.signals
    )
    with pytest.raises(DatasetError, match="2 subjects; name one of 0, 1"):
        block_designs.drift_baseline(two, "blocks", rng)
    with pytest.raises(DatasetError, match="288 segments, and a table of 287 rows"):
        Segments(segments.table[1:], segments.signals)


# ------------------------------------------------------------------------------ the refusal


@pytest.mark.parametrize("form", ["perceivelab", "eeg_imagenet"])
def test_no_split_is_made_and_the_message_says_why_and_what_instead(tmp_path, form):
    with pytest.raises(BlockDesignError) as raised:
        block_designs.tables(tmp_path, form, ["sub-01"])
    message = str(raised.value)
    for words in ("block design", "Li et al. 2021", "Kilgallen et al. 2024", "drift", "class is the time",
                  "drift_baseline", "THINGS-EEG2", str(tmp_path)):  # fmt: skip
        assert words in message
    assert isinstance(raised.value, DatasetError)
    with pytest.raises(BlockDesignError):
        block_designs.read_epochs({"path": "x"}, tmp_path)


# ------------------------------------------------------------------------------- the files


def perceivelab(n_images: int = 4, seed: int = 0) -> dict:
    """Two subjects, three classes; a slow drift in the order of the file; lengths as they vary."""
    rng = np.random.default_rng(seed)
    dataset, level = [], np.zeros((128, 1))
    for subject in (1, 4):
        for label in range(3):
            for image in range(n_images):
                level = level + rng.normal(0, 0.5, (128, 1))
                length = (500, 512, 449, 601)[image % 4] if label == 0 else 500
                eeg = level + rng.normal(size=(128, length))
                dataset.append(
                    {"eeg": torch.tensor(eeg, dtype=torch.float32), "image": label * n_images + image,
                     "label": label, "subject": subject}
                )  # fmt: skip
    wnids = ["n02106662", "n02124075", "n02281787"]
    images = [f"{wnids[i // n_images]}_{i}" for i in range(3 * n_images)]
    return {"dataset": dataset, "labels": wnids, "images": images, "means": torch.zeros(128, 1),
            "stddevs": torch.ones(128, 1)}  # fmt: skip


def eeg_imagenet() -> dict:
    wnids = ["n02106662", "n03452741"]
    dataset = [
        {"eeg_data": torch.zeros(62, 501), "granularity": grain, "subject": subject, "label": wnid,
         "image": f"{wnid}_{i}.JPEG"}
        for subject in (0, 7) for grain in ("coarse", "fine") for wnid in wnids for i in range(3)
    ]  # fmt: skip
    images = [f"{w}_{i}.JPEG" for w in wnids for i in range(3)]
    return {"dataset": dataset, "labels": wnids, "images": images}


def write(path: Path, content, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_perceivelab_is_read_in_both_formats_of_torch(tmp_path, zipped):
    content = perceivelab()
    path = write(tmp_path / "eeg_5_95_std.pth", content, zipped)
    segments = block_designs.read_segments(path, "perceivelab")
    table = segments.table
    assert len(table) == 24 and table["subject"].unique().tolist() == [1, 4]
    assert table["label"].iloc[[0, 4, 8]].tolist() == ["n02106662", "n02124075", "n02281787"]
    assert table["image"].iloc[5] == "n02124075_5"
    # 450 to 600 samples are kept: the third and fourth of the first class are not
    assert np.flatnonzero(~table["usable"]).tolist() == [2, 3, 14, 15]
    assert table["n_samples"].iloc[:4].tolist() == [500, 512, 449, 601]
    assert torch.equal(segments.signals[7], content["dataset"][7]["eeg"])
    described = block_designs.describe(segments)
    assert described.loc[4].tolist() == [12, 10, 3, 12, 3, 1]


def test_published_splits_train_in_every_block_they_test(tmp_path):
    path = write(tmp_path / "eeg_5_95_std.pth", perceivelab())
    segments = block_designs.read_segments(path, "perceivelab")
    image = np.arange(24) % 4  # by image, as published: each class is in all three parts
    split = {"train": np.flatnonzero(image < 2).tolist(), "val": np.flatnonzero(image == 2).tolist(),
             "test": np.flatnonzero(image == 3).tolist()}  # fmt: skip
    file = write(tmp_path / "block_splits_by_image_all.pth", {"splits": [split]})
    (found,) = block_designs.read_splits(file, segments)
    assert found["test"].tolist() == split["test"]
    assert block_designs.block_overlap(segments, found) == 1.0
    whole = {"train": np.arange(4, 24), "test": np.arange(4)}
    assert block_designs.block_overlap(segments, whole) == 0.0
    for spoil, message in (
        (split | {"test": [99]}, "split 0: index 99 and the data set has 24"),
        (split | {"test": [0]}, "split 0: a segment is in two of train, val and test"),
        ({"train": [], "test": []}, "split 0 has no val; there is train, test"),
    ):
        with pytest.raises(DatasetError, match=message):
            block_designs.read_splits(write(file, {"splits": [spoil]}), segments)


def test_the_confound_shows_in_a_file_of_the_published_form(tmp_path):
    path = write(tmp_path / "eeg_5_95_std.pth", perceivelab(n_images=20))
    segments = block_designs.read_segments(path, "perceivelab")
    rng = np.random.default_rng(0)
    assert block_designs.drift_baseline(segments, "segments", rng, subject=4).accuracy > 0.8
    with pytest.raises(BlockDesignError, match="one block only"):
        block_designs.drift_baseline(segments, "blocks", rng, subject=4)


def test_only_the_usual_samples_are_looked_at(tmp_path):
    content = perceivelab(n_images=20)
    for entry in content["dataset"]:  # what lies outside 20..460 would give the class away
        entry["eeg"] = torch.randn(
            128, 500, generator=torch.Generator().manual_seed(entry["image"])
        )
        entry["eeg"][:, :20] += 1000 * entry["label"]
        entry["eeg"][:, 460:] += 1000 * entry["label"]
    segments = block_designs.read_segments(write(tmp_path / "e.pth", content), "perceivelab")
    found = block_designs.drift_baseline(segments, "segments", np.random.default_rng(0), subject=1)
    assert found.accuracy < 0.6  # three classes


def test_eeg_imagenet_is_read(tmp_path):
    segments = block_designs.read_segments(
        write(tmp_path / "EEG-ImageNet_1.pth", eeg_imagenet()), "eeg_imagenet"
    )
    assert len(segments.table) == 24 and segments.table["usable"].all()
    assert segments.table["block"].nunique() == 2 * 2 * 2
    assert segments.table.loc[3, ["label", "image"]].tolist() == ["n03452741", "n03452741_0.JPEG"]
    assert segments.crop == (40, 440)
    # shown once among the coarse and once among the fine: two blocks
    assert block_designs.describe(segments)["fewest_blocks_of_a_class"].tolist() == [2, 2]


def drop_key(content):
    del content["labels"]


def drop_entry_key(content):
    del content["dataset"][3]["subject"]


def wrong_channels(content):
    content["dataset"][3]["eeg"] = torch.zeros(62, 501)


def wrong_label(content):
    content["dataset"][3]["label"] = 40


def nothing(content):
    content["dataset"] = []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_key, r"eeg\.pth: the file has no labels; there is dataset, images"),
        (drop_entry_key, r"entry 3 has no subject; there is eeg, image, label"),
        (wrong_channels, r"entry 3: a signal of shape \(62, 501\), not \(128, time\).*perceivelab"),
        (wrong_label, r"entry 3: label 40 of 3"),
        (nothing, "holds no segment"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path, spoil, message):
    content = perceivelab()
    spoil(content)
    with pytest.raises(DatasetError, match=message):
        block_designs.read_segments(write(tmp_path / "eeg.pth", content), "perceivelab")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_or_missing_file_is_named(tmp_path, zipped):
    path = write(tmp_path / "eeg.pth", perceivelab(), zipped)
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(DatasetError, match=r"eeg\.pth is truncated, or no file of torch\.save"):
        block_designs.read_segments(path, "perceivelab")
    path.write_bytes(b"<!DOCTYPE html><html>")
    with pytest.raises(DatasetError, match="or no file of torch"):
        block_designs.read_segments(path, "perceivelab")
    path.unlink()
    with pytest.raises(DatasetError, match=r"eeg\.pth is missing"):
        block_designs.read_segments(path, "perceivelab")
    with pytest.raises(DatasetError, match="unknown form 'spampinato'"):
        block_designs.read_segments(path, "spampinato")


class _Malicious:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_file_does_nothing_and_is_reported(tmp_path, zipped):
    trace = tmp_path / "trace"
    content = perceivelab() | {"images": _Malicious(f"touch '{trace}'")}
    path = write(tmp_path / "eeg.pth", content, zipped)
    with pytest.raises(
        DatasetError, match=r"eeg\.pth asks for \w+\.system, .*Nothing of it was"
    ) as raised:
        block_designs.read_segments(path, "perceivelab")
    assert not trace.exists()
    assert "weights_only" not in str(raised.value), "no recipe for executing it"
