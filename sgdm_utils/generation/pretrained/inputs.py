"""What a pretrained generator is given: a drawing, no words, and checks of everything else.

Use it through `sgdm_utils.generation.pretrained.generator`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline
from torch.nn import functional as F

from sgdm_utils.generation.pretrained.parts import Family


def control_image(maps: torch.Tensor, size: int) -> torch.Tensor:
    """The drawing that a ControlNet of scribbles is given: white lines on black.

    Lines are the edges, or the outline of the silhouette where that is the stronger (a decoder may
    be sure of a shape and not of its inner edges; on exact maps, edges contain the outline). Why
    scribbles: a line one pixel wide in a map of 64 x 64 is eight pixels wide in a picture of
    512 x 512, and the map of a decoder is grey where it doubts. A ControlNet of Canny edges has seen
    neither: its lines are one pixel wide, and white.

    Parameters
    ----------
    maps : tensor of shape (batch, 2, h, w) in [0, 1]: silhouette, edges
    size : int, side of the picture, pixels

    Returns
    -------
    tensor of shape (batch, 3, size, size) in [0, 1]

    References
    ----------
    Zhang et al. (2023), arXiv:2302.05543: ControlNets of scribbles, of soft and of Canny edges.
    """
    silhouette, edges = maps[:, :1], maps[:, 1:]
    padded = F.pad(silhouette, (1, 1, 1, 1))  # what lies outside the picture is no figure
    beside = [padded[..., 1:-1, :-2], padded[..., 1:-1, 2:]]
    beside += [padded[..., :-2, 1:-1], padded[..., 2:, 1:-1]]
    outline = silhouette - torch.stack([silhouette, *beside]).amin(0)
    lines = torch.maximum(edges, outline)
    lines = F.interpolate(lines, (size, size), mode="bilinear", antialias=True)
    return lines.clamp(0, 1).expand(-1, 3, -1, -1)


@torch.no_grad()
def empty_prompt(pipe: DiffusionPipeline) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the text encoders make of no words: tokens (1, n, d), and SDXL's pooled vector (1, d)."""
    encoded = pipe.encode_prompt(
        prompt="", device=pipe.unet.device, num_images_per_prompt=1,
        do_classifier_free_guidance=False,
    )  # fmt: skip
    return encoded[0], encoded[2] if len(encoded) == 4 else None


def check_inputs(
    family: Family,
    embed_dim: int,
    embedding: torch.Tensor,
    maps: torch.Tensor | None,
    semantic_scale: float,
    structure_scale: float,
    steps: int,
    guidance: float,
) -> None:
    """Refuse what cannot be sampled from, saying what was expected."""
    title = family.title
    if embedding.ndim != 2 or embedding.shape[1] != embed_dim:
        raise ValueError(
            f"embedding has shape {tuple(embedding.shape)}, expected (batch, {embed_dim}): "
            "the IP-Adapter takes image embeddings of the CLIP model that it was trained with"
        )
    if len(embedding) == 0:
        raise ValueError("no embedding given: the batch is empty")
    if not torch.isfinite(embedding).all():
        bad = (~torch.isfinite(embedding)).any(1).nonzero()[:5, 0].tolist()
        raise ValueError(f"embedding holds NaN or infinity, first in rows {bad}")
    for name, scale in (
        ("semantic_scale", semantic_scale),
        ("structure_scale", structure_scale),
        ("guidance_scale", guidance),
    ):
        if not (math.isfinite(scale) and scale >= 0):
            raise ValueError(f"{name} is {scale}, it must be a finite number and not negative")
    if guidance > 1 and not family.guided:
        raise ValueError(
            f"guidance_scale is {guidance}, but {title} was distilled to be sampled without: "
            "leave it out, and weigh the embedding by semantic_scale"
        )
    if not (isinstance(steps, int) and 1 <= steps <= family.max_steps):
        raise ValueError(f"num_inference_steps is {steps!r}, {title} takes 1 to {family.max_steps}")
    if maps is None:
        return
    if len(maps) != len(embedding):
        raise ValueError(f"{len(maps)} structure maps for {len(embedding)} embeddings")
    if maps.ndim != 4 or maps.shape[1] != 2 or maps.shape[2] != maps.shape[3]:
        raise ValueError(
            f"maps have shape {tuple(maps.shape)}, expected (batch, 2, h, h), silhouette and "
            "edges: pictures are square"
        )
    if not (maps.min() >= 0 and maps.max() <= 1):
        raise ValueError("maps must lie in [0, 1]: give probabilities, not logits (or NaN)")


def check_vae_dtype(dtype: torch.dtype) -> None:
    """Refuse float16, in which the decoder of SDXL overflows."""
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"the VAE cannot be used in {dtype}: its activations leave the range of float16 and "
            "pictures turn black. Take torch.float32 or torch.bfloat16"
        )


def check_generators(
    generator: torch.Generator | Sequence[torch.Generator], batch: int
) -> torch.Generator | list[torch.Generator]:
    """One generator, or a list with one for each picture, all on the CPU."""
    alone = isinstance(generator, torch.Generator)
    many = [generator] if alone else list(generator or ())
    if not alone and len(many) != batch:
        raise ValueError(
            f"{len(many)} generators for {batch} pictures: give one torch.Generator for each, or a "
            "single one"
        )
    for one in many:
        if one.device.type != "cpu":
            raise ValueError(
                f"a generator lives on {one.device}: noise is drawn on the CPU, so that devices "
                "agree about it; give torch.Generator().manual_seed(...)"
            )
    return generator if alone else many


def check_statistics(
    values: torch.Tensor | None, default: float, name: str, dim: int
) -> torch.Tensor:
    """Statistics of the embeddings, float32 of shape (dim,); `default` everywhere where there are none."""
    if values is None:
        return torch.full((dim,), default)
    values = torch.as_tensor(values, dtype=torch.float32)
    if values.shape != (dim,) or not torch.isfinite(values).all():
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}, expected ({dim},), all finite: the statistics "
            "by which the embeddings were standardised"
        )
    return values
