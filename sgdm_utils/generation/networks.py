"""Latent diffusion with a ControlNet: the networks, and how their answers are read.

The autoencoder of pictures (`autoencoder`), the form in which conditions enter (`conditioning`,
`multiscale`), the category guide (`classifier`) and the pipeline (`pipeline`) have modules of their
own. The losses and the denoising loop are shown in notebook 05.
"""

from __future__ import annotations

import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from sgdm_utils.generation.conditioning import ConditionEmbedder, Conditions, fold_maps, shrink
from sgdm_utils.generation.multiscale import SCALE_TOKENS, listen_by_resolution
from sgdm_utils.signals.load import training_dtype

__all__ = [
    "ConditionEmbedder",
    "Conditions",
    "fold_maps",
    "make_controlnet",
    "make_unet",
    "predict",
    "shrink",
    "training_dtype",
    "velocity",
]


def make_unet(
    latent_channels: int,
    grid: int,
    embed_dim: int,
    token_dim: int,
    block_out_channels: tuple[int, ...] = (96, 128),
    layers_per_block: int = 1,
) -> UNet2DConditionModel:
    """A small `UNet2DConditionModel`: tokens by cross-attention, the embedding also beside time.

    Every level attends, each to the tokens of its own resolution (`multiscale`). At the finest one
    cells are many, so there attention is reduced to what is wanted of it: cells ask the tokens, on
    the way up only, and neither each other nor a network of their own.
    """
    n_coarse = len(block_out_channels) - 1
    unet = UNet2DConditionModel(
        sample_size=grid,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * n_coarse),
        up_block_types=(*["CrossAttnUpBlock2D"] * n_coarse, "SimpleCrossAttnUpBlock2D"),
        only_cross_attention=(True, *[False] * n_coarse),
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        norm_num_groups=16,
        cross_attention_dim=token_dim,
        # the dimension of a head in simple blocks, the number of heads in the others: 4 heads each
        attention_head_dim=(block_out_channels[0] // 4, *[4] * n_coarse),
        use_linear_projection=True,
        # colour times outline: the embedding scales and shifts features instead of only adding
        resnet_time_scale_shift="scale_shift",
        class_embed_type="projection",
        projection_class_embeddings_input_dim=embed_dim + 1,
    )
    listen_by_resolution(unet, grid)
    return unet


def make_controlnet(unet: UNet2DConditionModel, map_size: int) -> ControlNetModel:
    """A ControlNet that starts as a copy of the UNet's encoder, for maps folded onto its grid."""
    fold = map_size // unet.config.sample_size
    controlnet = ControlNetModel.from_unet(
        unet,
        conditioning_channels=2 * fold**2 + 1,
        conditioning_embedding_out_channels=(128,),
        load_weights_from_unet=True,
    )
    # ControlNets start silent so as not to disturb a pretrained UNet. This one knows nothing yet,
    # and starting silent would only cost time
    embedding = controlnet.controlnet_cond_embedding
    outlets = [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]
    for layer in [embedding.conv_out, *outlets]:
        layer.reset_parameters()
    listen_by_resolution(controlnet, unet.config.sample_size)
    return controlnet


def predict(
    unet: UNet2DConditionModel,
    controlnet: ControlNetModel,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    conditions: Conditions,
    folded_maps: torch.Tensor | None = None,
    structure_known: torch.Tensor | None = None,
) -> torch.Tensor:
    """One pass of ControlNet and UNet; without maps the ControlNet is not asked.

    Parameters
    ----------
    latents : tensor of shape (batch, latent_channels, grid, grid), noisy
    timesteps : long tensor of shape (batch,)
    conditions : from `ConditionEmbedder`
    folded_maps : tensor from `fold_maps`, or None
    structure_known : tensor of shape (batch,), weight of the ControlNet's residuals: 0 silences it
        for an item, None means 1 for all

    Returns
    -------
    tensor shaped as `latents`; `velocity` makes the prediction of it
    """
    told = {
        # diffusers asks for one sequence; the processors put that of their resolution in its place
        "encoder_hidden_states": conditions.tokens[min(conditions.tokens)],
        "cross_attention_kwargs": {SCALE_TOKENS: conditions.tokens},
        "class_labels": conditions.vector,
        "return_dict": False,
    }
    if folded_maps is None:
        return unet(latents, timesteps, **told)[0]
    down, mid = controlnet(latents, timesteps, controlnet_cond=folded_maps, **told)
    if structure_known is not None:
        gate = structure_known.view(-1, 1, 1, 1).to(mid.dtype)
        down, mid = [d * gate for d in down], mid * gate
    return unet(
        latents, timesteps, down_block_additional_residuals=down,
        mid_block_additional_residual=mid, **told,
    )[0]  # fmt: skip


def velocity(
    output: torch.Tensor, noisy: torch.Tensor, alpha_bar: torch.Tensor, residual_std: float
) -> torch.Tensor:
    """The velocity v that an output of the networks stands for.

    Conditions determine most of a picture: given them, a latent varies by s, much less than its
    standard deviation of 1. The estimate of the clean latent is then, following Karras et al., ::

        c_skip * noisy + c_out * output      with b = alpha_bar * s^2 + 1 - alpha_bar,
        c_skip = sqrt(alpha_bar) * s^2 / b,  c_out = s * sqrt((1 - alpha_bar) / b)

    so that in strong noise the networks name the latent, and near the end what is still missing. With
    s = 1 the output is -v itself. Schedulers expect the velocity that belongs to this estimate.

    Parameters
    ----------
    output, noisy : tensors of shape (batch, latent_channels, grid, grid)
    alpha_bar : tensor that broadcasts to them, share of signal power in `noisy`
    residual_std : float, s

    References
    ----------
    Karras et al. (2022), arXiv:2206.00364, section 5 (preconditioning); Salimans & Ho (2022),
    arXiv:2202.00512 (velocity).
    """
    a, s = alpha_bar.to(noisy.dtype), residual_std
    b = a * s**2 + 1 - a
    skip = (a * (1 - a)).sqrt() * (1 - s**2) * noisy
    return (skip - s * b.sqrt() * output.to(noisy.dtype)) / b
