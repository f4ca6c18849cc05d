"""Electrodes: where they are, seen from the centre of the head, and which to leave out in training."""

from __future__ import annotations

from collections.abc import Sequence

import mne
import numpy as np


def electrode_positions(chs_info: Sequence[dict]) -> np.ndarray:
    """Directions of the electrodes from the centre of the head.

    Parameters
    ----------
    chs_info : sequence of MNE channel dictionaries (`info["chs"]`), `loc[:3]` in metres

    Returns
    -------
    float32 array of shape (n_chans, 3), unit vectors

    Raises
    ------
    ValueError
        Names the channels without a position.
    """
    loc = np.array([ch["loc"][:3] for ch in chs_info], dtype=np.float64)
    lost = ~np.isfinite(loc).all(1) | (np.abs(loc).sum(1) == 0)
    if lost.any():
        names = [ch["ch_name"] for ch, out in zip(chs_info, lost, strict=True) if out]
        raise ValueError(
            f"no electrode position for {', '.join(names)}: set a montage "
            "(raw.set_montage('standard_1005')) or drop these channels"
        )
    centred = loc - _head_centre(loc)
    return (centred / np.linalg.norm(centred, axis=1, keepdims=True)).astype(np.float32)


def _head_centre(loc: np.ndarray) -> np.ndarray:
    """Centre of the sphere of a template cap, else that of the standard positions on a real head.

    Template caps of BioSemi, EasyCap and others are drawn on an exact sphere, whose centre lies
    elsewhere in MNE's head coordinates: with the standard centre their Pz would pass for POz.
    """
    standard = np.array([0.0, 0.016, 0.045])
    design = np.column_stack([2 * loc, np.ones(len(loc))])
    solution, _, rank, _ = np.linalg.lstsq(design, (loc**2).sum(1), rcond=1e-6)
    distance = np.linalg.norm(loc - solution[:3], axis=1)
    # a few electrodes lie on some sphere always; digitised ones miss any by millimetres
    exact = len(loc) >= 8 and rank == 4 and np.ptp(distance) < 2e-4
    return solution[:3] if exact and 0.06 < distance.mean() < 0.13 else standard


# MNE 1.13 renamed its template of the 10-05 system; the positions are the same
STANDARD_MONTAGE = next(
    name
    for name in ("colin27_1005", "standard_1005")
    if name in mne.channels.get_builtin_montages()
)
