"""The pictures of THINGS-EEG2: numbers, names, and concepts that must not be in both partitions."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import things_eeg2_files as files

from sgdm_utils.datasets.things_eeg2 import images
from sgdm_utils.errors import DatasetError


def image_root(tmp_path: Path, **options) -> Path:
    settings = {"n_train_concepts": 5, "images_per_concept": 2, "n_test": 3} | options
    files.write_image_set(tmp_path, rng=np.random.default_rng(3), size=8, **settings)
    return tmp_path


def edit_metadata(root: Path, change) -> None:
    path = root / "image_set" / "image_metadata.npy"
    content = np.load(path, allow_pickle=True).item()
    change(content)
    np.save(path, content, allow_pickle=True)


def test_numbers_follow_the_metadata_and_the_sorted_folders_are_the_same(tmp_path):
    root = image_root(tmp_path)
    table = images.load_image_set(root)
    train = table[table["partition"] == "train"].reset_index(drop=True)
    assert train["number"].tolist() == list(range(1, 11))
    for row in train.itertuples():  # number = (concept - 1) * images per concept + image
        concept = int(row.stim_file.split("/")[1][:5])
        image = int(re.search(r"_(\d\d)[bsn]\.jpg$", row.stim_file).group(1))
        assert row.number == (concept - 1) * 2 + image
        assert row.image_id + ".jpg" == row.stim_file
        assert row.concept == row.stim_file.split("/")[1][6:].replace("_", " ")
    assert table.attrs["order"] == "image_metadata.npy"
    (root / "image_set" / "image_metadata.npy").unlink()
    (root / "image_set" / "training_images" / ".DS_Store").touch()
    listed = images.load_image_set(root)
    assert "sorted folders" in listed.attrs["order"]
    pd.testing.assert_frame_equal(listed, table)


def test_metadata_has_the_published_keys(tmp_path):
    path = image_root(tmp_path) / "image_set" / "image_metadata.npy"
    stored = np.load(path, allow_pickle=True)
    assert stored.shape == () and stored.dtype == object
    assert list(stored.item()) == [
        "train_img_concepts", "train_img_concepts_THINGS", "train_img_files",
        "test_img_concepts", "test_img_concepts_THINGS", "test_img_files",
    ]  # fmt: skip


def test_one_concept_in_both_partitions_is_noticed_by_its_index_in_things(tmp_path):
    root = image_root(tmp_path)

    def share(content):
        content["test_img_concepts_THINGS"][0] = content["train_img_concepts_THINGS"][4]

    edit_metadata(root, share)
    with pytest.raises(DatasetError, match="is in the training and in the test images"):
        images.load_image_set(root)


def test_one_concept_in_both_partitions_is_noticed_without_metadata(tmp_path):
    root = image_root(tmp_path)
    (root / "image_set" / "image_metadata.npy").unlink()
    word = sorted((root / "image_set" / "training_images").iterdir())[2].name[6:]
    first = sorted((root / "image_set" / "test_images").iterdir())[0]
    first.rename(first.with_name(f"00001_{word}"))  # another index, the same word
    with pytest.raises(DatasetError, match=rf"concept '{word}' is in the training and in the test"):
        images.load_image_set(root)


def test_equal_words_of_different_concepts_stay_apart(tmp_path):
    root = image_root(tmp_path)

    def same_word(content):  # as if THINGS had two entries called alike
        old = content["test_img_concepts"][0]
        word = content["train_img_concepts"][0][6:]
        content["test_img_concepts"][0] = f"00001_{word}"
        folder = root / "image_set" / "test_images"
        (folder / old).rename(folder / f"00001_{word}")

    edit_metadata(root, same_word)
    table = images.load_image_set(root)
    train, test = (set(table["concept"][table["partition"] == p]) for p in ("train", "test"))
    assert not train & test and len(train | test) == 8
    assert sum("(" in c for c in train | test) == 2


def lose_pictures(root):
    for path in sorted((root / "image_set" / "training_images").rglob("*_02?.jpg"))[:3]:
        path.unlink()


def double_picture(content):
    content["train_img_files"][1] = content["train_img_files"][0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lose_pictures, r"training_images/\S+_02[bsn]\.jpg is not there \(3 of 13 pictures"),
        (lambda root: shutil.rmtree(root / "image_set" / "test_images"),
         r"test_images is not there: unpack test_images\.zip"),
        (lambda root: (root / "image_set").rename(root / "images_set"),
         r"image_set is not there \(there is images_set/: rename it\)"),
        (lambda root: edit_metadata(root, lambda c: c["train_img_files"].pop()),
         r"unequal length: train_img_concepts has 10.*train_img_files has 9"),
        (lambda root: edit_metadata(root, lambda c: c.pop("test_img_files")),
         r"no key 'test_img_files'; there is 'train_img_concepts'"),
        (lambda root: edit_metadata(root, double_picture),
         r"the picture 'training_images/\S+_01.' is listed twice"),
    ],
)  # fmt: skip
def test_a_faulty_image_set_is_named(tmp_path, spoil, message):
    root = image_root(tmp_path)
    spoil(root)
    with pytest.raises(DatasetError, match=message):
        images.load_image_set(root)
