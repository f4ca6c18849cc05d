"""Several processes, one training: their start, and checkpoints that any number of them can take up.

What is trained is a `jobs.Job`. `sgdm_utils.train.train` runs it in this process; `launch` starts the
very same function in several processes with HF accelerate. In the folder of the job lie then
``history.jsonl`` (one line per step), ``weights.safetensors``, ``ema.safetensors`` (averaged weights),
``run.json`` (what it ran on), ``log.txt`` (what launched processes printed) and ``checkpoint/``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import RNG_STATE_NAME, broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import nn

from sgdm_utils import atomic, paths
from sgdm_utils.checkpoints import StateIgnored
from sgdm_utils.jobs import WEIGHTS, Job, JobError, Precision, Trained, read_history

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

LOG = "log.txt"
#: Begins the line by which a process says in one sentence what stopped it.
FAILURE = "sgdm_utils.train failed: "


class TrainingFailed(RuntimeError):
    """A launched process failed; the message holds what it said."""


def launch(
    config_path: Path,
    num_processes: int,
    mixed_precision: Precision | None = None,
    cpu: bool = False,
) -> Trained:
    """Train a job in several processes of this machine and wait for the end.

    Parameters
    ----------
    config_path : Path, written by `Job.write`
    num_processes : int, one for each GPU; with `cpu`, processes that talk by gloo
    mixed_precision : {"no", "bf16"}, optional
        Instead of what the job says.
    cpu : bool
        True for the CPU, also where there are GPUs.

    Raises
    ------
    JobError
        Before anything starts: for a wrong job, a global batch that does not divide, too few GPUs.
    TrainingFailed
        When a process fails: which one, its error, and the last lines of ``log.txt``.
    """
    path = Path(config_path).resolve()
    job = Job.read(path)
    if mixed_precision is not None:
        job = dataclasses.replace(job, mixed_precision=mixed_precision)
    job.share(num_processes)
    if not cpu and num_processes > torch.cuda.device_count():
        raise JobError(
            f"{num_processes} processes need as many GPUs, {torch.cuda.device_count()} are here: "
            "ask for fewer, or give cpu=True"
        )
    log = Path(job.output) / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, open(log, "w") as stream:
        command = _command(path, Path(scratch), num_processes, job.mixed_precision, cpu)
        code = _run(command, _environment(num_processes, cpu), stream)
    if code:
        raise TrainingFailed(_reason(log, num_processes, code))
    return Trained(Path(job.output), read_history(job.output))


def _command(path: Path, scratch: Path, n: int, precision: str, cpu: bool) -> list[str]:
    """The command line of `accelerate launch`."""
    # a file of our own, so that nobody's personal default configuration is taken up
    settings = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", "debug": False}
    settings |= {"num_processes": n, "num_machines": 1, "machine_rank": 0, "use_cpu": cpu}
    settings |= {"mixed_precision": precision}
    if n > 1:
        # also on the CPU: with MULTI_CPU accelerate starts one single process unless there is MPI
        settings |= {"distributed_type": "MULTI_GPU", "main_process_port": 0}
    (scratch / "accelerate.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(scratch / "accelerate.json")]
    command += ["-m", "sgdm_utils.train", "--config", str(path), "--num-processes", str(n)]
    return command + ["--mixed-precision", precision] + ["--cpu"] * cpu


def _environment(n: int, cpu: bool) -> dict[str, str]:
    """Environment of the processes: this copy of the package, few threads, no outer launcher."""
    outer = re.compile(
        r"(ACCELERATE|TORCHELASTIC)_|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)$|MASTER_"
    )
    environment = {k: v for k, v in os.environ.items() if not outer.match(k)}
    search = [str(paths.project_root()), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, search))
    # all processes share the cores; left alone, each would start a thread for every core
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // n)))
    if cpu:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    return environment


def _run(command: list[str], environment: dict[str, str], stream) -> int:
    """Run a command to its end; an interruption here ends it and all that it started."""
    group = os.name == "posix"  # a group of its own, so that the launcher's children can be ended
    process = subprocess.Popen(
        command, env=environment, stdout=stream, stderr=stream, start_new_session=group
    )
    try:
        return process.wait()
    except BaseException:
        stop = (lambda s: os.killpg(process.pid, s)) if group else process.send_signal
        stop(signal.SIGTERM)
        try:
            process.wait(timeout=40)  # torch's launcher waits up to 30 s for its workers
        except subprocess.TimeoutExpired:
            process.kill()
        raise


def _reason(log: Path, num_processes: int, code: int) -> str:
    """What stopped a launched training, from what the processes printed."""
    text = log.read_text(errors="replace")
    said = [line.split(FAILURE, 1)[1] for line in text.splitlines() if FAILURE in line]
    message = f"training in {num_processes} process(es) failed: "
    if said:  # the first one to fail; the others then fail because it is gone
        return f"{message}{json.loads(said[0])}\nAll that was printed: {paths.relative(log)}"
    if re.search(r"SIGKILL|exitcode\s*:\s*-9", text) or code == -9:
        message += "a process was killed, by hand or because memory ran out; "
    lines = [line for line in text.splitlines() if line.strip()][-15:]
    return "\n".join([f"{message}exit code {code}. The end of {paths.relative(log)}:", *lines])


class Checkpoint:
    """The whole state of a training in a folder, written and read by all its processes together.

    Accelerate writes optimiser and schedule. Networks are stored under their own names, not those of
    what they are wrapped in, and no generator belongs to a process: so another number of processes
    can go on.

    Parameters
    ----------
    folder : Path
    identity : dict, what the result depends on; as JSON gives it back
    accelerator : accelerate.Accelerator, which has prepared the networks
    networks : torch.nn.Module, not wrapped
    ema : EMAModel of the networks' parameters, or None
    generator : torch.Generator on the CPU, in the same state in all processes
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        accelerator: Accelerator,
        networks: nn.Module,
        ema: EMAModel | None,
        generator: torch.Generator,
    ) -> None:
        self.folder, self.identity, self.accelerator = folder, identity, accelerator
        self.networks, self.ema, self.generator = networks, ema, generator
        accelerator.register_save_state_pre_hook(self._save_networks)
        accelerator.register_load_state_pre_hook(self._load_networks)

    def save(self, step: int, notes: Any) -> None:
        """Replace the checkpoint; a reader finds the old one or the whole new one.

        Parameters
        ----------
        step : int, steps made
        notes : what JSON can hold, given back by `load`
        """
        accelerator, is_main = self.accelerator, self.accelerator.is_main_process
        new = atomic.atomic_directory(self.folder) if is_main else contextlib.nullcontext()
        with new as part:
            part = Path(broadcast_object_list([str(part)])[0])  # the name that process 0 chose
            accelerator.save_state(str(part))
            # states of the global generators, from which nothing is drawn
            (part / f"{RNG_STATE_NAME}_{accelerator.process_index}.pkl").unlink()
            if is_main:
                state = {
                    "step": step,
                    "notes": notes,
                    "identity": self.identity,
                    "digest": _digest(self.identity),
                    "generator": self.generator.get_state().numpy().tobytes().hex(),
                }
                if self.ema is not None:
                    state["ema_steps"] = self.ema.optimization_step
                    averages = {str(i): p for i, p in enumerate(self.ema.shadow_params)}
                    write_tensors(part / "averages.safetensors", averages)
                (part / "state.json").write_text(json.dumps(state))
            accelerator.wait_for_everyone()  # before the folder takes its name

    def load(self) -> tuple[int, Any]:
        """Take up the checkpoint, if there is one of this very job.

        Returns
        -------
        step : int, steps made; 0 for a fresh start
        notes : as they were saved; None for a fresh start

        Raises
        ------
        JobError
            When it cannot be read.

        Warns
        -----
        StateIgnored
            If it belongs to another job; says what differs.
        """
        if self.accelerator.is_main_process:
            atomic.recover(self.folder)
        self.accelerator.wait_for_everyone()
        if not (self.folder / "state.json").is_file():
            return 0, None
        try:
            state = json.loads((self.folder / "state.json").read_text())
            theirs = state["identity"]
            if state["digest"] != _digest(self.identity):
                self._ignore(theirs)
                return 0, None
            self.accelerator.load_state(str(self.folder))
            drawn = bytearray.fromhex(state["generator"])
            self.generator.set_state(torch.frombuffer(drawn, dtype=torch.uint8))
            if self.ema is not None:
                averages = load_file(self.folder / "averages.safetensors")
                for i, average in enumerate(self.ema.shadow_params):
                    average.copy_(averages[str(i)])
                self.ema.optimization_step = state["ema_steps"]
            return state["step"], state["notes"]
        except Exception as error:
            raise JobError(
                f"the checkpoint {paths.relative(self.folder)} cannot be read "
                f"({type(error).__name__}: {error}): delete it to train from the beginning"
            ) from error

    def _ignore(self, theirs: dict[str, Any]) -> None:
        names = sorted(theirs.keys() | self.identity.keys())
        differ = [n for n in names if theirs.get(n) != self.identity.get(n)]
        if self.accelerator.is_main_process:
            warnings.warn(
                f"The checkpoint {paths.relative(self.folder)} is not used: it belongs to another "
                f"job; different: {', '.join(differ)}. Training starts anew.",
                StateIgnored,
                stacklevel=4,
            )

    def _save_networks(self, models: list, weights: list, folder: str) -> None:
        if self.accelerator.is_main_process:
            write_tensors(Path(folder) / WEIGHTS, self.networks.state_dict())
        weights.clear()  # accelerate has none left to write

    def _load_networks(self, models: list, folder: str) -> None:
        self.networks.load_state_dict(load_file(Path(folder) / WEIGHTS))
        models.clear()


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors; they may share memory and lie on any device."""
    own = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    with atomic.atomic_file(path) as part:
        save_file(own, part)


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
