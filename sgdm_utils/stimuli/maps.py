"""Structure of pictures: silhouettes, edges, outlines, and where they come from when unknown."""

from __future__ import annotations

import numpy as np
from skimage.color import rgb2gray, rgb2lab
from skimage.feature import canny
from skimage.filters import threshold_otsu
from skimage.measure import label as label_regions
from skimage.transform import resize


def _outline(silhouette: np.ndarray) -> np.ndarray:
    """Return the pixels of a silhouette with a neighbour (of four) outside it, same shape."""
    inner = np.zeros_like(silhouette)  # beyond the frame is outside
    inner[1:-1, 1:-1] = (
        silhouette[:-2, 1:-1] & silhouette[2:, 1:-1] & silhouette[1:-1, :-2] & silhouette[1:-1, 2:]
    )
    return silhouette & ~inner


def structure_map(silhouettes: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Stack silhouettes and edges, each (n, h, w), to (n, 2, h, w) float32 between 0 and 1."""
    if silhouettes.shape != edges.shape or silhouettes.ndim != 3:
        raise ValueError(
            f"silhouettes {silhouettes.shape} and edges {edges.shape} must both be (n, h, w)"
        )
    return np.stack([silhouettes, edges], axis=1).astype(np.float32)


def structure_from_picture(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimate silhouette and edges of a picture whose geometry is not known.

    A fallback for other people's pictures. A plane in x and y is fitted to the Lab colours of the
    border, so a smooth gradient counts as background; the foreground is what differs from it by
    more than Otsu's threshold [1]_. Where the border is no smooth surface (a photograph) the
    silhouette is only "unlike the border": inspect it before believing it. Edges are Canny edges
    of the luminance together with the outline of the silhouette.

    Parameters
    ----------
    picture : ndarray, shape (h, w, 3), uint8

    Returns
    -------
    silhouette : ndarray, shape (h, w), bool
    edges : ndarray, shape (h, w), bool

    References
    ----------
    .. [1] Otsu (1979), IEEE Trans. Syst. Man Cybern. 9, 62-66.
    """
    silhouette = _silhouette(picture)
    return silhouette, canny(rgb2gray(picture), sigma=1.0) | _outline(silhouette)


def _silhouette(picture: np.ndarray) -> np.ndarray:
    """Return the silhouette of `structure_from_picture`, (h, w) bool, without looking for edges."""
    if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"expected (h, w, 3) uint8, got {picture.shape} {picture.dtype}")
    h, w = picture.shape[:2]
    lab = rgb2lab(picture)
    y, x = np.mgrid[:h, :w]
    design = np.stack([np.ones((h, w)), x / w, y / h], axis=-1)
    border = np.ones((h, w), dtype=bool)
    border[2:-2, 2:-2] = False
    plane, *_ = np.linalg.lstsq(design[border], lab[border], rcond=None)
    distance = np.linalg.norm(lab - design @ plane, axis=-1)
    noise = np.percentile(distance[border], 95)
    if distance.max() <= max(3.0, 1.5 * noise):  # nothing stands out from the background
        silhouette = np.zeros((h, w), dtype=bool)
    else:
        silhouette = distance > max(threshold_otsu(distance), noise)
        regions = label_regions(silhouette, connectivity=2)
        sizes = np.bincount(regions.ravel())
        keep = sizes >= 0.002 * h * w
        keep[0] = False
        silhouette = keep[regions]
    return silhouette


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
        mask = _silhouette(picture)
        if not mask.any():
            rows.append(np.zeros(size * size, np.float32))
            continue
        y, x = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        cut = mask[y[0] : y[-1] + 1, x[0] : x[-1] + 1].astype(np.float32)
        rows.append(resize(cut, (size, size), anti_aliasing=True).ravel())
    return np.stack(rows)


def silhouettes(pictures: np.ndarray) -> np.ndarray:
    """Silhouettes as they are found in pictures, see `structure_from_picture`.

    Parameters
    ----------
    pictures : array of shape (n, height, width, 3), uint8, or float in [0, 1]

    Returns
    -------
    bool array of shape (n, height, width)
    """
    if pictures.dtype != np.uint8:
        pictures = np.round(pictures * 255).astype(np.uint8)
    return np.stack([_silhouette(picture) for picture in pictures])
