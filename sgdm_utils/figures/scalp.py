"""Many small scalp maps at once, as pictures.

MNE draws one good map; a page with hundreds of them needs a cheaper way.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from scipy.interpolate import RBFInterpolator


def scalp_images(
    values: np.ndarray, positions_m: np.ndarray, size: int = 72, colour_map: str = "RdBu_r"
) -> np.ndarray:
    """Small scalp maps as pictures, many at once; nose up.

    Positions are projected azimuthally from the centre of a fitted sphere, values interpolated with
    a thin plate spline; each map has its own symmetric range of colours.

    Parameters
    ----------
    values : array of shape (n, n_channels)
    positions_m : array of shape (n_channels, 3), metres, x to the right, y to the front, z up
    size : int, pixels per side
    colour_map : str, a diverging one

    Returns
    -------
    uint8 array of shape (n, size, size, 3), white outside the head
    """
    design = np.column_stack([2 * positions_m, np.ones(len(positions_m))])
    centre = np.linalg.lstsq(design, (positions_m**2).sum(1), rcond=None)[0][:3]
    unit = positions_m - centre
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    polar = np.arccos(np.clip(unit[:, 2], -1, 1)) / (np.pi / 2)
    planar = unit[:, :2] / np.maximum(np.linalg.norm(unit[:, :2], axis=1, keepdims=True), 1e-9)
    planar *= polar[:, None]
    radius = 1.02 * np.linalg.norm(planar, axis=1).max()
    axis = np.linspace(-radius, radius, size)
    grid = np.stack(np.meshgrid(axis, axis[::-1]), axis=-1).reshape(-1, 2)
    inside = np.linalg.norm(grid, axis=1) <= radius
    # interpolation is linear in the values: one operator serves all maps
    operator = RBFInterpolator(planar, np.eye(len(planar)), smoothing=1e-3)(grid[inside])
    maps = np.asarray(values) @ operator.T
    maps /= np.maximum(np.abs(maps).max(axis=1, keepdims=True), 1e-12)
    pictures = np.full((len(maps), size * size, 3), 255, np.uint8)
    colours = plt.get_cmap(colour_map)(maps / 2 + 0.5)[..., :3]
    pictures[:, inside] = np.round(colours * 255).astype(np.uint8)
    return pictures.reshape(-1, size, size, 3)
