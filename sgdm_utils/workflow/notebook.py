"""The two ends of every notebook: what it is told and reads, what it writes and reports.

Between them is the notebook's own business. A `Run` remembers everything that was read through it,
so that the manifest of what is written names all of its inputs: none can be forgotten.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sgdm_utils.workflow import artifacts, atomic, config, digests, paths, raw
from sgdm_utils.workflow.artifacts import Artifact


class Run:
    """One execution of one notebook; made by `begin`.

    Attributes
    ----------
    notebook : str
        Its stem, ``"03_contrastive_alignment"`` or ``"experiments/18_sampling"``.
    parameters : dict
        Its parameters as they are used, by name.
    study : str
    seed : int or None
        The training seed; None for notebooks that depend on none.
    subject : str or None
        The person, for notebooks that run once for each.
    """

    def __init__(self, notebook: str, parameters: Mapping[str, Any]) -> None:
        self.notebook = notebook
        self.parameters = dict(parameters)
        self.study: str = self.parameters["study"]
        self._stage = next((s for s in paths.STAGES.values() if s.notebook == notebook), None)
        per_seed = self._stage.per_seed if self._stage else "seed" in self.parameters
        per_subject = self._stage.per_subject if self._stage else "subject" in self.parameters
        self.seed: int | None = self.parameters["seed"] if per_seed else None
        self.subject: str | None = self.parameters["subject"] if per_subject else None
        self._read: dict[Path, Artifact] = {}
        self._recording: dict[str, Any] = {}
        self._scratch = contextlib.ExitStack()

    @property
    def inputs(self) -> list[Artifact]:
        """Everything that was read so far, in the order of reading."""
        return list(self._read.values())

    @property
    def stage(self) -> str:
        """Name of what this notebook writes: its stage of the chain, or its own stem."""
        return self._stage.name if self._stage else Path(self.notebook).name

    @property
    def folder(self) -> Path:
        """Folder of what this notebook writes; it need not exist."""
        return self.place(self.stage, self.subject)

    def place(self, stage: str, subject: str | None = None) -> Path:
        """Return the folder of a stage's result for this study and, where it has one, this seed."""
        known = paths.STAGES.get(stage)
        seed = self.seed if known is None or known.per_seed else None
        return paths.stage_dir(self.study, subject or paths.JOINT, stage, seed)

    def beside(self, name: str) -> Path:
        """Return a folder beside the results for what a notebook keeps for its own next run."""
        return self.folder.parent / name

    @property
    def identity(self) -> dict[str, Any]:
        """What decides a training of this notebook: parameters, what was read, code, locked packages."""
        inputs = {artifact.label: artifact.content_digest for artifact in self.inputs}
        code = digests.notebook_code_digest(self.notebook)
        return self.parameters | inputs | {"code": code}

    def state_file(self, training: str) -> Path:
        """Return the path of the state of a training; `write` removes it when the result is there."""
        return self.beside(f"{self.stage}_training") / f"{training}.pt"

    def read(self, stage: str, subject: str | None = None, *, verify: bool = False) -> Artifact:
        """Open the result of another notebook, and remember it as an input of this one.

        Parameters
        ----------
        stage : str
            ``"data"``, ``"encoder"``, ...: a name in `paths.STAGES`, or an experiment's.
        subject : str, optional
            Whose, for the stages that have a result for each person.
        verify : bool
            Compare the digest of every file, not only names and sizes.

        Raises
        ------
        ArtifactError
            When it is missing, damaged or out of date; the message has the command that makes it.
        """
        known = paths.STAGES.get(stage)
        if known is not None and known.per_subject and subject is None:
            raise ValueError(f"{stage!r} has a result for each person: say whose, subject=...")
        seed = self.seed if known is None or known.per_seed else None
        found = artifacts.read_artifact(
            self.study, subject or paths.JOINT, stage, seed, verify=verify
        )
        self.use(found)
        return found

    def use(self, *opened: Artifact) -> None:
        """Remember results that were opened in another way as inputs of this notebook."""
        for artifact in opened:
            self._read.setdefault(artifact.path, artifact)

    @contextlib.contextmanager
    def write(self, notes: Mapping[str, Any] | None = None) -> Iterator[Path]:
        """Write what this notebook is there for, whole or not at all.

        Parameters
        ----------
        notes : mapping, optional
            What later notebooks or people should know; read at the end of the block.

        Yields
        ------
        Path
            An empty folder that takes the result's place when the block ends well. The manifest
            names the parameters, the code, and everything that was read through `read`.
        """
        recording = self._recording
        with artifacts.write_artifact(
            self.study,
            self.subject or paths.JOINT,
            self.stage,
            self.seed,
            notebook=self.notebook,
            parameters=self.parameters,
            inputs=self.inputs,
            notes=notes,
            recording=recording,
        ) as out:
            yield out
            made_here = (notes or {}).get("dataset") == "simulated"
            if self.stage == "data" and (notes or {}).get("raw_root") and not made_here:
                people = notes["subjects"]
                recording |= raw.describe(notes["raw_root"], people, signals=False)
        shutil.rmtree(self.state_file("").parent, ignore_errors=True)
        print("written:", paths.relative(self.folder))

    def finish(self, reason: str) -> None:
        """End the notebook with this cell; the cells below it are shown and not run.

        For a choice that makes the rest needless. Each cell that is not run says so and why, in
        Jupyter as under papermill; a restarted kernel runs all of them again.

        Parameters
        ----------
        reason : str, "a pretrained generator draws"

        Raises
        ------
        RuntimeError
            Outside of IPython, where there are no cells to leave out.
        """
        from IPython import get_ipython

        shell = get_ipython()
        if shell is None:
            raise RuntimeError(f"{self.notebook} ends here ({reason}), but it runs outside IPython")
        note = f"print({f'not run: {reason}'!r})\n"
        shell.input_transformers_cleanup.append(lambda lines: [note])
        print(f"the cells below are not run: {reason}")

    def table_path(self, name: str) -> Path:
        """Return the path of a table of the study's report, ``reports/<study>/tables/<name>.csv``."""
        folder = paths.report_dir(self.study) / "tables"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.csv"

    def raw_dir(self, data: Artifact) -> Path:
        """Return the folder of the recordings that `data` was made from.

        A notebook that runs once for each person remembers what the recording of this person holds:
        a correction of it makes what is written out of date.
        """
        name = data.notes["raw_root"]
        if self.subject and not self._recording:
            self._recording = raw.describe(name, [self.subject], signals=True)
        return paths.raw_dir(name)

    def scratch(self) -> Path:
        """Return an empty folder for large files that only this kernel needs.

        It is removed when the kernel ends; after a kill the next step of the study removes it.
        """
        atexit.register(self._scratch.close)
        target = paths.study_dir(self.study) / "scratch"
        return self._scratch.enter_context(atomic.hidden_folder(target))


def begin(notebook: str, namespace: Mapping[str, Any]) -> Run:
    """Check the parameters of a running notebook and return its `Run`.

    Parameters
    ----------
    notebook : str
        Stem of the notebook, with ``experiments/`` before it where it lies there.
    namespace : mapping
        Its ``globals()``.

    Raises
    ------
    ConfigError
        When a parameter does not have the declared type: somebody edited or injected it. When the
        study has a configuration, and it ends before this notebook (`until`).

    Examples
    --------
    >>> run = workflow.begin("03_contrastive_alignment", globals())
    >>> data = run.read("data")
    >>> with run.write(notes={"n_pictures": 12}) as out:
    ...     table.to_parquet(out / "table.parquet")
    """
    gc.freeze()  # the modules imported so far stay: later collections need not look at them again
    gc.enable()  # the runner starts kernels without it
    parameters = config.collect(notebook, namespace)
    if parameters["study"] in config.studies():
        config.require_within(config.load_study(parameters["study"]), notebook)
    return Run(notebook, parameters)


def require(**checks: tuple[bool, str] | Iterable[tuple[bool, str]]) -> None:
    """Refuse parameter values that have the right type and make no sense.

    Parameters
    ----------
    **checks : parameter name -> (is it right, what is expected)

    Raises
    ------
    ConfigError
        Lists every parameter that is not right, with what is expected.

    Examples
    --------
    >>> workflow.require(tmin=(tmin < 0, "before the onset: below 0"))
    """
    wrong = []
    for name, given in checks.items():
        pairs = [given] if isinstance(given, tuple) and isinstance(given[1], str) else list(given)
        wrong += [f"{name}: {expected}" for right, expected in pairs if not right]
    if wrong:
        raise config.ConfigError("parameters cannot be used:\n  " + "\n  ".join(wrong))
