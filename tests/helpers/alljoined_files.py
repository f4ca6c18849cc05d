"""Alljoined-1.6M in its real form, written small: EDF blocks, parquet tables, pickled flat arrays.

Two of the four test blocks and two of the fifteen training blocks of each session, ten pictures in
a block; the headset's technical channels, one of them at another rate, its spelling of AFz, its
file names, markers as the recorder writes them.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import edfio
import numpy as np
import pandas as pd
from PIL import Image

ELECTRODES = (
    "Cz FCz Afz Fp1 F5 F1 CP5 CP3 CP1 P1 P3 P5 P7 PO7 PO3 O1 Pz POz Oz O2 PO4 PO8 P8 P6 P4 P2 CP2 "
    "CP4 CP6 F2 F6 Fp2"
).split()
TECHNICAL = ["TimestampS", "TimestampMs", "Counter", "Interpolated", "RawCq", "Battery", "CQ_Cz",
             "EQ_OVERALL", "MarkerHardware", "HighBitFlex", "SaturationFlag", "MOT.AccX"]  # fmt: skip
TEST_BLOCKS, TRAINING_BLOCKS, PER_BLOCK = (1, 2), (5, 6), 10
SECONDS = 8


def experiment(subject: int, sessions=(1, 2), dropped: bool = True) -> pd.DataFrame:
    """The table of one person; the last picture of every block was dropped, a tenth is an oddball."""
    rng = np.random.default_rng(subject)
    rows = []
    for session in sessions:
        for block in (*TEST_BLOCKS, *TRAINING_BLOCKS):
            test = block in TEST_BLOCKS
            pictures = (
                16540 + rng.integers(0, 4, PER_BLOCK) if test else rng.integers(0, 20, PER_BLOCK)
            )
            for position, picture in enumerate(pictures):
                rows.append((subject, session, block, 0, position, f"/srv/data/images/{picture:05d}.jpg",
                             "stim_test" if test else "stim_train", position == PER_BLOCK - 1))  # fmt: skip
            rows.append((subject, session, block, 0, PER_BLOCK, "/srv/data/images/16740.jpg", "oddball",
                         True))  # fmt: skip
    columns = ["subject", "session", "block_id", "sequence_id", "sequence_image_id", "image_path",
               "partition", "dropped"]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns).assign(dataset="alljoined")
    return table if dropped else table.drop(columns="dropped")


def picture_of(path: str) -> int:
    return int(Path(path).stem)


def block_markers(table: pd.DataFrame, session: int, block: int) -> list[tuple[float, str]]:
    """Markers as the recorder writes them: every picture, an oddball, an answer."""
    rows = table[(table["session"] == session) & (table["block_id"] == block)]
    return [
        (1 + i * 0.5 if part != "oddball" else 6.5, f"{part},{picture_of(path)},-1,{i + 1}")
        for i, (path, part) in enumerate(zip(rows["image_path"], rows["partition"], strict=True))
    ] + [(7.0, "behav,3,-1,99")]


def samples_of(subject: int, session: int, block: int) -> np.ndarray:
    rng = np.random.default_rng([subject, session, block])
    return 4200 + rng.normal(0, 10, (len(ELECTRODES), SECONDS * 256))  # µV around the DC offset


def write_edf(path: Path, data: np.ndarray, markers, names=ELECTRODES, unit="uV", rate=256) -> Path:
    """An EDF+ file of the headset: technical channels first, motion at a quarter of the rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    signals = [
        edfio.EdfSignal(
            np.arange(SECONDS * (64 if n.startswith("MOT") else rate)) % 128 + 0.0,
            64 if n.startswith("MOT") else rate, label=n, physical_range=(0, 128),
        )
        for n in TECHNICAL
    ]  # fmt: skip
    signals += [
        edfio.EdfSignal(row, rate, label=n, physical_dimension=unit, physical_range=(0, 8400))
        for n, row in zip(names, data, strict=True)
    ]
    annotations = [edfio.EdfAnnotation(onset, 0, text) for onset, text in markers]
    edfio.Edf(signals, annotations=annotations).write(path)
    return path


def block_file(root: Path, subject: int, session: int, block: int) -> Path:
    name = f"Subject {subject}, Session {session}, Block {block} Recording_FLEX2_213075.md.edf"
    folder = (
        root / "raw_eeg" / f"sub-{subject:02d}" / f"session_{session:02d}" / f"block_{block:02d}"
    )
    return folder / name


def table_file(root: Path, subject: int, name: str = "experiment_metadata.parquet") -> Path:
    path = root / "preprocessed_eeg" / f"sub-{subject:02d}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_blocks(root: Path, subject: int, table: pd.DataFrame) -> None:
    for (session, block), _ in table.groupby(["session", "block_id"]):
        markers = block_markers(table, session, block)
        write_edf(
            block_file(root, subject, session, block), samples_of(subject, session, block), markers
        )


def write_flat(root: Path, subject: int, table: pd.DataFrame, **changes) -> None:
    """Plain pickles under an .npy name, as the authors save them."""
    rng = np.random.default_rng(subject)
    for part, file in (("stim_train", "training"), ("stim_test", "test")):
        n = int(((table["partition"] == part) & ~table["dropped"]).sum())
        content = {
            "preprocessed_eeg_data": rng.normal(size=(n, 32, 250)),
            "configs": {"baseline": (None, 0.0), "tmin": -0.2, "tmax": 1.0, "sfreq": 250, "l_freq": None,
                        "h_freq": None, "notch_freqs": None, "mvnn_dim": "epochs", "reject": None,
                        "verbose": False},
            "ch_names": ["AFz" if n == "Afz" else n for n in ELECTRODES],
            "times": np.arange(250) / 250,
        } | changes  # fmt: skip
        path = table_file(root, subject, f"preprocessed_eeg_{file}_flat.npy")
        with path.open("wb") as out:
            pickle.dump(content, out, protocol=pickle.HIGHEST_PROTOCOL)


def write_image_set(root: Path) -> None:
    """Two training concepts of ten pictures, four test concepts of one."""
    for i in range(20):
        concept, letter = ("00001_aardvark", "00002_abacus")[i // 10], "bs"[i % 2]
        file = (
            root
            / "image_set/training_images"
            / concept
            / f"{concept[6:]}_{i % 10 + 1:02d}{letter}.jpg"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file)
    for i, concept in enumerate(("00001_aircraft_carrier", "00002_antelope", "00003_backscratcher",
                                 "00004_balance_beam")):  # fmt: skip
        file = root / "image_set/test_images" / concept / f"{concept[6:]}_0{i + 1}s.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file)


def write_tree(root: Path, subjects: tuple[int, ...] = (1, 2)) -> None:
    """Write both forms and the image set."""
    for subject in subjects:
        table = experiment(subject)
        table.to_parquet(table_file(root, subject))
        write_blocks(root, subject, table)
        write_flat(root, subject, table)
    write_image_set(root)
