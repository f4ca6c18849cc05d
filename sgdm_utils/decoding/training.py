"""What the trainings of the notebooks share: schedule, precision, embeddings of many epochs."""

from __future__ import annotations

import math
import os

import numpy as np
import torch

#: What `ONEDNN_MAX_CPU_ISA` can say that leaves bfloat16 to emulation (oneDNN 3.x, "CPU Dispatcher Control").
OLDER_INSTRUCTIONS = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"}


def keep_electrodes(
    batch: int, n_chans: int, share: float, generator: torch.Generator
) -> torch.Tensor:
    """Channel dropout: a mask that leaves out each electrode with probability `share`.

    Returns
    -------
    bool tensor of shape (batch, n_chans), with at least one True in every row
    """
    if not 0 <= share < 1:
        raise ValueError(f"share={share!r} of electrodes to leave out: expected 0 <= share < 1")
    draw = torch.rand(batch, n_chans, generator=generator)
    return (draw >= share) | (draw == draw.amax(1, keepdim=True))


def cosine_schedule(
    optimizer: torch.optim.Optimizer, n_steps: int, warmup: int = 20
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then half a cosine down to zero."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, n_steps - warmup))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@torch.no_grad()
def embed(encoder, eeg: np.ndarray, subject: np.ndarray, batch: int = 512) -> torch.Tensor:
    """Apply an encoder to epochs in batches, in evaluation mode.

    Returns
    -------
    float32 tensor of shape (n, n_outputs) on the CPU
    """
    was_training = encoder.training
    encoder.eval()
    device = next(encoder.parameters()).device
    parts = []
    for i in range(0, len(eeg), batch):
        x = torch.tensor(eeg[i : i + batch]).to(device)
        s = torch.tensor(subject[i : i + batch]).to(device)
        parts.append(encoder(x, s).float().cpu())
    encoder.train(was_training)
    return torch.cat(parts)


def training_dtype(device: torch.device | str, large: bool = False) -> torch.dtype:
    """bfloat16 where the processor gains from it, float32 elsewhere.

    Parameters
    ----------
    device : where the networks compute
    large : bool, whether they are large (Stable Diffusion)
        The small networks of this study gain on graphics cards only: on processors with bfloat16
        instructions a step of its UNet takes a tenth longer than in float32, with matrix units
        (AMX) a quarter (`reports/LOG.md`, 2026-11-30 and 2026-12-01).

    Returns
    -------
    torch.bfloat16 or torch.float32
    """
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if not large or torch.device(device).type != "cpu":
        return torch.float32
    # torch names its probes differently from version to version; a missing one counts as "no"
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    able = any(getattr(torch.cpu, name, lambda: False)() for name in probes)
    # asked to keep to older instructions (ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA), it would emulate
    limited = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    limited |= os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in OLDER_INSTRUCTIONS
    return torch.bfloat16 if able and not limited else torch.float32
