"""What a study consists of: subjects, seeds, parameters that differ from the defaults.

``config/<study>.yaml`` is checked in two steps before anything runs: its frame against
``config/schema.json``, and the section of each notebook against that notebook's own parameters
cell, which is the only place where names, types and defaults are declared.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sgdm_utils.workflow import paths, schemas
from sgdm_utils.workflow.parameters import Parameter, ParameterError, declared, type_problem

#: Parameters that the plan sets; a notebook's section may not.
_SET_BY_PLAN = ("study", "subject", "subjects")


class ConfigError(ValueError):
    """A configuration, or what was asked for on the command line, cannot be run as it stands."""


@dataclass(frozen=True)
class StudyConfig:
    """A checked configuration.

    Attributes
    ----------
    study : str
        Name, equal to the stem of the file.
    subjects : tuple of str
        BIDS names, ``"sub-01"``.
    seeds : tuple of int
        Training seeds.
    notebooks : dict of str to dict
        Parameters that differ from the defaults, by notebook.
    path : Path
        The file it was read from.
    until : str
        Last notebook of the plan.
    extra_seeds : tuple of int
        Training seeds that are run on request only, to see how much the training decides.
    """

    study: str
    subjects: tuple[str, ...]
    seeds: tuple[int, ...]
    notebooks: dict[str, dict[str, Any]] = field(default_factory=dict)
    path: Path = Path()
    until: str = "99"
    extra_seeds: tuple[int, ...] = ()

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds of the plan and those on request."""
        return (*self.seeds, *self.extra_seeds)


@dataclass(frozen=True)
class Step:
    """One execution of one notebook.

    Attributes
    ----------
    study, notebook, stage : str
        What runs, and the artifact it writes.
    subject : str or None
        None when the notebook takes all subjects together.
    seed : int or None
        None when the result does not depend on a training seed.
    """

    study: str
    notebook: str
    stage: str
    subject: str | None = None
    seed: int | None = None

    @property
    def who(self) -> str:
        """Folder under which the result is kept."""
        return self.subject or paths.JOINT

    @property
    def artifact(self) -> Path:
        """Folder of the result."""
        return paths.stage_dir(self.study, self.who, self.stage, self.seed)

    @property
    def executed(self) -> Path:
        """Path of the executed copy."""
        return paths.executed_notebook(self.study, self.notebook, self.who, self.seed)

    @property
    def name(self) -> str:
        """What people and the engine call it, ``"03_contrastive_alignment_seed0"``."""
        seed = None if self.seed is None else f"seed{self.seed}"
        return "_".join(part for part in (self.notebook, self.subject, seed) if part)

    @property
    def command(self) -> str:
        """Command that runs it alone."""
        parts = ["python -m sgdm_utils run", self.notebook, "--study", self.study]
        parts += [] if self.subject is None else ["--subject", self.subject]
        parts += [] if self.seed is None else ["--seed", str(self.seed)]
        return " ".join(parts)


def load_study(study: str) -> StudyConfig:
    """Read and check ``config/<study>.yaml``.

    Parameters
    ----------
    study : str
        Stem of the file.

    Raises
    ------
    ConfigError
        When the file is missing or no YAML, a key is unknown or twice there, or a parameter is
        unknown to its notebook or of another type. All findings are listed.
    """
    path = paths.config_dir() / f"{study}.yaml"
    if not path.is_file():
        if isinstance(study, str) and (found := _member(study)):
            return found
        there = studies()
        if not isinstance(study, str) or not _comes_through(study):
            raise ConfigError(
                f"a study cannot be called {study}: command lines read that as a number or a truth "
                f"value. Rename the file and its first line, e.g. study_{study}, and ask for that"
            )
        raise ConfigError(
            f"there is no study {study!r}: {paths.relative(path)} does not exist. "
            f"{_suggest(study, there, 'studies')}"
        )
    return check(_read(path), path, study)


def check(content: Any, path: Path, study: str) -> StudyConfig:
    """Check what a configuration says.

    Parameters
    ----------
    content : what the YAML file holds
    path : Path, the file, for messages
    study : str, the name that it must have

    Raises
    ------
    ConfigError
        See `load_study`.
    """
    problems = _frame_problems(content)
    if not problems and not _comes_through(study):
        problems.append(
            f"study: {study!r} is read as a number or a truth value on the way through a command line. "
            f"Rename the file and this line, e.g. study_{study}"
        )
    if not problems and content["study"] != study:
        problems.append(f"study: is {content['study']!r}, but the file is named {path.name}")
    sections = {}
    if not problems:
        sections = {name: values or {} for name, values in (content.get("notebooks") or {}).items()}
        for notebook, values in sections.items():
            problems += _section_problems(notebook, values)
    if problems:
        listing = "\n".join(f"  {problem}" for problem in problems)
        raise ConfigError(f"{paths.relative(path)} cannot be used:\n{listing}")
    until = content.get("until", StudyConfig.until)
    if until != StudyConfig.until and until not in {s.notebook for s in paths.STAGES.values()}:
        there = [stage.notebook for stage in paths.STAGES.values()]
        problem = f"until: {_suggest(until, there, 'notebooks')}"
        raise ConfigError(f"{paths.relative(path)} cannot be used:\n  {problem}")
    seeds, extra = (tuple(content.get(name, ())) for name in ("seeds", "extra_seeds"))
    if twice := sorted({*seeds} & {*extra}):
        problem = f"extra_seeds: {twice[0]} is one of seeds already"
        raise ConfigError(f"{paths.relative(path)} cannot be used:\n  {problem}")
    return StudyConfig(study, tuple(content["subjects"]), seeds, sections, path, until, extra)


@dataclass(frozen=True)
class Sweep:
    """A checked sweep.

    Attributes
    ----------
    name : str
    path : Path
        The file.
    members : dict of (condition, fold) to StudyConfig
        The studies that it consists of; the fold is empty where there are none.
    """

    name: str
    path: Path
    members: dict[tuple[str, str], StudyConfig]


def load_sweep(name: str) -> Sweep:
    """Read and check ``config/sweeps/<name>.yaml`` and every study that it stands for.

    Raises
    ------
    ConfigError
        When the file is missing or no YAML, or a condition cannot be run; all findings are listed.
    """
    folder = paths.config_dir() / "sweeps"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none"
        raise ConfigError(
            f"there is no sweep {name!r}: {paths.relative(path)} does not exist. The sweeps are: {there}"
        )
    content = _read(path)
    schema = json.loads((paths.config_dir() / "sweep.schema.json").read_text(encoding="utf-8"))
    problems = [f"{schemas.place(e)}: {e.message}" for e in schemas.violations(schema, content)]
    if not problems and content["sweep"] != name:
        problems = [f"sweep: is {content['sweep']!r}, but the file is named {path.name}"]
    base_path = paths.config_dir() / f"{'' if problems else content['study']}.yaml"
    if not problems and not base_path.is_file():
        problems = [f"study: {paths.relative(base_path)} does not exist"]
    if problems:
        raise ConfigError(f"{paths.relative(path)} cannot be used:\n  " + "\n  ".join(problems))
    base, members = _read(base_path), {}
    chosen = {key: content[key] for key in ("subjects", "seeds") if key in content}
    folds = content.get("folds", {"": {}})
    for (condition, ours), (fold, also) in itertools.product(
        content["conditions"].items(), folds.items()
    ):
        study = "-".join(filter(None, (name, condition, fold)))
        notebooks = _merged(base.get("notebooks") or {}, ours, also)
        try:
            members[condition, fold] = check(
                base | {"extra_seeds": []} | chosen | {"study": study, "notebooks": notebooks},
                path,
                study,
            )
        except ConfigError as error:
            problems.append(f"{study}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    return Sweep(name, path, members)


def _member(study: str) -> StudyConfig | None:
    """Return the study of this name that belongs to a sweep; None where there is none."""
    path = paths.config_dir() / "sweeps" / f"{study.partition('-')[0]}.yaml"
    if not path.is_file():
        return None
    return next((s for s in load_sweep(path.stem).members.values() if s.study == study), None)


def _read(path: Path) -> Any:
    try:
        return schemas.load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{paths.relative(path)} is no valid YAML: {error}") from error


def _merged(*layers: Mapping[str, Mapping[str, Any] | None]) -> dict[str, dict[str, Any]]:
    merged: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for notebook, values in layer.items():
            merged.setdefault(notebook, {}).update(values or {})
    return merged


def _comes_through(study: str) -> bool:
    """Whether a name is still text after ``snakemake --config study=<name>``."""
    try:
        float(study)
    except ValueError:
        return isinstance(yaml.safe_load(study), str)
    return False


def studies() -> list[str]:
    """Return the names of all configurations."""
    return sorted(path.stem for path in paths.config_dir().glob("*.yaml"))


def plan(config: StudyConfig, extra_seeds: bool = False) -> list[Step]:
    """Return every execution the study consists of, in an order in which they can run.

    Parameters
    ----------
    config : StudyConfig
    extra_seeds : bool
        Train with the extra seeds as well. They end with the evaluation: they are compared in
        ``20_seeds``, and a page of their own is made on request only.
    """
    steps = []
    for seed in (None, *(config.all_seeds if extra_seeds else config.seeds)):
        for stage in paths.STAGES.values():
            if seed in config.extra_seeds and stage.name == "report":
                continue
            if stage.per_seed == (seed is not None) and stage.notebook <= config.until:
                subjects = config.subjects if stage.per_subject else (None,)
                steps += [
                    Step(config.study, stage.notebook, stage.name, subject, seed)
                    for subject in subjects
                ]
    return steps


def reads(step: Step, steps: Iterable[Step]) -> list[Step]:
    """Return those of `steps` that a step reads: of its own subject and seed, where it has one."""
    return [
        other
        for other in steps
        if other.study == step.study
        and other.stage in paths.STAGES[step.stage].reads
        and (None in (step.subject, other.subject) or step.subject == other.subject)
        and other.seed in (None, step.seed)
    ]


def page_dir(config: StudyConfig, seed: int) -> Path:
    """Return the folder of the page and the figures of one training seed.

    The first seed's lie in the study's report folder, where readers look; those of another seed in
    ``seed-<n>`` below it, so that no seed's page takes the place of another's.
    """
    folder = paths.report_dir(config.study)
    return folder if seed == config.seeds[0] else folder / f"seed-{seed}"


def step(
    config: StudyConfig, notebook: str, subject: str | None = None, seed: int | None = None
) -> Step:
    """Return the one step that a notebook, a subject and a seed name.

    Raises
    ------
    ConfigError
        When there is no such notebook, or subject or seed are missing, superfluous or not part of
        the study.
    """
    require_notebook(notebook)
    require_within(config, notebook)
    stage = next((s for s in paths.STAGES.values() if s.notebook == notebook), None)
    names = notebook_parameters(notebook)
    per_subject = stage.per_subject if stage else "subject" in names
    per_seed = stage.per_seed if stage else "seed" in names
    _check_choice(notebook, "subject", subject, config.subjects if per_subject else None, config)
    _check_choice(notebook, "seed", seed, config.all_seeds if per_seed else None, config)
    name = stage.name if stage else Path(notebook).name
    return Step(config.study, notebook, name, subject, seed)


def require_within(config: StudyConfig, notebook: str) -> None:
    """Refuse a notebook of the chain that comes after the study's last one.

    Raises
    ------
    ConfigError
        Names `until` and the file that has it. Experiments stand beside the chain and are let
        through: what they read tells whether they can run.
    """
    chain = {stage.notebook for stage in paths.STAGES.values()}
    if notebook in chain and notebook > config.until:
        raise ConfigError(
            f"study {config.study!r} ends with {config.until}, so {notebook} is not part of it. "
            f"Otherwise change it in {paths.relative(config.path)}: until: {notebook}, or leave "
            "until out"
        )


def resolve(config: StudyConfig, step: Step) -> dict[str, Any]:
    """Return the value of every parameter of a step's notebook, in the order of their declaration.

    Defaults come from the notebook, differences from the configuration; ``study``, ``subject``,
    ``subjects`` and (for notebooks that depend on a training seed) ``seed`` from the plan.

    Raises
    ------
    ConfigError
        When the notebook does not declare what the plan has to tell it.
    """
    known = notebook_parameters(step.notebook)
    told = {"study": config.study, "subjects": list(config.subjects)}
    told |= {} if step.subject is None else {"subject": step.subject}
    told |= {} if step.seed is None else {"seed": step.seed}
    for name in set(told) - {"subjects"} - set(known):
        raise ConfigError(
            f"{step.notebook} has to be told its {name}, but its parameters cell declares no "
            f"parameter of that name. Add: {name}: {type(told[name]).__name__} = {told[name]!r}"
        )
    values = {name: parameter.default for name, parameter in known.items()}
    values |= {
        name: _as_declared(known[name], value)
        for name, value in config.notebooks.get(step.notebook, {}).items()
    }
    return values | {name: value for name, value in told.items() if name in known}


def parameters_digest(config: StudyConfig, step: Step) -> str:
    """Return one SHA-256 for the parameters of a step; another value is another result."""
    text = json.dumps(resolve(config, step), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def notebook_parameters(notebook: str) -> dict[str, Parameter]:
    """Return what a notebook's parameters cell declares, by name.

    Raises
    ------
    ConfigError
        When there is no such notebook, or its parameters cell is not as it should be.
    """
    path = require_notebook(notebook)
    try:
        return declared(path)
    except ParameterError as error:
        raise ConfigError(f"{paths.relative(path)}: {error}") from error


def require_notebook(notebook: str) -> Path:
    """Return the path of a notebook, or say which ones there are."""
    path = paths.notebook_path(notebook)
    if not path.is_file():
        folder = paths.notebook_dir()
        there = sorted(p.relative_to(folder).with_suffix("").as_posix() for p in _notebooks(folder))
        raise ConfigError(
            f"there is no notebook {notebook!r} in {paths.relative(folder)}. "
            f"{_suggest(notebook, there, 'notebooks')}"
        )
    return path


def _frame_problems(content: Any) -> list[str]:
    schema = json.loads((paths.config_dir() / "schema.json").read_text(encoding="utf-8"))
    problems = []
    for error in schemas.violations(schema, content):
        if error.validator == "additionalProperties":
            keys = list(schema["properties"])
            unknown = [key for key in error.instance if key not in keys]
            problems += [
                f"{key}: unknown key. {_suggest(str(key), keys, 'keys')}" for key in unknown
            ]
        else:
            hint = error.schema.get("description")
            message = f"{schemas.place(error)}: {error.message}"
            problems.append(f"{message}. {hint}" if hint else message)
    return problems


def _section_problems(notebook: str, values: dict[str, Any]) -> list[str]:
    try:
        known = notebook_parameters(notebook)
    except ConfigError as error:
        return [f"notebooks.{notebook}: {error}"]
    per_seed = any(s.per_seed for s in paths.STAGES.values() if s.notebook == notebook)
    problems = []
    for name, value in values.items():
        where = f"notebooks.{notebook}.{name}"
        if name in _SET_BY_PLAN or (name == "seed" and per_seed):
            problems.append(f"{where}: is set for you, from study, subjects and seeds above")
        elif name not in known:
            free = [key for key in known if key not in _SET_BY_PLAN]
            others = _declared_by(str(name))
            hint = (
                f"It is one of {' and '.join(others)}: write it in that section"
                if others
                else _suggest(str(name), free, "parameters")
            )
            problems.append(f"{where}: unknown parameter. {hint}")
        elif problem := type_problem(known[name], value):
            problems.append(f"{where}: {problem}")
    return problems


def _check_choice(
    notebook: str, what: str, given: Any, choices: Iterable | None, config: StudyConfig
) -> None:
    if choices is None:
        if given is not None:
            raise ConfigError(f"{notebook} takes no {what}: leave --{what} {given} out")
    elif given not in choices:
        listing = ", ".join(map(str, choices))
        problem = "is needed" if given is None else f"{given} is not part of study {config.study!r}"
        raise ConfigError(f"{notebook}: --{what} {problem}; choose from: {listing}")


def _declared_by(name: str) -> list[str]:
    """Notebooks of the chain that declare a parameter of this name."""
    found = []
    for stage in paths.STAGES.values():
        # one that cannot be read is told of where it is asked for
        with contextlib.suppress(ConfigError):
            found += [stage.notebook] if name in notebook_parameters(stage.notebook) else []
    return found


def _as_declared(parameter: Parameter, value: Any) -> Any:
    """Give an integer that YAML read for a decimal number the declared type."""
    return float(value) if parameter.annotation == "float" else value


def _notebooks(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts]


def _suggest(name: str, there: list[str], what: str) -> str:
    close = difflib.get_close_matches(name, there, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"The {what} are: {', '.join(there) or 'none'}"


def collect(notebook: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a running notebook has for its own parameters.

    Parameters
    ----------
    notebook : str
        Stem of the notebook.
    namespace : mapping
        Its `globals()`.

    Raises
    ------
    ConfigError
        When a value does not have the declared type (somebody edited or injected it).
    """
    values = {}
    for name, parameter in notebook_parameters(notebook).items():
        problem = type_problem(parameter, namespace[name])
        if problem:
            raise ConfigError(f"notebook {notebook}, parameter {name}: {problem}")
        values[name] = _as_declared(parameter, namespace[name])
    return values
