"""Schedulers of diffusers: which ones can draw here, and what the networks are given of their latents.

Some schedulers hold latents as the networks know them, sqrt(a) z + sqrt(1 - a) e; others (Euler, Heun,
LMS, KDPM2) as z + s e, which `scale_model_input` brings to that form.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin


def check_scheduler(
    scheduler: SchedulerMixin, prediction_type: str, alphas_bar: torch.Tensor
) -> None:
    """Refuse a scheduler that would draw from another distribution than the networks learned.

    Parameters
    ----------
    scheduler : SchedulerMixin
    prediction_type : str, what the networks give
    alphas_bar : tensor of shape (n_timesteps,), share of signal power at each step of the training

    Raises
    ------
    ValueError
        It expects other predictions or mixes in noise at another rate; its step fails or has to be
        told more than prediction, time and latents; it needs networks that were distilled for it,
        or draws noise that no generator decides.
    """
    name = type(scheduler).__name__
    kind = scheduler.config.get("prediction_type")
    if kind != prediction_type:
        raise ValueError(
            f"the scheduler expects {kind!r}, the networks give prediction_type={prediction_type!r}"
        )
    theirs = getattr(scheduler, "alphas_cumprod", None)
    same = theirs is not None and theirs.shape == alphas_bar.shape
    if not same or not torch.allclose(alphas_bar.cpu(), theirs.cpu().to(alphas_bar), atol=1e-6):
        raise ValueError(
            f"{name} adds noise at another rate than in training: make it by from_config of the "
            "scheduler that came with the networks, without options that change its betas"
        )
    step = inspect.signature(scheduler.step).parameters
    more = [p.name for p in list(step.values())[3:] if p.default is p.empty and p.kind < 2]
    if more or "prev_timestep" in step:
        why = f"its step has to be told {', '.join(more) or 'prev_timestep'}"
    elif "Inverse" in name:
        why = "it goes from pictures to noise"
    elif name.startswith(("LCM", "TCD")):
        why = "it needs networks that were distilled for it"
    elif name.startswith("DPMSolverSDE"):
        why = "its noise is not that of `generator`"
    else:
        why = _failure(scheduler)
    if not why:
        return
    raise ValueError(f"{name} cannot draw here: {why}. Take DPMSolverMultistepScheduler")


def _failure(scheduler: SchedulerMixin) -> str:
    """What a first step raises; some take a prediction type that their step does not know."""
    probe, extra = copy.deepcopy(scheduler), {}
    if "generator" in inspect.signature(probe.step).parameters:
        extra["generator"] = torch.Generator()
    try:
        probe.set_timesteps(10)
        nothing = torch.zeros(1, 1, 2, 2)
        noisy = probe.scale_model_input(nothing, probe.timesteps[0])
        probe.step(noisy, probe.timesteps[0], nothing, **extra)
    except (ValueError, NotImplementedError, TypeError, LookupError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def time_steps(scheduler: SchedulerMixin, n_steps: int, device: torch.device) -> torch.Tensor:
    """Set the steps of a run and return their times."""
    scheduler.set_timesteps(n_steps, device=device)
    if hasattr(
        scheduler, "set_begin_index"
    ):  # else equal times (Karras) start it at the second one
        scheduler.set_begin_index(0)
    return scheduler.timesteps


def model_input(
    scheduler: SchedulerMixin, latents: torch.Tensor, t: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the networks are given for a scheduler's latents, and its share of signal power.

    Returns
    -------
    noisy : tensor shaped as `latents`, sqrt(a) z + sqrt(1 - a) e
    a : scalar tensor; between the timesteps of the training where the scheduler steps there
    """
    noisy = scheduler.scale_model_input(latents, t)
    if noisy is latents:
        return noisy, scheduler.alphas_cumprod[int(t)].to(latents.device)
    return noisy, scheduler.scale_model_input(
        latents.new_ones(()), t
    ) ** 2  # of z + s e: 1/(1 + s^2)


def check_drawn(latents: torch.Tensor, scheduler: SchedulerMixin) -> None:
    """Refuse what is not finite: some schedulers fail with some of their options.

    Raises
    ------
    ValueError
    """
    if not torch.isfinite(latents).all():
        raise ValueError(
            f"{type(scheduler).__name__} gave NaN or infinity with these steps and options: take more "
            "steps, its default options, or DPMSolverMultistepScheduler"
        )


def check_generators(
    generator: torch.Generator | Sequence[torch.Generator] | None, batch: int
) -> torch.Generator | list[torch.Generator] | None:
    """One generator, or a list with one for each item, all on the CPU; None stays None.

    Raises
    ------
    ValueError
        Too few or too many, or on another device.
    """
    if generator is None:
        return None
    alone = isinstance(generator, torch.Generator)
    many = [generator] if alone else list(generator)
    if not alone and len(many) != batch:
        raise ValueError(
            f"{len(many)} generators for {batch} pictures: give one torch.Generator for each, or a "
            "single one"
        )
    for one in many:
        if one.device.type != "cpu":
            raise ValueError(
                f"a generator lives on {one.device}: noise is drawn on the CPU, so that devices "
                "agree about it; give torch.Generator().manual_seed(...)"
            )
    return generator if alone else many
