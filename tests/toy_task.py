"""A task for `test_distributed`; light, because every launched process imports it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import nn

from sgdm_utils.jobs import Task


class Toy(nn.Module):
    """A small network with a buffer."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 3)
        )
        self.register_buffer("scale", torch.tensor(1.5))


def optimise(networks, steps):
    """Optimiser and schedule."""
    optimizer = torch.optim.AdamW(networks.parameters(), lr=0.02, betas=(0.9, 0.95))
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1 - s / (steps + 1))


def draw(n, generator):
    x = torch.randn(n, 6, generator=generator)
    return {"x": x, "seen": torch.rand(n, generator=generator) > 0.3}


def losses(networks, draws):
    x = draws["x"] * draws["seen"][:, None]
    return (networks.layers(x) * networks.scale - draws["x"][:, 1:4]).pow(2).mean(1)


def toy(job, device):
    """Task function; the environment variable TOY_TROUBLE, `what:rank:call`, lets it fail.

    It is no option of the job, because options belong to a job's identity.
    """
    what, rank, when = os.environ.get("TOY_TROUBLE", "none:0:0").split(":")
    wrong = job.options.get("wrong")
    networks = Toy(job.options.get("dropout", 0.0)).to(device)
    calls = 0

    def troubled_losses(networks, draws):
        nonlocal calls
        calls += 1
        if calls == int(when) and int(rank) == int(os.environ.get("RANK", 0)):
            if what == "raise":
                raise ValueError("these pictures are\nno good")
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "sleep":
                Path(job.output, "asleep").touch()
                time.sleep(120)
        out = losses(networks, draws)
        return out.mean() if wrong == "mean" else out / 0 if wrong == "nan" else out

    def uneven_draw(n, generator):
        return draw(n, generator) | {"level": torch.rand(1)}

    def evaluate(networks):
        return {"val": float(networks.layers[0].weight.square().sum())}

    return Task(
        networks,
        *optimise(networks, job.steps),
        uneven_draw if wrong == "rows" else draw,
        troubled_losses,
        evaluate,
        {"pictures": job.options.get("pictures", "abc")},
    )


def no_task(job, device):
    return None
