"""Tiny pretrained generators of the real classes, in the layout of the published ones.

from tiny_generators import write_parts
parts = write_parts(folder, "sd15")  # parts.model, parts.controlnet, parts.ip_adapter
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import diffusers
import torch
import transformers
from safetensors.torch import save_file

EMBED_DIM = 12
SIZE = 16  # pixels, 8 cells of 2
HIDDEN = {"sd15": 16, "sdxl_turbo": 24}  # cross-attention; SDXL joins two text encoders


def seeded(network: torch.nn.Module, seed: int, std: float = 0.2) -> torch.nn.Module:
    """Random weights, large enough that every condition shows; not from the global generator."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1:
                weight.copy_(std * torch.randn(weight.shape, generator=generator))
            elif name.endswith("bias"):
                weight.zero_()
    return network.eval()


def write_tokenizer(folder: Path) -> transformers.CLIPTokenizer:
    """A byte-pair tokenizer of two letters, from the two files that CLIP's has."""
    folder.mkdir(parents=True)
    tokens = ["a", "b", "a</w>", "b</w>", "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 10})
    )
    return transformers.CLIPTokenizer.from_pretrained(folder)


def text_encoder(kind: type, hidden: int, seed: int) -> transformers.PreTrainedModel:
    config = transformers.CLIPTextConfig(
        vocab_size=7, hidden_size=hidden, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=10, projection_dim=8, bos_token_id=5,
        eos_token_id=6, pad_token_id=6,
    )  # fmt: skip
    return seeded(kind(config), seed)


def tiny_unet(family: str) -> diffusers.UNet2DConditionModel:
    extra = {}
    if family == "sdxl_turbo":  # the size of the picture and a pooled text beside time
        extra = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
        extra |= {"projection_class_embeddings_input_dim": 6 * 4 + 8}
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIZE // 2, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=HIDDEN[family], attention_head_dim=2, **extra,
    )  # fmt: skip
    return seeded(unet, seed=1)


def adapter_weights(
    unet: diffusers.UNet2DConditionModel, embed_dim: int = EMBED_DIM, seed: int = 5
) -> dict:
    """An IP-Adapter in the layout of its authors: layers 1, 3, 5, ... in the order of diffusers."""
    generator = torch.Generator().manual_seed(seed)
    dim = unet.config.cross_attention_dim
    weights = {
        "image_proj.proj.weight": torch.randn(4 * dim, embed_dim, generator=generator),
        "image_proj.proj.bias": torch.randn(4 * dim, generator=generator),
        "image_proj.norm.weight": torch.ones(dim),
        "image_proj.norm.bias": torch.zeros(dim),
    }
    layers = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for position, name in enumerate(layers):
        width = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for which in "kv":
            key = f"ip_adapter.{2 * position + 1}.to_{which}_ip.weight"
            weights[key] = 0.5 * torch.randn(width, dim, generator=generator)
    return weights


def write_parts(folder: Path, family: str, embed_dim: int = EMBED_DIM) -> SimpleNamespace:
    """Save model, ControlNet and adapter; returns their paths."""
    unet = tiny_unet(family)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, sample_size=SIZE,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
    )  # fmt: skip
    parts = {"unet": unet, "vae": seeded(vae, seed=2, std=0.15)}
    parts["tokenizer"] = write_tokenizer(folder / "words")
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    if family == "sd15":
        parts["text_encoder"] = text_encoder(transformers.CLIPTextModel, 16, seed=3)
        parts |= dict.fromkeys(["safety_checker", "feature_extractor"])
        parts["scheduler"] = diffusers.PNDMScheduler(skip_prk_steps=True, **betas)
        pipe = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    else:
        parts["text_encoder"] = text_encoder(transformers.CLIPTextModel, 16, seed=3)
        second = transformers.CLIPTextModelWithProjection
        parts["text_encoder_2"] = text_encoder(second, 8, seed=4)
        parts["tokenizer_2"] = write_tokenizer(folder / "words_2")
        # as SDXL itself has it, not Turbo: the loader must set the spacing
        parts["scheduler"] = diffusers.EulerDiscreteScheduler(timestep_spacing="leading", **betas)
        pipe = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    pipe.save_pretrained(folder / "model")
    controlnet = diffusers.ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=(4, 8)
    )
    # a published ControlNet is trained; a new one is silent, and would pass any test of "off"
    seeded(controlnet, seed=6).save_pretrained(folder / "controlnet")
    save_file(adapter_weights(unet, embed_dim), folder / "adapter.safetensors")
    return SimpleNamespace(
        model=folder / "model",
        controlnet=folder / "controlnet",
        ip_adapter=folder / "adapter.safetensors",
    )
