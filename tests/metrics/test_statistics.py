"""Intervals cover as often as they say; tests are quiet without an effect and loud with one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from sgdm_utils.metrics.retrieval import (
    cosine_similarity,
    identification_matrix,
    rank_matrix,
    retrieval_ranks,
)
from sgdm_utils.metrics.statistics import (
    bootstrap_interval,
    holm,
    label_permutation_null,
    nested_mean,
    paired_permutation_test,
)


def test_bootstrap_interval_covers_the_mean():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        low, high = bootstrap_interval(rng.normal(0.3, 1, 40), rng, n_resamples=500)
        covered += low <= 0.3 <= high
    assert 0.90 <= covered / 400 <= 0.98


def test_nested_interval_covers_where_the_flat_one_does_not():
    rng = np.random.default_rng(1)
    subjects = np.repeat(np.arange(12), 15)
    nested = flat = 0
    for _ in range(250):
        values = rng.normal(0, 1, 12)[subjects] + rng.normal(0, 1, len(subjects))
        low, high = bootstrap_interval(values, rng, n_resamples=500, groups=subjects)
        nested += low <= 0 <= high
        low, high = bootstrap_interval(values, rng, n_resamples=500)
        flat += low <= 0 <= high
    assert 0.88 <= nested / 250 <= 0.98
    assert flat / 250 < 0.75


def test_bootstrap_interval_of_a_large_sample_is_the_normal_one():
    values = np.random.default_rng(2).normal(size=1_000)
    low, high = bootstrap_interval(values, np.random.default_rng(0), level=0.9)
    half = stats.norm.ppf(0.95) * values.std() / np.sqrt(1_000)
    assert low == pytest.approx(values.mean() - half, abs=0.004)
    assert high == pytest.approx(values.mean() + half, abs=0.004)


def test_bootstrap_interval_repeats_with_its_seed_and_counts_subjects_alike():
    values = np.random.default_rng(3).random(30)
    groups = ["sub-01"] * 20 + ["sub-02"] * 10
    first, again, other = (
        bootstrap_interval(values, np.random.default_rng(seed), groups=groups) for seed in (5, 5, 6)
    )
    assert first == again != other
    mean = nested_mean(values, groups)
    assert mean == pytest.approx((values[:20].mean() + values[20:].mean()) / 2)
    assert first[0] < mean < first[1]
    one_group = bootstrap_interval(values, np.random.default_rng(5), groups=["sub-01"] * 30)
    assert one_group == bootstrap_interval(values, np.random.default_rng(5))
    assert bootstrap_interval(np.ones(9), np.random.default_rng(5)) == (1, 1)


@pytest.mark.parametrize(
    ("values", "groups", "message"),
    [
        ([0.1, np.nan, 0.2], None, r"items \[1\]"),
        ([0.1], None, "at least 2 items"),
        ([0.1, 0.2, 0.3], ["a", "a", "b"], "in every group"),
        ([0.1, 0.2, 0.3], ["a", "b"], "groups has shape"),
        ([], None, "one value per item"),
        ([[0.1, 0.2]], None, "one value per item"),
    ],
)
def test_bootstrap_interval_refuses(values, groups, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, np.random.default_rng(0), groups=groups)


def test_paired_test_is_uniform_under_the_null_and_powerful_under_an_effect():
    rng = np.random.default_rng(0)
    null, effect = [], []
    for _ in range(300):
        a, b = rng.normal(size=(2, 30))
        null.append(paired_permutation_test(a, b, rng, 499).p_value)
        effect.append(paired_permutation_test(a + 1, b, rng, 499).p_value)
    assert stats.kstest(null, "uniform").pvalue > 0.01
    assert np.mean(np.array(null) < 0.05) < 0.09
    assert np.mean(np.array(effect) < 0.05) > 0.95


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_paired_test_is_exact_for_few_items_and_near_it_when_drawn(alternative):
    rng = np.random.default_rng(4)
    a, b = rng.random((2, 9)) + np.array([[0.15], [0]])
    means = np.array([np.mean(np.array(s) * (a - b)) for s in product([1, -1], repeat=9)])
    sign = {"greater": 1, "less": -1}.get(alternative)
    extreme = np.abs(means) if sign is None else sign * means
    expected = np.mean(extreme >= extreme[0] - 1e-12)
    exact = paired_permutation_test(a, b, rng, alternative=alternative)
    assert exact.exact and exact.p_value == expected
    assert exact.statistic == pytest.approx((a - b).mean())
    drawn = paired_permutation_test(np.tile(a, 2), np.tile(b, 2), rng, 20_000, alternative)
    library = stats.permutation_test(
        (np.tile(a, 2), np.tile(b, 2)),
        lambda x, y, axis: (x - y).mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        alternative=alternative,
        rng=rng,
    )
    assert not drawn.exact and len(drawn.null) == 20_000
    assert drawn.p_value == pytest.approx(library.pvalue, abs=0.02)


def test_paired_test_p_is_never_zero_and_one_without_differences():
    rng = np.random.default_rng(0)
    a = np.arange(100.0)
    assert paired_permutation_test(a + 1, a, rng, 999).p_value == 1 / 1_000
    assert paired_permutation_test(a, a, rng, 999).p_value == 1
    with pytest.raises(ValueError, match="paired"):
        paired_permutation_test(a, a[:-1], rng)
    with pytest.raises(ValueError, match="alternative 'up'"):
        paired_permutation_test(a, a, rng, alternative="up")
    with pytest.raises(ValueError, match=r"b: NaN .* \[0\]"):
        paired_permutation_test(a[:2], [np.nan, 1], rng)


def test_label_permutation_null_is_uniform_without_and_small_with_information():
    rng = np.random.default_rng(0)
    p_null = []
    for _ in range(200):
        queries, gallery = rng.standard_normal((2, 40, 8))
        matrix = identification_matrix(gallery, queries)
        p_null.append(label_permutation_null(matrix, rng, 299).p_value)
    assert stats.kstest(p_null, "uniform").pvalue > 0.01
    similarity = cosine_similarity(gallery + rng.standard_normal((40, 8)), gallery)
    informed = label_permutation_null(rank_matrix(similarity) <= 1, rng, 999)
    assert informed.p_value == 1 / 1_000
    assert informed.statistic == (retrieval_ranks(similarity) <= 1).mean()
    assert informed.null.mean() == pytest.approx(1 / 40, abs=0.005)


def test_label_permutation_null_keeps_repeated_queries_together():
    """With 10 copies of each query the null is as wide as with one: copies add no evidence."""
    rng = np.random.default_rng(1)
    scores = rank_matrix(rng.standard_normal((20, 20))) <= 5
    single = label_permutation_null(scores, rng, 4_000)
    targets = np.repeat(np.arange(20), 10)
    copies = label_permutation_null(scores[targets], rng, 4_000, targets)
    assert copies.statistic == pytest.approx(single.statistic)
    assert copies.null.std() == pytest.approx(single.null.std(), rel=0.1)
    assert copies.p_value == pytest.approx(single.p_value, abs=0.05)
    with pytest.raises(ValueError, match="give targets"):
        label_permutation_null(scores[:3], rng)
    with pytest.raises(ValueError, match="targets has shape"):
        label_permutation_null(scores, rng, targets=targets)


def test_holm_by_hand():
    # sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04, made non-decreasing
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])
    np.testing.assert_allclose(holm([0.02]), [0.02])
    for bad in ([0.0, 0.1], [0.1, 1.1]):
        with pytest.raises(ValueError, match=r"\(0, 1\]"):
            holm(bad)
    with pytest.raises(ValueError, match="NaN"):
        holm([0.1, np.nan])
