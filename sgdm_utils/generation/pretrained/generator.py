"""SDXL-Turbo or Stable Diffusion 1.5 behind the call of `SGDMPipeline.generate`.

Meaning enters through an IP-Adapter, as a CLIP image embedding in the place of a picture; structure
enters through a ControlNet, as a drawing of lines. The text prompt is always empty: the name of a
class in it would be the answer. `parts` says where the parts come from, under which licence, and
whether they fit each other; `stored` makes it the generator of a study.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch.nn import functional as F

from sgdm_utils.decoding.training import training_dtype
from sgdm_utils.generation.pretrained.parts import (
    Family,
    check_controlnet,
    check_model,
    family_of,
    locate,
    read_adapter,
)
from sgdm_utils.generation.samplers import check_generators, model_input, time_steps
from sgdm_utils.workflow.downloads.catalogue import Entry


class PretrainedGenerator:
    """Pictures from a CLIP image embedding and a structure map, by a pretrained diffusion model.

    Made by `from_pretrained`. The networks are in `pipe`, a pipeline of diffusers; the denoising loop
    is here, because the pipeline takes one embedding for a whole batch: several are attended to
    together by every picture, without a word.

    Parameters
    ----------
    pipe : StableDiffusionControlNetPipeline or StableDiffusionXLControlNetPipeline
        With an IP-Adapter loaded. Its text encoders are used once and released.
    family : Family
    center, spread : tensors of shape (embed_dim,), optional
        Where embeddings come standardised, as `SGDMPipeline.generate` takes them: they are multiplied by
        `spread` and shifted by `center`, because the adapter knows CLIP's own space.
    """

    def __init__(
        self,
        pipe: diffusers.DiffusionPipeline,
        family: Family,
        center: torch.Tensor | None = None,
        spread: torch.Tensor | None = None,
    ) -> None:
        check_vae_dtype(pipe.vae.dtype)
        self.pipe, self.family = pipe, family
        projection = pipe.unet.encoder_hid_proj.image_projection_layers[0].image_embeds
        self.embed_dim: int = projection.in_features
        self.size: int = pipe.unet.config.sample_size * pipe.vae_scale_factor
        self.center = check_statistics(center, 0.0, "center", self.embed_dim)
        self.spread = check_statistics(spread, 1.0, "spread", self.embed_dim)
        self._text, self._pooled = empty_prompt(pipe)
        # gigabytes that nothing needs any more
        pipe.register_modules(**dict.fromkeys(family.text_parts))

    @classmethod
    def from_pretrained(
        cls,
        family: Literal["sdxl_turbo", "sd15"] = "sdxl_turbo",
        model: str | os.PathLike | None = None,
        controlnet: str | os.PathLike | None = None,
        ip_adapter: str | os.PathLike | None = None,
        accept_licence: str | Sequence[str] = (),
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        vae_dtype: torch.dtype = torch.float32,
        variant: str | None = None,
        center: torch.Tensor | None = None,
        spread: torch.Tensor | None = None,
        catalogue: Mapping[str, Entry] | Path | None = None,
        show: Callable[[str], None] = print,
    ) -> PretrainedGenerator:
        """Load a generator from paths, or from names on the Hugging Face hub.

        Parameters
        ----------
        family : "sdxl_turbo" or "sd15"
        model, controlnet : path of a folder in diffusers' form, or `owner/name[@revision]`
        ip_adapter : path of a .safetensors file, or `owner/name[@revision]/path/of/the/file`
            By default the names of `FAMILIES`.
        accept_licence : str or sequence of str
            Identifiers of the licences that you accept, as in `data/licences.yaml`. Paths need none.
        device : where the networks go
        dtype : of UNet and ControlNet; `training_dtype` of large networks by default
        vae_dtype : torch.float32 or torch.bfloat16
        variant : "fp16" to take the model's half-size files; the dtypes above still hold
        center, spread : see the class
        catalogue : what `load_catalogue` returned, or a file; `data/licences.yaml` by default
        show : what is done with the line about each licence

        Raises
        ------
        ValueError
            Unknown family, a VAE in float16, parts that do not fit each other.
        FileNotFoundError
            A part, a component of it or its weights are missing.
        sgdm_utils.workflow.downloads.catalogue.LicenceError
            A licence must be accepted by its identifier and was not.
        sgdm_utils.workflow.downloads.transfers.DownloadError
            A name could not be fetched; the message holds the manual route.
        """
        kind = family_of(family)
        check_vae_dtype(vae_dtype)
        folder, control_folder, adapter_file = locate(
            kind, model or kind.model, controlnet or kind.controlnet, ip_adapter or kind.ip_adapter,
            accept_licence, variant, catalogue, show,
        )  # fmt: skip
        unet = check_model(folder, kind, variant)
        check_controlnet(control_folder, unet)
        adapter = read_adapter(adapter_file, unet)
        dtype = dtype or training_dtype(device, large=True)
        common: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
        control = diffusers.ControlNetModel.from_pretrained(control_folder, dtype=dtype, **common)
        # texts in float32: they are encoded once, on a processor that may know no 16-bit numbers
        dtypes = {"vae": vae_dtype, "default": dtype} | dict.fromkeys(
            [part for part in kind.text_parts if "encoder" in part], torch.float32
        )
        pipe = getattr(diffusers, kind.pipeline).from_pretrained(
            folder, controlnet=control, dtype=dtypes, variant=variant, **common, **kind.options
        )
        with _quiet_diffusers():  # it misses the image encoder; the embeddings come from the EEG
            pipe.load_ip_adapter(adapter, subfolder="", weight_name="", image_encoder_folder=None)
        scheduler = getattr(diffusers, kind.scheduler)
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **kind.scheduler_options)
        return cls(pipe, kind, center, spread).to(device)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.pipe.unet.device

    def to(self, device: torch.device | str) -> PretrainedGenerator:
        """Move the networks; their precision stays."""
        self.pipe.to(device)
        return self

    def set_progress_bar_config(self, **options: Any) -> None:
        """Options of tqdm, `disable=True` for silence."""
        self.pipe.set_progress_bar_config(**options)

    @torch.no_grad()
    def __call__(
        self,
        embedding: torch.Tensor,
        maps: torch.Tensor | None,
        semantic_scale: float = 1.0,
        structure_scale: float = 1.0,
        num_inference_steps: int | None = None,
        *,
        generator: torch.Generator | Sequence[torch.Generator],
        guidance_scale: float | None = None,
        callback: Callable[[int, torch.Tensor], None] | None = None,
    ) -> np.ndarray:
        """Sample one picture for each embedding.

        Parameters
        ----------
        embedding : tensor of shape (batch, embed_dim)
            CLIP image embedding as the encoder gives it, not of unit length (or standardised, see
            `center`). The encoder must be the adapter's: OpenCLIP ViT-H-14 for the usual ones.
        maps : tensor of shape (batch, 2, h, h) in [0, 1], or None for no structure
        semantic_scale : float, at least 0
            Weight of the adapter's attention: 0 ignores the embedding, 1 is what it was trained with.
        structure_scale : float, at least 0
            Weight of the ControlNet's residuals; 0 is the same as `maps=None`, and as fast.
        num_inference_steps : int, the family's by default; SDXL-Turbo takes 1 to 4
        generator : torch.Generator on the CPU, or one for each picture, so that a picture does not
            depend on its batch. There is no default: a picture must be reproducible.
        guidance_scale : float, at least 0; the family's by default
            Classifier-free guidance of SD 1.5, away from what it draws for no embedding: amplifies
            what `semantic_scale` lets through. Up to 1 there is none, SDXL-Turbo never has any.
        callback : called after each step with its number and the current estimate of the finished
            latents, for previews: `generator.decode(estimate)`

        Returns
        -------
        float32 array of shape (batch, size, size, 3) in [0, 1]

        Raises
        ------
        ValueError
            For wrong shapes, values that are not finite or out of range, negative scales, numbers
            of steps or guidance that the family cannot take.
        FloatingPointError
            A network gave NaN, as happens in float16.

        References
        ----------
        Ye et al. (2023), arXiv:2308.06721 (the adapter and its scale); Ho & Salimans (2022),
        arXiv:2207.12598 (classifier-free guidance); Sauer et al. (2023), arXiv:2311.17042
        (SDXL-Turbo, sampled without guidance).
        """
        steps = self.family.steps if num_inference_steps is None else num_inference_steps
        guidance = self.family.guidance_scale if guidance_scale is None else guidance_scale
        check_inputs(
            self.family,
            self.embed_dim,
            embedding,
            maps,
            semantic_scale,
            structure_scale,
            steps,
            guidance,
        )
        batch = len(embedding)
        generator = check_generators(generator or (), batch)
        pipe, unet, scheduler = self.pipe, self.pipe.unet, self.pipe.scheduler
        device, dtype = unet.device, unet.dtype
        copies = 2 if guidance > 1 else 1  # the first of two is what is drawn for no embedding
        image = (embedding.float().cpu() * self.spread + self.center).to(device, dtype)[:, None]
        if copies == 2:
            image = torch.cat([torch.zeros_like(image), image])
        pipe.set_ip_adapter_scale(float(semantic_scale))
        text = self._text.to(device, dtype).expand(copies * batch, -1, -1)
        added = {}
        if self._pooled is not None:
            frame = torch.tensor([[self.size, self.size, 0, 0, self.size, self.size]])
            added["text_embeds"] = self._pooled.to(device, dtype).expand(batch, -1)
            added["time_ids"] = frame.to(device, dtype).expand(batch, -1)  # whole pictures, not cut
        control = None
        if maps is not None and structure_scale > 0:
            control = control_image(maps.float(), self.size).to(device, dtype)
            control = torch.cat([control] * copies)
        # noise and steps in float32 whatever the networks compute in, so that devices agree
        shape = (batch, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
        latents = randn_tensor(shape, generator, device=device, dtype=torch.float32)
        timesteps = time_steps(scheduler, steps, device)
        latents = latents * scheduler.init_noise_sigma
        for step, t in enumerate(pipe.progress_bar(timesteps)):
            scaled, a = model_input(scheduler, latents, t)
            noisy = torch.cat([scaled] * copies).to(dtype)
            down = mid = None
            if control is not None:
                down, mid = pipe.controlnet(
                    noisy, t, encoder_hidden_states=text, controlnet_cond=control,
                    conditioning_scale=float(structure_scale), added_cond_kwargs=added,
                    return_dict=False,
                )  # fmt: skip
            noise_pred = unet(
                noisy, t, encoder_hidden_states=text, down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
                added_cond_kwargs=added | {"image_embeds": [image]}, return_dict=False,
            )[0].float()  # fmt: skip
            if copies == 2:
                without, given = noise_pred.chunk(2)
                noise_pred = without + guidance * (given - without)
            if callback is not None:
                callback(step, (scaled - (1 - a).sqrt() * noise_pred) / a.sqrt())
            latents = scheduler.step(noise_pred, t, latents, generator=generator).prev_sample
        return self.decode(latents)

    generate = __call__  # the name that `SGDMPipeline` has for it

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Pictures of latents, float32 array of shape (batch, size, size, 3) in [0, 1]."""
        vae = self.pipe.vae
        latents = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
        # one by one: at full size the decoder needs more memory than all that came before
        pictures = torch.cat([vae.decode(one).sample.float() for one in latents.split(1)])
        if not torch.isfinite(pictures).all():
            raise FloatingPointError(
                f"the pictures hold NaN: a network overflowed in {self.pipe.unet.dtype}. Load it "
                "with dtype=torch.bfloat16 or torch.float32"
            )
        return (pictures / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()


@contextlib.contextmanager
def _quiet_diffusers() -> Iterator[None]:
    level = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers.logging.set_verbosity(level)


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
