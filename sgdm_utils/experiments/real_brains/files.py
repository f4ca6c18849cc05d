"""Small public files of real brains, read and checked: dissimilarities, pictures, embeddings.

Nothing of them is part of the project. They lie in ``data/raw`` as ``python -m sgdm_utils fetch``
leaves them, verified by their checksums; the catalogue names licence and source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy.io import loadmat
from scipy.ndimage import binary_fill_holes

from sgdm_utils.errors import DatasetError
from sgdm_utils.experiments.real_brains.geometry import rank_matrix, upper
from sgdm_utils.workflow.downloads.catalogue import find_entry
from sgdm_utils.workflow.downloads.fetch import fetch

GREY = 128  # of the ground that the 92 pictures were shown on
LABELS = ("human", "face", "animal", "natural")
#: What to do about files that are not there.
MISSING = (
    "python -m sgdm_utils fetch {name}    (without a network: --from FOLDER, where the files lie)"
)
_TOLERANCE = 1e-6  # of the largest dissimilarity: rounding of a file


class RealBrainError(DatasetError):
    """A file cannot be used as it is: the message says what is wrong, where, and what to do."""


@dataclass(frozen=True)
class Pictures92:
    """What is known of the 92 pictures, without showing them.

    Attributes
    ----------
    silhouettes : bool array of shape (92, 175, 175), what is not ground, holes filled
    labels : DataFrame of 92 rows with the columns `LABELS` (0 or 1) and ``category`` (six names)
    """

    silhouettes: np.ndarray
    labels: pd.DataFrame


def find_files(names: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """Find what was fetched, with its checksums verified; nothing is downloaded.

    Parameters
    ----------
    names : entries of the catalogue

    Returns
    -------
    files : dict of file name to Path, of the entries that are complete
    absent : list of str, the entries that are not

    Raises
    ------
    sgdm_utils.workflow.downloads.transfers.DownloadError
        A file that is there is not the published one.
    """
    files, absent = {}, []
    for name in names:
        entry = find_entry(name)
        if all((entry.raw_dir / file.path).is_file() for file in entry.files):
            files |= {path.name: path for path in fetch(name, progress=False)}
        else:
            absent.append(name)
    return files, absent


def check_rdms(rdms: ArrayLike, where: str, n_pictures: int | None = None) -> np.ndarray:
    """Refuse dissimilarity matrices that are none.

    Parameters
    ----------
    rdms : array of shape (n_people, n, n) or (n, n)
    where : str, the file, for the message
    n_pictures : int, optional, how many pictures there have to be

    Returns
    -------
    float64 array of the same shape

    Raises
    ------
    RealBrainError
        No square matrices, another number of pictures, NaN, an asymmetric matrix, a diagonal that is
        not 0, or dissimilarities that are all alike; names person and pictures.
    """
    rdms = np.asarray(rdms, np.float64)
    if rdms.ndim not in (2, 3) or rdms.shape[-1] != rdms.shape[-2]:
        raise RealBrainError(
            f"{where}: shape {rdms.shape}, expected square matrices (n_people, n, n). Pairs as a vector "
            "become a matrix with scipy.spatial.distance.squareform"
        )
    if n_pictures is not None and rdms.shape[-1] != n_pictures:
        raise RealBrainError(
            f"{where}: {rdms.shape[-1]} pictures, expected {n_pictures}. Take rows and columns of the "
            "same pictures out of it, in the order image_01 to image_92"
        )
    for person, rdm in enumerate(rdms.reshape(-1, *rdms.shape[-2:])):
        at = f"{where}, person {person + 1}"
        bad = np.argwhere(~np.isfinite(rdm))
        if len(bad):
            raise RealBrainError(
                f"{at}: {len(bad)} dissimilarities are NaN or infinite, the first between pictures "
                f"{bad[0, 0] + 1} and {bad[0, 1] + 1}. Leave the person out, or fetch the file again"
            )
        scale = np.abs(rdm).max()
        skew = np.abs(rdm - rdm.T)
        if skew.max() > _TOLERANCE * scale:
            i, j = np.unravel_index(skew.argmax(), skew.shape)
            raise RealBrainError(
                f"{at}: not symmetric, {rdm[i, j]:.4g} from picture {i + 1} to {j + 1} and "
                f"{rdm[j, i]:.4g} back. Was only one triangle filled, or are rows in another order than "
                "columns? Mirror the one, reorder the other"
            )
        if np.abs(np.diagonal(rdm)).max() > _TOLERANCE * scale:
            i = int(np.abs(np.diagonal(rdm)).argmax())
            raise RealBrainError(
                f"{at}: the diagonal is not 0, {rdm[i, i]:.4g} at picture {i + 1}. If these are "
                "correlations, give 1 - r"
            )
        if not np.ptp(upper(rdm)) > 0:
            raise RealBrainError(
                f"{at}: all dissimilarities are alike, so there is no geometry. Leave the person out"
            )
    return rdms


def check_order(
    rdm: np.ndarray,
    models: Mapping[str, np.ndarray],
    where: str,
    rng: np.random.Generator,
    n_draws: int = 1000,
) -> float:
    """Refuse dissimilarities whose pictures are in another order than those of the models.

    In the right order, brain and pictures have something in common: the largest rank correlation
    with a model has to exceed that of every one of `n_draws` random orders. An order that leaves
    most neighbours where they were (two pictures exchanged) cannot be seen like this.

    Parameters
    ----------
    rdm : array of shape (n, n), mean over people
    models : mapping of name to array of shape (n, n), computed from pictures and labels
    where : str, the file, for the message

    Returns
    -------
    float, the largest correlation

    Raises
    ------
    RealBrainError
    """
    ranks = rank_matrix(rdm)
    wanted = np.array([upper(rank_matrix(model)) for model in models.values()])
    orders = [np.arange(len(rdm)), *(rng.permutation(len(rdm)) for _ in range(n_draws))]
    agreement = [(wanted @ upper(ranks[np.ix_(order, order)])).max() for order in orders]
    value, largest = agreement[0], max(agreement[1:])
    if value <= largest:
        raise RealBrainError(
            f"{where}: agrees with {' and '.join(models)} no better than in a random order of pictures "
            f"(rank correlation {value:.3f}, largest of {n_draws} random orders {largest:.3f}). "
            "Its pictures are in another order, or it holds no signal: bring rows and columns into the "
            "order of the pictures (image_01 to image_92, sorted by name)"
        )
    return float(value)


def read_rdms(path: Path, n_pictures: int = 92) -> np.ndarray:
    """Read dissimilarities of several people.

    Parameters
    ----------
    path : Path
        ``.npz`` with the key ``Net_RDM``, or ``.mat`` with ``RDMs`` (people x sessions, averaged).

    Returns
    -------
    float64 array of shape (n_people, n_pictures, n_pictures), checked by `check_rdms`

    Raises
    ------
    RealBrainError
    """
    path = Path(path)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                rdms = stored["Net_RDM"]
        else:
            people = loadmat(path)["RDMs"][0]
            rdms = np.array([[session["RDM"] for session in person] for person in people]).mean(1)
    except Exception as error:  # damaged bytes lead the readers of both forms into any of them
        raise RealBrainError(
            f"{path.name} holds no dissimilarities in a form that is known ({error}). Expected Net_RDM "
            "in a .npz, or RDMs of people and sessions in a .mat: fetch the published file"
        ) from error
    return check_rdms(rdms, path.name, n_pictures)


def read_pictures(path: Path) -> Pictures92:
    """Read silhouettes and labels of the 92 pictures.

    Raises
    ------
    RealBrainError
        Another file, or a picture without figure or ground.
    """
    path = Path(path)
    try:
        stored = loadmat(path)["stimuli_92objs"][0]
        pictures = np.stack([item["image"] for item in stored])
        labels = {name: [int(item[name].ravel()[0]) for item in stored] for name in LABELS}
        labels["category"] = [str(item["category"].ravel()[0]) for item in stored]
    except (KeyError, ValueError, TypeError, IndexError, OSError) as error:
        raise RealBrainError(
            f"{path.name} holds no pictures with labels in the form that is known ({error}): fetch the "
            "published file"
        ) from error
    figure = np.stack([binary_fill_holes(f) for f in (pictures != GREY).any(-1)])
    empty = np.flatnonzero(~figure.any((1, 2)) | figure.all((1, 2)))
    if len(empty):
        raise RealBrainError(
            f"{path.name}: pictures {(empty[:8] + 1).tolist()} are all ground or all figure (ground is "
            f"grey {GREY}): leave them out, also in the dissimilarities"
        )
    return Pictures92(figure, pd.DataFrame(labels))


def read_embeddings(
    path: Path, name: str | None = None, n_items: int | None = None, width: int | None = None
) -> np.ndarray:
    """Read one set of embeddings that torch has stored.

    Parameters
    ----------
    path : Path
    name : str, optional, key of the set where the file holds several
    n_items, width : int, optional, what is expected

    Returns
    -------
    float32 array of shape (n_items, width)

    Raises
    ------
    RealBrainError
        Another form, another number of items or width, NaN, an embedding of zeros; with the items.
    """
    path = Path(path)
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its reader for archives raises
        raise RealBrainError(
            f"{path.name} cannot be opened as tensors without running code "
            f"({type(error).__name__}): fetch the published file"
        ) from error
    if name is not None:
        if not isinstance(stored, dict) or name not in stored:
            there = ", ".join(map(str, stored)) if isinstance(stored, dict) else "one tensor"
            raise RealBrainError(f"{path.name} holds no {name!r}; it holds {there}")
        stored = stored[name]
    if not torch.is_tensor(stored) or stored.ndim != 2:
        raise RealBrainError(
            f"{path.name}: expected a table (n_items, width); name one of its sets"
        )
    values = stored.float().numpy()
    if n_items is not None and len(values) != n_items:
        raise RealBrainError(
            f"{path.name}: {len(values)} embeddings, expected {n_items}, one for each picture of the "
            "gallery in its order. Leave the same pictures out on both sides"
        )
    if width is not None and values.shape[1] != width:
        raise RealBrainError(
            f"{path.name}: embeddings of width {values.shape[1]}, expected {width}. They are of another "
            "CLIP: compare only embeddings of one network"
        )
    for what, bad in (
        ("hold NaN or infinity", ~np.isfinite(values).all(1)),
        ("are all zero", ~np.abs(values).max(1).astype(bool)),
    ):
        if bad.any():
            raise RealBrainError(
                f"{path.name}: embeddings {np.flatnonzero(bad)[:8].tolist()} (from 0) {what}. Leave them "
                "out, on both sides, or compute them anew"
            )
    return values
