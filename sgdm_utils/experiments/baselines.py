"""Rivals of the generator under one budget: conditional VAE and GAN, ridge regression, the ruler.

All networks are trained by `train`, for a stretch of processor time instead of a number of steps, so
that what is slow has fewer steps. VAE and GAN draw with the same `Painter` from the same conditions
as the diffusion model: embedding, category, structure map, layout of colours.

References
----------
Sohn, Lee & Yan (2015), NeurIPS (conditional VAE). Lim & Ye (2017), arXiv:1705.02894 (hinge loss);
Miyato & Koyama (2018), ICLR (projection discriminator); Miyato et al. (2018), ICLR (spectral norm);
Isola et al. (2017), CVPR (reconstruction beside the adversary). Perez et al. (2018), AAAI (FiLM).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import SVC
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from sgdm_utils.generation.conditioning import guided_colours
from sgdm_utils.stimuli.maps import outline_features
from sgdm_utils.workflow import artifacts, paths

Tensors = Mapping[str, torch.Tensor]
WARMUP = 10  # steps


@dataclass(frozen=True)
class Training:
    """What a training cost: seconds (see `clock`), steps, trained parameters."""

    seconds: float
    n_steps: int
    n_parameters: int


def clock(device: torch.device | str = "cpu") -> float:
    """Seconds of processor time of this process, all threads together; on a card, of the wall.

    Processor time does not run while other programs have the cores, so a busy machine takes longer
    and trains as much.
    """
    if torch.device(device).type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def count(*modules: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for m in modules for p in m.parameters() if p.requires_grad)


def train(
    losses: Sequence[tuple[nn.Module, Callable[[], torch.Tensor]]],
    seconds: float,
    lr: float,
    device: torch.device | str = "cpu",
    weight_decay: float = 0.01,
    ema_decay: float = 0.0,
) -> Training:
    """Take steps of AdamW until the time is over; the rate falls by half a cosine of the time spent.

    Parameters
    ----------
    losses : sequence of (module, function that gives its loss)
        In every step each module moves along its own loss, in this order (a critic, then a painter).
    seconds : float above 0, see `clock`; three steps are taken at least
    lr : float, peak learning rate
    ema_decay : float, of the moving average that the *last* module ends with; 0 for none

    Raises
    ------
    ValueError
        No time, or a loss that is not finite: names the step and what to do.
    """
    if not seconds > 0:
        raise ValueError(f"a training of {seconds} s: give it a time above 0")
    betas = (0.9, 0.95)
    optimizers = [
        torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=weight_decay, betas=betas)
        for module, _ in losses
    ]
    last = losses[-1][0]
    average = EMAModel(last.parameters(), decay=ema_decay) if ema_decay else None
    began, spent, n_steps = clock(device), 0.0, 0
    while spent < seconds or n_steps < 3:
        share = min(spent / seconds, 1.0)
        rate = lr * min(1.0, (n_steps + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * share))
        for (module, loss_of), optimizer in zip(losses, optimizers, strict=True):
            loss = loss_of()
            if not loss.isfinite():
                raise ValueError(
                    f"the loss of {type(module).__name__} is {loss.item()} in step {n_steps}: train "
                    f"with a lower learning rate than {lr:g}"
                )
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
        if average is not None:
            average.step(last.parameters())
        n_steps += 1
        spent = clock(device) - began
    if average is not None:
        average.copy_to(last.parameters())
    return Training(spent, n_steps, count(*(module for module, _ in losses)))


class Reader(nn.Module):
    """An EEG encoder of any kind, and one linear layer from its features to what is decoded."""

    def __init__(self, encoder: nn.Module, n_features: int, n_outputs: int) -> None:
        super().__init__()
        self.encoder, self.outlet = encoder, nn.Linear(n_features, n_outputs)

    def forward(
        self, eeg: torch.Tensor, subject: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(batch, n_outputs) for eeg (batch, n_chans, n_times) and subject (batch,)."""
        return self.outlet(self.encoder(eeg, subject, mask=mask))


class FilmBlock(nn.Module):
    """Two convolutions whose features are scaled and shifted by a vector, added to their input."""

    def __init__(self, width: int, vector: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(8, width) for _ in range(2)])
        self.convolutions = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(2)])
        self.film = nn.Linear(vector, 2 * width)

    def forward(self, x: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        scale, shift = self.film(vector)[..., None, None].chunk(2, dim=1)
        h = self.convolutions[0](F.silu(self.norms[0](x)))
        return x + self.convolutions[1](F.silu(self.norms[1](h) * (1 + scale) + shift))


class Painter(nn.Module):
    """Draws a picture in one pass from conditions and a random vector.

    Parameters
    ----------
    size : int, pixels per side, a multiple of 2 * fold
    embed_dim, n_categories : int, lengths of embedding and category probabilities
    n_random : int, length of the random vector
    width : int, feature channels, a multiple of 8
    fold : int, pixels per side of the cells it works on
    guided : bool
        True: start from the colours brought onto the lines of the map in closed form, which the
        diffusion model starts from, too, and learn what that lacks. False: start from nothing.
    """

    def __init__(
        self,
        size: int,
        embed_dim: int,
        n_categories: int,
        n_random: int = 32,
        width: int = 48,
        fold: int = 4,
        guided: bool = True,
    ) -> None:
        super().__init__()
        if size % (2 * fold):
            raise ValueError(f"pictures of {size} pixels: a multiple of {2 * fold} is needed")
        self.n_random, self.fold, self.guided = n_random, fold, guided
        vector = 4 * width
        self.meaning = nn.Sequential(
            nn.Linear(embed_dim + n_categories + n_random, vector), nn.SiLU(), nn.Linear(vector, vector), nn.SiLU()
        )  # fmt: skip
        n_inputs = 2 * fold**2 + 3 + 3 * fold**2 * guided
        self.inlet = nn.Conv2d(n_inputs, width, 3, padding=1)
        self.fine = FilmBlock(width, vector)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.coarse = nn.ModuleList([FilmBlock(2 * width, vector) for _ in range(2)])
        self.up = nn.Conv2d(2 * width, width, 1)
        self.last = FilmBlock(width, vector)
        self.outlet = nn.Conv2d(width, 3 * fold**2, 3, padding=1)
        nn.init.normal_(self.outlet.weight, std=1e-3)
        nn.init.zeros_(self.outlet.bias)

    def forward(self, conditions: Tensors, random: torch.Tensor) -> torch.Tensor:
        """Pictures (batch, 3, size, size), about [0, 1].

        Parameters
        ----------
        conditions : embedding (batch, embed_dim), category (batch, n_categories), maps (batch, 2,
            size, size), colours (batch, 3, grid, grid)
        random : tensor of shape (batch, n_random)
        """
        maps, colours = conditions["maps"], conditions["colours"]
        folded = F.pixel_unshuffle(2 * maps - 1, self.fold)
        parts = [folded, F.interpolate(colours, size=folded.shape[-2:], mode="bilinear")]
        start = torch.full_like(maps[:, :1], 0.5)
        if self.guided:
            start = guided_colours(colours, maps[:, 0]).clamp(0, 1)
            parts.append(F.pixel_unshuffle(2 * start - 1, self.fold))
        vector = self.meaning(
            torch.cat([conditions["embedding"], conditions["category"], random], dim=1)
        )
        fine = self.fine(self.inlet(torch.cat(parts, dim=1)), vector)
        coarse = self.down(fine)
        for block in self.coarse:
            coarse = block(coarse, vector)
        fine = self.last(fine + F.interpolate(self.up(coarse), scale_factor=2.0), vector)
        return start + F.pixel_shuffle(self.outlet(fine), self.fold)


class PictureCode(nn.Module):
    """Recognition network of the conditional VAE: picture and map to a Gaussian over random vectors."""

    def __init__(self, n_random: int = 32, width: int = 48, fold: int = 4) -> None:
        super().__init__()
        self.fold = fold
        self.layers = nn.Sequential(
            nn.Conv2d(5 * fold**2, width, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.SiLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, 2 * n_random),
        )  # fmt: skip

    def forward(self, pictures: torch.Tensor, maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Mean and log variance, (batch, n_random) each, of pictures in [0, 1]."""
        both = F.pixel_unshuffle(2 * torch.cat([pictures, maps], dim=1) - 1, self.fold)
        mean, log_variance = self.layers(both).chunk(2, dim=1)
        return mean, log_variance.clamp(-10, 10)


class Critic(nn.Module):
    """Discriminator of the conditional GAN: does this patch, with these conditions, look drawn?

    A score for each patch, with the product of features and embedded meaning (projection), under
    spectral normalisation.
    """

    def __init__(self, embed_dim: int, n_categories: int, width: int = 48, fold: int = 4) -> None:
        super().__init__()
        self.fold = fold
        self.layers = nn.Sequential(
            spectral_norm(nn.Conv2d(5 * fold**2 + 3, width, 3, padding=1)), nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)), nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(2 * width, 2 * width, 3, padding=1)), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.score = spectral_norm(nn.Conv2d(2 * width, 1, 1))
        self.meaning = spectral_norm(nn.Linear(embed_dim + n_categories, 2 * width))

    def forward(self, pictures: torch.Tensor, conditions: Tensors) -> torch.Tensor:
        """Scores (batch, patches, patches), higher for what looks like a true picture."""
        both = torch.cat([pictures, conditions["maps"]], dim=1)
        folded = F.pixel_unshuffle(2 * both - 1, self.fold)
        colours = F.interpolate(conditions["colours"], size=folded.shape[-2:], mode="bilinear")
        features = self.layers(torch.cat([folded, 2 * colours - 1], dim=1))
        meaning = torch.cat([conditions["embedding"], conditions["category"]], dim=1)
        projected = torch.einsum("bchw,bc->bhw", features, self.meaning(meaning))
        return self.score(features)[:, 0] + projected / features.shape[1]


@torch.no_grad()
def paint(
    painter: Painter, conditions: Mapping[str, ArrayLike], seed: int, spread: float = 1.0
) -> np.ndarray:
    """Pictures from conditions, as they would be stored.

    Parameters
    ----------
    conditions : arrays of (n, ...), see `Painter.forward`; other entries are not used
    seed : int, item i draws its own random vector from it, whatever the batch
    spread : float, standard deviation of the random vectors; 0 for the most likely one

    Returns
    -------
    uint8 array of shape (n, size, size, 3)
    """
    device = next(painter.parameters()).device
    names = ("embedding", "category", "maps", "colours")
    batch = {
        name: torch.as_tensor(np.asarray(conditions[name]), dtype=torch.float32, device=device)
        for name in names
    }
    generators = (
        torch.Generator().manual_seed(100_000 * seed + i) for i in range(len(batch["maps"]))
    )
    random = torch.stack([torch.randn(painter.n_random, generator=g) for g in generators])
    pictures = painter(batch, spread * random.to(device)).clamp(0, 1)
    return np.round(255 * pictures.movedim(1, -1).cpu().numpy()).astype(np.uint8)


def ridge_by_validation(
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    penalties: Sequence[float],
) -> Ridge:
    """Ridge regression from epochs to a target, with the penalty of least validation error.

    Parameters
    ----------
    train, val : pairs of arrays, epochs (n, n_features) and targets (n, n_outputs)
    penalties : sequence of float, shares of the mean variance of the epochs times their number
    """
    if not len(penalties):
        raise ValueError("no penalty to choose from: give at least one")
    unit = float(train[0].var(axis=0).sum())
    fits = [Ridge(alpha=share * unit).fit(*train) for share in penalties]
    errors = [float(((fit.predict(val[0]) - val[1]) ** 2).mean()) for fit in fits]
    return fits[int(np.argmin(errors))]


def category_ruler(
    pictures: np.ndarray,
    category: np.ndarray,
    val_pictures: np.ndarray,
    val_category: np.ndarray,
    clip_of: Callable[[np.ndarray], np.ndarray],
) -> Callable[[np.ndarray], np.ndarray]:
    """What names the category of a picture: the ruler of notebook 06.

    A classifier of outlines and one of CLIP features are fitted on real training pictures; the one
    that names the *seen validation* pictures better is returned, as a function of uint8 pictures.
    """
    kinds = ((SVC(C=10.0), outline_features), (LogisticRegression(C=0.3, max_iter=200), clip_of))
    best, ruler = -1.0, None
    for classifier, features_of in kinds:
        classifier.fit(features_of(pictures), category)
        quality = classifier.score(features_of(val_pictures), val_category)
        if quality > best:
            best, ruler = quality, (classifier, features_of)
    classifier, features_of = ruler
    return lambda p: classifier.predict(features_of(p))


def of_other_seeds(study: str, stage: str, seeds: Sequence[int]) -> dict[int, artifacts.Artifact]:
    """Results of a joint stage for those of `seeds` that were trained; nothing is an error."""
    opened = {}
    for seed in seeds:
        try:
            opened[seed] = artifacts.read_artifact(study, paths.JOINT, stage, seed)
        except artifacts.ArtifactError:
            continue
    return opened
