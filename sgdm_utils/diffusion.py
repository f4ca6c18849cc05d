"""Latent diffusion with a ControlNet: the networks, their conditions and the pipeline.

The losses and the denoising loop are shown in notebook 05; the pipeline here repeats the loop for
those who only want pictures (and notebook 05 checks that both agree).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DiffusionPipeline, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional as F


class PictureVAE(ModelMixin, ConfigMixin):
    """Autoencoder of pictures: pixel-unshuffle, then diffusers' AutoencoderKL on the small grid.

    Parameters
    ----------
    size : int, pixels per side
    unshuffle : int, factor of the pixel-unshuffle; the latent grid has size / (2 * unshuffle)
    latent_channels : int
    block_out_channels : sequence of two int, widths of the two levels
    """

    @register_to_config
    def __init__(
        self,
        size: int = 64,
        unshuffle: int = 4,
        latent_channels: int = 16,
        block_out_channels: tuple[int, ...] = (64, 96),
    ) -> None:
        super().__init__()
        levels = len(block_out_channels)
        self.kl = AutoencoderKL(
            in_channels=3 * unshuffle**2,
            out_channels=3 * unshuffle**2,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(block_out_channels),
            latent_channels=latent_channels,
            norm_num_groups=16,
            sample_size=size // unshuffle,
            mid_block_add_attention=False,
        )
        # latents are standardised with train statistics, so that noise has the scale of the signal
        self.register_buffer("latent_mean", torch.zeros(1, latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(1, latent_channels, 1, 1))

    def posterior(self, pictures: torch.Tensor):
        """Diagonal Gaussian over latents, for pictures (batch, 3, size, size) in [-1, 1]."""
        return self.kl.encode(F.pixel_unshuffle(pictures, self.config.unshuffle)).latent_dist

    def reconstruct(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures in about [-1, 1] from raw (not standardised) latents."""
        return F.pixel_shuffle(self.kl.decode(latents).sample, self.config.unshuffle)

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Standardised mean latents, (batch, latent_channels, grid, grid)."""
        return (self.posterior(pictures).mode() - self.latent_mean) / self.latent_std

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures in [0, 1], (batch, 3, size, size), from standardised latents."""
        raw = latents * self.latent_std + self.latent_mean
        return (self.reconstruct(raw) / 2 + 0.5).clamp(0, 1)


class ConditionEmbedder(ModelMixin, ConfigMixin):
    """Turns a CLIP-space embedding into UNet tokens, with a learned "nothing known".

    Parameters
    ----------
    embed_dim : int, dimension of the (standardised) embedding
    n_tokens, token_dim : int
    """

    @register_to_config
    def __init__(self, embed_dim: int = 128, n_tokens: int = 4, token_dim: int = 128) -> None:
        super().__init__()
        self.tokens = nn.Sequential(
            nn.Linear(embed_dim, 256), nn.SiLU(), nn.Linear(256, n_tokens * token_dim)
        )
        self.null_tokens = nn.Parameter(torch.zeros(1, n_tokens, token_dim))
        self.null_embedding = nn.Parameter(torch.zeros(1, embed_dim))

    def forward(
        self, embedding: torch.Tensor, known: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (batch, n_tokens, token_dim) and the global vector (batch, embed_dim).

        `known` is a bool tensor of shape (batch,); where it is False the learned null stands in.
        """
        tokens = self.tokens(embedding).unflatten(1, self.null_tokens.shape[1:])
        keep = known[:, None]
        return (
            torch.where(keep[..., None], tokens, self.null_tokens),
            torch.where(keep, embedding, self.null_embedding),
        )


def make_unet(
    latent_channels: int,
    grid: int,
    embed_dim: int,
    token_dim: int,
    block_out_channels: tuple[int, ...] = (96, 160),
    layers_per_block: int = 2,
) -> UNet2DConditionModel:
    """A small `UNet2DConditionModel`: tokens by cross-attention, the embedding also beside time."""
    # attention at the coarser levels only: at the finest it costs most and says least
    plain, attend = ("DownBlock2D", "UpBlock2D"), ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
    levels = [plain if i == 0 else attend for i in range(len(block_out_channels))]
    return UNet2DConditionModel(
        sample_size=grid,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=tuple(down for down, _ in levels),
        up_block_types=tuple(up for _, up in reversed(levels)),
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        norm_num_groups=16,
        cross_attention_dim=token_dim,
        attention_head_dim=32,
        use_linear_projection=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=embed_dim,
    )


def make_controlnet(unet: UNet2DConditionModel, map_size: int) -> ControlNetModel:
    """A ControlNet that starts as a copy of the UNet's encoder, for maps folded onto its grid."""
    fold = map_size // unet.config.sample_size
    return ControlNetModel.from_unet(
        unet,
        conditioning_channels=2 * fold**2,
        conditioning_embedding_out_channels=(64,),
        load_weights_from_unet=True,
    )


def fold_maps(maps: torch.Tensor, grid: int) -> torch.Tensor:
    """Structure maps (batch, 2, size, size) -> (batch, 2 * fold^2, grid, grid), in [-1, 1]."""
    return F.pixel_unshuffle(maps * 2 - 1, maps.shape[-1] // grid)


def predict_noise(
    unet: UNet2DConditionModel,
    controlnet: ControlNetModel,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    tokens: torch.Tensor,
    embedding: torch.Tensor,
    folded_maps: torch.Tensor,
    structure_known: torch.Tensor,
) -> torch.Tensor:
    """One pass of ControlNet and UNet; the ControlNet is silent where `structure_known` is 0.

    Parameters
    ----------
    latents : tensor of shape (batch, latent_channels, grid, grid), noisy
    timesteps : long tensor of shape (batch,)
    tokens, embedding : conditions from `ConditionEmbedder`
    folded_maps : tensor from `fold_maps`
    structure_known : float tensor of shape (batch,), weight of the ControlNet's residuals in [0, 1]

    Returns
    -------
    tensor shaped as `latents`, in the scheduler's prediction type
    """
    down, mid = controlnet(
        latents, timesteps, encoder_hidden_states=tokens, controlnet_cond=folded_maps,
        class_labels=embedding, return_dict=False,
    )  # fmt: skip
    gate = structure_known.view(-1, 1, 1, 1).to(mid.dtype)
    return unet(
        latents, timesteps, encoder_hidden_states=tokens, class_labels=embedding,
        down_block_additional_residuals=[d * gate for d in down],
        mid_block_additional_residual=mid * gate, return_dict=False,
    )[0]  # fmt: skip


class SGDMPipeline(DiffusionPipeline):
    """Pictures from a CLIP-space embedding and a structure map, each with a guidance scale.

    Guidance adds two directions to the unconditional prediction u::

        u + semantic_scale * (f(sem) - u) + structure_scale * (f(sem, struct) - f(sem))

    References
    ----------
    Ho & Salimans (2022), arXiv:2207.12598 (classifier-free guidance); Brooks et al. (2023),
    arXiv:2211.09800, eq. 3 (two conditions); Zhang et al. (2023), arXiv:2302.05543 (ControlNet).
    """

    def __init__(self, vae, unet, controlnet, condition, scheduler) -> None:
        super().__init__()
        self.register_modules(
            vae=vae, unet=unet, controlnet=controlnet, condition=condition, scheduler=scheduler
        )

    @torch.no_grad()
    def __call__(
        self,
        embedding: torch.Tensor,
        maps: torch.Tensor | None,
        semantic_scale: float = 2.0,
        structure_scale: float = 1.0,
        num_inference_steps: int = 12,
        generator: torch.Generator | None = None,
        callback: Callable[[int, torch.Tensor], None] | None = None,
    ) -> np.ndarray:
        """Sample one picture for each embedding.

        Parameters
        ----------
        embedding : tensor of shape (batch, embed_dim), standardised CLIP space
        maps : tensor of shape (batch, 2, size, size) in [0, 1], or None for no structure
        semantic_scale, structure_scale : float, at least 0
        num_inference_steps : int
        generator : torch.Generator on the CPU, so that devices agree about the noise
        callback : called with the step and the latents after each step

        Returns
        -------
        float32 array of shape (batch, size, size, 3) in [0, 1]

        Raises
        ------
        ValueError
            For a negative scale, an empty batch or a batch mismatch.
        """
        if len(embedding) == 0:
            raise ValueError("no embedding given: the batch is empty")
        if semantic_scale < 0 or structure_scale < 0:
            raise ValueError("guidance scales must not be negative")
        if maps is not None and len(maps) != len(embedding):
            raise ValueError(f"{len(maps)} structure maps for {len(embedding)} embeddings")
        batch, grid = len(embedding), self.unet.config.sample_size
        device, dtype = self.unet.device, self.unet.dtype
        shape = (batch, self.unet.config.in_channels, grid, grid)
        latents = torch.randn(shape, generator=generator).to(device, dtype)
        # three branches in one batch: nothing, meaning, meaning + structure
        branches = 2 if maps is None else 3
        known = torch.arange(branches, device=device).repeat_interleave(batch) > 0
        tokens, vector = self.condition(embedding.to(device, dtype).repeat(branches, 1), known)
        size = grid * int((self.controlnet.config.conditioning_channels / 2) ** 0.5)
        blank = torch.zeros(batch, 2, size, size)
        folded = fold_maps((blank if maps is None else maps).to(device, dtype), grid)
        folded = folded.repeat(branches, 1, 1, 1)
        gate = (torch.arange(branches, device=device).repeat_interleave(batch) == 2).to(dtype)
        self.scheduler.set_timesteps(num_inference_steps)
        for step, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            f = predict_noise(
                self.unet, self.controlnet, latents.repeat(branches, 1, 1, 1),
                t.expand(batch * branches).to(device), tokens, vector, folded, gate,
            ).chunk(branches)  # fmt: skip
            noise_pred = f[0] + semantic_scale * (f[1] - f[0])
            if maps is not None:
                noise_pred = noise_pred + structure_scale * (f[2] - f[1])
            latents = self.scheduler.step(noise_pred, t, latents).prev_sample
            if callback is not None:
                callback(step, latents)
        pictures = self.vae.decode(latents.to(self.vae.dtype))
        return pictures.permute(0, 2, 3, 1).float().cpu().numpy()
