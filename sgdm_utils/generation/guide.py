"""What pulls a sample on its way: towards a category, or towards pictures that explain the EEG."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

#: Below this share of signal power there is nothing to classify, and no direction to be had.
LEAST_SIGNAL = 0.01


class LatentClassifier(ModelMixin, ConfigMixin):
    """Small convolutional classifier of noisy latents that is told the noise level by the timestep.

    Parameters
    ----------
    latent_channels, n_categories : int
    width : int, feature channels, a multiple of 8

    References
    ----------
    Dhariwal & Nichol (2021), arXiv:2105.05233, section 4: a classifier trained on noisy samples.
    """

    @register_to_config
    def __init__(self, latent_channels: int = 16, n_categories: int = 16, width: int = 64) -> None:
        super().__init__()
        self.frequencies = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimestepEmbedding(width, 2 * width)
        self.stem = nn.Sequential(nn.Conv2d(latent_channels, width, 3, padding=1), nn.SiLU())
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.body = nn.Sequential(
            nn.GroupNorm(8, 2 * width), nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.GroupNorm(8, 2 * width), nn.SiLU(),
        )  # fmt: skip
        # average and maximum over cells: a small object must not drown in its background
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(4 * width, n_categories))

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Logits (batch, n_categories) of latents (batch, latent_channels, grid, grid)."""
        time = self.time(self.frequencies(timesteps).to(latents.dtype))
        features = self.body(self.down(self.stem(latents)) + time[:, :, None, None])
        return self.head(torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1))


def category_direction(
    classifier: LatentClassifier,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    category: torch.Tensor,
) -> torch.Tensor:
    """Gradient of the expected log-probability of the category with respect to noisy latents.

    Parameters
    ----------
    latents : tensor of shape (batch, latent_channels, grid, grid), noisy
    timesteps : long tensor of shape (batch,)
    category : tensor of shape (batch, n_categories), probabilities; a sure category has a one

    Returns
    -------
    tensor shaped as `latents`, gradient of sum_c category_c * log p(c | latents, timesteps)
    """
    with torch.enable_grad():
        x = latents.detach().to(classifier.dtype).requires_grad_(True)
        log_p = classifier(x, timesteps).float().log_softmax(dim=1)
        (gradient,) = torch.autograd.grad((log_p * category.to(log_p)).sum(), x)
    return gradient.to(latents.dtype)


def guided_velocity(
    velocity: torch.Tensor, direction: torch.Tensor, alpha_bar: torch.Tensor, scale: float
) -> torch.Tensor:
    """Velocity after classifier guidance.

    The score of p(x) p(c | x)^scale adds scale * direction to that of p(x). By Tweedie's formula the
    estimate of the clean latent moves by scale * (1 - alpha_bar) / sqrt(alpha_bar) * direction, and
    the velocity, at the same noisy latent, by that over -sqrt(1 - alpha_bar) ::

        v - scale * sqrt((1 - alpha_bar) / alpha_bar) * direction

    In almost pure noise (alpha_bar below `LEAST_SIGNAL`) the velocity is returned as it is.

    Parameters
    ----------
    velocity, direction : tensors of shape (batch, latent_channels, grid, grid)
    alpha_bar : scalar tensor, share of signal power in the noisy latents
    scale : float, at least 0

    References
    ----------
    Dhariwal & Nichol (2021), arXiv:2105.05233, algorithm 2 (there for predicted noise).
    """
    if alpha_bar < LEAST_SIGNAL or scale == 0:
        return velocity
    return velocity - scale * ((1 - alpha_bar) / alpha_bar).sqrt() * direction


def likelihood_velocity(
    velocity: torch.Tensor,
    noisy: torch.Tensor,
    alpha_bar: torch.Tensor,
    residual_std: float,
    decode: Callable[[torch.Tensor], torch.Tensor],
    log_density: Callable[[torch.Tensor], torch.Tensor],
    scale: float,
) -> torch.Tensor:
    """Velocity after guidance by log p(EEG | picture), through the decoder of the autoencoder.

    Given a noisy latent the clean one is about Gaussian around its estimate, with the variance
    ``s^2 (1 - alpha_bar) / (alpha_bar s^2 + 1 - alpha_bar)`` of what the conditions leave open (see
    `networks.velocity`). Its mean given the EEG as well lies by that variance times the gradient of
    the log-density further; the velocity moves by that over ``-sqrt(1 - alpha_bar)``.

    Parameters
    ----------
    velocity, noisy : tensors of shape (batch, latent_channels, grid, grid)
    alpha_bar : scalar tensor
    residual_std : float, s
    decode : latents to pictures (batch, 3, size, size) in [0, 1], differentiable
    log_density : pictures to a tensor of shape (batch,), e.g. `ForwardModel.log_density` of the
        epochs of the batch
    scale : float, at least 0

    References
    ----------
    Chung et al. (2023), arXiv:2209.14687 (posterior sampling with a measurement model).
    """
    a, variance = alpha_bar, residual_std**2
    estimate = a.sqrt() * noisy - (1 - a).sqrt() * velocity
    with torch.enable_grad():
        x = estimate.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(log_density(decode(x)).sum(), x)
    variance = variance * (1 - a) / (a * variance + 1 - a)
    return velocity - scale * variance / (1 - a).sqrt() * gradient.to(velocity)
