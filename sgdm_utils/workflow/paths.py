"""Where things are: the project's root, raw recordings, artifacts of each stage, reports.

Every path of the study comes from here, so that notebooks hold no absolute path and the folder a
command is started in does not matter (nbval starts kernels in ``notebooks/``, papermill in the
caller's folder).

Two environment variables move the outputs elsewhere: ``SGDM_DATA`` (default ``<root>/data``) and
``SGDM_REPORTS`` (default ``<root>/reports``). Relative values are taken from the project's root.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

JOINT = "joint"  # the "who" of a stage that uses all subjects together

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Stage:
    """One step of the chain: what it is called, what it reads, what it is repeated over.

    Attributes
    ----------
    name : str
        Folder of the artifact.
    notebook : str
        Stem of the notebook that writes it.
    reads : tuple of str
        Names of the stages whose artifacts the notebook opens, of its own subject and seed.
    per_subject : bool
        True when there is one artifact for each subject instead of one for all.
    per_seed : bool
        True when the result depends on the training seed.
    """

    name: str
    notebook: str
    reads: tuple[str, ...] = ()
    per_subject: bool = False
    per_seed: bool = True


_DATA = ("data",)
_EEG = (*_DATA, "preprocessing")
_READERS = ("encoder", "structure", "forward")  # of EEG
#: The chain in an order in which it can run.
STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("data", "00_data", per_seed=False),
        Stage("preprocessing", "01_preprocessing", _DATA, per_subject=True, per_seed=False),
        Stage("encoder_pretrained", "02_encoder_pretraining", _EEG),
        Stage("clip", "02b_clip", _DATA),
        Stage("encoder", "03_contrastive_alignment", (*_EEG, "clip", "encoder_pretrained")),
        Stage("structure", "04_structure_decoding", (*_EEG, "encoder_pretrained")),
        Stage("forward", "04b_forward_model", (*_EEG, "clip", "encoder")),
        Stage("generator", "05_diffusion_training", (*_DATA, "clip")),
        Stage("pipeline", "05b_pipeline", (*_EEG, "clip", *_READERS, "generator")),
        # what each step cost is told as well
        Stage(
            "reconstructions",
            "06_evaluation",
            (*_EEG, "clip", "encoder_pretrained", *_READERS, "generator", "pipeline"),
        ),
        Stage("report", "07_figures", (*_EEG, "reconstructions")),
    )
}


def project_root() -> Path:
    """Return the folder that holds ``notebooks/``, ``config/`` and this package.

    Raises
    ------
    RuntimeError
        When the package is not part of a checkout, e.g. after an install that copied it to
        ``site-packages``.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():
        raise RuntimeError(
            f"sgdm_utils lies in {root}, which is not a checkout of the study (no pyproject.toml "
            "there). "
            "Install it from the checkout in editable form: pip install --no-deps -e ."
        )
    return root


def notebook_dir() -> Path:
    """Return the folder of the notebooks."""
    return project_root() / "notebooks"


def notebook_path(notebook: str) -> Path:
    """Return the path of the notebook with this stem; it need not exist."""
    return notebook_dir() / f"{notebook.removesuffix('.ipynb')}.ipynb"


def config_dir() -> Path:
    """Return the folder of the study configurations."""
    return project_root() / "config"


def data_dir() -> Path:
    """Return the folder of all data: ``SGDM_DATA`` or ``<root>/data``."""
    return _from_environment("SGDM_DATA", "data")


def reports_dir() -> Path:
    """Return the folder of all reports: ``SGDM_REPORTS`` or ``<root>/reports``."""
    return _from_environment("SGDM_REPORTS", "reports")


def raw_dir(name: str) -> Path:
    """Return the folder of one raw data set, ``data/raw/<name>``."""
    return data_dir() / "raw" / _checked("data set", name)


def study_dir(study: str) -> Path:
    """Return the folder of all artifacts of one study, ``data/derived/<study>``."""
    return data_dir() / "derived" / _checked("study", study)


def stage_dir(study: str, who: str, stage: str, seed: int | None = None) -> Path:
    """Return the folder of one artifact, ``data/derived/<study>/<who>/[seed-<n>/]<stage>``.

    Parameters
    ----------
    study : str
        Name of the study, the stem of its file in ``config/``.
    who : str
        ``"joint"`` or a subject (``"sub-01"``).
    stage : str
        A name in `STAGES`, or the name an experiment gives to its own result.
    seed : int, optional
        Training seed; left out for the stages that do not depend on one (``data``,
        ``preprocessing``).

    Raises
    ------
    ValueError
        When a name is not fit for a folder, or a seed is missing or given where the stage has none.
    """
    known = STAGES.get(stage)
    if known is not None and known.per_seed and seed is None:
        raise ValueError(f"stage {stage!r} depends on the training seed: give seed=<int>")
    if known is not None and not known.per_seed and seed is not None:
        raise ValueError(
            f"stage {stage!r} does not depend on a training seed: leave seed={seed!r} out"
        )
    folder = study_dir(study) / _checked("subject (or 'joint')", who)
    if seed is not None:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"a seed is an integer from 0 up, not {seed!r}")
        folder = folder / f"seed-{seed}"
    return folder / _checked("stage", stage)


def report_dir(study: str) -> Path:
    """Return the folder of one study's tables, figures and executed notebooks."""
    return reports_dir() / _checked("study", study)


def executed_notebook(study: str, notebook: str, who: str = JOINT, seed: int | None = None) -> Path:
    """Return the path of an executed copy: ``<who>[_seed-<n>]_<notebook>.ipynb``, in one folder."""
    parts = [_checked("subject (or 'joint')", who)]
    if seed is not None:
        parts.append(f"seed-{seed}")
    return (
        report_dir(study) / "executed" / f"{'_'.join([*parts, notebook.replace('/', '_')])}.ipynb"
    )


def relative(path: Path) -> str:
    """Return a path as people are shown it: relative to the project where it lies inside."""
    path = Path(path)
    try:
        return path.resolve().relative_to(project_root()).as_posix()
    except ValueError:
        return path.as_posix()


def _from_environment(variable: str, default: str) -> Path:
    value = os.environ.get(variable) or default
    return project_root() / Path(value).expanduser()


def _checked(what: str, name: str) -> str:
    """Refuse names that would leave the folder they belong to, or that a file system may refuse."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise ValueError(
            f"{name!r} cannot be the name of a {what}: letters, digits, '_', '-', '+' and '.' "
            "only, "
            "beginning with a letter or a digit"
        )
    return name
