"""Writes a miniature of KiloGram with EEG in BIDS: the project's own figures in KiloGram's formats.

No figure of KiloGram is in here: they may not be distributed. Names ("page1-0"), attributes, number
formats and the three schemas of annotations are those of the collection.

    python tests/helpers/mini_trees.py kilogram_mini
"""

from __future__ import annotations

import json
import warnings
from itertools import product
from pathlib import Path

import mne
import mne_bids
import numpy as np
from scipy.signal import lfilter

from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE
from sgdm_utils.datasets.kilogram import figures, pictures
from sgdm_utils.stimuli import tangrams

FIGURES = tuple(product(tangrams.BODY_NAMES, tangrams.CROWN_NAMES))
STYLES = ("exact", "whole", "edited", "drawn")
CHANNELS = (
    "Fp1 Fp2 AF7 AF3 AFz AF4 AF8 F7 F5 F3 F1 F2 F4 F6 F8 FT9 FT7 FC5 FC3 FC1 FCz FC2 FC4 FC6 FT8 "
    "FT10 T7 C5 C3 C1 Cz C2 C4 C6 T8 TP9 TP7 CP5 CP3 CP1 CPz CP2 CP4 CP6 TP8 TP10 P7 P5 P3 P1 Pz "
    "P2 P4 P6 P8 PO7 PO3 POz PO4 PO8 O1 Oz O2"
).split()
NAMES_OF_CROWNS = {
    "cap": "man with a cap", "tail": "dog", "flag": "sailing boat", "swan": "swan", "cat": "cat",
    "hut": "house",
}  # fmt: skip
_HEAD = (
    '<?xml version="1.0" encoding="utf-8"?>\n<svg baseProfile="full" height="100%" version="1.1" '
    'viewBox="0 0 {w} {h}" width="100%" xmlns="http://www.w3.org/2000/svg" '
    'xmlns:ev="http://www.w3.org/2001/xml-events" xmlns:xlink="http://www.w3.org/1999/xlink">'
    "<defs/>"
)
_DRAWN = (
    '<?xml version="1.0" encoding="utf-8"?>\n<svg viewBox="0 0 {w} {h}" '
    'xmlns="http://www.w3.org/2000/svg" xmlns:bx="https://boxy-svg.com">\n'
)


def in_units(pieces: tangrams.Pieces, leg: float = 50.0, rotation: float = 0.0) -> tangrams.Pieces:
    """Turn a figure (degrees), scale it, and put its upper left corner at 0, 0, y down."""
    angle = np.deg2rad(rotation)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned = [p @ turn.T * leg * [1, -1] for p in pieces]
    corner = np.concatenate(turned).min(0)
    return [p - corner for p in turned]


def svg_text(points: tangrams.Pieces, style: str = "exact", ids: str = "1234567") -> str:
    """Return a file of KiloGram.

    Parameters
    ----------
    points : seven polygons in units of the file, see `in_units`
    style : str
        exact: all digits, commas, one line. whole: the same with corners rounded to whole units.
        edited: three decimals and blanks under the same head. drawn: as page-A to page-L, every
        other polygon turned by a transform of six decimals.
    ids : str, the id of each polygon
    """
    if style == "whole":
        points = [p.round() for p in points]
    w, h = np.concatenate(points).max(0)
    if style in ("edited", "drawn"):
        w, h = int(np.ceil(w)), int(np.ceil(h))
    rows = []
    for i, (p, name) in enumerate(zip(points, ids, strict=True)):
        last = ""
        if style == "drawn" and i % 2:
            angle = 0.3 + i
            a, b = np.round([np.cos(angle), np.sin(angle)], 6)
            shift = np.array([40.25 * i, -12.5])
            p = (p - shift) @ np.linalg.inv(np.array([[a, -b], [b, a]])).T
            last = f' style="" transform="matrix({a}, {b}, {-b}, {a}, {shift[0]}, {shift[1]})"'
        if style in ("edited", "drawn"):
            text = " ".join(f"{x:.3f}".rstrip("0").rstrip(".") for x in p.ravel())
        else:
            text = " ".join(f"{float(x)!r},{float(y)!r}" for x, y in p)
        rows.append(
            f'<polygon fill="lightgray" id="{name}" points="{text}" stroke="white" '
            f'strokewidth="1"{last}/>'
        )
    if style in ("edited", "drawn"):
        head = _HEAD if style == "edited" else _DRAWN
        return head.format(w=w, h=h) + "".join(f"  {row}\n" for row in rows) + "</svg>"
    return _HEAD.format(w=float(w), h=float(h)) + "".join(rows) + "</svg>"


def figure_names(n: int) -> list[str]:
    """Return names of KiloGram's pattern; the last two are of the hand-drawn pages."""
    return [f"page{1 + i // 6}-{7 * (i % 6)}" for i in range(n - 2)] + ["page-A", "page-B"]


def write_figures(folder: Path, n: int = 24) -> list[str]:
    """Write `n` (at most 36) different figures as SVG in all styles; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = figure_names(n)
    # a step without a common factor, so that few figures still show all bodies and crowns
    chosen = [FIGURES[(7 * i) % len(FIGURES)] for i in range(n)]
    for i, (name, figure) in enumerate(zip(names, chosen, strict=True)):
        drawn = name.startswith("page-")
        points = in_units(tangrams.tangram_pieces(*figure), 45.0 + i, 45.0 * (i % 3 == 1))
        style = "drawn" if drawn else STYLES[(0, 0, 0, 1, 2)[i % 5]]
        (folder / f"{name}.svg").write_text(svg_text(points, style), encoding="utf-8")
    return names


def write_annotations(folder: Path, names: list[str], rng: np.random.Generator) -> None:
    """Write `full.json`, `dense10.json` (a bare list for each figure) and `full_old.json`."""
    full, dense, old = {}, {}, {}
    for i, name in enumerate(names):
        body, crown = FIGURES[(7 * i) % len(FIGURES)]
        word = NAMES_OF_CROWNS[crown]
        wholes = [word, f"A {word} ", f"a {word}.", *rng.permutation([f"{body} thing {k}" for k in "abcdefg"])]  # fmt: skip
        entries = [_annotation(str(whole), k) for k, whole in enumerate(wholes)]
        snd, pnd, psa = rng.random(3).round(4).tolist()
        full[name] = {"snd": snd, "pnd": pnd, "psa": psa, "annotations": entries}
        dense[name] = entries
        old[name] = [{"whole": e["whole"]["wholeAnnotation"], "piece": e["part"]} for e in entries]
    for file, content in (("full", full), ("dense10", dense), ("full_old", old)):
        (folder / f"{file}.json").write_text(json.dumps(content), encoding="utf-8")


def _annotation(whole: str, worker: int) -> dict:
    at = f"2021-07-0{1 + worker % 9} 08:36:28.599000+00:00"
    parts = {"5": "base", "6": "base", "7": "base", "1": "top", "2": "top", "3": "top", "4": "UNKNOWN"}  # fmt: skip
    action = {"final": True, "pieces": [5, 6, 7], "annotation": "base", "timestamp": at}
    return {
        "whole": {"wholeAnnotation": whole, "timestamp": at},
        "part": parts,
        "workerId": f"{worker:032x}",
        "metadata": {"0": action},
    }


def write_split(path: Path, names: list[str]) -> list[str]:
    """Write `data_split.json`; every fifth figure is held out. Returns those."""
    heldout = names[2::5]
    rest = [n for n in names if n not in heldout]
    # most figures of the collection are shown to nobody
    parts = {
        "train": ["page9-99", *rest[2:]],
        "heldout": [*heldout, "page9-98"],
        "development": rest[:2],
        "dense": ["page9-97"],
    }
    path.write_text(json.dumps(parts), encoding="utf-8")
    return heldout


def write_tree(
    root: Path,
    subjects: tuple[str, ...] = ("01", "02"),
    sessions: tuple[str, ...] = ("01", "02"),
    n_tangrams: int = 24,
    train_repetitions: int = 2,
    test_repetitions: int = 8,
    snr: float = 0.0,
    soa_s: float = 1.2,
    sfreq: float = 250.0,
    channels: list[str] | None = None,
    split: bool = True,
    seed: int = 0,
) -> list[str]:
    """Write figures, annotations, split and recordings; returns the names of the figures.

    The events name the figure in `stim_file` ("page1-7.svg") and in `tangram` ("page1-7"); rows of
    `trial_type` catch have `n/a` there. Repetitions are those over all sessions. With `snr` above
    0, channels over the back of the head respond with a weighted sum of the 8 x 8 silhouette (the
    weights differ between subjects), `snr` times as large as the noise where it is largest.
    """
    rng = np.random.default_rng(seed)
    channels = CHANNELS if channels is None else channels
    stimuli = root / "stimuli"
    names = write_figures(stimuli, n_tangrams)
    write_annotations(stimuli, names, rng)
    heldout = write_split(stimuli / "data_split.json", names)
    if not split:
        (stimuli / "data_split.json").unlink()
    coarse = np.stack([_coarse(stimuli / f"{n}.svg") for n in names])
    coarse = (coarse - coarse.mean(0)) / coarse.std()
    info = mne.create_info(list(channels), sfreq, "eeg", verbose="error")
    info.set_montage(STANDARD_MONTAGE, verbose="error")
    for subject in subjects:
        evoked = _evoked(coarse, channels, sfreq, rng)
        order = [n for n in names for _ in range(test_repetitions if n in heldout else train_repetitions)]  # fmt: skip
        order = rng.permutation(order)
        for session, shown in zip(sessions, np.array_split(order, len(sessions)), strict=True):
            raw = _record(shown.tolist(), names, evoked, info, snr, soa_s, rng)
            where = mne_bids.BIDSPath(
                root=root, subject=subject, session=session, task="tangram", datatype="eeg"
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                mne_bids.write_raw_bids(
                    raw, where, format="BrainVision", allow_preload=True, verbose="error"
                )
    return names


def _coarse(path: Path) -> np.ndarray:
    silhouette = pictures.render(figures.read_svg(path), 64)[1]
    return silhouette.reshape(8, 8, 8, 8).mean((1, 3)).ravel()


def _evoked(coarse: np.ndarray, channels, sfreq: float, rng: np.random.Generator) -> np.ndarray:
    """Responses of shape (n_figures, n_channels, n_times), RMS 1 at the largest moment."""
    times = np.arange(int(0.6 * sfreq)) / sfreq
    waves = np.exp(-0.5 * ((times - np.array([[0.10], [0.16], [0.22], [0.30]])) / 0.025) ** 2)
    back = np.array([name.startswith(("O", "PO", "P")) for name in channels])
    weights = rng.normal(size=(coarse.shape[1], len(channels), len(waves))) * back[:, None]
    response = np.einsum("fp,pcw,wt->fct", coarse, weights, waves)
    return response / np.sqrt((response**2).mean(0).max())


def _record(shown, names, evoked, info, snr, soa_s, rng) -> mne.io.RawArray:
    """One session: noise of 10 microvolts, a figure every `soa_s`, a catch trial after ten."""
    sfreq = info["sfreq"]
    stream = [name for i, s in enumerate(shown) for name in ([None, s] if i % 10 == 9 else [s])]
    start = np.round((2.0 + np.arange(len(stream)) * soa_s) * sfreq).astype(int)
    n = start[-1] + int(3 * sfreq)
    place = np.stack([c["loc"][:3] for c in info["chs"]])
    distance = np.linalg.norm(place[:, None] - place, axis=-1)
    mixing = np.exp(-0.5 * (distance / 0.04) ** 2)  # neighbours share most of their noise
    mixing /= np.linalg.norm(mixing, axis=1, keepdims=True)
    slow = lfilter([1.0], [1.0, -0.9], rng.standard_normal((len(place), n), dtype=np.float32))
    noise = mixing @ (slow * np.sqrt(1 - 0.9**2)) + 0.2 * rng.standard_normal(slow.shape)
    for s, name in zip(start, stream, strict=True):
        if name is not None and snr:
            response = evoked[names.index(name)]
            noise[:, s : s + response.shape[1]] += snr * response
    raw = mne.io.RawArray(10e-6 * noise, info.copy(), verbose="error")
    kinds = ["catch" if name is None else "tangram" for name in stream]
    extras = [
        {"stim_file": f"{name}.svg" if name else "n/a", "tangram": name or "n/a"} for name in stream
    ]
    raw.set_annotations(mne.Annotations(start / sfreq, 0.8, kinds, extras=extras))
    return raw
