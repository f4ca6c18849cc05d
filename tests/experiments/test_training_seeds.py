"""Seeds side by side: read whole or refused by name, split and compared as the numbers say."""

from __future__ import annotations

import math
import warnings

import fake_seeds
import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
from fake_seeds import IDS, LEVELS, STUDY, SUBJECTS, long_scores, write_seed

from sgdm_utils.experiments import training_seeds
from sgdm_utils.experiments.training_seeds import SeedsDifferError, SeedsMissingError
from sgdm_utils.experiments.variance import standard_error_of_mean, variance_components
from sgdm_utils.metrics import tables
from sgdm_utils.metrics.structure import iou
from sgdm_utils.workflow import artifacts, config, paths

SHIFTS = (-0.03, 0.0, 0.03)  # what the seeds do in the fixture


@pytest.fixture
def study(tmp_study, monkeypatch):
    """An empty study; flushing to the disk is left out, it takes most of the time."""
    monkeypatch.setattr("sgdm_utils.workflow.atomic._fsync", lambda path: None)
    fake_seeds.write_data()
    return tmp_study


@pytest.fixture
def three(study):
    """Seeds 0, 1 and 2, which differ by `SHIFTS` and by noise."""
    for seed, shift in enumerate(SHIFTS):
        write_seed(seed, shift=shift)
    return study


# --- reading


def test_all_seeds_are_read_into_one_table(three):
    runs = training_seeds.read_seeds(STUDY, (0, 1, 2))
    n_sets = sum(1 if c in fake_seeds.JOINT else len(SUBJECTS) for c in LEVELS)
    assert len(runs.scores) == 3 * n_sets * len(IDS)
    assert not runs.scores.duplicated(training_seeds.KEYS).any()
    assert [a.identity["seed"] for a in runs.artifacts] == [None, *[0] * 4, *[1] * 4, *[2] * 4]
    stored = pd.read_parquet(fake_seeds.read("reconstructions", 1) / "scores.parquet")
    here = runs.scores.query("seed == 1 and condition == 'eeg'").set_index(["subject", "image_id"])
    stored = stored.query("condition == 'eeg'").set_index(["subject", "image_id"])
    assert (here.loc[stored.index, "ssim"] == stored["ssim"]).all()
    with_eeg = runs.scores["condition"].isin(["eeg", "shuffled_eeg"])
    for name in ("top1", "top5", "map_iou"):
        assert (runs.scores[name].notna() == with_eeg).all()
    assert runs.metrics == fake_seeds.METRICS and runs.two_way == "two_way_clip_tiny"


def test_hits_are_those_of_a_literal_look_up():
    rows = []
    for query, order in {"a": "acbd", "b": "acbd", "c": "dbca", "d": "dabc"}.items():
        for rank, neighbour in enumerate(order, start=1):
            rows.append(("sub-01", query, neighbour, rank))
    neighbours = pd.DataFrame(rows, columns=["subject", "image_id", "neighbour", "rank"])
    hits = training_seeds.retrieval_hits(neighbours, ["a", "b", "c", "d"])
    hits = hits.set_index(["condition", "image_id"])["top1"]
    assert hits["eeg"].to_dict() == {"a": 1.0, "b": 0.0, "c": 0.0, "d": 1.0}
    # half the gallery further: picture a is asked with the EEG of c, b with d, c with a, d with b
    assert hits["shuffled_eeg"].to_dict() == {"a": 0.0, "b": 0.0, "c": 0.0, "d": 0.0}
    last = training_seeds.retrieval_hits(neighbours, ["d", "a", "c", "b"]).set_index(
        ["condition", "image_id"]
    )["top1"]  # now d is asked with c, whose first neighbour d is, and a with b, which says a
    assert last["shuffled_eeg"].to_dict() == {"d": 1.0, "a": 1.0, "c": 0.0, "b": 0.0}


def test_overlap_of_the_maps_is_that_of_each_picture_with_its_own_silhouette(three):
    data, structure = fake_seeds.read("data"), fake_seeds.read("structure", 2)
    found = training_seeds.map_overlap(structure, data, IDS).set_index(
        ["condition", "subject", "image_id"]
    )["map_iou"]
    maps = np.load(structure / "maps_test.npy")[:, 0] >= 0.5
    silhouettes = dict(zip(IDS[::-1], np.load(data / "silhouettes.npy"), strict=True))
    for s, i in ((0, 0), (1, 5), (2, 11)):
        mask = maps[s * len(IDS) + i]
        own = iou(mask[None], silhouettes[IDS[i]][None] > 0)[0]
        assert found["eeg", SUBJECTS[s], IDS[i]] == own
        other = IDS[(i - len(IDS) // 2) % len(IDS)]
        false = iou(mask[None], silhouettes[other][None] > 0)[0]
        assert found["shuffled_eeg", SUBJECTS[s], other] == false


def test_seeds_are_those_of_the_configuration_or_those_given(study):
    declared = config.load_study(STUDY)
    assert declared.seeds == (0,) and declared.extra_seeds == (1, 2)
    assert training_seeds.wanted_seeds(STUDY) == (0,), "an extra seed that nobody asked for"
    write_seed(2)
    assert training_seeds.wanted_seeds(STUDY) == (0, 2)
    assert training_seeds.wanted_seeds("no configuration is needed", [2, 0]) == (0, 2)
    for wrong in ([1, 1], [0, -1]):
        with pytest.raises(ValueError, match="give each seed once, none negative"):
            training_seeds.wanted_seeds(STUDY, wrong)


# --- what is missing or does not fit


def test_missing_seeds_are_named_with_the_commands_that_make_them(study):
    write_seed(0)
    write_seed(1, skip=("pipeline",))
    with pytest.raises(SeedsMissingError) as caught:
        training_seeds.read_seeds(STUDY, (0, 1, 7))
    said = str(caught.value)
    assert "of the seeds 0, 1, 7, there are no complete results of 1, 7" in said
    commands = [line.strip() for line in said.splitlines() if "sgdm_utils run" in line]
    run = "python -m sgdm_utils run"
    assert commands[:2] == [
        f"{run} 05b_pipeline --study demo --seed 1",
        f"{run} 06_evaluation --study demo --seed 1",
    ]
    assert [c.split()[4] for c in commands[2:]] == [
        "02_encoder_pretraining", "02b_clip", "03_contrastive_alignment", "04_structure_decoding",
        "04b_forward_model", "05_diffusion_training", "05b_pipeline", "06_evaluation",
    ]  # fmt: skip
    assert all(c.endswith("--seed 7") for c in commands[2:])
    assert "make seeds STUDY=demo" in said and "seeds: [0] in the section" in said
    # the commands refuse seeds that the study does not declare, so that comes first
    assert "add 7 to extra_seeds in config/demo.yaml" in said
    with pytest.raises(config.ConfigError, match="--seed 7 is not part of study"):
        config.step(config.load_study(STUDY), "06_evaluation", seed=7)


def test_no_seed_at_all_and_no_configuration(study):
    with pytest.raises(SeedsMissingError, match="no complete results of 3") as caught:
        training_seeds.read_seeds("elsewhere", (3,))
    assert "To go on without" not in str(caught.value) and "instead of" not in str(caught.value)


def test_a_copy_under_another_seed_is_noticed(study):
    for seed in (0, 1, 2):
        write_seed(seed, draw=min(seed, 1))
    with pytest.raises(SeedsDifferError, match="seeds 1 and 2 have the same scores"):
        training_seeds.read_seeds(STUDY, (0, 1, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": IDS[:8]}, "seeds 0 and 1 differ by image_id: test-008, test-009"),
        ({"levels": LEVELS | {"class_only": 0.3}}, "differ by condition: class_only in one"),
    ],
)
def test_seeds_with_other_pictures_or_conditions_are_refused(study, changes, message):
    write_seed(0)
    write_seed(1, **changes)
    with pytest.raises(SeedsDifferError, match=message):
        training_seeds.read_seeds(STUDY, (0, 1))


def test_seeds_with_other_metrics_are_refused(study, monkeypatch):
    write_seed(0)
    monkeypatch.setattr(fake_seeds, "METRICS", (*fake_seeds.METRICS[:4], "lpips_alex"))
    write_seed(1)
    with pytest.raises(SeedsDifferError, match="different metrics: lpips_alex, silhouette_iou"):
        training_seeds.read_seeds(STUDY, (0, 1))


def test_seeds_that_were_run_with_other_settings_are_refused(study):
    write_seed(0)
    write_seed(1, settings={"num_inference_steps": 5})
    with pytest.raises(artifacts.ParameterConflictError, match="num_inference_steps"):
        training_seeds.read_seeds(STUDY, (0, 1))


# --- comparisons and movements


def simulated(effects: dict[int, float], noise: float = 0.05, n: int = 20) -> pd.DataFrame:
    """Scores in which EEG is above its control by another amount with each seed."""
    rng = np.random.default_rng(4)
    rows = []
    for seed, effect in effects.items():
        for subject in SUBJECTS:
            for condition, mean in (("eeg", effect), ("shuffled_eeg", 0.0)):
                values = mean + rng.normal(0, noise, n)
                cells = {"seed": seed, "condition": condition, "subject": subject}
                rows.append(pd.DataFrame(cells | {"image_id": range(n), "ssim": values}))
    return pd.concat(rows, ignore_index=True)


def test_it_counts_on_how_many_seeds_a_comparison_is_shown():
    scores = simulated({0: 0.2, 1: 0.2, 2: 0.0})
    rng = np.random.default_rng(0)
    found = training_seeds.compare_by_seed(
        scores, [("eeg > shuffled_eeg", "ssim"), ("shuffled_eeg > eeg", "ssim")], rng, 2000, 500
    )
    forward = found[found["comparison"] == "eeg > shuffled_eeg"].set_index("seed")
    assert forward["shown"].to_dict() == {0: True, 1: True, 2: False, "mean of seeds": True}
    backward = found[found["comparison"] == "shuffled_eeg > eeg"]
    assert not backward["shown"].any()
    assert (found["p_holm"] >= found["p_value"]).all()
    # Holm within a seed: the smaller of two p-values counts twice
    assert forward.loc[0, "p_holm"] == pytest.approx(2 * forward.loc[0, "p_value"])
    for seed, row in forward.iterrows():
        part = scores if seed == "mean of seeds" else scores[scores["seed"] == seed]
        means = part.groupby("condition")["ssim"].mean()
        assert row["difference"] == pytest.approx(means["eeg"] - means["shuffled_eeg"])
        assert row["ci_low"] < row["difference"] < row["ci_high"] and row["n"] == 20


def test_one_seed_has_no_row_of_the_mean():
    family = [("eeg > shuffled_eeg", "ssim")]
    found = training_seeds.compare_by_seed(
        simulated({5: 0.1}), family, np.random.default_rng(0), 500, 200
    )
    assert found["seed"].tolist() == [5]


def test_the_family_is_the_one_that_notebook_06_builds():
    """Literally, from the source of its cell: it must not come to mean something else there."""
    book = nbformat.read(paths.notebook_path("06_evaluation"), as_version=4)
    (cell,) = [c.source for c in book.cells if c.source.startswith("by_item = scores.groupby")]
    lines = [line for line in cell.splitlines() if line.startswith("family")]
    default = {k: p.default for k, p in config.notebook_parameters("06_evaluation").items()}
    for names in (fake_seeds.METRICS, fake_seeds.METRICS[:3] + fake_seeds.METRICS[4:]):
        space = default | {"two_way": fake_seeds.METRICS[2], "metric_names": list(names)}
        exec("\n".join(lines), space)
        found = training_seeds.declared_family(default, fake_seeds.METRICS[2], names)
        assert found == space["family"] and len(found) > 8


def test_what_a_factor_moves_is_the_spread_of_its_level_means():
    table = np.zeros((3, 2, 4)) + np.array([0.0, 3.0, 6.0])[:, None, None]
    table = table + np.array([0.0, 2.0])[:, None] + np.array([0.0, 1.0, 2.0, 3.0])
    scores = long_scores(table)
    moved, low, high = training_seeds.moved_by(scores, "ssim", "seed", levels=1)
    assert moved == pytest.approx(3.0)
    # two degrees of freedom: chi-square quantiles 0.0506 and 7.378
    assert low == pytest.approx(3.0 * math.sqrt(2 / 7.378), rel=1e-3)
    assert high == pytest.approx(3.0 * math.sqrt(2 / 0.05064), rel=1e-3)
    assert training_seeds.moved_by(scores, "ssim", "seed")[0] == pytest.approx(3 / math.sqrt(3))
    assert training_seeds.moved_by(scores, "ssim", "subject")[0] == pytest.approx(1.0)
    item = np.std([0, 1, 2, 3], ddof=1) / 2
    assert training_seeds.moved_by(scores, "ssim", "item")[0] == pytest.approx(item)
    one = scores[scores["seed"] == 1]
    assert all(math.isnan(x) for x in training_seeds.moved_by(one, "ssim", "seed"))


def test_movements_and_components_agree_where_nothing_interacts():
    """For effects that add up, one seed moves the mean by the root of the seed's component."""
    rng = np.random.default_rng(3)
    table = (
        rng.normal(0, 0.3, (40, 1, 1)) + rng.normal(0, 1, (1, 5, 1)) + rng.normal(0, 1, (1, 1, 30))
    )
    scores = long_scores(table)
    rows = variance_components(scores, "ssim", rng, n_resamples=100)
    moved = training_seeds.moved_by(scores, "ssim", "seed", levels=1)[0]
    assert moved**2 == pytest.approx(rows.set_index("component").loc["seed", "variance"])
    total = standard_error_of_mean(rows, seed=1, subject=5, item=30)
    parts = [training_seeds.moved_by(scores, "ssim", f)[0] for f in ("subject", "item")]
    assert total**2 == pytest.approx(moved**2 + sum(p**2 for p in parts))


# --- the notebook


@pytest.fixture
def run(monkeypatch, capsys):
    """Execute the cells of notebook 20 with other parameters; what it printed, and its variables."""
    matplotlib.use("Agg")

    def execute(**parameters):
        book = nbformat.read(paths.notebook_path("experiments/20_seeds"), as_version=4)
        space = {"__name__": "notebook"}
        fewer = {"n_resamples": 300, "n_permutations": 500}
        for number, cell in enumerate(c for c in book.cells if c.cell_type == "code"):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
                exec(cell.source, space)
            if number == 0:
                space |= fewer | parameters
        matplotlib.pyplot.close("all")
        return capsys.readouterr().out, space

    return execute


def test_the_notebook_on_three_seeds(three, run):
    said, space = run(seeds=[0, 1, 2])
    rows = tables.read_table(paths.report_dir(STUDY) / "tables" / "seeds.csv")
    assert "ONE SEED" not in said and "cannot be separated" not in said
    pixcorr = rows[rows["metric"] == "pixcorr"].set_index(["seed", "condition"])["value"]
    for seed, shift in enumerate(SHIFTS):
        assert pixcorr[seed, "eeg"] == pytest.approx(LEVELS["eeg"] + shift, abs=0.005)
    own = rows[rows["seed"].isna()].set_index("metric")
    # three seeds at -0.03, 0 and 0.03 have a standard deviation of 0.03
    assert own.loc["pixcorr, moved by another seed", "value"] == pytest.approx(0.03, abs=0.004)
    assert own.loc["pixcorr, variance of seed", "value"] == pytest.approx(0.0009, abs=0.00025)
    people = own.loc["pixcorr, moved by another subject", "value"]  # -0.05, 0, 0.05 of three
    assert people == pytest.approx(0.05 / math.sqrt(3), abs=0.004)
    verdict = next(line for line in said.splitlines() if line.startswith("PixCorr 0.5"))
    assert "another training 0.0" in verdict and "Most by" in verdict
    ratio = own.loc["pixcorr, moved by another seed", "value"] / 0.3  # EEG is 0.3 above shuffled
    assert abs(float(verdict.split("moves is ")[1].split(" %")[0]) - 100 * ratio) < 1.5
    assert f"shown with every seed (of 3): {len(space['runs'].family)} of" in said
    one, three_seeds = (own.loc[f"pixcorr, standard error, seeds: {k}", "value"] for k in (1, 3))
    assert three_seeds < one
    written = artifacts.read_artifact(STUDY, "joint", "20_seeds", 0)
    assert len(written.identity["inputs"]) == 13
    assert written.notes["shown_on_every_seed"] == len(space["runs"].family)


def test_a_comparison_that_one_seed_does_not_show_is_named(study, run):
    for seed, structure in enumerate((0.35, 0.35, 0.55)):
        write_seed(seed, levels=LEVELS | {"no_structure": structure})
    said, _ = run(seeds=[0, 1, 2])
    assert "eeg > no_structure on silhouette_iou: on 2 of 3" in said
    assert "eeg > no_structure on ssim: on 2 of 3" in said


def test_the_notebook_on_one_seed_says_what_it_cannot_know(study, run):
    write_seed(0)
    said, _ = run(seeds=[0])
    assert "ONE SEED: what another training would give cannot be known" in said
    assert "seed, seed:subject, seed:item, subject:item: cannot be separated: one seed" in said
    assert "another training unknown, there is only one" in said
    assert "seed can be separated: False" in said
    rows = tables.read_table(paths.report_dir(STUDY) / "tables" / "seeds.csv")
    empty = rows.loc[rows["value"].isna(), "metric"]
    assert "pixcorr, variance of seed (cannot be separated: one seed)" in set(empty)
    assert "pixcorr, moved by another seed (cannot be separated)" in set(empty)
    assert "pixcorr, standard error, seeds: 3 (cannot be separated)" in set(empty)


def test_the_notebook_stops_at_a_missing_seed_and_writes_nothing(study, run):
    write_seed(0)
    with pytest.raises(SeedsMissingError, match="06_evaluation --study demo --seed 2"):
        run(seeds=[0, 1, 2])
    assert not paths.report_dir(STUDY).exists()
    with pytest.raises(ValueError, match=r"shown_metrics: no \['psnr'\]; there is two_way and"):
        run(seeds=[0], shown_metrics=["psnr"])
