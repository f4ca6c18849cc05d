"""Published data sets through the real notebooks, on miniature trees in their exact form.

The chains `things_eeg2_mini` and `kilogram_mini` go from the files to the page. The other forms go
through `00_data` and `01_preprocessing`, where they differ; from there on all data are alike.
"""

from __future__ import annotations

import json

import mini_trees
import mne
import numpy as np
import pandas as pd
import papermill
import published_recipe
import pytest
import things_eeg2_files
from chain import once

from sgdm_utils.datasets import readers, splits
from sgdm_utils.datasets.leakage.fits import read_records
from sgdm_utils.datasets.things_eeg2 import arrays
from sgdm_utils.errors import DatasetError
from sgdm_utils.metrics import tables
from sgdm_utils.signals.files import TrialFile
from sgdm_utils.workflow import artifacts, config, paths

SMALL = things_eeg2_files.Design(n_train_concepts=6, n_test=4, test_repetitions=4)


@pytest.fixture(scope="session")
def things_run(tmp_path_factory):
    return once("things_eeg2_mini", tmp_path_factory, mini_trees.write_things_eeg2_mini)


@pytest.fixture(scope="session")
def kilogram_run(tmp_path_factory):
    """A study of one person, the smallest that there is."""
    return once("kilogram_mini", tmp_path_factory, mini_trees.write_kilogram_mini)


@pytest.fixture(params=[pytest.param("things_run", marks=pytest.mark.slow), "kilogram_run"])
def mini(request, monkeypatch):
    """One of the two chains, with the environment set so that its artifacts are found."""
    run = request.getfixturevalue(request.param)
    monkeypatch.setenv("SGDM_DATA", str(run.data))
    monkeypatch.setenv("SGDM_REPORTS", str(run.reports))
    return run


def as_published(session):
    """Both files of a session the way their authors open them: MNE, with the stimulus channel."""
    raws = {}
    for part in ("test", "training"):
        content = np.load(session / f"raw_eeg_{part}.npy", allow_pickle=True).item()
        info = mne.create_info(content["ch_names"], content["sfreq"], content["ch_types"])
        raws[part] = mne.io.RawArray(content["raw_eeg_data"], info, verbose="error")
    return raws


def joint(run, stage, seed=None):
    return artifacts.read_artifact(run.config.study, "joint", stage, seed, verify=True)


def run_notebooks(study, folder, monkeypatch, data, preprocessing):
    """Run 00 and, for the first subject, 01 with the given parameters; returns the artifact of 01."""
    monkeypatch.setenv("SGDM_DATA", str(folder / "data"))
    monkeypatch.setenv("SGDM_REPORTS", str(folder / "reports"))
    told = {"study": study, "subjects": ["sub-01"]} | data
    for name, parameters in (
        ("00_data", told),
        ("01_preprocessing", {"study": study, "subject": "sub-01"} | preprocessing),
    ):
        papermill.execute_notebook(
            paths.notebook_path(name), folder / f"{name}.ipynb", parameters, kernel_name="python3",
            cwd=str(folder), progress_bar=False,
        )  # fmt: skip
    return artifacts.read_artifact(study, "sub-01", "preprocessing")


# ------------------------------------------------------------------ the chains, 00 to 07


def test_the_chain_leaves_whole_artifacts_tables_and_a_page(mini):
    for step in config.plan(mini.config):
        artifacts.read_artifact(step.study, step.who, step.stage, step.seed, verify=True)
    folder = paths.report_dir(mini.config.study)
    assert (folder / "index.html").stat().st_size > 10_000
    for name in ("retrieval", "reconstruction", "structure", "runtime"):
        rows = tables.read_table(folder / "tables" / f"{name}.csv")
        assert len(rows) and not rows["transductive"].any(), name
    conditions = set(tables.read_table(folder / "tables" / "reconstruction.csv")["condition"])
    assert {
        "eeg",
        "shuffled_eeg",
        "mean_image",
        "class_only",
        "oracle",
        "no_structure",
    } <= conditions


def test_test_concepts_are_new_and_the_audit_saw_every_kind_of_leak(mini):
    split = splits.read_split(joint(mini, "data") / "split.tsv")
    concepts = split.groupby("split")["concept"].agg(set)
    assert not concepts["train"] & concepts["test"] and not concepts["train"] & concepts["val"]
    audit = pd.read_csv(joint(mini, "encoder", 0) / "audit.csv")
    done = audit[audit["verdict"] == "clean"]["check"]
    assert {"image", "picture", "concept", "repetition", "duplicate recording", "normaliser",
            "checkpoint"} <= set(done)  # fmt: skip


@pytest.mark.slow
def test_the_published_test_images_are_the_test_set(things_run, monkeypatch):
    monkeypatch.setenv("SGDM_DATA", str(things_run.data))
    images = pd.read_parquet(joint(things_run, "data") / "stimuli.parquet")
    assert set(images.loc[images["partition"] == "test", "split"]) == {"test"}
    assert set(images.loc[images["partition"] == "train", "split"]) == {"train", "val"}
    eeg = TrialFile(things_run.data / "derived/things_eeg2_mini/sub-01/preprocessing/eeg.npy")
    assert eeg.shape[1:] == (63, 120)
    (record,) = read_records(eeg.path.parent / "fits.json")
    assert record.splits == ("train",) and not record.transductive


def test_tangrams_bring_their_geometry(kilogram_run, monkeypatch):
    monkeypatch.setenv("SGDM_DATA", str(kilogram_run.data))
    data = joint(kilogram_run, "data")
    relations, pieces = np.load(data / "relations.npy"), np.load(data / "pieces.npy")
    assert (relations >= 0).all() and relations.shape[1:] == (7, 7)
    assert all(set(np.unique(p)) == set(range(8)) for p in pieces)


@pytest.mark.parametrize("study", ["things_eeg2", "kilogram"])
def test_the_miniature_sets_what_the_study_sets(study):
    """A dry run of the miniature is a dry run of the study's own choices in 00 and 01."""
    full, small = config.load_study(study).notebooks, config.load_study(f"{study}_mini").notebooks
    for notebook, free in (("00_data", {"raw_name", "val_fraction"}), ("01_preprocessing", set())):
        assert {k: v for k, v in full[notebook].items() if k not in free} == {
            k: v for k, v in small[notebook].items() if k not in free
        }


# --------------------------------------------------------------- THINGS-EEG2, as published


PUBLISHED = config.load_study("things_eeg2_published").notebooks


@pytest.mark.parametrize("mode", ["time", "epochs"])
def test_notebook_01_equals_the_published_recipe(tmp_path, monkeypatch, mode):
    root = tmp_path / "data" / "raw" / "things"
    things_eeg2_files.write_tree(root, "things_eeg2_raw", ("sub-01",), SMALL)
    keep = {"train": 2, "test": SMALL.test_repetitions}
    artifact = run_notebooks(
        "published", tmp_path, monkeypatch,
        PUBLISHED["00_data"] | {"raw_name": "things"},
        PUBLISHED["01_preprocessing"] | {"mvnn": mode, "max_repetitions": keep},
    )  # fmt: skip
    sessions = [as_published(root / f"raw_data/sub-01/ses-{s:02d}") for s in SMALL.sessions]
    keep = {"training": 2, "test": SMALL.test_repetitions}
    theirs = published_recipe.official_chain(sessions, mode, keep)
    trials, eeg = pd.read_parquet(artifact / "trials.parquet"), np.load(artifact / "eeg.npy")
    assert list(json.loads((artifact / "montage.json").read_text())["positions_m"]) == (
        things_eeg2_files.OFFICIAL_17
    )
    assert np.allclose(np.load(artifact / "times.npy"), np.arange(-0.2, 0.795, 0.01))
    for part, of_part in (
        ("training", trials["split"] != "test"),
        ("test", trials["split"] == "test"),
    ):
        groups = trials[of_part].groupby("image_id").indices
        rows = np.flatnonzero(of_part)
        assert len(groups) == len(theirs[part])
        for mine, published in zip(groups.values(), theirs[part], strict=True):
            ours = eeg[rows[mine]]
            # the order of repetitions is of no consequence: pair each with the nearest
            distance = np.abs(ours[:, None] - published[None]).max(axis=(2, 3))
            assert sorted(distance.argmin(1)) == list(range(len(published)))
            assert distance.min(1).max() < 2e-4 * np.abs(published).max()
    # a whitener that saw test trials is declared, and its record agrees with the table
    (record,) = read_records(artifact / "fits.json")
    assert artifact.notes["transductive"] and record.transductive and "test" in record.splits


# ------------------------------------------------------------------------- the other forms


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("things_eeg2_preprocessed", "official"),
        ("things_eeg2_preprocessed", "250hz"),
        ("things_eeg2_bids", ""),
        ("things_eeg2_source", ""),
    ],
)
def test_every_form_of_things_eeg2_gives_the_common_result(tmp_path, monkeypatch, form, kind):
    root = tmp_path / "data" / "raw" / "things"
    things_eeg2_files.write_tree(root, form, ("sub-01",), SMALL, kind=kind or "official")
    epochs = form == "things_eeg2_preprocessed"
    setting = (
        {"mvnn": "none"}
        if epochs
        else config.load_study("things_eeg2").notebooks["01_preprocessing"]
    )
    artifact = run_notebooks(
        "form", tmp_path, monkeypatch,
        {"dataset": form, "raw_name": "things", "val_fraction": 0.2, "picture_size": 32}, setting,
    )  # fmt: skip
    trials, eeg = pd.read_parquet(artifact / "trials.parquet"), TrialFile(artifact / "eeg.npy")
    shape = {"official": (17, 100), "250hz": (63, 250), "": (63, 120)}[kind]
    n_sessions = len(SMALL.sessions)
    assert eeg.shape[1:] == shape and len(eeg) == len(trials)
    counts = trials.groupby("image_id").size().groupby(trials.groupby("image_id")["split"].first())
    assert (counts.min()[["train", "val"]] >= SMALL.repetitions * 2).all()
    assert counts.min()["test"] >= SMALL.test_repetitions * n_sessions
    # the authors' whitener saw test trials; whoever uses their files is told with every number
    assert artifact.notes["transductive"] is epochs
    assert np.isfinite(eeg[:]).all()


def test_whitening_what_is_whitened_is_refused(tmp_path, monkeypatch):
    root = tmp_path / "data" / "raw" / "things"
    things_eeg2_files.write_tree(root, "things_eeg2_preprocessed", ("sub-01",), SMALL)
    with pytest.raises(papermill.PapermillExecutionError, match="set mvnn to none"):
        run_notebooks(
            "twice", tmp_path, monkeypatch,
            {"dataset": "things_eeg2_preprocessed", "raw_name": "things", "val_fraction": 0.2},
            {"mvnn": "epochs"},
        )  # fmt: skip
    assert not paths.stage_dir("twice", "sub-01", "preprocessing").exists()


@pytest.mark.parametrize("dataset", ["perceivelab", "eeg_imagenet"])
def test_a_block_design_is_refused_with_the_reason(tmp_path, dataset):
    with pytest.raises(readers.BlockDesignError) as raised:
        readers.open_study(dataset, tmp_path, ["sub-01"])
    for words in (
        "block design",
        "Li et al. 2021",
        "Kilgallen et al. 2024",
        "class is the time",
        "THINGS-EEG2",
    ):
        assert words in str(raised.value)
    assert isinstance(raised.value, DatasetError)


def test_an_unknown_data_set_names_the_known_ones(tmp_path, monkeypatch):
    with pytest.raises(papermill.PapermillExecutionError, match="Did you mean 'things_eeg2_raw'"):
        run_notebooks(
            "x", tmp_path, monkeypatch, {"dataset": "things_eeg_raw", "raw_name": "x"}, {}
        )


def test_files_of_another_channel_number_are_refused(tmp_path, monkeypatch):
    root = tmp_path / "data" / "raw" / "things"
    things_eeg2_files.write_tree(root, "things_eeg2_preprocessed", ("sub-01",), SMALL)
    with pytest.raises(Exception, match="17"):
        arrays.tables(root, "things_eeg2_preprocessed", ["sub-01"], n_channels=63)
