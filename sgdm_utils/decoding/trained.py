"""What notebooks 02b to 04 trained, opened by those that come after: encoder, targets, CLIP.

One file format, one reader: an encoder is ``encoder.json`` (its arguments) and
``encoder.safetensors`` (weights, with a prefix for each part where there are several).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from sgdm_utils.decoding.clip import CLIP_MEAN, CLIP_STD, load_clip
from sgdm_utils.decoding.encoders import SGDMEncoder
from sgdm_utils.decoding.features import load_features
from sgdm_utils.decoding.structure import StructureVAE
from sgdm_utils.errors import DatasetError, reading
from sgdm_utils.workflow.artifacts import Artifact
from sgdm_utils.workflow.formats import read_json, read_npz

if TYPE_CHECKING:
    import open_clip


def save_weights(module: nn.Module, path: Path) -> None:
    """Write the weights of a module as safetensors, from wherever they are."""
    save_file({k: v.detach().contiguous().cpu() for k, v in module.state_dict().items()}, path)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a file of safetensors.

    Raises
    ------
    DatasetError
        Names a file that is damaged.
    """
    with reading(path, "weights", "Run the notebook that writes it again"):
        return load_file(path)


def load_part(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Weights of one part of a stored module: those whose name begins with ``<prefix>.``.

    Raises
    ------
    KeyError
        When the file has no such part; the message names those that it has.
    """
    weights = read_weights(path)
    found = {
        k.removeprefix(f"{prefix}."): v for k, v in weights.items() if k.startswith(f"{prefix}.")
    }
    if not found:
        parts = sorted({k.split(".")[0] for k in weights})
        raise KeyError(f"{path.name} holds no part {prefix!r}; it holds {', '.join(parts)}")
    return found


def open_architecture(artifact: Artifact | Path) -> dict:
    """Arguments of `SGDMEncoder` as an artifact stores them; electrode positions are not among them."""
    return read_json(artifact / "encoder.json")


def open_encoder(
    artifact: Artifact | Path, positions: np.ndarray, prefix: str | None = None
) -> SGDMEncoder:
    """Open a trained EEG encoder.

    Parameters
    ----------
    artifact : `encoder_pretrained`, `encoder` or `structure`
    positions : float array of shape (n_chans, 3), directions of the electrodes
    prefix : str, optional
        Part of the stored weights; found by itself where the file holds an encoder alone, or one
        named ``encoder``.

    Returns
    -------
    SGDMEncoder in evaluation mode, on the CPU, gradients on
    """
    path = artifact / "encoder.safetensors"
    weights = read_weights(path)
    with reading(artifact / "encoder.json", "an encoder's arguments", "Train it again"):
        encoder = SGDMEncoder(**open_architecture(artifact), positions=positions)
    if prefix is None and any(k.startswith("encoder.") for k in weights):
        prefix = "encoder"
    with reading(path, "weights of the encoder in encoder.json", "Train it again"):
        encoder.load_state_dict(load_part(path, prefix) if prefix else weights)
    return encoder.eval()


def open_structure_vae(artifact: Artifact | Path) -> StructureVAE:
    """Open the structure VAE of an artifact `structure`, in evaluation mode, gradients off."""
    with reading(artifact / "structure_vae.json", "arguments of a structure VAE", "Train it again"):
        vae = StructureVAE(**read_json(artifact / "structure_vae.json"))
    path = artifact / "structure_vae.safetensors"
    with reading(path, "weights of the VAE in structure_vae.json", "Train it again"):
        vae.load_state_dict(read_weights(path))
    return vae.eval().requires_grad_(False)


@dataclass(frozen=True)
class Targets:
    """CLIP embeddings of a study's pictures, and the scale in which encoders predict them.

    Attributes
    ----------
    embeddings : float32 array of shape (n_pictures, embed_dim), as CLIP gives them
    center, spread : arrays of shape (embed_dim,), mean and standard deviation of training pictures
    """

    embeddings: np.ndarray
    center: np.ndarray
    spread: np.ndarray

    @property
    def standardised(self) -> np.ndarray:
        """float32 array of shape (n_pictures, embed_dim): what an encoder is to predict."""
        return ((self.embeddings - self.center) / self.spread).astype(np.float32)


def open_targets(clip: Artifact | Path, image_ids: Sequence[str]) -> Targets:
    """Open the embeddings that notebook 02b stored, in the order of `image_ids`.

    Parameters
    ----------
    clip : `clip`
    image_ids : sequence of str

    Raises
    ------
    FeatureOrderError
        When the stored ids are not these.
    """
    scale = read_npz(clip / "target_scale.npz", ["center", "spread"])
    embeddings = load_features(clip / "image_embeddings.npy", image_ids)
    width = embeddings.shape[1:]
    if not scale["center"].shape == scale["spread"].shape == width:
        raise DatasetError(
            f"{clip / 'target_scale.npz'} holds arrays of shapes {scale['center'].shape} and "
            f"{scale['spread'].shape}, embeddings have {width}: run 02b_clip again"
        )
    return Targets(embeddings, scale["center"], scale["spread"])


def open_clip_model(
    artifact: Artifact, device: str | torch.device = "cpu"
) -> tuple[nn.Module, open_clip.tokenizer.SimpleTokenizer]:
    """Open the CLIP of a study: a named model, or the one that notebook 02b trained.

    Parameters
    ----------
    artifact : `clip`
    device : where the model goes

    Returns
    -------
    model : open_clip model in evaluation mode, gradients off
    tokenizer : callable, list of str -> int tensor of shape (n, context_length)
    """
    name = artifact.parameters.get("clip_model", "")
    pretrained = artifact.parameters.get("clip_pretrained") or None
    return load_clip(name or f"local-dir:{artifact / 'clip'}", pretrained, device)


def clip_embedder(clip: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Function of pictures (n, 3, size, size) in [0, 1] to embeddings, differentiable in the pictures.

    Parameters
    ----------
    clip : open_clip model; its own mean and spread of colours are used where it names them
    """
    mean, std = (
        torch.tensor(getattr(clip.visual, name, None) or default).view(1, 3, 1, 1)
        for name, default in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD))
    )
    side = clip.visual.image_size
    side = (side, side) if isinstance(side, int) else tuple(side)

    weight = next(clip.parameters())
    mean, std = mean.to(weight), std.to(weight)

    def embed(pictures: torch.Tensor) -> torch.Tensor:
        batch = pictures.to(weight)
        if tuple(batch.shape[-2:]) != side:
            batch = F.interpolate(batch, size=side, mode="bicubic", antialias=True)
        return clip.encode_image((batch - mean) / std).to(pictures)

    return embed


def clip_label(clip: Artifact) -> str:
    """How tables call the CLIP of a study: ``tiny``, or the model's name in lower case."""
    name = clip.parameters.get("clip_model", "")
    if not name or name.startswith("local-dir:"):
        return "tiny"
    return name.lower().replace("-", "_")
