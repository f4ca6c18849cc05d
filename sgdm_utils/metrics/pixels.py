"""Scores of reconstructed pictures, one number per picture.

Every function returns the score of each item, never only a mean, because intervals and tests
(`sgdm_utils.metrics.statistics`) are computed from items. Pictures are float RGB in [0, 1] of shape
(n, 3, height, width), tensors or arrays; anything else is refused, since a 0-255 picture gives
plausible and wrong numbers. Item i of the one side is paired with item i of the other.

This is also the one door to the suite: retrieval and structure metrics are importable from here.

References
----------
Ozcelik & VanRullen, Scientific Reports 13, 15666 (2023), and Scotti et al., MindEye2 (2024):
protocol of PixCorr and SSIM. Wang et al., IEEE TIP 13, 600 (2004): SSIM. Zhang et al., CVPR
(2018): LPIPS.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn.functional import interpolate

from sgdm_utils.errors import WeightsNotAvailable
from sgdm_utils.metrics.retrieval import (
    cosine_similarity,
    hubness_skewness,
    identification_matrix,
    k_occurrence,
    n_way_accuracy,
    rank_matrix,
    retrieval_ranks,
    two_way_identification,
)
from sgdm_utils.metrics.structure import boundary_f, iou, relation_accuracy
from sgdm_utils.workflow.atomic import digest_file

__all__ = [
    "WeightsNotAvailable",
    "boundary_f",
    "check_pictures",
    "cosine_similarity",
    "find_trunk_weights",
    "hubness_skewness",
    "identification_matrix",
    "iou",
    "k_occurrence",
    "lpips_distance",
    "mse",
    "n_way_accuracy",
    "pixcorr",
    "rank_matrix",
    "relation_accuracy",
    "retrieval_ranks",
    "ssim",
    "two_way_identification",
]

PROTOCOL_SIZE = 256  # pixels; every picture is first brought to this size
CORRELATION_SIZE = 425  # pixels; PixCorr and SSIM are computed at this size
GRAY_WEIGHTS = (0.2125, 0.7154, 0.0721)  # luma of skimage.color.rgb2gray (Rec. 709)
RANGE_SLACK = 1e-5  # float32 resizing turns 1 into 1.0000001; that much is clipped
LPIPS_CACHE_FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}

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


def pixcorr(real: Pictures, recon: Pictures) -> np.ndarray:
    """Pearson correlation of all pixels and colours, at 425 x 425 after 256 x 256.

    Returns
    -------
    ndarray of shape (n,), float64, in [-1, 1]

    Raises
    ------
    ValueError
        A picture is constant (its correlation is undefined); see also `check_pictures`.
    """
    real, recon = _check_pair(real, recon)
    for name, pictures in (("real", real), ("recon", recon)):
        flat = pictures.flatten(1)
        constant = torch.nonzero(flat.amax(1) == flat.amin(1))[:, 0].tolist()
        if constant:
            raise ValueError(
                f"{name}: pictures {constant[:8]} are constant, their correlation is undefined"
            )

    def correlate(a: Tensor, b: Tensor) -> Tensor:
        sizes = (PROTOCOL_SIZE, CORRELATION_SIZE)
        # a resized constant is the same constant, so the mean of the large picture comes off first
        a, b = (x - _resized_mean(x, sizes).view(-1, 1, 1, 1) for x in (a.double(), b.double()))
        power = _resized_product(a, a, sizes) * _resized_product(b, b, sizes)
        return _resized_product(a, b, sizes) / power.sqrt()

    return _score_in_chunks(correlate, real, recon)


def ssim(real: Pictures, recon: Pictures) -> np.ndarray:
    """Structural similarity of the gray pictures at 425 x 425 after 256 x 256.

    scikit-image with a Gaussian window (sigma 1.5 pixels), population covariance, data range 1.
    The resize is linear, so turning gray *before* it is the same number at a third of the cost.

    Returns
    -------
    ndarray of shape (n,), float64, at most 1
    """
    real, recon = _check_pair(real, recon)

    def compare(a: Tensor, b: Tensor) -> Tensor:
        gray = [_to_correlation_size(_to_gray(x.double()))[:, 0].cpu().numpy() for x in (a, b)]
        similarity = [
            structural_similarity(
                x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
            )
            for x, y in zip(*gray, strict=True)
        ]
        return torch.tensor(similarity, dtype=torch.float64)

    return _score_in_chunks(compare, real, recon)


def mse(real: Pictures, recon: Pictures) -> np.ndarray:
    """Mean squared difference of all pixels and colours at 256 x 256, shape (n,), in [0, 1]."""
    real, recon = _check_pair(real, recon)

    def difference(a: Tensor, b: Tensor) -> Tensor:
        error = a.double() - b.double()
        total = _resized_product(error, error, (PROTOCOL_SIZE,))
        return total / (error.shape[1] * PROTOCOL_SIZE**2)

    return _score_in_chunks(difference, real, recon)


def lpips_distance(
    real: Pictures,
    recon: Pictures,
    net: Literal["alex", "vgg"] = "alex",
    trunk_weights: str | Path | None = None,
    batch_size: int = 16,
) -> np.ndarray:
    """LPIPS distance v0.1 at 256 x 256, lower is better.

    The package lpips brings its linear heads but not the ImageNet trunk. The trunk is read from
    `trunk_weights`, or from torch's cache of downloads; nothing is ever downloaded here.

    Parameters
    ----------
    trunk_weights : path or None
        torchvision state dict (`.pth` or `.safetensors`) of AlexNet or VGG-16.

    Returns
    -------
    ndarray of shape (n,), float64, >= 0

    Raises
    ------
    WeightsNotAvailable
        No path was given and the cache has no trunk.
    FileNotFoundError
        The given path does not exist (a slip in the configuration is no missing download).
    """
    real, recon = _check_pair(real, recon)
    path = find_trunk_weights(net, trunk_weights)
    network = _lpips_network(net, str(path), path.stat().st_mtime_ns).to(real.device)

    @torch.no_grad()
    def distance(a: Tensor, b: Tensor) -> Tensor:
        a, b = (_resize(x.float(), PROTOCOL_SIZE) for x in (a, b))
        return network(a, b, normalize=True).flatten()

    return _score_in_chunks(distance, real, recon, batch_size)


def find_trunk_weights(net: str, trunk_weights: str | Path | None = None) -> Path:
    """Path of the LPIPS trunk of `net` on this machine, without touching the network."""
    if net not in LPIPS_CACHE_FILES:
        raise ValueError(f"net {net!r} is unknown, expected one of {sorted(LPIPS_CACHE_FILES)}")
    if trunk_weights is not None:
        path = Path(trunk_weights)
        if not path.is_file():
            raise FileNotFoundError(f"LPIPS trunk weights: there is no file {path}")
        return path
    path = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_CACHE_FILES[net]
    if not path.is_file():
        raise WeightsNotAvailable(
            f"LPIPS ({net}) needs the torchvision trunk {path.name}: not in {path.parent}; "
            "fetch it where there is a network, or give its path as trunk_weights"
        )
    # torchvision ends its file names with the first 8 digits of the content's SHA-256.
    digest = digest_file(path)
    if not digest.startswith(path.stem.rsplit("-", 1)[1]):
        raise ValueError(f"LPIPS trunk {path} is damaged (SHA-256 {digest[:8]}...): remove it")
    return path


@functools.lru_cache(maxsize=4)
def _lpips_network(net: str, path: str, _modified_ns: int) -> torch.nn.Module:
    """Build LPIPS with the trunk in `path`; the time stamp renews the cache for a new file."""
    import lpips  # imports torchvision's models: a second that other metrics need not pay

    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # pnet_rand builds the trunk without a download; its random weights are all replaced below,
    # and fork_rng keeps them from advancing the caller's random state.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        network = lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False)
    # lpips calls feature layer i "slice<k>.<i>", torchvision calls it "features.<i>".
    names = {name: "features." + name.split(".", 1)[1] for name in network.net.state_dict()}
    missing = sorted(set(names.values()) - set(state))
    if missing:
        raise ValueError(f"LPIPS trunk {path} is not a torchvision {net}: it lacks {missing[:4]}")
    network.net.load_state_dict({name: state[source] for name, source in names.items()})
    # colours beside one another are a fifth faster in 32 bits, a quarter in 16
    return network.eval().to(memory_format=torch.channels_last)


def _check_pair(real: Pictures, recon: Pictures) -> tuple[Tensor, Tensor]:
    real, recon = check_pictures(real, "real"), check_pictures(recon, "recon")
    if len(real) != len(recon):
        raise ValueError(f"{len(real)} real pictures but {len(recon)} reconstructions: pair them")
    return real, recon


def _score_in_chunks(
    score: Callable[[Tensor, Tensor], Tensor],
    real: Tensor,
    recon: Tensor,
    size: int = 4,
) -> np.ndarray:
    # Four pictures of 425 x 425 x 3 in float64 stay near the processor's cache; larger chunks
    # were measured to be two to three times slower. The scores go into one array, because small
    # tensors kept between the large ones would fragment the heap by hundreds of megabytes.
    scores = np.empty(len(real))
    for start in range(0, len(real), size):
        part = slice(start, start + size)
        scores[part] = score(real[part], recon[part]).cpu().numpy()
    return scores


def _resize(pictures: Tensor, size: int) -> Tensor:
    if pictures.shape[-2:] == (size, size):
        return pictures
    return interpolate(pictures, (size, size), mode="bilinear", align_corners=False, antialias=True)


def _to_correlation_size(pictures: Tensor) -> Tensor:
    return _resize(_resize(pictures, PROTOCOL_SIZE), CORRELATION_SIZE)


def _to_gray(pictures: Tensor) -> Tensor:
    weights = torch.tensor(GRAY_WEIGHTS, dtype=pictures.dtype, device=pictures.device)
    return (pictures * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)


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
