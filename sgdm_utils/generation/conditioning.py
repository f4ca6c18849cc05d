"""What the generator is told: what it is, of which kind, where the lines are, and how far to trust it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Conditions:
    """What UNet and ControlNet are given beside latents and time.

    Attributes
    ----------
    tokens : dict of int to tensor of shape (batch, n_tokens, token_dim)
        For each resolution (cells per side) the tokens that it attends to.
    vector : tensor of shape (batch, embed_dim + 1), enters beside time at every level
    """

    tokens: dict[int, torch.Tensor]
    vector: torch.Tensor


class ConditionEmbedder(ModelMixin, ConfigMixin):
    """Turns meaning and category into tokens, one projection for each resolution of the UNet.

    The noise level says how far the embedding can be trusted, see `shrink`; category probabilities
    say so by themselves. Each source has a learned "nothing known" that stands in for it.

    Parameters
    ----------
    embed_dim : int, dimension of the (standardised) embedding
    n_categories : int, length of the category probabilities; 0 for a generator without them
    resolutions : sequence of int, cells per side of the levels that attend (`networks.resolutions`)
    n_tokens, token_dim : int, tokens that the embedding is turned into at each resolution
    multi_scale : bool, False lets all resolutions share one projection (an ablation)
    residual_std : float, how much is left open by the conditions, see `networks.velocity`
    """

    @register_to_config
    def __init__(
        self,
        embed_dim: int = 64,
        n_categories: int = 0,
        resolutions: Sequence[int] = (4,),
        n_tokens: int = 4,
        token_dim: int = 128,
        multi_scale: bool = True,
        residual_std: float = 0.15,
    ) -> None:
        super().__init__()
        names = [str(r) for r in resolutions] if multi_scale else ["all"]
        self.meaning = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(embed_dim + 1, 256), nn.SiLU(), nn.Linear(256, n_tokens * token_dim)
                )
                for name in names
            }
        )
        self.null_meaning = nn.Parameter(torch.zeros(1, n_tokens, token_dim))
        self.null_vector = nn.Parameter(torch.zeros(1, embed_dim + 1))
        if n_categories:
            self.category = nn.ModuleDict({n: nn.Linear(n_categories, token_dim) for n in names})
            self.null_category = nn.Parameter(torch.zeros(1, 1, token_dim))

    def forward(
        self,
        embedding: torch.Tensor,
        noise: torch.Tensor,
        known: torch.Tensor,
        category: torch.Tensor | None = None,
        category_known: torch.Tensor | None = None,
    ) -> Conditions:
        """Tokens and vector of a batch.

        Parameters
        ----------
        embedding : tensor of shape (batch, embed_dim)
        noise : tensor of shape (batch,), the embedding's noise level in [0, 1]
        known : bool tensor of shape (batch,), False where the learned null stands in for meaning
        category : tensor of shape (batch, n_categories), probabilities; None for "not known"
        category_known : bool tensor of shape (batch,), the same for the category; None means all
        """
        vector = torch.cat([embedding, noise[:, None].to(embedding.dtype)], dim=1)
        keep = known[:, None]
        tokens = {}
        for resolution in self.config.resolutions:
            name = str(resolution) if self.config.multi_scale else "all"
            meaning = self.meaning[name](vector).unflatten(1, self.null_meaning.shape[1:])
            meaning = torch.where(keep[..., None], meaning, self.null_meaning.to(meaning.dtype))
            parts = [meaning]
            if self.config.n_categories:
                parts.append(self._category_token(name, meaning, category, category_known))
            tokens[resolution] = torch.cat(parts, dim=1)
        vector = torch.where(keep, vector, self.null_vector.to(vector.dtype))
        return Conditions(tokens, vector)

    def _category_token(self, name, meaning, category, known) -> torch.Tensor:
        """Token of the category, (batch, 1, token_dim)."""
        null = self.null_category.to(meaning.dtype).expand(len(meaning), -1, -1)
        if category is None:
            return null
        token = self.category[name](category.to(meaning.device, vector_dtype(self)))[:, None]
        token = token.to(meaning.dtype)
        return token if known is None else torch.where(known[:, None, None], token, null)


def vector_dtype(module: nn.Module) -> torch.dtype:
    """Type of a module's weights, which its inputs must share."""
    return next(module.parameters()).dtype


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


def colour_layout(pictures: torch.Tensor, grid: int) -> torch.Tensor:
    """Mean colour of each cell, (batch, 3, grid, grid), of pictures (batch, 3, size, size)."""
    return F.adaptive_avg_pool2d(pictures, grid)


def figure_and_ground(pictures: torch.Tensor, silhouettes: torch.Tensor) -> torch.Tensor:
    """Mean colours of figure and ground, (batch, 6).

    Parameters
    ----------
    pictures : tensor of shape (batch, 3, size, size) in [0, 1]
    silhouettes : tensor of shape (batch, size, size) in [0, 1]
    """
    weights = torch.stack([silhouettes, 1 - silhouettes], dim=1).to(pictures)
    total = torch.einsum("nchw,nkhw->nkc", pictures, weights)
    return (total / weights.sum((2, 3))[..., None].clamp(min=1)).flatten(1)


def two_colour_layout(both: torch.Tensor, silhouettes: torch.Tensor, grid: int) -> torch.Tensor:
    """Colour layout (batch, 3, grid, grid) of a figure and a ground of one colour each.

    Parameters
    ----------
    both : tensor of shape (batch, 6), see `figure_and_ground`
    silhouettes : tensor of shape (batch, size, size) in [0, 1]
    grid : int, cells per side
    """
    share = F.adaptive_avg_pool2d(silhouettes[:, None], grid)
    return share * both[:, :3, None, None] + (1 - share) * both[:, 3:, None, None]


def guided_colours(
    colours: torch.Tensor, silhouettes: torch.Tensor, epsilon: float = 1e-3
) -> torch.Tensor:
    """Colours of cells, brought to full resolution along the lines of a silhouette.

    In every neighbourhood of three by three cells the colours are fitted as ``a * m + b`` of the share
    m of the cell that is figure; a and b are smooth, so they can be enlarged, and the silhouette at
    full resolution puts the edge where it is.

    Parameters
    ----------
    colours : tensor of shape (batch, 3, grid, grid)
    silhouettes : tensor of shape (batch, size, size) in [0, 1]
    epsilon : float, variance of m below which a neighbourhood counts as one colour

    Returns
    -------
    tensor of shape (batch, 3, size, size)

    References
    ----------
    He, Sun & Tang (2010), "Guided image filtering" (here between two resolutions).
    """
    fine = silhouettes[:, None].to(colours)
    figure = F.adaptive_avg_pool2d(fine, colours.shape[-1])

    def around(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)

    mean = around(figure)
    covariance = around(figure * colours) - mean * around(colours)
    slope = covariance / (around(figure**2) - mean**2 + epsilon)
    offset = around(around(colours) - slope * mean)
    enlarge = {"size": fine.shape[-2:], "mode": "bilinear", "align_corners": False}
    return F.interpolate(around(slope), **enlarge) * fine + F.interpolate(offset, **enlarge)


def fold_maps(
    maps: torch.Tensor,
    grid: int,
    noise: torch.Tensor | None = None,
    expected: torch.Tensor | None = None,
    n_latent: int = 0,
) -> torch.Tensor:
    """Structure maps folded onto the latent grid, their noise level, and the expected latents.

    Parameters
    ----------
    maps : tensor of shape (batch, 2, size, size) in [0, 1]: silhouette, edges
    grid : int, cells per side
    noise : tensor of shape (batch,), noise level of each map in [0, 1]; None for exact maps
    expected : tensor of shape (batch, n_latent, grid, grid), latents of the guided colours; None
        (zeros) where no colours are known
    n_latent : int, latent channels

    Returns
    -------
    tensor of shape (batch, 2 * (size / grid)^2 + 1 + n_latent, grid, grid)
    """
    folded = F.pixel_unshuffle(maps * 2 - 1, maps.shape[-1] // grid)
    level = folded.new_zeros(len(maps)) if noise is None else noise.to(folded)
    if expected is None:
        expected = folded.new_zeros(len(maps), n_latent, grid, grid)
    level = level.view(-1, 1, 1, 1).expand(-1, 1, grid, grid)
    return torch.cat([folded, level, expected.to(folded)], dim=1)


def trust(answer: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    """How a source's answers should be shrunk, and the noise level they then have.

    Parameters
    ----------
    answer, truth : tensors of shape (n, dim), both centred; from validation items

    Returns
    -------
    factor : float, at least 0, slope of the truth on the answer
    noise : float in [0, 1], sqrt(1 - r^2) of the correlation r between them (0 if negative)
    """
    product, power = float((answer * truth).sum()), float((answer**2).sum())
    r = max(0.0, product / (power * float((truth**2).sum()) + 1e-12) ** 0.5)
    return max(0.0, product / (power + 1e-12)), (1 - min(r, 1.0) ** 2) ** 0.5
