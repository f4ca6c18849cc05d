"""Score anybody's reconstructions: a folder of pictures against a folder of targets.

Files are paired by name (`sgdm_utils.metrics.pairs`). One network is in memory at a time, pictures
are read when their turn comes, and what is finished is kept beside the table: a second run computes
only what is missing, and everything anew when a picture changed.

The file of finished results is JSON: digests of the pictures, and for each metric the digest of its
weights, the precision, the value, and the score of every picture in the order of the sorted stems.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from sgdm_utils.decoding.clip import weights_digest
from sgdm_utils.errors import DatasetError, WeightsNotAvailable, reading
from sgdm_utils.metrics import tables
from sgdm_utils.metrics.features import extract
from sgdm_utils.metrics.networks import Precision, Trunk, find_weights
from sgdm_utils.metrics.pairs import Pair, PictureFolderError, pair_folders
from sgdm_utils.metrics.protocol import LPIPS_TRUNKS, TRUNKS, Result, TooFewPictures
from sgdm_utils.metrics.suite import (
    NO_CAPTIONS,
    NO_WEIGHTS,
    MetricSpec,
    Weights,
    load_group,
    result_row,
    row_name,
    select_metrics,
    weights_of,
)
from sgdm_utils.stimuli.files import Colour, read_rgb
from sgdm_utils.stimuli.pictures import picture_digest
from sgdm_utils.workflow.atomic import atomic_file, digest_file, digest_listing
from sgdm_utils.workflow.formats import read_json

VERSION = 1  # of the computation; a higher one makes stored results of a lower one void
BLOCK_BYTES = 512e6  # features of reconstructions that are held at once
PICTURES_AT_ONCE = 16
Reader = Callable[[Path], np.ndarray]


def score_folders(
    pred: str | Path,
    target: str | Path,
    weights: Weights = None,
    names: Sequence[str] | None = None,
    substitutes: Mapping[str, Trunk] | None = None,
    captions: Mapping[str, str] | None = None,
    samples_separator: str = "_",
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    finished: str | Path | None = None,
    keep_targets: str | Path | None = None,
    progress: bool = False,
    background: Colour | None = None,
    not_square: str | None = None,
    **cells: object,
) -> pd.DataFrame:
    """Score reconstructions against targets.

    Parameters
    ----------
    pred, target : path, folders; see `pairs.pair_folders` for the names of files
    weights : mapping of trunk names to paths, or a folder, optional; see `suite.full_suite`
    names : sequence of str, optional, only these metrics
    substitutes : mapping of names to trunks, optional; see `suite.full_suite`
    captions : mapping of stems to captions of the targets, optional, for the text scores
    samples_separator : str, between the stem and the number of a sample
    device : str, where the networks run
    precision : "float32" or "bfloat16", of the networks
    finished : path, optional, JSON in which finished metrics are kept, with the scores per picture
    keep_targets : path, optional, folder in which features of the targets are kept
        Other reconstructions of the same targets are then scored without computing them again. The
        layers of LPIPS are too large to keep.
    progress : bool, show bars
    background, not_square : what was shown, where files leave it open; see `stimuli.files.read_rgb`
    **cells : study, subject, seed, model, condition of the rows; by default the names of the folders

    Returns
    -------
    DataFrame with the columns `tables.COLUMNS`
        `attrs` holds n_pictures, n_samples, and copies: the number of reconstructions that are,
        pixel for pixel, their targets.

    Raises
    ------
    PictureFolderError, PictureError
        Files that cannot be paired or used.
    ValueError, FileNotFoundError
        Unknown names of metrics; weights that are damaged, of another network, or not where they
        were said to be.
    """
    pred, target = Path(pred), Path(target)
    _check_device(device)
    specs = select_metrics(names, substitutes)
    pairs = pair_folders(pred, target, samples_separator)
    texts = _texts(captions, pairs)
    read = partial(read_rgb, background=background, not_square=not_square)
    inputs, copies = _inspect(pairs, any(s.name == "pixcorr" for s in specs), progress, read)
    store = Finished(Path(finished) if finished else None, inputs)
    results: dict[str, Result | str] = {}
    labels: dict[str, str] = {}
    for group in dict.fromkeys(spec.group for spec in specs):
        mine = [spec for spec in specs if spec.group == group]
        if texts is None:
            results |= {spec.name: NO_CAPTIONS for spec in mine if spec.needs_captions}
            mine = [spec for spec in mine if not spec.needs_captions]
        substitute = (substitutes or {}).get(group)
        try:
            made_with = _made_with(group, weights, substitute, precision)
        except WeightsNotAvailable:
            results |= {spec.name: NO_WEIGHTS for spec in mine}
            continue
        keys = {
            spec.name: made_with
            | ({"captions": _digest(texts)} if spec.needs_captions else {})
            for spec in mine
        }  # fmt: skip
        labels |= {name: row_name(name, made_with.get("precision")) for name in keys}
        results |= {name: r for name, key in keys.items() if (r := store.get(name, key))}
        todo = [spec for spec in mine if spec.name not in results]
        if todo:
            text = any(spec.needs_captions for spec in todo)
            network = substitute or load_group(group, weights, device, precision, text)
            with tqdm(desc=group, unit="picture", disable=not progress) as bar:
                if isinstance(network, Trunk):
                    known = _target_features(
                        network, pairs, read, keep_targets, made_with | {"of": inputs["target"]}
                    )
                    new = _score_features(network, todo, pairs, texts, bar, read, known)
                    del known
                else:
                    new = _score_pictures(network, todo, pairs, device, bar, read)
            del network
            store.add(new, keys)
            results |= new
    cells = {
        "study": target.resolve().name, "subject": "all", "seed": None,
        "model": pred.resolve().name, "condition": "reconstruction",
    } | cells  # fmt: skip
    rows = [result_row(labels.get(s.name, s.name), results[s.name], **cells) for s in specs]
    types = dict.fromkeys(tables.FLOAT_COLUMNS, "float64") | {"seed": "Int64", "n": "int64"}
    table = pd.DataFrame(rows, columns=list(tables.COLUMNS)).astype(types)
    n_samples = len(pairs[0].samples)
    table.attrs = {"n_pictures": len(pairs), "n_samples": n_samples, "copies": copies}
    return table


def _check_device(device: str | torch.device) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is unknown: cpu, cuda, cuda:1, ...") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device}: torch finds no CUDA device here, use cpu")


def _inspect(
    pairs: list[Pair], correlate: bool, progress: bool, read: Reader
) -> tuple[dict[str, str], int]:
    """Read everything once, so that what is wrong shows before the hours of computing.

    Returns
    -------
    digests of both sides, and the number of reconstructions that are copies of their targets
    """
    sizes: dict[str, tuple[Path, tuple[int, ...]]] = {}
    digests: dict[str, dict[str, str]] = {"pred": {}, "target": {}}
    copies = 0
    for pair in tqdm(pairs, desc="reading", unit="picture", disable=not progress):
        for side, files in (("target", (pair.target,)), ("pred", pair.samples)):
            for number, path in enumerate(files):
                pixels = read(path)
                first, size = sizes.setdefault(side, (path, pixels.shape))
                if pixels.shape != size:
                    raise PictureFolderError(
                        f"{path} has {pixels.shape[0]} pixels a side, {first} has {size[0]}: "
                        "pictures of one folder are of one size"
                    )
                if correlate and pixels.min() == pixels.max():
                    raise PictureFolderError(
                        f"{path} is of one colour all over (0 to 255: {pixels.min()}): its "
                        "correlation with a picture is undefined. If a network made it, look for "
                        "overflow in 16 bits; to score it all the same, leave pixcorr out"
                    )
                digests[side][f"{pair.stem}/{number}"] = picture_digest(pixels)
        own = digests["target"][f"{pair.stem}/0"]
        copies += sum(digests["pred"][f"{pair.stem}/{i}"] == own for i in range(len(pair.samples)))
    return {side: digest_listing(found) for side, found in digests.items()}, copies


def _score_pictures(
    network: object,
    specs: list[MetricSpec],
    pairs: list[Pair],
    device: object,
    bar: tqdm,
    read: Reader,
) -> dict[str, Result | str]:
    made = {spec.name: spec.make(network).to(device) for spec in specs}
    for some in _batches(pairs):
        pred, target = _samples(some, read).to(device), _targets(some, read).to(device)
        for metric in made.values():
            metric.update(pred, target)
        bar.update(pred.shape[0] * pred.shape[1])
    return {name: metric.result() for name, metric in made.items()}


def _target_features(
    trunk: Trunk,
    pairs: list[Pair],
    read: Reader,
    folder: str | Path | None,
    made_with: Mapping[str, object],
) -> Tensor:
    """Features of the targets, (n, d): kept ones where the same network saw the same pictures."""
    path = None
    if folder is not None:
        key = digest_listing({name: str(value) for name, value in made_with.items()})
        path = Path(folder) / f"{trunk.name}-{key[:24]}.npy"
    if path is not None and path.is_file():
        with reading(path, "features of targets", "Remove it"):
            kept = np.load(path, allow_pickle=False)
        if kept.ndim != 2 or len(kept) != len(pairs):
            raise DatasetError(f"{path} holds features of other pictures: remove it")
        return torch.from_numpy(kept).to(trunk.device)
    found = torch.cat([extract(trunk, _targets(some, read)) for some in _batches(pairs)])
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as part, part.open("wb") as stream:
            np.save(stream, found.cpu().numpy())
    return found


def _score_features(
    trunk: Trunk,
    specs: list[MetricSpec],
    pairs: list[Pair],
    texts: list[str] | None,
    bar: tqdm,
    read: Reader,
    target: Tensor,
) -> dict[str, Result | str]:
    """As many samples at a time as the memory is meant for, against the features of the targets."""
    encoded = trunk.encode_text(texts) if any(s.needs_captions for s in specs) else None
    n, n_samples = len(pairs), len(pairs[0].samples)
    made = {spec.name: spec.make(None).to(trunk.device) for spec in specs}
    at_once = max(1, int(BLOCK_BYTES // (4 * n * target.shape[1])))
    if any(getattr(metric, "needs_all_samples", False) for metric in made.values()):
        at_once = n_samples
    parts: dict[str, list[tuple[int, Result | str]]] = {spec.name: [] for spec in specs}
    for start in range(0, n_samples, at_once):
        width = min(at_once, n_samples - start)
        block = torch.empty(n, width, target.shape[1], device=trunk.device)
        done = 0
        for some in _batches(pairs, width):
            pictures = _samples(some, read, start, width).flatten(0, 1)
            block[done : done + len(some)] = extract(trunk, pictures).unflatten(0, (-1, width))
            done += len(some)
            bar.update(len(pictures))
        for spec in specs:
            metric = made[spec.name]
            metric.reset()
            extra = {"captions": encoded} if spec.needs_captions else {}
            metric.update(block, None if spec.needs_captions else target, **extra)
            try:
                parts[spec.name].append((width, metric.result()))
            except TooFewPictures as error:
                parts[spec.name].append((width, f"needs {error.needed} pictures"))
            metric.reset()
        del block
    return {name: _average(found) for name, found in parts.items()}


def _average(parts: list[tuple[int, Result | str]]) -> Result | str:
    """Mean over blocks of samples, each counting as many samples as it has."""
    if len(parts) == 1 or isinstance(parts[0][1], str):
        return parts[0][1]
    widths = np.array([width for width, _ in parts], dtype=np.float64)
    items = np.average([r.items for _, r in parts], axis=0, weights=widths)
    chance = float(np.average([r.chance for _, r in parts], weights=widths))
    return Result(float(items.mean()), len(items), items.tolist(), chance)


def _batches(pairs: list[Pair], width: int | None = None) -> Iterator[list[Pair]]:
    size = max(1, PICTURES_AT_ONCE // (width or len(pairs[0].samples)))
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


def _targets(pairs: list[Pair], read: Reader) -> Tensor:
    return _as_float(np.stack([read(pair.target) for pair in pairs]))


def _samples(pairs: list[Pair], read: Reader, start: int = 0, width: int | None = None) -> Tensor:
    stop = None if width is None else start + width
    files = [pair.samples[start:stop] for pair in pairs]
    return _as_float(np.stack([np.stack([read(path) for path in some]) for some in files]))


def _as_float(pixels: np.ndarray) -> Tensor:
    """8-bit pictures with colours last as float in [0, 1] with colours before height and width."""
    return torch.from_numpy(np.moveaxis(pixels, -1, -3).astype(np.float32) / 255)


def _texts(captions: Mapping[str, str] | None, pairs: list[Pair]) -> list[str] | None:
    if captions is None:
        return None
    lacking = [p.stem for p in pairs if not str(captions.get(p.stem, "")).strip()]
    if lacking:
        raise PictureFolderError(
            f"{len(lacking)} of {len(pairs)} targets have no caption, the first is {lacking[0]}"
        )
    return [captions[pair.stem] for pair in pairs]


def _made_with(
    group: str, weights: Weights, substitute: Trunk | None, precision: Precision
) -> dict[str, object]:
    """Everything but the pictures that decides the numbers of a group."""
    facts: dict[str, object] = {"version": VERSION}
    if substitute is not None:
        return facts | {"weights": weights_digest(substitute), "precision": substitute.precision}
    path = weights_of(group, weights)
    if group == "pixels":
        return facts
    path = find_weights((TRUNKS | LPIPS_TRUNKS)[group], path)
    return facts | {"weights": digest_file(path), "precision": precision}


def _digest(texts: list[str]) -> str:
    return digest_listing({str(i): text for i, text in enumerate(texts)})


class Finished:
    """Results that are kept in a file, with what they were computed from."""

    def __init__(self, path: Path | None, inputs: dict[str, str]) -> None:
        self._path, self._content = path, {"inputs": inputs, "metrics": {}}
        if path is None or not path.is_file():
            return
        with reading(path, "finished metrics", "Remove it, or give another name"):
            stored = read_json(path)
            if not isinstance(stored["metrics"], dict):
                raise TypeError("metrics is no mapping")
            if stored["inputs"] == inputs:
                self._content = stored

    def get(self, name: str, key: dict[str, object]) -> Result | str | None:
        """The stored result of a metric, if it was computed from the very same things."""
        entry = self._content["metrics"].get(name)
        if not entry:
            return None
        with reading(self._path or name, "finished metrics", "Remove it, or give another name"):
            if entry["made_with"] != key:
                return None
            if "note" in entry:
                return entry["note"]
            result = entry["result"]
            return Result(**result | {"chance": math.nan if (c := result["chance"]) is None else c})

    def add(self, results: Mapping[str, Result | str], keys: Mapping[str, dict]) -> None:
        """Keep more results; a reader of the file sees all of them or none."""
        for name, result in results.items():
            entry: dict[str, object] = {"made_with": keys[name]}
            if isinstance(result, str):
                entry["note"] = result
            else:
                chance = None if math.isnan(result.chance) else result.chance
                entry["result"] = asdict(result) | {"chance": chance}
            self._content["metrics"][name] = entry
        if self._path is not None:
            with atomic_file(self._path) as part:
                part.write_text(json.dumps(self._content) + "\n", encoding="utf-8")
