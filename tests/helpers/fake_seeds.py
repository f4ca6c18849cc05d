"""Artifacts of several training seeds without any training: what `seed_scores` reads, tiny.

The scores are sums of effects of known size, so that a test knows what has to come out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sgdm_utils.experiments import training_seeds
from sgdm_utils.experiments.variance import FACTORS
from sgdm_utils.metrics import tables
from sgdm_utils.workflow import artifacts

STUDY = "demo"  # a configuration of that name is in the project
SUBJECTS = ("sub-01", "sub-02", "sub-03")
IDS = tuple(f"test-{i:03}" for i in range(12))
METRICS = ("pixcorr", "ssim", "two_way_clip_tiny", "category_accuracy", "silhouette_iou")
JOINT = ("oracle", "mean_image")
#: Mean of each condition; EEG lies between its controls and the oracle.
LEVELS = {
    "eeg": 0.5, "shuffled_eeg": 0.2, "no_structure": 0.35, "shuffled_structure": 0.35,
    "no_semantics": 0.35, "oracle": 0.8, "mean_image": 0.2,
}  # fmt: skip
DECLARED = {
    "compare_meaning": ["eeg > shuffled_eeg", "eeg > mean_image", "oracle > eeg"],
    "compare_structure": ["eeg > no_structure", "eeg > shuffled_structure"],
    "compare_category": ["eeg > shuffled_eeg", "eeg > no_semantics"],
}
SIZE = 8
STAGES_OF_A_SEED = (
    "encoder_pretrained", "clip", "encoder", "structure", "forward", "generator", "pipeline",
    "reconstructions",
)  # fmt: skip


def long_scores(table: np.ndarray, value: str = "ssim") -> pd.DataFrame:
    """Scores (n_seeds, n_subjects, n_items) with one row for each."""
    index = pd.MultiIndex.from_product([range(n) for n in table.shape], names=FACTORS)
    return pd.Series(table.ravel(), index=index, name=value).reset_index()


def write_data() -> artifacts.Artifact:
    """Write the pictures' silhouettes."""
    rng = np.random.default_rng(0)
    with written("data", None, [], {}, {"subjects": list(SUBJECTS)}) as out:
        pd.DataFrame({"image_id": IDS[::-1]}).to_parquet(out / "stimuli.parquet")
        np.save(out / "silhouettes.npy", rng.integers(0, 2, (len(IDS), SIZE, SIZE), dtype=np.uint8))
    return read("data")


def write_seed(
    seed: int, draw: int | None = None, shift: float = 0.0, levels: dict[str, float] = LEVELS,
    settings: dict[str, object] | None = None, ids: Sequence[str] = IDS, skip: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write all stages of one seed.

    Parameters
    ----------
    draw : seeds the noise, by default `seed` itself
    shift : added to every score of this seed: what the seed does
    settings : more parameters of notebook 06
    skip : stages that are left out
    """
    rng = np.random.default_rng([seed if draw is None else draw, 77])
    made = [read("data")]
    neighbours, scores = _neighbours(rng, ids), _scores(rng, shift, levels, ids)
    maps = rng.random((len(SUBJECTS) * len(ids), 2, SIZE, SIZE)).astype(np.float32)
    table = pd.DataFrame({"subject": np.repeat(SUBJECTS, len(ids)), "image_id": list(ids) * 3})
    for stage in STAGES_OF_A_SEED:
        if stage in skip:
            return
        parameters = {"seed": seed} | (DECLARED | (settings or {}) if stage == READ[-1] else {})
        parameters |= {"clip_model": ""} if stage == "clip" else {}
        notes = {"transductive": False, "iou_threshold": 0.5, "two_way": METRICS[2]}
        notes |= {"metrics": list(METRICS), "category_ruler_of_seen": 0.9, "category_scale": 1.0}
        notes |= {"semantic_scale": 1.0, "structure_scale": 1.0}
        with written(stage, seed, made, parameters, notes) as out:
            (out / "anything.txt").write_text(str(seed))
            if stage == "encoder":
                hits = training_seeds.retrieval_hits(neighbours, ids)
                _write_means(out / "retrieval.csv", hits, {"top1": "top1"}, seed)
            elif stage == "structure":
                np.save(out / "maps_test.npy", maps)
                table.to_parquet(out / "maps_test.parquet")
                here = artifacts.Artifact(out, {"notes": notes, "files": {}})
                overlap = training_seeds.map_overlap(here, made[0], ids)
                _write_means(out / "structure.csv", overlap, {"map_iou": "iou"}, seed)
            elif stage == "reconstructions":
                scores.to_parquet(out / "scores.parquet")
                neighbours.to_parquet(out / "neighbours.parquet")
        made.append(read(stage, seed))


READ = training_seeds.READ
NOTEBOOKS = {
    "data": "00_data", "encoder_pretrained": "02_encoder_pretraining", "clip": "02b_clip",
    "encoder": "03_contrastive_alignment", "structure": "04_structure_decoding",
    "forward": "04b_forward_model", "generator": "05_diffusion_training",
    "pipeline": "05b_pipeline", "reconstructions": "06_evaluation",
}  # fmt: skip


def written(stage, seed, inputs, parameters, notes):
    """A `artifacts.write_artifact` of this study."""
    return artifacts.write_artifact(
        STUDY, "joint", stage, seed, notebook=NOTEBOOKS[stage],
        parameters={"study": STUDY} | parameters, inputs=inputs, notes=notes,
    )  # fmt: skip


def read(stage: str, seed: int | None = None) -> artifacts.Artifact:
    """Read an artifact of this study."""
    return artifacts.read_artifact(STUDY, "joint", stage, seed)


def _scores(rng, shift, levels, ids) -> pd.DataFrame:
    people = dict(zip(SUBJECTS, (-0.05, 0.0, 0.05), strict=True)) | {"all": 0.0}
    pictures = np.linspace(-0.1, 0.1, len(ids))
    parts = []
    for condition, mean in levels.items():
        for subject in ("all",) if condition in JOINT else SUBJECTS:
            rows = pd.DataFrame({"condition": condition, "subject": subject, "image_id": list(ids)})
            for metric in METRICS:
                noise = rng.normal(0, 0.01, len(ids))
                rows[metric] = mean + shift + people[subject] + pictures + noise
            parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def _neighbours(rng, ids) -> pd.DataFrame:
    """Ranks of all pictures for each subject's EEG of each picture, the right one often first."""
    rows = []
    for subject in SUBJECTS:
        likeness = rng.normal(size=(len(ids), len(ids))) + 2.0 * np.eye(len(ids))
        order = np.argsort(-likeness, axis=1)
        for i, image_id in enumerate(ids):
            found = {"subject": subject, "image_id": image_id, "rank": np.arange(len(ids)) + 1}
            rows.append(pd.DataFrame(found | {"neighbour": np.array(ids)[order[i]]}))
    return pd.concat(rows, ignore_index=True)


def _write_means(path, scores, names, seed) -> None:
    rows = []
    for (condition, subject), part in scores.groupby(["condition", "subject"]):
        for metric, stored_as in names.items():
            key = dict(study=STUDY, subject=subject, seed=seed, model="sgdm", condition=condition)
            value = float(part[metric].mean())
            rows.append(tables.make_row(metric=stored_as, value=value, n=len(part), **key))
    tables.write_table(path, rows)
