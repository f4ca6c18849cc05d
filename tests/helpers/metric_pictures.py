"""Drawn pictures, slow references and small networks that several tests of metrics use."""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import save_file
from torchvision.models import alexnet, vgg16
from torchvision.transforms.functional import InterpolationMode, resize

from sgdm_utils.metrics import networks


class Pooled(torch.nn.Module):
    """A network that is quick and not linear: means of squares over cells of 4 x 4 pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(x.square(), 4).flatten(1)


def draw_pictures(n: int, size: int = 64, seed: int = 0) -> np.ndarray:
    """Discs on gradients with a little noise: flat areas, edges and texture in one picture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    pictures = np.empty((n, 3, size, size), dtype=np.float32)
    for picture in pictures:
        centre, radius = rng.uniform(0.3, 0.7, 2), rng.uniform(0.1, 0.3)
        disc = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
        for channel in picture:
            channel[:] = np.where(disc, rng.random(), rng.random() * x)
    pictures += (
        0.1 * rng.random(pictures.shape, dtype=np.float32) * (rng.random((n, 1, 1, 1)) < 0.5)
    )
    return np.clip(pictures, 0, 1)


def resize_as_agreed(pictures: np.ndarray, *sides: int) -> torch.Tensor:
    """The steps of the protocol with torchvision, in float32, colours and all."""
    out = torch.from_numpy(pictures)
    for side in sides:
        out = resize(out, [side, side], InterpolationMode.BILINEAR, antialias=True)
    return out


def two_way_by_loops(real: np.ndarray, recon: np.ndarray) -> list[float]:
    scores = []
    for j in range(len(recon)):
        own = np.corrcoef(real[j], recon[j])[0, 1]
        wins = 0
        for i in range(len(real)):
            # other reals that are exact copies of real j tie by definition, whatever the rounding
            if i != j and not np.array_equal(real[i], real[j]):
                wins += np.corrcoef(real[i], recon[j])[0, 1] < own
        scores.append(wins / (len(real) - 1))
    return scores


def quick_trunk(name: str = "pooled", text: object = None) -> networks.Trunk:
    return networks.Trunk(name, Pooled(), 16, text=text)


def trunk_of_lpips(net: str) -> dict[str, torch.Tensor]:
    """Random weights of the layers that are used, without the large ones behind them."""
    with torch.device("meta"):
        layers = {"alex": alexnet, "vgg": vgg16}[net]().features.state_dict()
    generator = torch.Generator().manual_seed(1)
    return {
        f"features.{n}": 0.03 * torch.randn(value.shape, generator=generator)
        for n, value in layers.items()
    }


def save_alexnet(path):
    save_file(trunk_of_lpips("alex"), path)
    return path
