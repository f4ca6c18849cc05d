"""A real Slurm on this machine: munged, slurmctld and some slurmd, all in one folder, gone in the end.

Nodes claim more cores and memory than there are, so that the jobs of the study find room.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

_SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
_CONF = """\
ClusterName=study
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu,shard
ReturnToService=2
SlurmdTimeout=60
KillWait=5
NodeName=DEFAULT CPUs=8 RealMemory=200000 Gres=gpu:1,shard:4
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Say what is not installed, "" where a cluster can be started."""
    programs = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
    absent = [name for name in programs if not shutil.which(name, path=_SBIN)]
    if absent:
        return f"no {', '.join(absent)}: apt-get install slurmctld slurmd slurm-client munge"
    if not find_spec("snakemake_executor_plugin_slurm"):
        return "no plugin: pip install snakemake-executor-plugin-slurm"
    return ""


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start a cluster of two nodes, ``n1`` and ``n2``; yields the environment that finds it.

    Parameters
    ----------
    folder : Path
        Empty folder for everything that the daemons write; their logs are there, too. Paths of
        sockets are short: at most about 90 characters.
    """
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _SBIN}
    # the engine's plugin (jobstep 0.6.1) takes SLURM_CONF out of the environment of the srun in a job
    wrapper = folder / "bin" / "srun"
    wrapper.parent.mkdir()
    srun = shutil.which("srun", path=_SBIN)
    wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {srun} "$@"\n')
    wrapper.chmod(0o755)
    environment["PATH"] = f"{wrapper.parent}{os.pathsep}{_SBIN}"
    folder.chmod(0o755)
    for name in ("state", "spool-n1", "spool-n2"):
        (folder / name).mkdir()
    host = socket.gethostname().split(".")[0]
    text = _CONF.format(host=host, user=getpass.getuser(), folder=folder, ports=_free_ports(3))
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=shard Count=4\n")
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    files = {"key-file": key, "socket": folder / "munge.socket", "log-file": folder / "munge.log"}
    files |= {"pid-file": folder / "munge.pid", "seed-file": folder / "munge.seed"}
    munged = ["munged", "--force", "--foreground", *(f"--{k}={v}" for k, v in files.items())]
    daemons = []
    try:
        for command in (
            munged,
            ["slurmctld", "-D"],
            *(["slurmd", "-D", "-N", n] for n in ("n1", "n2")),
        ):
            program = shutil.which(command[0], path=_SBIN)
            with (folder / f"daemon-{len(daemons)}.out").open("w") as out:
                daemons.append(
                    subprocess.Popen(
                        [program, *command[1:]], env=environment, stdout=out, stderr=out, cwd=folder
                    )
                )
            time.sleep(1)

        def ready() -> bool:
            return sinfo(environment).count("idle") == 2

        wait_for(ready, 60, "both nodes", lambda: _outputs(folder))
        yield environment
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            call(environment, "scancel", f"--user={getpass.getuser()}")
        time.sleep(1)  # for the nodes to end what they compute
        for daemon in reversed(daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()


def sinfo(environment: dict[str, str]) -> str:
    """One line for each node: its name and its state."""
    return call(environment, "sinfo", "-h", "-N", "-o", "%N %t")


def jobs(environment: dict[str, str]) -> list[tuple[str, str, str, str]]:
    """What is queued or runs: number, comment (the rule), state, node."""
    lines = call(environment, "squeue", "-h", "-o", "%i|%k|%T|%N").splitlines()
    return [tuple(line.split("|")) for line in lines]


def call(environment: dict[str, str], *command: str) -> str:
    """Run one of Slurm's commands; what it prints, "" where it fails."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout if done.returncode == 0 else ""


def wait_for(
    condition: Callable[[], object], limit_s: float, what: str, why: Callable[[], str] = str
) -> object:
    """Wait until something is true; return it, or fail with what was waited for."""
    end = time.monotonic() + limit_s
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {limit_s:.0f} s for {what}\n{why()}")
        time.sleep(0.5)
    return found


def _outputs(folder: Path) -> str:
    texts = [
        p.read_text(errors="replace")[-2000:]
        for p in (*folder.glob("*.out"), *folder.glob("*.log"))
    ]
    return "\n".join(texts)


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
