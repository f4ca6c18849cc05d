"""Scores of several training seeds side by side: how much is luck of the training?

One seed gives one set of networks. Here the artifacts of all seeds of a study are read into one
table with a row for each seed, condition, subject and picture; `variance` splits what varies in it,
and `seed_comparisons` repeats on it, seed by seed, what notebook 06 tests.

A training seed stands for everything that is drawn in notebooks 02 to 06: initial weights, order of
batches, noise of training and sampling, the partner whose EEG the shuffled conditions get, and what
is chosen on validation data because of all that.

References
----------
Bouthillier et al., MLSys (2021): sources of variation that a benchmark should draw anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sgdm_utils.experiments.seed_comparisons import declared_family
from sgdm_utils.metrics import pixels
from sgdm_utils.workflow import artifacts as workflow_artifacts
from sgdm_utils.workflow import config, manifests, paths
from sgdm_utils.workflow.artifacts import Artifact, ArtifactError, MissingArtifactError

READ = ("encoder", "structure", "reconstructions")  # stages whose artifacts are read
KEYS = ["seed", "condition", "subject", "image_id"]


class SeedsMissingError(MissingArtifactError):
    """Seeds that were asked for have not been trained and evaluated: which, and the commands."""


class SeedsDifferError(ArtifactError):
    """The results of two seeds cannot be set side by side."""


@dataclass(frozen=True)
class SeedRuns:
    """What the seeds of a study left.

    Attributes
    ----------
    seeds : tuple of int
    scores : DataFrame
        One row per seed, condition, subject and picture: the columns `KEYS`, the metrics of
        notebook 06, and for the EEG and its shuffled control `top1`, `top5` (retrieval by the
        encoder) and `map_iou` (silhouette in the decoded map); NaN where a condition has none.
    artifacts : tuple of Artifact, all that was read
    two_way : str, name of the two-way metric
    metrics : tuple of str, the metrics of notebook 06
    family : tuple of (comparison, metric), declared by the parameters of notebook 06
    """

    seeds: tuple[int, ...]
    scores: pd.DataFrame
    artifacts: tuple[Artifact, ...]
    two_way: str
    metrics: tuple[str, ...]
    family: tuple[tuple[str, str], ...]


def wanted_seeds(study: str, seeds: Sequence[int] = ()) -> tuple[int, ...]:
    """Seeds to read, rising: those given, or what ``config/<study>.yaml`` declares.

    Of the extra seeds, which run on request only, those are taken that have been evaluated.
    """
    chosen = tuple(seeds)
    if not chosen:
        declared = config.load(study)
        extra = [
            seed
            for seed in declared.extra_seeds
            if (paths.stage_dir(study, paths.JOINT, READ[-1], seed) / "manifest.json").is_file()
        ]
        chosen = (*declared.seeds, *extra)
    if len(set(chosen)) < len(chosen) or min(chosen) < 0:
        raise ValueError(f"seeds={list(chosen)}: give each seed once, none negative")
    return tuple(sorted(chosen))


def read_seeds(study: str, seeds: Sequence[int]) -> SeedRuns:
    """Read the results of all seeds and check that they differ by the seed alone.

    Raises
    ------
    SeedsMissingError
        Names what is not there and the commands that make it.
    SeedsDifferError
        Other pictures, subjects, conditions or metrics in one seed than in another, or the same
        scores in both, as after a copy.
    ParameterConflictError
        The seeds were run with different settings of a notebook.
    """
    _require(study, seeds)
    data = workflow_artifacts.read_artifact(study, paths.JOINT, "data")
    artifacts, parts = [data], []
    for seed in seeds:
        own = [workflow_artifacts.read_artifact(study, paths.JOINT, stage, seed) for stage in READ]
        artifacts += own
        encoder, structure, reconstructions = own
        scores = pd.read_parquet(reconstructions / "scores.parquet")
        ids = sorted(scores["image_id"].unique())
        neighbours = pd.read_parquet(reconstructions / "neighbours.parquet")
        extra = retrieval_hits(neighbours, ids).merge(
            map_overlap(structure, data, ids), on=KEYS[1:], how="outer", validate="1:1"
        )
        parts.append(scores.merge(extra, on=KEYS[1:], how="left").assign(seed=seed))
    manifests.merge_upstream(artifacts)
    notes = artifacts[-1].notes
    for seed, part, other in zip(seeds, parts, artifacts[len(READ) :: len(READ)], strict=True):
        _check_alike(seeds[0], parts[0], seed, part, other.notes["two_way"] == notes["two_way"])
    for (a, first), (b, second) in itertools.combinations(zip(seeds, parts, strict=True), 2):
        measured = list(notes["metrics"])
        if np.array_equal(_sorted(first)[measured], _sorted(second)[measured], equal_nan=True):
            raise SeedsDifferError(
                f"seeds {a} and {b} have the same scores to the last digit: one is a copy of the "
                "other, or the seed reached no generator"
            )
    family = declared_family(artifacts[-1].parameters, notes["two_way"], notes["metrics"])
    table = pd.concat(parts, ignore_index=True)
    table = table[KEYS + [name for name in table if name not in KEYS]]
    told = (notes["two_way"], tuple(notes["metrics"]), tuple(family))
    return SeedRuns(tuple(seeds), table, tuple(artifacts), *told)


def retrieval_hits(neighbours: pd.DataFrame, ids: Sequence[str]) -> pd.DataFrame:
    """Was the picture among the first, for its own EEG and for the EEG of another picture?

    Parameters
    ----------
    neighbours : DataFrame of notebook 06 with `subject`, `image_id`, `neighbour`, `rank` from 1
    ids : sequence of str, the gallery in the order of notebook 03

    Returns
    -------
    DataFrame with `condition` ("eeg", "shuffled_eeg"), `subject`, `image_id`, `top1`, `top5`; the
    shuffled partner is the one of notebook 03, half the gallery further
    """
    rank = neighbours.set_index(["subject", "image_id", "neighbour"])["rank"]
    shift = np.roll(np.asarray(ids), -(len(ids) // 2))
    rows = []
    for subject in neighbours["subject"].unique():
        for condition, queries in (("eeg", ids), ("shuffled_eeg", shift)):
            own = rank.loc[[(subject, q, i) for q, i in zip(queries, ids, strict=True)]].to_numpy()
            cells = {"condition": condition, "subject": subject, "image_id": list(ids)}
            cells |= {f"top{k}": (own <= k).astype(float) for k in (1, 5)}
            rows.append(pd.DataFrame(cells))
    return pd.concat(rows, ignore_index=True)


def map_overlap(structure: Artifact, data: Artifact, ids: Sequence[str]) -> pd.DataFrame:
    """IoU of the silhouette in the map decoded from the EEG, own and shuffled, as notebook 04.

    Returns
    -------
    DataFrame with `condition`, `subject`, `image_id`, `map_iou`
    """
    images = pd.read_parquet(data / "stimuli.parquet", columns=["image_id"])
    row_of = pd.Series(np.arange(len(images)), index=images["image_id"])
    true = np.load(data / "silhouettes.npy", mmap_mode="r")[row_of[list(ids)].to_numpy()] > 0
    table = pd.read_parquet(structure / "maps_test.parquet")
    maps = np.load(structure / "maps_test.npy", mmap_mode="r")
    threshold, shift = (
        structure.notes["iou_threshold"],
        np.roll(np.arange(len(ids)), -(len(ids) // 2)),
    )
    rows = []
    for subject, own in table.groupby("subject", sort=False):
        if own["image_id"].tolist() != list(ids):
            raise SeedsDifferError(f"{structure.label}: maps of {subject} are of other pictures")
        mask = maps[own.index.to_numpy(), 0] >= threshold
        for condition, made in (("eeg", mask), ("shuffled_eeg", mask[shift])):
            cells = {"condition": condition, "subject": subject, "image_id": list(ids)}
            rows.append(pd.DataFrame(cells | {"map_iou": pixels.iou(made, true)}))
    return pd.concat(rows, ignore_index=True)


def _require(study: str, seeds: Sequence[int]) -> None:
    """Refuse seeds without results, with all the commands that make them."""
    chain = [stage for stage in paths.STAGES.values() if stage.per_seed and stage.name != "report"]
    lacking: dict[int, list[str]] = {}
    for seed in seeds:
        for stage in chain:
            step = config.Step(study, stage.notebook, stage.name, seed=seed)
            if not (step.artifact / workflow_artifacts.MANIFEST).is_file():
                lacking.setdefault(seed, []).append(step.command)
    if not lacking:
        return
    there = [seed for seed in seeds if seed not in lacking]
    lines = [
        f"study {study!r}: of the seeds {_listed(seeds)}, there are no complete results of "
        f"{_listed(lacking)}. Make them:",
        *(f"  {command}" for commands in lacking.values() for command in commands),
    ]
    try:
        declared = config.load(study).all_seeds
    except config.ConfigError:  # results without a configuration: nothing to say about it
        declared = tuple(seeds)
    if undeclared := [seed for seed in lacking if seed not in declared]:
        lines.append(
            f"Before that, add {_listed(undeclared)} to extra_seeds in config/{study}.yaml: seeds that a "
            "study does not declare are not run"
        )
    lines.append(f"All of it in one: make seeds STUDY={study}")
    if there:
        lines.append(
            f"To go on without: seeds: {there} in the section experiments/20_seeds of "
            f"config/{study}.yaml"
        )
    raise SeedsMissingError("\n".join(lines))


def _check_alike(
    a: int, first: pd.DataFrame, b: int, second: pd.DataFrame, same_ruler: bool
) -> None:
    for what in ("condition", "subject", "image_id"):
        one, other = set(first[what]), set(second[what])
        if one != other:
            listing = ", ".join(map(str, sorted(one ^ other)[:5]))
            raise SeedsDifferError(
                f"seeds {a} and {b} differ by {what}: {listing} in one of them only. Run notebook "
                "06 again for both, with the same recording"
            )
    if set(first) != set(second) or not same_ruler:
        raise SeedsDifferError(
            f"seeds {a} and {b} were scored with different metrics: "
            f"{', '.join(sorted(set(first) ^ set(second))) or 'another two-way CLIP'}. Run "
            "notebook 06 again for both"
        )


def _sorted(scores: pd.DataFrame) -> pd.DataFrame:
    return scores.sort_values(KEYS[1:], ignore_index=True)


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))
