"""Regions of the scalp, from electrode positions alone.

An electrode belongs to the region of the nearest electrode of the international 10-10 system, and
an electrode of that system to the region that the letters of its name stand for. Names of the
user's channels are not looked at, so any cap has regions as soon as it has positions.
"""

from __future__ import annotations

from functools import lru_cache

import mne
import numpy as np
import torch

from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE, electrode_positions

#: Regions from back to front, and the letters of the 10-10 electrodes in them.
REGIONS = {
    "occipital": ("O", "I"),
    "parieto_occipital": ("PO",),
    "parietal": ("P",),
    "temporal": ("T", "TP", "FT"),
    "central": ("C", "CP", "FC"),
    "frontal": ("F", "AF", "Fp"),
}
#: Neighbours in the 10-10 system lie about 18 degrees apart; further out is no part of the scalp.
MAX_DEGREES = 25.0


@lru_cache
def reference_electrodes() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Electrodes of the 10-10 system: directions, regions, names.

    Returns
    -------
    directions : float32 array of shape (n, 3), unit vectors as `electrode_positions` gives them
    regions : int array of shape (n,), index into `REGIONS`
    names : tuple of n str

    References
    ----------
    Nuwer (2018), Clinical Neurophysiology 129:1103 (10-10 system); positions: MNE's standard ones.
    """
    region_of = {letters: i for i, group in enumerate(REGIONS.values()) for letters in group}
    montage = mne.channels.make_standard_montage(STANDARD_MONTAGE)
    # names such as FFC3h are the finer 10-5 system; A1, M1 and the T3 to T6 of old are doubles
    doubles = {"T3", "T4", "T5", "T6"}
    names = [
        name
        for name in montage.ch_names
        if name.rstrip("z0123456789") in region_of and name not in doubles
    ]
    info = mne.create_info(names, 100.0, "eeg")
    info.set_montage(montage)
    regions = [region_of[name.rstrip("z0123456789")] for name in names]
    return electrode_positions(info["chs"]), np.array(regions), tuple(names)


def electrode_regions(positions: np.ndarray | torch.Tensor) -> np.ndarray:
    """Region of each electrode.

    Parameters
    ----------
    positions : array of shape (..., n_chans, 3), unit vectors

    Returns
    -------
    int array of shape (..., n_chans), index into `REGIONS`; -1 further than `MAX_DEGREES` from every
    electrode of the 10-10 system (face, ears, neck)

    Raises
    ------
    ValueError
        Not directions: another shape, NaN, or lengths other than 1 (metres, for example).
    """
    positions = np.asarray(torch.as_tensor(positions).detach().cpu(), dtype=np.float64)
    if positions.ndim < 2 or positions.shape[-1] != 3:
        raise ValueError(f"positions of shape {positions.shape}, expected (..., n_chans, 3)")
    length = np.linalg.norm(positions, axis=-1)
    if not (np.abs(length - 1) < 1e-3).all():
        worst = length.ravel()[np.argmax(np.abs(np.nan_to_num(length, nan=np.inf) - 1))]
        raise ValueError(
            f"positions are no unit vectors (a length is {worst:.3g}): use "
            "encoders.electrode_positions, which takes metres and gives directions"
        )
    directions, regions, _ = reference_electrodes()
    cosine = positions @ directions.T
    nearest = regions[cosine.argmax(-1)]
    return np.where(cosine.max(-1) >= np.cos(np.deg2rad(MAX_DEGREES)), nearest, -1)


def region_masks(positions: np.ndarray | torch.Tensor) -> dict[str, np.ndarray]:
    """Electrodes of each region: a bool array of shape (..., n_chans) for every name in `REGIONS`.

    Raises
    ------
    ValueError
        See `electrode_regions`.
    """
    index = electrode_regions(positions)
    return {name: index == i for i, name in enumerate(REGIONS)}
