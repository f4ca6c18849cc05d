"""Training and sampling of the generator at the size of `config/gpu.yaml`, on a graphics card.

    pytest tests/benchmarks/bench_gpu.py

One training step of UNet and ControlNet (as in notebook 05: autocast, AdamW, both networks), one step
of the EEG encoder's alignment, and drawing with `SGDMPipeline`, all on random numbers of the study's
shapes. Rates are medians over `SGDM_BENCH_ROUNDS` steps (default 30) after a warm-up. Model FLOPs
are counted by torch (forward and backward); their share of what the card can do needs its peak, which is
known for a few cards and can be given as `SGDM_BENCH_PEAK_TFLOPS`.

Results go to `reports/benchmarks/gpu.csv`. On a machine without a card the rows say `not measured`,
and nothing that was measured elsewhere is overwritten.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from diffusers import DPMSolverMultistepScheduler
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sgdm_utils.decoding import encoders
from sgdm_utils.generation import conditioning
from sgdm_utils.generation import networks as generation_networks
from sgdm_utils.generation.autoencoder import PictureVAE
from sgdm_utils.generation.pipeline import SGDMPipeline
from sgdm_utils.workflow import config, paths
from sgdm_utils.workflow.atomic import atomic_file

ROUNDS = int(os.environ.get("SGDM_BENCH_ROUNDS", "30"))
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "4090": 165}  # dense bfloat16
N_CHANS, N_TIMES, EMBED_DIM, N_CATEGORIES = 63, 250, 128, 16
UNITS = {
    "generator training": "pictures/s",
    "generator training, memory": "GB",
    "generator training, model FLOP utilisation": "share",
    "drawing, 4 steps": "pictures/s",
    "drawing, 4 steps, memory": "GB",
    "encoder alignment": "samples/s",
    "encoder alignment, memory": "GB",
}


def study_values(notebook: str) -> dict:
    study = config.load_study("gpu")
    seed = None if notebook < "02" else study.seeds[0]
    return config.resolve(study, config.step(study, notebook, seed=seed))


def networks(values: dict, size: int) -> tuple[torch.nn.ModuleDict, PictureVAE]:
    """Untrained generator of the study's size."""
    torch.manual_seed(0)
    vae = PictureVAE(
        size, values["patch"], values["latent_channels"], values["vae_width"],
        outline_width=values["outline_width"],
    )  # fmt: skip
    unet = generation_networks.make_unet(
        values["latent_channels"], vae.grid, EMBED_DIM, values["token_dim"],
        tuple(values["unet_widths"]),
    )  # fmt: skip
    condition = conditioning.ConditionEmbedder(
        EMBED_DIM, N_CATEGORIES, generation_networks.resolutions(unet), values["n_tokens"],
        values["token_dim"], values["multi_scale"], values["residual_std"],
    )  # fmt: skip
    parts = {"unet": unet, "controlnet": generation_networks.make_controlnet(unet, size)}
    return torch.nn.ModuleDict(parts | {"condition": condition}), vae


def told(batch: int, size: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Random embeddings, categories and maps."""
    category = torch.rand(batch, N_CATEGORIES, device=device).softmax(1)
    maps = (torch.rand(batch, 2, size, size, device=device) > 0.5).float()
    return torch.randn(batch, EMBED_DIM, device=device), category, maps


def training_step(values, parts, vae, size, batch, device) -> Callable[[], None]:
    """One step of notebook 05 on random numbers."""
    parts.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(parts.parameters(), lr=values["diffusion_lr"], fused=True)
    shape = (batch, values["latent_channels"], vae.grid, vae.grid)
    x = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
    z, category, maps = told(batch, size, device)
    yes, t = torch.ones(batch, dtype=torch.bool, device=device), torch.arange(batch, device=device)
    level, wanted = torch.zeros(batch, device=device), torch.randn(shape, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            given = parts["condition"](z, level, yes, category, yes)
            folded = conditioning.fold_maps(maps, vae.grid, level, x)
            output = generation_networks.predict(
                parts["unet"], parts["controlnet"], x, t, given, folded, yes
            )
        loss = (output.float() - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def alignment_step(batch: int, device: torch.device) -> Callable[[], None]:
    """One step of the EEG encoder that `config/things_eeg2.yaml` trains."""
    points = np.random.default_rng(0).standard_normal((N_CHANS, 3))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    encoder = encoders.SGDMEncoder(
        N_CHANS, 1024, N_TIMES, sfreq=250.0, positions=points, width=64, bottleneck=1024
    ).to(device)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-4, fused=True)
    eeg = torch.randn(batch, N_CHANS, N_TIMES, device=device)
    target = F.normalize(torch.randn(batch, 1024, device=device), dim=1)
    own = torch.arange(batch, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            logits = 10 * F.normalize(encoder(eeg, own * 0), dim=1) @ target.T
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def timed(step: Callable[[], object], device: torch.device, rounds: int) -> tuple[float, float]:
    """Median seconds of a step and the peak memory in GB (0 on a processor)."""

    def finished() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for turn in range(rounds + 3):
        start = finished()
        step()
        seconds += [finished() - start] if turn >= 3 else []  # the first ones warm up
    gb = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0
    return statistics.median(seconds), gb


def measure(device: torch.device, batch: int | None = None, rounds: int = ROUNDS) -> dict:
    """All numbers on one device; a smaller `batch` than the study's for a trial run."""
    values, size = study_values("05_diffusion_training"), study_values("00_data")["picture_size"]
    n = batch or values["diffusion_batch"]
    parts, vae = networks(values, size)
    step = training_step(values, parts, vae, size, n, device)
    with FlopCounterMode(display=False) as counter:
        step()
    seconds, gb = timed(step, device, rounds)
    found = {"generator training": n / seconds, "generator training, memory": gb}
    known = [peak for name, peak in PEAK_TFLOPS.items() if name in device_name(device)]
    peak = float(os.environ.get("SGDM_BENCH_PEAK_TFLOPS", known[0] if known else "nan"))
    used = counter.get_total_flops() / seconds / 1e12
    found["generator training, model FLOP utilisation"] = used / peak
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction",
        timestep_spacing="trailing",
    )  # fmt: skip
    m = batch or study_values("06_evaluation")["sampling_batch"]
    whole = [vae, *(parts[name].eval() for name in ("unet", "controlnet", "condition"))]
    pipe = SGDMPipeline(*whole, scheduler).to(device)
    pipe.set_progress_bar_config(disable=True)
    z, category, maps = (x.cpu() for x in told(m, size, device))
    draw = lambda: pipe.generate(z, maps, category=category, num_inference_steps=4)  # noqa: E731
    seconds, gb = timed(draw, device, max(1, rounds // 6))
    found |= {"drawing, 4 steps": m / seconds, "drawing, 4 steps, memory": gb}
    seconds, gb = timed(alignment_step(2 * n, device), device, rounds)
    return found | {"encoder alignment": 2 * n / seconds, "encoder alignment, memory": gb}


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "no graphics card"


def table(found: dict[str, float], device: torch.device) -> pd.DataFrame:
    """One row for each number; `not measured` where there is none."""

    def cell(name: str) -> str:
        value = found.get(name, float("nan"))
        return f"{value:.4g}" if np.isfinite(value) else "not measured"

    rows = [
        {"what": n, "value": cell(n), "unit": u, "precision": "bfloat16"} for n, u in UNITS.items()
    ]
    return pd.DataFrame(rows).assign(device=device_name(device))


def test_the_measurement_itself_runs_without_a_card():
    """A trial with two pictures on the processor: rates are positive, nothing is written."""
    found = measure(torch.device("cpu"), batch=2, rounds=1)
    assert set(found) == set(UNITS)
    assert all(found[name] > 0 for name, unit in UNITS.items() if unit.endswith("/s"))


def test_training_and_drawing_on_a_card():
    path = paths.project_root() / "reports" / "benchmarks" / "gpu.csv"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and path.is_file():
        assert set(pd.read_csv(path, dtype=str)["what"]) == set(UNITS)
        return
    rows = table(measure(device) if device.type == "cuda" else {}, device)
    with atomic_file(path) as part:
        rows.to_csv(part, index=False, lineterminator="\n")
    print(f"\n{rows.to_string(index=False)}")
    assert device.type == "cpu" or (rows["value"] != "not measured").all()
