"""From EEG to what the generator is told by a forward model and Bayes' rule, without a network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from sgdm_utils.decoding.forward import ForwardModel
from sgdm_utils.decoding.forward import posterior as forward_model
from sgdm_utils.generation.averages import blended_colours, sharpened_maps
from sgdm_utils.generation.decoder import Decoded
from sgdm_utils.generation.set_likelihood import ARRAYS, SetLikelihood


class EEGPosterior(SetLikelihood, ModelMixin, ConfigMixin):
    """Forward models of several people, and a set of pictures whose weights EEG decides.

    The prior is the set (training pictures), the likelihood that of a `ForwardModel`; embedding,
    silhouette, colours and category are averaged over the set with the posterior weights, and what
    the averages leave unexplained in the EEG moves them, in closed form (`ForwardModel.unexplained`).
    With `category_share` each person has a second model, which also uses the labels of the pictures of
    the set; it decides on silhouette and category, the first on embedding and colours.

    Parameters
    ----------
    subjects : list of str, people who have a model; nobody else can be decoded
    channels : list of str, electrodes in the order of the epochs
    n_times : int, samples of an epoch
    sfreq : float, Hz
    n_outputs, ranks, labelled_ranks : lists of int, sizes of each person's models
    n_features : int, picture features
    gallery_ids : list of str, the pictures of the set
    embed_dim, size, grid : int, length of the embeddings, pixels per side of the maps, cells per side
        of the colour layout
    categories : list of str
    category_share : float in [0, 1), what labels have of the variance of features
        (`forward.with_category`); 0: there are no models with labels
    temperature, look_temperature : float
        Powers of the likelihood (`forward.posterior_weights`) for silhouette and category, and for
        embedding and colours.
    category_power : float, how much likely categories are favoured (`forward.favour_categories`)
    largest_weight, largest_look_weight : float, of one picture of the set (`forward.spread_out`), for
        silhouette and category, and for embedding and colours
    colour_mode, colour_bandwidth : float
        How far colours are moved from the posterior mean (0) to the colours of figure and ground that
        are densest (1); distance within which colours are alike.
    linear_share : float, at least 0
        Share of the variance of the set that pictures have around an average; 0 moves nothing.
    threshold, steepness : float, how averaged silhouettes are sharpened (`sharpened_maps`)

    Attributes
    ----------
    n_kept : int, predictions of the set that are kept: one for each number of trials, with and without
        labels. More of them make a stream faster (32 MB each with 20,000 pictures and 200 outputs).

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
        labelled_ranks: list[int] | None = None,
        category_share: float = 0.0,
        temperature: float = 0.3,
        look_temperature: float = 0.3,
        category_power: float = 1.0,
        largest_weight: float = 1.0,
        largest_look_weight: float = 1.0,
        colour_mode: float = 0.5,
        colour_bandwidth: float = 0.12,
        linear_share: float = 0.0,
        threshold: float = 0.38,
        steepness: float = 12.0,
    ) -> None:
        super().__init__()
        self.n_kept = 6
        self._forget()
        n_channels, n_gallery = len(channels), len(gallery_ids)
        n_labelled = n_features + len(categories)
        for i, (n, rank) in enumerate(zip(n_outputs, ranks, strict=True)):
            shapes = {
                "left": (n_channels, n_channels), "right": (n_times, n_times), "center": (n,),
                "noise_variance": (n,),
            } | _model_shapes(n, rank, n_features)  # fmt: skip
            if category_share:
                labelled = _model_shapes(n, labelled_ranks[i], n_labelled)
                shapes |= {f"labelled_{name}": shape for name, shape in labelled.items()}
            for name, shape in shapes.items():
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
                "gallery": (n_features, embed_dim),
                "colours": (n_features, 3, grid, grid),
                "silhouettes": (n_labelled if category_share else n_features, size, size),
            }.items():
                self.register_buffer(f"with_{name}", torch.zeros(shape))

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
        labelled_models: Mapping[str, ForwardModel] | None = None,
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
        category : int array of shape (n_gallery,), index into `categories`, -1 for none
        labelled_models : mapping of subject to ForwardModel, with a `category_share`
            Of the same people and signal spaces, fitted on `forward.with_category` of `features`.
        config : the other arguments of the class

        Raises
        ------
        ValueError
            Features, embeddings, silhouettes and categories of different numbers of pictures; models
            with labels of other people, or without a `category_share`.
        """
        parts = (features, embeddings, silhouettes, colours, both, category)
        lengths = {len(part) for part in parts}
        if lengths != {len(config["gallery_ids"])}:
            raise ValueError(
                f"features, embeddings, silhouettes, colours and categories of {sorted(lengths)} pictures, and "
                f"{len(config['gallery_ids'])} ids: give a row of each for every picture of the set"
            )
        labelled_models = labelled_models or {}
        share = config.get("category_share", 0.0)
        if list(labelled_models) != (list(models) if share else []):
            raise ValueError(
                f"category_share is {share}, models of {list(models)}, models with labels of "
                f"{list(labelled_models)}: give one of each person if, and only if, there is a share"
            )
        made = cls(
            subjects=list(models),
            n_outputs=[len(m.scale) for m in models.values()],
            ranks=[m.directions.shape[1] for m in models.values()],
            labelled_ranks=[m.directions.shape[1] for m in labelled_models.values()],
            n_features=features.shape[1],
            embed_dim=embeddings.shape[1],
            size=silhouettes.shape[-1],
            grid=colours.shape[-1],
            **config,
        )
        features = np.asarray(features, np.float32)  # as they are kept
        both_kinds = [("", models, features)]
        if share:
            n = len(config["categories"])
            both_kinds += [
                (
                    "labelled_",
                    labelled_models,
                    forward_model.with_category(features, category, n, share),
                )
            ]
        for prefix, fitted, x in both_kinds:
            spread = np.cov(x, rowvar=False, ddof=0).reshape(x.shape[1], -1)
            for i, model in enumerate(fitted.values()):
                arrays = {name: getattr(model, name) for name in ARRAYS}
                arrays["signal"] = model.coefficients.T @ spread @ model.coefficients
                for name, values in arrays.items():
                    getattr(made, f"{prefix}{name}_{i}").copy_(torch.from_numpy(np.array(values)))
        for i, (subject, model) in enumerate(models.items()):
            space, (left, right) = model.space, unwhitening[subject]
            arrays = {
                "left": space.channel_basis.T @ space.noise.channel_whitener @ left,
                "right": right @ space.noise.time_whitener @ space.time_basis,
                "center": space.center,
                "noise_variance": space.noise_variance,
                "selected": space.selected,
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
            for name in ("gallery", "colours", "silhouettes"):
                x = both_kinds[-1][2] if name == "silhouettes" else features
                covariance = forward_model.cross_covariance(x, getattr(made, name).numpy())
                getattr(made, f"with_{name}").copy_(torch.from_numpy(covariance))
        return made

    def refitted(
        self,
        models: Mapping[str, ForwardModel],
        unwhitening: Mapping[str, tuple[np.ndarray, np.ndarray]],
        labelled_models: Mapping[str, ForwardModel] | None = None,
        **changes,
    ) -> EEGPosterior:
        """The same set of pictures and settings with other models: other people, another filter.

        Parameters
        ----------
        models, unwhitening, labelled_models : see `from_models`; fitted on `gallery_features` and, with
            labels, on `labelled_features`
        changes : settings that are not those of this component
        """
        derived = {"subjects", "n_outputs", "ranks", "labelled_ranks", "n_features", "embed_dim"}
        derived |= {"size", "grid"}
        config = {k: v for k, v in self.config.items() if k not in derived and k[0] != "_"}
        known = {k: getattr(self, k).cpu().numpy() for k in ("colours", "both", "category")}
        known |= {"embeddings": self.gallery.cpu().numpy()}
        known |= {"silhouettes": self.silhouettes.cpu().numpy() / np.float32(255)}
        features = self.gallery_features.cpu().numpy()
        known["labelled_models"] = labelled_models
        return type(self).from_models(models, unwhitening, features, **known, **(config | changes))

    @torch.no_grad()
    def forward(
        self,
        eeg: torch.Tensor | np.ndarray,
        subject: str,
        n_averaged: int,
        n_likeliest: int = 500,
    ) -> Decoded:
        """Decode averaged epochs of one person; `eeg`, `subject`, `n_averaged`: see `log_likelihood`.

        Parameters
        ----------
        n_likeliest : int
            Pictures of the set that are averaged for each epoch; the others have no weight.
        """
        outputs = self._outputs(eeg, subject, n_averaged)
        both = self._weights(outputs, subject, n_averaged)
        return self._answer(*both, outputs, subject, n_averaged, n_likeliest)

    @torch.no_grad()
    def draws(
        self,
        eeg: torch.Tensor | np.ndarray,
        subject: str,
        n_averaged: int,
        n_draws: int,
        rng: np.random.Generator,
        n_likeliest: int = 500,
    ) -> list[Decoded]:
        """Several of the answers that the posterior allows, instead of its mean.

        The pictures of the set are weighed anew by exponential variables for each of them (Bayesian
        bootstrap, Rubin 1981). The likelihood, which takes longest, is computed once.

        Parameters
        ----------
        eeg, subject, n_averaged, n_likeliest : see `forward`
        n_draws : int
        rng : numpy.random.Generator
        """
        outputs = self._outputs(eeg, subject, n_averaged)
        both, answers = self._weights(outputs, subject, n_averaged), []
        for _ in range(n_draws):
            anew = rng.standard_exponential(both[0].shape)
            weighed = (w * anew / (w * anew).sum(1, keepdims=True) for w in both)
            answers.append(self._answer(*weighed, outputs, subject, n_averaged, n_likeliest))
        return answers

    def _weights(
        self, outputs: torch.Tensor, subject: str, n_averaged: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Posterior over the pictures of the set (batch, n_gallery), by kind and by looks."""
        looks = self._log_likelihood(outputs, subject, n_averaged, False).cpu().numpy()
        by_look = forward_model.posterior_weights(looks, self.config.look_temperature)
        by_look, likelihood = self._spread_out(by_look, self.config.largest_look_weight), looks
        if self.config.category_share:
            likelihood = self._log_likelihood(outputs, subject, n_averaged, True).cpu().numpy()
        return self.weights(likelihood), by_look

    def _answer(
        self,
        weights: np.ndarray,
        by_look: np.ndarray,
        outputs: torch.Tensor,
        subject: str,
        n_averaged: int,
        n_likeliest: int,
    ) -> Decoded:
        """Averages over the set with these weights, moved by what they leave of the EEG."""
        config, category = self.config, self.category.cpu().numpy()
        means = {
            name: forward_model.posterior_mean(w, getattr(self, name).cpu().numpy(), n_likeliest)
            for name, w in (("gallery", by_look), ("silhouettes", weights), ("colours", by_look))
        }
        if config.linear_share:
            measured = outputs, subject, n_averaged, n_likeliest
            by_kind = self._unexplained(weights, config.category_share > 0, *measured)
            evidence = {"silhouettes": by_kind}
            evidence |= dict.fromkeys(
                ("gallery", "colours"), self._unexplained(by_look, False, *measured)
            )
            for name, of_epochs in evidence.items():
                moved = torch.tensordot(of_epochs, self._in_double(f"with_{name}"), 1)
                means[name] = means[name] + moved.float().cpu().numpy()
        codes = np.eye(len(config.categories) + 1, dtype=np.float32)[category + 1][:, 1:]
        silhouettes = torch.from_numpy(means["silhouettes"] / 255)
        maps = sharpened_maps(silhouettes, config.threshold, config.steepness)
        colours = blended_colours(
            by_look, means["colours"], self.both.cpu().numpy(), maps, config.colour_mode,
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

    def _unexplained(
        self,
        weights: np.ndarray,
        labelled: bool,
        outputs: torch.Tensor,
        subject: str,
        n_averaged: int,
        n_likeliest: int,
    ) -> torch.Tensor:
        """`ForwardModel.unexplained` of the weighted mean of the set, (batch, n_features)."""
        part = self._model(self.config.subjects.index(subject), labelled)
        features = self._features(labelled).cpu().numpy()
        guess = forward_model.posterior_mean(weights, features, n_likeliest)
        rest = outputs - torch.from_numpy(guess).to(outputs) @ part["coefficients"]
        total = self._total_variance(subject, labelled, n_averaged)
        solved = torch.linalg.lu_solve(*total, rest.T)
        return self.config.linear_share * solved.T @ part["coefficients"].T

    def weights(self, log_likelihood: np.ndarray) -> np.ndarray:
        """Posterior over the pictures of the set, (batch, n_gallery), from `log_likelihood`."""
        config = self.config
        weights = forward_model.posterior_weights(log_likelihood, config.temperature)
        weights = forward_model.favour_categories(
            weights, self.category.cpu().numpy(), config.category_power
        )
        return self._spread_out(weights, config.largest_weight)

    @staticmethod
    def _spread_out(weights: np.ndarray, largest: float) -> np.ndarray:
        return forward_model.spread_out(weights, max(largest, 1 / weights.shape[1]))


def _model_shapes(n_outputs: int, rank: int, n_features: int) -> dict[str, tuple[int, ...]]:
    shapes = dict.fromkeys(("scale", "lack_of_fit", "typical_variance"), (n_outputs,))
    shapes |= {"coefficients": (n_features, n_outputs), "directions": (n_features, rank)}
    return shapes | {"shrinkage": (rank, n_outputs), "signal": (n_outputs, n_outputs)}
