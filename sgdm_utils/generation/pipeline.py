"""Pictures from EEG, or from conditions that somebody names: the denoising loop and its guidance."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import FrozenDict
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

# diffusers loads components only from modules that are imported already: all of them are, by this
import sgdm_utils.generation.autoencoder
import sgdm_utils.generation.decoder
import sgdm_utils.generation.posterior  # noqa: F401
from sgdm_utils.decoding.training import training_dtype
from sgdm_utils.errors import reading
from sgdm_utils.generation.checks import check_components, check_conditions, noise_levels
from sgdm_utils.generation.conditioning import fold_maps, guided_colours
from sgdm_utils.generation.decoder import Decoded
from sgdm_utils.generation.guide import (
    category_direction,
    guided_velocity,
    likelihood_velocity,
)
from sgdm_utils.generation.networks import (
    check_listening,
    listen_by_resolution,
    predict,
    velocity,
)
from sgdm_utils.generation.pretrained.stored import (
    DESCRIPTION,
    PretrainedPipeline,
    load_generator,
)
from sgdm_utils.generation.samplers import (
    check_drawn,
    check_generators,
    check_scheduler,
    model_input,
    time_steps,
)
from sgdm_utils.workflow.artifacts import Artifact
from sgdm_utils.workflow.formats import read_json

#: Parts that stay in float32 whatever the networks compute in.
EXACT = ("vae", "decoder", "classifier", "posterior")
#: Previews of one run: name, share of the picture's side that is shown.
PREVIEWS = {"low": 4, "middle": 2, "full": 1}


@dataclass
class SGDMOutput(BaseOutput):
    """Pictures from EEG and what they were made from.

    Attributes
    ----------
    images : float32 array of shape (batch, size, size, 3) in [0, 1]
    maps : float32 array of shape (batch, 2, size, size), decoded silhouette and edges
    neighbours : list of lists of str, gallery pictures nearest to the decoded meaning
    category : float32 array of shape (batch, n_categories), calibrated probabilities
    previews : dict of str to array of shape (batch, size / k, size / k, 3)
        What the same run believed early (`low`, k = 4), halfway (`middle`, k = 2), and its end
        (`full`), each at the resolution that is settled by then; empty unless asked for.
    """

    images: np.ndarray
    maps: np.ndarray
    neighbours: list[list[str]]
    category: np.ndarray
    previews: dict[str, np.ndarray]


class SGDMPipeline(DiffusionPipeline):
    """Pictures from meaning, structure and category, each with a guidance scale.

    Guidance adds two directions to the prediction u without conditions, and a third that raises the
    probability of the category::

        u + semantic_scale * (f(sem) - u) + structure_scale * (f(sem, struct) - f(sem))
        x_0 + category_scale * (1 - a) / sqrt(a) * grad log p(category | x_t)

    Parameters
    ----------
    vae, unet, controlnet, condition, scheduler : the generator
        Another scheduler may take the place of the training's (`samplers.check_scheduler`).
    classifier : LatentClassifier, or None for a pipeline without category guidance
    decoder : EEGDecoder, or None for a generator that is only given conditions
    posterior : EEGPosterior, or None where there is no forward model

    References
    ----------
    Ho & Salimans (2022), arXiv:2207.12598 (classifier-free guidance); Brooks et al. (2023),
    arXiv:2211.09800, eq. 3 (two conditions); Zhang et al. (2023), arXiv:2302.05543 (ControlNet);
    Dhariwal & Nichol (2021), arXiv:2105.05233 (classifier guidance).
    """

    _optional_components = ["classifier", "decoder", "posterior"]

    def __init__(
        self,
        vae,
        unet,
        controlnet,
        condition,
        scheduler,
        classifier=None,
        decoder=None,
        posterior=None,
    ) -> None:
        super().__init__()
        self._alphas_bar = getattr(scheduler, "alphas_cumprod", torch.zeros(0)).clone()
        check_scheduler(scheduler, "v_prediction", self._alphas_bar)
        self.register_modules(
            vae=vae, unet=unet, controlnet=controlnet, condition=condition, scheduler=scheduler,
            classifier=classifier, decoder=decoder, posterior=posterior,
        )  # fmt: skip
        for network in (unet, controlnet):
            listen_by_resolution(network, unet.config.sample_size)
        check_components(self)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, **kwargs) -> SGDMPipeline:
        """Load a folder that `save_pretrained` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no such folder, it holds no pipeline, or a component is missing.
        ValueError
            If its components come from different configurations.
        """
        folder = Path(folder)
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(
                f"no pipeline in {folder}: model_index.json is missing. Notebook "
                "05b_pipeline writes it to the folder `model` of its artifact."
            )
        index = read_json(folder / "model_index.json")
        parts = [k for k, v in index.items() if isinstance(v, list) and v and v[0] is not None]
        lost = [part for part in parts if part not in kwargs and not (folder / part).is_dir()]
        if lost:
            raise FileNotFoundError(
                f"the pipeline in {folder} is not whole: {', '.join(lost)} is missing. Run "
                "05_diffusion_training and 05b_pipeline again, or copy the whole folder."
            )
        for name in {"dtype", "torch_dtype"} & kwargs.keys():
            if isinstance(kwargs[name], torch.dtype):
                kwargs[name] = {"default": kwargs[name]} | dict.fromkeys(EXACT, torch.float32)
        with reading(folder, "a pipeline", "Run 05b_pipeline again, or copy all of it"):
            pipe = super().from_pretrained(folder, **kwargs)
            if "scheduler" in kwargs and (folder / "scheduler").is_dir():
                trained = getattr(diffusers, index["scheduler"][1]).from_pretrained(
                    folder, subfolder="scheduler"
                )
                pipe._alphas_bar = trained.alphas_cumprod
        return pipe

    def save_pretrained(self, folder: str | os.PathLike, **kwargs) -> None:
        """Write a folder that `from_pretrained` reads; nothing in it says where a component came from.

        diffusers keeps the folder that a component was loaded from in its configuration: equal networks
        would have other bytes in another place, and whoever gets the folder would read names of this machine.
        """
        for part in (self, *self.components.values()):
            if "_name_or_path" in getattr(part, "config", {}):
                kept = {k: v for k, v in part.config.items() if k != "_name_or_path"}
                part._internal_dict = FrozenDict(kept)
        super().save_pretrained(folder, **kwargs)

    def to(self, *args, **kwargs) -> SGDMPipeline:
        """Move to a device, and UNet, ControlNet and conditions to a type; the others stay float32."""
        dtype = kwargs.pop("dtype", None)
        dtype = next((a for a in args if isinstance(a, torch.dtype)), dtype)
        super().to(*(a for a in args if not isinstance(a, torch.dtype)), **kwargs)
        if dtype is not None:
            for part in (self.unet, self.controlnet, self.condition):
                part.to(dtype)
        return self

    @torch.no_grad()
    def __call__(
        self,
        eeg: torch.Tensor | np.ndarray,
        electrodes: Sequence[str] | np.ndarray | None = None,
        subject: str | Sequence[str] | None = None,
        num_inference_steps: int = 2,
        semantic_scale: float = 1.0,
        structure_scale: float = 1.0,
        category_scale: float = 0.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        batch_size: int = 64,
        n_neighbours: int = 5,
        previews: bool = False,
        sfreq: float | None = None,
        conditions: str = "encoder",
        n_averaged: int | None = None,
    ) -> SGDMOutput:
        """Pictures from preprocessed EEG epochs.

        Parameters
        ----------
        eeg, electrodes, subject, sfreq : see `decoder.EEGDecoder`
        num_inference_steps, semantic_scale, structure_scale, category_scale : see `generate`
        generator : torch.Generator on the CPU, or a sequence with one for each epoch
        batch_size : int, epochs that are drawn together
        n_neighbours : int, gallery pictures to return for each epoch
        previews : bool, also return what the run believed on the way
        conditions : "encoder", what the networks say, for any electrodes and anybody; or "posterior",
            what the forward model says, for all electrodes of people who have one (better)
        n_averaged : int, trials that each epoch is the average of; needed by "posterior"

        Raises
        ------
        ValueError
            For EEG, electrodes, subjects or scales that cannot be used; the message names them.
        """
        if self.decoder is None:
            raise ValueError("this pipeline has no EEG decoder: use generate(embedding, maps)")
        generator = check_generators(generator, len(eeg))
        told = self._decode(eeg, electrodes, subject, sfreq, conditions, n_averaged)
        size = self.vae.config.size
        images, beliefs = [], []
        for start in range(0, len(told.embedding), batch_size):
            rows = slice(start, start + batch_size)
            own = generator[rows] if isinstance(generator, list) else generator
            way: list[torch.Tensor] = []
            images.append(
                self.generate(
                    told.embedding[rows], told.maps[rows], semantic_scale, structure_scale,
                    num_inference_steps, own, told.embedding_noise[rows],
                    told.structure_noise[rows], told.category[rows], category_scale,
                    (lambda _, x, way=way: way.append(x)) if previews else None,
                    None if told.colours is None else told.colours[rows],
                )
            )  # fmt: skip
            if previews:
                maps = told.maps[rows] if structure_scale else None
                beliefs.append(self._previews(way, maps, size))
        stacked = {name: np.concatenate([b[name] for b in beliefs]) for name in PREVIEWS if beliefs}
        return SGDMOutput(
            images=np.concatenate(images),
            maps=told.maps.float().cpu().numpy(),
            neighbours=self.decoder.neighbours(told.embedding, n_neighbours),
            category=told.category.float().cpu().numpy(),
            previews=stacked,
        )

    @torch.no_grad()
    def generate(
        self,
        embedding: torch.Tensor,
        maps: torch.Tensor | None,
        semantic_scale: float = 1.0,
        structure_scale: float = 1.0,
        num_inference_steps: int = 12,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        embedding_noise: float | torch.Tensor = 0.0,
        structure_noise: float | torch.Tensor = 0.0,
        category: torch.Tensor | None = None,
        category_scale: float = 0.0,
        callback: Callable[[int, torch.Tensor], None] | None = None,
        colours: torch.Tensor | None = None,
        log_density: Callable[[torch.Tensor], torch.Tensor] | None = None,
        likelihood_scale: float = 0.0,
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
            predictions correlate with the truth with r on validation pictures (see
            `conditioning.shrink`). An embedding of zeros with noise 1 stands for "nothing known".
        category : tensor of shape (batch, n_categories), probabilities, or None for "not known"
        category_scale : float, at least 0: classifier guidance towards `category`; 0 still lets
            the generator see the probabilities
        callback : called after each step with its number and the current estimate of the finished
            latents, for previews: `pipe.vae.decode(estimate, maps)`
        colours : tensor of shape (batch, 3, grid, grid) in [0, 1], mean colour of each cell of the
            latent grid, part of the structure; None where they are not known
        log_density : log p(EEG | picture) of the batch, differentiable: pictures (batch, 3, size,
            size) in [0, 1] to (batch,), e.g. from `ForwardModel.log_density`
        likelihood_scale : float, at least 0: guidance towards pictures that explain the EEG

        Returns
        -------
        float32 array of shape (batch, size, size, 3) in [0, 1]

        Raises
        ------
        ValueError
            For wrong shapes, values that are not finite or out of range, negative scales, other
            numbers of generators, a scheduler or attention processors that do not fit.
        """
        scales = {"semantic_scale": semantic_scale, "structure_scale": structure_scale}
        scales |= {"category_scale": category_scale, "likelihood_scale": likelihood_scale}
        if likelihood_scale and log_density is None:
            raise ValueError(f"likelihood_scale={likelihood_scale} without a log_density to follow")
        check_conditions(self, embedding, maps, category, scales)
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is {num_inference_steps}, at least 1 is needed")
        check_scheduler(self.scheduler, "v_prediction", self._alphas_bar)
        for network in (self.unet, self.controlnet):
            check_listening(network)
        batch, grid = len(embedding), self.unet.config.sample_size
        generator = check_generators(generator, batch)
        device, dtype = self.unet.device, self.unet.dtype
        levels = {"embedding": embedding_noise, "structure": structure_noise}
        trust = [noise_levels(x, batch, name).to(device, dtype) for name, x in levels.items()]
        weights = {"none": 1 - semantic_scale, "sem": semantic_scale}
        maps, folded_maps = (maps if structure_scale else None), None
        expected = torch.zeros((), device=device)
        if maps is not None:
            weights |= {"sem": semantic_scale - structure_scale, "both": structure_scale}
            maps = maps.to(device, torch.float32)
            latents = self._expected_latents(maps, colours)
            folded_maps = fold_maps(maps, grid, trust[1], latents, self.unet.config.in_channels).to(
                dtype
            )
            expected = expected if latents is None else structure_scale * latents
        weights = {branch: w for branch, w in weights.items() if w}  # a branch of weight 0 is free
        embedding = embedding.to(device, dtype)
        category = None if category is None else category.to(device, dtype)
        known = torch.ones(batch, dtype=torch.bool, device=device)
        conditions = {
            b: self.condition(embedding, trust[0], known, category)
            if b != "none"
            else self.condition(embedding, trust[0], ~known)
            for b in weights
        }
        shape = (batch, self.unet.config.in_channels, grid, grid)
        latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        timesteps = time_steps(self.scheduler, num_inference_steps, device)
        latents = latents * self.scheduler.init_noise_sigma
        residual_std = self.condition.config.residual_std
        accepted = inspect.signature(self.scheduler.step).parameters
        extra = {"generator": generator} if "generator" in accepted else {}
        for step, t in enumerate(self.progress_bar(timesteps)):
            noisy, a = model_input(self.scheduler, latents, t)
            output, time = torch.zeros_like(latents), t.expand(batch)
            for branch, weight in weights.items():
                folded = folded_maps if branch == "both" else None
                f = predict(
                    self.unet, self.controlnet, noisy.to(dtype), time, conditions[branch], folded
                )
                output += weight * f.float()
            # the weights of the branches sum to one, so converting the sum converts each of them
            output = velocity(output, noisy, a, residual_std, expected)
            if category_scale:
                direction = category_direction(self.classifier, noisy, time, category)
                output = guided_velocity(output, direction, a, category_scale)
            if likelihood_scale:
                decode = partial(self.vae.decode, maps=maps)
                output = likelihood_velocity(
                    output, noisy, a, residual_std, decode, log_density, likelihood_scale
                )
            if callback is not None:
                callback(step, a.sqrt() * noisy - (1 - a).sqrt() * output)
            latents = self.scheduler.step(output, t, latents, **extra).prev_sample
        check_drawn(latents, self.scheduler)
        return self._pictures(latents, maps)

    def _decode(self, eeg, electrodes, subject, sfreq, conditions, n_averaged) -> Decoded:
        """Conditions from EEG: from the networks, or from the forward model."""
        if conditions == "encoder":
            return self.decoder(eeg, electrodes, subject, sfreq)
        if conditions != "posterior" or self.posterior is None:
            known = "'encoder'" + (" or 'posterior'" if self.posterior is not None else "")
            raise ValueError(f"conditions is {conditions!r}: this pipeline knows {known}")
        config = self.posterior.config
        if electrodes is not None and list(electrodes) != list(config.channels):
            raise ValueError(
                "the forward model needs all electrodes of the training, in their order. For others "
                "use conditions='encoder'"
            )
        if sfreq is not None and abs(sfreq - config.sfreq) > 1e-6:
            raise ValueError(
                f"the epochs have {sfreq:g} Hz, the model {config.sfreq:g}: resample them"
            )
        return self.posterior(eeg, subject, n_averaged)

    def _expected_latents(
        self, maps: torch.Tensor, colours: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Latents of the picture that has these colours on these lines; None without colours."""
        if colours is None:
            return None
        grid = self.unet.config.sample_size
        if tuple(colours.shape) != (len(maps), 3, grid, grid):
            raise ValueError(
                f"colours have shape {tuple(colours.shape)}, expected ({len(maps)}, 3, {grid}, {grid}): "
                "conditioning.colour_layout makes them from pictures"
            )
        if not (colours.min() >= 0 and colours.max() <= 1):
            raise ValueError("colours must lie in [0, 1] (and hold no NaN)")
        guided = guided_colours(colours.to(maps), maps[:, 0]).clamp(0, 1)
        return self.vae.encode((2 * guided - 1).to(self.vae.dtype)).float()

    def _pictures(self, latents: torch.Tensor, maps: torch.Tensor | None) -> np.ndarray:
        """Decoded latents as (batch, size, size, 3) in [0, 1]."""
        pictures = self.vae.decode(latents.to(self.vae.dtype), maps)
        return pictures.permute(0, 2, 3, 1).float().cpu().numpy()

    def _previews(
        self, way: Sequence[torch.Tensor], maps: torch.Tensor | None, size: int
    ) -> dict[str, np.ndarray]:
        """Beliefs at a third, two thirds and the end of a run, each averaged to what is settled."""
        last = len(way) - 1
        moments = {"low": last // 3, "middle": (2 * last) // 3, "full": last}
        shown = {}
        for name, k in PREVIEWS.items():
            p = self._pictures(way[moments[name]], maps)
            shown[name] = p.reshape(len(p), size // k, k, size // k, k, 3).mean((2, 4))
        return shown


def open_pipeline(
    artifact: Artifact, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> SGDMPipeline:
    """Open what notebook 05 trained, or the whole pipeline of notebook 05b.

    Parameters
    ----------
    artifact : `generator`, which reads no EEG, or `pipeline`
    device : where the networks go
    dtype : torch.dtype, optional
        Of UNet and ControlNet, the fast one of the device by default. Autoencoder, EEG decoder and
        category guide stay in float32.

    Raises
    ------
    ValueError
        When the study draws with a pretrained generator: there is no pipeline of its own.
    """
    if _is_pretrained(artifact):
        raise ValueError(
            "this study draws with a pretrained generator (`generator: pretrained` of notebook 05), and "
            "what is asked for needs the one that notebook 05 trains: use generation.open_generator, "
            "or set `generator: latent` and run notebook 05 again"
        )
    dtype = dtype or training_dtype(device)
    pipe = SGDMPipeline.from_pretrained(artifact / "model", dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def open_generator(
    artifact: Artifact,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    verify: bool = False,
) -> SGDMPipeline | PretrainedPipeline:
    """Open whatever notebook 05 chose to draw with: what it trained, or a pretrained generator.

    Both have a `decoder` (EEG to conditions, with its trust levels) and `generate(embedding, maps,
    ...)` with the same arguments, and give pictures of the study's size.

    Parameters
    ----------
    artifact : `pipeline`
    device : where the networks go
    dtype : torch.dtype, optional
        Of UNet and ControlNet, the fast one of the device by default.
    verify : bool, compare the digests of local pretrained parts, not only names and sizes

    Raises
    ------
    sgdm_utils.generation.pretrained.stored.PartsChanged
        A pretrained part is not the one that notebook 05 described.
    """
    if _is_pretrained(artifact):
        return load_generator(_folder(artifact), device, dtype, verify)
    return open_pipeline(artifact, device, dtype)


def _folder(artifact: Artifact | Path) -> Path:
    return artifact if isinstance(artifact, Path) else artifact.path


def _is_pretrained(artifact: Artifact | Path) -> bool:
    return (_folder(artifact) / DESCRIPTION).is_file()
