"""A diffusion prior: embeddings that a picture could have, given what the EEG says of it.

A regression answers with one vector, the mean of all embeddings that fit the EEG. A mean of pictures
is no picture: it is shorter than true embeddings and lies between them. A prior draws one of those
that fit. What it knows beyond the regression is what embeddings of pictures look like.

Two things differ from the prior of DALL-E 2 (Ramesh et al. 2022). Theirs is a transformer because it
reads a sequence, the tokens of a caption; here the condition is one vector and one number, there is
nothing to attend to, and a residual MLP does. And theirs learns everything from millions of pairs;
here the answer for normally distributed embeddings is computed, and the network learns the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from sgdm_utils.generation.checks import noise_levels
from sgdm_utils.generation.conditioning import shrink
from sgdm_utils.generation.samplers import (
    check_drawn,
    check_generators,
    check_scheduler,
    model_input,
    time_steps,
)

LEAST_VARIANCE = 1e-4  # of a direction, as a share of the mean one; less is rounding


class Block(nn.Module):
    """Residual block whose normalised features are scaled and shifted by time and noise level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        wide = 2 * width
        self.modulation = nn.Linear(width, wide)
        self.mlp = nn.Sequential(nn.Linear(width, wide), nn.SiLU(), nn.Linear(wide, width))

    def forward(self, features: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        scale, shift = self.modulation(told).chunk(2, dim=1)
        return features + self.mlp(self.norm(features) * (1 + scale) + shift)


class DiffusionPrior(ModelMixin, ConfigMixin):
    """Denoises standardised CLIP embeddings, given a regression's answer and its noise level.

    Let embeddings be normal with covariance C and an answer be what `conditioning.shrink` makes of
    one at noise level s. Then an embedding, given the answer, is normal around the answer with
    covariance s^2 C, and its estimate from x_t = sqrt(a) z + sqrt(1 - a) e is, in a direction of C
    with variance v, ::

        m = z_eeg + g (x_t - sqrt(a) z_eeg)     with g = sqrt(a) s^2 v / (a s^2 v + 1 - a)

    with the standard deviation d = sqrt(s^2 v (1 - a) / (a s^2 v + 1 - a)). The network F completes
    it to m + d F. F starts at zero, so an untrained prior draws from that normal distribution and
    the mean of its samples is the regression; all that training adds is about true embeddings not
    being normal. Nothing known is z_eeg = 0 with s = 1, as everywhere in the project.

    Parameters
    ----------
    embed_dim : int, dimension of the embeddings
    width, n_blocks : int, features and residual blocks of the network
    drop_condition : float, share of items that `loss` hides the condition from, for guidance
    num_train_timesteps : int, steps of the diffusion (cosine schedule)

    References
    ----------
    Ramesh et al. (2022), arXiv:2204.06125, section 2.2: a diffusion prior that predicts the clean
    embedding, conditions dropped in 10 % of the training, the better of two samples taken. Karras
    et al. (2022), arXiv:2206.00364, section 5: networks that complete a known estimate. Ho &
    Salimans (2022), arXiv:2207.12598: classifier-free guidance.
    """

    @register_to_config
    def __init__(
        self,
        embed_dim: int = 64,
        width: int = 128,
        n_blocks: int = 2,
        drop_condition: float = 0.1,
        num_train_timesteps: int = 1000,
    ) -> None:
        super().__init__()
        if not 0 <= drop_condition < 1:
            raise ValueError(f"drop_condition is {drop_condition}, a share in [0, 1) is expected")
        self.register_buffer("basis", torch.eye(embed_dim))
        self.register_buffer("variance", torch.ones(embed_dim))
        self.noise_scheduler = DDPMScheduler(
            num_train_timesteps, beta_schedule="squaredcos_cap_v2", prediction_type="sample",
            clip_sample=False,
        )  # fmt: skip
        self.frequencies = Timesteps(128, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimestepEmbedding(128, width)
        self.level = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.stem = nn.Linear(2 * embed_dim, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(n_blocks))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, embed_dim))
        nn.init.zeros_(self.out[1].weight)
        nn.init.zeros_(self.out[1].bias)

    @torch.no_grad()
    def fit_covariance(self, targets: torch.Tensor) -> None:
        """Take C from embeddings of training pictures (n, embed_dim); call it before training.

        Raises
        ------
        ValueError
            For another shape, values that are not finite, or fewer than two rows.
        """
        self._check(targets, "targets")
        if len(targets) < 2:
            raise ValueError("targets has 1 row: a covariance needs at least 2")
        variance, basis = torch.linalg.eigh(torch.atleast_2d(torch.cov(targets.double().T)))
        self.variance.copy_(variance.clamp(min=LEAST_VARIANCE * variance.mean().item()))
        self.basis.copy_(basis)

    def answers(
        self, z: torch.Tensor, noise: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """What a regression at noise levels (batch,) says of embeddings (batch, embed_dim).

        The conditions of the training. It errs towards other pictures: errors have covariance C.
        """
        error = randn_tensor(z.shape, generator=generator, device=z.device, dtype=z.dtype)
        return shrink(z, error * self.variance.sqrt() @ self.basis.T, noise)

    def forward(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        z_eeg: torch.Tensor,
        noise: torch.Tensor,
        alpha_bar: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The clean embedding (batch, embed_dim) that a noisy one stands for.

        Parameters
        ----------
        noisy : tensor of shape (batch, embed_dim)
        timesteps : long tensor of shape (batch,)
        z_eeg : tensor of shape (batch, embed_dim), answers shrunk to their quality
        noise : tensor of shape (batch,), their noise level in [0, 1]
        alpha_bar : scalar tensor, share of signal power in `noisy`; by default that of `timesteps`,
            which a scheduler may lie between
        """
        estimate, deviation = self._gaussian(noisy, timesteps, z_eeg, noise, alpha_bar)
        a = self._alpha_bar(timesteps, alpha_bar)
        # each direction at unit size; those that hardly vary are not blown up with their errors
        x = noisy @ self.basis / (a * self.variance + 1 - a).sqrt()
        y = z_eeg @ self.basis / (self.variance + 0.1 * self.variance.mean()).sqrt()
        told = self.time(self.frequencies(timesteps).to(x.dtype)) + self.level(noise[:, None])
        features = self.stem(torch.cat([x, y], dim=1))
        for block in self.blocks:
            features = block(features, told)
        return estimate + (deviation * self.out(features)) @ self.basis.T

    def loss(
        self, z: torch.Tensor, z_eeg: torch.Tensor, noise: torch.Tensor,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Squared error of the clean embedding, as a share of what the normal estimate leaves open.

        About 1 says that the network adds nothing. Weighing each item by that share makes all
        timesteps and noise levels count alike.

        Parameters
        ----------
        z : tensor of shape (batch, embed_dim), true embeddings
        z_eeg, noise : see `forward`; for a share of `drop_condition` they are replaced by 0 and 1
        generator : torch.Generator on the CPU, for timesteps, noise and what is dropped

        Raises
        ------
        ValueError
            For shapes that differ, values that are not finite, a noise level of 0.
        """
        noise = self._check_condition(z_eeg, noise)
        self._check(z, "z")
        if len(z) != len(z_eeg):
            raise ValueError(f"{len(z)} embeddings for {len(z_eeg)} answers of the regression")
        if not (noise > 0).all():
            raise ValueError("noise is 0 for some items: an exact answer leaves nothing to learn")
        draw = torch.rand(2, len(z), generator=generator).to(z.device)
        seen = draw[0] >= self.config.drop_condition
        z_eeg, noise = z_eeg * seen[:, None], torch.where(seen, noise, 1.0)
        timesteps = (draw[1] * self.config.num_train_timesteps).long()
        error = randn_tensor(z.shape, generator=generator, device=z.device, dtype=z.dtype)
        noisy = self.noise_scheduler.add_noise(z, error, timesteps)
        wrong = ((self(noisy, timesteps, z_eeg, noise) - z) ** 2).sum(dim=1)
        deviation = self._gaussian(noisy, timesteps, z_eeg, noise)[1]
        return (wrong / (deviation**2).sum(dim=1)).mean()

    @torch.no_grad()
    def sample(
        self,
        z_eeg: torch.Tensor,
        noise: float | torch.Tensor,
        n_samples: int = 1,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 16,
        scheduler: SchedulerMixin | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """Embeddings (batch, n_samples, embed_dim) that fit the answers of a regression.

        Parameters
        ----------
        z_eeg : tensor of shape (batch, embed_dim), shrunk to their quality (`decoder.Decoded`)
        noise : float or tensor of shape (batch,), their noise level; at 0 the answer comes back
        n_samples, num_inference_steps : int, embeddings for each answer, steps for each embedding
        guidance_scale : float, at least 0; 1 draws what fits, more exaggerates the condition, 0
            ignores it
        scheduler : any scheduler of diffusers that takes clean samples (`samplers.check_scheduler`);
            default DPM-Solver++
        generator : torch.Generator on the CPU, so that devices agree; or one for each answer, so
            that an embedding does not depend on its batch

        Raises
        ------
        ValueError
            For wrong shapes, an empty batch, values that are not finite or out of range, or a
            scheduler of another kind or schedule.
        """
        noise = self._check_condition(z_eeg, noise)
        for name, value in (("n_samples", n_samples), ("num_inference_steps", num_inference_steps)):
            if value < 1:
                raise ValueError(f"{name} is {value}, at least 1 is needed")
        if not 0 <= guidance_scale < float("inf"):
            raise ValueError(f"guidance_scale is {guidance_scale}, expected a number of at least 0")
        if scheduler is None:  # a scheduler has a length, which may be zero or unknown
            scheduler = DPMSolverMultistepScheduler.from_config(
                self.noise_scheduler.config, timestep_spacing="trailing"
            )
        alphas_bar = self.noise_scheduler.alphas_cumprod
        check_scheduler(scheduler, "sample", alphas_bar)
        generator = check_generators(generator, len(z_eeg))
        shape = (len(z_eeg), n_samples, z_eeg.shape[1])
        x = randn_tensor(shape, generator=generator, device=z_eeg.device, dtype=z_eeg.dtype)
        z_eeg, noise = z_eeg.repeat_interleave(n_samples, 0), noise.repeat_interleave(n_samples)
        accepted = inspect.signature(scheduler.step).parameters
        extra = {"generator": generator} if "generator" in accepted else {}
        timesteps = time_steps(scheduler, num_inference_steps, x.device)
        x = x * scheduler.init_noise_sigma
        for t in timesteps:
            noisy, a = model_input(scheduler, x, t)
            noisy, when = noisy.flatten(0, 1), t.expand(len(noise))
            clean = self(noisy, when, z_eeg, noise, a)
            if guidance_scale != 1:
                free = self(noisy, when, torch.zeros_like(z_eeg), torch.ones_like(noise), a)
                clean = free + guidance_scale * (clean - free)
            x = scheduler.step(clean.view(shape), t, x, **extra).prev_sample
        check_drawn(x, scheduler)
        return x

    def _alpha_bar(self, timesteps: torch.Tensor, given=None) -> torch.Tensor:
        """Share of signal power at each timestep, (batch, 1)."""
        if given is not None:
            return given.to(self.variance).reshape(1, 1)
        return self.noise_scheduler.alphas_cumprod.to(self.variance)[timesteps.long()][:, None]

    def _gaussian(
        self, noisy, timesteps, z_eeg, noise, alpha_bar=None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The estimate m and, along `basis`, its standard deviations d; both (batch, embed_dim)."""
        a, left = self._alpha_bar(timesteps, alpha_bar), noise[:, None] ** 2 * self.variance
        total = a * left + 1 - a
        difference = (noisy - a.sqrt() * z_eeg) @ self.basis
        estimate = z_eeg + (a.sqrt() * left / total * difference) @ self.basis.T
        return estimate, (left * (1 - a) / total).sqrt()

    def _check(self, embeddings: torch.Tensor, name: str) -> None:
        """Refuse what is not a batch of finite embeddings."""
        shape, dim = tuple(embeddings.shape), self.config.embed_dim
        if len(shape) != 2 or shape[1] != dim or shape[0] == 0:
            raise ValueError(f"{name} has shape {shape}, expected (batch, {dim}), not empty")
        if not torch.isfinite(embeddings).all():
            bad = (~torch.isfinite(embeddings)).any(1).nonzero()[:5, 0].tolist()
            raise ValueError(f"{name} holds NaN or infinity, first in rows {bad}")

    def _check_condition(self, z_eeg, noise) -> torch.Tensor:
        """Noise levels (batch,) of the answers, both checked."""
        self._check(z_eeg, "z_eeg")
        return noise_levels(noise, len(z_eeg), "embedding").to(z_eeg)


def best_of(samples: torch.Tensor, z_eeg: torch.Tensor) -> torch.Tensor:
    """Of each answer's samples the one with the largest dot product with it (Ramesh et al., 2.2).

    Parameters
    ----------
    samples : tensor of shape (batch, n_samples, embed_dim), from `DiffusionPrior.sample`
    z_eeg : tensor of shape (batch, embed_dim)

    Returns
    -------
    tensor of shape (batch, embed_dim)
    """
    best = torch.einsum("bnd,bd->bn", samples, z_eeg).argmax(dim=1)
    return samples[torch.arange(len(samples), device=samples.device), best]
