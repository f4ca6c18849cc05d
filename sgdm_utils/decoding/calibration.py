"""Probabilities that mean what they say: temperature scaling and calibration error."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Temperature by which logits are divided so that the labels become most likely.

    Parameters
    ----------
    logits : tensor of shape (n, n_classes), from items that were not trained on
    labels : long tensor of shape (n,); -1 marks items of no known class, which are left out

    Returns
    -------
    float, above 1 where the logits were too sure; 1 when there is nothing to fit on

    References
    ----------
    Guo et al. (2017), arXiv:1706.04599, section 4.2.
    """
    known = labels >= 0
    if not known.any():
        return 1.0
    logits, labels = logits[known].double(), labels[known]

    def cost(log_temperature: float) -> float:
        return F.cross_entropy(logits / float(np.exp(log_temperature)), labels).item()

    found = minimize_scalar(cost, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def expected_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, n_bins: int = 5
) -> float:
    """Mean distance between how sure and how often right, over bins with equally many items.

    Parameters
    ----------
    probabilities : array of shape (n, n_classes), rows sum to one
    labels : int array of shape (n,), class of each item
    n_bins : int

    Returns
    -------
    float in [0, 1]; its expectation is above 0 also for perfect probabilities when n is small
    """
    sure = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.array_split(np.argsort(sure, kind="stable"), n_bins)
    gaps = [len(b) * abs(sure[b].mean() - right[b].mean()) for b in bins if len(b)]
    return float(sum(gaps) / len(sure))
