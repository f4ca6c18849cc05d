"""From EEG to what the generator is told: both encoders, their scales, and how far to trust them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mne
import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE, electrode_positions
from sgdm_utils.decoding.encoders import SGDMEncoder
from sgdm_utils.decoding.structure import StructureVAE
from sgdm_utils.generation.conditioning import figure_and_ground, two_colour_layout


@dataclass(frozen=True)
class Decoded:
    """What EEG says about pictures, one row per epoch.

    Attributes
    ----------
    embedding : tensor of shape (batch, embed_dim), standardised CLIP space, shrunk to its quality
    embedding_noise, structure_noise : tensors of shape (batch,), noise levels in [0, 1]
    maps : tensor of shape (batch, 2, size, size) in [0, 1], silhouette and edges
    category : tensor of shape (batch, n_categories), calibrated probabilities
    colours : tensor of shape (batch, 3, grid, grid) in [0, 1], mean colours of cells, or None
    """

    embedding: torch.Tensor
    embedding_noise: torch.Tensor
    maps: torch.Tensor
    structure_noise: torch.Tensor
    category: torch.Tensor
    colours: torch.Tensor | None = None


class EEGDecoder(ModelMixin, ConfigMixin):
    """Encoder of meaning, encoder of structure, structure VAE and category head as one component.

    Parameters
    ----------
    meaning_encoder, structure_encoder : dict, arguments of the two `SGDMEncoder`
    structure_maps : dict, arguments of `StructureVAE`
    channels : list of str, electrodes of the training recordings in their order
    subjects : list of str, people with a layer of their own
    categories : list of str, names of the category head's outputs
    gallery_ids : list of str, pictures among which neighbours are looked for
    grid : int, cells per side of the colour layout

    Notes
    -----
    Trust (`factor`, `meaning_noise`, `structure_noise`) is measured on validation pictures, for each
    subject with all electrodes; somebody unseen gets the mean of the subjects. With fewer
    electrodes than in training the true noise is higher than these levels say.
    """

    @register_to_config
    def __init__(
        self,
        meaning_encoder: dict,
        structure_encoder: dict,
        structure_maps: dict,
        channels: list[str],
        subjects: list[str],
        categories: list[str],
        gallery_ids: list[str],
        grid: int = 8,
    ) -> None:
        super().__init__()
        n_chans, embed_dim = len(channels), meaning_encoder["n_outputs"]
        anywhere = np.tile(np.float32([0, 0, 1]), (n_chans, 1))  # replaced by the loaded weights
        self.meaning = SGDMEncoder(**meaning_encoder, positions=anywhere.copy())
        self.structure = SGDMEncoder(**structure_encoder, positions=anywhere.copy())
        self.structure_vae = StructureVAE(**structure_maps)
        self.category_head = nn.Linear(embed_dim, len(categories))
        n_people, dim = len(subjects) + 1, structure_encoder["n_outputs"]
        for name, shape in {
            "factor": (n_people,), "meaning_noise": (n_people,), "structure_noise": (n_people,),
            "code_center": (dim,), "code_spread": (dim,), "temperature": (1,),
            "gallery": (len(gallery_ids), embed_dim), "colour_weights": (embed_dim, 6),
            "colour_offset": (6,),
        }.items():  # fmt: skip
            self.register_buffer(name, torch.ones(shape))

    def positions(self, electrodes: Sequence[str] | np.ndarray | None) -> torch.Tensor:
        """Unit vectors (n_chans, 3) of electrodes given by name, by position, or not at all.

        Parameters
        ----------
        electrodes : names (of the training montage, else of MNE's standard_1005), or an array of
            shape (n_chans, 3) of unit vectors (`encoders.electrode_positions`), or None for the
            training montage

        Raises
        ------
        ValueError
            For a name without a position, or an array of another form.
        """
        known = self.meaning.default_positions
        if electrodes is None:
            return known
        if len(electrodes) and isinstance(electrodes[0], str):
            own = {name: known[i].cpu().numpy() for i, name in enumerate(self.config.channels)}
            lost = [name for name in electrodes if name not in own]
            if lost:
                standard = mne.channels.make_standard_montage(STANDARD_MONTAGE).get_positions()
                loc = [standard["ch_pos"].get(name, np.full(3, np.nan)) for name in lost]
                chs = [{"ch_name": n, "loc": xyz} for n, xyz in zip(lost, loc, strict=True)]
                own |= dict(zip(lost, electrode_positions(chs), strict=True))
            return torch.as_tensor(np.stack([own[name] for name in electrodes])).to(known)
        found = torch.as_tensor(np.asarray(electrodes, dtype=np.float32)).to(known)
        if found.ndim != 2 or found.shape[1] != 3:
            raise ValueError(
                f"electrodes have shape {tuple(found.shape)}: give names, or unit vectors of shape "
                "(n_chans, 3)"
            )
        length = found.norm(dim=1)
        if not torch.isfinite(length).all() or (length - 1).abs().max() > 0.05:
            row = int((~((length - 1).abs() <= 0.05)).nonzero()[0])
            raise ValueError(
                f"the position of electrode {row} is not a unit vector ({found[row].tolist()}): "
                "sgdm_utils.decoding.encoders.electrode_positions makes them from MNE's channel locations"
            )
        return found

    def subject_index(self, subject: str | Sequence[str] | None, batch: int) -> torch.Tensor:
        """Index of each epoch's person, long tensor of shape (batch,); -1 for somebody unseen.

        Raises
        ------
        ValueError
            For an unknown name: somebody unseen is asked for by None, not by a new name.
        """
        names = [subject] * batch if subject is None or isinstance(subject, str) else list(subject)
        if len(names) != batch:
            raise ValueError(f"{len(names)} subjects for {batch} epochs")
        known = self.config.subjects
        unknown = sorted({n for n in names if n is not None and n not in known})
        if unknown:
            raise ValueError(
                f"unknown subject {unknown[0]!r}: the model knows {', '.join(known)}. Give None for "
                "somebody it has not seen (the mean of the subject layers is used)"
            )
        index = [-1 if n is None else known.index(n) for n in names]
        return torch.tensor(index, device=self.factor.device)

    @torch.no_grad()
    def forward(
        self,
        eeg: torch.Tensor | np.ndarray,
        electrodes: Sequence[str] | np.ndarray | None = None,
        subject: str | Sequence[str] | None = None,
        sfreq: float | None = None,
    ) -> Decoded:
        """Decode preprocessed epochs.

        Parameters
        ----------
        eeg : float array of shape (batch, n_chans, n_times), as notebook 01 leaves it: whitened,
            averaged over repetitions where there are some
        electrodes, subject : see `positions` and `subject_index`
        sfreq : float, Hz; when given it is compared with the sampling rate of the training

        Raises
        ------
        ValueError
            For an empty batch, NaN, another number of samples or sampling rate, electrodes that do
            not fit the channels, an unknown subject.
        """
        eeg = torch.as_tensor(eeg, dtype=torch.float32, device=self.factor.device)
        if eeg.ndim != 3 or len(eeg) == 0:
            raise ValueError(
                f"eeg has shape {tuple(eeg.shape)}, expected (batch, n_chans, n_times), not empty"
            )
        if not torch.isfinite(eeg).all():
            rows = (~torch.isfinite(eeg)).flatten(1).any(1).nonzero()[:5, 0].tolist()
            raise ValueError(f"eeg holds NaN or infinity, first in epochs {rows}")
        if sfreq is not None and abs(sfreq - self.meaning.sfreq) > 1e-6:
            raise ValueError(
                f"the epochs have {sfreq:g} Hz, the model was trained at {self.meaning.sfreq:g} Hz: "
                "resample them (notebook 01 does)"
            )
        positions = self.positions(electrodes)
        person = self.subject_index(subject, len(eeg))
        z = self.meaning(eeg, person, positions)
        code = self.structure(eeg, person, positions) * self.code_spread + self.code_center
        logits = self.category_head(z) / self.temperature
        embedding, maps = self.factor[person, None] * z, self.structure_vae.maps(code)
        return Decoded(
            embedding=embedding,
            embedding_noise=self.meaning_noise[person],
            maps=maps,
            structure_noise=self.structure_noise[person],
            category=logits.softmax(dim=1),
            colours=self.colours(embedding, maps),
        )

    def colours(self, embedding: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """Colour layout (batch, 3, grid, grid): an embedding's colours of figure and ground on a map.

        The networks decode no layout. Which colours go with an embedding is a linear regression over
        training pictures (`fit_colours`); where they lie is what the silhouette says.
        """
        both = (embedding @ self.colour_weights + self.colour_offset).clamp(0, 1)
        return two_colour_layout(both, maps[:, 0], self.config.grid)

    @torch.no_grad()
    def fit_colours(
        self,
        embeddings: torch.Tensor,
        pictures: torch.Tensor,
        silhouettes: torch.Tensor,
        alpha: float = 10.0,
    ) -> None:
        """Regress the mean colours of figure and ground on the embedding.

        Parameters
        ----------
        embeddings : tensor of shape (n, embed_dim), of training pictures, standardised
        pictures : tensor of shape (n, 3, size, size) in [0, 1]
        silhouettes : tensor of shape (n, size, size) in [0, 1]
        alpha : float, ridge penalty
        """
        parts = zip(pictures.split(512), silhouettes.split(512), strict=True)
        means = [figure_and_ground(*part) for part in parts]
        answer, x = torch.cat(means).double(), embeddings.double()
        center, mean = answer.mean(0), x.mean(0)
        x = x - mean
        penalty = alpha * torch.eye(x.shape[1], dtype=x.dtype)
        weights = torch.linalg.solve(x.T @ x + penalty, x.T @ (answer - center))
        self.colour_weights.copy_(weights)
        self.colour_offset.copy_(center - mean @ weights)

    def neighbours(self, embedding: torch.Tensor, k: int) -> list[list[str]]:
        """Ids of the `k` gallery pictures nearest in angle to each embedding, nearest first."""
        unit = nn.functional.normalize
        order = (unit(embedding) @ unit(self.gallery).T).topk(min(k, len(self.gallery))).indices
        return [[self.config.gallery_ids[i] for i in row] for row in order.tolist()]
