"""What a manifest says: files, parameters of all stages before, and the errors about it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgdm_utils.workflow import atomic

if TYPE_CHECKING:
    from sgdm_utils.workflow.artifacts import Artifact

LABELS = (
    "study",
    "subject",
    "seed",
)  # say which run it is; they are no settings and do not travel downstream


class ArtifactError(RuntimeError):
    """Something is wrong with a result that a notebook wants to read or write."""


class MissingArtifactError(ArtifactError):
    """The result has not been computed yet."""


class StaleArtifactError(ArtifactError):
    """The result was computed from inputs that have changed since."""


class IncompleteArtifactError(ArtifactError):
    """The result is damaged: a file is missing, truncated or in the wrong place."""


class ParameterConflictError(ArtifactError):
    """The same parameter arrives with different values on two ways."""


class StaleCodeWarning(UserWarning):
    """Notebook, helper module or lock file have been edited since the result was computed."""


class UpstreamParameters(Mapping):
    """The parameters that led to an artifact, by name.

    A name that several stages declare with different values raises an error when it is asked for.

    Parameters
    ----------
    by_stage : dict of str to dict
        Parameters of each stage, the artifact's own stage last.
    own : str
        The artifact's own stage; its values win.
    """

    def __init__(self, by_stage: dict[str, dict[str, Any]], own: str):
        self.by_stage = by_stage
        self._own = own

    def __getitem__(self, name: str) -> Any:
        found = {stage: values[name] for stage, values in self.by_stage.items() if name in values}
        if self._own in found:
            return found[self._own]
        if not found:
            raise KeyError(
                f"no notebook upstream declares {name!r}; there are: {', '.join(sorted(self))}"
            )
        first, *rest = found.values()
        if any(value != first for value in rest):
            listing = ", ".join(f"{value!r} in {stage}" for stage, value in found.items())
            raise ParameterConflictError(
                f"parameter {name!r} is declared by several notebooks: {listing}. "
                "Say which one is meant: artifact.upstream_parameters.by_stage[stage][name]"
            )
        return first

    def __iter__(self) -> Iterator[str]:
        return iter({name: None for values in self.by_stage.values() for name in values})

    def __len__(self) -> int:
        return len({name for values in self.by_stage.values() for name in values})


def merge_upstream(inputs: Sequence[Artifact]) -> dict[str, dict[str, Any]]:
    """Collect the parameters of all stages behind `inputs`, by stage.

    Raises
    ------
    ParameterConflictError
        When two inputs come from different settings of the same stage.
    """
    merged: dict[str, dict[str, Any]] = {}
    origin: dict[str, str] = {}
    for artifact in inputs:
        own = {artifact.identity["stage"]: artifact.parameters}
        for stage, values in {**artifact.identity["upstream"], **own}.items():
            settings = {name: value for name, value in values.items() if name not in LABELS}
            known = merged.setdefault(stage, settings)
            origin.setdefault(stage, artifact.label)
            for name in known.keys() | settings.keys():
                if known.get(name) != settings.get(name):
                    raise ParameterConflictError(
                        f"{origin[stage]} and {artifact.label} come from different settings of "
                        f"stage {stage!r}: "
                        f"{name} = {known.get(name)!r} and {settings.get(name)!r}. Run that stage "
                        "again for all of them"
                    )
    return merged


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size in bytes and SHA-256 of every file below `folder`, by relative path."""
    return {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "sha256": atomic.digest_file(path),
        }
        for path in atomic.list_files(folder)
    }


def content_digest(files: dict[str, dict[str, Any]], parameters: dict[str, Any]) -> str:
    """Return one SHA-256 for files and parameters, whatever their order."""
    listing = {name: facts["sha256"] for name, facts in files.items()}
    settings = {name: value for name, value in parameters.items() if name not in LABELS}
    return atomic.digest_listing({**listing, "//parameters": json.dumps(settings, sort_keys=True)})


def plain(values: Any, what: str, where: str = "") -> Any:
    """Turn numpy scalars, paths and tuples into what JSON can hold; refuse all else by name."""
    if isinstance(values, Mapping):
        return {
            str(key): plain(value, what, f"{where}.{key}" if where else str(key))
            for key, value in values.items()
        }
    if isinstance(values, list | tuple):
        return [plain(value, what, f"{where}[{i}]") for i, value in enumerate(values)]
    if hasattr(values, "tolist"):  # numpy scalars and arrays
        return plain(values.tolist(), what, where)
    if isinstance(values, float) and not math.isfinite(values):
        raise ArtifactError(
            f"{what} {where!r} is {values}: a manifest holds finite numbers, use None where there "
            "is none"
        )
    if values is None or isinstance(values, str | int | float | bool):
        return values
    if isinstance(values, Path):
        return values.as_posix()
    raise ArtifactError(
        f"{what} {where!r} is a {type(values).__name__}, which a manifest cannot hold"
    )
