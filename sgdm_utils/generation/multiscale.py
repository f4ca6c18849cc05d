"""Conditions from coarse to fine: every resolution of the UNet listens to tokens of its own.

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
