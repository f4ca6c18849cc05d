"""Averages of pictures, brought back to what pictures look like: outlines that are sharp, colours that exist."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from sgdm_utils.decoding.forward import posterior as forward_model
from sgdm_utils.generation.conditioning import two_colour_layout


def blended_colours(
    weights: np.ndarray,
    mean: np.ndarray,
    both: np.ndarray,
    maps: torch.Tensor,
    mode: float = 0.5,
    bandwidth: float = 0.12,
) -> torch.Tensor:
    """Colour layouts between the posterior mean and colours that pictures do have.

    The mean of orange and blue is grey: nearest to both on average, and a colour of nothing that was
    shown. The densest colours of figure and ground, each for itself, lie on the silhouette.

    Parameters
    ----------
    weights : array of shape (n, n_set), posterior over a set of pictures
    mean : array of shape (n, 3, grid, grid), posterior means of the layouts (`colour_layout`); a
        mean that was moved beyond what colours can be is brought back
    both : array of shape (n_set, 6), `figure_and_ground`
    maps : tensor of shape (n, 2, size, size) in [0, 1], where figure and ground are said to be
    mode : float in [0, 1], 0 for the mean alone, 1 for the densest colours alone
    bandwidth : float above 0, distance within which colours are alike

    Returns
    -------
    tensor of shape (n, 3, grid, grid)
    """
    if not 0 <= mode <= 1:
        raise ValueError(f"mode is {mode}: a share from 0 (mean) to 1 (densest colours) is needed")
    layout = torch.as_tensor(mean).clamp(0, 1)
    if not mode:
        return layout
    parts = [forward_model.posterior_mode(weights, both[:, i : i + 3], bandwidth) for i in (0, 3)]
    densest = torch.from_numpy(np.concatenate(parts, axis=1))
    on_silhouette = two_colour_layout(densest, maps[:, 0].to(densest), layout.shape[-1])
    return mode * on_silhouette + (1 - mode) * layout


def sharpened_maps(
    silhouettes: torch.Tensor, threshold: float = 0.38, steepness: float = 12.0
) -> torch.Tensor:
    """Structure maps of averaged silhouettes, for a generator that knows true maps only.

    The average of silhouettes is grey where they differ: it is pushed towards black and white. The
    average of edges is nearly empty, because thin lines seldom meet; what can be said of edges
    is the outline of the sharpened silhouette, one pixel wide on its inner side as in true maps.

    Parameters
    ----------
    silhouettes : tensor of shape (n, size, size), about in [0, 1]
    threshold : float in (0, 1), value that becomes one half
    steepness : float above 0

    Returns
    -------
    tensor of shape (n, 2, size, size) in [0, 1]
    """
    if not 0 < threshold < 1 or not steepness > 0:
        raise ValueError(f"threshold {threshold}, steepness {steepness}: in (0, 1), and above 0")
    figure = (steepness * (silhouettes[:, None] - threshold)).sigmoid()
    outside = 1 - F.pad(figure, (1, 1, 1, 1))  # beyond the frame nothing is figure
    beside = F.max_pool2d(outside[..., 1:-1], (3, 1), stride=1)
    beside = torch.maximum(beside, F.max_pool2d(outside[..., 1:-1, :], (1, 3), stride=1))
    return torch.cat([figure, torch.minimum(figure, beside)], dim=1)
