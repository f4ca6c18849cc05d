"""What the pipeline refuses: components of different origin, conditions it cannot draw from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import DiffusionPipeline

from sgdm_utils.generation.networks import resolutions


def check_components(pipe: DiffusionPipeline) -> None:
    """Refuse components that were not made for each other.

    Raises
    ------
    ValueError
        Says which two components differ in what.
    """
    unet, condition, vae = pipe.unet.config, pipe.condition.config, pipe.vae.config
    pairs = {
        "latent channels of vae and unet": (vae.latent_channels, unet.in_channels),
        "latent grid of vae and unet": (pipe.vae.grid, unet.sample_size),
        "token dimension of condition and unet": (
            condition.token_dim, unet.cross_attention_dim
        ),
        "embedding dimension (+ 1) of condition and unet": (
            condition.embed_dim + 1, unet.projection_class_embeddings_input_dim
        ),
        "resolutions of condition and unet": (
            sorted(condition.resolutions), resolutions(pipe.unet)
        ),
        "channels of controlnet and unet": (
            list(pipe.controlnet.config.block_out_channels), list(unet.block_out_channels)
        ),
    }  # fmt: skip
    if pipe.classifier is not None:
        theirs = pipe.classifier.config
        pairs["latent channels of classifier and unet"] = (
            theirs.latent_channels, unet.in_channels
        )  # fmt: skip
        if condition.n_categories:
            pairs["categories of classifier and condition"] = (
                theirs.n_categories, condition.n_categories
            )  # fmt: skip
    if pipe.decoder is not None:
        theirs = pipe.decoder.config
        embed_dim = theirs.meaning_encoder["n_outputs"]
        pairs["embedding dimension of decoder and condition"] = embed_dim, condition.embed_dim
        pairs["map size of decoder and vae"] = theirs.structure_maps["size"], vae.size
        pairs["colour grid of decoder and vae"] = theirs.grid, pipe.vae.grid
    if pipe.posterior is not None:
        theirs = pipe.posterior.config
        pairs["embedding dimension of posterior and condition"] = (
            theirs.embed_dim, condition.embed_dim
        )  # fmt: skip
        pairs["map size of posterior and vae"] = theirs.size, vae.size
        pairs["colour grid of posterior and vae"] = theirs.grid, pipe.vae.grid
    for what, (a, b) in pairs.items():
        if a != b:
            raise ValueError(
                f"the components do not belong together: {what} differ ({a} and {b}). They come "
                "from different configurations; take all of them from one run of notebook 05b"
            )


def check_conditions(
    pipe: DiffusionPipeline,
    embedding: torch.Tensor,
    maps: torch.Tensor | None,
    category: torch.Tensor | None,
    scales: Mapping[str, float],
) -> None:
    """Refuse what cannot be sampled from.

    Parameters
    ----------
    embedding, maps, category : see `pipeline.SGDMPipeline.generate`
    scales : mapping of guidance scales by their names

    Raises
    ------
    ValueError
        Says what was given and what was expected.
    """
    dim, size = pipe.condition.config.embed_dim, pipe.vae.config.size
    if embedding.ndim != 2 or embedding.shape[1] != dim:
        raise ValueError(f"embedding has shape {tuple(embedding.shape)}, expected (batch, {dim})")
    if len(embedding) == 0:
        raise ValueError("no embedding given: the batch is empty")
    if not torch.isfinite(embedding).all():
        bad = (~torch.isfinite(embedding)).any(1).nonzero()[:5, 0].tolist()
        raise ValueError(f"embedding holds NaN or infinity, first in rows {bad}")
    if not all(scale >= 0 for scale in scales.values()):
        raise ValueError(f"guidance scales must not be negative: {scales}")
    _check_category(pipe, category, len(embedding), scales["category_scale"])
    if maps is None:
        return
    if len(maps) != len(embedding):
        raise ValueError(f"{len(maps)} structure maps for {len(embedding)} embeddings")
    if tuple(maps.shape[1:]) != (2, size, size):
        raise ValueError(
            f"maps have shape {tuple(maps.shape)}, expected (batch, 2, {size}, {size}): "
            "silhouette and edges"
        )
    if not (maps.min() >= 0 and maps.max() <= 1):
        raise ValueError("maps must lie in [0, 1]: give probabilities, not logits (or NaN)")


def _check_category(pipe, category, batch, scale) -> None:
    if category is None:
        if scale:
            raise ValueError(f"category_scale={scale} without a category to guide towards")
        return
    if scale and pipe.classifier is None:
        raise ValueError(f"category_scale={scale}, but this pipeline has no classifier")
    n = pipe.classifier.config.n_categories if pipe.classifier else None
    n = pipe.condition.config.n_categories or n or category.shape[-1]
    if tuple(category.shape) != (batch, n):
        raise ValueError(f"category has shape {tuple(category.shape)}, expected ({batch}, {n})")
    if not (
        (category >= 0).all() and torch.allclose(category.sum(1), category.new_ones(()), atol=1e-2)
    ):
        raise ValueError("category holds probabilities: at least 0, each row with the sum 1")


def noise_levels(noise: float | torch.Tensor, batch: int, name: str) -> torch.Tensor:
    """A noise level for each item of a batch, tensor of shape (batch,).

    Raises
    ------
    ValueError
        For another shape, or values outside [0, 1].
    """
    levels = torch.as_tensor(noise, dtype=torch.float32)
    if levels.shape not in ((), (batch,)):
        raise ValueError(f"{name}_noise has shape {tuple(levels.shape)}, expected ({batch},)")
    if not ((levels >= 0) & (levels <= 1)).all():
        raise ValueError(f"{name}_noise must lie in [0, 1]")
    return levels.expand(batch)
