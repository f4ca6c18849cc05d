"""The agreed image metrics as torchmetrics classes: fed in batches, on any device.

Use them through `sgdm_utils.metrics.suite`.

`update(pred, target)` takes float RGB in [0, 1]: targets of shape (n, 3, height, width) and as many
reconstructions, or `(n, n_samples, 3, height, width)` for several samples of each picture; scores are
averaged over the samples of a picture, then over pictures. Pictures are not kept: picture metrics
keep one score per picture, feature metrics the features of both sides. `result()` gives the scores
per picture, from which intervals and tests are made, and the chance level where there is one.

References
----------
The protocol: see `sgdm_utils.metrics.pixels`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torchmetrics import Metric

from sgdm_utils.metrics import pixels
from sgdm_utils.metrics.networks import Precision, autocast, find_weights, read_state
from sgdm_utils.metrics.protocol import LPIPS_TRUNKS, Result, TrunkSpec


class SuiteMetric(Metric):
    """What all metrics of the suite have in common."""

    is_differentiable = False
    full_state_update = False

    def result(self) -> Result:
        """Scores, their mean, n and chance level, of all processes together."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._result()

    def compute(self) -> Tensor:
        """The value alone, float64."""
        return torch.tensor(self._result().value, dtype=torch.float64, device=self.device)

    def _result(self) -> Result:
        raise NotImplementedError


class PictureMetric(SuiteMetric):
    """A score of each pair of pictures, from their pixels."""

    scores: list[Tensor]

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.add_state("scores", [], dist_reduce_fx="cat")

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Score a batch.

        Raises
        ------
        TypeError, ValueError
            See `check_batch`.
        """
        pred, target = check_batch(pred, target)
        scores = torch.as_tensor(self._score(pred, target), dtype=torch.float64)
        self.scores.append(scores.mean(1).to(self.device))

    def _score(self, pred: Tensor, target: Tensor) -> np.ndarray | Tensor:
        """Scores of shape (n, n_samples), by default those of the class's `function`."""
        n, n_samples = pred.shape[:2]
        real = target.repeat_interleave(n_samples, 0)
        return self.function(real, pred.flatten(0, 1)).reshape(n, n_samples)

    def _result(self) -> Result:
        items = gathered(self.scores).tolist()
        return Result(float(np.mean(items)), len(items), items)


class PixCorr(PictureMetric):
    """`pixels.pixcorr`: correlation of all pixels at 425 x 425; constant pictures are refused."""

    higher_is_better, function = True, staticmethod(pixels.pixcorr)


class SSIM(PictureMetric):
    """`pixels.ssim`: structural similarity of the gray pictures at 425 x 425."""

    higher_is_better, function = True, staticmethod(pixels.ssim)


class MSE(PictureMetric):
    """`pixels.mse`: mean squared difference at 256 x 256."""

    higher_is_better, function = False, staticmethod(pixels.mse)


class LPIPS(PictureMetric):
    """LPIPS distance v0.1 at 256 x 256, lower is better.

    The package lpips brings its linear heads but not the ImageNet trunk. The layers of a target are
    computed once for all its samples, which halves the work.

    Parameters
    ----------
    net : "alex" or "vgg"
    trunk_weights : path, optional; see `networks.find_weights`
    precision : "float32" or "bfloat16", of the trunk

    Raises
    ------
    WeightsNotAvailable, FileNotFoundError, ValueError

    References
    ----------
    Zhang et al., CVPR (2018).
    """

    higher_is_better = False

    def __init__(
        self,
        net: Literal["alex", "vgg"] = "alex",
        trunk_weights: str | Path | None = None,
        precision: Precision = "float32",
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        if (spec := LPIPS_TRUNKS.get(f"lpips_{net}")) is None:
            raise ValueError(f"net {net!r} is unknown, expected alex or vgg")
        self.network = _lpips_network(net, find_weights(spec, trunk_weights), spec)
        self.precision = precision

    @torch.no_grad()
    def _score(self, pred: Tensor, target: Tensor) -> Tensor:
        scores = torch.empty(pred.shape[:2], dtype=torch.float64)
        for i, (real, samples) in enumerate(zip(target, pred, strict=True)):
            real_layers = self._layers(real[None])
            for start in range(0, len(samples), 4):
                part = slice(start, start + 4)
                layers = zip(
                    self.network.lins, real_layers, self._layers(samples[part]), strict=True
                )
                distance = sum(lin((a - b).square()).mean((1, 2, 3)) for lin, a, b in layers)
                scores[i, part] = distance.double().cpu()
        return scores

    def _layers(self, pictures: Tensor) -> list[Tensor]:
        import lpips

        x = pixels.resized(pictures.to(self.device).float(), pixels.PROTOCOL_SIZE)
        with autocast(self.device, self.precision):
            outputs = self.network.net(self.network.scaling_layer(2 * x - 1))
        return [lpips.normalize_tensor(output.float()) for output in outputs]


def check_batch(pred: ArrayLike, target: ArrayLike | None = None) -> tuple[Tensor, Tensor | None]:
    """Check a batch and give the reconstructions their axis of samples.

    Returns
    -------
    pred : float tensor of shape (n, n_samples, 3, height, width)
    target : float tensor of shape (n, 3, height, width), None if there was none

    Raises
    ------
    TypeError
        8-bit pictures.
    ValueError
        Not in [0, 1], not finite, of the wrong shape, or more of the one than of the other.
    """
    pred = torch.as_tensor(pred)
    if pred.ndim not in (4, 5):
        raise ValueError(
            f"pred: shape {tuple(pred.shape)}, expected (n, 3, height, width) or "
            "(n, n_samples, 3, height, width)"
        )
    shape = pred.shape[:-3] if pred.ndim == 5 else (len(pred), 1)
    if pred.ndim == 5:
        pred = pred.flatten(0, 1)
    pred = pixels.check_pictures(pred, "pred").unflatten(0, shape)
    if target is None:
        return pred, None
    target = pixels.check_pictures(target, "target")
    if len(pred) != len(target):
        raise ValueError(f"{len(pred)} reconstructions but {len(target)} targets: pair them")
    return pred, target


def gathered(state: list[Tensor] | Tensor) -> Tensor:
    """A state as one tensor; after exchange between processes it already is one."""
    if torch.is_tensor(state):
        return state
    if not state:
        raise ValueError("no picture was given: call update first")
    return torch.cat(state)


def _lpips_network(net: str, path: Path, spec: TrunkSpec) -> torch.nn.Module:
    """LPIPS with the trunk in `path`."""
    import lpips  # imports torchvision's models: a second that other metrics need not pay

    state = read_state(path, spec)
    # pnet_rand builds the trunk without a download; its random weights are all replaced below,
    # and fork_rng keeps them from advancing the caller's random state.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        network = lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False)
    # lpips calls feature layer i "slice<k>.<i>", torchvision calls it "features.<i>".
    names = {name: "features." + name.split(".", 1)[1] for name in network.net.state_dict()}
    missing = sorted(set(names.values()) - set(state))
    if missing:
        raise ValueError(f"LPIPS trunk {path} is not a torchvision {net}: it lacks {missing[:4]}")
    network.net.load_state_dict({name: state[source] for name, source in names.items()})
    # colours beside one another are a fifth faster in 32 bits, a quarter in 16
    return network.eval().to(memory_format=torch.channels_last)
