"""Feature networks of the agreed image metrics: which layer, which size, which normalisation.

A metric in feature space is only comparable when all three are the published ones, and each slip
gives a plausible number. So they are data here (`TRUNKS`), and a network is built from a file of
weights that is already on this machine: a path, a folder, or the cache in which torch and open_clip
keep their downloads. Nothing is ever downloaded; a missing file is `metrics.WeightsNotAvailable`.

References
----------
Ozcelik & VanRullen, Scientific Reports 13, 15666 (2023), and Scotti et al., MindEye2 (2024): the
protocol. Krizhevsky, arXiv:1404.5997 (AlexNet). Szegedy et al., CVPR (2016): Inception v3. Tan & Le,
ICML (2019): EfficientNet. Caron et al., NeurIPS (2020): SwAV. Radford et al., ICML (2021): CLIP.
"""

from __future__ import annotations

import contextlib
import pickle
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sgdm_utils import licences
from sgdm_utils.atomic import digest_file
from sgdm_utils.metrics import PROTOCOL_SIZE, WeightsNotAvailable, _resize

__all__ = [
    "TRUNKS", "Precision", "Trunk", "TrunkSpec", "clip_trunk", "find_weights", "load_trunk",
]  # fmt: skip

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
OPENAI_CLIP = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"  # its SHA-256

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class TrunkSpec:
    """One layer of one pretrained network.

    Attributes
    ----------
    name : str, ends the names of the metrics that use it
    size : int, pixels, the side of the square input, after 256 x 256
    layer : str, module whose output is the feature; "" for what `encode_image` returns
    file, url : str, name of the file of weights, and the address where its publisher keeps it
    sha256 : str, beginning of the file's SHA-256 as far as it was published
    build : callable, () -> network with this file's names of weights
    unused : names of weights (their beginnings) behind the layer; a file may lack them
    strip : str, what the names in the file have in front
    hub : str, repository of the Hugging Face hub in whose cache open_clip keeps the weights
    mean, std : of the input's normalisation, per colour
    """

    name: str
    size: int
    layer: str
    file: str
    url: str
    sha256: str
    build: Callable[[], nn.Module]
    unused: tuple[str, ...] = ()
    strip: str = ""
    hub: str = ""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def _torchvision(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision import models  # a second that those who only want PixCorr need not pay

        return getattr(models, name)(weights=None, **arguments)

    return build


def _openai_clip() -> nn.Module:
    import open_clip

    # OpenAI trained with the quick approximation of GELU; with the exact one the same weights give
    # other, plausible features
    return open_clip.CLIP(**open_clip.get_model_config("ViT-L-14-quickgelu"))


_DOWNLOADS = "https://download.pytorch.org/models/"  # as torchvision's weight enumerations state
_ALEXNET = {
    "size": 256, "file": "alexnet-owt-7be5be79.pth", "sha256": "7be5be79",
    "url": f"{_DOWNLOADS}alexnet-owt-7be5be79.pth",
    "build": _torchvision("alexnet"), "unused": ("classifier.",),
}  # fmt: skip

#: The layers of the agreed protocol, by name.
TRUNKS: dict[str, TrunkSpec] = {
    spec.name: spec
    for spec in (
        TrunkSpec(name="alexnet_2", layer="features.4", **_ALEXNET),
        TrunkSpec(name="alexnet_5", layer="features.11", **_ALEXNET),
        TrunkSpec(
            name="inception_v3",
            size=342,
            layer="avgpool",
            file="inception_v3_google-0cc3c7bd.pth",
            url=f"{_DOWNLOADS}inception_v3_google-0cc3c7bd.pth",
            sha256="0cc3c7bd",
            # these weights expect inputs in [-1, 1]; torchvision undoes ImageNet's normalisation
            # inside the network, but switches that on only where it loads the weights itself
            build=_torchvision("inception_v3", transform_input=True, init_weights=False),
            unused=("AuxLogits.", "fc."),
        ),
        TrunkSpec(
            name="clip_vit_l_14",
            size=224,
            layer="",
            file="ViT-L-14.pt",
            url=f"https://openaipublic.azureedge.net/clip/models/{OPENAI_CLIP}/ViT-L-14.pt",
            sha256=OPENAI_CLIP,
            build=_openai_clip,
            hub="timm/vit_large_patch14_clip_224.openai",
            mean=CLIP_MEAN,
            std=CLIP_STD,
        ),
        TrunkSpec(
            name="efficientnet_b1",
            size=255,
            layer="avgpool",
            file="efficientnet_b1-c27df63c.pth",  # IMAGENET1K_V2, what DEFAULT means
            url=f"{_DOWNLOADS}efficientnet_b1-c27df63c.pth",
            sha256="c27df63c",
            build=_torchvision("efficientnet_b1"),
            unused=("classifier.",),
        ),
        TrunkSpec(
            name="swav_resnet50",
            size=224,
            layer="avgpool",
            file="swav_800ep_pretrain.pth.tar",
            url="https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar",
            sha256="",  # none is published
            build=_torchvision("resnet50"),
            unused=("fc.",),
            strip="module.",
        ),
    )
}


class Trunk(nn.Module):
    """Pictures in, features out: resizing, normalisation and network in one.

    Parameters
    ----------
    name : str
    network : nn.Module, normalised pictures -> features of shape (n, ...)
    size : int, pixels, side of the square input
    mean, std : sequence of 3 floats
    precision : "float32" or "bfloat16"
        bfloat16 runs the layers that torch deems safe in 16 bits. It is several times as fast on
        processors and cards with matrix units, and moves features by about 1 %: never compare
        scores across precisions.
    weights : Path, optional, the file the network was loaded from
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
        weights: Path | None = None,
        text: Callable[[nn.Module, list[str]], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision {precision!r} is unknown, expected float32 or bfloat16")
        self.name, self.size, self.precision, self.weights = name, size, precision, weights
        self.network = network.eval().requires_grad_(False)
        self._text = text
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.mean.device

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
        x = (_resize(_resize(x, PROTOCOL_SIZE), self.size) - self.mean) / self.std
        with self._autocast():
            features = self.network(x)
        if isinstance(features, dict):
            (features,) = features.values()
        return features.flatten(1).float()

    @torch.no_grad()
    def encode_text(self, captions: list[str]) -> Tensor:
        """Features of captions, float32 of shape (n, n_features); only a CLIP has them."""
        if self._text is None:
            raise ValueError(f"{self.name} sees pictures only: a text score needs a CLIP model")
        with self._autocast():
            return self._text(self.network, list(captions)).float()

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


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


def load_trunk(
    name: str | TrunkSpec,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
) -> Trunk:
    """Build one of `TRUNKS` from weights on this machine.

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
    network = _with_weights(spec, path)
    if spec.layer:
        from torchvision.models.feature_extraction import create_feature_extractor

        # cuts the network behind the layer, so that neither time nor memory goes into the rest
        network = create_feature_extractor(network, [spec.layer], suppress_diff_warning=True)
    if precision == "bfloat16":
        network = network.to(memory_format=torch.channels_last)
    text = None if spec.layer else _encode_text
    picture = network if spec.layer else _ImageTower(network)
    trunk = Trunk(spec.name, picture, spec.size, spec.mean, spec.std, precision, path, text)
    return trunk.to(device)


def clip_trunk(
    model: nn.Module,
    name: str,
    precision: Precision = "float32",
    weights: Path | None = None,
) -> Trunk:
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
    return Trunk(
        name, _ImageTower(model), size, CLIP_MEAN, CLIP_STD, precision, weights, _encode_text
    )


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


def _with_weights(spec: TrunkSpec, path: Path) -> nn.Module:
    # on the meta device, a network costs neither memory nor time for random weights that are
    # replaced at once
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = spec.build()
    state = {
        name.removeprefix(spec.strip): value.float() if value.is_floating_point() else value
        for name, value in _read_state(path, spec).items()
        if isinstance(value, Tensor)
    }
    wanted = {n: v for n, v in network.state_dict().items() if not n.startswith(spec.unused)}
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
    network.load_state_dict({name: state[name] for name in wanted}, strict=False, assign=True)
    if isinstance(getattr(network, "attn_mask", None), Tensor):  # CLIP's; not in the file
        n = network.context_length
        network.attn_mask = torch.full((n, n), float("-inf")).triu(1)
    return network.eval()


def _read_state(path: Path, spec: TrunkSpec) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if _is_torchscript(path):
            # a program, which is run only where it is known to be OpenAI's
            if digest_file(path) != OPENAI_CLIP:
                raise ValueError(
                    f"{path} is a TorchScript program of unknown origin, which is not run here: "
                    "save its state dict as .safetensors and give that file"
                )
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} cannot be read as weights of {spec.name} ({type(error).__name__}): fetch "
            f"{spec.url} again"
        ) from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError":
            raise ValueError(f"{path} is no whole .safetensors file: {error}") from error
        raise
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
    try:
        entries = licences.load_catalogue().values()
    except (licences.CatalogueError, RuntimeError):  # a copy of the package without the checkout
        return "data/licences.yaml cannot be read here"
    names = [entry.name for entry in entries if any(f.path == file for f in entry.files)]
    return f"{names[0]} in data/licences.yaml" if names else "not in data/licences.yaml"
