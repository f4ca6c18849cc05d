"""Splits beyond the first one: the published partition, a left-out subject, what is frozen with it."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from sgdm_utils.datasets import splits
from sgdm_utils.datasets.splits import SplitError
from sgdm_utils.workflow import paths

EVENTS = paths.project_root().parent / "shared" / "data" / "things_eeg2_events"


def published(n_train: int = 50, per_concept: int = 10, n_test: int = 8) -> pd.DataFrame:
    """Images as a reader of THINGS-EEG2 lists them: folders numbered anew in each partition."""
    rows = []
    for c in range(n_train):
        for i in range(per_concept):
            rows.append((f"train/{c:05d}_thing{c}/{i}", f"{c + 1:05d}_thing{c}", "train"))
    for c in range(n_test):
        rows.append((f"test/{c:05d}_other{c}/0", f"{c + 1:05d}_other{c}", "test"))
    return pd.DataFrame(rows, columns=["image_id", "concept", "partition"])


def trials() -> pd.DataFrame:
    """Three subjects see the same images: 6 of train, 2 of val, 2 of test, each twice."""
    images = pd.DataFrame(
        {
            "image_id": [f"i{k}" for k in range(10)],
            "concept": [f"c{k}" for k in range(10)],
            "split": ["train"] * 6 + ["val"] * 2 + ["test"] * 2,
        }
    )
    parts = [
        images.assign(subject=subject, repetition=repetition)
        for subject in ("sub-01", "sub-02", "sub-03")
        for repetition in (0, 1)
    ]
    return pd.concat(parts, ignore_index=True)


# ---------------------------------------------------------------------- the published split


def test_the_published_split_gets_whole_concepts_for_validation():
    images = published()
    table = splits.from_partition(images, np.random.default_rng(0), val_concepts=5)
    assert (table["split"] == "test").tolist() == (images["partition"] == "test").tolist()
    val = table[table["split"] == "val"]
    assert val["concept"].nunique() == 5 and len(val) == 5 * 10  # all images of each
    assert not set(val["concept"]) & set(table["concept"][table["split"] == "train"])
    assert table["image_id"].tolist() == images["image_id"].tolist()
    assert table.attrs == {
        "scheme": "published", "val_concepts": 5, "dropped_concepts": 0, "dropped_images": 0,
    }  # fmt: skip


def test_the_draw_of_validation_concepts_depends_on_the_generator_only():
    images = published()
    first, again, other = (
        splits.from_partition(rows, np.random.default_rng(seed), 5)
        for rows, seed in ((images, 0), (images.sample(frac=1, random_state=3), 0), (images, 1))
    )
    pd.testing.assert_frame_equal(first, again.sort_index())  # not on the order of the rows
    assert (first["split"] != other["split"]).any()


@pytest.mark.parametrize(
    ("val_concepts", "count"), [(1, 1), (0.1, 5), (0.001, 1), (5.0, 5), (48, 48)]
)
def test_validation_concepts_as_number_or_share(val_concepts, count):
    table = splits.from_partition(published(), np.random.default_rng(0), val_concepts)
    assert table.loc[table["split"] == "val", "concept"].nunique() == count


def test_the_default_share_of_the_real_number_of_concepts():
    table = splits.from_partition(published(1654, 1, 200), np.random.default_rng(0))
    assert table.groupby("split")["concept"].nunique().to_dict() == {
        "test": 200, "train": 1555, "val": 99,
    }  # fmt: skip


@pytest.mark.parametrize("val_concepts", [0, -1, 1.5])
def test_no_validation_is_refused(val_concepts):
    with pytest.raises(SplitError, match="the epoch would be chosen on the test"):
        splits.from_partition(published(), np.random.default_rng(0), val_concepts)


def test_too_much_validation_is_refused():
    with pytest.raises(SplitError, match="49 validation concepts leave 1 of 50"):
        splits.from_partition(published(), np.random.default_rng(0), 49)


@pytest.mark.parametrize("name", ["00007_thing3", "00001_Thing3", "thing3"])
def test_a_concept_of_both_partitions_is_refused_under_any_folder_number(name):
    images = published()
    images.loc[len(images)] = ["test/x", name, "test"]
    with pytest.raises(SplitError, match="1 concepts are in both published partitions: 'thing3'"):
        splits.from_partition(images, np.random.default_rng(0))


def test_shared_concepts_are_taken_out_of_training_and_counted():
    images = published()
    images.loc[len(images)] = ["test/x", "00099_thing3", "test"]
    table = splits.from_partition(images, np.random.default_rng(0), 5, drop_shared=True)
    assert len(table) == len(images) - 10 and "00004_thing3" not in set(table["concept"])
    assert table.loc[table["image_id"] == "test/x", "split"].item() == "test"
    assert table.attrs["dropped_concepts"] == 1 and table.attrs["dropped_images"] == 10


def test_a_number_that_is_the_name_is_not_taken_off():
    names = {"00012_dog": "dog", "Dog": "dog", "12-dog": "dog", "12_34": "12_34", "7": "7"}
    assert {n: splits.folded_concept(n) for n in names} == names
    assert splits.folded_concept("00074_face_mask") == "face_mask"
    assert splits.folded_concept("00001_étoile") == "étoile"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.drop(columns="partition"), "no column partition"),
        (lambda t: t.assign(partition=""), r"'train/0+_thing0/0' \(one of 508\).*assign_split"),
        (lambda t: t[t["partition"] == "train"], "all 500 images are of the partition 'train'"),
    ],
)
def test_images_without_a_published_split_are_refused(spoil, message):
    with pytest.raises(SplitError, match=message):
        splits.from_partition(spoil(published()), np.random.default_rng(0))


@pytest.mark.skipif(not EVENTS.is_dir(), reason="the real event tables are not beside the checkout")
def test_the_real_folders_are_zero_shot_although_their_numbers_repeat():
    parts = []
    for file in sorted(EVENTS.glob("sub-01_ses-0[12]/*_events.tsv")):
        part = pd.read_csv(file, sep="\t", encoding="utf-8-sig", na_values="n/a")
        part = part[part["trial_type"] == "image"]
        partition = "test" if "task-test" in file.name else "train"
        names = partition + "-" + part["tot_img_number"].astype(int).astype(str)
        parts.append(
            pd.DataFrame(
                {"image_id": names, "concept": part["category_name"], "partition": partition}
            )
        )
    images = pd.concat(parts).drop_duplicates()
    table = splits.from_partition(images, np.random.default_rng(0), 100)
    counts = table.groupby("split")["concept"].nunique().to_dict()
    assert counts == {"test": 200, "train": 1554, "val": 100}
    assert table["split"].value_counts().to_dict() == {"train": 15540, "val": 1000, "test": 200}
    numbers = table["concept"].str[:5]
    is_test = table["split"] == "test"
    assert set(numbers[is_test]) <= set(numbers[~is_test]), "the numbers alone would collide"


# ------------------------------------------------------------------- leaving one subject out


def test_a_left_out_subject_is_tested_on_new_pictures_only():
    table = splits.leave_one_subject_out(trials(), "sub-02")
    counts = table.groupby(["subject", "split"]).size().to_dict()
    assert counts == {
        ("sub-01", "train"): 12, ("sub-01", "val"): 4,
        ("sub-02", "test"): 4,
        ("sub-03", "train"): 12, ("sub-03", "val"): 4,
    }  # fmt: skip
    # the index says which rows of the EEG these are
    pd.testing.assert_frame_equal(table, trials().loc[table.index])


@pytest.mark.parametrize(
    ("table", "subject", "message"),
    [
        (trials(), "sub-9", "no trial of 'sub-9'; there is sub-01, sub-02, sub-03"),
        (trials().query("subject == 'sub-01'"), "sub-01", "nobody is left to train on"),
        (trials().query("split != 'test'"), "sub-01", "sub-01 has no test trial"),
        (trials().query("split == 'test'"), "sub-01", "the others have no training trial"),
        (trials().drop(columns="subject"), "sub-01", "no column subject"),
    ],
)
def test_what_cannot_be_left_out_is_said(table, subject, message):
    with pytest.raises(SplitError, match=message):
        splits.leave_one_subject_out(table, subject)


def test_a_leak_is_not_carried_into_a_left_out_split():
    table = trials()
    table.loc[(table["image_id"] == "i0") & (table["subject"] == "sub-01"), "split"] = "test"
    with pytest.raises(SplitError, match="'i0' is in test and train"):
        splits.leave_one_subject_out(table, "sub-01")


def test_a_subject_on_both_sides_is_refused():
    table = splits.leave_one_subject_out(trials(), "sub-02")
    splits.assert_subjects_disjoint(table)
    own = trials().query("subject == 'sub-02' and split == 'train'").head(3)
    with pytest.raises(SplitError, match="'sub-02' has 4 trials in test and 3 in train or val"):
        splits.assert_subjects_disjoint(pd.concat([table, own]))


# --------------------------------------------------------------------- what is frozen with it


def test_how_a_split_came_about_is_frozen_with_it(tmp_path):
    path = tmp_path / "split.tsv"
    table = splits.from_partition(published(), np.random.default_rng(7), 5)
    facts = {"seed": 7, "subjects": ["sub-01", "sub-02"], **table.attrs}
    splits.write_split(path, table, facts=facts)
    frozen = splits.read_facts(path)
    assert {k: frozen[k] for k in facts} == facts
    assert frozen["images"] == {"train": 450, "val": 50, "test": 8}
    assert frozen["concepts"] == {"train": 45, "val": 5, "test": 8}
    splits.write_split(path, table)  # without facts: those that are frozen stay
    assert splits.read_facts(path) == frozen
    splits.write_split(path, table, facts=facts)
    pd.testing.assert_frame_equal(splits.read_split(path), table, check_dtype=False)


def test_other_facts_about_a_frozen_split_are_refused(tmp_path):
    path = tmp_path / "split.tsv"
    table = splits.from_partition(published(), np.random.default_rng(7), 5)
    splits.write_split(path, table, facts={"seed": 7})
    before = path.with_suffix(".json").read_bytes()
    with pytest.raises(
        SplitError, match=r"split\.json says of the same split that seed is 7, not 8"
    ):
        splits.write_split(path, table, facts={"seed": 8})
    with pytest.raises(SplitError, match="the fact 'sha256' is counted"):
        splits.write_split(path, table, facts={"sha256": "0"})
    assert path.with_suffix(".json").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["split.json", "split.tsv"]
    splits.write_split(path, table, overwrite=True, facts={"seed": 8})
    assert splits.read_facts(path)["seed"] == 8


def test_facts_of_another_split_are_not_inherited(tmp_path):
    path = tmp_path / "split.tsv"
    first, other = (splits.from_partition(published(), np.random.default_rng(s), 5) for s in (0, 1))
    splits.write_split(path, first, facts={"seed": 0})
    splits.write_split(path, other, overwrite=True)
    assert "seed" not in splits.read_facts(path)


def test_a_broken_sidecar_is_named(tmp_path):
    path = tmp_path / "split.tsv"
    splits.write_split(path, splits.from_partition(published(), np.random.default_rng(0), 5))
    path.with_suffix(".json").write_text(json.dumps({"sha256": "0" * 64})[:-5])
    with pytest.raises(SplitError, match=r"split\.json cannot be read as JSON"):
        splits.read_split(path)
