"""Files of pretrained weights: where they are on this machine, and what is in them.

Nothing is downloaded. Use it through `sgdm_utils.metrics.networks`.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sgdm_utils.metrics.pixels import WeightsNotAvailable
from sgdm_utils.metrics.protocol import TrunkSpec
from sgdm_utils.workflow.atomic import digest_file


def find_weights(spec: TrunkSpec, weights: str | Path | None = None) -> Path:
    """Path of a trunk's weights on this machine, without touching the network.

    Parameters
    ----------
    spec : TrunkSpec
    weights : path, optional
        A file, which is taken as it is, or a folder to look in first, for the published name or
        the same name ending in `.safetensors`. Then follow the caches of torch and open_clip.

    Raises
    ------
    WeightsNotAvailable
        Names the file, every place that was looked in, and where the file comes from.
    FileNotFoundError
        The given path does not exist: a slip in the configuration is no missing download.
    ValueError
        A file of the published name has another content than was published.
    """
    if weights is not None and not Path(weights).exists():
        raise FileNotFoundError(f"weights of {spec.name}: there is no {weights}")
    if weights is not None and Path(weights).is_file():
        return Path(weights)
    looked = [Path(weights)] if weights is not None else []
    looked.append(Path(torch.hub.get_dir()) / "checkpoints")
    if spec.hub:
        looked.append(Path("~/.cache/clip").expanduser())
    for folder in looked:
        for name in (spec.file, f"{spec.file.split('.')[0]}.safetensors"):
            if (folder / name).is_file():
                return _checked(folder / name, spec)
    if spec.hub:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(spec.hub, "open_clip_model.safetensors")
        if isinstance(cached, str):
            return Path(cached)
    places = ", ".join([*map(str, looked), *([f"the hub's cache of {spec.hub}"] * bool(spec.hub))])
    raise WeightsNotAvailable(
        f"{spec.name} needs {spec.file}, which is not in {places}. It comes from {spec.url} "
        f"({_catalogued(spec.file)}): fetch it where there is a network and give its path"
    )


def read_state(path: Path, spec: TrunkSpec) -> dict[str, Any]:
    """Names and tensors in a file of weights; nothing in the file is executed.

    Raises
    ------
    ValueError
        No state dict, a damaged file, or a program.
    """
    program = _is_torchscript(path)
    # OpenAI's file is one; it is run only where it is known to be that
    if program and digest_file(path) != spec.sha256:
        raise ValueError(
            f"{path} is a TorchScript program of unknown origin, which is not run here: "
            "save its state dict as .safetensors and give that file"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if program:
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a reader makes of arbitrary bytes is anybody's guess
        raise ValueError(
            f"{path} cannot be read as weights of {spec.name} ({type(error).__name__}): fetch "
            f"{spec.url} again"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a state dict")
    return state.get("state_dict", state)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _checked(path: Path, spec: TrunkSpec) -> Path:
    """Refuse half a download: the publishers' files carry the beginning of their SHA-256."""
    if path.name == spec.file and spec.sha256:
        digest = digest_file(path)
        if not digest.startswith(spec.sha256):
            raise ValueError(
                f"{path} is damaged (SHA-256 {digest[:8]}..., published {spec.sha256[:8]}...): "
                f"remove it and fetch {spec.url} again"
            )
    return path


def _catalogued(file: str) -> str:
    from sgdm_utils.workflow.downloads import (
        catalogue,  # a second that only those pay who lack weights
    )

    try:
        entries = catalogue.load_catalogue().values()
    except (catalogue.CatalogueError, RuntimeError):  # a copy of the package without the checkout
        return "data/licences.yaml cannot be read here"
    names = [entry.name for entry in entries if any(f.path == file for f in entry.files)]
    return f"{names[0]} in data/licences.yaml" if names else "not in data/licences.yaml"
