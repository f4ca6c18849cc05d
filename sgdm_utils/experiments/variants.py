"""What an ablation changes: variants of a study's notebooks, declared as text, checked before they run.

A variant names notebooks and the parameters in which they differ from the study's. It is checked
against the parameters cells, the only place where names and types are declared.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sgdm_utils.workflow import config, paths
from sgdm_utils.workflow.config import Step, StudyConfig
from sgdm_utils.workflow.parameters import type_problem

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
    studied = config.load(study)
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
    studied, planned = config.load(study), []
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
