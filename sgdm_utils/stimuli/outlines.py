"""The outline of what a picture shows, whatever its place and size: what a category is told by."""

from __future__ import annotations

import numpy as np
from skimage.transform import resize

from sgdm_utils.stimuli import pictures as stimuli_pictures


def outline_features(pictures: np.ndarray, size: int = 24) -> np.ndarray:
    """Silhouettes as found in the pictures, cut out and brought to one size.

    Parameters
    ----------
    pictures : uint8 array of shape (n, height, width, 3)
    size : int, pixels per side of a cut-out

    Returns
    -------
    float32 array of shape (n, size * size) in [0, 1]; zeros where nothing stands out
    """
    rows = []
    for picture in pictures:
        mask = (
            np.asarray(stimuli_pictures.structure_from_picture(np.ascontiguousarray(picture))[0])
            > 0.5
        )
        if not mask.any():
            rows.append(np.zeros(size * size, np.float32))
            continue
        y, x = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        cut = mask[y[0] : y[-1] + 1, x[0] : x[-1] + 1].astype(np.float32)
        rows.append(resize(cut, (size, size), anti_aliasing=True).ravel())
    return np.stack(rows)
