"""The pretrained generators that can be named, and whether the files of their parts fit each other.

Every check reads configurations and shapes only, so that a wrong part is refused before gigabytes of
weights are loaded. Use it through `sgdm_utils.generation.pretrained.generator`.

Where the parts of a pretrained generator come from, and under which licence.

A part is a path on this machine, which is read without touching the network, or a name on the Hugging
Face hub. The licence of a name is looked up in `data/licences.yaml`, shown, and, where it asks for
that, has to be accepted before anything is fetched. Use it through `sgdm_utils.generation.pretrained.generator`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from safetensors import safe_open

from sgdm_utils.errors import reading
from sgdm_utils.workflow import paths
from sgdm_utils.workflow.downloads.catalogue import (
    Entry,
    LicenceError,
    load_catalogue,
    require_licence,
)
from sgdm_utils.workflow.downloads.transfers import DownloadError
from sgdm_utils.workflow.formats import read_json

HUB = "https://huggingface.co/"


@dataclass(frozen=True)
class Family:
    """One kind of pretrained generator: which classes, which files, how it is sampled.

    Attributes
    ----------
    title : str
    pipeline, published : str, classes of diffusers: the one used, the one the model came as
    model, controlnet, ip_adapter : str, what is taken when no other part is named
    scheduler : str, class of diffusers
    scheduler_options : what differs from the configuration that came with the model
    steps, max_steps : int
    guidance_scale : float, of classifier-free guidance by default; 0 where there is none
    guided : bool, the model can be sampled with classifier-free guidance at all
    text_parts : tuple of str, folders of tokenizers and text encoders
    options : passed to the class when it is loaded
    embed_dim, clip : int and str, of the embeddings that `ip_adapter` was trained with
    """

    title: str
    pipeline: str
    published: str
    model: str
    controlnet: str
    ip_adapter: str
    scheduler: str
    steps: int
    max_steps: int
    guidance_scale: float
    guided: bool
    scheduler_options: dict[str, Any] = field(default_factory=dict)
    text_parts: tuple[str, ...] = ("tokenizer", "text_encoder")
    options: dict[str, Any] = field(default_factory=dict)
    embed_dim: int = 1024
    clip: str = "vit_h_14"  # as `decoding.clip_label` writes it

    @property
    def components(self) -> dict[str, str]:
        """Folders that a model must have, each with the file that says what is in it."""
        told = {"tokenizer": "tokenizer_config.json", "text_encoder": "config.json"}
        texts = {part: told[part.removesuffix("_2")] for part in self.text_parts}
        return {
            "scheduler": "scheduler_config.json", "unet": "config.json", "vae": "config.json",
        } | texts  # fmt: skip


#: The generators that can be named. ControlNets are the ones of scribbles, see
#: `generator.control_image`; adapters those that take one ViT-H-14 embedding for a picture.
FAMILIES = {
    "sdxl_turbo": Family(
        title="SDXL-Turbo",
        pipeline="StableDiffusionXLControlNetPipeline",
        published="StableDiffusionXLPipeline",
        model="stabilityai/sdxl-turbo",
        controlnet="xinsir/controlnet-scribble-sdxl-1.0",
        ip_adapter="h94/IP-Adapter/sdxl_models/ip-adapter_sdxl_vit-h.safetensors",
        scheduler="EulerAncestralDiscreteScheduler",
        scheduler_options={"timestep_spacing": "trailing"},  # distilled for the ends of intervals
        steps=4,
        max_steps=4,
        guidance_scale=0.0,
        guided=False,
        text_parts=("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2"),
        options={"add_watermarker": False},  # pixels that no condition asked for
    ),
    "sd15": Family(
        title="Stable Diffusion 1.5",
        pipeline="StableDiffusionControlNetPipeline",
        published="StableDiffusionPipeline",
        model="stable-diffusion-v1-5/stable-diffusion-v1-5",
        controlnet="lllyasviel/control_v11p_sd15_scribble",
        ip_adapter="h94/IP-Adapter/models/ip-adapter_sd15.safetensors",
        scheduler="DPMSolverMultistepScheduler",
        steps=20,
        max_steps=1000,
        guidance_scale=7.5,
        guided=True,
        # the safety checker replaces pictures by black ones without a word, which would be scored
        options={"safety_checker": None, "feature_extractor": None, "image_encoder": None}
        | {"requires_safety_checker": False},
    ),
}


def family_of(name: str) -> Family:
    """Look a family up by its name.

    Raises
    ------
    ValueError
        There is none of that name.
    """
    if name not in FAMILIES:
        raise ValueError(f"there is no family {name!r}, expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def check_model(folder: Path, family: Family, variant: str | None = None) -> dict[str, Any]:
    """Check that a folder holds a model of a family, whole; returns the UNet's configuration.

    Raises
    ------
    FileNotFoundError
        No model, or a component is missing, or its weights.
    ValueError
        A model of another family, or a damaged configuration.
    """
    source = f"it comes with {HUB}{family.model}"
    index = _read_json(folder / "model_index.json", f"no model of diffusers in {folder}")
    found = index.get("_class_name")
    if found not in (family.pipeline, family.published):
        raise ValueError(
            f"{folder} holds a {found}, which is not {family.title} ({family.published}): give another "
            "folder, or name another family"
        )
    for part, file in family.components.items():
        if not (folder / part / file).is_file():
            raise FileNotFoundError(f"{folder} lacks its component {part}/ ({file}): {source}")
        if file == "config.json":
            _check_weights(folder / part, variant)
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json", folder)
    if scheduler.get("prediction_type", "epsilon") != "epsilon":
        raise ValueError(
            f"{folder} predicts {scheduler['prediction_type']}, {family.title} predicts the noise "
            "(epsilon): it is another model"
        )
    return _read_json(folder / "unet" / "config.json", folder)


def check_controlnet(folder: Path, unet: Mapping[str, Any]) -> None:
    """Refuse what is not a ControlNet of one RGB control image, or was made for another UNet."""
    config = _read_json(folder / "config.json", f"no ControlNet in {folder}")
    if config.get("_class_name") != "ControlNetModel":
        raise ValueError(
            f"{folder} holds a {config.get('_class_name')}, expected a ControlNetModel of diffusers"
        )
    same = ["cross_attention_dim", "block_out_channels", "layers_per_block", "in_channels"]
    same += ["addition_embed_type", "projection_class_embeddings_input_dim"]
    for key in same:  # a key that an old file lacks says nothing
        if key in config and key in unet and config[key] != unet[key]:
            raise ValueError(
                f"the ControlNet in {folder} does not fit the UNet: its {key} is {config[key]}, the "
                f"UNet's is {unet[key]}. ControlNets of SD 1.5 and of SDXL are not interchangeable"
            )
    if config.get("conditioning_channels", 3) != 3:
        raise ValueError(
            f"the ControlNet in {folder} wants {config['conditioning_channels']} channels, expected "
            "the 3 of a control image"
        )
    _check_weights(folder, None)


def read_adapter(path: Path, unet: Mapping[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of an IP-Adapter that takes one embedding for a picture, checked against a UNet.

    Parameters
    ----------
    path : Path, safetensors in the layout of the adapter's authors
    unet : configuration of the UNet

    Returns
    -------
    dict with `image_proj` and `ip_adapter`, as `load_ip_adapter` of diffusers takes it

    References
    ----------
    Ye et al. (2023), IP-Adapter, arXiv:2308.06721.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(
            f"ip_adapter: {path} is not a .safetensors file; other files of weights are pickles, "
            "which are not opened here"
        )
    state: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    with reading(path, "an ip_adapter", "It is damaged: fetch it again"):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (safe_open is no dict)
                group, _, name = key.partition(".")
                state.setdefault(group, {})[name] = file.get_tensor(key)
    projection = state["image_proj"].get("proj.weight")
    if projection is None or projection.ndim != 2:
        raise ValueError(
            f"ip_adapter: {path} does not take one embedding for each picture (`plus` adapters take "
            "those of patches, `face` adapters those of a face network): take ip-adapter_sd15 or "
            "ip-adapter_sdxl_vit-h"
        )
    dim = unet["cross_attention_dim"]
    if projection.shape[0] != 4 * dim:  # four tokens
        raise ValueError(
            f"ip_adapter: {path} does not fit the UNet: its tokens have {projection.shape[0] // 4} "
            f"dimensions, the UNet's cross_attention_dim is {dim}. Adapters of SD 1.5 and of SDXL "
            "are not interchangeable"
        )
    found = state["ip_adapter"]
    wanted = _cross_attention(unet)
    for position, shape in enumerate(wanted):
        for which in ("k", "v"):  # numbered 1, 3, 5: the authors count self-attention too
            key = f"{2 * position + 1}.to_{which}_ip.weight"
            if key not in found or tuple(found[key].shape) != shape:
                has = tuple(found[key].shape) if key in found else "missing"
                raise ValueError(
                    f"ip_adapter: {path} does not fit the UNet: {key} is {has}, expected {shape}"
                )
    if len(found) != 2 * len(wanted):
        raise ValueError(
            f"ip_adapter: {path} does not fit the UNet: it serves {len(found) // 2} attention "
            f"layers, the UNet has {len(wanted)}"
        )
    return state


def _cross_attention(config: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Shapes of the keys' weights of each cross-attention layer, in the order of diffusers."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):  # shapes only, so that 2.6 billion weights cost nothing
        unet = UNet2DConditionModel.from_config(dict(config))
    shapes = dict((name, tuple(weight.shape)) for name, weight in unet.named_parameters())
    layers = [n.removesuffix(".processor") for n in unet.attn_processors]
    return [shapes[f"{layer}.to_k.weight"] for layer in layers if layer.endswith("attn2")]


def _check_weights(folder: Path, variant: str | None) -> None:
    names = sorted(p.name for p in folder.glob("*.safetensors"))
    # model.safetensors, model.fp16.safetensors, model.fp16-00001-of-00002.safetensors
    infixes = {name: name.split(".")[1:-1] for name in names}
    if any((i[0].split("-")[0] == variant) if i else variant is None for i in infixes.values()):
        return
    hint = f"; there is {', '.join(names)}: name its `variant`" if names else ""
    what = f"weights of the variant {variant}" if variant else "weights"
    raise FileNotFoundError(
        f"{folder} holds no {what} as .safetensors (other files of weights are pickles, which are "
        f"not opened here){hint}"
    )


def _read_json(path: Path, why: object) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{why}: {path.name} is missing")
    return read_json(path, remedy="It is damaged: fetch it again")


_NAME = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?(?:/([\w./-]+))?")


@dataclass(frozen=True)
class _Wanted:
    argument: str
    source: str
    files: tuple[str, ...]
    without: tuple[str, ...] = ()


def locate(
    family: Family,
    model: str | os.PathLike,
    controlnet: str | os.PathLike,
    ip_adapter: str | os.PathLike,
    accept_licence: str | Sequence[str] = (),
    variant: str | None = None,
    catalogue: Mapping[str, Entry] | Path | None = None,
    show: Callable[[str], None] = print,
) -> tuple[Path, Path, Path]:
    """Paths of the three parts on this machine; fetches those that are names on the hub.

    All licences are settled before the first byte is fetched. Names are written `owner/name`, with
    `@revision` behind it to pin one, and for the adapter with the path of its file behind that.

    Returns
    -------
    model, controlnet, ip_adapter : Path, two folders and a file

    Raises
    ------
    FileNotFoundError
        Neither a path on this machine nor the form of a name.
    sgdm_utils.workflow.downloads.catalogue.LicenceError
        A licence must be accepted and was not, or it is not known.
    sgdm_utils.workflow.downloads.transfers.DownloadError
        No network, or no such files; the message holds the manual route.
    """
    sources = {"model": str(model), "controlnet": str(controlnet), "ip_adapter": str(ip_adapter)}
    patterns = used_files(family, variant)
    wanted = [_Wanted(part, source, *patterns[part]) for part, source in sources.items()]
    here = {w.argument: local_path(w.source) for w in wanted}
    remote = {w.argument: _parse(w) for w in wanted if here[w.argument] is None}
    entries = _settle_licences({r for r, _, _ in remote.values()}, accept_licence, catalogue, show)
    found = []
    for w in wanted:
        if w.argument not in remote:
            found.append(here[w.argument])
            continue
        repository, revision, file = remote[w.argument]
        w = replace(w, files=(file,)) if file else w
        folder = _fetch(w, repository, revision, entries[repository])
        found.append(folder / file if file else folder)
    return tuple(found)


def used_files(
    family: Family, variant: str | None = None
) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Patterns of the files of each part that are read, and of those that look alike and are not."""
    weights = f"*.{variant}*.safetensors" if variant else "*.safetensors"
    files = [f"{part}/{p}" for part in family.components for p in ("*.json", "*.txt", weights)]
    others = () if variant else ("*.fp16.*", "*.bf16.*", "*.fp16-*")
    return {
        "model": (("model_index.json", *files), (*others, "*non_ema*")),
        "controlnet": (("config.json", "diffusion_pytorch_model.safetensors"), ()),
        "ip_adapter": ((), ()),  # one file, named in full
    }


def pinned(part: str, source: str, place: Path) -> str:
    """Name of a part on the hub with the revision that was fetched; a path stays as it is.

    Parameters
    ----------
    part : "model", "controlnet" or "ip_adapter"
    source : path or name
    place : Path, where `locate` found it
    """
    if local_path(source) is not None:
        return source
    repository, revision, file = _parse(_Wanted(part, source, ()))
    cached = f"models--{repository.replace('/', '--')}"  # <cached>/snapshots/<commit>[/file]
    if cached in place.parts:
        revision = place.parts[place.parts.index(cached) + 2]
    if revision is None:
        raise ValueError(
            f"{part}: the revision of {repository} cannot be told from {place}: name it, "
            f"{repository}@<revision>{f'/{file}' if file else ''}"
        )
    return f"{repository}@{revision}{f'/{file}' if file else ''}"


def local_path(source: str) -> Path | None:
    """Find a path from where we are, or from the root of the checkout (notebooks run elsewhere)."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    with contextlib.suppress(RuntimeError):  # a copy of the package without the checkout
        if (paths.project_root() / path).exists():
            return paths.project_root() / path
    return None


def _parse(wanted: _Wanted) -> tuple[str, str | None, str | None]:
    """Repository, revision and file of a name."""
    name = _NAME.fullmatch(wanted.source)
    one_file = wanted.argument == "ip_adapter"
    if not name or bool(name[3]) != one_file:
        form = "owner/name/path/to/file.safetensors" if one_file else "owner/name"
        raise FileNotFoundError(
            f"{wanted.argument}: there is no {wanted.source} on this machine, and a name on the hub "
            f"has the form {form}"
        )
    return name[1], name[2], name[3]


def _settle_licences(
    repositories: set[str],
    accepted: str | Sequence[str],
    catalogue: Mapping[str, Entry] | Path | None,
    show: Callable[[str], None],
) -> dict[str, Entry]:
    """Entries of the catalogue by repository, once every licence among them is accepted."""
    if not repositories:
        return {}
    accepted = [accepted] if isinstance(accepted, str) else list(accepted)
    known = catalogue if isinstance(catalogue, Mapping) else load_catalogue(catalogue)
    by_address = {
        address.rstrip("/"): entry
        for entry in known.values()
        for address in (entry.homepage, *entry.addresses)
    }
    entries, problems = {}, []
    for repository in sorted(repositories):
        entry = by_address.get(HUB + repository)
        if entry is None:
            problems.append(
                f"{repository} is not on this machine, and its licence cannot be shown because it is "
                f"not in data/licences.yaml. Read {HUB}{repository}; then add an entry, or fetch it "
                "by hand and give its path"
            )
            continue
        entries[repository] = entry
        try:
            require_licence(entry, entry.licence if entry.licence in accepted else "")
        except LicenceError as error:
            problems.append(str(error))
    if problems:
        raise LicenceError("\n".join(problems))
    for repository, entry in entries.items():
        note = "accepted" if entry.must_accept else "needs no acceptance"
        limits = "; ".join(entry.must_not)
        show(f"{repository}: licence {entry.licence} ({note}). What must not be done: {limits}")
    return entries


def _fetch(wanted: _Wanted, repository: str, revision: str | None, entry: Entry) -> Path:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    # huggingface_hub reads the variable when it is imported, which may be too early
    offline = offline or huggingface_hub.constants.HF_HUB_OFFLINE
    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(wanted.files),
            ignore_patterns=list(wanted.without) or None,
            local_files_only=offline,
        )
    except Exception as error:  # the hub's client lets errors of several HTTP libraries through
        reason = (str(error).strip().splitlines() or [""])[0]
        there = f"{paths.relative(entry.raw_dir)}/"
        target = there + (wanted.files[0] if wanted.argument == "ip_adapter" else "")
        raise DownloadError(
            f"{wanted.argument}: {repository} could not be fetched and is not in the cache of the "
            f"hub ({type(error).__name__}: {reason}).\n"
            f"By hand:\n"
            f"  1. With a network, open {HUB}{repository} and read its licence ({entry.licence}).\n"
            f"  2. Download {_told(wanted)}.\n"
            f"  3. Put them below {there}, keeping the folders.\n"
            f'  4. Give that path instead of the name: {wanted.argument}="{target}"'
        ) from error
    return Path(folder)


def _told(wanted: _Wanted) -> str:
    """The files as people are told to fetch them."""
    if wanted.argument != "model":
        return " and ".join(wanted.files)
    folders = dict.fromkeys(file.split("/")[0] for file in wanted.files if "/" in file)
    weights = next(file for file in wanted.files if file.endswith("safetensors")).split("/")[1]
    without = f", without {', '.join(wanted.without)}"
    return f"model_index.json and, of {', '.join(folders)}: *.json, *.txt, {weights}{without}"
