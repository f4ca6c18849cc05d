"""Feature networks of the agreed image metrics, from weights that are already on this machine.

`TRUNKS` says which layers there are; `load_trunk` builds one from a path, from a folder, or from the
cache in which torch and open_clip keep their downloads. Nothing is ever downloaded here; a missing
file is `errors.WeightsNotAvailable`.
"""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sgdm_utils.errors import DatasetError, WeightsNotAvailable, reading
from sgdm_utils.metrics.pixels import PROTOCOL_SIZE, resized
from sgdm_utils.metrics.protocol import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    TRUNKS,
    TrunkSpec,
)
from sgdm_utils.workflow.atomic import digest_file

Precision = Literal["float32", "bfloat16"]


class Trunk(nn.Module):
    """Pictures in, features out: resizing, normalisation and network in one.

    Parameters
    ----------
    name : str
    network : nn.Module, normalised pictures -> features of shape (n, ...)
    size : int, pixels, side of the square input
    mean, std : sequence of 3 floats
    precision : "float32" or "bfloat16"
        bfloat16 runs the layers that torch deems safe in 16 bits. It is faster where the hardware
        multiplies such numbers, and moves features by per cents: never compare scores across
        precisions.
    text : callable, optional, list of captions -> features of the same space
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        size: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        precision: Precision = "float32",
        text: Callable[[nn.Module, list[str]], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision {precision!r} is unknown, expected float32 or bfloat16")
        self.name, self.size, self.precision = name, size, precision
        self.network = network.eval().requires_grad_(False)
        self._text = text
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.mean.device

    @property
    def has_text(self) -> bool:
        """Captions can be brought into the same space."""
        return self._text is not None

    def train(self, mode: bool = True) -> Trunk:
        """Stay in evaluation mode, whatever is asked for: dropout would make scores random."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """Features of pictures.

        Parameters
        ----------
        pictures : float tensor of shape (n, 3, height, width), RGB in [0, 1]

        Returns
        -------
        float32 tensor of shape (n, n_features), on the device of the network
        """
        x = pictures.to(self.device, torch.float32)
        # in two steps, as the protocol says: everything passes through 256 x 256
        x = (resized(resized(x, PROTOCOL_SIZE), self.size) - self.mean) / self.std
        with autocast(self.device, self.precision):
            features = self.network(x)
        if isinstance(features, dict):
            (features,) = features.values()
        return features.flatten(1).float()

    @torch.no_grad()
    def encode_text(self, captions: list[str]) -> Tensor:
        """Features of captions, float32 of shape (n, n_features); only a CLIP has them."""
        if self._text is None:
            raise ValueError(f"{self.name} sees pictures only: a text score needs a CLIP model")
        with autocast(self.device, self.precision):
            return self._text(self.network, list(captions)).float()


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which a network computes with this precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def load_trunk(
    name: str | TrunkSpec,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    text: bool = False,
) -> Trunk:
    """Build one of `TRUNKS` from weights on this machine.

    Parameters
    ----------
    name : str, or a TrunkSpec
    weights : path, optional, a file, or a folder to look in; see `find_weights`
    device : where the network goes
    precision : "float32" or "bfloat16"; see `Trunk`
    text : bool, keep the text tower of a CLIP too (0.5 GB of ViT-L/14)

    Raises
    ------
    WeightsNotAvailable, FileNotFoundError
        See `find_weights`.
    ValueError
        An unknown name, or a file that is damaged or of another network.
    """
    if isinstance(name, str) and name not in TRUNKS:
        raise ValueError(f"there is no trunk {name!r}, expected one of {', '.join(TRUNKS)}")
    spec = TRUNKS[name] if isinstance(name, str) else name
    path = find_weights(spec, weights)
    network = _with_weights(spec, path, spec.unused if text else spec.unused + spec.text)
    if spec.layer:
        from torchvision.models.feature_extraction import create_feature_extractor

        # cuts the network behind the layer, so that neither time nor memory goes into the rest
        network = create_feature_extractor(network, [spec.layer], suppress_diff_warning=True)
    if precision == "bfloat16":
        network = _in_16_bits(network)
    encode_text = None
    if spec.text and text:
        network, encode_text = _ImageTower(network), _encode_text
    elif spec.text:
        network = network.visual
    trunk = Trunk(spec.name, network, spec.size, spec.mean, spec.std, precision, encode_text)
    return trunk.to(device)


def clip_trunk(model: nn.Module, name: str, precision: Precision = "float32") -> Trunk:
    """A CLIP of this study's own as a trunk, the stand-in where published weights are missing.

    Parameters
    ----------
    model : open_clip model
    name : str, "clip_tiny" or the like; the name of a pretrained trunk is refused, because a row of
        the table must not be mistaken for the published metric
    """
    if name in TRUNKS:
        raise ValueError(f"{name} is the name of a pretrained trunk: name a stand-in differently")
    size = model.visual.image_size
    size = size if isinstance(size, int) else size[0]
    if precision == "bfloat16":
        model = _in_16_bits(copy.deepcopy(model))  # the caller's own stays as it is
    return Trunk(name, _ImageTower(model), size, CLIP_MEAN, CLIP_STD, precision, _encode_text)


def _in_16_bits(network: nn.Module) -> nn.Module:
    """Change the large weights of a network to bfloat16, in place; norms keep their 32 bits.

    Autocast alone would turn them anew for each batch, and worse: the first product of torch's
    attention then copies its weight for every row. That made a ViT-L/14 thirteen times slower in
    16 bits than it is in 32 (torch 2.15 on a processor).
    """
    heavy = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
    for module in network.modules():
        if isinstance(module, heavy):
            for weight in module.parameters(recurse=False):
                weight.data = weight.data.bfloat16()
    return network.to(memory_format=torch.channels_last)


class _ImageTower(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures: Tensor) -> Tensor:
        return self.model.encode_image(pictures)


def _encode_text(tower: _ImageTower, captions: list[str]) -> Tensor:
    import open_clip

    model = tower.model
    tokens = open_clip.SimpleTokenizer(context_length=model.context_length)(captions)
    return model.encode_text(tokens.to(next(model.parameters()).device))


def _with_weights(spec: TrunkSpec, path: Path, unused: tuple[str, ...]) -> nn.Module:
    # on the meta device, a network costs neither memory nor time for random weights that are
    # replaced at once
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = spec.build()
    state = {
        name.removeprefix(spec.strip): value
        for name, value in read_state(path, spec).items()
        if isinstance(value, Tensor)
    }
    wanted = {n: v for n, v in network.state_dict().items() if not n.startswith(unused)}
    for name in wanted:
        if name.endswith("num_batches_tracked"):  # a counter that files of old lack
            state.setdefault(name, torch.tensor(0))
    missing = sorted(wanted.keys() - state.keys())
    if missing:
        raise ValueError(
            f"{path} holds no weights of {spec.name}: it lacks {len(missing)} of {len(wanted)} "
            f"tensors, the first is {missing[0]}. The file is {spec.file} of {spec.url}"
        )
    for name, value in wanted.items():
        if state[name].shape != value.shape:
            raise ValueError(
                f"{path} holds no weights of {spec.name}: {name} has shape "
                f"{tuple(state[name].shape)} instead of {tuple(value.shape)}"
            )
    for name in wanted:  # one by one, so that no second copy of a large file is held
        value = state.pop(name)
        state[name] = value.float() if value.is_floating_point() else value
    network.load_state_dict({name: state[name] for name in wanted}, strict=False, assign=True)
    if isinstance(getattr(network, "attn_mask", None), Tensor):  # CLIP's; not in the file
        n = network.context_length
        network.attn_mask = torch.full((n, n), float("-inf")).triu(1)
    return network.eval()


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
            path = folder / name
            if not path.is_file():
                continue
            # publishers' files carry the beginning of their SHA-256: half a download is refused
            published = spec.sha256 if name == spec.file else ""
            if published and not (digest := digest_file(path)).startswith(published):
                raise ValueError(
                    f"{path} is damaged (SHA-256 {digest[:8]}..., published {published[:8]}...): "
                    f"remove it and fetch {spec.url} again"
                )
            return path
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
    program = False
    with reading(path, f"weights of {spec.name}", f"Fetch {spec.url} again"):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                program = any("/code/" in name for name in archive.namelist())
                size = sum(member.file_size for member in archive.infolist())
                if size > 2 * path.stat().st_size:  # torch stores, it does not pack
                    raise ValueError(f"it claims {size} bytes unpacked")
    # OpenAI's file is one; it is run only where it is known to be that
    if program and digest_file(path) != spec.sha256:
        raise DatasetError(
            f"{path} is a TorchScript program of unknown origin, which is not run here: "
            "save its state dict as .safetensors and give that file"
        )
    with reading(path, f"weights of {spec.name}", f"Fetch {spec.url} again"):
        if path.suffix == ".safetensors":
            return load_file(path)
        if program:
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state) if isinstance(state, dict) else state
        if not isinstance(state, dict):
            raise DatasetError(f"{path} holds a {type(state).__name__}, expected a state dict")
        return state


def _catalogued(file: str) -> str:
    from sgdm_utils.workflow.downloads import catalogue

    try:
        entries = catalogue.load_catalogue().values()
    except (catalogue.CatalogueError, RuntimeError):  # a copy of the package without the checkout
        return "data/licences.yaml cannot be read here"
    names = [entry.name for entry in entries if any(f.path == file for f in entry.files)]
    return f"{names[0]} in data/licences.yaml" if names else "not in data/licences.yaml"
