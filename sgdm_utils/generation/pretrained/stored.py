"""A pretrained generator as the generator of a study: what 05 and 05b write down, and 06 opens.

Gigabytes of somebody else's weights are not copied into an artifact. It holds a small file that says
which parts are used, local ones by the digests of their files and names of the Hugging Face hub by
their revision, and beside it what is the study's own: the EEG decoder and the scale of embeddings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.utils import filter_repo_objects
from torch.nn import functional as F

from sgdm_utils.decoding.trained import Targets
from sgdm_utils.errors import reading
from sgdm_utils.generation.decoder import EEGDecoder
from sgdm_utils.generation.pretrained.generator import PretrainedGenerator
from sgdm_utils.generation.pretrained.parts import (
    Family,
    check_controlnet,
    check_model,
    family_of,
    local_path,
    locate,
    pinned,
    read_adapter,
    used_files,
)
from sgdm_utils.workflow import paths
from sgdm_utils.workflow.artifacts import Artifact
from sgdm_utils.workflow.atomic import digest_file
from sgdm_utils.workflow.formats import read_json, read_npz

#: The file by which an artifact `generator` or `pipeline` says that a pretrained generator draws.
DESCRIPTION = "generator.json"


class PartsChanged(RuntimeError):
    """A local part of a pretrained generator is not the one that the study was made with."""


@dataclass(frozen=True)
class PretrainedParts:
    """Which pretrained parts draw the pictures of a study; made by `find_parts`.

    Attributes
    ----------
    family : str, a name in `parts.FAMILIES`
    model, controlnet, ip_adapter : str
        Paths as they were given, or names on the hub with their revision.
    variant : str, "" for the files without one
    accept_licence : list of str, licences that were accepted
    embed_dim : int, length of the embeddings that the adapter takes
    files : dict of part to dict of file name to size and SHA-256, for the parts that are paths
    """

    family: str
    model: str
    controlnet: str
    ip_adapter: str
    variant: str
    accept_licence: list[str]
    embed_dim: int
    files: dict[str, dict[str, dict[str, int | str]]]


def find_parts(
    family: str,
    embed_dim: int,
    clip: str,
    model: str = "",
    controlnet: str = "",
    ip_adapter: str = "",
    variant: str = "",
    accept_licence: Sequence[str] = (),
) -> PretrainedParts:
    """Find the parts of a pretrained generator and check that they fit each other and the study.

    Names on the hub are fetched, once their licences are accepted. No network is loaded.

    Parameters
    ----------
    family : "sdxl_turbo" or "sd15"
    embed_dim : int, length of the study's embeddings
    clip : str, the CLIP that they come from, as `decoding.clip_label` calls it
    model, controlnet, ip_adapter : path, or name on the hub; "" takes the family's own
    variant : "fp16" for the model's half-size files
    accept_licence : identifiers of the licences that are accepted

    Raises
    ------
    ValueError
        An unknown family, parts that do not fit each other, or embeddings that the adapter was not
        trained with.
    FileNotFoundError
        A part, a component of it or its weights are missing.
    sgdm_utils.workflow.downloads.catalogue.LicenceError, .transfers.DownloadError
        See `PretrainedGenerator.from_pretrained`.
    """
    kind = family_of(family)
    if not ip_adapter and (embed_dim, clip) != (kind.embed_dim, kind.clip):
        raise ValueError(_wrong_embeddings(embed_dim, clip, kind, kind.embed_dim))
    sources = {
        "model": model or kind.model,
        "controlnet": controlnet or kind.controlnet,
        "ip_adapter": ip_adapter or kind.ip_adapter,
    }
    places = dict(
        zip(
            sources,
            locate(kind, *sources.values(), accept_licence, variant or None),
            strict=True,
        )
    )
    unet = check_model(places["model"], kind, variant or None)
    check_controlnet(places["controlnet"], unet)
    adapter = read_adapter(places["ip_adapter"], unet)
    takes = adapter["image_proj"]["proj.weight"].shape[1]
    if takes != embed_dim:
        raise ValueError(_wrong_embeddings(embed_dim, clip, kind, takes))
    local = {part: places[part] for part, source in sources.items() if local_path(source)}
    return PretrainedParts(
        family=family,
        **{part: pinned(part, source, places[part]) for part, source in sources.items()},
        variant=variant,
        accept_licence=list(accept_licence),
        embed_dim=takes,
        files={part: _describe(part, place, kind, variant) for part, place in local.items()},
    )


def save_parts(folder: Path, parts: PretrainedParts) -> None:
    """Write which parts draw, for `open_parts`.

    Parameters
    ----------
    folder : Path, of the artifact `generator` that is being written
    parts : from `find_parts`
    """
    _describe_parts(folder, asdict(parts))


def open_parts(artifact: Artifact | Path) -> PretrainedParts:
    """Read what `save_parts` wrote into an artifact `generator`.

    Raises
    ------
    DatasetError
        Names a file that is damaged.
    """
    description = read_json(artifact / DESCRIPTION)
    again = "Run 05_diffusion_training again"
    with reading(artifact / DESCRIPTION, "a description of parts", again):
        return PretrainedParts(**description)


def save_generator(
    folder: Path, parts: PretrainedParts, decoder: EEGDecoder, targets: Targets, size: int
) -> None:
    """Write what `generation.open_generator` needs to draw with a pretrained generator.

    Parameters
    ----------
    folder : Path, of the artifact `pipeline` that is being written
    parts : from `find_parts`
    decoder : EEGDecoder, with its trust levels
    targets : Targets, for the scale of the embeddings
    size : int, pixels per side of the study's pictures
    """
    _describe_parts(folder, asdict(parts) | {"size": size})
    np.savez(folder / "embedding_scale.npz", center=targets.center, spread=targets.spread)
    decoder.save_pretrained(folder / "decoder")


def load_generator(
    folder: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    verify: bool = False,
) -> PretrainedPipeline:
    """Open what `save_generator` wrote; notebooks call `generation.open_generator`.

    Parameters
    ----------
    folder : Path, of an artifact `pipeline`
    device : where the networks go
    dtype : of UNet and ControlNet, the fast one of the device by default
    verify : bool, compare the digests of local parts, not only names and sizes

    Raises
    ------
    PartsChanged
        A local part is not the one that notebook 05 described.
    """
    description = read_json(folder / DESCRIPTION)
    with reading(folder / DESCRIPTION, "a description of parts", "Run 05b_pipeline again"):
        size = int(description.pop("size"))
        parts = PretrainedParts(**description)
    _check_files(parts, verify)
    scale = read_npz(folder / "embedding_scale.npz", ["center", "spread"])
    center, spread = (torch.from_numpy(scale[name]) for name in ("center", "spread"))
    networks = PretrainedGenerator.from_pretrained(
        parts.family,
        parts.model,
        parts.controlnet,
        parts.ip_adapter,
        accept_licence=parts.accept_licence,
        device=device,
        dtype=dtype,
        variant=parts.variant or None,
        center=center,
        spread=spread,
    )
    networks.set_progress_bar_config(disable=True)
    decoder = EEGDecoder.from_pretrained(folder / "decoder")
    return PretrainedPipeline(networks, decoder.to(device).eval().requires_grad_(False), size)


def _describe_parts(folder: Path, description: dict) -> None:
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


class PretrainedPipeline:
    """A pretrained generator with the EEG decoder of a study, called as `SGDMPipeline` is.

    Parameters
    ----------
    networks : PretrainedGenerator, told the scale by which the study's embeddings are standardised
    decoder : EEGDecoder
    size : int, pixels per side of the study's pictures; what is drawn is brought to it

    Attributes
    ----------
    classifier : None, there is no guide to a category
    """

    classifier = None

    def __init__(self, networks: PretrainedGenerator, decoder: EEGDecoder, size: int) -> None:
        self.networks, self.decoder, self.size = networks, decoder, size

    @property
    def unet(self) -> torch.nn.Module:
        """The UNet; its `dtype` says in which precision pictures are drawn."""
        return self.networks.pipe.unet

    @torch.no_grad()
    def generate(
        self,
        embedding: torch.Tensor,
        maps: torch.Tensor | None,
        semantic_scale: float = 1.0,
        structure_scale: float = 1.0,
        num_inference_steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        embedding_noise: float | torch.Tensor = 0.0,
        structure_noise: float | torch.Tensor = 0.0,
        category: torch.Tensor | None = None,
        category_scale: float = 0.0,
        colours: torch.Tensor | None = None,
    ) -> np.ndarray:
        """Sample one picture for each embedding; see `SGDMPipeline.generate`.

        Parameters
        ----------
        embedding : tensor of shape (batch, embed_dim), standardised CLIP space
        maps : tensor of shape (batch, 2, h, h) in [0, 1], or None for no structure
        semantic_scale : float, weight of the IP-Adapter; 1 is what it was trained with
        structure_scale : float, weight of the ControlNet
        num_inference_steps : int, the family's by default
        generator : torch.Generator on the CPU for each picture, or one where all pictures are
            given the same conditions
        embedding_noise, structure_noise : float or tensor of shape (batch,), in [0, 1]
            These networks have no input for doubt. A level of 1 stands for "nothing known": the
            condition is left out for that picture. Lower levels change nothing.
        category, colours : not used: these networks are told neither
        category_scale : 0, because nothing guides them to one

        Returns
        -------
        float32 array of shape (batch, size, size, 3) in [0, 1]

        Raises
        ------
        ValueError
            For a category scale above 0, and what `PretrainedGenerator` refuses.
        """
        if category_scale:
            raise ValueError(
                f"category_scale is {category_scale}, but a pretrained generator has no category guide: "
                "set `category_scales: [0.0]` for 06_evaluation in the study's configuration"
            )
        batch = len(embedding)
        known = torch.stack(
            [_below_one(embedding_noise, batch), _below_one(structure_noise, batch)], dim=1
        )
        groups = [(known == pair).all(1) for pair in known.unique(dim=0)]
        if len(groups) > 1 and not isinstance(generator, Sequence):
            raise ValueError(
                "some pictures are given conditions and others are not: give one torch.Generator for "
                "each picture, or they would share one stream of noise in no fixed order"
            )
        if len(groups) < 2:  # also an empty batch, which is refused below
            return self._draw(
                embedding, maps, semantic_scale, structure_scale, num_inference_steps, generator,
                known[0].tolist() if batch else (True, True),
            )  # fmt: skip
        pictures = np.empty((batch, self.size, self.size, 3), np.float32)
        for rows in (group.nonzero()[:, 0] for group in groups):
            pictures[rows.numpy()] = self._draw(
                embedding[rows],
                None if maps is None else maps[rows],
                semantic_scale,
                structure_scale,
                num_inference_steps,
                [generator[row] for row in rows.tolist()],
                known[rows[0]].tolist(),
            )
        return pictures

    def _draw(
        self, embedding, maps, semantic_scale, structure_scale, steps, generator, known
    ) -> np.ndarray:
        meaning_known, structure_known = known
        pictures = self.networks(
            embedding,
            maps if structure_known else None,
            semantic_scale if meaning_known else 0.0,
            structure_scale,
            steps,
            generator=generator,
        )
        pictures = torch.from_numpy(pictures).movedim(-1, 1)
        if pictures.shape[-1] != self.size:
            pictures = F.interpolate(
                pictures, (self.size, self.size), mode="bilinear", antialias=True
            ).clamp(0, 1)
        return pictures.movedim(1, -1).contiguous().numpy()


def _below_one(noise: float | torch.Tensor, batch: int) -> torch.Tensor:
    """Whether a condition says anything, bool tensor of shape (batch,)."""
    levels = torch.as_tensor(noise, dtype=torch.float32).cpu()
    if levels.shape not in ((), (batch,)):
        raise ValueError(f"a noise level has shape {tuple(levels.shape)}, expected ({batch},)")
    if not ((levels >= 0) & (levels <= 1)).all():
        raise ValueError("noise levels must lie in [0, 1]")
    return (levels < 1).expand(batch)


def _wrong_embeddings(embed_dim: int, clip: str, kind: Family, takes: int) -> str:
    return (
        f"the study's embeddings have {embed_dim} numbers and come from the CLIP {clip!r}; the "
        f"IP-Adapter takes {takes}, the one of {kind.title} those of OpenCLIP ViT-H-14. Set "
        "`clip_model: ViT-H-14` and `clip_pretrained: laion2b_s32b_b79k` for "
        f"02b_clip and `embed_dim: {kind.embed_dim}` for 02_encoder_pretraining in "
        "the study's configuration and run it again; or name an adapter of the study's CLIP "
        "(`pretrained_adapter`), or let the study draw with what it trains (`generator: latent`)"
    )


def _names(part: str, place: Path, kind: Family, variant: str) -> list[Path]:
    """Files of a local part that are read."""
    if place.is_file():
        return [place]
    allow, ignore = used_files(kind, variant or None)[part]
    there = [p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()]
    kept = filter_repo_objects(there, allow_patterns=allow, ignore_patterns=ignore or None)
    return [place / name for name in sorted(kept)]


def _describe(part: str, place: Path, kind: Family, variant: str) -> dict[str, dict]:
    root = place if place.is_dir() else place.parent
    return {
        file.relative_to(root).as_posix(): {
            "size": file.stat().st_size,
            "sha256": digest_file(file),
        }
        for file in _names(part, place, kind, variant)
    }


def _check_files(parts: PretrainedParts, verify: bool) -> None:
    for part, described in parts.files.items():
        place = local_path(getattr(parts, part))
        if place is None:
            raise PartsChanged(
                f"{part}: {getattr(parts, part)} is not on this machine any more. Put it back, or give "
                "its new place to notebook 05 and run that again"
            )
        root = place if place.is_dir() else place.parent
        for name, about in described.items():
            file = root / name
            same = file.is_file() and os.path.getsize(file) == about["size"]
            if not same or (verify and digest_file(file) != about["sha256"]):
                raise PartsChanged(
                    f"{part}: {paths.relative(file)} is not the file that this study's pipeline was "
                    "described with. Put that file back, or run notebook 05 again"
                )
