"""Where the lines are: the structure VAE, the relation matrix of the seven tans and their masks.

A structure map has two channels, the silhouette and the edges. The VAE squeezes it into a short
vector that EEG can be regressed on. Two heads supervise that vector structurally, which keeps it
about parts and not only about ink: one reads the 7 x 7 relation matrix from the vector, the other
(optional) says of each pixel which tan lies there, from the decoder's last features.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn
from torch.nn import functional as F

N_PAIRS = 21  # upper triangle of a 7 x 7 matrix
N_RELATIONS = 6  # ordinal classes of the relation between two tans
N_PARTS = 8  # classes of a pixel: background and the seven tans
#: The seven tans under the four namings of the exchangeable triangles (rows 2 and 3, 5 and 6).
NAMINGS = (
    (0, 1, 2, 3, 4, 5, 6),
    (0, 1, 3, 2, 4, 5, 6),
    (0, 1, 2, 3, 4, 6, 5),
    (0, 1, 3, 2, 4, 6, 5),
)
#: The same for the classes of a pixel: background stays what it is.
PART_NAMINGS = tuple((0, *(i + 1 for i in naming)) for naming in NAMINGS)


class StructureVAE(nn.Module):
    """VAE of structure maps that starts as principal components, with a relation and a part head.

    Both directions are a linear map, between the map at half resolution and the code, plus a
    convolutional correction that starts at zero. `fit_linear` sets the linear maps to the principal
    components of the training maps, scaled to unit variance: the best linear code, and training
    starts from it and not from noise. Without it they start at random.

    Parameters
    ----------
    size : int, pixels per side of the map, a multiple of 16
    latent_dim : int
    width : int, channels of the convolutions at a quarter of the resolution, a multiple of 4
    parts : bool, whether there is a head for the masks of the seven tans
    """

    def __init__(
        self, size: int = 64, latent_dim: int = 64, width: int = 32, parts: bool = False
    ) -> None:
        super().__init__()
        if size % 16:
            raise ValueError(f"size {size} is not a multiple of 16")
        if width % 4:
            raise ValueError(f"width {width} is not a multiple of 4")
        self.config = {"size": size, "latent_dim": latent_dim, "width": width, "parts": parts}
        grid, w = size // 16, width
        n_half = 2 * (size // 2) ** 2  # numbers of a map at half resolution
        self.to_code, self.from_code = nn.Linear(n_half, latent_dim), nn.Linear(latent_dim, n_half)
        # pixel-unshuffle first: convolutions at full resolution would cost ten times as much
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(32, w // 2, 3, padding=1), nn.SiLU(),
            nn.Conv2d(w // 2, w, 4, stride=2, padding=1), nn.GroupNorm(4, w), nn.SiLU(),
            nn.Conv2d(w, 2 * w, 4, stride=2, padding=1), nn.GroupNorm(4, 2 * w), nn.SiLU(),
            nn.Flatten(),
            nn.Linear(2 * w * grid**2, 2 * latent_dim),
        )  # fmt: skip
        self.context = nn.Sequential(  # what the linear map cannot say, from a coarse grid
            nn.Linear(latent_dim, 2 * w * grid**2), nn.Unflatten(1, (2 * w, grid, grid)), nn.SiLU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(2 * w, w, 3, padding=1),
            nn.GroupNorm(4, w), nn.SiLU(), nn.Upsample(scale_factor=2),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(8 + w, w, 3, padding=1), nn.GroupNorm(4, w), nn.SiLU(),
            nn.Conv2d(w, w, 3, padding=1), nn.GroupNorm(4, w), nn.SiLU(),
            nn.Conv2d(w, 32, 3, padding=1), nn.PixelShuffle(4),
        )  # fmt: skip
        for layer in (self.encoder[-1], self.decoder[-2]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.encoder[-1].bias[latent_dim:], -3.0)  # little noise at the start
        self.relations = nn.Sequential(
            nn.Linear(latent_dim, 128), nn.SiLU(), nn.Linear(128, N_PAIRS * N_RELATIONS)
        )
        # last, so that all other weights start the same with the head and without it
        self.parts = None
        if parts:
            self.parts = nn.Sequential(nn.Conv2d(w, 4 * N_PARTS, 3, padding=1), nn.PixelShuffle(2))

    @torch.no_grad()
    def fit_linear(self, maps: torch.Tensor) -> float:
        """Set the linear maps to the principal components of training maps.

        Parameters
        ----------
        maps : tensor of shape (n, 2, size, size) in [0, 1], two at least; a few thousand suffice

        Returns
        -------
        float, share of the maps' variance (at half resolution) that the code holds

        Raises
        ------
        ValueError
            For maps of another shape, fewer than two, or maps that are all the same.
        """
        size = self.config["size"]
        if maps.shape[1:] != (2, size, size) or len(maps) < 2:
            raise ValueError(
                f"maps have shape {tuple(maps.shape)}: expected two or more, (n, 2, {size}, {size})"
            )
        flat = self._halved(maps.to(self.to_code.weight))
        center = flat.mean(0)
        total = flat.var(0).sum()
        if not total > 0:
            raise ValueError("the maps are all the same: there is no component to find")
        n_kept = min(self.config["latent_dim"], *flat.shape)
        wanted = min(n_kept + 16, *flat.shape)  # a few more make the randomised search exact
        _, scale, basis = torch.pca_lowrank(flat - center, q=wanted, center=False, niter=4)
        scale, basis = scale[:n_kept] / (len(flat) - 1) ** 0.5, basis[:, :n_kept]
        share = (scale.square().sum() / total).item()
        scale = scale.clamp(min=1e-3 * scale[0].item())  # what does not vary must not be blown up
        for layer in (self.to_code, self.from_code):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.to_code.weight[:n_kept] = (basis / scale).T
        self.to_code.bias[:n_kept] = -center @ (basis / scale)
        # probabilities around one half to logits: a sure pixel starts at sigmoid(3) = 0.95
        self.from_code.weight[:, :n_kept] = 6 * basis * scale
        self.from_code.bias.copy_(6 * (center - 0.5))
        return share

    @staticmethod
    def _halved(maps: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(maps, 2).flatten(1)

    def encode(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance, each (batch, latent_dim), of maps (batch, 2, size, size)."""
        change, log_variance = self.encoder(maps * 2 - 1).chunk(2, dim=1)
        return self.to_code(self._halved(maps)) + change, log_variance.clamp(-12, 4)

    def _features(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Linear logits at half resolution, and what the last convolutions of both heads see."""
        linear = self.from_code(latent).unflatten(1, (2, *[self.config["size"] // 2] * 2))
        known = torch.cat([F.pixel_unshuffle(linear, 2), self.context(latent)], dim=1)
        return linear, self.decoder[:-2](known)

    def _corrected(self, linear: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Logits of the map: the linear ones, interpolated, plus the correction."""
        full = F.interpolate(linear, scale_factor=2, mode="bilinear", align_corners=False)
        return full + self.decoder[-2:](features)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Logits of the map, (batch, 2, size, size)."""
        return self._corrected(*self._features(latent))

    def maps(self, latent: torch.Tensor) -> torch.Tensor:
        """Probabilities of silhouette and edge, (batch, 2, size, size), in [0, 1]."""
        return self.decode(latent).sigmoid()

    def decode_with_parts(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of the map as `decode` gives them, and those of the parts.

        Returns
        -------
        maps : tensor of shape (batch, 2, size, size)
        parts : tensor of shape (batch, 8, size // 2, size // 2), classes background and tans 1 to
            7; None if the VAE has no part head
        """
        linear, features = self._features(latent)
        parts = None if self.parts is None else self.parts(features)
        return self._corrected(linear, features), parts

    def part_logits(self, latent: torch.Tensor) -> torch.Tensor:
        """Logits of the parts, (batch, 8, size // 2, size // 2).

        Raises
        ------
        ValueError
            If the VAE has no part head.
        """
        if self.parts is None:
            raise ValueError(
                "this structure VAE has no part head: build it with parts=True, or train it again "
                "with part_weight above 0 (notebook 04)"
            )
        return self.parts(self._features(latent)[1])

    def relation_logits(self, latent: torch.Tensor) -> torch.Tensor:
        """(batch, 21, 6), rows in the order of `torch.triu_indices(7, 7, 1)`."""
        return self.relations(latent).unflatten(1, (N_PAIRS, N_RELATIONS))


def relation_targets(relations: torch.Tensor) -> torch.Tensor:
    """The four equivalent 21-entry targets of each relation matrix.

    The two small triangles (pieces 3 and 4) and the two large ones (6 and 7) look the same, so
    swapping either pair, or both, describes the same figure.

    Parameters
    ----------
    relations : long tensor of shape (batch, 7, 7)

    Returns
    -------
    long tensor of shape (batch, 4, 21)
    """
    row, column = torch.triu_indices(7, 7, 1)
    orders = [list(naming) for naming in NAMINGS]
    versions = [relations[:, order][:, :, order][:, row, column] for order in orders]
    return torch.stack(versions, dim=1).long()


def relation_loss(logits: torch.Tensor, relations: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the best of the four equivalent targets, per figure.

    Parameters
    ----------
    logits : tensor of shape (batch, 21, 6)
    relations : long tensor of shape (batch, 7, 7), -1 everywhere where there are no tans

    Returns
    -------
    tensor of shape (batch,), 0 for pictures without tans

    References
    ----------
    Lian et al. (2026), arXiv:2604.22649: four equivalent targets, the best one counts.
    """
    known = relations[:, 0, 1] >= 0
    targets = relation_targets(relations.clamp(min=0))
    expanded = logits[:, None].expand(-1, 4, -1, -1).reshape(-1, N_RELATIONS)
    loss = F.cross_entropy(expanded, targets.reshape(-1), reduction="none")
    return loss.view(len(logits), 4, N_PAIRS).mean(2).amin(1) * known


def relation_matrix(logits: torch.Tensor) -> torch.Tensor:
    """Most likely symmetric matrix, int8 tensor of shape (batch, 7, 7), diagonal 0."""
    row, column = torch.triu_indices(7, 7, 1)
    matrix = torch.zeros(len(logits), 7, 7, dtype=torch.int8, device=logits.device)
    matrix[:, row, column] = logits.argmax(-1).to(torch.int8)
    return matrix + matrix.transpose(1, 2)


def part_loss(logits: torch.Tensor, pieces: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the masks of the tans, best of the four equivalent labelings, per figure.

    A pixel of the logits stands for a block of pixels of the picture and is compared with each of
    them; the mean over the block is the cross-entropy against the shares of the classes in it.

    Parameters
    ----------
    logits : tensor of shape (batch, 8, height / k, width / k)
    pieces : integer tensor of shape (batch, height, width)
        Tan at each pixel, 1 to 7 in the order of the relation matrix; 0 is background, and 0
        everywhere where there are no tans.

    Returns
    -------
    tensor of shape (batch,), mean over pixels in nats, 0 for pictures without tans

    Raises
    ------
    ValueError
        If the picture's side is no multiple of the side of the logits, or a label is not 0 to 7.

    References
    ----------
    Lian et al. (2026), arXiv:2604.22649, for the four equivalent targets (there of relations).
    """
    n, h, w = pieces.shape
    k = h // logits.shape[2]
    if logits.shape != (n, N_PARTS, h // max(k, 1), w // max(k, 1)) or k * logits.shape[2] != h:
        raise ValueError(
            f"logits {tuple(logits.shape)} do not fit pieces {tuple(pieces.shape)}: expected "
            f"(batch, {N_PARTS}, height / k, width / k) and (batch, height, width)"
        )
    if n and (pieces.min() < 0 or pieces.max() >= N_PARTS):
        raise ValueError(f"pieces hold labels outside 0 to {N_PARTS - 1}")
    known = (pieces > 0).flatten(1).any(1)
    classes = torch.arange(N_PARTS, device=logits.device)
    masks = pieces[known][:, None] == classes.to(pieces.dtype).view(1, -1, 1, 1)
    share = F.avg_pool2d(masks.to(logits.dtype), k).flatten(2)
    # confusion[b, i, j]: mean over pixels of (share of class i) * (-log probability of class j)
    surprise = -logits[known].flatten(2).log_softmax(1)
    confusion = share @ surprise.transpose(1, 2) / surprise.shape[2]
    namings = torch.tensor(PART_NAMINGS, device=logits.device)
    best = confusion[:, classes, namings].sum(2).amin(1)  # indexed to (figures, 4, 8)
    return torch.zeros(n, dtype=best.dtype, device=logits.device).masked_scatter(known, best)


def part_map(logits: torch.Tensor, size: int, threshold: float | None = None) -> torch.Tensor:
    """Most likely tan at each pixel of the picture.

    Parameters
    ----------
    logits : tensor of shape (batch, 8, h, w)
    size : int, pixels per side of the picture; probabilities are interpolated (bilinear)
    threshold : float in [0, 1] or None
        None takes the likeliest of the eight classes. A number calls a pixel figure where the
        seven tans together have at least this probability, and then takes the likeliest tan: for
        codes decoded from EEG, whose doubt about the place would make everything background.

    Returns
    -------
    uint8 tensor of shape (batch, size, size), 0 is background, 1 to 7 the tans
    """
    p = F.interpolate(logits.softmax(1), (size, size), mode="bilinear", align_corners=False)
    if threshold is None:
        return p.argmax(1).to(torch.uint8)
    figure = 1 - p[:, 0] >= threshold
    return ((p[:, 1:].argmax(1) + 1) * figure).to(torch.uint8)


def part_iou(predicted: ArrayLike, target: ArrayLike) -> np.ndarray:
    """Part-wise IoU of tangrams: mean over the seven tans, best of the four equivalent labelings.

    The small triangles cannot be told apart, nor can the large ones; the best naming counts, for
    the whole figure and not for each piece. Taking the best raises chance a little: take chance
    from permuted figures.

    Parameters
    ----------
    predicted, target : integer array of shape (n, height, width)
        Tan at each pixel, 1 to 7; 0 is background.

    Returns
    -------
    ndarray of shape (n,), float64, in [0, 1]; a tan that is in neither map scores 1

    Raises
    ------
    ValueError
        For other shapes, numbers that are not labels, or targets without any tan.
    """
    predicted, target = np.asarray(predicted), np.asarray(target)
    for name, labels in (("predicted", predicted), ("target", target)):
        if labels.ndim != 3 or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{name}: expected integers (n, height, width), got {labels.dtype} {labels.shape}"
            )
        if labels.size and (labels.min() < 0 or labels.max() >= N_PARTS):
            raise ValueError(f"{name}: labels outside 0 to {N_PARTS - 1}")
    if predicted.shape != target.shape:
        raise ValueError(f"part maps differ in shape: {predicted.shape} and {target.shape}")
    empty = ~(target > 0).any((1, 2))
    if empty.any():
        raise ValueError(
            f"target: maps {np.flatnonzero(empty)[:8].tolist()} hold no tan; leave them out"
        )
    flat = (len(target), 7, target.shape[1] * target.shape[2])  # also of no figure at all
    a = np.stack([predicted == k for k in range(1, N_PARTS)], 1).reshape(flat)
    b = np.stack([target == k for k in range(1, N_PARTS)], 1).reshape(flat)
    both = a.astype(np.float32) @ b.astype(np.float32).transpose(0, 2, 1)  # (n, 7, 7) pixels
    union = a.sum(2)[:, :, None] + b.sum(2)[:, None] - both
    score = np.where(union == 0, 1.0, both / np.maximum(union, 1)).astype(np.float64)
    tans = np.arange(7)
    return np.stack([score[:, tans, list(naming)].mean(1) for naming in NAMINGS]).max(0)
