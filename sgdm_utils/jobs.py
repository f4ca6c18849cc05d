"""What is trained, by how many processes it may be trained, and where the result lies.

A `Job` describes a training: the task as ``module:function``, the *global* batch, the number of
steps, the seed. The number of processes must not change the result, so

- every random number is drawn for the global batch, from one generator on the CPU, in every process
  alike; a process then takes its slice;
- a loss is one number for each item, and slices are equally large, so the mean over processes of
  the mean over items is the mean over the global batch, for the loss as for its gradient;
- initial weights come from the seed, and networks with dropout are refused, because its masks would
  come from a generator of each process.

What remains is the order of floating-point sums.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from sgdm_utils import atomic

Precision = Literal["no", "bf16"]
HISTORY, WEIGHTS, AVERAGED = "history.jsonl", "weights.safetensors", "ema.safetensors"


class JobError(ValueError):
    """A job that cannot be run as it is described."""


@dataclass(frozen=True)
class Job:
    """What is trained, and how; goes to and comes from JSON.

    Attributes
    ----------
    task : str
        ``"module:function"``; the function gets the job and the torch.device, returns a `Task`.
    output : str
        Folder of the results.
    global_batch : int
        Items for each step, of all processes together; a multiple of their number.
    steps : int
    seed : int
        Of the initial weights and of all random draws.
    options : dict
        What the task wants to know, as far as JSON can hold it.
    mixed_precision : {"no", "bf16"}
        Weights are float32 in both cases.
    ema_decay : float or None
        Decay of the moving average of the weights; None keeps none.
    max_grad_norm : float or None
    save_every, eval_every : int
        Steps between two checkpoints, between two evaluations; 0 for only at the end.
    snapshots : tuple of int
        Steps after which the averaged weights are written to ``ema-<step>.safetensors``.
    """

    task: str
    output: str
    global_batch: int
    steps: int
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    mixed_precision: Precision = "no"
    ema_decay: float | None = 0.99
    max_grad_norm: float | None = 1.0
    save_every: int = 200
    eval_every: int = 50
    snapshots: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        module, colon, function = str(self.task).partition(":")
        if not (module and colon and function):
            raise JobError(f"task is {self.task!r}, expected 'module:function'")
        least = {"global_batch": 1, "steps": 1, "seed": 0, "save_every": 0, "eval_every": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise JobError(f"{name} is {value!r}, expected an integer of at least {low}")
        if self.mixed_precision not in get_args(Precision):
            raise JobError(f"mixed_precision is {self.mixed_precision!r}, expected 'no' or 'bf16'")
        object.__setattr__(self, "snapshots", tuple(self.snapshots))
        if self.snapshots and self.ema_decay is None:
            raise JobError("snapshots are taken of the averaged weights: give ema_decay")
        if late := [s for s in self.snapshots if not 1 <= s <= self.steps]:
            raise JobError(f"snapshots {late} lie outside of steps 1 to {self.steps}")

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "the job") -> Job:
        """Make a job of what a JSON file held.

        Raises
        ------
        JobError
            For fields that are missing, unknown or of a wrong value.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        if unknown := sorted(values.keys() - fields.keys()):
            raise JobError(f"{where} has unknown fields {unknown}; there are {sorted(fields)}")
        needed = [n for n, f in fields.items() if f.default is f.default_factory]
        if missing := [n for n in needed if n not in values]:
            raise JobError(f"{where} lacks {missing}")
        return cls(**values)

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read a job from a JSON file; errors name the file."""
        try:
            values = json.loads(Path(path).read_text())
        except FileNotFoundError:
            raise JobError(f"there is no job file {path}: write it with Job.write") from None
        except json.JSONDecodeError as error:
            raise JobError(f"{path} is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise JobError(f"{path} holds a {type(values).__name__}, expected an object")
        return cls.from_dict(values, str(path))

    def write(self, path: Path) -> Path:
        """Write the job as JSON and return the path."""
        with atomic.atomic_file(Path(path)) as part:
            part.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")
        return Path(path)

    def share(self, num_processes: int) -> int:
        """Items of each step that fall to one of `num_processes` processes.

        Raises
        ------
        JobError
            When the global batch does not divide: unequal slices would weigh items unequally.
        """
        if num_processes < 1:
            raise JobError(f"{num_processes} processes cannot train: at least 1")
        if self.global_batch % num_processes:
            raise JobError(
                f"a global batch of {self.global_batch} does not divide by {num_processes} "
                f"processes: choose a multiple of {num_processes}, or another number of processes"
            )
        return self.global_batch // num_processes

    def identity(self) -> dict[str, Any]:
        """What of the job decides about the weights: not where results go, nor how often."""
        elsewhere = ("output", "save_every", "eval_every", "snapshots")
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in elsewhere}


@dataclass
class Task:
    """What a task function builds.

    Attributes
    ----------
    networks : torch.nn.Module
        All that is trained, on the device. Its names are those of the weight files.
    optimizer : torch.optim.Optimizer
    schedule : learning rate schedule, stepped once for each step
    draw : callable of (n, generator)
        The random numbers of n items, a dict of tensors with n rows on the CPU. Called for the
        *global* batch, in every process alike; so draw only, and compute in `losses`.
    losses : callable of (networks, draws)
        One loss for each item, a tensor of shape (n,); gets the slice of one process.
    evaluate : callable of (networks), optional
        Scores for the history, a dict of str to float; runs in process 0, without gradients, and
        must not depend on anything that was drawn.
    identity : dict
        What else the result depends on, as far as JSON can hold it: digests of inputs.
    """

    networks: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    draw: Callable[[int, torch.Generator], dict[str, torch.Tensor]]
    losses: Callable[[nn.Module, dict[str, torch.Tensor]], torch.Tensor]
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    identity: dict[str, Any] = field(default_factory=dict)


def build_task(job: Job, device: torch.device) -> Task:
    """Call the task function of a job, with initial weights that depend on the seed alone.

    Raises
    ------
    JobError
        When it cannot be imported, returns something else, or its networks have dropout.
    """
    module, _, name = job.task.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise JobError(f"task {job.task!r} cannot be imported: {error}") from error
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(job.seed)
        task = function(job, device)
    if not isinstance(task, Task):
        raise JobError(f"{job.task} returned a {type(task).__name__}, expected a Task")
    drops = [n for n, m in task.networks.named_modules() if isinstance(m, _DropoutNd) and m.p > 0]
    if drops:
        raise JobError(
            f"{', '.join(drops[:3])}: dropout draws its masks in each process, so the result would "
            "depend on their number. Set p to 0, or draw the masks in the task's `draw`"
        )
    return task


@dataclass(frozen=True)
class Trained:
    """Where the results of a job are.

    Attributes
    ----------
    output : Path
    history : list of dict
        For each step `step` and `train`, the mean loss of the global batch before that step; and the
        scores of the task where it was evaluated.
    """

    output: Path
    history: list[dict[str, float]]

    def weights(self) -> dict[str, torch.Tensor]:
        """State dict of the networks after the last step."""
        return load_file(self.output / WEIGHTS)

    def averaged(self, step: int | None = None) -> dict[str, torch.Tensor]:
        """State dict with the moving average of the weights, at the end or at a snapshot."""
        return load_file(self.output / (AVERAGED if step is None else snapshot_name(step)))


def snapshot_name(step: int) -> str:
    """Name of the file that holds the averaged weights after `step` steps."""
    return f"ema-{step}.safetensors"


def read_history(output: Path) -> list[dict[str, float]]:
    """Read ``history.jsonl``; a last line that was cut off by a crash is left out."""
    path = Path(output) / HISTORY
    entries = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries
