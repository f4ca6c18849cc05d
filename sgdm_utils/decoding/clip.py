"""What a picture means, as numbers: CLIP image and text features through open_clip.

The demo trains a tiny CLIP on its own pictures and captions and stores it in open_clip's folder
layout; a real study names a pretrained model instead. Everything downstream sees only the features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sgdm_utils.decoding.features import FeatureError, FeatureOrderError, compute_features
from sgdm_utils.errors import reading
from sgdm_utils.stimuli.files import read_picture, stated
from sgdm_utils.workflow.atomic import digest_file

if TYPE_CHECKING:  # more than a second to load, and most notebooks read stored features only
    import open_clip

# OpenAI's CLIP normalisation; open_clip expects it in a model's preprocess_cfg
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def tiny_clip_config(embed_dim: int, image_size: int) -> dict:
    """An open_clip model configuration small enough for two CPU cores.

    A convolutional tower (open_clip's ModifiedResNet) learns position and colour from a few thousand
    drawings where a vision transformer would need many more.
    """
    return {
        "embed_dim": embed_dim,
        "vision_cfg": {"image_size": image_size, "layers": [1, 1, 1, 1], "width": 16},
        "text_cfg": {
            "context_length": 32, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2,
        },
    }  # fmt: skip


def create_clip(config: dict) -> nn.Module:
    """A randomly initialised open_clip model from a configuration dictionary."""
    import open_clip

    return open_clip.CLIP(**config, output_dict=False)


def tokenizer_for(config: dict) -> open_clip.tokenizer.SimpleTokenizer:
    """The tokenizer that goes with a configuration dictionary (open_clip's byte-pair encoder)."""
    import open_clip

    return open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])


@contextmanager
def used_positions(model: nn.Module, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """Within the block the text tower reads no further than the longest text; afterwards as far as it can.

    A text is read where it ends, and attention looks back only, so what stands behind the end costs
    time and says nothing. Trained positions stand in their places afterwards. Towers of another build
    (not causal, pooled elsewhere than at the end, behind a wrapper) read all of their positions.

    Parameters
    ----------
    model : open_clip model
    tokens : int tensor of shape (n, context_length), 0 behind the end of a text

    Yields
    ------
    int tensor of shape (n, length of the longest text)
    """
    every, mask = getattr(model, "positional_embedding", None), getattr(model, "attn_mask", None)
    pooled_at_end = getattr(model, "text_pool_type", None) == "argmax"
    if every is None or mask is None or not pooled_at_end or tokens.shape[1] != len(every):
        yield tokens
        return
    length = int((tokens != 0).any(0).nonzero().max()) + 1
    model.positional_embedding = nn.Parameter(
        every.detach()[:length].clone(), requires_grad=every.requires_grad
    )
    model.attn_mask = mask[:length, :length]
    try:
        yield tokens[:, :length]
    finally:
        with torch.no_grad():
            every[:length] = model.positional_embedding
        model.positional_embedding, model.attn_mask = every, mask


@contextmanager
def used_tokens(model: nn.Module, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """Within the block a model knows the tokens of a data set only; afterwards all of them again.

    Gradients and optimiser steps of an embedding of 49,408 tokens cost more than a small text tower,
    and captions use few of them, and few positions (`used_positions`). On leaving, the trained rows stand in their places;
    the others are as they were.

    Parameters
    ----------
    model : open_clip model with a `token_embedding`
    tokens : int tensor of shape (n, context_length), all that the block will show to the model

    Yields
    ------
    int tensor of shape (n, length of the longest text), numbered anew in the same order (open_clip
    reads a text where its highest token is)
    """
    every = model.token_embedding
    with used_positions(model, tokens) as shortened:
        used, numbered = shortened.unique(return_inverse=True)
        used = used.to(every.weight.device)
        model.token_embedding = nn.Embedding.from_pretrained(
            every.weight.detach()[used].clone(), freeze=False
        )
        try:
            yield numbered
        finally:
            with torch.no_grad():
                every.weight[used] = model.token_embedding.weight
            model.token_embedding = every


def save_clip(model: nn.Module, config: dict, folder: Path) -> None:
    """Write a model so that `open_clip.create_model("local-dir:<folder>")` reads it."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": CLIP_MEAN, "std": CLIP_STD, "size": config["vision_cfg"]["image_size"]}
    meta = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(meta, indent=2) + "\n")
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")


def load_clip(
    name: str, pretrained: str | None = None, device: str | torch.device = "cpu"
) -> tuple[nn.Module, open_clip.tokenizer.SimpleTokenizer]:
    """Load a CLIP model by open_clip name, or from a folder with `local-dir:<path>`.

    Parameters
    ----------
    name : str, for example 'ViT-H-14', or 'local-dir:' and the path of a folder
    pretrained : str, open_clip's tag ('laion2b_s32b_b79k') or the path of a weights file
    device : where the model goes

    Returns
    -------
    model : nn.Module in evaluation mode, gradients off
    tokenizer : callable, list of str -> int tensor of shape (n, context_length)

    Raises
    ------
    FileNotFoundError
        If a local folder lacks the configuration or the weights.
    ValueError
        If a named model is asked for without weights: random features would look like a result.
    """
    import open_clip

    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        for part in ("open_clip_config.json", "open_clip_model.safetensors"):
            if not (folder / part).is_file():
                raise FileNotFoundError(f"{folder} is not a CLIP folder: {part} is missing")
    elif not pretrained:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ValueError(f"CLIP model {name!r} needs `pretrained`; known tags: {', '.join(tags)}")
    with reading(name.removeprefix("local-dir:"), "a CLIP", "Copy it again, or train it again"):
        model = open_clip.create_model(
            name, pretrained=pretrained, device=device, output_dict=False
        )
        return model.eval().requires_grad_(False), open_clip.get_tokenizer(name)


def clip_pixels(pictures: np.ndarray, model: nn.Module) -> torch.Tensor:
    """Normalised input of the image tower.

    Parameters
    ----------
    pictures : uint8 array of shape (n, height, width, 3)
    model : open_clip model; its `visual` has the size, and the mean and spread that were subtracted
        and divided by when it was trained (CLIP's where it states none)

    Returns
    -------
    float32 tensor of shape (n, 3, image_size, image_size)
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
        raise ValueError(
            f"pictures must be uint8 (n, h, w, 3), got {pictures.dtype} {pictures.shape}"
        )
    x = torch.tensor(np.asarray(pictures)).permute(0, 3, 1, 2).float() / 255
    size = model.visual.image_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    if x.shape[-2:] != size:
        x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)
    # what open_clip read from the model's preprocess_cfg; a network built here has OpenAI's
    stated = (getattr(model.visual, name, None) for name in ("image_mean", "image_std"))
    mean, std = (
        torch.tensor(v or default).view(1, 3, 1, 1)
        for v, default in zip(stated, (CLIP_MEAN, CLIP_STD), strict=True)
    )
    return (x - mean) / std


@torch.no_grad()
def image_features(model: nn.Module, pictures: np.ndarray, batch: int = 128) -> np.ndarray:
    """Unnormalised CLIP image embeddings.

    Parameters
    ----------
    model : open_clip model
    pictures : uint8 array of shape (n, height, width, 3)
    batch : int

    Returns
    -------
    float32 array of shape (n, embed_dim)
    """
    device = next(model.parameters()).device
    parts = [
        model.encode_image(clip_pixels(pictures[i : i + batch], model).to(device)).float().cpu()
        for i in range(0, len(pictures), batch)
    ]
    return torch.cat(parts).numpy()


@torch.no_grad()
def text_features(
    model: nn.Module, tokenizer, captions: Sequence[str], batch: int = 512
) -> np.ndarray:
    """Unnormalised CLIP text embeddings, float32 array of shape (n, embed_dim).

    Equal captions are read once.
    """
    device = next(model.parameters()).device
    captions, which = np.unique(np.asarray(captions, dtype=object), return_inverse=True)
    with used_positions(model, tokenizer(captions.tolist())) as tokens:
        parts = [model.encode_text(part.to(device)).float().cpu() for part in tokens.split(batch)]
    return torch.cat(parts).numpy()[which]


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of names, types, shapes and values of a model's weights and buffers."""

    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def clip_features(
    model: nn.Module,
    image_ids: Sequence[str],
    pictures: Sequence[Path] | np.ndarray,
    path: Path,
    name: str = "",
    batch: int = 128,
    progress: bool = True,
) -> np.ndarray:
    """Compute unnormalised CLIP image embeddings into a file; see `compute_features`.

    Pictures are read when their turn comes, so `batch` of them are in memory. Files are brought to
    the size of the model's image tower at once (`read_picture`).

    Parameters
    ----------
    model : open_clip model
    image_ids : sequence of str
    pictures : paths, or uint8 array of shape (n, height, width, 3), in the order of `image_ids`
    path : Path, `name.npy`
    name : str, of the model, kept with the features beside the digest of its weights
    batch : int
    progress : bool, show a bar

    Returns
    -------
    float32 array of shape (n_images, embed_dim), mapped read-only from `path`

    Raises
    ------
    FeatureError
        As for `compute_features`; a picture that is missing.
    PictureError
        A picture that cannot be read as it was shown, see `stimuli.files.read_rgb`.
    FeatureOrderError
        As for `compute_features`; more or fewer pictures than ids.
    """
    ids = list(image_ids)
    if len(pictures) != len(ids):
        raise FeatureOrderError(f"{len(pictures)} pictures for {len(ids)} images")
    size = model.visual.image_size
    identity = {"model": name, "weights_sha256": weights_digest(model)}
    row_of = {image: row for row, image in enumerate(ids)}
    if isinstance(pictures, np.ndarray) and pictures.ndim > 1:
        digest = hashlib.sha256(f"{pictures.dtype} {pictures.shape}\n".encode())
        for picture in pictures:
            digest.update(np.ascontiguousarray(picture))
        identity["pictures_sha256"] = digest.hexdigest()

        def load(some: list[str]) -> np.ndarray:
            return np.ascontiguousarray(pictures[[row_of[i] for i in some]])
    else:
        files = [Path(p) for p in pictures]
        absent = [p for p in files if not p.is_file()]
        if absent:
            raise FeatureError(
                f"{len(absent)} of {len(ids)} picture files are missing, the first is {absent[0]}"
            )
        digests = "".join(f"{digest_file(p)}\n" for p in files)
        identity["pictures_sha256"] = hashlib.sha256(digests.encode()).hexdigest()
        identity["picture_size"] = list(size) if isinstance(size, tuple) else size
        folders = {p.parent: p for p in files}.values()
        shown = {json.dumps(s, sort_keys=True) for p in folders if (s := stated(p))}
        identity |= {"stated": sorted(shown)} if shown else {}

        def load(some: list[str]) -> np.ndarray:
            return np.stack([read_picture(files[row_of[i]], size) for i in some])

    return compute_features(
        lambda some: image_features(model, some, batch),
        ids, load, path, batch, progress, identity,
    )  # fmt: skip
