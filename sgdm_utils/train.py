"""The training loop of a job, in one process or as one of several.

`train(job)` in a notebook, or, started by `sgdm_utils.distributed.launch`,
``python -m accelerate.commands.launch ... -m sgdm_utils.train --config job.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from sgdm_utils import atomic, machine
from sgdm_utils.distributed import FAILURE, Checkpoint, write_tensors
from sgdm_utils.jobs import (
    AVERAGED,
    HISTORY,
    WEIGHTS,
    Job,
    JobError,
    Task,
    Trained,
    build_task,
    read_history,
    snapshot_name,
)

RUN = "run.json"
_FLUSH_EVERY = 25  # steps between two gatherings of the loss: each makes all devices wait


def train(
    job: Job | Mapping[str, Any] | Path, cpu: bool = False, num_processes: int | None = None
) -> Trained:
    """Train in this process, or be one of the processes that accelerate has started.

    Goes on from ``checkpoint/`` of the job's folder, if there is one of this very job.

    Parameters
    ----------
    job : Job, path of its JSON file, or what such a file holds
    cpu : bool
        True leaves GPUs alone.
    num_processes : int, optional
        How many processes there should be; makes sure that no launcher quietly started fewer.

    Raises
    ------
    JobError
        For a job that cannot be run, a task that is not there or not of the right form, a
        checkpoint that cannot be read.
    FloatingPointError
        When the loss is not finite any more; the last checkpoint stays as it was.

    Warns
    -----
    StateIgnored
        If there is a checkpoint, but of another job; says what differs.
    """
    if not isinstance(job, Job):
        job = Job.from_dict(dict(job)) if isinstance(job, Mapping) else Job.read(job)
    with _fresh_accelerator(job, cpu) as accelerator:
        if num_processes not in (None, accelerator.num_processes):
            raise JobError(
                f"{num_processes} processes were asked for, but {accelerator.num_processes} run: "
                "start them with sgdm_utils.distributed.launch"
            )
        return _Run(job, accelerator).train()


class _Objective(nn.Module):
    """Networks and losses in one module, because gradients are averaged of what this one returns."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.networks, self.losses = task.networks, task.losses

    def forward(self, draws: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean loss of a slice of the global batch."""
        n = len(next(iter(draws.values())))
        losses = self.losses(self.networks, draws)
        if losses.shape != (n,):
            raise JobError(
                f"the losses of {n} items have shape {tuple(losses.shape)}: return one number for "
                "each item, so that every item weighs the same in any number of processes"
            )
        return losses.float().mean()


class _Run:
    """One training, from its first step or from its checkpoint to its results."""

    def __init__(self, job: Job, accelerator: Accelerator) -> None:
        self.job, self.accelerator = job, accelerator
        self.is_main, self.output = accelerator.is_main_process, Path(job.output)
        share, rank = job.share(accelerator.num_processes), accelerator.process_index
        self.mine = slice(rank * share, (rank + 1) * share)
        task = self.task = build_task(job, accelerator.device)
        self.objective, self.optimizer, self.schedule = accelerator.prepare(
            _Objective(task), task.optimizer, task.schedule
        )
        # after `prepare`, which gives all processes the weights of the first; from then on each of
        # them averages the same weights
        self.parameters = list(task.networks.parameters())
        self.ema = None
        if job.ema_decay is not None:
            from diffusers.training_utils import EMAModel  # seconds, which not every job needs

            # foreach: a few calls instead of one for each tensor
            foreach = accelerator.device.type == "cuda"
            self.ema = EMAModel(self.parameters, decay=job.ema_decay, foreach=foreach)
        self.generator = torch.Generator().manual_seed(job.seed)
        self.pending: list[torch.Tensor] = []  # losses of this process that were not gathered yet
        self.checkpoint = Checkpoint(
            self.output / "checkpoint",
            json.loads(json.dumps({**job.identity(), "inputs": task.identity})),
            accelerator, task.networks, self.ema, self.generator,
        )  # fmt: skip

    def train(self) -> Trained:
        """Make the steps that are not made yet and write the results."""
        job, (start, sessions) = self.job, self._resume()
        dtype = str(self.parameters[0].dtype).removeprefix("torch.")
        about = {"first_step": start + 1, **_describe(job, self.accelerator, dtype)}
        clock = time.perf_counter()
        for step in range(start + 1, job.steps + 1):
            self.pending.append(self._step())
            last = step == job.steps
            evaluate = self.task.evaluate is not None and (last or _due(step, job.eval_every))
            save = last or _due(step, job.save_every)
            if evaluate or save or len(self.pending) == _FLUSH_EVERY:
                self._flush(step, evaluate)
            if step in job.snapshots:
                self._write_averaged(snapshot_name(step))
            if save:
                ended = {"last_step": step, "wall_s": round(time.perf_counter() - clock, 3)}
                ended["peak_gpu_mb"] = _peak_gpu_mb(self.accelerator.device)
                self.checkpoint.save(step, [*sessions, about | ended])
                if last:
                    sessions = [*sessions, about | ended]
        if self.is_main:
            write_tensors(self.output / WEIGHTS, self.task.networks.state_dict())
            run = {"job": self.checkpoint.identity, "sessions": sessions}
            _write_text(self.output / RUN, json.dumps(run, indent=2) + "\n")
        if self.ema is not None:
            self._write_averaged(AVERAGED)
        self.accelerator.wait_for_everyone()
        return Trained(self.output, read_history(self.output))

    def _resume(self) -> tuple[int, list]:
        """Number of steps made, and the sessions that made them."""
        if self.is_main:
            self.output.mkdir(parents=True, exist_ok=True)
        step, sessions = self.checkpoint.load()
        if self.is_main:  # steps after the checkpoint will be made again
            kept = [e for e in read_history(self.output) if e["step"] <= step]
            lines = "".join(json.dumps(entry) + "\n" for entry in kept)
            _write_text(self.output / HISTORY, lines)
        return step, sessions or []

    def _step(self) -> torch.Tensor:
        """One update; returns the loss of this process's slice."""
        n = self.job.global_batch
        draws = self.task.draw(n, self.generator)
        if uneven := {k: tuple(v.shape) for k, v in draws.items() if v.shape[:1] != (n,)}:
            raise JobError(f"draws must have {n} rows, one for each item of the batch: {uneven}")
        loss = self.objective({name: values[self.mine] for name, values in draws.items()})
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        if self.job.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.parameters, self.job.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        if self.ema is not None:
            self.ema.step(self.parameters)
        return loss.detach()

    def _flush(self, step: int, evaluate: bool) -> None:
        """Gather the losses up to `step`, and append them, and perhaps scores, to the history."""
        means = self.accelerator.reduce(torch.stack(self.pending), "mean").tolist()
        first = step - len(means) + 1
        if bad := [first + i for i, mean in enumerate(means) if not math.isfinite(mean)]:
            raise FloatingPointError(
                f"the loss is not finite from step {bad[0]} on: lower the learning rate, clip "
                "gradients (max_grad_norm), or look for NaN in the inputs"
            )
        entries = [{"step": first + i, "train": mean} for i, mean in enumerate(means)]
        if evaluate and self.is_main:
            with torch.no_grad(), self.accelerator.autocast():
                entries[-1] |= self.task.evaluate(self.task.networks)
        if self.is_main:
            with open(self.output / HISTORY, "a") as stream:
                stream.write("".join(json.dumps(entry) + "\n" for entry in entries))
                stream.flush()
                os.fsync(stream.fileno())
        self.pending.clear()

    def _write_averaged(self, name: str) -> None:
        """Write the networks' state dict with the averaged weights in place of the last ones."""
        if not self.is_main:
            return
        tensors = self.task.networks.state_dict()
        named = [name for name, _ in self.task.networks.named_parameters()]
        tensors |= dict(zip(named, self.ema.shadow_params, strict=True))
        write_tensors(self.output / name, tensors)


@contextlib.contextmanager
def _fresh_accelerator(job: Job, cpu: bool) -> Iterator[Accelerator]:
    """An accelerator that forgets the one before it: precision and device are kept globally."""
    _forget()
    try:
        # the schedule is stepped once a step; accelerate would step it once for each process
        accelerator = Accelerator(
            mixed_precision=job.mixed_precision, cpu=cpu, step_scheduler_with_optimizer=False
        )
        yield accelerator
        accelerator.end_training()
    finally:
        _forget()


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _describe(job: Job, accelerator: Accelerator, dtype: str) -> dict[str, Any]:
    """What this session runs on."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "num_processes": accelerator.num_processes,
        "items_per_process": job.share(accelerator.num_processes),
        "device": name,
        "backend": accelerator.state.backend,
        "mixed_precision": accelerator.mixed_precision,
        "parameter_dtype": dtype,
        "n_threads": torch.get_num_threads(),
        "versions": machine.versions(),
        "git": machine.git_state(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _peak_gpu_mb(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _write_text(path: Path, text: str) -> None:
    with atomic.atomic_file(path) as part:
        part.write_text(text)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m sgdm_utils.train", description=__doc__)
    parser.add_argument("--config", required=True, type=Path, help="a file that Job.write wrote")
    parser.add_argument("--mixed-precision", choices=["no", "bf16"], help="instead of the job's")
    parser.add_argument("--num-processes", type=int, help="fail unless there are this many")
    parser.add_argument("--cpu", action="store_true", help="leave GPUs alone")
    options = parser.parse_args(arguments)
    try:
        job = Job.read(options.config)
        if options.mixed_precision:
            job = dataclasses.replace(job, mixed_precision=options.mixed_precision)
        train(job, options.cpu, options.num_processes)
    except Exception as error:
        traceback.print_exc()
        who = f"process {int(os.environ.get('RANK', 0)) + 1} of {os.environ.get('WORLD_SIZE', 1)}"
        said = json.dumps(f"{who}: {type(error).__name__}: {error}")
        # one write, so that processes do not write into each other's line
        sys.stderr.write(f"\n{FAILURE}{said}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
