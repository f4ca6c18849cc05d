"""Latent diffusion with a ControlNet: the networks, their conditions and the pipeline.

The autoencoder of pictures (`autoencoder`) and the form in which conditions enter (`conditioning`)
have modules of their own. The losses and the denoising loop are shown in notebook 05; the pipeline
here repeats the loop for those who only want pictures (and notebook 05 checks that both agree).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor

from sgdm_utils.conditioning import ConditionEmbedder, fold_maps, shrink

__all__ = [
    "ConditionEmbedder",
    "SGDMPipeline",
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
        attention_head_dim=4,  # the number of heads, whatever its name says
        use_linear_projection=True,
        # colour times outline: the embedding scales and shifts features instead of only adding
        resnet_time_scale_shift="scale_shift",
        class_embed_type="projection",
        projection_class_embeddings_input_dim=embed_dim + 1,
    )


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
    return controlnet


def predict(
    unet: UNet2DConditionModel,
    controlnet: ControlNetModel,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    tokens: torch.Tensor,
    vector: torch.Tensor,
    folded_maps: torch.Tensor | None = None,
    structure_known: torch.Tensor | None = None,
) -> torch.Tensor:
    """One pass of ControlNet and UNet; without maps the ControlNet is not asked.

    Parameters
    ----------
    latents : tensor of shape (batch, latent_channels, grid, grid), noisy
    timesteps : long tensor of shape (batch,)
    tokens, vector : conditions from `ConditionEmbedder`
    folded_maps : tensor from `fold_maps`, or None
    structure_known : tensor of shape (batch,), weight of the ControlNet's residuals: 0 silences it
        for an item, None means 1 for all

    Returns
    -------
    tensor shaped as `latents`; `velocity` makes the prediction of it
    """
    conditions = {"encoder_hidden_states": tokens, "class_labels": vector, "return_dict": False}
    if folded_maps is None:
        return unet(latents, timesteps, **conditions)[0]
    down, mid = controlnet(latents, timesteps, controlnet_cond=folded_maps, **conditions)
    if structure_known is not None:
        gate = structure_known.view(-1, 1, 1, 1).to(mid.dtype)
        down, mid = [d * gate for d in down], mid * gate
    return unet(
        latents, timesteps, down_block_additional_residuals=down,
        mid_block_additional_residual=mid, **conditions,
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


def training_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where the processor computes in it, float32 elsewhere (emulation is slower)."""
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # torch names its probes differently from version to version; a missing one counts as "no"
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    able = any(getattr(torch.cpu, name, lambda: False)() for name in probes)
    return torch.bfloat16 if torch.device(device).type == "cpu" and able else torch.float32


class SGDMPipeline(DiffusionPipeline):
    """Pictures from a CLIP-space embedding and a structure map, each with a guidance scale.

    Guidance adds two directions to the prediction u without conditions::

        u + semantic_scale * (f(sem) - u) + structure_scale * (f(sem, struct) - f(sem))

    References
    ----------
    Ho & Salimans (2022), arXiv:2207.12598 (classifier-free guidance); Brooks et al. (2023),
    arXiv:2211.09800, eq. 3 (two conditions); Zhang et al. (2023), arXiv:2302.05543 (ControlNet).
    """

    def __init__(self, vae, unet, controlnet, condition, scheduler) -> None:
        super().__init__()
        if scheduler.config.prediction_type != "v_prediction":
            raise ValueError(
                f"the networks predict velocities, the scheduler expects "
                f"{scheduler.config.prediction_type!r}: give it prediction_type='v_prediction'"
            )
        self.register_modules(
            vae=vae, unet=unet, controlnet=controlnet, condition=condition, scheduler=scheduler
        )

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, **kwargs) -> SGDMPipeline:
        """Load a folder that `save_pretrained` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no such folder, or it holds no pipeline.
        """
        if not (Path(folder) / "model_index.json").is_file():
            raise FileNotFoundError(
                f"no pipeline in {folder}: model_index.json is missing. Notebook "
                "05_diffusion_training writes it to the folder `model` of its artifact."
            )
        return super().from_pretrained(folder, **kwargs)

    @torch.no_grad()
    def __call__(
        self,
        embedding: torch.Tensor,
        maps: torch.Tensor | None,
        semantic_scale: float = 1.5,
        structure_scale: float = 1.0,
        num_inference_steps: int = 12,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        embedding_noise: float | torch.Tensor = 0.0,
        structure_noise: float | torch.Tensor = 0.0,
        callback: Callable[[int, torch.Tensor], None] | None = None,
    ) -> np.ndarray:
        """Sample one picture for each embedding.

        Parameters
        ----------
        embedding : tensor of shape (batch, embed_dim), standardised CLIP space
        maps : tensor of shape (batch, 2, size, size) in [0, 1], or None for no structure
        semantic_scale, structure_scale : float, at least 0
        num_inference_steps : int
        generator : torch.Generator on the CPU, so that devices agree about the noise; or one for
            each picture, so that a picture does not depend on its batch
        embedding_noise, structure_noise : float or tensor of shape (batch,), in [0, 1]
            How far to trust each condition: 0 for the true one; sqrt(1 - r^2) for a decoder whose
            predictions correlate with the truth with r on validation pictures (see `shrink`).
            An embedding of zeros with noise 1 stands for "the decoder knows nothing".
        callback : called after each step with its number and the current estimate of the finished
            latents, for previews: `pipe.vae.decode(estimate)`

        Returns
        -------
        float32 array of shape (batch, size, size, 3) in [0, 1]

        Raises
        ------
        ValueError
            For wrong shapes, values that are not finite or out of range, negative scales.
        """
        self._check(embedding, maps, semantic_scale, structure_scale, num_inference_steps)
        batch, grid = len(embedding), self.unet.config.sample_size
        device, dtype = self.unet.device, self.unet.dtype
        trust = [
            _levels(noise, batch, name).to(device, dtype)
            for name, noise in (("embedding", embedding_noise), ("structure", structure_noise))
        ]
        if maps is None:
            weights = {"none": 1 - semantic_scale, "sem": semantic_scale}
        else:
            weights = {
                "none": 1 - semantic_scale,
                "sem": semantic_scale - structure_scale,
                "both": structure_scale,
            }
        weights = {branch: w for branch, w in weights.items() if w}  # a branch of weight 0 is free
        embedding = embedding.to(device, dtype)
        known = torch.ones(batch, dtype=torch.bool, device=device)
        conditions = {
            b: self.condition(embedding, trust[0], known & (b != "none")) for b in weights
        }
        if maps is not None:
            maps = fold_maps(maps.to(device, dtype), grid, trust[1])
        shape = (batch, self.unet.config.in_channels, grid, grid)
        latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        latents = latents * self.scheduler.init_noise_sigma
        alphas_bar = self.scheduler.alphas_cumprod.to(device)
        residual_std = self.condition.config.residual_std
        accepted = inspect.signature(self.scheduler.step).parameters
        extra = {"generator": generator} if "generator" in accepted else {}
        for step, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            noisy = self.scheduler.scale_model_input(latents, t).to(dtype)
            output = torch.zeros_like(latents)
            for branch, weight in weights.items():
                folded = maps if branch == "both" else None
                time = t.expand(batch)
                f = predict(self.unet, self.controlnet, noisy, time, *conditions[branch], folded)
                output += weight * f.float()
            # the weights of the branches sum to one, so converting the sum converts each of them
            output = velocity(output, latents, alphas_bar[int(t)], residual_std)
            if callback is not None:
                a = alphas_bar[int(t)]
                callback(step, a.sqrt() * latents - (1 - a).sqrt() * output)
            latents = self.scheduler.step(output, t, latents, **extra).prev_sample
        pictures = self.vae.decode(latents.to(self.vae.dtype))
        return pictures.permute(0, 2, 3, 1).float().cpu().numpy()

    def _check(self, embedding, maps, semantic_scale, structure_scale, steps) -> None:
        """Refuse what cannot be sampled from, saying what was expected."""
        dim, size = self.condition.config.embed_dim, self.vae.config.size
        if embedding.ndim != 2 or embedding.shape[1] != dim:
            raise ValueError(
                f"embedding has shape {tuple(embedding.shape)}, expected (batch, {dim})"
            )
        if len(embedding) == 0:
            raise ValueError("no embedding given: the batch is empty")
        if not torch.isfinite(embedding).all():
            bad = (~torch.isfinite(embedding)).any(1).nonzero()[:5, 0].tolist()
            raise ValueError(f"embedding holds NaN or infinity, first in rows {bad}")
        if not (semantic_scale >= 0 and structure_scale >= 0):
            raise ValueError(
                f"guidance scales must not be negative: {semantic_scale=}, {structure_scale=}"
            )
        if steps < 1:
            raise ValueError(f"num_inference_steps is {steps}, it must be at least 1")
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


def _levels(noise: float | torch.Tensor, batch: int, name: str) -> torch.Tensor:
    """A noise level for each item of a batch."""
    levels = torch.as_tensor(noise, dtype=torch.float32)
    if levels.shape not in ((), (batch,)):
        raise ValueError(f"{name}_noise has shape {tuple(levels.shape)}, expected ({batch},)")
    if not ((levels >= 0) & (levels <= 1)).all():
        raise ValueError(f"{name}_noise must lie in [0, 1]")
    return levels.expand(batch)
