"""Artifacts with manifests: what was computed, from what, by which code, and does it still hold?

A notebook writes its result with `write_artifact` and reads the results of earlier notebooks with
`read_artifact`. The manifest keeps *identity* (what changes numbers: parameters, code, inputs,
locked packages) apart from *provenance* (when, on what machine, how long). Reading checks that
every file is there and that every input, back to the recording, is still the one that was used.

What a manifest says: files, parameters of all stages before, and the errors about it.
"""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgdm_utils.workflow import atomic, digests, machine, paths, raw

MANIFEST = "manifest.json"
CONTENT = "content.sha256"  # one line; its change is what makes later steps run again


@dataclass(frozen=True)
class Artifact:
    """A result on disk; ``artifact / "x.npy"`` is the path of one of its files.

    Attributes
    ----------
    path : Path
        The folder.
    manifest : dict
        The content of its ``manifest.json``.
    """

    path: Path
    manifest: dict[str, Any]

    def __truediv__(self, name: str) -> Path:
        path = self.path / name
        if not path.exists():
            raise FileNotFoundError(
                f"{paths.relative(self.path)} holds no {name!r}; "
                f"it holds: {', '.join(self.manifest['files'])}"
            )
        return path

    @property
    def identity(self) -> dict[str, Any]:
        """What changes numbers: labels, parameters, digests of code, inputs and lock."""
        return self.manifest["identity"]

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters of the notebook that wrote it."""
        return self.identity["parameters"]

    @property
    def upstream_parameters(self) -> UpstreamParameters:
        """Own parameters and those of all inputs, own ones first."""
        stage = self.identity["stage"]
        return UpstreamParameters({**self.identity["upstream"], stage: self.parameters}, own=stage)

    @property
    def notes(self) -> dict[str, Any]:
        """What the notebook wished to tell later ones: names of axes, units, counts."""
        return self.manifest["notes"]

    @property
    def content_digest(self) -> str:
        """SHA-256 over files, parameters and notes: all that a reader can take from here."""
        return self.manifest["content_digest"]

    @property
    def label(self) -> str:
        """How messages call it."""
        return _label(*(self.identity[key] for key in ("study", "who", "stage", "seed")))


@contextlib.contextmanager
def write_artifact(
    study: str,
    who: str,
    stage: str,
    seed: int | None = None,
    *,
    notebook: str,
    parameters: Mapping[str, Any],
    inputs: Sequence[Artifact] = (),
    notes: Mapping[str, Any] | None = None,
    recording: Mapping[str, Any] | None = None,
) -> Iterator[Path]:
    """Write one artifact, whole or not at all.

    Parameters
    ----------
    study, who, stage, seed
        Where it belongs, see `paths.stage_dir`.
    notebook : str
        Stem of the notebook that writes; its code and the modules it imports become part of the
        identity.
    parameters : mapping
        The notebook's own parameters, by name.
    inputs : sequence of Artifact
        What was read. All of it: this is how a later change is noticed.
    notes : mapping, optional
        Anything later notebooks or people should know. Read at the end, so it may be filled inside
        the block.
    recording : mapping, optional
        What was read of a raw data set, from `raw.describe`; filled inside the block like `notes`.

    Yields
    ------
    Path
        An empty folder. It takes the artifact's place, with ``manifest.json``, when the block ends
        without an error; until then, and after an error, the previous artifact stays.

    Raises
    ------
    ParameterConflictError
        When inputs of one stage (e.g. two subjects) were made with different parameters.
    ArtifactError
        When the block wrote nothing, or a parameter or note cannot be told in JSON.
    """
    target = paths.stage_dir(study, who, stage, seed)
    identity = {
        "study": study,
        "who": who,
        "seed": seed,
        "stage": stage,
        "notebook": notebook,
        "parameters": plain(dict(parameters), "parameter"),
        "upstream": merge_upstream(inputs, study),
        "code": digests.code_digests(notebook),
        "inputs": {
            _relative_to_data(artifact.path): artifact.content_digest for artifact in inputs
        },
        "lock": digests.lock_digest(),
    }
    with atomic.atomic_directory(target) as out:
        yield out
        files = describe_files(out)
        if not files:
            raise ArtifactError(
                f"no file was written for {_label(study, who, stage, seed)}; "
                "the previous artifact, if any, stays"
            )
        recording = dict(recording or {})
        noted = plain(dict(notes or {}), "note")
        manifest = {
            "identity": identity | {"raw": raw.digest(recording) if recording else None},
            "content_digest": content_digest(files, identity["parameters"], noted),
            "files": files,
            "provenance": machine.provenance(),
            "notes": noted,
            "raw": recording,
        }
        manifest["seal"] = _seal(manifest)
        (out / MANIFEST).write_text(
            json.dumps(manifest, indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
        (out / CONTENT).write_text(manifest["content_digest"] + "\n", encoding="ascii")


def read_artifact(
    study: str, who: str, stage: str, seed: int | None = None, *, verify: bool = False
) -> Artifact:
    """Open one artifact after checking that it is whole and that its inputs are unchanged.

    Parameters
    ----------
    study, who, stage, seed
        Where it belongs, see `paths.stage_dir`.
    verify : bool
        Also read every file and compare its SHA-256; without it names and sizes are compared, which
        is instant.

    Raises
    ------
    MissingArtifactError
        When it, or one of the inputs it was made from, is not there; names the notebook to run.
    StaleArtifactError
        When an input has been computed anew with another content.
    IncompleteArtifactError
        When files are missing or differ from what the manifest says.

    Warns
    -----
    StaleCodeWarning
        When the code that made it has been edited since.
    """
    folder = paths.stage_dir(study, who, stage, seed)
    artifact = _open(folder, (study, who, stage, seed))
    _check_files(artifact, verify)
    _check_recording(artifact, verify)
    _check_inputs(artifact)
    changed = changed_code(artifact)
    if changed:
        warnings.warn(
            f"{artifact.label} was made before the last edit of {', '.join(changed)}. "
            f"To compute it anew: {_command(artifact.identity)}",
            StaleCodeWarning,
            stacklevel=2,
        )
    return artifact


def why_not_current(
    folder: Path, parameters: Mapping[str, Any] | None = None, *, verify: bool = False
) -> str | None:
    """Return why a run would not give the result in `folder` again; None where it would.

    Parameters
    ----------
    folder : Path
        Folder of the artifact; it need not exist.
    parameters : mapping, optional
        Values of all parameters of its notebook. Those that the manifest does not record are not
        compared; None compares none.
    verify : bool
        Read every file, also of the recording, and compare its SHA-256.

    Returns
    -------
    str or None
        One sentence; ``"missing"`` where there is no such result. Nothing on the disk is changed.
    """
    if not (folder / MANIFEST).is_file():
        return "missing"
    try:
        artifact = _open(folder, _labels_of(_relative_to_data(folder)))
        _check_files(artifact, verify)
        _check_recording(artifact, verify)
        _check_inputs(artifact)
        wanted = plain(dict(parameters or {}), "parameter")
    except ArtifactError as error:
        return str(error)
    differ = [
        f"{name} is {wanted[name]!r} and was {value!r}"
        for name, value in artifact.parameters.items()
        if wanted.get(name, value) != value
    ]
    edited = [f"{name} has been edited" for name in changed_code(artifact)]
    if not (folder / CONTENT).is_file():  # the engine removes it before it runs a step anew
        edited.append("its last run was interrupted")
    return "; ".join(differ + edited) or None


def changed_code(artifact: Artifact) -> list[str]:
    """Return what has been edited since: the notebook, helper modules, the lock file."""
    notebook = artifact.identity["notebook"]
    then = artifact.identity["code"]
    try:
        now = digests.code_digests(notebook)
    except FileNotFoundError:
        return [f"{notebook} (the notebook is gone)"]
    changed = [] if then["notebook"] == now["notebook"] else [notebook]
    modules = then["modules"].keys() | now["modules"].keys()
    changed += sorted(
        f"sgdm_utils.{m}" for m in modules if then["modules"].get(m) != now["modules"].get(m)
    )
    if artifact.identity["lock"] != digests.lock_digest():
        changed.append("requirements.lock")
    return changed


def _open(
    folder: Path, labels: tuple[str, str, str, int | None], wanted_by: Artifact | None = None
) -> Artifact:
    atomic.recover(folder)
    study, who, stage, seed = labels
    place = {"study": study, "who": who, "stage": stage, "seed": seed}
    if not (folder / MANIFEST).is_file():
        reason = f", from which {wanted_by.label} was made," if wanted_by else ""
        raise MissingArtifactError(
            f"{_label(*labels)}{reason} is not there (looked in {paths.relative(folder)}). Make "
            f"it: {_command(place)}"
        )
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        seal = manifest.pop("seal")
        artifact = Artifact(folder, manifest)
        content = content_digest(manifest["files"], artifact.parameters, artifact.notes)
        sound = seal == _seal(manifest) and artifact.content_digest == content
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IncompleteArtifactError(
            f"{paths.relative(folder / MANIFEST)} cannot be read ({type(error).__name__}: {error}): "
            f"it is damaged or of an earlier version. Make it anew: {_command(place)}"
        ) from error
    if not sound:
        raise IncompleteArtifactError(
            f"{paths.relative(folder / MANIFEST)} contradicts itself: it has been edited. Make it "
            f"anew: {_command(place)}"
        )
    found = tuple(artifact.identity[key] for key in ("study", "who", "stage", "seed"))
    if found != labels:
        raise IncompleteArtifactError(
            f"{paths.relative(folder)} holds {_label(*found)}, not {_label(*labels)}: it was "
            "copied or renamed by hand. "
            f"Remove the folder and run: {_command(place)}"
        )
    return artifact


def _check_files(artifact: Artifact, verify: bool) -> None:
    remedy = f"Make it anew: {_command(artifact.identity)}"
    for name, facts in artifact.manifest["files"].items():
        path = artifact.path / name
        if not path.is_file():
            raise IncompleteArtifactError(f"{artifact.label} lacks its file {name}. {remedy}")
        size = path.stat().st_size
        if size != facts["size"]:
            raise IncompleteArtifactError(
                f"{paths.relative(path)} has {size} bytes where {facts['size']} were written. "
                f"{remedy}"
            )
        if verify and atomic.digest_file(path) != facts["sha256"]:
            raise IncompleteArtifactError(
                f"{paths.relative(path)} is not what was written (SHA-256 differs). {remedy}"
            )


def _check_recording(artifact: Artifact, verify: bool) -> None:
    if not artifact.manifest["raw"]:
        return
    found = raw.changed(artifact.manifest["raw"], verify)
    if found:
        some = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        raise StaleArtifactError(
            f"{artifact.label} was made before a change of the recording in "
            f"{paths.relative(paths.raw_dir(artifact.manifest['raw']['root']))}: {some}. "
            f"Run: {_command(artifact.identity)}"
        )


def _check_inputs(wanted: Artifact) -> None:
    """Compare the recorded with the present digests of all inputs, back to the recording."""
    seen: dict[str, Artifact] = {}
    waiting = [wanted]
    while waiting:
        artifact = waiting.pop()
        for place, recorded in artifact.identity["inputs"].items():
            if place not in seen:
                folder = paths.data_dir() / place
                seen[place] = _open(folder, _labels_of(place), wanted_by=artifact)
                waiting.append(seen[place])
            source = seen[place]
            if source.content_digest != recorded:
                reason = "" if artifact is wanted else f"{wanted.label} cannot be used: "
                raise StaleArtifactError(
                    f"{reason}{artifact.label} was made from an earlier version of {source.label}, "
                    f"which has been computed anew since. Run: {_command(artifact.identity)} "
                    "(to run all that is affected, in order: "
                    f"snakemake --cores 1 --config study={artifact.identity['study']})"
                )


def _labels_of(place: str) -> tuple[str, str, str, int | None]:
    """Read study, who, stage and seed from ``derived/<study>/<who>/[seed-<n>/]<stage>``."""
    _, study, who, *rest = place.split("/")
    seed = int(rest[0].removeprefix("seed-")) if len(rest) == 2 else None
    return study, who, rest[-1], seed


def _relative_to_data(folder: Path) -> str:
    return Path(folder).relative_to(paths.data_dir()).as_posix()


def _label(study: str, who: str, stage: str, seed: int | None) -> str:
    return f"{stage!r} of {who}{'' if seed is None else f', seed {seed}'} in study {study!r}"


def _command(place: Mapping[str, Any]) -> str:
    """Return the command that computes an artifact, as far as its notebook is known."""
    known = paths.STAGES.get(place["stage"])
    notebook = place.get("notebook") or (known.notebook if known else None)
    if notebook is None:
        return f"run the notebook that writes stage {place['stage']!r}"
    command = f"python -m sgdm_utils run {notebook} --study {place['study']}"
    if place["who"] != paths.JOINT:
        command += f" --subject {place['who']}"
    if place["seed"] is not None:
        command += f" --seed {place['seed']}"
    return command


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


def merge_upstream(
    inputs: Sequence[Artifact], study: str | None = None
) -> dict[str, dict[str, Any]]:
    """Collect the parameters of all stages behind `inputs`, by stage.

    An experiment may read results of a second study (a recording of real people beside the simulated
    one). Where `study`, the experiment's own, is given, stages of others have their study's name before
    them, ``"my_bids/data"``, and may have settings of their own.

    Raises
    ------
    ParameterConflictError
        When two inputs come from different settings of the same stage.
    """
    merged: dict[str, dict[str, Any]] = {}
    origin: dict[str, str] = {}
    for artifact in inputs:
        own = {artifact.identity["stage"]: artifact.parameters}
        whose = artifact.identity["study"]
        prefix = f"{whose}/" if study is not None and whose != study else ""
        for of_stage, values in {**artifact.identity["upstream"], **own}.items():
            stage = prefix + of_stage
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


def content_digest(
    files: dict[str, dict[str, Any]], parameters: dict[str, Any], notes: dict[str, Any]
) -> str:
    """Return one SHA-256 for files, parameters and notes, whatever their order."""
    listing = {name: facts["sha256"] for name, facts in files.items()}
    settings = {name: value for name, value in parameters.items() if name not in LABELS}
    told = {"//parameters": settings, "//notes": notes}
    told = {name: json.dumps(values, sort_keys=True) for name, values in told.items()}
    return atomic.digest_listing(listing | told)


def _seal(manifest: Mapping[str, Any]) -> str:
    """SHA-256 over a manifest without its seal, so that an edit of any part of it is seen."""
    return atomic.digest_listing({"manifest": json.dumps(manifest, sort_keys=True)})


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
