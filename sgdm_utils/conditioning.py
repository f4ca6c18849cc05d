"""What the generator is told: an embedding, a structure map, and how far to trust each."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional as F


class ConditionEmbedder(ModelMixin, ConfigMixin):
    """Turns a CLIP-space embedding into UNet tokens, with a learned "nothing known".

    The noise level says how far the embedding can be trusted, see `shrink`.

    Parameters
    ----------
    embed_dim : int, dimension of the (standardised) embedding
    n_tokens, token_dim : int
    residual_std : float, how much is left open by the conditions, see `velocity`
    """

    @register_to_config
    def __init__(
        self,
        embed_dim: int = 64,
        n_tokens: int = 4,
        token_dim: int = 128,
        residual_std: float = 0.15,
    ) -> None:
        super().__init__()
        self.tokens = nn.Sequential(
            nn.Linear(embed_dim + 1, 256), nn.SiLU(), nn.Linear(256, n_tokens * token_dim)
        )
        self.null_tokens = nn.Parameter(torch.zeros(1, n_tokens, token_dim))
        self.null_vector = nn.Parameter(torch.zeros(1, embed_dim + 1))

    def forward(
        self, embedding: torch.Tensor, noise: torch.Tensor, known: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (batch, n_tokens, token_dim) and the global vector (batch, embed_dim + 1).

        `noise`, float of shape (batch,), is the embedding's noise level in [0, 1]; `known`, bool of
        shape (batch,), is False where the learned null stands in.
        """
        vector = torch.cat([embedding, noise[:, None].to(embedding.dtype)], dim=1)
        tokens = self.tokens(vector).unflatten(1, self.null_tokens.shape[1:])
        keep = known[:, None]
        return (
            torch.where(keep[..., None], tokens, self.null_tokens.to(tokens.dtype)),
            torch.where(keep, vector, self.null_vector.to(vector.dtype)),
        )


def shrink(target: torch.Tensor, error: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What a best linear decoder would say of a standardised target, at a given noise level.

    A regression with correlation r between prediction and target has, if it errs no more than it
    must, the variance r^2 and the root mean square error s = sqrt(1 - r^2). Such a prediction is ::

        r^2 * target + r * s * error

    Parameters
    ----------
    target, error : tensors of shape (batch, dim), both with unit variance
    noise : tensor of shape (batch,), s in [0, 1]: 0 returns the target, 1 returns zeros

    Returns
    -------
    tensor of shape (batch, dim)
    """
    s = noise[:, None]
    return (1 - s**2) * target + s * (1 - s**2).sqrt() * error


def fold_maps(maps: torch.Tensor, grid: int, noise: torch.Tensor | None = None) -> torch.Tensor:
    """Structure maps folded onto the latent grid, with their noise level as a last channel.

    Parameters
    ----------
    maps : tensor of shape (batch, 2, size, size) in [0, 1]: silhouette, edges
    grid : int, cells per side
    noise : tensor of shape (batch,), noise level of each map in [0, 1]; None for exact maps

    Returns
    -------
    tensor of shape (batch, 2 * (size / grid)^2 + 1, grid, grid)
    """
    folded = F.pixel_unshuffle(maps * 2 - 1, maps.shape[-1] // grid)
    level = folded.new_zeros(len(maps)) if noise is None else noise.to(folded)
    return torch.cat([folded, level.view(-1, 1, 1, 1).expand(-1, 1, grid, grid)], dim=1)
