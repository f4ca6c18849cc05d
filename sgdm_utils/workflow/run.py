"""Run one notebook of a study.

``python -m sgdm_utils run 01_preprocessing --study demo --subject sub-01``

The notebook's parameters come from ``config/<study>.yaml``; the executed copy, also of a run that
failed, is kept in ``reports/<study>/executed``, and what became of every attempt, with its time and
peak memory, in ``reports/<study>/logs``. ``--list`` shows what a study consists of.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import logging
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from sgdm_utils.workflow import artifacts, atomic, locks, machine, paths
from sgdm_utils.workflow import config as study_config
from sgdm_utils.workflow.config import ConfigError, Step, StudyConfig

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_HEADING = re.compile(r"^#{1,4}\s+(.+?)\s*#*$", re.MULTILINE)
_SAMPLE_EVERY_S = 0.5
#: ipykernel warns about its unencrypted connection, which never leaves this machine. What a notebook
#: imports is kept, so the collector, a fifth of the time that imports take, waits for `workflow.begin`.
KERNEL_ARGUMENTS = (
    "--IPKernelApp.log_level=40",
    "--IPKernelApp.exec_lines=__import__('gc').disable()",
)
_PATIENCE_S = 20.0
#: How often a kernel is started until one lives, and what jupyter_client says of one that does not.
_STARTS = 3
_NOT_ALIVE = ("Kernel didn't respond in", "Kernel died before replying to kernel_info")
_RECORD = re.compile(r"^\d{4}-\d\d-\d\dT[\d:]+Z ", re.MULTILINE)
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
#: Full disks in the words of the system, of numpy (`tofile`) and of torch (`save`).
_FULL = re.compile(
    r"No space left|quota exceeded|\d+ requested and \d+ written|file write failed|PytorchStreamWriter"
)


class NotebookFailed(RuntimeError):
    """A cell raised an error, or the kernel died; the message is for the user."""


def execute(config: StudyConfig, step: Step) -> Path:
    """Run one step and return the path of the executed copy.

    One process at a time computes a step, and none beside an engine that runs its study.

    Parameters
    ----------
    config : StudyConfig
        The study.
    step : Step
        Which notebook, for whom.

    Raises
    ------
    ConfigError
        Before anything runs, when the parameters do not fit the notebook.
    NotebookFailed
        When a cell failed; the executed copy with the traceback is kept.
    sgdm_utils.workflow.locks.BusyError
        When another process computes this step, or an engine this study.
    """
    folder, label = paths.study_dir(step.study), _label(step)
    with contextlib.ExitStack() as stack:
        if not os.environ.get(locks.ENGINE):
            with locks.held(engine_lock(step.study), f"study {step.study!r}"):
                pass
        # a step of an engine that was killed notices within seconds that nobody waits for it
        stack.enter_context(locks.held(_running_lock(step), f"[{label}]", _PATIENCE_S))
        if locks.engine_is_gone():  # while this waited; another engine may have the result already
            raise locks.BusyError(f"[{label}] is not run: the engine that asked for it has ended")
        for left in (folder, step.artifact.parent, step.executed.parent.parent / "tables"):
            atomic.sweep(left)
        for left in step.executed.parent.glob(f"{step.executed.stem}.*.running.ipynb"):
            left.unlink(missing_ok=True)
        return _execute(config, step, label)


def engine_lock(study: str) -> Path:
    """Return the lock that an engine holds while it runs a study."""
    return paths.study_dir(study) / ".engine.lock"


def sweep(steps: Iterable[Step], fresh: Collection[Step] = ()) -> None:
    """Put away what killed processes of a study have left; what somebody computes right now stays.

    A notebook may have been killed when its result was complete, so that nothing runs it again. Then its copy becomes
    the executed one where there is none, and the states of its trainings, which are older than the
    result, have no use any more.

    Parameters
    ----------
    steps : iterable of Step
        Those of the study.
    fresh : collection of Step
        Those whose result is what the study asks for, so that no state of a training has a use,
        however young it is.
    """
    folders = set()
    for step in steps:
        reports = step.executed.parent.parent
        folders |= {paths.study_dir(step.study), step.artifact.parent, reports}
        folders |= {path for path in reports.glob("*") if path.is_dir()}
    for folder in folders:
        atomic.sweep(folder)
    for step in steps:
        copies = sorted(step.executed.parent.glob(f"{step.executed.stem}.*.running.ipynb"))
        if not copies and not _useless_states(step, step in fresh):
            continue
        # somebody else's files stay, too: they are in nobody's way
        busy = contextlib.suppress(locks.BusyError, OSError)
        with busy, locks.held(_running_lock(step), _label(step)):
            if _content(step).is_file() and copies and not step.executed.is_file():
                with contextlib.suppress(ValueError, OSError):  # half written: nothing to keep
                    _to_its_place(copies[-1], step)
            for left in copies:
                left.unlink(missing_ok=True)
            for folder in _useless_states(step, step in fresh):
                shutil.rmtree(folder, ignore_errors=True)


def _content(step: Step) -> Path:
    return step.artifact / artifacts.CONTENT


def _useless_states(step: Step, fresh: bool) -> list[Path]:
    """The folder of a step's training states, if its result is fresh or younger than all of them."""
    folder = step.artifact.parent / f"{step.stage}_training"
    try:
        result = _content(step).stat().st_mtime
        states = [path.stat().st_mtime for path in folder.iterdir()]
    except OSError:  # no result, no states, or a running step has just removed them
        return []
    return [folder] if fresh or max(states, default=0) <= result else []


def _running_lock(step: Step) -> Path:
    return step.artifact.parent / f".{step.stage}.running.lock"


def _to_its_place(running: Path, step: Step) -> None:
    """Make the copy that was written while a notebook ran its executed one."""
    import nbformat

    notebook = nbformat.read(running, as_version=4)
    _forget_paths(notebook, step)
    nbformat.write(notebook, running)
    os.replace(running, step.executed)


def _execute(config: StudyConfig, step: Step, label: str) -> Path:
    papermill = _papermill()  # takes a second, which --list and refusals need not wait for
    import nbformat
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from sgdm_utils.workflow.kernels import KernelManager

    values = study_config.resolve(config, step)
    # Only what differs is handed over: the executed copy of a default run has no injected cell and
    # is what the notebook looks like when it is opened and run by hand.
    defaults = study_config.notebook_parameters(step.notebook)
    differing = {name: value for name, value in values.items() if value != defaults[name].default}
    source = paths.notebook_path(step.notebook)
    target = step.executed
    target.parent.mkdir(parents=True, exist_ok=True)
    running = target.with_name(f"{target.stem}.{os.getpid()}.running.ipynb")
    _homes()
    # A python3 kernel that the user installed from another environment must not take over.
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    machine.share_processors(os.environ)
    # Clusters set MPLBACKEND=Agg, with which the executed copy would hold no figure, without a word.
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    # The kernel imports this copy of the package, also where another checkout is installed.
    search = [str(paths.project_root()), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, search))
    started, failure, peak = time.time(), None, [0]
    _record(
        step,
        f"started on {os.environ.get('SLURMD_NODENAME') or platform.node()}, process {os.getpid()}: {step.command}",
    )
    try:
        with _memory_of_children() as peak:
            _with_a_port(
                papermill.execute_notebook,
                str(source),
                str(running),
                parameters=differing,
                kernel_name="python3",
                progress_bar={"desc": label, "mininterval": 0.5 if sys.stderr.isatty() else 15},
                cwd=str(source.parent),
                # Results are written when the last cell ends, and waiting for a kernel with torch
                # to take itself apart would add two seconds. Preprocessing has scratch files,
                # which its kernel removes in the end.
                shutdown_kernel="graceful" if step.subject else "immediate",
                extra_arguments=list(KERNEL_ARGUMENTS),
                kernel_manager_class=KernelManager,
            )
    except PapermillExecutionError as error:
        message = _ANSI.sub("", f"{error.ename}: {error.evalue}")
        section = _failed_section(nbformat.read(running, as_version=4).cells)
        failure = (
            f"[{label}] failed in cell In [{error.exec_count}]"
            f"{f' of section {section!r}' if section else ''}\n{message}"
            f"{_disk_advice(message, step)}"
        )
    except DeadKernelError:
        failure = (
            f"[{label}] the kernel died after {time.time() - started:.0f} s, having used up to "
            f"{peak[0] / 1e9:.1f} GB. If that is about what this machine has, it ran out "
            "of memory: choose smaller batches or fewer pictures in the study's configuration"
        )
    except BaseException as error:
        _record(step, f"stopped by {type(error).__name__} {error}".strip())
        raise
    finally:
        if running.is_file():
            _to_its_place(running, step)
    if not failure and step.stage in paths.STAGES:
        failure = _nothing_new(step, started)
    took = f"{clock(time.time() - started)}, peak {peak[0] / 1e9:.1f} GB"
    if failure:
        failure += f"\nAfter {took}. Executed copy: {paths.relative(target)}"
        _record(step, f"failed\n{failure}")
        raise NotebookFailed(failure)
    _record(step, f"done in {took}")
    print(f"[{label}] done in {took}", file=sys.stderr)
    return target


def log_of(step: Step) -> Path:
    """Return the file that holds what became of every attempt at a step."""
    return paths.report_dir(step.study) / "logs" / f"{step.executed.stem}.log"


def last_failure(step: Step, since: float = 0.0) -> str | None:
    """Return the message of a step whose last attempt failed, None for all others.

    Parameters
    ----------
    step : Step
    since : float
        Attempts before this time, in seconds since 1970, do not count.
    """
    log = log_of(step)
    if not log.is_file() or log.stat().st_mtime < since:
        return None
    last = _RECORD.split(log.read_text(encoding="utf-8"))[-1]
    return last.removeprefix("failed\n").rstrip() if last.startswith("failed\n") else None


def _record(step: Step, text: str) -> None:
    """Add what happened to the log of a step; a log that cannot be written stops nothing."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    with contextlib.suppress(OSError):
        log_of(step).parent.mkdir(parents=True, exist_ok=True)
        with log_of(step).open("a", encoding="utf-8") as file:
            file.write(f"{now} {text}\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m sgdm_utils run", description=__doc__)
    parser.add_argument("notebook", nargs="?", help="stem of a notebook, e.g. 01_preprocessing")
    parser.add_argument("--study", default="demo", help="a file in config/ (default: demo)")
    parser.add_argument("--subject", help="for notebooks that run once per subject, e.g. sub-01")
    parser.add_argument("--seed", type=int, help="for notebooks that run once per training seed")
    parser.add_argument("--list", action="store_true", help="show the plan of the study and stop")
    options = parser.parse_args(arguments)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, _stop)  # so that the kernel is shut down, too
    try:
        config = study_config.load_study(options.study)
        if options.list:
            for step in study_config.plan(config):
                print(step.command)
            return 0
        if options.notebook is None:
            parser.error("name a notebook, or use --list")
        notebook = options.notebook.removeprefix("notebooks/").removesuffix(".ipynb")
        step = study_config.step(config, notebook, options.subject, options.seed)
        execute(config, step)
    except (ConfigError, NotebookFailed, locks.BusyError) as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        print(explain(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; results of earlier notebooks are kept", file=sys.stderr)
        return 130
    return 0


def _papermill() -> ModuleType:
    """The package papermill.

    It imports jsonschema, which builds a grammar of international internet addresses on import and
    takes a second for it, before each notebook of a study. No notebook's schema asks for such
    addresses, so the grammar stays out; jsonschema does without, as where it is not installed.
    """
    grammar = "rfc3987_syntax"
    loaded = sys.modules.setdefault(grammar, None)  # importing None fails, jsonschema expects that
    try:
        import papermill
    finally:
        if loaded is None:
            del sys.modules[grammar]
    return papermill


def clock(seconds: float) -> str:
    """Return a duration as ``m:ss``, or ``h:mm:ss`` from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextlib.contextmanager
def _memory_of_children() -> Iterator[list[int]]:
    """Sample the resident memory of what this process started; yields a list of the peak, bytes."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(_SAMPLE_EVERY_S):
            now = 0
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it has just ended
                    now += process.memory_info().rss
            peak[0] = max(peak[0], now)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _with_a_port(execute_notebook: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Execute a notebook, with another kernel where one did not come to life.

    A kernel gets the numbers of free ports from its client, and where several start at once another may
    have taken one before it listens (jupyter_client 8.10.0). No cell has run by then.
    """
    for left in reversed(range(_STARTS)):
        try:
            execute_notebook(*arguments, **options)
            return
        except RuntimeError as error:
            if not (left and str(error).startswith(_NOT_ALIVE)):
                raise


def _failed_section(cells: list[Any]) -> str:
    """Return the heading above the first cell with an error."""
    section = ""
    for cell in cells:
        if cell.cell_type == "markdown":
            section = (_HEADING.findall(cell.source) or [section])[-1]
        elif any(output.output_type == "error" for output in cell.get("outputs", [])):
            break
    return section


def _nothing_new(step: Step, started: float) -> str | None:
    """Return what is wrong when a notebook ran to its end without writing its artifact."""
    manifest = step.artifact / "manifest.json"
    if manifest.is_file() and manifest.stat().st_mtime >= started - 1:
        return None
    return (
        f"[{_label(step)}] ran to its end but did not write {paths.relative(step.artifact)}: "
        f"its last section has to call provenance.write_artifact(..., {step.stage!r}, ...)"
    )


def _disk_advice(message: str, step: Step) -> str:
    """What to do where a library says in its words that the disk is full."""
    if "Free some space" in message or not _FULL.search(message):
        return ""
    folder = paths.study_dir(step.study)
    free = shutil.disk_usage(folder).free / 1e9
    return (
        f"\nThe disk of {folder} was full ({free:.1f} GB are free now that unfinished files are "
        "removed). Free some space, or set SGDM_DATA to a folder on a larger disk, and run again."
    )


def require_writable(folder: Path) -> None:
    """Make a folder if need be; raise OSError where nothing can be written into it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def _homes() -> None:
    """Give kernels folders for what they usually keep at home, where home cannot be written."""
    if os.access(Path.home(), os.W_OK):
        return
    folder = tempfile.mkdtemp(prefix="sgdm-home-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR", "XDG_CACHE_HOME"):
        os.environ.setdefault(name, folder)


def explain(error: OSError) -> str:
    """Return one sentence for a folder that cannot be written, with what to do."""
    where = error.filename or "a file"
    if isinstance(error, atomic.DiskFull) or error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}: {error.strerror}" if error.filename else str(error.strerror)
    return (
        f"{where} cannot be written ({error.strerror}): ask for permission to write there, or set "
        "SGDM_DATA (data and results) and SGDM_REPORTS (reports) to folders that you may write"
    )


def _forget_paths(notebook: Any, step: Step) -> None:
    """Replace the absolute paths that papermill writes into the metadata."""
    about = notebook.metadata.get("papermill", {})
    about["input_path"] = f"notebooks/{step.notebook}.ipynb"
    about["output_path"] = step.executed.name


def _label(step: Step) -> str:
    parts = [step.notebook, step.subject, None if step.seed is None else f"seed {step.seed}"]
    return " ".join(part for part in parts if part)


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
