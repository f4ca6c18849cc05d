"""What the trainings of notebook 05 cost, now and before its generator started from colours on lines.

    pytest tests/benchmarks/bench_generator.py

Steps of both configurations alternate in one run, so that a busy machine slows both. "Before" is the
demo of 2026-11-29 in the morning (1,000 steps of a UNet of 96 and 128 channels, 700 of an autoencoder
of 128 that saw no map), "now" is what the notebook's parameters cell says. Quality is not measured
here: validation and test scores of both are in `reports/LOG.md` and `reports/demo/tables`. Results
go to `reports/benchmarks/generator.csv`.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from sgdm_utils.generation import conditioning, networks
from sgdm_utils.generation.autoencoder import PictureVAE
from sgdm_utils.workflow import config, paths
from sgdm_utils.workflow.atomic import atomic_file

SIZE, EMBED_DIM, KINDS, ROUNDS = 64, 64, 16, 5
BEFORE = {
    "vae_width": 128, "outline_width": 0, "vae_steps": 700, "unet_widths": [96, 128],
    "diffusion_steps": 1000,
}  # fmt: skip


def vae_step(values: dict) -> Callable[[], None]:
    """One training step of the autoencoder on random pictures."""
    torch.manual_seed(0)
    vae = PictureVAE(SIZE, 8, 16, values["vae_width"], outline_width=values["outline_width"])
    vae = vae.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-4, fused=True)
    batch = values["vae_batch"]
    pictures, maps = torch.rand(batch, 3, SIZE, SIZE) * 2 - 1, torch.rand(batch, 2, SIZE, SIZE)

    def step() -> None:
        gaussian = vae.posterior(pictures)
        loss = (vae.reconstruct(gaussian.mean, maps) - pictures).abs().mean()
        optimizer.zero_grad()
        (loss + 1e-6 * gaussian.kl().mean()).backward()
        optimizer.step()

    return step


def diffusion_step(values: dict) -> Callable[[], None]:
    """One training step of UNet and ControlNet on random latents."""
    torch.manual_seed(0)
    unet = networks.make_unet(16, 8, EMBED_DIM, values["token_dim"], tuple(values["unet_widths"]))
    controlnet = networks.make_controlnet(unet, SIZE)
    embedder = conditioning.ConditionEmbedder(
        EMBED_DIM, KINDS, networks.resolutions(unet), values["n_tokens"], values["token_dim"]
    )
    parts = torch.nn.ModuleList([unet, controlnet, embedder]).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(parts.parameters(), lr=1e-4, fused=True)
    n = values["diffusion_batch"]
    x, t = torch.randn(n, 16, 8, 8), torch.randint(1000, (n,))
    z, yes, exact = torch.randn(n, EMBED_DIM), torch.ones(n, dtype=torch.bool), torch.zeros(n)
    category, maps = torch.rand(n, KINDS).softmax(1), torch.rand(n, 2, SIZE, SIZE)

    def step() -> None:
        conditions = embedder(z, exact, yes, category, yes)
        folded = conditioning.fold_maps(maps, 8, exact, x)
        output = networks.predict(unet, controlnet, x, t, conditions, folded, yes)
        optimizer.zero_grad()
        output.square().mean().backward()
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()

    return step


def alternating(steps: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of each step, one round after the other."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(ROUNDS):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def test_trainings_now_and_before():
    study = config.load_study("demo")
    now = config.resolve(study, config.step(study, "05_diffusion_training", None, 0))
    both = {"before": now | BEFORE, "now": now}
    rows = []
    for name, make, length in (
        ("autoencoder", vae_step, "vae_steps"),
        ("diffusion", diffusion_step, "diffusion_steps"),
    ):
        seconds = alternating({which: make(values) for which, values in both.items()})
        whole = {which: seconds[which] * both[which][length] for which in both}
        rows.append(
            {
                "training": name, "before_step_s": seconds["before"], "now_step_s": seconds["now"],
                "before_steps": both["before"][length], "now_steps": both["now"][length],
                "ratio_of_trainings": whole["before"] / whole["now"],
                "processor": platform.processor() or platform.machine(),
                "capability": torch.backends.cpu.get_cpu_capability(),
                "cores": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
            }
        )  # fmt: skip
    path = paths.project_root() / "reports" / "benchmarks" / "generator.csv"
    with atomic_file(path) as part:
        pd.DataFrame(rows).to_csv(part, index=False, float_format="%.3g")
    assert all(row["ratio_of_trainings"] > 1 for row in rows)
