"""Every reader of the package with small valid files for it, to be damaged by `fuzz`.

`CHEAP` names the readers that take milliseconds; the others open recordings through MNE or networks.
Imports stand in the functions, so that a process loads what its readers need.
"""

from __future__ import annotations

import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pandas as pd
from fuzz import Case

RNG = np.random.default_rng(0)
FEW = ["sub-01"]


def _csv_rows(n: int) -> pd.DataFrame:
    return pd.DataFrame(
        {"image_id": [f"i{k}" for k in range(n)], "concept": [f"c{k // 2}" for k in range(n)]}
    )


# ------------------------------------------------------------------ text and arrays


def make_pickles(folder: Path) -> None:
    content = {
        "eeg": RNG.normal(size=(3, 40)), "names": ["Oz", "O1"], "nested": [{"a": (1, None)}, {2, 3}],
        "objects": np.array([["x", 1], [None, 2.5]], dtype=object), "scalar": np.float64(0.5),
    }  # fmt: skip
    for protocol in (0, 2, 4, 5):
        (folder / f"p{protocol}.npy").write_bytes(pickle.dumps(content, protocol=protocol))
    np.save(folder / "wrapped.npy", content, allow_pickle=True)
    np.save(folder / "plain.npy", RNG.normal(size=(4, 5)))


def read_pickles(folder: Path) -> None:
    from sgdm_utils.datasets import pickles

    for file in sorted(folder.glob("*.npy")):
        pickles.load(file)


def make_splits(folder: Path) -> None:
    from sgdm_utils.datasets import splits
    from sgdm_utils.datasets.leakage import fits

    table = _csv_rows(12).assign(split=["train"] * 8 + ["val"] * 2 + ["test"] * 2)
    splits.write_split(folder / "split.tsv", table, facts={"scheme": "concepts", "seed": 0})
    record = fits.CheckpointRecord("top1", "val", (1, 2), (0.1, 0.2), 2)
    fits.write_records(folder / "records.json", [record])


def read_splits(folder: Path) -> None:
    from sgdm_utils.datasets import splits
    from sgdm_utils.datasets.leakage import fits

    splits.read_facts(folder / "split.tsv")
    splits.read_split(folder / "split.tsv")
    fits.read_records(folder / "records.json")


def make_pictures(folder: Path) -> None:
    from PIL import Image

    pixels = RNG.integers(0, 255, (24, 24, 3), dtype=np.uint8)
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp", "a.tif", "a.gif"):
        (folder / name[2:]).mkdir()
        Image.fromarray(pixels).save(folder / name[2:] / name)
        (folder / name[2:] / "stimuli.json").write_text(
            '{"background": "#808080", "not_square": "pad"}'
        )
    Image.fromarray(pixels[:, :16]).convert("RGBA").save(folder / "png" / "b.png")
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(folder / "jpg" / "b.jpg", exif=exif)


def read_pictures(folder: Path) -> None:
    from sgdm_utils.stimuli import files

    for file in sorted(folder.glob("*/?.*")):
        files.read_picture(file, 16)


def make_stimuli(folder: Path) -> None:
    from sgdm_utils.stimuli.pictures import StimulusSet

    n, size = 4, 8
    table = _csv_rows(n).assign(split="train", shown=True, shape="", texture="", body="", crown="")
    pictures = RNG.integers(0, 255, (n, size, size, 3), dtype=np.uint8)
    from sgdm_utils.stimuli.pictures import picture_digest

    table["digest"] = [picture_digest(p) for p in pictures]
    masks = [RNG.random((n, size, size)) > 0.5 for _ in range(2)]
    pieces = np.zeros((n, size, size), np.uint8)
    made = StimulusSet(table, pictures, *masks, pieces, np.full((n, 7, 7), -1, np.int8))
    made.save(folder)
    table.assign(category="c").to_parquet(folder / "stimuli.parquet")


def read_stimuli(folder: Path) -> None:
    from sgdm_utils.stimuli.pictures import StimulusSet
    from sgdm_utils.stimuli.stored import open_stimuli

    StimulusSet.load(folder)
    stored = open_stimuli(folder)
    _ = stored.pictures, stored.structure_maps, stored.pieces, stored.relations


def make_kilogram_files(folder: Path) -> None:
    from kilogram_files import write_annotations, write_figures, write_split

    names = write_figures(folder, 6)
    write_annotations(folder, names, np.random.default_rng(0))
    write_split(folder / "data_split.json", names)


def read_kilogram_files(folder: Path) -> None:
    from sgdm_utils.datasets.kilogram import figures, pictures, recordings

    for file in sorted(folder.glob("*.svg"))[:3]:
        figures.relations(figures.read_svg(file))
    for name in pictures.ANNOTATION_FILES:
        if (folder / name).is_file():
            pictures.common_names(pictures.read_annotations(folder / name))
    recordings.read_partition(folder / "data_split.json")


def make_muse(folder: Path) -> None:
    n = 600
    table = pd.DataFrame({"timestamps": 1000 + np.arange(n) / 256})
    for name in ("TP9", "AF7", "AF8", "TP10"):
        table[name] = RNG.normal(0, 10, n).round(2)
    table["Marker0"] = 0
    table.loc[[256, 512], "Marker0"] = [1, 2]
    table.to_csv(folder / "run.csv", index=False)


def read_muse(folder: Path) -> None:
    from sgdm_utils.datasets import muse

    muse.to_raw(muse.read_csv(folder / "run.csv"), muse.N170_EVENTS)


def make_yaml(folder: Path) -> None:
    (folder / "fuzzed.yaml").write_text(
        "study: fuzzed\nsubjects: [sub-01, sub-02]\nseeds: [0]\nuntil: 01_preprocessing\nnotebooks:\n"
        "  00_data:\n    n_val: 16\n    sfreq_hz: 125.0\n    snr: 0.5\n"
    )
    (folder / "sweeps").mkdir()
    (folder / "sweeps" / "many.yaml").write_text(
        "sweep: many\nstudy: fuzzed\nseeds: [0]\nconditions:\n  all: {}\n  small: {00_data: {n_val: 12}}\n"
    )
    from sgdm_utils.workflow import paths

    for name in ("schema.json", "sweep.schema.json"):
        (folder / name).write_bytes((paths.config_dir() / name).read_bytes())
    (folder / "licences.yaml").write_bytes(
        (paths.project_root() / "data/licences.yaml").read_bytes()
    )


def read_yaml(folder: Path) -> None:
    from sgdm_utils.workflow import config, paths
    from sgdm_utils.workflow.downloads import catalogue

    with mock.patch.object(paths, "config_dir", lambda: folder):
        config.load_study("fuzzed")
        config.load_sweep("many")
    catalogue.load_catalogue(folder / "licences.yaml")


def make_archives(folder: Path) -> None:
    texts = {f"set/{i}.txt": bytes(RNG.integers(0, 9, 300, dtype=np.uint8)) for i in range(3)}
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in texts.items():
            archive.writestr(name, content)
    (folder / "files").mkdir()
    for name, content in texts.items():
        (folder / "files" / Path(name).name).write_bytes(content)
    for mode in ("gz", "xz", "bz2"):
        with tarfile.open(folder / f"a.tar.{mode}", f"w:{mode}") as archive:
            archive.add(folder / "files", "set")
    (folder / "downloads.json").write_text(
        json.dumps(
            {"files": {"a.zip": {"sha256": "0" * 64, "size": 3, "mtime_ns": 5, "entry": "x"}}}
        )
    )


def read_archives(folder: Path) -> None:
    import shutil

    from sgdm_utils.workflow.downloads import fetch

    fetch.Ledger(folder, SimpleNamespace(name="x"))
    for file in sorted(folder.glob("a.*")):
        try:
            fetch.unpack(file, folder / "out")
        finally:
            shutil.rmtree(folder / "out", ignore_errors=True)


def make_artifact(folder: Path) -> None:
    from sgdm_utils.workflow import artifacts, paths

    with _data_in(folder):
        with artifacts.write_artifact(
            "trial", "joint", "data", None, notebook=paths.STAGES["data"].notebook, parameters={}, inputs=(),
            notes={"subjects": FEW},
        ) as out:  # fmt: skip
            np.save(out / "x.npy", np.zeros(3))


def read_artifact(folder: Path) -> None:
    from sgdm_utils.workflow import artifacts

    with _data_in(folder):
        artifacts.read_artifact("trial", "joint", "data", None)
        artifacts.why_not_current(folder / "derived/trial/joint/data")


def _data_in(folder: Path):
    return mock.patch.dict(
        os.environ, {"SGDM_DATA": str(folder), "SGDM_REPORTS": str(folder / "r")}
    )


def make_notebook(folder: Path) -> None:
    from sgdm_utils.workflow import paths

    source = paths.notebook_path("00_data").read_text(encoding="utf-8")
    cells = [dict(c, outputs=[]) for c in json.loads(source)["cells"] if c["cell_type"] == "code"][
        :4
    ]
    (folder / "book.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4}))


def read_notebook(folder: Path) -> None:
    from sgdm_utils.errors import DatasetError
    from sgdm_utils.workflow import digests, parameters

    digests.code_cells(folder / "book.ipynb")
    try:
        parameters.declared(folder / "book.ipynb")
    except parameters.ParameterError as error:  # its callers say which notebook
        raise DatasetError(f"book.ipynb: {error}") from error


def make_tables(folder: Path) -> None:
    from sgdm_utils.metrics import tables

    row = tables.make_row(
        study="s", subject="all", seed=0, model="sgdm", condition="eeg", metric="ssim", value=0.5,
        ci_low=0.4, ci_high=0.6, n=12, chance=0.1, p_value=0.01, transductive=False,
    )  # fmt: skip
    tables.write_table(folder / "scores.csv", [row, row | {"condition": "oracle"}])


def read_tables(folder: Path) -> None:
    from sgdm_utils.metrics import tables

    tables.read_table(folder / "scores.csv")
    tables.publish_table(folder / "copy.csv", tables.read_table(folder / "scores.csv"))
    (folder / "copy.csv").unlink()


def make_scoring(folder: Path) -> None:
    (folder / "captions.csv").write_text('stem,caption\na,"a red, large star"\nb,a boat\n')
    result = {"value": 0.5, "n": 2, "items": [0.25, 0.75], "chance": None}
    entry = {"made_with": {"v": 1}, "note": "no weights"}
    metrics = {"m": entry, "k": {"made_with": {"v": 1}, "result": result}}
    (folder / "done.json").write_text(json.dumps({"inputs": {"a": "b"}, "metrics": metrics}))


def read_scoring(folder: Path) -> None:
    from sgdm_utils.metrics import command, folders

    command._read_captions(folder / "captions.csv")
    done = folders.Finished(folder / "done.json", {"a": "b"})
    for name in "mk":
        done.get(name, {"v": 1})


# ------------------------------------------------------------------ what was computed


def make_numbers(folder: Path) -> None:
    from sgdm_utils.simulation import truth

    brain = SimpleNamespace(topographies=RNG.normal(size=(5, 3)), time_courses=RNG.normal(size=(3, 20)),
                            stage=np.array(["early", "shape", "semantic"]))  # fmt: skip
    truth.save_truth(folder / "truth.npz", brain, RNG.normal(size=(4, 3)), list("abcd"), 100.0)
    np.save(folder / "trials.npy", RNG.normal(size=(6, 3, 10)).astype(np.float32))
    np.savez(folder / "whiteners.npz", channels=np.eye(3)[None], times=np.eye(10)[None])
    np.savez(
        folder / "noise.npz", channel_covariance=np.eye(3), time_covariance=np.eye(10), n_trials=40,
        method=np.array("flip-flop", dtype="U12"), shrinkage=np.array([0.1, 0.1]),
    )  # fmt: skip


def read_numbers(folder: Path) -> None:
    from sgdm_utils.signals import files, load, noise
    from sgdm_utils.simulation import truth

    truth.load_truth(folder / "truth.npz")
    files.TrialFile(folder / "trials.npy")[[0, 3]]
    load.unwhitening(folder)
    noise.NoiseModel.load(folder / "noise.npz")


def make_features(folder: Path) -> None:
    from sgdm_utils.decoding import features

    features.save_features(
        folder / "f.npy", RNG.normal(size=(5, 4)), list("abcde"), {"model": "toy"}
    )


def read_features(folder: Path) -> None:
    from sgdm_utils.decoding import features

    features.read_identity(folder / "f.npy")
    features.load_features(folder / "f.npy", list("abcde"))
    features.select_features(folder / "f.npy", ["c", "a"])


def _encoder() -> dict:
    return {"n_chans": 4, "n_outputs": 6, "n_times": 40, "sfreq": 100.0, "n_subjects": 1, "n_virtual": 4,
            "width": 8}  # fmt: skip


def make_weights(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from sgdm_utils.decoding import trained
    from sgdm_utils.decoding.encoders import SGDMEncoder
    from sgdm_utils.decoding.structure import StructureVAE

    torch.manual_seed(0)
    positions = np.eye(4)[:, :3] + 0.1
    encoder = SGDMEncoder(**_encoder(), positions=positions)
    (folder / "encoder.json").write_text(json.dumps(_encoder()))
    trained.save_weights(encoder, folder / "encoder.safetensors")
    vae = StructureVAE(32, 4, 4)
    (folder / "structure_vae.json").write_text(json.dumps(vae.config))
    trained.save_weights(vae, folder / "structure_vae.safetensors")
    torch.save({"a": torch.ones(3), "b": torch.zeros(2, 2)}, folder / "state.pth")
    save_file({"a": torch.ones(3)}, folder / "state.safetensors")
    make_features(folder)
    (folder / "f.npy").rename(folder / "image_embeddings.npy")
    (folder / "f.ids.json").rename(folder / "image_embeddings.ids.json")
    np.savez(folder / "target_scale.npz", center=np.zeros(4), spread=np.ones(4))


def read_weights(folder: Path) -> None:
    from sgdm_utils.decoding import trained
    from sgdm_utils.metrics import networks

    trained.open_encoder(folder, np.eye(4)[:, :3] + 0.1)
    trained.open_structure_vae(folder)
    trained.open_targets(folder, list("abcde"))
    spec = SimpleNamespace(name="toy", url="its page", sha256="")
    for name in ("state.pth", "state.safetensors"):
        networks.read_state(folder / name, spec)


def make_forward(folder: Path) -> None:
    from sgdm_utils.decoding.forward import model, picture_features, signal_space
    from sgdm_utils.signals.noise import NoiseModel

    rng, n = np.random.default_rng(1), 60
    pictures = rng.integers(0, 255, (n, 32, 32, 3), dtype=np.uint8)
    features = picture_features.PictureFeatures({"pixels": 4}).fit(pictures)
    shown = np.repeat(np.arange(n), 2)
    x = features.transform(pictures)
    eeg = (x @ rng.normal(size=(x.shape[1], 24))).reshape(n, 3, 8)[shown] + rng.normal(
        size=(2 * n, 3, 8)
    )
    noise = NoiseModel.fit(eeg.astype(np.float32), shown, np.arange(2 * n))
    answers = signal_space.measure_responses(eeg, shown, noise, np.arange(2 * n), n_outputs=6)
    model.ForwardModel.fit(x, answers, 0.1).save(folder)
    features.save(folder)


def read_forward(folder: Path) -> None:
    from sgdm_utils.decoding.forward import model, picture_features

    model.ForwardModel.load(folder)
    picture_features.PictureFeatures.load(folder)


# ------------------------------------------------------------------ recordings


def _study(dataset: str, root: Path, subjects=FEW, read: int = 1, **options) -> None:
    from sgdm_utils.datasets import readers

    tables = readers.open_study(dataset, root, subjects, **options)
    for _, recording in tables.recordings.iloc[:read].iterrows():
        if readers.layout(dataset) == "epochs":
            readers.read_epochs(dataset, recording, root).data[:1].sum()
        else:
            readers.read_raw(dataset, recording, root)


def _volts(seconds: int = 12, n: int = 4) -> np.ndarray:
    return np.random.default_rng(3).normal(0, 10e-6, (n, 100 * seconds))


def bids(extension: str) -> Case:
    """A recording of four channels with three pictures, in one of the formats of BIDS."""

    def make(folder: Path) -> None:
        import bids_files

        names = ["Fz", "Cz", "Pz", "Oz"]
        stem = "sub-01_task-see"
        bids_files.write_recording(
            folder, stem, _volts(), [2.0, 5.0, 8.0], ["a/x.png", "b/y.png", "a/x.png"], names,
            extension=extension,
        )  # fmt: skip
        positions = {n: bids_files.HEAD[n] for n in names}
        bids_files.write_positions(folder / "sub-01/eeg", "sub-01", positions, "CapTrak")

    def read(folder: Path) -> None:
        from sgdm_utils.datasets.bids import EventMapping

        _study("bids", folder, mapping=EventMapping())

    return Case(f"bids{extension}", make, read, ("sub-01/eeg/*", "*.json"), 0.02)


def things(form: str, kind: str = "official", share: float = 0.02) -> Case:
    """A form of THINGS-EEG2 as small as its design allows."""

    def make(folder: Path) -> None:
        import things_eeg2_files

        design = things_eeg2_files.Design(
            n_train_concepts=4, n_test=2, sessions=(1,), repetitions=1, test_repetitions=2, n_parts=1,
            sfreq=250,
        )  # fmt: skip
        things_eeg2_files.write_tree(folder, form, ("sub-01",), design, 16, kind)

    def read(folder: Path) -> None:
        sessions = () if form.endswith("preprocessed") else (1,)
        _study(form, folder, sessions=sessions)

    globs = ("image_set/*.npy", "**/sub-01/**/*", "*.json")
    return Case(f"{form}_{kind}", make, read, globs, share)


def make_eeg1(folder: Path) -> None:
    import things_eeg1_files

    things_eeg1_files.add_subject(folder, "02", seed=2)
    things_eeg1_files.add_pictures(folder)


def make_kilogram(folder: Path) -> None:
    import kilogram_files

    kilogram_files.write_tree(
        folder, ("01",), ("01",), 8, 1, 2, channels=["Fz", "Cz", "Pz", "Oz"], sfreq=100.0
    )


def make_alljoined(folder: Path) -> None:
    import alljoined_files

    alljoined_files.write_tree(folder, (1,))


def make_clip(folder: Path) -> None:
    from sgdm_utils.decoding import clip

    config = clip.tiny_clip_config(8, 64)
    clip.save_clip(clip.create_clip(config), config, folder)


def read_clip(folder: Path) -> None:
    from sgdm_utils.decoding import clip

    clip.load_clip(f"local-dir:{folder}")


_CASES = [
    Case("pickles", make_pickles, read_pickles, share=2),
    Case("splits", make_splits, read_splits),
    Case("pictures", make_pictures, read_pictures, share=2),
    Case("stimuli", make_stimuli, read_stimuli, ("*.npy", "*.tsv", "*.parquet")),
    Case("kilogram_files", make_kilogram_files, read_kilogram_files),
    Case("muse", make_muse, read_muse),
    Case("yaml", make_yaml, read_yaml, ("*.yaml", "sweeps/*"), 0.1),
    Case("archives", make_archives, read_archives, ("a.*", "*.json")),
    Case("artifacts", make_artifact, read_artifact, ("derived/**/*.json", "derived/**/*.npy")),
    Case("notebooks", make_notebook, read_notebook),
    Case("tables", make_tables, read_tables, ("scores.csv",)),
    Case("scoring", make_scoring, read_scoring),
    Case("numbers", make_numbers, read_numbers),
    Case("features", make_features, read_features),
    Case("weights", make_weights, read_weights, share=0.2),
    Case("forward", make_forward, read_forward, share=0.2),
    *(bids(extension) for extension in (".vhdr", ".edf", ".bdf", ".set")),
    things("things_eeg2_raw", share=0.1),
    things("things_eeg2_preprocessed", share=0.1),
    things("things_eeg2_preprocessed", "250hz", 0.1),
    things("things_eeg2_bids"),
    things("things_eeg2_source"),
    Case("things_eeg1", make_eeg1, lambda f: _study("things_eeg1", f, ["sub-02"]),
         ("sub-02/eeg/*", "*.json", "*.tsv"), 0.02),
    Case("kilogram", make_kilogram, lambda f: _study("kilogram", f), ("sub-01/**/*", "*.json"), 0.02),
    Case("alljoined_edf", make_alljoined, lambda f: _study("alljoined_edf", f, sessions=[1]),
         ("raw_eeg/**/*.edf", "**/*.parquet"), 0.02),
    Case("alljoined_flat", make_alljoined, lambda f: _study("alljoined_flat", f, sessions=[1]),
         ("**/*.npy", "**/*.parquet"), 0.1),
    Case("clip", make_clip, read_clip, share=0.02),
]  # fmt: skip
CASES = {case.name: case for case in _CASES}
CHEAP = ("pickles", "splits", "pictures", "stimuli", "kilogram_files", "archives", "artifacts",
         "notebooks", "tables")  # fmt: skip
