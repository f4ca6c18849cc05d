"""Which layer of which network, at which size, under which normalisation: the agreed protocol.

A metric in feature space is only comparable when all three are the published ones, and each slip
gives a plausible number. Use it through `sgdm_utils.metrics.networks`.

References
----------
Ozcelik & VanRullen, Scientific Reports 13, 15666 (2023), and Scotti et al., MindEye2 (2024): the
protocol. Krizhevsky, arXiv:1404.5997 (AlexNet). Szegedy et al., CVPR (2016): Inception v3. Tan & Le,
ICML (2019): EfficientNet. Caron et al., NeurIPS (2020): SwAV. Radford et al., ICML (2021): CLIP.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
OPENAI_CLIP = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"  # its SHA-256


class TooFewPictures(ValueError):
    """A metric is not defined for so few pictures.

    Attributes
    ----------
    needed : int
    """

    def __init__(self, what: str, needed: int, n: int) -> None:
        super().__init__(f"{what} needs at least {needed} pictures, there are {n}")
        self.needed = needed


@dataclass(frozen=True)
class Result:
    """What a metric found.

    Attributes
    ----------
    value : float, mean over pictures; for FID and KID the distance of the two sets
    n : int, pictures; for FID and KID reconstructions
    items : list of float, one per picture in the order of the updates; empty for FID and KID
    chance : float, expected value when reconstructions are dealt out at random; NaN if unknown
    """

    value: float
    n: int
    items: list[float] = field(default_factory=list)
    chance: float = math.nan


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
    text : names of weights of the text tower, which is left out unless it is asked for
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
    text: tuple[str, ...] = ()
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

#: The trunks of LPIPS v0.1, whole layers of which it compares; its package brings the heads.
LPIPS_TRUNKS = {
    "lpips_alex": TrunkSpec(name="lpips_alex", layer="", **_ALEXNET),
    "lpips_vgg": TrunkSpec(
        name="lpips_vgg",
        size=256,
        layer="",
        file="vgg16-397923af.pth",
        url=f"{_DOWNLOADS}vgg16-397923af.pth",
        sha256="397923af",
        build=_torchvision("vgg16"),
    ),
}

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
            text=(
                "transformer.",
                "token_embedding.",
                "positional_embedding",
                "ln_final.",
                "text_projection",
                "logit_scale",
            ),
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
