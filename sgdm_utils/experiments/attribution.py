"""Which electrodes and which moments a decoder needs.

Two ways of asking a trained decoder: *occlusion* (take a region and a window away, see what is lost)
and *integrated gradients* (share the score out among all samples). What an ideal decoder would
need is in `ideal_decoder`.

References
----------
Zeiler & Fergus (2014), ECCV, LNCS 8689:818 (occlusion). Sundararajan, Taly & Yan (2017), ICML, PMLR
70:3319 (integrated gradients, completeness).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

#: EEG (n, n_channels, n_times), electrodes present (n, n_channels) or None -> predictions (n, d).
Predictor = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


# ------------------------------------------------------------------ what is taken away


def time_windows(times: np.ndarray, width_s: float) -> list[slice]:
    """Consecutive windows of equal width that cover an epoch.

    Parameters
    ----------
    times : array of shape (n_times,), seconds, equally spaced
    width_s : float, seconds

    Returns
    -------
    list of slice into `times`; a rest of less than half a window belongs to the last one

    Raises
    ------
    ValueError
        When a window would hold less than one sample or more than the epoch.
    """
    step = (times[-1] - times[0]) / (len(times) - 1)
    n = round(width_s / step)
    if not 1 <= n <= len(times):
        raise ValueError(
            f"windows of {width_s:g} s: an epoch of {len(times)} samples every {step:g} s can be "
            f"divided into windows of {step:g} to {step * len(times):g} s"
        )
    starts = list(range(0, len(times), n))
    if len(starts) > 1 and len(times) - starts[-1] < n / 2:
        starts.pop()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(times)], strict=True)]


def occlusion_masks(
    electrodes: Mapping[str, np.ndarray], windows: Sequence[slice], n_times: int
) -> np.ndarray:
    """The samples that belong to each region and window.

    Parameters
    ----------
    electrodes : mapping of region to bool array of shape (n_channels,), see `regions.region_masks`
    windows : slices of time, see `time_windows`

    Returns
    -------
    bool array of shape (n_regions, n_windows, n_channels, n_times), True where the signal goes

    Raises
    ------
    ValueError
        When a region has no electrode.
    """
    empty = [name for name, here in electrodes.items() if not here.any()]
    if empty or not electrodes:
        raise ValueError(f"no electrode lies in {', '.join(empty) or 'any region'}: leave it out")
    here = np.stack(list(electrodes.values()))
    masks = np.zeros((len(here), len(windows), here.shape[1], n_times), bool)
    for w, window in enumerate(windows):
        masks[:, w, :, window] = here[..., None]
    return masks


@torch.no_grad()
def occluded_predictions(
    predict: Predictor, eeg: np.ndarray, baseline: np.ndarray, masks: np.ndarray, batch: int = 512
) -> torch.Tensor:
    """What a decoder says when some samples are replaced by the mean over trials.

    The mean over trials, not zero: after baseline correction the average answer to *any* picture is
    far from zero, so a window of zeros is an event that no decoder has met, and what is lost then
    mixes the loss of information with the shock. The mean keeps what all pictures share.

    Parameters
    ----------
    eeg : float32 array of shape (n, n_channels, n_times)
    baseline : float32 array of shape (n_channels, n_times), mean over training trials
    masks : bool array of shape (..., n_channels, n_times), True where the signal is replaced
    batch : int, epochs for each call

    Returns
    -------
    float32 tensor of shape (..., n, d) on the CPU
    """
    _check_epochs(eeg, baseline)
    if masks.shape[-2:] != baseline.shape:
        raise ValueError(f"masks end with shape {masks.shape[-2:]}, epochs have {baseline.shape}")
    x, mean = torch.from_numpy(np.asarray(eeg)), torch.from_numpy(np.asarray(baseline))
    flat = torch.from_numpy(masks.reshape(-1, *baseline.shape))
    parts = []
    for some in flat.split(max(1, batch // len(x))):
        mixed = torch.where(some[:, None], mean, x).flatten(0, 1)
        said = torch.cat([predict(part, None).float().cpu() for part in mixed.split(batch)])
        parts.append(said.unflatten(0, (len(some), len(x))))
    return torch.cat(parts).reshape(*masks.shape[:-2], len(x), -1)


@torch.no_grad()
def absent_predictions(
    predict: Predictor, eeg: np.ndarray, absent: np.ndarray, batch: int = 512
) -> torch.Tensor:
    """What a decoder says when some electrodes are not there at all (its own mask).

    Parameters
    ----------
    eeg : float32 array of shape (n, n_channels, n_times)
    absent : bool array of shape (n_sets, n_channels), True for electrodes that are taken off

    Returns
    -------
    float32 tensor of shape (n_sets, n, d) on the CPU

    Raises
    ------
    ValueError
        When a set takes every electrode off.
    """
    if absent.all(axis=1).any():
        raise ValueError(
            f"set {int(absent.all(axis=1).argmax())} takes every electrode off: an attention over "
            "no electrode is not defined; leave such a region out"
        )
    x, parts = torch.from_numpy(np.asarray(eeg)), []
    for off in torch.from_numpy(absent):
        keep = ~off.expand(len(x), -1)
        said = zip(x.split(batch), keep.split(batch), strict=True)
        parts.append(torch.cat([predict(*some).float().cpu() for some in said]))
    return torch.stack(parts)


# ------------------------------------------------------------------ what a score is


def similarity(predicted: torch.Tensor, wanted: torch.Tensor, centred: bool) -> torch.Tensor:
    """Cosine (or, `centred`, Pearson correlation over dimensions) of predictions and targets.

    Parameters
    ----------
    predicted : tensor of shape (..., n, d)
    wanted : tensor of shape (n_gallery, d); the result has the shape (..., n, n_gallery)
    """
    if centred:
        predicted = predicted - predicted.mean(-1, keepdim=True)
        wanted = wanted - wanted.mean(-1, keepdim=True)
    unit = torch.nn.functional.normalize
    return unit(predicted, dim=-1) @ unit(wanted, dim=-1).T


def margin(matrix: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Similarity to the right target above the mean similarity to all others: 0 is chance.

    Parameters
    ----------
    matrix : tensor of shape (..., n, n_gallery); the result has the shape (..., n)
    own : long tensor of shape (n,), the right column of each row
    """
    n_gallery = matrix.shape[-1]
    if n_gallery < 2:
        raise ValueError("a margin needs at least 2 pictures in the gallery")
    index = own.to(matrix.device).expand(matrix.shape[:-1])[..., None]
    right = matrix.gather(-1, index)[..., 0]
    return right - (matrix.sum(-1) - right) / (n_gallery - 1)


def integrated_gradients(
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    eeg: np.ndarray,
    baseline: np.ndarray,
    n_steps: int = 24,
    batch: int = 256,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Share the change of a score from a baseline to an epoch out among all samples.

    .. math:: a_{ct} = (x_{ct} - x'_{ct}) \int_0^1 \partial f / \partial x_{ct}
              \,(x' + \alpha (x - x'))\, d\alpha

    The integral is taken by the Gauss-Legendre rule, which is exact for scores that are polynomials
    of degree up to ``2 n_steps`` along the path.

    Parameters
    ----------
    score : callable
        (epochs (b, n_channels, n_times), index of each epoch (b,)) -> scores (b,)
    eeg : float32 array of shape (n, n_channels, n_times)
    baseline : float32 array of shape (n_channels, n_times)
    n_steps : int, nodes of the rule

    Returns
    -------
    attribution : float32 array of shape (n, n_channels, n_times)
    gap : float array of shape (n,)
        f(x) - f(baseline) - sum of attributions: 0 when complete.

    References
    ----------
    Sundararajan et al. (2017), eq. 1 and proposition 1.
    """
    _check_epochs(eeg, baseline)
    if n_steps < 1:
        raise ValueError(f"n_steps={n_steps}: the integral needs at least 1 node")
    nodes, weights = np.polynomial.legendre.leggauss(n_steps)
    x, mean = torch.from_numpy(np.asarray(eeg)), torch.from_numpy(np.asarray(baseline))
    attribution, gap = [], []
    for items in torch.arange(len(x)).split(batch):
        step, total = x[items] - mean, torch.zeros_like(x[items])
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            at = (mean + float(node) * step).requires_grad_(True)
            gradient = torch.autograd.grad(score(at, items).sum(), at)[0]
            total += float(weight) * gradient
        with torch.no_grad():
            change = score(x[items], items) - score(mean.expand_as(step), items)
        attribution.append(total * step)
        gap.append(change.cpu().double() - (total * step).double().sum((1, 2)))
    return torch.cat(attribution).numpy(), torch.cat(gap).numpy()


def _check_epochs(eeg: np.ndarray, baseline: np.ndarray) -> None:
    if eeg.ndim != 3 or eeg.shape[1:] != baseline.shape or not len(eeg):
        raise ValueError(
            f"epochs of shape {eeg.shape} and a baseline of shape {baseline.shape}: expected "
            "(n, n_channels, n_times) and (n_channels, n_times)"
        )
    if not (np.isfinite(eeg).all() and np.isfinite(baseline).all()):
        raise ValueError("epochs or baseline hold NaN or infinite values")
