"""Every scheduler of diffusers, and the ones that draw what the networks learned.

from schedulers import GOOD, every_scheduler, made_from, refuses
"""

from __future__ import annotations

import diffusers
import pytest

GOOD = (
    "DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep",
    "DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete",
    "KDPM2AncestralDiscrete", "KDPM2Discrete", "LMSDiscrete", "PNDM", "SASolver", "UniPCMultistep",
)  # fmt: skip
SIGMAS = [{f"use_{kind}_sigmas": True} for kind in ("karras", "exponential")]


def every_scheduler() -> list[tuple[str, dict]]:
    """Names (without "Scheduler") and options that place the steps otherwise."""
    names = [n.removesuffix("Scheduler") for n in dir(diffusers) if n.endswith("Scheduler")]
    assert {*GOOD} <= {*names}
    placed = ("DEISMultistep", "DPMSolverMultistep", "EulerDiscrete", "HeunDiscrete", "LMSDiscrete")
    return [(n, {}) for n in names] + [(n, o) for n in placed for o in SIGMAS]


def made_from(config, name: str, options: dict):
    """The scheduler for a configuration, or None where it cannot be made at all."""
    if name == "PNDM":
        options = {"skip_prk_steps": True} | options
    try:
        return getattr(diffusers, f"{name}Scheduler").from_config(
            config, timestep_spacing="trailing", clip_sample=False, **options
        )
    except (TypeError, ValueError, ImportError):
        return None


def refuses(draw) -> None:
    """Nothing is drawn: the package says why, or diffusers did when it was to be made."""
    with pytest.raises(ValueError, match="cannot draw here|another rate|the networks give"):
        draw()
