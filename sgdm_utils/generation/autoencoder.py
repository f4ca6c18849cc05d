"""The autoencoder between pictures and the latents that diffusion works on."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional as F

from sgdm_utils.generation.conditioning import colour_layout, guided_colours


class OutlineHead(nn.Module):
    """Redraws a decoded picture along the lines of its structure map, at half resolution.

    Latents are a small grid and blur every outline; the map has it at full resolution. Where there
    is a map the head starts from a closed form: `guided_colours` of the decoded picture in cells of
    four pixels. Its networks are told both pictures, the map and whether there is one, and start
    silent.

    Parameters
    ----------
    width : int, feature channels
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(9 * 4, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, 3 * 4, 3, padding=1),
        )  # fmt: skip
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(
        self, pictures: torch.Tensor, maps: torch.Tensor, known: torch.Tensor
    ) -> torch.Tensor:
        """Pictures (batch, 3, size, size), maps (batch, 2, size, size), known (batch,) in {0, 1}."""
        known = known.to(pictures).view(-1, 1, 1, 1).expand(-1, 1, *pictures.shape[2:])
        cells = colour_layout(pictures, -(-pictures.shape[-1] // 4))
        moved = known * (guided_colours(cells, maps[:, 0], epsilon=1e-2) - pictures)
        told = torch.cat([pictures, (2 * maps - 1) * known, known, moved], dim=1)
        return pictures + moved + F.pixel_shuffle(self.layers(F.pixel_unshuffle(told, 2)), 2)


class PictureVAE(ModelMixin, ConfigMixin):
    """Variational autoencoder that starts as principal components of patches.

    Pictures are cut into patches of `patch` x `patch` pixels, and each patch is described by its
    principal components over the training pictures, scaled to unit variance. The first
    `latent_channels` of them are, by themselves, the best linear code. diffusers' `AutoencoderKL`
    works on the grid of patches and adds what a linear code of single patches lacks: context and
    non-linearity. So training starts from a usable autoencoder, not from noise.

    Parameters
    ----------
    size : int, pixels per side, a multiple of `patch`
    patch : int, pixels per side of a patch; the latent grid has size / patch cells per side
    latent_channels : int
    width : int, channels of the networks, a multiple of 16
    layers_per_block : int
    outline_width : int, feature channels of the `OutlineHead`; 0 for a decoder that sees no map

    Notes
    -----
    The decoder may be given the structure map of the picture ("structurally supervised"): latents
    then need not hold the outline, which a small grid cannot.
    """

    @register_to_config
    def __init__(
        self,
        size: int = 64,
        patch: int = 8,
        latent_channels: int = 16,
        width: int = 128,
        layers_per_block: int = 1,
        outline_width: int = 0,
    ) -> None:
        super().__init__()
        if size % patch:
            raise ValueError(f"size {size} is not a multiple of patch {patch}")
        n = 3 * patch**2
        if latent_channels > n:
            raise ValueError(f"{latent_channels} latent channels for patches of {n} numbers")
        self.kl = AutoencoderKL(
            in_channels=n,
            out_channels=n,
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            block_out_channels=(width,),
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            norm_num_groups=16,
            sample_size=size // patch,
            mid_block_add_attention=False,
        )
        self.outline = OutlineHead(outline_width) if outline_width else None
        self.register_buffer("patch_mean", torch.zeros(n))
        self.register_buffer("patch_basis", torch.eye(n))  # columns: components
        self.register_buffer("patch_scale", torch.ones(n))  # their standard deviations
        # the networks start silent, with little posterior noise: the linear code stands alone
        for layer in (self.kl.quant_conv, self.kl.decoder.conv_out):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        torch.nn.init.constant_(self.kl.quant_conv.bias[latent_channels:], -5.0)
        # latents are standardised with train statistics, so that noise has the scale of the signal
        self.register_buffer("latent_mean", torch.zeros(1, latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(1, latent_channels, 1, 1))

    @property
    def grid(self) -> int:
        """Cells per side of the latent grid."""
        return self.config.size // self.config.patch

    @torch.no_grad()
    def fit_patches(self, pictures: torch.Tensor) -> torch.Tensor:
        """Set the patch basis from training pictures (n, 3, size, size) in [-1, 1].

        Returns
        -------
        tensor of shape (3 * patch^2,), share of variance that the first k components explain
        """
        patches = F.pixel_unshuffle(pictures, self.config.patch).movedim(1, -1).flatten(0, -2)
        variance, basis = torch.linalg.eigh(torch.cov(patches.double().T))
        variance, basis = variance.flip(0).clamp(min=0), basis.flip(1)
        # the sign of a component is free: fix it, so that libraries agree
        sign = basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
        self.patch_mean.copy_(patches.double().mean(0))
        self.patch_basis.copy_(basis * sign)
        # the last components have next to no variance; scaled up fully they would be noise
        self.patch_scale.copy_(variance.sqrt().clamp(min=0.01 * variance[0].sqrt().item()))
        return (variance.cumsum(0) / variance.sum()).float()

    def to_components(self, pictures: torch.Tensor) -> torch.Tensor:
        """Scaled components of each patch, (batch, 3 * patch^2, grid, grid)."""
        patches = F.pixel_unshuffle(pictures, self.config.patch).movedim(1, -1)
        with torch.autocast(pictures.device.type, enabled=False):  # bfloat16 is too coarse for this
            components = (patches - self.patch_mean) @ self.patch_basis / self.patch_scale
        return components.movedim(-1, 1)

    def from_components(self, components: torch.Tensor) -> torch.Tensor:
        """Pictures in about [-1, 1], inverse of `to_components`."""
        scaled = components.movedim(1, -1) * self.patch_scale
        with torch.autocast(components.device.type, enabled=False):
            patches = scaled.to(self.patch_basis.dtype) @ self.patch_basis.T + self.patch_mean
        return F.pixel_shuffle(patches.movedim(-1, 1), self.config.patch)

    def posterior(self, pictures: torch.Tensor) -> DiagonalGaussianDistribution:
        """Diagonal Gaussian over latents, for pictures (batch, 3, size, size) in [-1, 1]."""
        components = self.to_components(pictures)
        mean, log_variance = self.kl.encode(components).latent_dist.parameters.chunk(2, dim=1)
        mean = components[:, : mean.shape[1]] + mean
        return DiagonalGaussianDistribution(torch.cat([mean, log_variance], dim=1))

    def reconstruct(
        self,
        latents: torch.Tensor,
        maps: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
        window: tuple[int, int, int] | None = None,
    ) -> torch.Tensor:
        """Pictures in about [-1, 1] from raw (not standardised) latents.

        Parameters
        ----------
        latents : tensor of shape (batch, latent_channels, grid, grid)
        maps : tensor of shape (batch, 2, size, size) in [0, 1], structure maps; None for none
        known : tensor of shape (batch,), 0 for an item whose map is hidden; None shows all
        window : top, left and side in pixels, multiples of 4, of the square that the head redraws and
            that is returned (most of the cost is there); None for whole pictures
        """
        components = self.kl.decode(latents).sample
        linear = F.pad(latents, (0, 0, 0, 0, 0, components.shape[1] - latents.shape[1]))
        pictures = self.from_components(linear + components)
        if window is not None:
            top, left, side = window
            square = (..., slice(top, top + side), slice(left, left + side))
            pictures, maps = pictures[square], None if maps is None else maps[square]
        if self.outline is None:
            return pictures
        if maps is None:
            maps, known = torch.zeros_like(pictures[:, :2]), pictures.new_zeros(len(pictures))
        elif known is None:
            known = pictures.new_ones(len(pictures))
        return self.outline(pictures, maps.to(pictures), known)

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Standardised mean latents, (batch, latent_channels, grid, grid)."""
        return (self.posterior(pictures).mode() - self.latent_mean) / self.latent_std

    def decode(self, latents: torch.Tensor, maps: torch.Tensor | None = None) -> torch.Tensor:
        """Pictures in [0, 1], (batch, 3, size, size), from standardised latents, see `reconstruct`."""
        raw = latents * self.latent_std + self.latent_mean
        return (self.reconstruct(raw, maps) / 2 + 0.5).clamp(0, 1)
