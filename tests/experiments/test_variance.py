"""The split of the variance is right on average, covers, and says what it cannot know; power holds."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from fake_seeds import long_scores
from scipy import stats

from sgdm_utils.experiments import variance
from sgdm_utils.metrics import statistics, tables
from sgdm_utils.metrics.statistics import holm, paired_permutation_test

COMPONENTS = {
    "seed": 0.5, "subject": 1.0, "item": 2.0,
    "seed:subject": 0.3, "seed:item": 0.6, "subject:item": 0.9, "residual": 1.5,
}  # fmt: skip


def simulated(rng, n_seeds=3, n_subjects=4, n_items=20, components=COMPONENTS):
    """A table with normal effects of known variance, shape (n_seeds, n_subjects, n_items)."""
    shape = {"seed": n_seeds, "subject": n_subjects, "item": n_items}
    table = np.full(tuple(shape.values()), 0.4)
    for name, size in components.items():
        parts = list(shape) if name == "residual" else name.split(":")
        axes = [n if factor in parts else 1 for factor, n in shape.items()]
        table = table + rng.normal(0, math.sqrt(size), axes)
    return table


def estimates(table):
    squares = {e: ms for e, (ms, _) in variance.mean_squares(table).items()}
    found = variance.components_of(squares, table.shape)
    names = {e: ":".join(variance.FACTORS[a] for a in e) for e in found}
    return {("residual" if n.count(":") == 2 else n): found[e] for e, n in names.items()}


def test_two_factors_agree_with_the_published_table_of_shrout_and_fleiss():
    """Six targets, four judges (Psychol. Bull. 86, 420, 1979): mean squares and ICC(2,1) = .29."""
    ratings = np.array(
        [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7.0]]
    )
    squares = variance.mean_squares(ratings)
    assert squares[0,] == (pytest.approx(11.24, abs=0.005), 5)
    assert squares[1,] == (pytest.approx(32.49, abs=0.005), 3)
    assert squares[0, 1] == (pytest.approx(1.02, abs=0.005), 15)
    found = variance.components_of({e: ms for e, (ms, _) in squares.items()}, ratings.shape)
    assert found[0,] / sum(found.values()) == pytest.approx(0.29, abs=0.005)


def test_mean_squares_agree_with_least_squares_on_dummy_variables():
    """The sum of squares of an effect is what its dummies explain beyond all smaller effects."""
    table = simulated(np.random.default_rng(0), 3, 4, 5)
    levels = np.indices(table.shape).reshape(3, -1)

    def dummies(effect):
        code = np.ravel_multi_index([levels[a] for a in effect], [table.shape[a] for a in effect])
        return (code[:, None] == np.unique(code)).astype(float)

    def unexplained(effects):
        design = np.hstack([np.ones((table.size, 1)), *map(dummies, effects)])
        fitted = design @ np.linalg.lstsq(design, table.ravel(), rcond=None)[0]
        return ((table.ravel() - fitted) ** 2).sum()

    for effect, (square, df) in variance.mean_squares(table).items():
        lower = [e for size in (1, 2, 3) for e in itertools.combinations(effect, size)]
        lower.remove(effect)
        explained = unexplained(lower) - unexplained([*lower, effect])
        assert square * df == pytest.approx(explained, rel=1e-9)
        assert df == np.prod([table.shape[a] - 1 for a in effect])


def test_components_are_right_on_average():
    rng = np.random.default_rng(1)
    found = pd.DataFrame([estimates(simulated(rng)) for _ in range(1000)])
    error = found.std() / math.sqrt(len(found))
    for name, size in COMPONENTS.items():
        assert abs(found[name].mean() - size) < 4 * error[name], name


def test_without_an_effect_its_estimate_scatters_around_zero_and_is_reported_below_it():
    rng = np.random.default_rng(2)
    none = COMPONENTS | {"seed": 0.0, "seed:subject": 0.0}
    found = [estimates(simulated(rng, components=none))["seed"] for _ in range(300)]
    assert 0.2 < np.mean(np.array(found) < 0) < 0.8
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(300)


def test_intervals_of_mean_squares_cover_also_with_three_seeds():
    rng = np.random.default_rng(3)
    names = ("seed", "item", "residual")
    covered = dict.fromkeys(names, 0)
    for _ in range(150):
        rows = variance.variance_components(
            long_scores(simulated(rng)), "ssim", rng, n_resamples=400
        )
        rows = rows.set_index("component")
        for name in names:
            covered[name] += (
                rows.loc[name, "ci_low"] <= COMPONENTS[name] <= rows.loc[name, "ci_high"]
            )
    assert all(0.9 <= count / 150 <= 1 for count in covered.values()), covered


def test_the_same_generator_gives_the_same_table():
    scores = long_scores(simulated(np.random.default_rng(4)))
    first, again = (
        variance.variance_components(scores, "ssim", np.random.default_rng(5), n_resamples=50)
        for _ in range(2)
    )
    pd.testing.assert_frame_equal(first, again)
    assert first["share"].sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("shape", "unknown", "word"),
    [
        ((1, 4, 20), {"seed", "seed:subject", "seed:item", "subject:item"}, "one seed"),
        ((3, 1, 20), {"subject", "seed:subject", "subject:item", "seed:item"}, "one subject"),
        (
            (1, 1, 20),
            {"seed", "subject", "item", "seed:subject", "seed:item", "subject:item"},
            "one seed and one subject",
        ),
    ],
)
def test_one_level_is_not_a_variance_of_zero(shape, unknown, word):
    rng = np.random.default_rng(6)
    table = simulated(rng, *shape)
    rows = variance.variance_components(long_scores(table), "ssim", rng, n_resamples=50)
    rows = rows.set_index("component")
    assert set(rows.index[rows["variance"].isna()]) == unknown
    assert (rows.loc[sorted(unknown), "note"] == f"cannot be separated: {word}").all()
    assert rows.loc[sorted(unknown), ["ci_low", "ci_high", "share"]].isna().all(axis=None)
    known = rows.drop(index=sorted(unknown))
    assert known["note"].str.contains("holds").all()
    assert math.isnan(
        variance.standard_error_of_mean(rows.reset_index(), seed=3, subject=3, item=9)
    )
    if shape == (1, 1, 20):
        assert rows.loc["residual", "variance"] == pytest.approx(table.var(ddof=1))


def test_standard_error_of_the_mean_is_that_of_drawn_means():
    rng = np.random.default_rng(7)
    means = [simulated(rng, 2, 5, 8).mean() for _ in range(4000)]
    rows = pd.DataFrame({"component": list(COMPONENTS), "variance": list(COMPONENTS.values())})
    expected = variance.standard_error_of_mean(rows, seed=2, subject=5, item=8)
    assert np.std(means) == pytest.approx(expected, rel=0.04)
    with pytest.raises(variance.VarianceError, match="levels of item is needed"):
        variance.standard_error_of_mean(rows, seed=2, subject=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.drop(index=[7]), "1 of 60 cells .* seed 0, subject 1, item 2"),
        (lambda s: s.assign(ssim=s["ssim"].where(s.index != 3)), "seed 0, subject 0, item 3"),
        (lambda s: pd.concat([s, s.iloc[[4]]]), "second score .* seed 0, subject 0, item 4"),
        (lambda s: s.rename(columns={"item": "image_id"}), "no column item"),
        (lambda s: s.iloc[:1], "one single score"),
    ],
)
def test_a_table_with_holes_is_refused(change, message):
    scores = change(long_scores(simulated(np.random.default_rng(8), 3, 4, 5)))
    with pytest.raises(variance.VarianceError, match=message):
        variance.variance_components(scores, "ssim", np.random.default_rng(0), n_resamples=5)


# -- tables of several seeds


def row(seed, value, subject="sub-01", **cells):
    cells = {"study": "demo", "model": "sgdm", "condition": "eeg", "metric": "ssim", "n": 4} | cells
    return tables.make_row(seed=seed, subject=subject, value=value, **cells)


def test_a_seed_replaces_its_own_rows_only_and_the_order_of_runs_does_not_matter(tmp_path):
    first, second = [row(0, 0.1), row(0, 0.2, "all")], [row(1, 0.3), row(1, 0.4, "all")]
    everybody = [row(None, 7.0, metric="wall_s")]
    for name, order in (("a", (first, second)), ("b", (second, first))):
        for rows in order:
            tables.merge_seeds(tmp_path / f"{name}.csv", rows + everybody)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    tables.merge_seeds(tmp_path / "a.csv", [row(0, 0.9)])
    table = tables.read_table(tmp_path / "a.csv")
    assert table["seed"].fillna(-1).tolist() == [-1, 0, 1, 1]
    assert table["value"].tolist() == [7.0, 0.9, 0.3, 0.4]
    assert list(tmp_path.glob(".*part*")) == []  # the lock stays beside its table


def test_per_seed_tables_become_one(tmp_path):
    for seed in (2, 0, 1):
        tables.write_table(tmp_path / f"{seed}.csv", [row(seed, seed / 10)])
    tables.write_table(tmp_path / "other.csv", [row(0, 0.5, study="smoke")])
    sources = [tmp_path / f"{name}.csv" for name in (2, 0, 1, "other")]
    tables.merge_seeds(tmp_path / "all.csv", *sources)
    table = tables.read_table(tmp_path / "all.csv")
    assert table[["study", "seed"]].to_records(index=False).tolist() == [
        ("demo", 0), ("demo", 1), ("demo", 2), ("smoke", 0),
    ]  # fmt: skip


def test_a_bad_row_leaves_the_table_as_it_was(tmp_path):
    path = tables.merge_seeds(tmp_path / "t.csv", [row(0, 0.1)])
    before = path.read_bytes()
    with pytest.raises(tables.TableError, match="a second row"):
        tables.merge_seeds(path, [row(1, 0.1), row(1, 0.2)])
    with pytest.raises(tables.TableError, match="expected study, subject"):
        tables.merge_seeds(path, [{"study": "demo"}])
    with pytest.raises(tables.TableError, match="nothing to merge"):
        tables.merge_seeds(path)
    assert path.read_bytes() == before
    path.write_text("broken\n")
    with pytest.raises(tables.TableError, match="the header is"):
        tables.merge_seeds(path, [row(1, 0.1)])
    assert path.read_text() == "broken\n"


def test_the_rows_of_one_seed_keep_those_that_depend_on_none():
    rows = pd.DataFrame({"seed": [None, 0, 1, 0, 2], "value": [1.0, 2.0, 3.0, 4.0, 5.0]})
    assert tables.of_seed(rows, 0)["value"].tolist() == [1.0, 2.0, 4.0]
    assert tables.of_seed(rows, 7)["value"].tolist() == [1.0]


def test_what_a_run_publishes_leaves_other_seeds_in_any_form_of_table(tmp_path):
    long = tables.publish_table(tmp_path / "long.csv", [row(1, 0.3)])
    tables.publish_table(long, [row(0, 0.1)])
    assert tables.read_table(long)["value"].tolist() == [0.1, 0.3]
    other = pd.DataFrame({"comparison": ["a > b"], "p": [1 / 3], "study": "demo", "seed": 1})
    path = tables.publish_table(tmp_path / "other.csv", other)
    tables.publish_table(path, other.assign(seed=0, p=0.5))
    lines = ["comparison,p,study,seed", "a > b,0.5,demo,0", "a > b,0.333333,demo,1"]
    assert path.read_text() == "\n".join(lines) + "\n"
    with pytest.raises(tables.TableError, match="another version"):
        tables.publish_table(path, other.drop(columns="p"))
    assert path.read_text().splitlines() == lines


def test_other_tables_with_study_and_seed_are_merged_as_frames():
    old = pd.DataFrame({"comparison": ["a > b"] * 2, "study": "demo", "seed": [0, 1], "p": [1, 2]})
    new = pd.DataFrame({"comparison": ["a > b"], "study": ["demo"], "seed": [0], "p": [3]})
    assert tables.replace_seeds(old, new)["p"].tolist() == [3, 2]
    assert tables.replace_seeds(None, new)["p"].tolist() == [3]
    with pytest.raises(tables.TableError, match="another version"):
        tables.replace_seeds(old.drop(columns="p"), new)
    with pytest.raises(tables.TableError, match=r"without \['seed'\]"):
        tables.replace_seeds(old, new.drop(columns="seed"))


# -- power


def test_power_of_the_t_test_agrees_with_published_values():
    """Cohen's example d = .5: 34 pairs give .80 two-sided at .05, 27 one-sided (G*Power: 34, 27)."""
    assert statistics.power_of_difference(0.5, 1, 34) == pytest.approx(0.8078, abs=0.0005)
    assert statistics.power_of_difference(0.5, 1, 33) < 0.8
    assert statistics.power_of_difference(0.5, 1, 27, alternative="greater") > 0.8
    assert statistics.power_of_difference(0.5, 1, 26, alternative="greater") < 0.8
    assert statistics.power_of_difference(0, 1, 20) == pytest.approx(0.05)


@pytest.mark.parametrize("family", [1, 4])
def test_the_studys_own_test_finds_the_smallest_difference_as_often_as_said(family):
    rng = np.random.default_rng(9)
    n, sd, found, n_studies = 25, 0.3, 0, 500
    smallest = statistics.smallest_difference(sd, n, family=family)
    for _ in range(n_studies):
        a = rng.normal(smallest, sd, n)
        p = paired_permutation_test(a, np.zeros(n), rng, 1999, "two-sided").p_value
        # the first step of Holm: the other comparisons of the family show nothing
        found += holm([p, *[1.0] * (family - 1)])[0] < 0.05
    assert abs(found / n_studies - 0.8) < 4 * math.sqrt(0.16 / n_studies)


def test_smallest_difference_scales_and_shrinks_as_it_must():
    small = statistics.smallest_difference(1.0, 40)
    assert statistics.smallest_difference(2.5, 40) == pytest.approx(2.5 * small)
    # of many items it is the normal formula
    normal = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) / math.sqrt(5000)
    assert statistics.smallest_difference(1.0, 5000) == pytest.approx(normal, rel=0.001)
    assert statistics.smallest_difference(1.0, 40, family=10) > small
    assert statistics.smallest_difference(1.0, 40, power=0.95) > small
    assert statistics.smallest_difference(1.0, 40, alternative="greater") < small
    again = statistics.power_of_difference(small, 1.0, 40)
    assert again == pytest.approx(0.8, abs=1e-6)
    assert statistics.power_of_difference(1e3, 1.0, 40) == 1


def test_few_items_cannot_show_anything_whatever_the_difference():
    rng = np.random.default_rng(0)
    p = paired_permutation_test([9.0] * 5, [0.0] * 5, rng, alternative="two-sided").p_value
    assert statistics.smallest_p_value(5) == p == 2 / 32
    assert statistics.smallest_p_value(5, "greater") == 1 / 32
    assert statistics.smallest_p_value(100, n_draws=999) == 1 / 1000
    assert statistics.smallest_difference(1.0, 5) == math.inf
    assert statistics.power_of_difference(100, 1.0, 5) == 0
    assert "cannot show any difference" in statistics.power_statement(np.arange(5.0), "ssim")


def test_the_statement_holds_the_numbers():
    differences = np.random.default_rng(1).normal(0.02, 0.1, 40)
    text = statistics.power_statement(differences, "ssim", family=10)
    sd = differences.std(ddof=1)
    assert f"{statistics.smallest_difference(sd, 40, family=10):.2g} or more" in text
    assert "40 items" in text and f"{sd:.2g}" in text and "10 comparisons" in text
    shifted = statistics.power_statement(differences + 5, "ssim", family=10)
    assert shifted == text, "the mean does not enter"
    assert "same amount" in statistics.power_statement(np.ones(9), "ssim")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sd": 0.0, "n": 9}, "standard deviation .* is 0.0"),
        ({"sd": math.nan, "n": 9}, "standard deviation .* is nan"),
        ({"sd": 1.0, "n": 1}, "n >= 2"),
        ({"sd": 1.0, "n": 9, "family": 0}, "family = 0"),
        ({"sd": 1.0, "n": 9, "power": 0.01}, "power is 0.01"),
        ({"sd": 1.0, "n": 9, "alternative": "less"}, "alternative 'less'"),
    ],
)
def test_power_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        statistics.smallest_difference(**arguments)


def test_power_refuses_differences_that_are_none():
    with pytest.raises(ValueError, match="ssim: expected at least 2 finite"):
        statistics.power_statement([0.1, np.nan], "ssim")
    with pytest.raises(ValueError, match="difference is -1"):
        statistics.power_of_difference(-1, 1.0, 9)
