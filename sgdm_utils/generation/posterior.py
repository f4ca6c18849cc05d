"""From EEG to what the generator is told by a forward model and Bayes' rule, without a network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch.nn import functional as F

from sgdm_utils.decoding.forward import ForwardModel
from sgdm_utils.decoding.forward import posterior as forward_model
from sgdm_utils.generation.conditioning import two_colour_layout
from sgdm_utils.generation.decoder import Decoded

_ARRAYS = (
    "coefficients", "directions", "shrinkage", "scale", "lack_of_fit", "typical_variance",
)  # fmt: skip
_MOVED = ("gallery", "silhouettes", "colours")  # by what the averages leave unexplained


class EEGPosterior(ModelMixin, ConfigMixin):
    """Forward models of several people, and a set of pictures whose weights EEG decides.

    The prior is the set (training pictures), the likelihood that of a `ForwardModel`; embedding,
    silhouette, colours and category are averaged over the set with the posterior weights, and what
    the averages leave unexplained in the EEG moves them, in closed form (`ForwardModel.unexplained`).

    Parameters
    ----------
    subjects : list of str, people who have a model; nobody else can be decoded
    channels : list of str, electrodes in the order of the epochs
    n_times : int, samples of an epoch
    sfreq : float, Hz
    n_outputs, ranks : lists of int, sizes of each person's model
    n_features : int, picture features
    gallery_ids : list of str, the pictures of the set
    embed_dim, size, grid : int, length of the embeddings, pixels per side of the maps, cells per side
        of the colour layout
    categories : list of str
    temperature : float, power of the likelihood (`forward.posterior_weights`)
    category_power : float, how much likely categories are favoured (`forward.favour_categories`)
    largest_weight : float, of one picture of the set (`forward.spread_out`)
    colour_temperature, colour_mode, colour_bandwidth : float
        Power of the likelihood for colours; how far they are moved from the posterior mean (0) to the
        colours of figure and ground that are densest (1); distance within which colours are alike.
    linear_share : float, at least 0
        Share of the variance of the set that pictures have around an average; 0 moves nothing.
    threshold, steepness : float, how averaged silhouettes are sharpened (`sharpened_maps`)

    Notes
    -----
    An average of n trials has 1 / n of the noise, so the number of trials has to be said.
    """

    @register_to_config
    def __init__(
        self,
        subjects: list[str],
        channels: list[str],
        n_times: int,
        sfreq: float,
        n_outputs: list[int],
        ranks: list[int],
        n_features: int,
        gallery_ids: list[str],
        embed_dim: int,
        size: int,
        grid: int,
        categories: list[str],
        temperature: float = 0.3,
        category_power: float = 1.0,
        largest_weight: float = 1.0,
        colour_temperature: float = 0.5,
        colour_mode: float = 0.5,
        colour_bandwidth: float = 0.12,
        linear_share: float = 0.0,
        threshold: float = 0.38,
        steepness: float = 12.0,
    ) -> None:
        super().__init__()
        self._kept: tuple[str | None, list] = None, []
        n_channels, n_gallery = len(channels), len(gallery_ids)
        for i, (n, rank) in enumerate(zip(n_outputs, ranks, strict=True)):
            for name, shape in {
                "left": (n_channels, n_channels), "right": (n_times, n_times), "center": (n,),
                "noise_variance": (n,), "coefficients": (n_features, n), "scale": (n,),
                "directions": (n_features, rank), "shrinkage": (rank, n), "lack_of_fit": (n,),
                "typical_variance": (n,), "signal": (n, n),
            }.items():  # fmt: skip
                self.register_buffer(f"{name}_{i}", torch.zeros(shape))
            self.register_buffer(f"selected_{i}", torch.zeros(n, dtype=torch.long))
        self.register_buffer("gallery_features", torch.zeros(n_gallery, n_features))
        self.register_buffer("gallery", torch.zeros(n_gallery, embed_dim))
        self.register_buffer("silhouettes", torch.zeros(n_gallery, size, size, dtype=torch.uint8))
        self.register_buffer("colours", torch.zeros(n_gallery, 3, grid, grid))
        self.register_buffer("both", torch.zeros(n_gallery, 6))
        self.register_buffer("category", torch.zeros(n_gallery, dtype=torch.long))
        if linear_share:
            for name, shape in {
                "gallery": (embed_dim,), "silhouettes": (size, size), "colours": (3, grid, grid),
            }.items():  # fmt: skip
                self.register_buffer(f"with_{name}", torch.zeros(n_features, *shape))

    @classmethod
    def from_models(
        cls,
        models: Mapping[str, ForwardModel],
        unwhitening: Mapping[str, tuple[np.ndarray, np.ndarray]],
        features: np.ndarray,
        embeddings: np.ndarray,
        silhouettes: np.ndarray,
        colours: np.ndarray,
        both: np.ndarray,
        category: np.ndarray,
        **config,
    ) -> EEGPosterior:
        """Put fitted models and the pictures of the set together.

        Parameters
        ----------
        models : mapping of subject to ForwardModel
        unwhitening : mapping of subject to matrices, `signals.unwhitening`
        features : array of shape (n_gallery, n_features), that the models were fitted with
        embeddings : array of shape (n_gallery, embed_dim), standardised
        silhouettes : array of shape (n_gallery, size, size) in [0, 1]
        colours : array of shape (n_gallery, 3, grid, grid) in [0, 1], `colour_layout`
        both : array of shape (n_gallery, 6), `figure_and_ground`
        category : int array of shape (n_gallery,), index into `categories`
        config : the other arguments of the class

        Raises
        ------
        ValueError
            Features, embeddings, silhouettes and categories of different numbers of pictures.
        """
        parts = (features, embeddings, silhouettes, colours, both, category)
        lengths = {len(part) for part in parts}
        if lengths != {len(config["gallery_ids"])}:
            raise ValueError(
                f"features, embeddings, silhouettes, colours and categories of {sorted(lengths)} pictures, and "
                f"{len(config['gallery_ids'])} ids: give a row of each for every picture of the set"
            )
        made = cls(
            subjects=list(models),
            n_outputs=[len(m.scale) for m in models.values()],
            ranks=[m.directions.shape[1] for m in models.values()],
            n_features=features.shape[1],
            embed_dim=embeddings.shape[1],
            size=silhouettes.shape[-1],
            grid=colours.shape[-1],
            **config,
        )
        features = np.asarray(features, np.float32)  # as they are kept
        spread = np.cov(features, rowvar=False, ddof=0).reshape(features.shape[1], -1)
        for i, (subject, model) in enumerate(models.items()):
            space, (left, right) = model.space, unwhitening[subject]
            arrays = {name: getattr(model, name) for name in _ARRAYS}
            arrays |= {
                "left": space.channel_basis.T @ space.noise.channel_whitener @ left,
                "right": right @ space.noise.time_whitener @ space.time_basis,
                "center": space.center,
                "noise_variance": space.noise_variance,
                "selected": space.selected,
                "signal": model.coefficients.T @ spread @ model.coefficients,
            }
            for name, values in arrays.items():
                getattr(made, f"{name}_{i}").copy_(torch.from_numpy(np.array(values)))
        made.gallery_features.copy_(torch.from_numpy(np.asarray(features)))
        made.gallery.copy_(torch.from_numpy(np.asarray(embeddings)))
        eight_bits = np.round(255 * np.asarray(silhouettes)).astype(np.uint8)
        made.silhouettes.copy_(torch.from_numpy(eight_bits))
        made.colours.copy_(torch.from_numpy(np.asarray(colours)))
        made.both.copy_(torch.from_numpy(np.asarray(both)))
        made.category.copy_(torch.from_numpy(np.asarray(category, np.int64)))
        if made.config.linear_share:
            for name in _MOVED:
                values = getattr(made, name).numpy()
                covariance = forward_model.cross_covariance(features, values)
                getattr(made, f"with_{name}").copy_(torch.from_numpy(covariance))
        return made

    def refitted(
        self,
        models: Mapping[str, ForwardModel],
        unwhitening: Mapping[str, tuple[np.ndarray, np.ndarray]],
    ) -> EEGPosterior:
        """The same set of pictures and settings with other models: other people, another filter.

        Parameters
        ----------
        models, unwhitening : see `from_models`; fitted on `gallery_features`
        """
        derived = {"subjects", "n_outputs", "ranks", "n_features", "embed_dim", "size", "grid"}
        config = {k: v for k, v in self.config.items() if k not in derived and k[0] != "_"}
        known = {k: getattr(self, k).cpu().numpy() for k in ("colours", "both", "category")}
        known |= {"embeddings": self.gallery.cpu().numpy()}
        known |= {"silhouettes": self.silhouettes.cpu().numpy() / np.float32(255)}
        features = self.gallery_features.cpu().numpy()
        return type(self).from_models(models, unwhitening, features, **known, **config)

    def log_likelihood(
        self, eeg: torch.Tensor | np.ndarray, subject: str, n_averaged: int
    ) -> torch.Tensor:
        """Log density of averaged epochs under every picture of the set.

        Parameters
        ----------
        eeg : float array of shape (batch, n_channels, n_times), as notebook 01 leaves it
        subject : str
        n_averaged : int, trials in each average

        Returns
        -------
        float64 tensor of shape (batch, n_gallery), up to a constant for each epoch

        Raises
        ------
        ValueError
            For somebody without a model, epochs of another shape or with NaN, no number of trials.
        """
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
        outputs = self._outputs(eeg, part)
        squared, columns = outputs**2, []
        for mean, variance in self._expected(subject):
            variance = variance + part["noise_variance"] / n_averaged
            precision = 1 / variance
            weighted = mean * precision
            fit = outputs @ weighted.T - 0.5 * squared @ precision.T
            columns.append(fit - 0.5 * (weighted * mean + variance.log()).sum(1))
        return torch.cat(columns, dim=1)

    @torch.no_grad()
    def forward(
        self,
        eeg: torch.Tensor | np.ndarray,
        subject: str,
        n_averaged: int,
        n_likeliest: int = 500,
        rng: np.random.Generator | None = None,
    ) -> Decoded:
        """Decode averaged epochs of one person; `eeg`, `subject`, `n_averaged`: see `log_likelihood`.

        Parameters
        ----------
        n_likeliest : int
            Pictures of the set that are averaged for each epoch; the others have no weight.
        rng : generator, optional
            Draws one of the answers that the posterior allows instead of its mean: the pictures of
            the set are weighed anew by exponential variables (Bayesian bootstrap, Rubin 1981).
        """
        likelihood = self.log_likelihood(eeg, subject, n_averaged).cpu().numpy()
        config, category = self.config, self.category.cpu().numpy()
        weights = self.weights(likelihood)
        by_colour = forward_model.posterior_weights(likelihood, config.colour_temperature)
        by_colour = self._spread_out(by_colour)
        if rng is not None:
            anew = rng.standard_exponential(weights.shape)
            weights, by_colour = (
                w * anew / (w * anew).sum(1, keepdims=True) for w in (weights, by_colour)
            )
        means = {
            name: forward_model.posterior_mean(w, getattr(self, name).cpu().numpy(), n_likeliest)
            for name, w in (("gallery", weights), ("silhouettes", weights), ("colours", by_colour))
        }
        if config.linear_share:
            for w, names in ((weights, ("gallery", "silhouettes")), (by_colour, ("colours",))):
                evidence = self._unexplained(eeg, subject, n_averaged, w, n_likeliest)
                for name in names:
                    moved = torch.tensordot(evidence, getattr(self, f"with_{name}").double(), 1)
                    means[name] = means[name] + moved.float().cpu().numpy()
        codes = np.eye(len(config.categories) + 1, dtype=np.float32)[category + 1][:, 1:]
        silhouettes = torch.from_numpy(means["silhouettes"] / 255)
        maps = sharpened_maps(silhouettes, config.threshold, config.steepness)
        colours = blended_colours(
            by_colour, means["colours"], self.both.cpu().numpy(), maps, config.colour_mode,
            config.colour_bandwidth,
        )  # fmt: skip
        exact = torch.zeros(len(maps))
        device = self.gallery.device
        return Decoded(
            embedding=torch.from_numpy(means["gallery"]).to(device),
            embedding_noise=exact.to(device),
            maps=maps.to(device),
            structure_noise=exact.to(device),
            category=torch.from_numpy(forward_model.posterior_mean(weights, codes, n_likeliest)).to(
                device
            ),
            colours=colours.to(device),
        )

    @staticmethod
    def _outputs(eeg: torch.Tensor, part: dict[str, torch.Tensor]) -> torch.Tensor:
        outputs = (part["left"] @ eeg @ part["right"]).flatten(1)[:, part["selected"]]
        return outputs - part["center"]

    def _unexplained(
        self,
        eeg: torch.Tensor | np.ndarray,
        subject: str,
        n_averaged: int,
        weights: np.ndarray,
        likeliest: int,
    ) -> torch.Tensor:
        """`ForwardModel.unexplained` of the weighted mean of the set, (batch, n_features)."""
        part, share = self._model(self.config.subjects.index(subject)), self.config.linear_share
        eeg = torch.as_tensor(eeg, device=self.gallery.device).double()
        guess = forward_model.posterior_mean(
            weights, self.gallery_features.cpu().numpy(), likeliest
        )
        rest = self._outputs(eeg, part) - torch.from_numpy(guess).to(eeg) @ part["coefficients"]
        variance = part["typical_variance"] + part["noise_variance"] / n_averaged
        total = share * part["signal"] + variance.diag()
        return share * torch.linalg.solve(total, rest.T).T @ part["coefficients"].T

    def _expected(self, subject: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What each picture of the set would evoke, and how surely, in blocks of pictures.

        It does not depend on the EEG and takes ten times as long as what does, so the answer for the
        last person is kept: a stream is decoded epoch by epoch.
        """
        if self._kept[0] != subject:
            part, blocks = self._model(self.config.subjects.index(subject)), []
            for x in self.gallery_features.double().split(512):
                settled = (x @ part["directions"]) ** 2 @ part["shrinkage"]
                length = (x**2).sum(1, keepdim=True)
                variance = part["scale"] * (length - settled).clamp(min=0) + part["lack_of_fit"]
                blocks.append((x @ part["coefficients"], variance))
            self._kept = subject, blocks
        return self._kept[1]

    def _apply(self, *args, **kwargs):
        self._kept = None, []  # another device or precision
        return super()._apply(*args, **kwargs)

    def load_state_dict(self, *args, **kwargs):
        self._kept = None, []
        return super().load_state_dict(*args, **kwargs)

    def weights(self, log_likelihood: np.ndarray) -> np.ndarray:
        """Posterior over the pictures of the set, (batch, n_gallery), from `log_likelihood`."""
        config = self.config
        weights = forward_model.posterior_weights(log_likelihood, config.temperature)
        weights = forward_model.favour_categories(
            weights, self.category.cpu().numpy(), config.category_power
        )
        return self._spread_out(weights)

    def _spread_out(self, weights: np.ndarray) -> np.ndarray:
        largest = max(self.config.largest_weight, 1 / weights.shape[1])
        return forward_model.spread_out(weights, largest)

    def _model(self, index: int) -> dict[str, torch.Tensor]:
        names = (*_ARRAYS, "left", "right", "center", "noise_variance", "signal")
        found = {name: getattr(self, f"{name}_{index}").double() for name in names}
        return found | {"selected": getattr(self, f"selected_{index}")}


def blended_colours(
    weights: np.ndarray,
    mean: np.ndarray,
    both: np.ndarray,
    maps: torch.Tensor,
    mode: float = 0.5,
    bandwidth: float = 0.12,
) -> torch.Tensor:
    """Colour layouts between the posterior mean and colours that pictures do have.

    The mean of orange and blue is grey: nearest to both on average, and a colour of nothing that was
    shown. The densest colours of figure and ground, each for itself, lie on the silhouette.

    Parameters
    ----------
    weights : array of shape (n, n_set), posterior over a set of pictures
    mean : array of shape (n, 3, grid, grid), posterior means of the layouts (`colour_layout`); a
        mean that was moved beyond what colours can be is brought back
    both : array of shape (n_set, 6), `figure_and_ground`
    maps : tensor of shape (n, 2, size, size) in [0, 1], where figure and ground are said to be
    mode : float in [0, 1], 0 for the mean alone, 1 for the densest colours alone
    bandwidth : float above 0, distance within which colours are alike

    Returns
    -------
    tensor of shape (n, 3, grid, grid)
    """
    if not 0 <= mode <= 1:
        raise ValueError(f"mode is {mode}: a share from 0 (mean) to 1 (densest colours) is needed")
    layout = torch.as_tensor(mean).clamp(0, 1)
    if not mode:
        return layout
    parts = [forward_model.posterior_mode(weights, both[:, i : i + 3], bandwidth) for i in (0, 3)]
    densest = torch.from_numpy(np.concatenate(parts, axis=1))
    on_silhouette = two_colour_layout(densest, maps[:, 0].to(densest), layout.shape[-1])
    return mode * on_silhouette + (1 - mode) * layout


def sharpened_maps(
    silhouettes: torch.Tensor, threshold: float = 0.38, steepness: float = 12.0
) -> torch.Tensor:
    """Structure maps of averaged silhouettes, for a generator that knows true maps only.

    The average of silhouettes is grey where they differ: it is pushed towards black and white. The
    average of edges is nearly empty, because thin lines seldom meet; what can be said of edges
    is the outline of the sharpened silhouette, one pixel wide on its inner side as in true maps.

    Parameters
    ----------
    silhouettes : tensor of shape (n, size, size), about in [0, 1]
    threshold : float in (0, 1), value that becomes one half
    steepness : float above 0

    Returns
    -------
    tensor of shape (n, 2, size, size) in [0, 1]
    """
    if not 0 < threshold < 1 or not steepness > 0:
        raise ValueError(f"threshold {threshold}, steepness {steepness}: in (0, 1), and above 0")
    figure = (steepness * (silhouettes[:, None] - threshold)).sigmoid()
    outside = 1 - F.pad(figure, (1, 1, 1, 1))  # beyond the frame nothing is figure
    beside = F.max_pool2d(outside[..., 1:-1], (3, 1), stride=1)
    beside = torch.maximum(beside, F.max_pool2d(outside[..., 1:-1, :], (1, 3), stride=1))
    return torch.cat([figure, torch.minimum(figure, beside)], dim=1)
