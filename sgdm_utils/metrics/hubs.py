"""Taking their lead from hubs: similarities that are rescaled by their neighbourhoods."""

from __future__ import annotations

import numpy as np


def csls(similarity: np.ndarray, k: int = 10) -> np.ndarray:
    """Cross-domain similarity local scaling: hubs of the gallery lose their lead.

    Parameters
    ----------
    similarity : array of shape (n_queries, n_gallery)
    k : int, neighbours on either side

    Returns
    -------
    float64 array of the same shape
        Twice the similarity, less the mean similarity of the query to its k nearest gallery items
        and of the item to its k nearest queries. It looks at all queries at once: *transductive*.

    Raises
    ------
    ValueError
        No finite matrix, or k larger than one of its sides.

    References
    ----------
    Conneau, Lample, Ranzato, Denoyer & Jegou (2018), Word translation without parallel data, ICLR.
    """
    similarity = np.asarray(similarity, np.float64)
    if similarity.ndim != 2 or not np.isfinite(similarity).all():
        raise ValueError(f"similarity of shape {similarity.shape}: expected a finite matrix")
    if not 1 <= k <= min(similarity.shape):
        raise ValueError(
            f"k = {k}: 1 to {min(similarity.shape)} neighbours are there on both sides"
        )
    of_query = np.sort(similarity, axis=1)[:, -k:].mean(1)
    of_item = np.sort(similarity, axis=0)[-k:].mean(0)
    return 2 * similarity - of_query[:, None] - of_item
