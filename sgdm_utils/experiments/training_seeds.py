"""Scores of several training seeds side by side: how much is luck of the training?

One seed gives one set of networks. Here the artifacts of all seeds of a study are read into one
table with a row for each seed, condition, subject and picture; `variance` splits what varies in it.
The comparisons that notebook 06 declares are repeated with each seed, and the mean of a score is
asked how far it would move if one thing alone were drawn anew.

A training seed stands for everything that is drawn in notebooks 02 to 06: initial weights, order of
batches, noise of training and sampling, the partner whose EEG the shuffled conditions get, and what
is chosen on validation data because of all that.

References
----------
Bouthillier et al., MLSys (2021): sources of variation that a benchmark should draw anew. Searle,
Casella & McCulloch, Variance Components (1992), ch. 4: the mean square of a factor estimates how
the means of its levels vary, whatever else is held fixed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from sgdm_utils.experiments.variance import FACTORS, score_table
from sgdm_utils.metrics import statistics
from sgdm_utils.metrics.structure import iou
from sgdm_utils.workflow import artifacts as workflow_artifacts
from sgdm_utils.workflow import config, paths
from sgdm_utils.workflow.artifacts import Artifact, ArtifactError, MissingArtifactError

READ = ("clip", "encoder", "structure", "reconstructions")  # stages whose artifacts are read
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
        declared = config.load_study(study)
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
        *_, structure, reconstructions = own
        scores = pd.read_parquet(reconstructions / "scores.parquet")
        ids = sorted(scores["image_id"].unique())
        neighbours = pd.read_parquet(reconstructions / "neighbours.parquet")
        extra = retrieval_hits(neighbours, ids).merge(
            map_overlap(structure, data, ids), on=KEYS[1:], how="outer", validate="1:1"
        )
        parts.append(scores.merge(extra, on=KEYS[1:], how="left").assign(seed=seed))
    workflow_artifacts.merge_upstream(artifacts)
    notes = artifacts[-1].notes
    for seed, part, other in zip(seeds, parts, artifacts[len(READ) :: len(READ)], strict=True):
        _check_alike(seeds[0], parts[0], seed, part, other.notes["two_way"] == notes["two_way"])
    for (a, first), (b, second) in itertools.combinations(zip(seeds, parts, strict=True), 2):
        measured = list(notes["metrics"])
        one, two = (part.sort_values(KEYS[1:])[measured] for part in (first, second))
        if np.array_equal(one, two, equal_nan=True):
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
    threshold = structure.notes["iou_threshold"]
    shift = np.roll(np.arange(len(ids)), -(len(ids) // 2))
    rows = []
    for subject, own in table.groupby("subject", sort=False):
        if own["image_id"].tolist() != list(ids):
            raise SeedsDifferError(f"{structure.label}: maps of {subject} are of other pictures")
        mask = maps[own.index.to_numpy(), 0] >= threshold
        for condition, made in (("eeg", mask), ("shuffled_eeg", mask[shift])):
            cells = {"condition": condition, "subject": subject, "image_id": list(ids)}
            rows.append(pd.DataFrame(cells | {"map_iou": iou(made, true)}))
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
        declared = config.load_study(study).all_seeds
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


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


MEAN = "mean of seeds"
#: Columns of a comparison, before Holm.
COLUMNS = ("seed", "comparison", "metric", "difference", "ci_low", "ci_high", "n", "p_value")


def declared_family(
    parameters: Mapping[str, Any], two_way: str, metric_names: Sequence[str]
) -> list[tuple[str, str]]:
    """Comparisons and metrics that notebook 06 declares in its parameters, in its order."""
    family = [(c, m) for c in parameters["compare_meaning"] for m in (two_way, "pixcorr")]
    family += [(c, m) for c in parameters["compare_structure"] for m in ("silhouette_iou", "ssim")]
    family += [(c, "category_accuracy") for c in parameters["compare_category"]]
    return [(comparison, metric) for comparison, metric in family if metric in metric_names]


def compare_by_seed(
    scores: pd.DataFrame,
    family: Sequence[tuple[str, str]],
    rng: np.random.Generator,
    n_draws: int = statistics.N_RESAMPLES,
    n_resamples: int = statistics.N_RESAMPLES,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Repeat the declared comparisons with each seed, and with the mean of the seeds.

    As in notebook 06: scores of a picture are averaged over subjects, signs of the differences are
    flipped, Holm corrects within the family of one seed. `MEAN` averages a picture's scores over
    the seeds first; it is one more test of the same pictures, not a test over seeds.

    Parameters
    ----------
    scores : DataFrame with `seed`, `condition`, `subject`, `image_id` and the metrics
    family : sequence of (comparison, metric), a comparison such as "eeg > shuffled_eeg"
    n_draws, n_resamples : int, sign patterns of a test, resamples of an interval over pictures

    Returns
    -------
    DataFrame with `seed` (int, or `MEAN`), `comparison`, `metric`, `difference`, `ci_low`,
    `ci_high`, `n`, `p_value`, `p_holm`, `shown` (p_holm below `alpha`)
    """
    seeds = sorted(scores["seed"].unique())
    measured = sorted({metric for _, metric in family})
    by_seed = scores.groupby(["seed", "condition", "image_id"])[measured].mean()
    tables: list[tuple[int | str, pd.DataFrame]] = [(s, by_seed.loc[s]) for s in seeds]
    if len(seeds) > 1:
        tables.append((MEAN, by_seed.groupby(["condition", "image_id"]).mean()))
    out = []
    for seed, by_item in tables:
        rows = []
        for comparison, metric in family:
            better, worse = (by_item.loc[c.strip(), metric] for c in comparison.split(">"))
            worse = worse.loc[better.index]
            test = statistics.paired_permutation_test(better, worse, rng, n_draws)
            low, high = statistics.bootstrap_interval(better - worse, rng, n_resamples)
            cells = (seed, comparison, metric, test.statistic, low, high, len(better))
            rows.append((*cells, test.p_value))
        rows = pd.DataFrame(rows, columns=list(COLUMNS))
        out.append(rows.assign(p_holm=statistics.holm(rows["p_value"])))
    table = pd.concat(out, ignore_index=True)
    return table.assign(shown=table["p_holm"] < alpha)


def moved_by(
    scores: pd.DataFrame, value: str, factor: str, levels: int | None = None
) -> tuple[float, float, float]:
    """How far would the mean move, if this factor alone were drawn anew? One standard deviation.

    Parameters
    ----------
    scores : DataFrame with the columns `seed`, `subject`, `item` and `value`, one condition
    factor : 'seed', 'subject' or 'item'
    levels : int, of the factor in the mean that is meant; by default as many as there are. With
        factor 'seed' and levels 1: how far a study with one seed moves

    Returns
    -------
    deviation, low, high : float, with the ends of a 95 % interval; NaN when the factor has one
        level, from which nobody can know

    Notes
    -----
    With the other factors held, the means of the levels are independent draws, so their variance
    (the mean square of the factor over the scores in each) estimates how they vary, interactions
    with the levels at hand included. The interval is that of a variance of normal draws: with three
    levels its ends lie a factor of twelve apart.
    """
    table = score_table(scores, value)
    axis = FACTORS.index(factor)
    means = table.mean(axis=tuple(a for a in range(table.ndim) if a != axis))
    n = len(means)
    if n < 2:
        return math.nan, math.nan, math.nan
    deviation = float(means.std(ddof=1)) / math.sqrt(n if levels is None else levels)
    low, high = stats.chi2.ppf([(1 + 0.95) / 2, (1 - 0.95) / 2], n - 1)
    return deviation, deviation * math.sqrt((n - 1) / low), deviation * math.sqrt((n - 1) / high)
