"""Where the lines are: the structure VAE and the relation matrix of the seven tans.

A structure map has two channels, the silhouette and the edges. The VAE squeezes it into a short
vector that EEG can be regressed on, and a head reads the 7 x 7 relation matrix from the same vector
(structural supervision), which keeps the latent about parts and not only about ink.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

N_PAIRS = 21  # upper triangle of a 7 x 7 matrix
N_RELATIONS = 6  # ordinal classes of the relation between two tans


class StructureVAE(nn.Module):
    """Convolutional VAE of structure maps with a relation head.

    Parameters
    ----------
    size : int, pixels per side of the map, a multiple of 16
    latent_dim : int
    width : int, channels at the finest level
    """

    def __init__(self, size: int = 64, latent_dim: int = 64, width: int = 32) -> None:
        super().__init__()
        if size % 16:
            raise ValueError(f"size {size} is not a multiple of 16")
        self.config = {"size": size, "latent_dim": latent_dim, "width": width}
        grid, w = size // 16, width
        # pixel-unshuffle first: convolutions at full resolution would cost ten times as much
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(32, w, 3, padding=1), nn.SiLU(),
            nn.Conv2d(w, 2 * w, 4, stride=2, padding=1), nn.GroupNorm(8, 2 * w), nn.SiLU(),
            nn.Conv2d(2 * w, 4 * w, 4, stride=2, padding=1), nn.GroupNorm(8, 4 * w), nn.SiLU(),
            nn.Flatten(),
            nn.Linear(4 * w * grid**2, 2 * latent_dim),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, 4 * w * grid**2), nn.Unflatten(1, (4 * w, grid, grid)), nn.SiLU(),
            nn.Conv2d(4 * w, 4 * w, 3, padding=1), nn.GroupNorm(8, 4 * w), nn.SiLU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(4 * w, 2 * w, 3, padding=1),
            nn.GroupNorm(8, 2 * w), nn.SiLU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(2 * w, 2 * w, 3, padding=1),
            nn.GroupNorm(8, 2 * w), nn.SiLU(),
            nn.Conv2d(2 * w, 2 * w, 3, padding=1), nn.SiLU(),
            nn.Conv2d(2 * w, 32, 3, padding=1), nn.PixelShuffle(4),
        )  # fmt: skip
        self.relations = nn.Sequential(
            nn.Linear(latent_dim, 128), nn.SiLU(), nn.Linear(128, N_PAIRS * N_RELATIONS)
        )

    def encode(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance, each (batch, latent_dim), of maps (batch, 2, size, size)."""
        mean, log_variance = self.encoder(maps * 2 - 1).chunk(2, dim=1)
        return mean, log_variance.clamp(-12, 4)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Logits of the map, (batch, 2, size, size)."""
        return self.decoder(latent)

    def maps(self, latent: torch.Tensor) -> torch.Tensor:
        """Probabilities of silhouette and edge, (batch, 2, size, size), in [0, 1]."""
        return self.decode(latent).sigmoid()

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
    orders = [
        [0, 1, 2, 3, 4, 5, 6],
        [0, 1, 3, 2, 4, 5, 6],
        [0, 1, 2, 3, 4, 6, 5],
        [0, 1, 3, 2, 4, 6, 5],
    ]
    row, column = torch.triu_indices(7, 7, 1)
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
