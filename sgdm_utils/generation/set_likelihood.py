"""How likely is an EEG epoch under every picture of a set? Asked often, so what stays is kept."""

from __future__ import annotations

import numpy as np
import torch

from sgdm_utils.decoding.forward import posterior as forward_model

#: Parts of a forward model that are kept for each person.
ARRAYS = (
    "coefficients", "directions", "shrinkage", "scale", "lack_of_fit", "typical_variance",
)  # fmt: skip


class SetLikelihood:
    """Likelihoods of epochs under the pictures of a component that holds them and forward models.

    What the pictures say does not depend on the EEG, so it is computed once for the last person and
    for as many numbers of trials as `n_kept` says.
    """

    def labelled_features(self) -> np.ndarray:
        """Features of the set with its labels (n_gallery, n_features + n_categories)."""
        config, features = self.config, self.gallery_features.cpu().numpy()
        return forward_model.with_category(
            features, self.category.cpu().numpy(), len(config.categories), config.category_share
        )

    def log_likelihood(
        self,
        eeg: torch.Tensor | np.ndarray,
        subject: str,
        n_averaged: int,
        labelled: bool = False,
    ) -> torch.Tensor:
        """Log density of averaged epochs under every picture of the set.

        Parameters
        ----------
        eeg : float array of shape (batch, n_channels, n_times), as notebook 01 leaves it
        subject : str
        n_averaged : int, trials in each average
        labelled : bool, ask the model that uses the labels of the set, if there is one

        Returns
        -------
        float64 tensor of shape (batch, n_gallery), up to a constant for each epoch

        Raises
        ------
        ValueError
            For somebody without a model, epochs of another shape or with NaN, no number of trials.
        """
        outputs = self._outputs(eeg, subject, n_averaged)
        return self._log_likelihood(outputs, subject, n_averaged, labelled)

    def _outputs(
        self, eeg: torch.Tensor | np.ndarray, subject: str, n_averaged: int
    ) -> torch.Tensor:
        """Outputs of the model of a person (batch, n_outputs), float64; see `log_likelihood`."""
        if subject not in self.config.subjects:
            raise ValueError(
                f"no forward model of {subject!r}: there are models of "
                f"{', '.join(self.config.subjects)}. The networks decode somebody unseen: "
                "conditions='encoder'"
            )
        if n_averaged is None or not n_averaged >= 1:
            raise ValueError(
                f"n_averaged is {n_averaged}: say how many trials each epoch is the average of (1 "
                "for single trials), because that is how certain it is"
            )
        eeg = torch.as_tensor(eeg, device=self.gallery.device).double()
        expected = (len(self.config.channels), self.config.n_times)
        if eeg.ndim != 3 or tuple(eeg.shape[1:]) != expected or not len(eeg):
            raise ValueError(
                f"eeg has shape {tuple(eeg.shape)}, the forward model was fitted on (batch, "
                f"{expected[0]}, {expected[1]}): all electrodes in the order of `channels`"
            )
        if not torch.isfinite(eeg).all():
            rows = (~torch.isfinite(eeg)).flatten(1).any(1).nonzero()[:5, 0].tolist()
            raise ValueError(f"eeg holds NaN or infinity, first in epochs {rows}")
        part = self._model(self.config.subjects.index(subject))
        return (part["left"] @ eeg @ part["right"]).flatten(1)[:, part["selected"]] - part["center"]

    def _log_likelihood(
        self, outputs: torch.Tensor, subject: str, n_averaged: int, labelled: bool
    ) -> torch.Tensor:
        labelled = labelled and self.config.category_share > 0
        weighted, precision, constant = self._expected(subject, labelled, n_averaged)
        outputs = outputs.float()
        fit = outputs @ weighted.T - 0.5 * outputs**2 @ precision.T
        return fit.double() - 0.5 * constant

    def _features(self, labelled: bool) -> torch.Tensor:
        if not labelled:
            return self.gallery_features
        if self._kept_features is None:
            features = torch.from_numpy(self.labelled_features())
            self._kept_features = features.to(self.gallery_features)
        return self._kept_features

    def _expected(
        self, subject: str, labelled: bool, n_averaged: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What each picture of the set says of any epoch: weighted mean, precision, constant.

        It does not depend on the EEG and takes ten times as long as what does, so it is kept for the
        last person and a few numbers of trials: a stream is decoded epoch by epoch.
        """
        self._turn_to(subject)
        key = labelled, float(n_averaged)
        if key not in self._kept:
            if labelled not in self._predicted:
                self._predicted[labelled] = self._predict(subject, labelled)
            mean, variance = self._predicted[labelled]
            noise = self._model(self.config.subjects.index(subject))["noise_variance"]
            variance = variance + (noise / n_averaged).float()
            precision = variance.reciprocal()
            weighted = mean * precision
            constant = (weighted * mean + variance.log()).sum(1, dtype=torch.float64)
            self._kept[key] = weighted, precision, constant
            while len(self._kept) > self.n_kept:
                self._kept.pop(next(iter(self._kept)))
        return self._kept[key]

    def _total_variance(
        self, subject: str, labelled: bool, n_averaged: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Covariance of outputs around a weighted mean of the set, factorised (`ForwardModel.unexplained`)."""
        self._turn_to(subject)
        key = labelled, float(n_averaged)
        if key not in self._kept_totals:
            part = self._model(self.config.subjects.index(subject), labelled)
            variance = part["typical_variance"] + part["noise_variance"] / n_averaged
            total = self.config.linear_share * part["signal"] + variance.diag()
            self._kept_totals[key] = torch.linalg.lu_factor(total)
            while len(self._kept_totals) > self.n_kept:
                self._kept_totals.pop(next(iter(self._kept_totals)))
        return self._kept_totals[key]

    def _in_double(self, name: str) -> torch.Tensor:
        """A buffer in double precision: turning it takes longer than using it for one epoch."""
        if name not in self._kept_double:
            self._kept_double[name] = getattr(self, name).double()
        return self._kept_double[name]

    def _turn_to(self, subject: str) -> None:
        """What is kept is kept for one person."""
        if self._kept_subject != subject:
            self._forget()
            self._kept_subject = subject

    def _predict(self, subject: str, labelled: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of the outputs of each picture of the set, float32 (n_gallery, n_outputs)."""
        part, means, variances = self._model(self.config.subjects.index(subject), labelled), [], []
        for x in self._features(labelled).double().split(512):
            settled = (x @ part["directions"]) ** 2 @ part["shrinkage"]
            length = (x**2).sum(1, keepdim=True)
            variance = part["scale"] * (length - settled).clamp(min=0) + part["lack_of_fit"]
            means.append((x @ part["coefficients"]).float())
            variances.append(variance.float())
        return torch.cat(means), torch.cat(variances)

    def _forget(self) -> None:
        """Other weights, another device or precision: nothing that was kept holds any more."""
        self._kept_subject: str | None = None
        self._predicted: dict[bool, tuple] = {}
        self._kept: dict[tuple[bool, float], tuple] = {}
        self._kept_totals: dict[tuple[bool, float], tuple] = {}
        self._kept_double: dict[str, torch.Tensor] = {}
        self._kept_features: torch.Tensor | None = None
        self._models: dict[tuple[int, bool], dict[str, torch.Tensor]] = {}

    def _apply(self, *args, **kwargs):
        self._forget()
        return super()._apply(*args, **kwargs)

    def load_state_dict(self, *args, **kwargs):
        self._forget()
        return super().load_state_dict(*args, **kwargs)

    def _model(self, index: int, labelled: bool = False) -> dict[str, torch.Tensor]:
        if (index, labelled) in self._models:
            return self._models[index, labelled]
        space = ("left", "right", "center", "noise_variance")
        found = {name: getattr(self, f"{name}_{index}").double() for name in space}
        prefix = "labelled_" if labelled else ""
        for name in (*ARRAYS, "signal"):
            found[name] = getattr(self, f"{prefix}{name}_{index}").double()
        self._models = {
            (index, labelled): found | {"selected": getattr(self, f"selected_{index}")}
        } | {key: part for key, part in self._models.items() if key[0] == index}
        return self._models[index, labelled]
