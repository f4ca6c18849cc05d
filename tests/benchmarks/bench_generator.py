"""What the trainings on pictures cost, now and before issue 16: autoencoder, diffusion, structure VAE, CLIP.

    SGDM_BENCH_BASE=FOLDER pytest tests/benchmarks/bench_generator.py

"Before" is the demo of 2026-11-29 in the morning: 1,000 steps of a UNet of 96 and 128 channels, 700 of an
autoencoder of 128 that saw no map, 900 of a structure VAE that started at random, and a CLIP that trained the embeddings
of all 49,408 tokens. "Now" is what the notebooks' parameters cells say. Structure VAE and CLIP of before are those of
the checkout FOLDER (git worktree add FOLDER 2ff52b2) and are left out without it. Each side makes its steps in a
process of its own, in turns, on random data, with one thread and with two (`OMP_WAIT_POLICY` as it is);
seconds are the median step, ratios are of whole trainings. Quality is not measured here: scores of
both are in `reports/LOG.md` and `reports/demo/tables`. `ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2` makes a newer
processor compute like one with AVX2 only. Results go to `reports/benchmarks/generator.csv`, a row for each training,
capability and number of threads.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

SIZE, EMBED_DIM, KINDS, STEPS = 64, 64, 16, 5
ROUNDS = int(os.environ.get("SGDM_BENCH_ROUNDS", "3"))
BASE = os.environ.get("SGDM_BENCH_BASE", "")
BEFORE = {
    "vae_width": 128, "outline_width": 0, "vae_steps": 700, "unet_widths": [96, 128],
    "diffusion_steps": 1000,
}  # fmt: skip
#: Training -> notebook and parameter of its length now, and its length before.
LENGTHS = {
    "autoencoder": ("05_diffusion_training", "vae_steps", 700),
    "diffusion": ("05_diffusion_training", "diffusion_steps", 1000),
    "structure VAE": ("04_structure_decoding", "vae_steps", 900),
    "CLIP": ("02b_clip", "clip_steps", 180),
}


def autoencoder_step(values: dict) -> Callable[[], None]:
    """One training step of the autoencoder on random pictures."""
    from sgdm_utils.generation.autoencoder import PictureVAE

    vae = PictureVAE(SIZE, 8, 16, values["vae_width"], outline_width=values["outline_width"])
    vae = vae.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-4, fused=True)
    batch = values["vae_batch"]
    pictures, maps = torch.rand(batch, 3, SIZE, SIZE) * 2 - 1, torch.rand(batch, 2, SIZE, SIZE)
    # the head at half resolution shows a quarter of each picture; before, there was no such head
    side, square = SIZE // 2, (16, 16, SIZE // 2)

    def step() -> None:
        gaussian = vae.posterior(pictures)
        if values["outline_width"]:
            made = vae.reconstruct(gaussian.mean, maps, None, square)
            error = made - pictures[..., 16 : 16 + side, 16 : 16 + side]
        else:
            error = vae.reconstruct(gaussian.mean, maps) - pictures
        optimizer.zero_grad()
        (error.abs().mean() + 1e-6 * gaussian.kl().mean()).backward()
        optimizer.step()

    return step


def diffusion_step(values: dict) -> Callable[[], None]:
    """One training step of UNet and ControlNet on random latents."""
    from sgdm_utils.generation import conditioning, networks

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


def structure_step(now: bool) -> Callable[[], None]:
    """One training step of the structure VAE with its part head on random maps."""
    from sgdm_utils import decoding as room

    if not now:
        from sgdm_utils import structure as room
    vae = room.StructureVAE(SIZE, 64, parts=True).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-4, fused=now)
    maps, pieces = torch.rand(64, 2, SIZE, SIZE), torch.randint(0, 8, (64, SIZE // 2, SIZE // 2))

    def step() -> None:
        mean, log_variance = vae.encode(maps)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        map_logits, tan_logits = vae.decode_with_parts(code)
        loss = F.binary_cross_entropy_with_logits(map_logits, maps) + log_variance.square().mean()
        loss = loss + F.cross_entropy(tan_logits, pieces)
        optimizer.zero_grad()
        (loss + vae.relation_logits(code).square().mean()).backward()
        optimizer.step()

    return step


def clip_step(now: bool, size: int) -> Callable[[], None]:
    """One training step of the tiny CLIP; captions of 13 tokens, some sixty different ones."""
    from sgdm_utils import decoding as room

    if not now:
        from sgdm_utils import semantics as room
    model = room.create_clip(room.tiny_clip_config(EMBED_DIM, size))
    tokens = torch.zeros(128, 32, dtype=torch.long)
    tokens[:, :12], tokens[:, 12] = torch.randint(1, 60, (128, 12)), 49407
    pixels, captions = torch.rand(128, 3, size, size), torch.arange(128)
    if now:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        model.visual.to(memory_format=torch.channels_last)
        inside = room.used_tokens(model, tokens)
        tokens = inside.__enter__()
        model.left_by = inside  # the block lasts as long as the model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=now)

    def step() -> None:
        image, text, scale = model(pixels, tokens)
        logits = scale * image @ text.T
        loss = F.cross_entropy(logits, captions) + F.cross_entropy(logits.T, captions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure(training: str, now: bool, values: dict) -> list[float]:
    """Seconds of some steps of one training."""
    torch.manual_seed(0)
    if training in ("autoencoder", "diffusion"):
        make = {"autoencoder": autoencoder_step, "diffusion": diffusion_step}[training]
        step = make(values if now else values | BEFORE)
    elif training == "CLIP":
        step = clip_step(now, values["clip_picture_size"] if now else SIZE)
    else:
        step = structure_step(now)
    seconds = []
    for _ in range(STEPS + 2):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return seconds[2:]


def in_a_process(training: str, now: bool, values: dict, threads: int) -> list[float]:
    """The same in a process of its own, with the code of one side."""
    root = Path(__file__).resolve().parents[2]
    code = root if now or training in ("autoencoder", "diffusion") else Path(BASE)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(code)}
    arguments = [training, json.dumps(now), json.dumps(values)]
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env=environment, cwd=code, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def row(training: str, threads: int) -> dict:
    """Both sides of one training, in turns."""
    from sgdm_utils.workflow import config, machine

    study = config.load_study("demo")
    notebook, length, steps_before = LENGTHS[training]
    values = config.resolve(study, config.step(study, notebook, None, 0))
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for now in seconds:
            seconds[now] += in_a_process(training, now, values, threads)
    before, after = (statistics.median(seconds[now]) for now in (False, True))
    return {
        "training": training, "before_step_s": before, "now_step_s": after,
        "before_steps": steps_before, "now_steps": values[length],
        "ratio_of_trainings": before * steps_before / (after * values[length]),
        "processor": machine.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(), "threads": threads,
    }  # fmt: skip


def test_trainings_now_and_before():
    from sgdm_utils.workflow import paths
    from sgdm_utils.workflow.atomic import atomic_file

    trainings = [name for name in LENGTHS if BASE or name in ("autoencoder", "diffusion")]
    rows = [row(name, threads) for threads in (1, 2) for name in trainings]
    path = paths.project_root() / "reports" / "benchmarks" / "generator.csv"
    key = ["training", "processor", "capability", "threads"]
    new = pd.DataFrame(rows)
    old = pd.read_csv(path) if path.is_file() else new[:0]
    table = pd.concat([old, new]).drop_duplicates(key, keep="last")
    with atomic_file(path) as part:
        table.to_csv(part, index=False, float_format="%.3g", lineterminator="\n")
    print(f"\n{new.to_string(index=False)}")
    assert np.all(new["ratio_of_trainings"] > 1)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]))))
