"""Scores of reconstructed pictures, one number per picture.

Every function returns the score of each item, never only a mean, because intervals and tests
(`sgdm_utils.metrics.statistics`) are computed from items. Pictures are float RGB in [0, 1] of shape
(n, 3, height, width), tensors or arrays; anything else is refused, since a 0-255 picture gives
plausible and wrong numbers. Item i of the one side is paired with item i of the other.

References
----------
Ozcelik & VanRullen, Scientific Reports 13, 15666 (2023), and Scotti et al., MindEye2 (2024):
protocol of PixCorr and SSIM. Wang et al., IEEE TIP 13, 600 (2004): SSIM.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

PROTOCOL_SIZE = 256  # pixels; every picture is first brought to this size
CORRELATION_SIZE = 425  # pixels; PixCorr and SSIM are computed at this size
GRAY_WEIGHTS = (0.2125, 0.7154, 0.0721)  # luma of skimage.color.rgb2gray (Rec. 709)
_SIZES = (PROTOCOL_SIZE, CORRELATION_SIZE)  # the resizes before PixCorr and SSIM
_WINDOW_RADIUS = 5  # pixels of the window of SSIM on each side, 3.5 sigma
_CHUNK = 4  # pictures scored at a time, see `_score_in_chunks`
RANGE_SLACK = 1e-5  # float32 resizing turns 1 into 1.0000001; that much is clipped

Pictures = Tensor | np.ndarray


def check_pictures(pictures: Pictures, name: str) -> Tensor:
    """Return `pictures` as a float tensor, or say what is wrong with them.

    Raises
    ------
    TypeError
        Not a floating-point tensor or array.
    ValueError
        Not (n, 3, height, width), empty, not finite, or outside [0, 1].
    """
    pictures = torch.as_tensor(pictures).detach()
    if not pictures.is_floating_point():
        raise TypeError(
            f"{name}: pictures are {pictures.dtype}, expected float in [0, 1]; "
            "divide 8-bit pictures by 255 first"
        )
    if pictures.ndim != 4 or pictures.shape[1] != 3 or 0 in pictures.shape:
        raise ValueError(f"{name}: shape {tuple(pictures.shape)}, expected (n, 3, height, width)")
    finite = torch.isfinite(pictures).flatten(1).all(1)
    if not finite.all():
        raise ValueError(
            f"{name}: NaN or infinite pixels in pictures {torch.nonzero(~finite)[:8, 0].tolist()}"
        )
    low, high = float(pictures.min()), float(pictures.max())
    if low < -RANGE_SLACK or high > 1 + RANGE_SLACK:
        hint = "divide by 255" if high > 2 else "clip or rescale before scoring"
        raise ValueError(f"{name}: values from {low:g} to {high:g}, expected [0, 1]; {hint}")
    return pictures.clamp(0, 1)


def pixcorr(real: Pictures, recon: Pictures, of_constant: float | None = None) -> np.ndarray:
    """Pearson correlation of all pixels and colours, at 425 x 425 after 256 x 256.

    Parameters
    ----------
    real, recon : float tensors or arrays of shape (n, 3, height, width) in [0, 1]
    of_constant : float, optional
        Score of a *reconstruction* that is of one value throughout, as a sampler may draw it with too
        few steps: its correlation is undefined, and without this it is refused.

    Returns
    -------
    ndarray of shape (n,), float64, in [-1, 1]

    Raises
    ------
    ValueError
        A picture is constant (its correlation is undefined); see also `check_pictures`.
    """
    real, recon = _check_pair(real, recon)
    scores = np.full(len(real), np.nan if of_constant is None else of_constant)
    defined = np.ones(len(real), dtype=bool)
    for name, pictures in (("real", real), ("recon", recon)):
        flat = pictures.flatten(1)
        varies = (flat.amax(1) > flat.amin(1)).cpu().numpy()
        if not varies.all() and (name == "real" or of_constant is None):
            constant = np.flatnonzero(~varies).tolist()
            raise ValueError(
                f"{name}: pictures {constant[:8]} are constant, their correlation is undefined"
                + (". Say what they count as: of_constant=0.0" if name == "recon" else "")
            )
        defined &= varies

    def correlate(a: Tensor, b: Tensor) -> Tensor:
        # a resized constant is the same constant, so the mean of the large picture comes off first
        a, b = (x - _resized_mean(x, _SIZES).view(-1, 1, 1, 1) for x in (a.double(), b.double()))
        power = _resized_product(a, a, _SIZES) * _resized_product(b, b, _SIZES)
        return _resized_product(a, b, _SIZES) / power.sqrt()

    scores[defined] = _score_in_chunks(correlate, real[defined], recon[defined])
    return scores


def ssim(real: Pictures, recon: Pictures) -> np.ndarray:
    """Structural similarity of the gray pictures at 425 x 425 after 256 x 256.

    The number of scikit-image with a Gaussian window (sigma 1.5 pixels), population covariance and
    data range 1, at a third of its cost: turning gray and local means are linear, so both are done
    on the small picture, and the two variances are needed as a sum only.

    Returns
    -------
    ndarray of shape (n,), float64, at most 1
    """
    real, recon = _check_pair(real, recon)
    weights = torch.tensor(GRAY_WEIGHTS, dtype=torch.float64, device=real.device).view(3, 1, 1)

    def compare(a: Tensor, b: Tensor) -> Tensor:
        large, means = [], []
        for x in (a, b):
            luma = (x.double() * weights).sum(1)
            rows, columns = (_resizing_matrix(n, _SIZES, x.device) for n in luma.shape[-2:])
            large.append((rows @ luma @ columns.T).cpu().numpy())
            rows, columns = (_window_matrix(n, x.device) for n in luma.shape[-2:])
            means.append((rows @ luma @ columns.T).cpu().numpy())
        # filters and arithmetic of a picture leave the interpreter to the next one
        return torch.tensor(list(pool.map(_ssim_of_one, *large, *means)), dtype=torch.float64)

    with ThreadPoolExecutor(_CHUNK) as pool:
        return _score_in_chunks(compare, real, recon)


def _ssim_of_one(a: np.ndarray, b: np.ndarray, mean_a: np.ndarray, mean_b: np.ndarray) -> float:
    """SSIM of two gray pictures (425, 425), given their means in every window that fits inside."""
    product, squares = _window_mean(a * b), _window_mean(a * a + b * b)
    of_means, of_squares = mean_a * mean_b, mean_a * mean_a + mean_b * mean_b
    c1, c2 = 0.01**2, 0.03**2  # K1 and K2 of Wang et al., for data range 1
    above = (2 * of_means + c1) * (2 * (product - of_means) + c2)
    below = (of_squares + c1) * (squares - of_squares + c2)
    return float((above / below).mean())


def _window_mean(picture: np.ndarray) -> np.ndarray:
    """Gaussian mean around every pixel whose window lies inside the picture."""
    from scipy.ndimage import gaussian_filter

    inside = slice(_WINDOW_RADIUS, -_WINDOW_RADIUS)
    return gaussian_filter(picture, 1.5, radius=_WINDOW_RADIUS)[inside, inside]


@functools.lru_cache(maxsize=32)
def _window_matrix(length: int, device: torch.device) -> Tensor:
    """`_window_mean` after the resizes for one axis: a float64 matrix (415, length)."""
    from scipy.ndimage import gaussian_filter1d

    window = gaussian_filter1d(np.eye(CORRELATION_SIZE), 1.5, axis=0, radius=_WINDOW_RADIUS)
    window = torch.from_numpy(window[_WINDOW_RADIUS:-_WINDOW_RADIUS]).to(device)
    return window @ _resizing_matrix(length, _SIZES, device)


def mse(real: Pictures, recon: Pictures) -> np.ndarray:
    """Mean squared difference of all pixels and colours at 256 x 256, shape (n,), in [0, 1]."""
    real, recon = _check_pair(real, recon)

    def difference(a: Tensor, b: Tensor) -> Tensor:
        error = a.double() - b.double()
        total = _resized_product(error, error, (PROTOCOL_SIZE,))
        return total / (error.shape[1] * PROTOCOL_SIZE**2)

    return _score_in_chunks(difference, real, recon)


def _check_pair(real: Pictures, recon: Pictures) -> tuple[Tensor, Tensor]:
    real, recon = check_pictures(real, "real"), check_pictures(recon, "recon")
    if len(real) != len(recon):
        raise ValueError(f"{len(real)} real pictures but {len(recon)} reconstructions: pair them")
    return real, recon


def _score_in_chunks(
    score: Callable[[Tensor, Tensor], Tensor], real: Tensor, recon: Tensor
) -> np.ndarray:
    # Four pictures of 425 x 425 x 3 in float64 stay near the processor's cache; larger chunks
    # were measured to be two to three times slower. The scores go into one array, because small
    # tensors kept between the large ones would fragment the heap by hundreds of megabytes.
    scores = np.empty(len(real))
    for start in range(0, len(real), _CHUNK):
        part = slice(start, start + _CHUNK)
        scores[part] = score(real[part], recon[part]).cpu().numpy()
    return scores


def resized(pictures: Tensor, size: int) -> Tensor:
    """Pictures at size x size pixels, bilinear with antialiasing as the protocol says."""
    if pictures.shape[-2:] == (size, size):
        return pictures
    return interpolate(pictures, (size, size), mode="bilinear", align_corners=False, antialias=True)


@functools.lru_cache(maxsize=32)
def _resizing_matrix(length: int, sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """What the resizes one after the other do to one axis: a float64 matrix (sizes[-1], length)."""
    matrix = torch.eye(length, dtype=torch.float64, device=device)
    for size in sizes:
        if len(matrix) != size:
            matrix = interpolate(
                matrix[None, None], (size, length), mode="bilinear", antialias=True
            )[0, 0]
    return matrix


def _resized_product(a: Tensor, b: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Sum over all colours and pixels of the product of two pictures *after* resizing, (n,).

    Resizing is linear and treats rows and columns apart, so with R and C for the two axes
    <R a C', R b C'> = <a, (R'R) b (C'C)>: the large pictures need not be made.
    """
    rows, columns = (_resizing_matrix(n, sizes, a.device) for n in a.shape[-2:])
    return (a * ((rows.T @ rows) @ b @ (columns.T @ columns))).flatten(1).sum(1)


def _resized_mean(a: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Mean over all colours and pixels after resizing, (n,)."""
    rows, columns = (_resizing_matrix(n, sizes, a.device).mean(0) for n in a.shape[-2:])
    return (rows @ a @ columns).mean(1)
