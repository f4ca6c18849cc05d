"""Structure metrics: do the shapes lie where they should, and do the tans touch as they should?

References
----------
Boundary F: Martin, Fowlkes & Malik, IEEE TPAMI 26, 530 (2004), here with a distance tolerance
instead of an optimal matching of pixels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.ndimage import binary_erosion, distance_transform_edt

from sgdm_utils.stimuli.tangrams import equivalent_relations


def iou(a: ArrayLike, b: ArrayLike, threshold: float = 0.5) -> np.ndarray:
    """Intersection over union of masks, shape (n,); two empty masks agree and score 1.

    Parameters
    ----------
    a, b : array of shape (n, height, width), bool or float in [0, 1]
    threshold : float
        A float pixel belongs to the mask when it is at least this large.
    """
    a, b = _check_masks(a, b, threshold)
    union = (a | b).sum((1, 2))
    return np.where(union == 0, 1.0, (a & b).sum((1, 2)) / np.maximum(union, 1))


def boundary_f(
    a: ArrayLike,
    b: ArrayLike,
    tolerance_px: float = 1.0,
    threshold: float = 0.5,
    kind: Literal["mask", "edges"] = "mask",
) -> np.ndarray:
    """Boundary F: harmonic mean of the shares of either boundary that lie near the other one.

    A mask's boundary are its pixels with a 4-neighbour outside (the frame of the picture is no
    boundary); `kind="edges"` takes the pixels themselves as boundary. "Near" is a Euclidean
    distance of at most `tolerance_px` pixels. Two empty boundaries score 1, one empty scores 0.

    Returns
    -------
    ndarray of shape (n,), float64, in [0, 1]
    """
    if kind not in ("mask", "edges"):
        raise ValueError(f"kind {kind!r} is unknown, expected 'mask' or 'edges'")
    a, b = _check_masks(a, b, threshold)
    scores = np.empty(len(a))
    for i, pair in enumerate(zip(a, b, strict=True)):
        if kind == "mask":
            pair = [mask & ~binary_erosion(mask, border_value=1) for mask in pair]
        if not pair[0].any() or not pair[1].any():
            scores[i] = float(not pair[0].any() and not pair[1].any())
            continue
        near = [distance_transform_edt(~edge) <= tolerance_px for edge in pair]
        precision, recall = near[1][pair[0]].mean(), near[0][pair[1]].mean()
        total = precision + recall
        scores[i] = 2 * precision * recall / total if total > 0 else 0.0
    return scores


def relation_accuracy(predicted: ArrayLike, target: ArrayLike) -> np.ndarray:
    """Share of the 21 pairs of tans with the right relation, best of the 4 equivalent targets.

    The two small and the two large triangles cannot be told apart, so four labellings of one
    tangram are equally true. Taking the best raises the chance level above that of one
    labelling: take chance from permuted items, not from the number of classes.

    Parameters
    ----------
    predicted, target : integer array of shape (n, 7, 7)
        Relation classes; only entries above the diagonal are compared. Targets are symmetric.
    """
    predicted, target = np.asarray(predicted), np.asarray(target)
    for name, matrix in (("predicted", predicted), ("target", target)):
        if matrix.ndim != 3 or matrix.shape[1:] != (7, 7) or matrix.dtype.kind not in "iu":
            raise ValueError(
                f"{name}: expected integers (n, 7, 7), got {matrix.dtype} {matrix.shape}"
            )
    if len(predicted) != len(target):
        raise ValueError(f"{len(predicted)} predicted and {len(target)} target matrices")
    asymmetric = (target != target.transpose(0, 2, 1)).any((1, 2))
    if asymmetric.any():
        raise ValueError(
            f"target: matrices {np.flatnonzero(asymmetric)[:8].tolist()} are not symmetric"
        )
    upper = np.triu_indices(7, k=1)
    variants = equivalent_relations(target)  # (4, n, 7, 7)
    right = variants[..., *upper] == predicted[..., *upper]
    return right.mean(2).max(0)


def _check_masks(a: ArrayLike, b: ArrayLike, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    checked = []
    for name, mask in (("a", a), ("b", b)):
        mask = mask.detach().cpu().numpy() if torch.is_tensor(mask) else np.asarray(mask)
        if mask.ndim != 3:
            raise ValueError(f"{name}: masks of shape {mask.shape}, expected (n, height, width)")
        if mask.dtype != bool:
            # written so that NaN fails as well
            if mask.dtype.kind != "f" or not ((mask >= 0) & (mask <= 1)).all():
                raise ValueError(f"{name}: {mask.dtype} masks, expected bool or float in [0, 1]")
            mask = mask >= threshold
        checked.append(mask)
    if checked[0].shape != checked[1].shape:
        raise ValueError(f"masks differ in shape: {checked[0].shape} and {checked[1].shape}")
    return checked[0], checked[1]
