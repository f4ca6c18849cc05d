"""Miniature THINGS-EEG2 in the exact form of the published files, with something to decode in it.

A `Design` says how much is shown; `write_tree` writes pictures and recordings of one form. The
pictures are coloured shapes at different places. The EEG is noise that hangs together in space and
time, plus (`snr` > 0) a response 80 to 400 ms after onset over the back of the head. Its pattern is a
fixed linear function of the picture's mean colour and of where the shape is, so whoever decodes the
miniature should find these, and should find nothing with `snr` = 0.

Every writer of a form takes the same session plan and the same responses: the five forms of one
design show the same pictures in the same order.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pybv
import scipy.io
import scipy.signal
from PIL import Image, ImageDraw

RECORDING_ORDER = (
    "Fp1 F3 F7 FT9 FC5 FC1 C3 T7 TP9 CP5 CP1 Pz P3 P7 O1 Oz O2 P4 P8 TP10 CP6 CP2 Cz C4 T8 FT10 FC6 "
    "FC2 F4 F8 Fp2 AF7 AF3 AFz F1 F5 FT7 FC3 FCz C1 C5 TP7 CP3 P1 P5 PO7 PO3 POz PO4 PO8 P6 P2 CPz "
    "CP4 TP8 C6 C2 FC4 FT8 F6 F2 AF4 AF8"
).split()
OFFICIAL_17 = "Pz P3 P7 O1 Oz O2 P4 P8 P1 P5 PO7 PO3 POz PO4 PO8 P6 P2".split()
REORDERED_63 = (
    "Fp1 Fp2 AF7 AF3 AFz AF4 AF8 F7 F5 F3 F1 F2 F4 F6 F8 FT9 FT7 FC5 FC3 FC1 FCz FC2 FC4 FC6 FT8 "
    "FT10 T7 C5 C3 C1 Cz C2 C4 C6 T8 TP9 TP7 CP5 CP3 CP1 CPz CP2 CP4 CP6 TP8 TP10 P7 P5 P3 P1 Pz P2 "
    "P4 P6 P8 PO7 PO3 POz PO4 PO8 O1 Oz O2"
).split()
TARGET = 99999
COLOURS = {
    "amber": (240, 170, 30), "black": (25, 25, 25), "blue": (40, 60, 220), "brown": (120, 70, 30),
    "cyan": (40, 210, 220), "green": (40, 150, 50), "lime": (170, 230, 60), "orange": (245, 110, 30),
    "pink": (245, 150, 190), "purple": (130, 50, 170), "red": (215, 35, 35), "white": (250, 250, 250),
}  # fmt: skip
SHAPES = ("bar", "disc", "cross", "ring", "square", "triangle")
BACKGROUND = (128, 128, 128)
NOISE_V = 10e-6


@dataclass(frozen=True)
class Design:
    """How much of everything; the defaults take seconds and tens of megabytes.

    Attributes
    ----------
    n_train_concepts, images_per_concept, n_test : int
    sessions : sequence of int
    repetitions : int, of a training image in each session that shows it
    test_repetitions : int, of a test image in each session
    targets : int, in every run
    n_parts : int, training runs of a session (5 in the published data)
    snr : float, SD of the response over SD of the noise, at its strongest channels and times
    sfreq, soa_s, gap_s : float, Hz, s, s; gap between sequences of 20 pictures
    seed : int
    """

    n_train_concepts: int = 8
    images_per_concept: int = 2
    n_test: int = 4
    sessions: Sequence[int] = (1, 2, 3, 4)
    repetitions: int = 2
    test_repetitions: int = 3
    targets: int = 1
    n_parts: int = 2
    snr: float = 1.0
    sfreq: int = 1000
    soa_s: float = 0.2
    gap_s: float = 0.6
    seed: int = 0

    @property
    def n_train(self) -> int:
        return self.n_train_concepts * self.images_per_concept


# ---------------------------------------------------------------------------------- pictures


def write_image_set(
    root: Path,
    n_train_concepts: int,
    images_per_concept: int,
    n_test: int,
    rng: np.random.Generator,
    size: int = 64,
) -> Path:
    """Write `image_set/` with its metadata; `size` 0 makes empty files (names only)."""
    names = [f"{c}_{s}" for c in COLOURS for s in SHAPES]
    total = n_train_concepts + n_test
    names += [f"thing_{i:04d}" for i in range(total - len(names))]
    names = sorted(
        rng.permutation(names[: max(total, len(COLOURS) * len(SHAPES))])[:total].tolist()
    )
    test = set(rng.choice(names, n_test, replace=False).tolist())
    things = {name: f"{i:05d}_{name}" for i, name in enumerate(names, 1)}
    metadata: dict[str, list] = {}
    folder = root / "image_set"
    for partition, members, per_concept in (
        ("train", [n for n in names if n not in test], images_per_concept),
        ("test", [n for n in names if n in test], 1),
    ):
        concepts, indices, files = [], [], []
        for i, name in enumerate(members, 1):
            for k in range(per_concept):
                suffix = f"{k + 1:02d}{'bsn'[rng.integers(3)]}"
                concepts.append(f"{i:05d}_{name}")
                indices.append(things[name])
                files.append(f"{name}_{suffix}.jpg")
        metadata |= {
            f"{partition}_img_concepts": concepts,
            f"{partition}_img_concepts_THINGS": indices,
            f"{partition}_img_files": files,
        }
        for concept, file in zip(concepts, files, strict=True):
            where = folder / f"{'training' if partition == 'train' else 'test'}_images" / concept
            where.mkdir(parents=True, exist_ok=True)
            if size:
                draw_picture(concept[6:], size, rng).save(where / file, quality=92)
            else:
                (where / file).touch()
    np.save(folder / "image_metadata.npy", metadata, allow_pickle=True)
    return folder


def draw_picture(concept: str, size: int, rng: np.random.Generator) -> Image.Image:
    """Draw the shape of a concept in its colour, at a random place and size."""
    colour, _, shape = concept.partition("_")
    rgb = COLOURS.get(colour, tuple(rng.integers(0, 256, 3).tolist()))
    big = 4 * size  # drawn large and scaled down: smooth edges
    picture = Image.new("RGB", (big, big), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    r = big * rng.uniform(0.14, 0.24)
    x, y = rng.uniform(r, big - r, 2)
    box = (x - r, y - r, x + r, y + r)
    if shape == "bar":
        draw.rectangle((x - r, y - 0.35 * r, x + r, y + 0.35 * r), fill=rgb)
    elif shape == "disc":
        draw.ellipse(box, fill=rgb)
    elif shape == "cross":
        draw.rectangle((x - r, y - 0.3 * r, x + r, y + 0.3 * r), fill=rgb)
        draw.rectangle((x - 0.3 * r, y - r, x + 0.3 * r, y + r), fill=rgb)
    elif shape == "ring":
        draw.ellipse(box, outline=rgb, width=int(0.4 * r))
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=rgb)
    else:
        draw.rectangle(box, fill=rgb)
    return picture.resize((size, size), Image.Resampling.LANCZOS)


def listing(root: Path) -> dict[str, list[str]]:
    """Return the pictures of "train" and "test", relative to `image_set/`, in their order."""
    metadata = np.load(root / "image_set" / "image_metadata.npy", allow_pickle=True).item()
    return {
        part: [
            f"{folder}/{c}/{f}"
            for c, f in zip(
                metadata[f"{part}_img_concepts"], metadata[f"{part}_img_files"], strict=True
            )
        ]
        for part, folder in (("train", "training_images"), ("test", "test_images"))
    }


def picture_features(root: Path) -> dict[str, np.ndarray]:
    """Mean colour (3) and place of the shape (2) of every picture, z-scored over both partitions."""
    rows = {}
    for part, files in listing(root).items():
        rows[part] = []
        for file in files:
            rgb = np.asarray(Image.open(root / "image_set" / file), dtype=float)
            weight = np.abs(rgb - BACKGROUND).sum(2)
            weight *= weight > 40  # the codec's noise is no shape
            y, x = np.mgrid[: len(rgb), : len(rgb)] / len(rgb)
            total = max(weight.sum(), 1e-9)
            place = [(weight * x).sum() / total, (weight * y).sum() / total]
            rows[part].append([*rgb.mean((0, 1)), *place])
    every = np.array(rows["train"] + rows["test"])
    mean, sd = every.mean(0), every.std(0)
    return {part: (np.array(x) - mean) / np.where(sd > 0, sd, 1) for part, x in rows.items()}


# ---------------------------------------------------------------------- what is shown, and the EEG


@dataclass(frozen=True)
class Run:
    """One stretch of recording: `number` is 0 where the target was shown."""

    session: int
    partition: str
    part: int
    number: np.ndarray
    sequence: np.ndarray
    position: np.ndarray
    sample: np.ndarray
    n_samples: int = field(default=0)


def plan(design: Design, rng: np.random.Generator) -> list[Run]:
    """Decide what one subject sees when: halves of the concepts in sessions 1+2 and in 3+4."""
    halves: dict[int, np.ndarray] = {}
    for first, second in ((1, 2), (3, 4)):
        order = rng.permutation(design.n_train_concepts)
        halves[first] = order[: len(order) // 2]
        halves[second] = order[len(order) // 2 :]
    runs = []
    for session in design.sessions:
        runs.append(_run(session, "test", 1, np.arange(design.n_test) + 1, design, rng))
        images = [
            c * design.images_per_concept + k + 1
            for c in halves[session]
            for k in range(design.images_per_concept)
        ]
        for part, members in enumerate(np.array_split(rng.permutation(images), design.n_parts), 1):
            runs.append(_run(session, "train", part, members, design, rng))
    return runs


def _run(
    session: int,
    partition: str,
    part: int,
    members: np.ndarray,
    design: Design,
    rng: np.random.Generator,
) -> Run:
    times = design.test_repetitions if partition == "test" else design.repetitions
    number = rng.permutation(np.repeat(members, times))
    at = np.sort(rng.integers(1, len(number), design.targets))
    number = np.insert(number, at, 0).astype(int)
    i = np.arange(len(number))
    onset = 0.5 + i * design.soa_s + (i // 20) * design.gap_s
    sample = np.round(onset * design.sfreq).astype(int) + rng.integers(-1, 2, len(i))
    n_samples = int(sample[-1] + 1.2 * design.sfreq)
    return Run(session, partition, part, number, i // 20 + 1, i % 20 + 1, sample, n_samples)


def responses(
    features: dict[str, np.ndarray],
    times: np.ndarray,
    ch_names: Sequence[str],
    seed: int = 20200220,
) -> dict[str, np.ndarray]:
    """Response to each picture, (n_images, n_channels, n_times), 1 at the strongest on average.

    The pattern depends on `seed` alone, not on the design: all subjects and forms share it.
    """
    rng = np.random.default_rng(seed)
    peaks, widths = np.array([0.12, 0.17, 0.24]), np.array([0.018, 0.03, 0.05])
    weight = rng.normal(size=(len(RECORDING_ORDER), 5, len(peaks)))
    back = np.array([{"O": 1.0, "P": 0.6}.get(c[0], 0.05) for c in RECORDING_ORDER])
    weight = weight * back[:, None, None]
    pick = [RECORDING_ORDER.index(c) for c in ch_names]
    course = np.exp(-0.5 * ((times - peaks[:, None]) / widths[:, None]) ** 2)
    course[:, (times < 0.08) | (times > 0.4)] = 0
    raw = {
        part: np.einsum("if,cfk,kt->ict", x, weight[pick], course, optimize=True)
        for part, x in features.items()
    }
    scale = np.sqrt(np.mean(np.concatenate(list(raw.values())) ** 2, axis=0)).max()
    return {part: x / scale for part, x in raw.items()}


def noise(n_channels: int, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of SD 1, float32: neighbouring samples and channels are alike."""
    white = rng.standard_normal((n_channels, n_samples), dtype=np.float32)
    slow = scipy.signal.lfilter([0.312], [1, -0.95], white).astype(np.float32)
    mixing = 0.8 * np.eye(n_channels) + 0.6 / n_channels
    return (mixing.astype(np.float32) @ slow) / np.float32(0.85)


def voltage(
    run: Run, answer: dict[str, np.ndarray], design: Design, rng: np.random.Generator
) -> np.ndarray:
    """EEG of one run in volts, (63, n_samples), float32, channels in the order of recording."""
    eeg = noise(len(RECORDING_ORDER), run.n_samples, rng)
    for number, sample in zip(run.number, run.sample, strict=True):
        if number and design.snr:
            shape = answer[run.partition][number - 1]
            eeg[:, sample : sample + shape.shape[1]] += design.snr * shape
    return eeg * np.float32(NOISE_V)


def _subjects(
    root: Path, subjects: Sequence[str], design: Design
) -> list[tuple[str, list[Run], dict[str, np.ndarray], np.random.Generator]]:
    times = np.arange(int(0.45 * design.sfreq)) / design.sfreq
    answer = {}
    if design.snr:
        answer = responses(picture_features(root), times, RECORDING_ORDER)
    out = []
    for i, subject in enumerate(subjects):
        rng = np.random.default_rng([design.seed, i])
        out.append((subject, plan(design, rng), answer, rng))
    return out


# ------------------------------------------------------------------------------------- forms


def write_raw(root: Path, subjects: Sequence[str], design: Design) -> None:
    """Write `raw_data/sub-XX/ses-YY/raw_eeg_{training,test}.npy`; `image_set/` has to be there."""
    for subject, runs, answer, rng in _subjects(root, subjects, design):
        for session in design.sessions:
            for name, partition in (("training", "train"), ("test", "test")):
                chosen = [r for r in runs if (r.session, r.partition) == (session, partition)]
                blocks = []
                for run in chosen:  # the parts follow each other without a gap marker
                    block = np.zeros((64, run.n_samples))
                    block[:63] = voltage(run, answer, design, rng)
                    block[63, run.sample] = np.where(run.number == 0, TARGET, run.number)
                    blocks.append(block)
                dump_raw(
                    root / "raw_data" / subject / f"ses-{session:02d}" / f"raw_eeg_{name}.npy",
                    np.concatenate(blocks, axis=1),
                    sfreq=design.sfreq,
                )


def dump_raw(path: Path, data: np.ndarray, **changes) -> None:
    """Save one raw dictionary in an object array of no dimension; `changes` replace its values."""
    content = {
        "raw_eeg_data": data,
        "ch_names": [*RECORDING_ORDER, "stim"],
        "ch_types": ["eeg"] * 63 + ["stim"],
        "sfreq": 1000,
        "highpass": 0.01,
        "lowpass": 100,
    } | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, {k: v for k, v in content.items() if v is not None}, allow_pickle=True)


def write_preprocessed(
    root: Path, subjects: Sequence[str], design: Design, kind: str = "official"
) -> None:
    """Write the whitened epochs: "official" (17 channels, 100 Hz) or "250hz" (63 channels)."""
    names, all_times, kept, folder = _package(kind)
    times = all_times[-kept:]
    answer = responses(picture_features(root), times, names) if design.snr else {}
    for i, subject in enumerate(subjects):
        rng = np.random.default_rng([design.seed, i])
        for name, partition, n_images, n_rep in (
            ("training", "train", design.n_train, 2 * design.repetitions),
            ("test", "test", design.n_test, 4 * design.test_repetitions),
        ):
            shape = (n_images, n_rep, len(names), kept)
            data = rng.standard_normal(shape)
            if design.snr:
                data += design.snr * answer[partition][:, None]
            dump_preprocessed(root / folder / subject / f"preprocessed_eeg_{name}.npy", data, kind)


def dump_preprocessed(path: Path, data: np.ndarray, kind: str = "official", **changes) -> None:
    """Save one dictionary of epochs: in an object array, or ("250hz") as a plain pickle."""
    names, times, _, _ = _package(kind)
    content = {"preprocessed_eeg_data": data, "ch_names": names, "times": times} | changes
    content = {k: v for k, v in content.items() if v is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "official":
        np.save(path, content, allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(content, protocol=4))


def _package(kind: str) -> tuple[list[str], np.ndarray, int, str]:
    """Channels, `times` as they are in the file, samples of a trial, folder."""
    if kind == "official":
        return list(OFFICIAL_17), -0.2 + np.arange(100) / 100, 100, "preprocessed_data"
    # 50 of 300 samples were cut off, and not off `times`
    return list(REORDERED_63), -0.2 + np.arange(300) / 250, 250, "Preprocessed_data_250Hz"


class Hole:
    """Stands for a float64 array of zeros that is not written: a hole in the file."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape
        self.content = _HoleBytes(8 * int(np.prod(shape)))


class _HoleBytes:
    def __init__(self, n: int):
        self.n = n
        self.offset = -1


class _HolePickler(pickle._Pickler):
    """Pickles `Hole` as NumPy would pickle the array, and leaves its bytes out."""

    dispatch = dict(pickle._Pickler.dispatch)

    def __init__(self, stream):
        super().__init__(stream, protocol=4)
        self.stream = stream

    def reducer_override(self, value):
        if not isinstance(value, Hole):
            return NotImplemented
        reconstruct = np.zeros(1).__reduce__()[0]
        state = (1, value.shape, np.dtype("<f8"), False, value.content)
        return reconstruct, (np.ndarray, (0,), b"b"), state

    def _save_hole(self, value):
        self.framer.write_large_bytes(pickle.BINBYTES8 + value.n.to_bytes(8, "little"), b"")
        value.offset = self.stream.tell()
        self.stream.seek(value.n, 1)
        self.memoize(value)

    dispatch[_HoleBytes] = _save_hole


def dump_sparse(path: Path, content: dict, wrapped: bool = True) -> int:
    """Save a dictionary with one `Hole`: real shapes, gigabytes, and no room taken on the disk.

    Parameters
    ----------
    path : Path
    content : dict with one value that is a `Hole`
    wrapped : bool, in an object array of no dimension as `np.save` does, or as a plain pickle

    Returns
    -------
    int, offset of the array's first byte in the file, to write something into it
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hole = next(v for v in content.values() if isinstance(v, Hole))
    with open(path, "wb") as stream:
        if wrapped:
            header = {"descr": "|O", "fortran_order": False, "shape": ()}
            np.lib.format.write_array_header_1_0(stream, header)
        boxed = np.empty((), dtype=object)
        boxed[()] = content
        _HolePickler(stream).dump(boxed if wrapped else content)
    return hole.content.offset


def write_bids(root: Path, subjects: Sequence[str], design: Design) -> None:
    """Write the BIDS conversion: BrainVision runs with the published sidecars, byte order marks too."""
    root.mkdir(parents=True, exist_ok=True)
    description = {"Name": "THINGS-EEG2", "BIDSVersion": "1.9.0", "DatasetType": "raw"}
    (root / "dataset_description.json").write_text(json.dumps(description))
    (root / "participants.tsv").write_text(
        "\ufeffparticipant_id\n" + "".join(f"{s}\n" for s in subjects), encoding="utf-8"
    )
    concept = _concepts(root)
    for subject, runs, answer, rng in _subjects(root, subjects, design):
        for run in runs:
            entity = "" if run.partition == "test" else f"_run-{run.part:02d}"
            session = f"ses-{run.session:02d}"
            stem = f"{subject}_{session}_task-{run.partition}{entity}"
            folder = root / subject / session / "eeg"
            write_brainvision(folder, f"{stem}_eeg", voltage(run, answer, design, rng), run, design)
            side = {
                "TaskName": run.partition, "SamplingFrequency": float(design.sfreq),
                "RecordingDuration": run.n_samples / design.sfreq, "PowerLineFrequency": 50,
                "EEGReference": "FCz (online); offline re-referenced as needed",
                "EEGChannelCount": 63, "RecordingType": "continuous", "SoftwareFilters": "n/a",
            }  # fmt: skip
            (folder / f"{stem}_eeg.json").write_text(json.dumps(side))
            channels = pd.DataFrame({"name": RECORDING_ORDER}).assign(
                type="EEG", units="V", low_cutoff=0.09999996424359608, high_cutoff=100.0,
                description="ElectroEncephaloGram", sampling_frequency=float(design.sfreq),
                status="good", status_description="n/a",
            )  # fmt: skip
            write_tsv(folder / f"{stem}_channels.tsv", channels)
            write_tsv(folder / f"{stem}_events.tsv", _bids_events(run, concept, design, rng))


def write_tsv(path: Path, table: pd.DataFrame) -> None:
    """Save a table as the conversion has them: UTF-8 with a byte order mark, n/a."""
    table.to_csv(path, sep="\t", index=False, na_rep="n/a", encoding="utf-8-sig")


def _bids_events(
    run: Run, concept: dict[str, list[str]], design: Design, rng: np.random.Generator
) -> pd.DataFrame:
    shown = run.number > 0
    n = run.number
    value = n if run.partition == "test" else np.array([int(str(x)[:2]) for x in n])
    names = [concept[run.partition][x - 1] if x else None for x in n]
    soa = np.where(run.position == 1, 0.0, design.soa_s - rng.uniform(0, 1e-4, len(n)))
    table = pd.DataFrame(
        {
            "onset": run.sample / design.sfreq,
            "duration": 0.1 - rng.uniform(0, 6e-5, len(n)),
            "sample": run.sample,
            "value": np.where(shown, value, 255),
            "trial_type": np.where(shown, "image", "target"),
            "tot_img_number": pd.array(np.where(shown, n, -1), dtype="Int64"),
            "img_category": [c and str(int(c[:5])) for c in names],
            "category_name": names,
            "block": 1,
            "sequence": run.sequence,
            "img_in_sequence": run.position,
            "soa": soa,
        }
    )
    table.loc[~shown, "tot_img_number"] = pd.NA
    table.loc[0, "soa"] = np.nan
    if run.partition == "test":  # some runs mark a pause
        pause = {"onset": 0.1, "duration": 0.0, "sample": int(0.1 * design.sfreq)}
        pause |= {"trial_type": "rest_marker", "value": 254}
        table = pd.concat([pd.DataFrame([pause]), table], ignore_index=True)[list(table)]
        for column in ("value", "block", "sequence", "img_in_sequence"):
            table[column] = table[column].astype("Int64")
    return table


def write_source(
    root: Path, subjects: Sequence[str], design: Design, folder: str = "sourcedata"
) -> None:
    """Write the BrainVision files with their behaviour files; a resting-state run as well."""
    concept = _concepts(root)
    for subject, runs, answer, rng in _subjects(root, subjects, design):
        for run in runs:
            entity = "" if run.partition == "test" else f"_part-{run.part:02d}"
            session = f"ses-{run.session:02d}"
            stem = f"{subject}_{session}_task-{run.partition}{entity}"
            where = root / folder / subject / session
            write_brainvision(
                where / "eeg", f"{stem}_eeg", voltage(run, answer, design, rng), run, design,
                segment=True,
            )  # fmt: skip
            write_behaviour(where / "beh" / f"{stem}_beh.mat", run, concept)
        rest = root / folder / subject / "ses-01" / "eeg"
        (rest / f"{subject}_ses-01_task-rest1_eeg.vhdr").write_text("a resting-state run\n")


def write_brainvision(
    folder: Path, stem: str, eeg: np.ndarray, run: Run, design: Design, segment: bool = False
) -> None:
    """Write one .vhdr, .vmrk, .eeg; markers hold the first two digits of the number, 255 a target.

    `segment` puts the "New Segment" first that the recorder writes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    events = [
        {"onset": int(s), "type": "Stimulus", "description": trigger(n, run.partition)}
        for s, n in zip(run.sample, run.number, strict=True)
    ]
    pybv.write_brainvision(
        data=eeg, sfreq=design.sfreq, ch_names=RECORDING_ORDER, fname_base=stem,
        folder_out=str(folder), events=events, unit="µV", resolution=0.1, fmt="binary_float32",
        meas_date="20200220120000000000" if segment else None, overwrite=True,
    )  # fmt: skip


def trigger(number: int, partition: str) -> int:
    """Marker byte of a picture."""
    if number == 0:
        return 255
    return int(number) if partition == "test" else int(str(number)[:2])


def write_behaviour(path: Path, run: Run, concept: dict[str, list[str]], **changes) -> None:
    """Write `data.images`, a struct array of 1 x n_trials; `changes` replace whole fields."""
    path.parent.mkdir(parents=True, exist_ok=True)
    n = run.number
    names = [concept[run.partition][x - 1] if x else "" for x in n]
    category = [int(c[:5]) if c else 0 for c in names]
    fields = {
        "block": np.ones(len(n)),
        "sequence": run.sequence,
        "img": run.position,
        "img_type": np.where(n == 0, 2, 1),
        "img_category": category,
        "within_category_number": np.arange(len(n)) % 10 + 1,
        "tot_img_number": n,
        "category_name": names,
        "trigger_1": [trigger(x, run.partition) for x in n],
        "img_duration": np.full(len(n), 0.09997),
        "SOA": np.full(len(n), 0.19994),
    } | changes
    fields = {k: v for k, v in fields.items() if v is not None}
    images = np.empty((1, len(n)), dtype=[(k, object) for k in fields])
    for key, values in fields.items():
        for i, value in enumerate(values):
            images[key][0, i] = value if isinstance(value, str) else float(value)
    scipy.io.savemat(path, {"data": {"subject": 1.0, "images": images}})


def _concepts(root: Path) -> dict[str, list[str]]:
    return {p: [f.split("/")[1] for f in files] for p, files in listing(root).items()}


# -------------------------------------------------------------------------------------- trees

FORMS = (
    "things_eeg2_raw", "things_eeg2_preprocessed", "things_eeg2_bids", "things_eeg2_source",
)  # fmt: skip


def write_tree(
    root: Path,
    form: str,
    subjects: Sequence[str] = ("sub-01", "sub-02"),
    design: Design | None = None,
    size: int = 64,
    kind: str = "official",
) -> Design:
    """Write pictures and recordings of one form below `root`; `kind` is for the preprocessed one."""
    design = design or Design()
    rng = np.random.default_rng([design.seed, 1])
    if not (root / "image_set").is_dir():
        write_image_set(
            root, design.n_train_concepts, design.images_per_concept, design.n_test, rng, size
        )
    if form == "things_eeg2_raw":
        write_raw(root, subjects, design)
    elif form == "things_eeg2_preprocessed":
        write_preprocessed(root, subjects, design, kind)
    elif form == "things_eeg2_bids":
        write_bids(root, subjects, design)
    elif form == "things_eeg2_source":
        write_source(root, subjects, design)
    else:
        raise ValueError(f"unknown form {form!r}: {', '.join(FORMS)}")
    return design


def copy_subject(root: Path, old: str, new: str) -> None:
    """Copy a subject's raw or preprocessed folder under another name."""
    for base in (root / "raw_data", root / "preprocessed_data"):
        if (base / old).is_dir():
            shutil.copytree(base / old, base / new)
