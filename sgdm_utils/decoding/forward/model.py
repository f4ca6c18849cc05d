"""A forward model: which EEG a picture would evoke, how surely, and what EEG says about pictures.

Outputs of the signal space are regressed on picture features with one penalty for each family of
features (banded ridge: the families' weights) and one for each output (its noise over its signal).
That is the posterior mean of a Gaussian model, so the same numbers give the uncertainty of every
prediction, the likelihood of any picture, and the posterior of the features, all in closed form.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from sgdm_utils.decoding.forward.picture_features import PictureFeatures
from sgdm_utils.decoding.forward.signal_space import Responses, SignalSpace
from sgdm_utils.errors import reading
from sgdm_utils.signals.noise import NoiseModel
from sgdm_utils.workflow.formats import read_json

_GALLERY = 4096  # pictures compared at once


class ForwardError(ValueError):
    """A forward model cannot be fitted or used like this: the message says why and what to do."""


@dataclass(frozen=True)
class ForwardModel:
    """Gaussian linear model from picture features to the outputs of a signal space.

    Output j of picture x is ``x @ coefficients[:, j]`` plus an error of the variance that `predict`
    returns; an average of n repetitions adds ``noise_variance[j] / n``.

    Attributes
    ----------
    space : SignalSpace
    coefficients : array of shape (n_features, n_outputs), posterior mean
    directions : array of shape (n_features, rank), right singular vectors of the training
        features, by rising singular value
    shrinkage : array of shape (rank, n_outputs), share of each direction that training has settled
    scale : array of shape (n_outputs,), prior variance of an output for features of length 1
    lack_of_fit : array of shape (n_outputs,), variance that the features cannot explain
    prior_mean, prior_covariance : arrays of shapes (n_features,), (n_features, n_features)
        Of the features of training pictures.
    typical_variance : array of shape (n_outputs,), mean predictive variance over these
    notes : dict, what was chosen and how

    References
    ----------
    Rasmussen & Williams (2006), Gaussian Processes for Machine Learning, ch. 2 (Bayesian linear
    regression). Nunez-Elizalde, Huth & Gallant (2019), NeuroImage 197:482 (banded ridge). Kay et al.
    (2008), Nature 452:352 (identification). Naselaris et al. (2009), Neuron 63:902 (a likelihood
    from an encoding model, and a prior over pictures).
    """

    space: SignalSpace
    coefficients: np.ndarray
    directions: np.ndarray
    shrinkage: np.ndarray
    scale: np.ndarray
    lack_of_fit: np.ndarray
    prior_mean: np.ndarray
    prior_covariance: np.ndarray
    typical_variance: np.ndarray
    notes: dict

    @classmethod
    def fit(
        cls,
        features: np.ndarray,
        responses: Responses,
        lack_of_fit: float = 0.2,
        prior_features: np.ndarray | None = None,
        shared: ForwardModel | None = None,
        notes: dict | None = None,
    ) -> ForwardModel:
        """Regress the answers of one person (or of several, pooled) on picture features.

        Parameters
        ----------
        features : array of shape (n_pictures, n_features)
            Row k is picture k of `measure_responses`; pictures that were not shown are not used.
        responses : Responses
        lack_of_fit : float, at least 0
            Variance that features cannot explain, as a share of each output's signal variance.
        prior_features : array of shape (n, n_features), optional
            Features of all training pictures, shown or not, for the prior of `posterior`; default
            those of the pictures that were shown.
        shared : ForwardModel, optional
            Model of other people. Its answers, with a slope for each output that is measured here,
            are the mean around which this person's own part is fitted.

        Raises
        ------
        ForwardError
            Features with NaN, of a picture that has no row, or too few pictures.
        """
        features = _matrix(features, "features")
        if not 0 <= lack_of_fit < np.inf:
            raise ForwardError(f"lack_of_fit is {lack_of_fit}: give a share of 0 or more")
        if responses.pictures.min() < 0 or responses.pictures.max() >= len(features):
            raise ForwardError(
                f"trials show picture number {int(responses.pictures.max())}, there are features "
                f"of {len(features)} pictures: number the pictures by the rows of `features`"
            )
        space, x, y = responses.space, features[responses.pictures], responses.outputs
        if x.shape[1] > len(x):
            raise ForwardError(
                f"{x.shape[1]} features for {len(x)} pictures with trials: reduce the components "
                f"(picture_features.components_for({len(x)})) or give more pictures"
            )
        # repetitions differ little between training pictures; the harmonic mean keeps the noise power
        n = len(x) / (1.0 / responses.n_repetitions).sum()
        scale, start = space.signal_variance.copy(), np.zeros((x.shape[1], y.shape[1]))
        if shared is not None:
            start, explained = _shared_start(shared, space, x, y)
            scale = scale * (1 - explained)
        left = scale * lack_of_fit
        squared, v = np.linalg.eigh(x.T @ x)
        keep = squared > 1e-13 * squared[-1]  # as exact as products of float64 are
        squared, v = squared[keep], np.ascontiguousarray(v[:, keep])
        gain = scale / (scale * squared[:, None] + space.noise_variance / n + left)
        shrinkage = gain * squared[:, None]
        rest = y if shared is None else y - x @ start
        coefficients = start + v @ (gain * (v.T @ (x.T @ rest)))
        prior = x if prior_features is None else _matrix(prior_features, "prior_features")
        if prior.shape[1] != x.shape[1]:
            raise ForwardError(f"prior_features have {prior.shape[1]} columns, not {x.shape[1]}")
        mean = prior.mean(0)
        centred = prior - mean
        covariance = centred.T @ centred / len(prior)
        told = {"lack_of_fit": lack_of_fit, "n_pictures": len(x), "n_repetitions": float(n)}
        model = cls(
            space, coefficients, v, shrinkage, scale, left, mean, covariance,
            np.zeros_like(left), told | (notes or {}),
        )  # fmt: skip
        some = prior[:: max(1, len(prior) // 2000)]
        object.__setattr__(model, "typical_variance", model.predict(some)[1].mean(0))
        return model

    @property
    def n_features(self) -> int:
        return len(self.coefficients)

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predicted outputs of pictures and their variance, both (n, n_outputs)."""
        features = self._checked(features)
        length = (features**2).sum(1)
        settled = (features @ self.directions) ** 2 @ self.shrinkage
        variance = self.scale * np.maximum(length[:, None] - settled, 0) + self.lack_of_fit
        return features @ self.coefficients, variance

    def evoked(self, features: np.ndarray) -> np.ndarray:
        """Predicted averaged epochs, (n, n_channels, n_times), in the unit of the recording."""
        return self.space.epochs(self.predict(features)[0], center=True)

    def log_likelihood(
        self, outputs: np.ndarray, features: np.ndarray, n_repetitions: float | np.ndarray
    ) -> np.ndarray:
        """Log density of averaged epochs under every picture of a gallery.

        Parameters
        ----------
        outputs : array of shape (n, n_outputs), `space.project` of averaged epochs
        features : array of shape (n_gallery, n_features)
        n_repetitions : float or array of shape (n,), repetitions in each average

        Returns
        -------
        float64 array of shape (n, n_gallery), nats

        Notes
        -----
        With p and v the predicted mean and variance, each column is b' (p / v) - p' (p / v) / 2 and
        the terms of the normalisation, which differ between pictures because v does.
        """
        outputs = self._checked_outputs(outputs)
        features = self._checked(features)
        if not len(features):
            raise ForwardError("the gallery holds no picture")
        counts = _counts(n_repetitions, len(outputs))
        result = np.empty((len(outputs), len(features)))
        constant = len(self.scale) * np.log(2 * np.pi)
        for n in np.unique(counts):
            rows = counts == n
            b = outputs[rows]
            for start in range(0, len(features), _GALLERY):
                mean, variance = self.predict(features[start : start + _GALLERY])
                variance = variance + self.space.noise_variance / n
                precision = 1 / variance
                own = (mean**2 * precision).sum(1) + np.log(variance).sum(1) + constant
                fit = b @ (mean * precision).T - 0.5 * (b**2) @ precision.T
                result[rows, start : start + _GALLERY] = fit - 0.5 * own
        return result

    def posterior(self, outputs: np.ndarray, n_repetitions: float) -> tuple[np.ndarray, np.ndarray]:
        """Gaussian posterior of the picture's features given averaged epochs.

        Parameters
        ----------
        outputs : array of shape (n, n_outputs)
        n_repetitions : float, the same for all

        Returns
        -------
        mean : array of shape (n, n_features)
        covariance : array of shape (n_features, n_features), the same for all epochs
        """
        outputs = self._checked_outputs(outputs)
        n = float(_counts(n_repetitions, 1)[0])
        cross = self.prior_covariance @ self.coefficients
        total = self.coefficients.T @ cross
        total[np.diag_indices_from(total)] += self.typical_variance + self.space.noise_variance / n
        gain = np.linalg.solve(total, cross.T).T
        expected = self.prior_mean @ self.coefficients
        covariance = self.prior_covariance - gain @ cross.T
        return self.prior_mean + (outputs - expected) @ gain.T, (covariance + covariance.T) / 2

    def unexplained(
        self,
        outputs: np.ndarray,
        guess: np.ndarray,
        n_repetitions: float | np.ndarray,
        share: float,
    ) -> np.ndarray:
        """What a guess of the features leaves of averaged epochs, as evidence for a better one.

        Around the guess the picture is Gaussian with `share` of the prior covariance S. Its posterior
        mean is then ``guess + evidence @ S``, and that of anything else that is known of pictures is
        moved by ``evidence @ C``, with C its covariance with the features (`cross_covariance`).

        Parameters
        ----------
        outputs : array of shape (n, n_outputs)
        guess : array of shape (n, n_features), e.g. a mean over the likely pictures of a set
        n_repetitions : float or array of shape (n,)
        share : float, at least 0; with 0 the guess is believed

        Returns
        -------
        float64 array of shape (n, n_features), the evidence
        """
        if not 0 <= share < np.inf:
            raise ForwardError(f"share is {share}: of the prior variance, 0 or more")
        outputs, guess = self._checked_outputs(outputs), self._checked(guess)
        counts = _counts(n_repetitions, len(outputs))
        signal = share * self.coefficients.T @ self.prior_covariance @ self.coefficients
        rest = outputs - guess @ self.coefficients
        evidence = np.empty_like(guess)
        for n in np.unique(counts):
            rows = counts == n
            total = signal + np.diag(self.typical_variance + self.space.noise_variance / n)
            evidence[rows] = np.linalg.solve(total, rest[rows].T).T @ self.coefficients.T
        return share * evidence

    def log_density(
        self,
        pictures: torch.Tensor,
        outputs: np.ndarray | torch.Tensor,
        picture_features: PictureFeatures,
        n_repetitions: float,
    ) -> torch.Tensor:
        """log p(EEG | picture) of pairs, differentiable in the pictures.

        Parameters
        ----------
        pictures : float tensor of shape (n, 3, size, size) in [0, 1]
        outputs : array or tensor of shape (n, n_outputs), averaged epoch i belongs to picture i
        picture_features : PictureFeatures that the model was fitted with
        n_repetitions : float

        Returns
        -------
        tensor of shape (n,), nats
        """
        n = float(_counts(n_repetitions, 1)[0])
        x = picture_features(pictures)
        if x.shape[1] != self.n_features:
            raise ForwardError(f"{x.shape[1]} picture features, the model knows {self.n_features}")
        b = torch.as_tensor(outputs).to(x)
        if b.shape != (len(x), len(self.scale)):
            raise ForwardError(
                f"outputs have shape {tuple(b.shape)}, expected one row of {len(self.scale)} for "
                f"each of {len(x)} pictures"
            )
        part = {k: torch.from_numpy(v).to(x) for k, v in self._arrays().items()}
        settled = (x @ part["directions"]) ** 2 @ part["shrinkage"]
        length = (x**2).sum(1, keepdim=True)
        variance = part["scale"] * (length - settled).clamp(min=0) + part["lack_of_fit"]
        variance = variance + torch.from_numpy(self.space.noise_variance / n).to(x)
        error = b - x @ part["coefficients"]
        return -0.5 * (error**2 / variance + variance.log() + np.log(2 * np.pi)).sum(1)

    def gradient(
        self,
        pictures: torch.Tensor,
        outputs: np.ndarray | torch.Tensor,
        picture_features: PictureFeatures,
        n_repetitions: float,
        scale: float = 1.0,
    ) -> torch.Tensor:
        """`scale` times the gradient of `log_density` in the pixels, shape of `pictures`."""
        if not scale >= 0:
            raise ForwardError(f"scale is {scale}: guidance towards the EEG needs 0 or more")
        with torch.enable_grad():
            x = pictures.detach().requires_grad_(True)
            total = self.log_density(x, outputs, picture_features, n_repetitions).sum()
            return scale * torch.autograd.grad(total, x)[0]

    def save(self, folder: str | Path) -> None:
        """Write `forward.safetensors`, `forward.json` and `noise.npz` to a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        space = {f"space.{k}": getattr(self.space, k) for k in _SPACE}
        arrays = {k: np.ascontiguousarray(v) for k, v in (self._arrays() | space).items()}
        save_file(arrays, folder / "forward.safetensors")
        self.space.noise.save(folder / "noise.npz")
        (folder / "forward.json").write_text(
            json.dumps({"version": 1, "notes": self.notes}, indent=1)
        )

    @classmethod
    def load(cls, folder: str | Path) -> ForwardModel:
        """Read what `save` wrote."""
        folder = Path(folder)
        for name in ("forward.safetensors", "forward.json", "noise.npz"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing: fit the forward model again")
        noise = NoiseModel.load(folder / "noise.npz")
        about = read_json(folder / "forward.json", error=ForwardError)
        with reading(folder / "forward.json", "notes", "Fit it again", ForwardError):
            notes = dict(about["notes"])
        path = folder / "forward.safetensors"
        with reading(path, "a forward model", "Fit it again", ForwardError):
            arrays = load_file(path)
            space = SignalSpace(noise, **{k: arrays[f"space.{k}"] for k in _SPACE})
            return cls(space, notes=notes, **{k: arrays[k] for k in _OWN})

    def _arrays(self) -> dict[str, np.ndarray]:
        return {k: getattr(self, k) for k in _OWN}

    def _checked(self, features: np.ndarray) -> np.ndarray:
        features = _matrix(features, "features")
        if features.shape[1] != self.n_features:
            raise ForwardError(
                f"features have {features.shape[1]} columns, the model was fitted with "
                f"{self.n_features}: transform the pictures with the same PictureFeatures"
            )
        return features

    def _checked_outputs(self, outputs: np.ndarray) -> np.ndarray:
        outputs = _matrix(outputs, "outputs")
        if outputs.shape[1] != len(self.scale):
            raise ForwardError(
                f"outputs have {outputs.shape[1]} columns, the model has {len(self.scale)}: give "
                "space.project(epochs) of this model, not epochs and not another person's outputs"
            )
        return outputs


_OWN = (
    "coefficients", "directions", "shrinkage", "scale", "lack_of_fit", "prior_mean",
    "prior_covariance", "typical_variance",
)  # fmt: skip
_SPACE = (
    "channel_basis", "time_basis", "selected", "signal_variance", "noise_variance", "center",
)  # fmt: skip


def identify(log_likelihood: np.ndarray, own: Sequence[int] | None = None) -> np.ndarray:
    """Rank of the seen picture of each epoch in the gallery, 1 is best; ties get the worst rank.

    Parameters
    ----------
    log_likelihood : array of shape (n, n_gallery)
    own : int sequence of length n, gallery item that was seen; default item i for epoch i

    Raises
    ------
    ForwardError
        A gallery in which the seen pictures are not.
    """
    n, n_gallery = np.shape(log_likelihood)
    own = np.arange(n) if own is None else np.asarray(own)
    if own.shape != (n,) or (n and not (0 <= own.min() and own.max() < n_gallery)):
        raise ForwardError(
            f"{n} epochs and a gallery of {n_gallery}: say which item each epoch saw (`own`), or "
            "give the gallery in the order of the epochs"
        )
    value = np.asarray(log_likelihood)[np.arange(n), own]
    return (np.asarray(log_likelihood) >= value[:, None]).sum(1)


def _shared_start(
    shared: ForwardModel, space: SignalSpace, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of other people's model in this person's outputs, and what they explain here."""
    if shared.n_features != x.shape[1]:
        raise ForwardError("the shared model was fitted with other picture features")
    theirs = shared.space.noise
    if (theirs.n_channels, theirs.n_times) != (space.noise.n_channels, space.noise.n_times):
        raise ForwardError("the shared model has other channels or samples: preprocess both alike")
    start = space.project(shared.space.epochs(shared.coefficients)) + space.center
    told = x @ start
    told, answer = told - told.mean(0), y - y.mean(0)
    # their noise is independent of this person's, so the slope is not inflated by fitting it here;
    # halfway between one slope for each output and one for all
    each = (told * answer).sum(0) / ((told**2).sum(0) + 0.05 * len(x))
    slope = 0.5 * (each + (told * answer).sum() / max((told**2).sum(), 1e-12))
    saved = (2 * slope * told * answer - (slope * told) ** 2).mean(0)
    # no output is believed to be explained whole: 5 % of its variance stay this person's own
    return start * slope, np.clip(saved / space.signal_variance, 0, 0.95)


def _counts(n_repetitions: float | np.ndarray, n: int) -> np.ndarray:
    counts = np.broadcast_to(np.asarray(n_repetitions, np.float64), (n,))
    if not (counts > 0).all():
        raise ForwardError(f"n_repetitions {n_repetitions}: an average has at least one")
    return counts


def _matrix(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 2:
        raise ForwardError(f"{name} have shape {values.shape}: a table (rows, columns) is expected")
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values).all(1))[0, 0])
        raise ForwardError(f"row {row} (from 0) of {name} holds NaN or infinity")
    return values
