"""An ablation is the same notebook with one parameter changed.

No training code is repeated for it. A `Variant` names notebooks and the parameters in which they
differ; `run_variant` executes them, in kernels of their own, in a scratch folder to which the
study's other results are linked. What it gives are artifacts with manifests like any other, so a
variant that was computed with the same parameters, code and inputs is not computed again, and one
that was interrupted goes on with the step that is missing.

``python -m sgdm_utils.experiments.ablation '<JSON>'`` runs one notebook of a study with parameters
that differ from its configuration: ``{"study": ..., "seed": ..., "notebook": ..., "overrides":
{...}}``. Variants are declared as text and checked, before anything runs, against the parameters
cells, the only place where names and types are declared.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgdm_utils.workflow import artifacts, atomic, config, locks, paths, run
from sgdm_utils.workflow.config import ConfigError, Step, StudyConfig
from sgdm_utils.workflow.parameters import type_problem

#: Folder of all scratch roots, beside the results of the study and the seed.
RUNS = "12_ablation_runs"
_TAIL_LINES = 15  # of what a failing notebook said


@dataclass(frozen=True)
class VariantResult:
    """Where the results of a variant lie.

    Attributes
    ----------
    variant : Variant
    study : str
    seed : int
    root : Path
        Scratch folder with `data` and `reports`.
    computed : tuple of str
        Notebooks that ran now; the others had run before.
    """

    variant: Variant
    study: str
    seed: int
    root: Path
    computed: tuple[str, ...]

    def artifact(self, stage: str) -> artifacts.Artifact:
        """Open one result of the variant, checked as `artifacts.read_artifact` does."""
        with _inside(self.root):
            return artifacts.read_artifact(self.study, paths.JOINT, stage, self.seed)


def run_variant(
    study: str, seed: int, variant: Variant, base: Overrides | None = None
) -> VariantResult:
    """Run what of a variant is not there yet.

    Parameters
    ----------
    study, seed, variant, base
        See `plan`.

    Raises
    ------
    AblationError
        Before anything runs, see `plan`, and when a result lies between two changed notebooks that
        would have to be computed anew as well. Later, when a notebook fails: with its last lines
        and the path of its executed copy; what was computed before it is kept.
    sgdm_utils.workflow.artifacts.ArtifactError
        When the study lacks a result that the variant shares with it.

    Notes
    -----
    The scratch root is ``data/derived/<study>/joint/seed-<n>/12_ablation_runs/<variant>``. Results
    that do not depend on what is changed are linked into it, or copied where the file system has no
    links. The kernels get its folders as SGDM_DATA and SGDM_REPORTS, so the study's own results
    cannot be overwritten. This process's environment is changed only while manifests are compared.
    """
    planned = plan(study, seed, variant, base)
    root = paths.stage_dir(study, paths.JOINT, RUNS, seed) / variant.folder
    root.mkdir(parents=True, exist_ok=True)
    computed = []
    with locks.shared_lock(root / ".lock"):
        _share(planned, variant, root)
        for item in planned:
            if not _is_current(item, root):
                _execute(item, variant, root)
                computed.append(item.step.notebook)
    return VariantResult(variant, study, seed, root, tuple(computed))


def link(source: Path, target: Path) -> None:
    """Let `target` show what `source` holds: by a link, or by a copy where links are refused."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        if target.resolve() == source.resolve():
            return
        target.unlink()
    elif target.exists():
        if _listing(target) == _listing(source):
            return
        shutil.rmtree(target)
    try:
        os.symlink(source.resolve(), target, target_is_directory=True)
    except OSError:
        with atomic.atomic_directory(target) as out:
            shutil.copytree(source, out, dirs_exist_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one notebook as the JSON argument says; return the exit code."""
    (text,) = sys.argv[1:] if arguments is None else arguments
    wanted = json.loads(text)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the kernel is shut down, too
    try:
        studied = config.load_study(wanted["study"])
        step = config.step(studied, wanted["notebook"], seed=wanted["seed"])
        run.execute(differing(studied, step.notebook, wanted["overrides"]), step)
    except (AblationError, ConfigError, run.NotebookFailed) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _share(planned: list[Planned], variant: Variant, root: Path) -> None:
    """Link what the variant does not change: every earlier result with no changed one behind it."""
    study, seed = planned[0].step.study, planned[0].step.seed
    changed = {item.step.stage for item in planned}
    gone: dict[str, str] = {}  # results that do not hold here, by the place manifests know them by
    data = _read(study, paths.JOINT, "data", None)
    for stage in paths.STAGES.values():
        who = list(config.load_study(study).subjects) if stage.per_subject else [paths.JOINT]
        own_seed = seed if stage.per_seed else None
        for person in who if stage.notebook <= planned[-1].step.notebook else []:
            place = paths.stage_dir(study, person, stage.name, own_seed)
            place = place.relative_to(paths.data_dir()).as_posix()
            target = root / "data" / place
            if stage.name in changed:
                _needs_nothing_else(place, stage, gone, variant)
                gone[place] = ""
            else:
                source = _read(study, person, stage.name, own_seed)
                if not gone.keys() & source.identity["inputs"].keys():
                    link(source.path, target)
                    continue
                gone[place] = stage.notebook
            if target.is_symlink():
                target.unlink()  # an earlier declaration of the variant shared it
    shared = ["raw/" + data.notes["raw_root"]] if data.notes.get("raw_root") else []
    for name in (*shared, f"derived/{study}/features"):
        if (paths.data_dir() / name).is_dir():
            link(paths.data_dir() / name, root / "data" / name)


def _needs_nothing_else(
    place: str, stage: paths.Stage, gone: Mapping[str, str], variant: Variant
) -> None:
    manifest = paths.data_dir() / place / artifacts.MANIFEST
    if not manifest.is_file():
        return
    inputs = json.loads(manifest.read_text(encoding="utf-8"))["identity"]["inputs"]
    if between := sorted(gone[p] for p in inputs if gone.get(p)):
        raise AblationError(
            f"variant {variant.name!r}: {stage.notebook} reads the result of {between[0]}, which "
            f"depends on what is changed before it: add '{between[0]}' as a step between them"
        )


def _read(study: str, who: str, stage: str, seed: int | None) -> artifacts.Artifact:
    with warnings.catch_warnings():  # whoever reads the study's results is warned; once is enough
        warnings.simplefilter("ignore", artifacts.StaleCodeWarning)
        return artifacts.read_artifact(study, who, stage, seed)


def _is_current(item: Planned, root: Path) -> bool:
    with _inside(root):
        return artifacts.why_not_current(item.step.artifact, item.values) is None


def _execute(item: Planned, variant: Variant, root: Path) -> None:
    step = item.step
    wanted = {"study": step.study, "seed": step.seed, "notebook": step.notebook}
    argument = json.dumps(wanted | {"overrides": item.overrides})
    done = subprocess.run(
        [sys.executable, "-m", "sgdm_utils.experiments.ablation", argument],
        cwd=paths.project_root(),
        env=os.environ | _environment(root),
        capture_output=True,
        text=True,
    )
    with _inside(root):
        executed = paths.relative(step.executed)
    if done.returncode or not _is_current(item, root):
        said = [s for s in done.stderr.splitlines() if s and not s.startswith("Executed copy:")]
        raise AblationError(
            f"variant {variant.name!r}: {step.notebook} with {item.overrides} failed "
            f"(exit code {done.returncode}):\n" + "\n".join(said[-_TAIL_LINES:]) + "\n"
            f"Executed copy: {executed}"
        )


def _environment(root: Path) -> dict[str, str]:
    return {"SGDM_DATA": str(root / "data"), "SGDM_REPORTS": str(root / "reports")}


@contextlib.contextmanager
def _inside(root: Path) -> Iterator[None]:
    """Let this process find results below `root` for a moment."""
    before = {name: os.environ.get(name) for name in _environment(root)}
    os.environ.update(_environment(root))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    facts = {p.relative_to(folder).as_posix(): p.stat() for p in atomic.list_files(folder)}
    return {name: (s.st_size, int(s.st_mtime)) for name, s in facts.items()}


_SET_BY_PLAN = ("study", "seed", "subject", "subjects")

Overrides = Mapping[str, Mapping[str, Any]]  # by notebook, by parameter


class AblationError(RuntimeError):
    """A variant cannot be run as it is declared, or one of its notebooks failed."""


@dataclass(frozen=True)
class Variant:
    """What is changed, and where.

    Attributes
    ----------
    name : str
        What messages and the scratch folder are called by.
    steps : tuple of (str, dict)
        Notebooks that run, in their order, each with the parameters that differ.
    """

    name: str
    steps: tuple[tuple[str, Mapping[str, Any]], ...]

    @classmethod
    def parse(cls, text: str) -> Variant:
        """Read ``name | notebook parameter=literal ...; notebook ...``.

        Raises
        ------
        AblationError
            When the text does not have that form.
        """
        name, bar, rest = (part.strip() for part in text.partition("|"))
        if not (name and bar and rest):
            raise AblationError(
                f"{text!r} declares no variant: write 'name | notebook parameter=value; notebook'"
            )
        steps = [part.split(maxsplit=1) for part in rest.split(";") if part.strip()]
        return cls(name, tuple((s[0], parse_values(s[1] if len(s) > 1 else "")) for s in steps))

    @property
    def folder(self) -> str:
        """The name as a folder is called."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class Planned:
    """One step of a variant: what runs, how it differs from the study, all of its parameters."""

    step: Step
    overrides: dict[str, Any]
    values: dict[str, Any]


def parse_values(text: str) -> dict[str, Any]:
    """Read ``name=literal name=literal``; literals are Python's and hold no blanks.

    Raises
    ------
    AblationError
        For a part without ``=``, a name twice, or a value that is no literal.
    """
    values: dict[str, Any] = {}
    for part in text.split():
        name, equals, literal = part.partition("=")
        if not (equals and name.isidentifier()) or name in values:
            raise AblationError(f"{part!r} in {text!r} is not one 'parameter=value' of its own")
        try:
            values[name] = ast.literal_eval(literal)
        except (ValueError, SyntaxError) as error:
            raise AblationError(
                f"{literal!r} in {text!r} is no literal: write numbers, True, False, or text in "
                "quotes"
            ) from error
    return values


def component(label: str) -> tuple[str, int]:
    """Return what a label takes out or puts in, and whether the full model has it (1) or not (-1).

    "no squared error" is a full model without its squared error, "with text targets" one to which
    text targets were added. So the gain by a component is sign * (full - variant) for both.

    Raises
    ------
    AblationError
        When the label begins with neither word.
    """
    word, _, name = label.strip().partition(" ")
    if word not in ("no", "with") or not name:
        raise AblationError(
            f"{label!r} does not say what is compared: begin it with 'no' (taken out of the full "
            "model) or 'with' (added to it)"
        )
    return name, 1 if word == "no" else -1


def study_values(study: str, seed: int, notebook: str) -> dict[str, Any]:
    """Parameters with which a study runs one of its notebooks, by name."""
    studied = config.load_study(study)
    return config.resolve(studied, config.step(studied, notebook, seed=seed))


def capped(study: str, seed: int, limits: Overrides) -> dict[str, dict[str, Any]]:
    """Shorten trainings: the study's own values, but none above its limit.

    Parameters
    ----------
    limits : mapping of notebook to mapping of parameter to number

    Returns
    -------
    dict
        Of the same form; a study that is shorter already (the smoke study) keeps its values.
    """
    shortened: dict[str, dict[str, Any]] = {}
    for notebook, values in limits.items():
        own = study_values(study, seed, notebook)
        _check(f"limits of {notebook}", notebook, values)
        shortened[notebook] = {name: min(own[name], limit) for name, limit in values.items()}
    return shortened


def plan(study: str, seed: int, variant: Variant, base: Overrides | None = None) -> list[Planned]:
    """Check a variant against the parameters cells of its notebooks; nothing runs.

    Parameters
    ----------
    study, seed
        The study whose results the variant shares, and whose configuration it differs from.
    variant : Variant
    base : mapping of notebook to mapping of parameter to value, optional
        What all variants of a comparison change alike (shorter trainings). The variant's own
        values win.

    Raises
    ------
    AblationError
        For a notebook that cannot be varied, stands twice or out of order, and for a parameter that
        its notebook does not declare or declares with another type.
    sgdm_utils.workflow.config.ConfigError
        For an unknown study, notebook or seed.
    """
    if not variant.folder:
        raise AblationError(f"variant {variant.name!r} needs a name with letters or digits")
    names = [notebook for notebook, _ in variant.steps]
    may = [s.notebook for s in paths.STAGES.values() if s.per_seed and not s.per_subject]
    for name in names:
        config.require_notebook(name)
        if name not in may:
            raise AblationError(f"variant {variant.name!r}: {name} is none of {', '.join(may)}")
    if not names or names != sorted(set(names)):
        raise AblationError(
            f"variant {variant.name!r} runs {names}: give at least one notebook, each once, in the "
            "order of the chain"
        )
    studied, planned = config.load_study(study), []
    for notebook, own in variant.steps:
        shared = (base or {}).get(notebook, {})
        _check(f"variant {variant.name!r}", notebook, own)
        _check("what all variants share", notebook, shared)
        overrides = {**shared, **own}
        step = config.step(studied, notebook, seed=seed)
        values = config.resolve(differing(studied, notebook, overrides), step)
        planned.append(Planned(step, overrides, values))
    return planned


def differing(studied: StudyConfig, notebook: str, overrides: Mapping[str, Any]) -> StudyConfig:
    """Return the study with some parameters of one notebook changed, after checking them.

    Raises
    ------
    AblationError
        For a parameter that the notebook does not declare, or declares with another type.
    """
    _check("the change", notebook, overrides)
    own = {**studied.notebooks.get(notebook, {}), **overrides}
    return dataclasses.replace(studied, notebooks={**studied.notebooks, notebook: own})


def _check(who: str, notebook: str, values: Mapping[str, Any]) -> None:
    known = config.notebook_parameters(notebook)
    for name, value in values.items():
        if name in _SET_BY_PLAN:
            raise AblationError(
                f"{who}: {name} of {notebook} is set by the study, not by a variant"
            )
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}" if close else f"it has {', '.join(known)}"
            raise AblationError(f"{who}: {notebook} has no parameter {name!r}; {hint}")
        if problem := type_problem(known[name], value):
            raise AblationError(f"{who}: {name} of {notebook}: {problem}")


if __name__ == "__main__":
    sys.exit(main())
