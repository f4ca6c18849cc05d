"""What a result was computed on: versions, device, time, memory; no part of its identity."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import psutil

from sgdm_utils.workflow import paths

KEY_PACKAGES = (
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
    "scikit-image",
    "mne",
    "mne-bids",
    "torch",
    "torchvision",
    "diffusers",
    "open_clip_torch",
    "accelerate",
)

T, U = TypeVar("T"), TypeVar("U")

#: How the libraries of linear algebra are told how many threads to use.
THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "GOTO_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
    *("VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS"),
)

#: What "dirty" looks at; reports and figures that a run has rewritten do not make the code another
#: one.
CODE_PATHS = ("sgdm_utils", "notebooks", "config", "requirements.lock")


def provenance() -> dict[str, Any]:
    """Describe this process, its machine and the checkout it runs from.

    Returns
    -------
    dict
        ``git``, ``versions``, ``python``, ``platform``, ``device``, ``n_threads``, ``started`` and
        ``finished`` (UTC), ``wall_s`` (seconds since this process, the notebook's kernel, started)
        and ``peak_rss_mb``.
    """
    started = psutil.Process().create_time()
    finished = datetime.now(UTC)
    return {
        "git": git_state(),
        "versions": versions(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device(),
        "n_threads": n_threads(),
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "wall_s": round(finished.timestamp() - started, 1),
        "peak_rss_mb": round(peak_rss_mb(), 1),
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that numbers depend on, as far as they are installed."""
    found = {}
    for name in KEY_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def device() -> str:
    """Return the accelerator that torch sees, or ``"cpu"``; torch is not imported for it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch is not None and torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def processor() -> str:
    """Return the name of the processor as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # macOS and Windows
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def n_threads() -> int:
    """Return how many threads torch uses, or how many processors this process may use."""
    torch = sys.modules.get("torch")
    return n_processors() if torch is None else torch.get_num_threads()


def n_processors() -> int:
    """Return how many (logical) processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows do not tell
        return os.cpu_count() or 1


def share_processors(environment: MutableMapping[str, str]) -> None:
    """Give a notebook half of the processors, where nothing says how many threads it may have.

    The layers of this study are small. On two processors (AVX-512, float32) a training step of the
    generator takes 112 ms with one thread and 82 with two that wait for each other in a loop; beside a
    process at full load 116 and 297, beside another training 123 and 6,725. With two that sleep at
    once it takes 162 ms alone (`reports/benchmarks/laptop.csv`). So two notebooks side by side, or one and whatever else runs on a
    laptop, are best off with half of the processors each, and two or three processors compute the same
    digits. Threads, where there are several, wait in a loop for some microseconds and then sleep.

    Parameters
    ----------
    environment : of the process that will compute, such as ``os.environ``; variables are added to it
    """
    if not any(environment.get(name) for name in THREAD_VARIABLES):
        environment["OMP_NUM_THREADS"] = str(max(1, n_processors() // 2))
    if not environment.get("OMP_WAIT_POLICY"):
        environment |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}


def one_thread() -> None:
    """Let the linear algebra of this process compute with one thread from here on.

    For work on matrices of a few dozen electrodes. The threads of OpenBLAS wait for each other in a
    loop: on two cores one notebook of preprocessing took 44 s with two threads and 38 with one, two of
    them side by side 212 and 41, one beside a busy neighbour 175 and 39. And how a sum is divided among
    threads changes its last digits, which an ICA makes larger (1.6 % of the cleaned EEG); with one
    thread the number of cores says nothing about the result.

    Notes
    -----
    numpy and scipy bring a library each; both are loaded here, because only what is loaded can be told.
    """
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def side_by_side(function: Callable[[T], U], items: Iterable[T]) -> list[U]:
    """Apply a function to items, as many at a time as there are processors, each with one thread.

    For functions that leave the interpreter, such as linear algebra and filters. An item is computed
    as if it were alone, so the number of processors changes no digit.

    Parameters
    ----------
    function : called with one item
    items : their results come in the same order
    """
    torch = sys.modules.get("torch")  # without it there are no threads of its own to hold back
    if torch is None:
        with ThreadPoolExecutor(n_processors()) as pool:
            return list(pool.map(function, items))
    before, one = torch.get_num_threads(), {"initializer": torch.set_num_threads, "initargs": (1,)}
    try:
        with ThreadPoolExecutor(n_processors(), **one) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(before)  # what a thread sets is the default of later ones


def peak_rss_mb() -> float:
    """Return the largest resident memory this process has had, in units of 1e6 bytes."""
    try:
        import resource
    except ImportError:  # Windows keeps the figure elsewhere
        return psutil.Process().memory_info().peak_wset / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def git_state() -> dict[str, Any]:
    """Return commit and dirty flag of the checkout; None where git cannot tell."""
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--", *CODE_PATHS) if commit else None
    return {"commit": commit or None, "dirty": None if status is None else bool(status)}


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(paths.project_root()), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
