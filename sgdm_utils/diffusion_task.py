"""The diffusion model as a task of `sgdm_utils.train`: the training of notebook 05, in any number of processes.

Notebook 05 shows loss and loop for one device. `write_inputs` puts what that loop uses into one
folder, which may be copied to another machine, and `build` makes the task of it: the same random
draws in the same order, the same loss, so the curves are the same, too.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from sgdm_utils import atomic, diffusion
from sgdm_utils.conditioning import doubtful_category
from sgdm_utils.jobs import Job, JobError, Task
from sgdm_utils.multiscale import listen_by_resolution
from sgdm_utils.structure import StructureVAE
from sgdm_utils.training import cosine_schedule

_NETWORKS = ("unet", "controlnet", "condition")
_STRUCTURE = ("structure_vae.json", "structure_vae.safetensors", "latent_scale.npz")
_ITEMS = ("latents", "embeddings", "codes", "maps", "category")
_ARRAYS = (*_ITEMS, "channel_weight", "alphas_bar")
_SOURCES = ("semantics", "structure", "category")
_MOST_EVIDENCE = 4.0  # of a doubtful category, see `conditioning.doubtful_category`
_ON_DEVICE = 1 << 30  # bytes; larger arrays stay on the disk and are read row by row


@dataclass(frozen=True)
class Options:
    """What a job's `options` may hold; the defaults are those of notebook 05.

    Attributes
    ----------
    inputs : str
        Folder of `write_inputs`.
    lr, weight_decay, betas, warmup
        Of AdamW, and the steps until its learning rate is reached.
    drop_semantics, drop_structure, drop_category : float
        Shares of items from which a condition is hidden.
    snr_gamma : float
        Min-SNR weighting of the loss; 0 weighs by what the conditions leave open.
    doubtful_share : float
        Share of embeddings, of maps and of categories that are made as poor as a decoder's.
    """

    inputs: str
    lr: float = 2.0e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: int = 30
    drop_semantics: float = 0.12
    drop_structure: float = 0.25
    drop_category: float = 0.5
    snr_gamma: float = 0.0
    doubtful_share: float = 0.0


def write_inputs(
    folder: Path,
    networks: Mapping[str, nn.Module],
    arrays: Mapping[str, np.ndarray | torch.Tensor],
    n_train: int,
    structure: Path,
) -> Path:
    """Write all that the training uses into one folder, which replaces an older one as a whole.

    Parameters
    ----------
    folder : Path
    networks : mapping with `unet`, `controlnet`, `condition`, with their initial weights
    arrays : mapping of names to arrays of n rows, rows of the training split first
        `latents` (n, latent_channels, grid, grid), standardised; `embeddings` (n, embed_dim),
        standardised; `codes` (n, structure latent), standardised; `maps` (n, 2, size, size) in
        [0, 1]; `category` (n,), integers, -1 for none of them. And, without rows,
        `channel_weight` (latent_channels,), weight of each latent channel in the loss, and
        `alphas_bar` (n_timesteps,), share of signal power.
    n_train : int
    structure : Path
        Folder of the artifact `structure`, from which the structure VAE is taken.

    Raises
    ------
    ValueError
        For missing arrays, arrays of unequal length, values that are not finite.
    """
    missing = [n for n in _ARRAYS if n not in arrays] + [n for n in _NETWORKS if n not in networks]
    if missing:
        raise ValueError(f"the training needs {missing} as well")
    rows = {name: len(arrays[name]) for name in _ITEMS}
    if len(set(rows.values())) > 1:
        raise ValueError(f"arrays with one row for each picture differ in length: {rows}")
    if not 1 <= n_train <= rows["latents"]:
        raise ValueError(f"n_train is {n_train}, there are {rows['latents']} rows")
    folder = Path(folder)
    with atomic.atomic_directory(folder) as part:
        for name in _ARRAYS:
            values = arrays[name]
            values = values.cpu().numpy() if isinstance(values, torch.Tensor) else values
            if not np.isfinite(values).all():
                raise ValueError(f"{name} holds NaN or infinity")
            np.save(part / f"{name}.npy", values)
        for name in _STRUCTURE:
            shutil.copyfile(structure / name, part / name)
        about = {"n_train": n_train, "classes": {}, "configs": {}}
        for name in _NETWORKS:
            kind, settings = type(networks[name]), dict(networks[name].config)
            networks[name].save_pretrained(part / name)
            about["classes"][name] = f"{kind.__module__}:{kind.__qualname__}"
            # without where it came from and which version wrote it
            about["configs"][name] = {k: v for k, v in settings.items() if k[0] != "_"}
        files = [f for f in atomic.list_files(part) if f.name != "config.json"]
        listing = {f.relative_to(part).as_posix(): atomic.digest_file(f) for f in files}
        about["digest"] = atomic.digest_listing(listing)
        (part / "inputs.json").write_text(json.dumps(about, indent=2) + "\n")
    return folder


def build(job: Job, device: torch.device) -> Task:
    """Task function of a job: ``Job(task="sgdm_utils.diffusion_task:build", ...)``.

    Raises
    ------
    JobError
        For unknown options, or a folder of inputs that is not there.
    """
    known = {f.name for f in dataclasses.fields(Options)}
    if "inputs" not in job.options or (unknown := sorted(job.options.keys() - known)):
        wrong = "lack 'inputs'" if "inputs" not in job.options else f"hold unknown {unknown}"
        raise JobError(f"the options of {job.task} {wrong}; there are {sorted(known)}")
    options = Options(**job.options)
    folder = Path(options.inputs)
    if not (folder / "inputs.json").is_file():
        raise JobError(f"no inputs in {folder}: diffusion_task.write_inputs has to write them")
    about = json.loads((folder / "inputs.json").read_text())
    networks = nn.ModuleDict({n: _load(folder / n, about["classes"][n]) for n in _NETWORKS})
    networks.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(
        networks.parameters(), lr=options.lr, weight_decay=options.weight_decay,
        betas=tuple(options.betas), fused=True,
    )  # fmt: skip
    data = _Data(folder, about["n_train"], device)
    training = _Training(data, options, networks["condition"].config.n_categories, job.seed)
    return Task(
        networks,
        optimizer,
        cosine_schedule(optimizer, job.steps, options.warmup),
        training.draw,
        training.losses,
        training.evaluate if len(data.latents) > data.n_train else None,
        {name: about[name] for name in ("digest", "configs", "n_train")},
    )


class _Data:
    """The arrays of a folder of inputs."""

    def __init__(self, folder: Path, n_train: int, device: torch.device) -> None:
        self.n_train, self.device = n_train, device
        for name in _ARRAYS:
            array = np.load(folder / f"{name}.npy", mmap_mode="r")
            if array.nbytes <= _ON_DEVICE or name == "embeddings":
                array = torch.from_numpy(np.array(array)).to(device)
            setattr(self, name, array)
        self.channel_weight = self.channel_weight.float().view(1, -1, 1, 1)
        config = json.loads((folder / "structure_vae.json").read_text())
        self.structure_vae = StructureVAE(**config).to(device).eval().requires_grad_(False)
        self.structure_vae.load_state_dict(load_file(folder / "structure_vae.safetensors"))
        scale = np.load(folder / "latent_scale.npz")
        self.code_center, self.code_spread = (
            torch.from_numpy(scale[name].astype(np.float32)).to(device)
            for name in ("center", "spread")
        )

    def rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Rows of an array, on the device."""
        array = getattr(self, name)
        if isinstance(array, torch.Tensor):
            return array[rows.to(self.device)]
        return torch.from_numpy(np.array(array[rows.numpy()])).to(self.device)


class _Training:
    """Draws and losses, as notebook 05 explains them."""

    def __init__(self, data: _Data, options: Options, n_categories: int, seed: int) -> None:
        self.data, self.options, self.seed = data, options, seed
        self.n_categories = n_categories

    def draw(self, n: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Random numbers of n items: which pictures, what is hidden, how doubtful it is, noise."""
        o, data = self.options, self.data
        draws = {"rows": torch.randint(data.n_train, (n,), generator=generator)}
        chance = torch.rand(3, n, generator=generator)
        drops = o.drop_semantics, o.drop_structure, o.drop_category
        for source, values, drop in zip(_SOURCES, chance, drops, strict=True):
            draws[f"sees_{source}"] = values >= drop
        for source in ("semantics", "structure"):
            doubtful = torch.rand(n, generator=generator) < o.doubtful_share
            draws[f"{source}_noise"] = torch.rand(n, generator=generator) * doubtful
        doubtful = torch.rand(n, generator=generator) < o.doubtful_share
        evidence = _MOST_EVIDENCE * torch.rand(n, generator=generator)
        draws["evidence"] = torch.where(doubtful, evidence, torch.inf)
        return draws | self._noise(n, generator)

    def _noise(self, n: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Errors of the conditions, noise of the latents, timesteps."""
        data, normal = self.data, partial(torch.randn, generator=generator)
        return {
            "mixture": normal(n, data.n_train),
            "code_error": normal(n, data.codes.shape[1]),
            "category_error": normal(n, self.n_categories),
            "noise": normal(n, *data.latents.shape[1:]),
            "t": torch.randint(len(data.alphas_bar), (n,), generator=generator),
        }

    def losses(self, networks: nn.ModuleDict, draws: dict[str, torch.Tensor]) -> torch.Tensor:
        """Weighted squared error of the velocity for each item, (n,)."""
        data, rows = self.data, draws["rows"]
        d = {name: values.to(data.device) for name, values in draws.items()}
        # accelerate computes all of this in bfloat16 if asked to; conditions and error do not bear it
        with torch.autocast(data.device.type, enabled=False), torch.no_grad():
            mixture = d["mixture"] / data.n_train**0.5
            error = mixture @ data.embeddings[: data.n_train]
            z = diffusion.shrink(data.embeddings[d["rows"]], error, d["semantics_noise"])
            folded = self._folded_maps(networks, rows, d)
            x, a = data.rows("latents", rows), data.alphas_bar[d["t"]].view(-1, 1, 1, 1)
            noisy = a.sqrt() * x + (1 - a).sqrt() * d["noise"]
            wanted = a.sqrt() * d["noise"] - (1 - a).sqrt() * x
            belief = doubtful_category(
                data.rows("category", rows).long(), self.n_categories, d["evidence"],
                d["category_error"],
            )  # fmt: skip
        told = networks["condition"](
            z, d["semantics_noise"], d["sees_semantics"], belief, d["sees_category"]
        )
        output = diffusion.predict(
            networks["unet"], networks["controlnet"], noisy, d["t"], told, folded,
            d["sees_structure"],
        )  # fmt: skip
        with torch.autocast(data.device.type, enabled=False):
            s = networks["condition"].config.residual_std
            squared = (diffusion.velocity(output, noisy, a, s) - wanted) ** 2
            return (squared * data.channel_weight * self._time_weight(a, s)).mean(dim=(1, 2, 3))

    def _time_weight(self, a: torch.Tensor, residual_std: float) -> torch.Tensor:
        """Weight of the squared velocity error at a share `a` of signal power."""
        if self.options.snr_gamma:
            return (a / (1 - a)).clamp(max=self.options.snr_gamma) * (1 - a)
        return a * residual_std**2 + 1 - a

    def _folded_maps(self, networks, rows, d: dict[str, torch.Tensor]) -> torch.Tensor:
        """Structure maps, those of doubtful items as the structure VAE draws them from noisy codes."""
        data, noise = self.data, d["structure_noise"]
        code = diffusion.shrink(data.rows("codes", rows), d["code_error"], noise)
        maps, doubtful = data.rows("maps", rows).float(), noise > 0
        decoded = data.structure_vae.maps(code[doubtful] * data.code_spread + data.code_center)
        maps[doubtful] = decoded
        return diffusion.fold_maps(maps, networks["unet"].config.sample_size, noise)

    def evaluate(self, networks: nn.ModuleDict) -> dict[str, float]:
        """Loss of validation pictures with true conditions, with maps and without; fixed noise."""
        data = self.data
        rows = torch.arange(data.n_train, len(data.latents)).repeat_interleave(2)
        n, scores = len(rows), {}
        for name, with_maps in (("val", True), ("val, no structure", False)):
            generator = torch.Generator().manual_seed(self.seed + 1)
            draws = {"rows": rows, "evidence": torch.full((n,), torch.inf)}
            draws |= {f"sees_{source}": torch.ones(n, dtype=torch.bool) for source in _SOURCES}
            draws |= {"sees_structure": torch.full((n,), with_maps)}
            draws |= {k: torch.zeros(n) for k in ("semantics_noise", "structure_noise")}
            scores[name] = float(self.losses(networks, draws | self._noise(n, generator)).mean())
        return scores


def _load(folder: Path, kind: str) -> nn.Module:
    """A network from the folder that its `save_pretrained` wrote."""
    module, _, name = kind.partition(":")
    network = getattr(importlib.import_module(module), name).from_pretrained(folder)
    if hasattr(network, "attn_processors"):  # not stored with the weights
        listen_by_resolution(network, _grid(folder))
    return network


def _grid(folder: Path) -> int:
    return json.loads((folder.parent / "unet" / "config.json").read_text())["sample_size"]
