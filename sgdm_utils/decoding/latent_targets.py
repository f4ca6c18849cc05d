"""A second target of the EEG encoder: the latent of the picture, in a few numbers.

A CLIP embedding says what a picture is of. The latent of an autoencoder says what it looks like,
cell by cell. Most of a latent is fine detail that no EEG tells; its leading principal components are
what many pictures differ in, so they are what is asked for. Everything here is fitted on training
pictures only, and nothing draws from torch's global generator.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sgdm_utils.decoding import features
from sgdm_utils.decoding.clip import read_picture, weights_digest
from sgdm_utils.workflow.atomic import digest_file

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from sgdm_utils.workflow.downloads.catalogue import Entry

_EXACT = 4096  # numbers of a latent up to which their whole covariance is decomposed


@dataclass(frozen=True)
class LatentTargets:
    """Leading principal components of latents, standardised on training pictures.

    Attributes
    ----------
    values : float32 array of shape (n_pictures, n_components), of mean 0 and variance 1 in training
    center : float32 array of shape (n_numbers,), mean latent
    basis : float32 array of shape (n_components, n_numbers), orthonormal rows
    spread : float32 array of shape (n_components,), standard deviations
    explained : float, share of the variance of training latents that lies in the components
    """

    values: np.ndarray
    center: np.ndarray
    basis: np.ndarray
    spread: np.ndarray
    explained: float

    @property
    def scale(self) -> dict[str, np.ndarray]:
        """What leads back to latents: ``(values * spread) @ basis + center``."""
        return {"center": self.center, "basis": self.basis, "spread": self.spread}


def principal_targets(
    latents: np.ndarray, train_rows: np.ndarray, n_components: int
) -> LatentTargets:
    """Describe latents by their leading principal components over training pictures.

    Parameters
    ----------
    latents : array of shape (n_pictures, ...)
    train_rows : int array, the rows that mean, components and scale are fitted on
    n_components : int, called `latent_components` in messages

    Raises
    ------
    ValueError
        Fewer than two training pictures, values that are not finite, more components than the
        training latents vary in.
    """
    from sklearn.decomposition import PCA

    flat = np.asarray(latents, dtype=np.float32).reshape(len(latents), -1)
    train = flat[train_rows]
    if len(train) < 2:
        raise ValueError(f"{len(train)} training pictures have no principal components")
    bad = ~np.isfinite(flat).all(1)
    if bad.any():
        raise ValueError(
            f"the latents of {bad.sum()} pictures hold NaN or infinity, first in row "
            f"{int(bad.argmax())}: compute them in float32"
        )
    most = min(len(train) - 1, flat.shape[1])
    if not 1 <= n_components <= most:
        raise ValueError(
            f"latent_components is {n_components}: {len(train)} training latents of "
            f"{flat.shape[1]} numbers have 1 to {most} components"
        )
    solver = "covariance_eigh" if flat.shape[1] <= _EXACT else "randomized"
    pca = PCA(n_components, svd_solver=solver, random_state=0).fit(train)
    variance, total = pca.explained_variance_, train.var(0, ddof=1, dtype=np.float64).sum()
    varying = int((variance > 1e-7 * total).sum())
    if varying < n_components:
        raise ValueError(
            f"latent_components is {n_components}, but the training latents vary in {varying} "
            "directions: ask for that many at most"
        )
    spread = np.sqrt(variance)
    return LatentTargets(
        values=(pca.transform(flat) / spread).astype(np.float32),
        center=pca.mean_.astype(np.float32),
        basis=pca.components_.astype(np.float32),
        spread=spread.astype(np.float32),
        explained=float(variance.sum() / total),
    )


@torch.no_grad()
def patch_latents(
    pictures: np.ndarray,
    train_rows: np.ndarray,
    patch: int = 8,
    latent_channels: int = 16,
    batch: int = 256,
) -> np.ndarray:
    """Latents of the linear code that `autoencoder.PictureVAE` starts from: components of patches.

    Parameters
    ----------
    pictures : uint8 array of shape (n, size, size, 3)
    train_rows : int array, pictures whose patches the components are fitted on
    patch, latent_channels : pixels per side of a patch, numbers kept for each
    batch : int, pictures at a time

    Returns
    -------
    float32 array of shape (n, latent_channels, size / patch, size / patch)

    Raises
    ------
    ValueError
        Pictures of another shape or type, no training picture, and what `PictureVAE` refuses.
    """
    from sgdm_utils.generation.autoencoder import PictureVAE

    square = pictures.ndim == 4 and pictures.shape[1] == pictures.shape[2]
    if not square or pictures.shape[3] != 3 or pictures.dtype != np.uint8:
        raise ValueError(
            f"pictures are {pictures.dtype} of shape {pictures.shape}, expected uint8 of shape "
            "(n, size, size, 3)"
        )
    if not len(train_rows):
        raise ValueError("no training picture: the components of patches have to come from some")
    with torch.random.fork_rng(devices=[]):  # its networks are not used, their weights are drawn
        code = PictureVAE(pictures.shape[1], patch, latent_channels, width=16)
    code.fit_patches(_pixels(pictures[train_rows]))
    parts = [
        code.to_components(_pixels(pictures[i : i + batch]))[:, :latent_channels].numpy()
        for i in range(0, len(pictures), batch)
    ]
    return np.concatenate(parts)


def load_vae(
    source: str | os.PathLike,
    device: torch.device | str = "cpu",
    accept_licence: str | Sequence[str] = (),
    catalogue: Mapping[str, Entry] | Path | None = None,
    show: Callable[[str], None] = print,
) -> AutoencoderKL:
    """Load an `AutoencoderKL` in float32, from this machine or from the Hugging Face hub.

    Parameters
    ----------
    source : path of its folder or of a model's that has it in `vae`, or `owner/name[@revision]`
    device, accept_licence, catalogue, show : as in `generator.PretrainedGenerator.from_pretrained`

    Raises
    ------
    FileNotFoundError
        Neither a path nor the form of a name; a folder without autoencoder or without its weights.
    ValueError
        A folder that holds something else.
    sgdm_utils.workflow.downloads.catalogue.LicenceError, sgdm_utils.workflow.downloads.transfers.DownloadError
        As in `sources.locate`.
    """
    from diffusers import AutoencoderKL

    from sgdm_utils.generation.pretrained import parts as pretrained_parts

    bare = ("config.json", "diffusion_pytorch_model.safetensors")
    wanted = pretrained_parts._Wanted("latent_vae", str(source), bare)
    folder = pretrained_parts._path(wanted.source)
    if folder is None:
        repository, revision, _ = pretrained_parts._parse(wanted)
        entries = pretrained_parts._settle_licences({repository}, accept_licence, catalogue, show)
        if repository in {family.model for family in pretrained_parts.FAMILIES.values()}:
            wanted = replace(wanted, files=tuple(f"vae/{name}" for name in bare))
        folder = pretrained_parts._fetch(wanted, repository, revision, entries[repository])
    if (folder / "vae" / "config.json").is_file():
        folder = folder / "vae"
    about = pretrained_parts._read_json(folder / "config.json", f"no autoencoder in {folder}")
    if about.get("_class_name") != "AutoencoderKL":
        raise ValueError(
            f"{folder} holds a {about.get('_class_name')}, expected an AutoencoderKL of diffusers"
        )
    pretrained_parts._check_weights(folder, None)
    vae = AutoencoderKL.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, dtype=torch.float32
    )
    return vae.eval().requires_grad_(False).to(device)


def vae_latents(
    vae: AutoencoderKL,
    image_ids: Sequence[str],
    pictures: Sequence[Path] | np.ndarray,
    folder: Path,
    name: str,
    size: int = 256,
    batch: int = 16,
    progress: bool = True,
) -> np.ndarray:
    """Compute mean latents into a file, going on where an earlier call stopped.

    Parameters
    ----------
    vae : AutoencoderKL
    image_ids : sequence of str
    pictures : paths, or uint8 array of shape (n, height, width, 3), in the order of `image_ids`
    folder : Path, where the file lies; it is named after `name`
    name : str, of the autoencoder, kept beside the digest of its weights
    size : int, pixels per side that files are brought to; arrays are taken as they are
    batch : int, pictures at a time
    progress : bool, show a bar

    Returns
    -------
    float32 array of shape (n, latent_channels, height / factor, width / factor), read-only

    Raises
    ------
    ValueError
        Another number of pictures than of ids, a size that the autoencoder cannot halve.
    sgdm_utils.decoding.features.FeatureError
        See `features.compute_features`: other pictures or another autoencoder made what is there, a
        picture cannot be read, a latent is not finite.
    """
    ids, array = list(image_ids), isinstance(pictures, np.ndarray)
    if len(pictures) != len(ids):
        raise ValueError(f"{len(pictures)} pictures for {len(ids)} images")
    shape = pictures.shape[1:3] if array else (size, size)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if any(n % factor for n in shape):
        raise ValueError(
            f"pictures of {shape[0]} x {shape[1]} pixels, and the autoencoder halves them "
            f"{int(math.log2(factor))} times: take multiples of {factor}"
        )
    row_of = {image: row for row, image in enumerate(ids)}
    digests = "" if array else "".join(digest_file(Path(p)) for p in pictures)
    content = np.ascontiguousarray(pictures) if array else digests.encode()
    identity = {
        "model": name,
        "weights_sha256": weights_digest(vae),
        "pictures_sha256": hashlib.sha256(content).hexdigest(),
        "picture_size": list(shape),
    }

    def load(some: list[str]) -> np.ndarray:
        rows = [row_of[image] for image in some]
        if array:
            return pictures[rows]
        return np.stack([read_picture(Path(pictures[row]), size) for row in rows])

    @torch.no_grad()
    def encode(some: np.ndarray) -> np.ndarray:
        return vae.encode(_pixels(some).to(vae.device)).latent_dist.mode().float().cpu().numpy()

    path = folder / f"vae-{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}.npy"
    return features.compute_features(encode, ids, load, path, batch, progress, identity)


class LatentHead(nn.Module):
    """One linear layer from an encoder's tokens (features averaged over time) to the target.

    Parameters
    ----------
    width, n_components : feature channels of the encoder, numbers of the target
    n_tokens : int, equal stretches of time that the features are averaged over
    generator : torch.Generator, for the initial weights
    """

    def __init__(
        self, width: int, n_components: int, n_tokens: int = 8, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.n_tokens = n_tokens
        self.linear = nn.utils.skip_init(nn.Linear, width * n_tokens, n_components)
        bound = 1 / math.sqrt(width * n_tokens)  # that of nn.Linear
        for weight in self.linear.parameters():
            nn.init.uniform_(weight, -bound, bound, generator=generator)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Features (batch, width, n_features_times) of the encoder -> (batch, n_components)."""
        return self.linear(F.adaptive_avg_pool1d(maps, self.n_tokens).flatten(1))


class LatentReader(nn.Module):
    """Encoder and head as one network from EEG to the target, as `load.embed` takes it."""

    def __init__(self, encoder: nn.Module, head: LatentHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, eeg: torch.Tensor, subject: torch.Tensor) -> torch.Tensor:
        """(batch, n_chans, n_times) and (batch,) -> (batch, n_components)."""
        return self.head(self.encoder.features(eeg, subject))


def _pixels(pictures: np.ndarray) -> torch.Tensor:
    """Pictures (n, height, width, 3) uint8 as networks take them: (n, 3, ...) in [-1, 1]."""
    rgb = torch.from_numpy(np.ascontiguousarray(pictures)).movedim(-1, 1)
    return rgb.float() / 127.5 - 1
