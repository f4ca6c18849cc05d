"""Latent diffusion with a ControlNet: the networks, and how their answers are read.

The autoencoder of pictures (`autoencoder`), the form in which conditions enter (`conditioning`,
`multiscale`), the category guide (`classifier`) and the pipeline (`pipeline`) have modules of their
own. The losses and the denoising loop are shown in notebook 05.

Conditions from coarse to fine: every resolution of the UNet listens to tokens of its own.

diffusers' blocks all attend to one sequence of tokens. Here an attention processor replaces that
sequence by the one that was projected for the block's own resolution, so the UNet stays the
library's. Processors hold no weights; the projections belong to `conditioning.ConditionEmbedder`
and are saved with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import (
    Attention,
    AttnAddedKVProcessor2_0,
    AttnProcessor2_0,
)

from sgdm_utils.generation.conditioning import Conditions


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
    """A ControlNet that starts as a copy of the UNet's encoder, for what `fold_maps` returns."""
    fold = map_size // unet.config.sample_size
    controlnet = ControlNetModel.from_unet(
        unet,
        conditioning_channels=2 * fold**2 + 1 + unet.config.in_channels,
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
    output: torch.Tensor,
    noisy: torch.Tensor,
    alpha_bar: torch.Tensor,
    residual_std: float,
    expected: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """The velocity v that an output of the networks stands for.

    Conditions determine most of a picture: given them, a latent varies by s around what is expected,
    much less than its standard deviation of 1. The estimate of the clean latent is then, following
    Karras et al., ::

        expected + c_skip * (noisy - sqrt(alpha_bar) * expected) + c_out * output
        with b = alpha_bar * s^2 + 1 - alpha_bar,
        c_skip = sqrt(alpha_bar) * s^2 / b,  c_out = s * sqrt((1 - alpha_bar) / b)

    so that in strong noise the networks name what the expectation lacks, and near the end what is
    still missing. With s = 1 and nothing expected the output is -v itself. Schedulers expect the
    velocity that belongs to this estimate. It is linear in output and expectation together, so
    predictions whose weights sum to one can be added before or after.

    Parameters
    ----------
    output, noisy : tensors of shape (batch, latent_channels, grid, grid)
    alpha_bar : tensor that broadcasts to them, share of signal power in `noisy`
    residual_std : float, s
    expected : tensor like `noisy`, latents of the guided colours; 0 where nothing is expected

    References
    ----------
    Karras et al. (2022), arXiv:2206.00364, section 5 (preconditioning); Salimans & Ho (2022),
    arXiv:2202.00512 (velocity).
    """
    a, s = alpha_bar.to(noisy.dtype), residual_std
    b = a * s**2 + 1 - a
    rest = noisy - a.sqrt() * expected
    estimate_rest = a.sqrt() * s**2 / b * rest + s * ((1 - a) / b).sqrt() * output.to(noisy.dtype)
    return (a.sqrt() * rest - estimate_rest) / (1 - a).sqrt() - (1 - a).sqrt() * expected


#: `cross_attention_kwargs` key under which the tokens of all resolutions travel.
SCALE_TOKENS = "scale_tokens"
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.|mid_block\.")


class MultiScaleAttnProcessor:
    """Scaled dot-product attention to the tokens of one resolution.

    Parameters
    ----------
    resolution : int, cells per side of the feature maps that ask

    Notes
    -----
    Self-attention (no `encoder_hidden_states`) is left as it is. Without `scale_tokens` the block
    attends to what the UNet was given, as any diffusers UNet does.
    """

    def __init__(self, resolution: int) -> None:
        self.resolution = resolution
        self.plain, self.added = AttnProcessor2_0(), AttnAddedKVProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        scale_tokens: Mapping[int, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Attend; tensors are those of `diffusers.models.attention_processor.AttnProcessor2_0`.

        Raises
        ------
        KeyError
            When `scale_tokens` holds nothing for this resolution.
        """
        if encoder_hidden_states is not None and scale_tokens is not None:
            if self.resolution not in scale_tokens:
                raise KeyError(
                    f"no condition tokens for the {self.resolution} x {self.resolution} level; "
                    f"there are some for {sorted(scale_tokens)}: the embedder and the UNet were "
                    "built for different grids"
                )
            encoder_hidden_states = scale_tokens[self.resolution]
        if attn.added_kv_proj_dim is not None:  # a simple cross-attention block
            return self.added(attn, hidden_states, encoder_hidden_states, attention_mask)
        return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def resolutions(unet: UNet2DConditionModel) -> list[int]:
    """Cells per side at each level that attends, from coarse to fine."""
    return sorted({_resolution(unet, name) for name in unet.attn_processors})


def listen_by_resolution(network: UNet2DConditionModel | ControlNetModel, grid: int) -> None:
    """Give every attention layer of a UNet or ControlNet the processor of its resolution.

    Has to be repeated after loading: processors are code, not weights.

    Parameters
    ----------
    network : UNet2DConditionModel or ControlNetModel
    grid : int, cells per side of the latents
    """
    network.set_attn_processor(
        {
            name: MultiScaleAttnProcessor(_resolution(network, name, grid))
            for name in network.attn_processors
        }
    )


def check_listening(network: UNet2DConditionModel | ControlNetModel) -> None:
    """Refuse a network whose attention processors were replaced: its conditions would be lost.

    Raises
    ------
    ValueError
        Names what stands in their place, and how to undo it.
    """
    others = {
        type(p).__name__
        for p in network.attn_processors.values()
        if not isinstance(p, MultiScaleAttnProcessor)
    }
    if others:
        name = type(network).__name__
        raise ValueError(
            f"the attention processors of the {name} were replaced ({', '.join(sorted(others))}), and "
            "with them the tokens of each resolution: attention slicing, xformers and processors of "
            "other adapters cannot be used. Undo it with "
            "sgdm_utils.generation.networks.listen_by_resolution(network, pipe.unet.config.sample_size) "
            "for pipe.unet and pipe.controlnet"
        )


def _resolution(network, layer: str, grid: int | None = None) -> int:
    """Cells per side of the feature maps of an attention layer, from its name."""
    grid = network.config.sample_size if grid is None else grid
    n_levels = len(network.config.block_out_channels)
    found = _BLOCK.match(layer)
    if found is None:
        raise ValueError(f"attention layer {layer!r} lies in no block that is known")
    side, index = found.group(1), found.group(2)
    level = n_levels - 1 if side is None else int(index)
    if side == "up":  # the first block up works on the coarsest maps
        level = n_levels - 1 - level
    return grid // 2**level
