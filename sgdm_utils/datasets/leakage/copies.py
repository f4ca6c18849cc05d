"""The same picture or the same recording under two names: found by content.

Use it through `sgdm_utils.datasets.leakage.assertions`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dctn

from sgdm_utils.datasets.leakage.fits import Finding, LeakageError
from sgdm_utils.errors import DatasetError
from sgdm_utils.stimuli.files import read_rgb
from sgdm_utils.workflow.atomic import digest_file

MAX_DISTANCE = 24  # bits of 255; see perceptual_hash
_HASH_SIDE, _THUMBNAIL = 16, 32
_DATA_FILE = {
    ".vhdr": ".eeg",
    ".set": ".fdt",
}  # the header's text names the file, the samples do not


def perceptual_hash(picture: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return 255 bits that stay nearly the same when a picture is saved or resized again.

    The luminance is reduced to 32 x 32 and transformed by a cosine transform; a bit tells whether
    one of the 16 x 16 lowest coefficients (without the mean) is above their median.

    Saved as JPEG of quality 30, halved, brightened by 10 %, made grey or with noise of SD 4 (of
    255), photographs and the demo's drawings moved by at most 20 bits. Different photographs differ
    by about 126; the drawings of different splits by 52 at least, for those are alike. A margin of
    2 % cut off moves a photograph by up to 82: that is not found.

    Parameters
    ----------
    picture : uint8 array of shape (height, width, 3)

    Returns
    -------
    bits : uint64 array of shape (4,)
    flat : bool, the picture has one luminance only, and the bits mean nothing

    References
    ----------
    Zauner (2010), Implementation and benchmarking of perceptual image hash functions, sec. 3.2.
    """
    small = Image.fromarray(picture).convert("L")
    small = small.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    waves = dctn(np.asarray(small, dtype=float), norm="ortho")[:_HASH_SIDE, :_HASH_SIDE].ravel()[1:]
    bits = np.append(waves > np.median(waves), False)
    return np.packbits(bits).view(np.uint64), bool(np.abs(waves).max() < 1.0)


def assert_pictures(
    images: pd.DataFrame,
    pictures: Sequence[np.ndarray | Path],
    max_distance: int | None = MAX_DISTANCE,
) -> Finding:
    """Refuse the same picture under two names in two splits: same pixels, or nearly the same.

    Parameters
    ----------
    images : DataFrame with `image_id`, `split`, one row per image
    pictures : uint8 array of shape (n, height, width, 3), or sequence of picture files; one at a
        time is in memory
    max_distance : int, bits of `perceptual_hash` in which near duplicates differ at most; None
        compares pixels only

    Raises
    ------
    LeakageError
        Names both images and their splits, and how far apart their hashes are.
    DatasetError
        Pictures that cannot be read or are not as many as the images.
    """
    if len(images) != len(pictures):
        raise DatasetError(
            f"{len(pictures)} pictures for {len(images)} images: the rows must correspond"
        )
    ids, split = images["image_id"].tolist(), images["split"].to_numpy()
    exact: dict[bytes, int] = {}
    bits = np.zeros((len(ids), 4), np.uint64)
    flat = np.zeros(len(ids), bool)
    for i, picture in enumerate(pictures):
        pixels = _pixels(picture)
        digest = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).digest()
        first = exact.setdefault(digest, i)
        if split[first] != split[i]:
            raise LeakageError(
                f"{ids[first]!r} ({split[first]}) and {ids[i]!r} ({split[i]}) are the same picture, "
                "pixel by pixel. Give it one image_id, or take one of them out"
            )
        if max_distance is not None:
            bits[i], flat[i] = perceptual_hash(pixels)
    compared = "pixels of all pictures between splits"
    if max_distance is not None:
        compared += f", and alike within {max_distance} of 255 bits"
        for held_out, known in (("test", ("train", "val")), ("val", ("train",))):
            others = np.flatnonzero(np.isin(split, known) & ~flat)
            for i in np.flatnonzero((split == held_out) & ~flat):
                distance = np.bitwise_count(bits[others] ^ bits[i]).sum(1)
                if len(others) and distance.min() <= max_distance:
                    j = others[distance.argmin()]
                    raise LeakageError(
                        f"{ids[i]!r} ({held_out}) and {ids[j]!r} ({split[j]}) are nearly the same "
                        f"picture: their perceptual hashes differ in {distance.min()} of 255 bits, "
                        f"at most {max_distance} are allowed. Look at both; if they are different "
                        "pictures, lower max_distance"
                    )
    return Finding("picture", compared, len(ids))


def _pixels(picture: np.ndarray | Path) -> np.ndarray:
    if not isinstance(picture, str | Path):
        picture = np.ascontiguousarray(picture)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
            raise DatasetError(
                f"a picture is {picture.dtype} {picture.shape}: (height, width, 3) of uint8 or the "
                "path of a file is expected"
            )
        return picture
    return read_rgb(picture)


def assert_trials_unique(
    eeg: np.ndarray, trials: pd.DataFrame, rows: np.ndarray | None = None, chunk: int = 256
) -> Finding:
    """Refuse two trials with the same samples, bit by bit: a recording was copied.

    Parameters
    ----------
    eeg : array of shape (n_trials, n_channels, n_times), or anything that `eeg[int array]` reads
        trials from; `chunk` of them are in memory at a time
    trials : DataFrame with `subject`, `split`, one row per trial
    rows : int array of shape (len(trials),), the row of `eeg` of each row of `trials`; left out,
        they correspond one to one

    Raises
    ------
    LeakageError
        Counts the copies and names a pair, one between splits or subjects if there is any.
    """
    if rows is None:
        rows = np.arange(len(eeg))
    rows = np.asarray(rows)
    if len(rows) != len(trials):
        raise DatasetError(
            f"{len(rows)} rows of EEG for {len(trials)} trials: say which rows they are (rows)"
        )
    digests = np.empty((len(rows), 2), np.uint64)  # 128 bits: no two of them are equal by chance
    for start in range(0, len(rows), chunk):
        block = np.ascontiguousarray(eeg[rows[start : start + chunk]])
        for i, trial in enumerate(block, start):
            digests[i] = np.frombuffer(hashlib.sha256(trial).digest(), np.uint64, 2)
    order = np.lexsort((np.arange(len(rows)), digests[:, 1], digests[:, 0]))
    same = np.flatnonzero((digests[order][1:] == digests[order][:-1]).all(1))
    if len(same):
        a, b = order[same], order[same + 1]
        across = trials["split"].to_numpy()[a] != trials["split"].to_numpy()[b]
        across |= trials["subject"].to_numpy()[a] != trials["subject"].to_numpy()[b]
        worst = np.argmax(across)  # a pair between splits or subjects, if there is one
        named = [
            f"row {rows[i]} ({trials['subject'].iloc[i]}, {trials['split'].iloc[i]})"
            for i in (a[worst], b[worst])
        ]
        flat = np.ptp(np.asarray(eeg[rows[a[worst]] : rows[a[worst]] + 1])) == 0
        raise LeakageError(
            f"{len(same)} trials have the samples of another one, {int(across.sum())} of them of "
            f"another split or subject: {named[0]} and {named[1]}. "
            + ("They hold no signal at all; drop them" if flat else "Was a recording copied?")
        )
    return Finding("duplicate recording", "samples of all trials", len(rows))


def assert_files_unique(files: Iterable[Path]) -> Finding:
    """Refuse two recording files with the same content.

    For a BrainVision or EEGLAB header the file with the samples is compared, if it lies beside it:
    the header holds that file's name and differs between copies.

    Parameters
    ----------
    files : iterable of Path; only files of equal size are read

    Raises
    ------
    LeakageError
        Names both files.
    DatasetError
        A file that is not there.
    """
    by_size: dict[int, list[Path]] = {}
    files = list(files)
    for file in map(Path, files):
        data = file.with_suffix(_DATA_FILE.get(file.suffix, file.suffix))
        data = data if data.is_file() else file
        if not data.is_file():
            raise DatasetError(f"{data} is not there: is the list of recordings of another place?")
        by_size.setdefault(data.stat().st_size, []).append(data)
    for group in by_size.values():
        seen: dict[str, Path] = {}
        for file in group if len(group) > 1 else ():
            first = seen.setdefault(digest_file(file), file)
            if first is not file:
                raise LeakageError(
                    f"{first} and {file} have the same content: a recording was copied, or listed "
                    "twice. Remove one of them"
                )
    return Finding("duplicate recording", "content of all files", len(files))
