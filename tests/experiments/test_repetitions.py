"""Ceilings agree with closed forms of known signal and noise; curves rise, cover and fall to chance."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sgdm_utils.experiments import repetitions
from sgdm_utils.signals import quality
from sgdm_utils.simulation import truth

N_CHANNELS, N_TIMES = 6, 10


def recording(rng, n_items=12, n_repetitions=20, signal=0.5):
    """White noise around one answer per item: (eeg, groups, answers); trials in random order."""
    answers = signal * rng.standard_normal((n_items, N_CHANNELS, N_TIMES))
    item = rng.permutation(np.repeat(np.arange(n_items), n_repetitions))
    eeg = answers[item] + rng.standard_normal((len(item), N_CHANNELS, N_TIMES))
    groups = [np.flatnonzero(item == i) for i in range(n_items)]
    return eeg.astype(np.float32), groups, answers


def test_curve_of_the_ideal_decoder_has_the_accuracy_of_the_closed_form():
    """Two pictures: right when noise of variance 1/k does not exceed half their distance."""
    rng = np.random.default_rng(0)
    counts, hit = [1, 4, 16], []
    for _ in range(150):
        eeg, groups, answers = recording(rng, 2, 16, signal=0.15)
        answers *= 1.6 / np.linalg.norm(answers[0] - answers[1])
        item = np.concatenate([np.full(16, i) for i in range(2)])
        eeg = answers[item] + rng.standard_normal((32, N_CHANNELS, N_TIMES))
        groups = [np.arange(16), np.arange(16, 32)]
        ranks = repetitions.repetition_curve(
            eeg, groups, lambda a, t=answers: truth.template_retrieval(a, t), counts, rng, 8
        )
        hit.append(repetitions.hits(ranks, 1).mean(axis=(1, 2)))
    found, error = np.mean(hit, 0), np.std(hit, 0) / math.sqrt(len(hit))
    # the difference of two averages has noise variance 2 / k along the line between the answers
    expected = stats.norm.cdf(1.6 * np.sqrt(np.array(counts) / 2))
    assert (np.abs(found - expected) < 4 * error + 0.005).all(), (found, expected)


def test_more_repetitions_help_and_without_signal_everything_is_at_chance():
    rng = np.random.default_rng(1)
    counts = [1, 2, 4, 10, 19]
    for signal in (0.25, 0.0):
        eeg, groups, answers = recording(rng, signal=signal)
        known = answers if signal else rng.standard_normal(answers.shape)
        curves = [
            repetitions.repetition_curve(
                eeg, groups, lambda a, t=known: truth.template_retrieval(a, t), counts, rng
            ),
            repetitions.template_curve(eeg, groups, counts[:4], rng),
        ]
        top1 = [repetitions.hits(ranks, 1).mean(axis=(1, 2)) for ranks in curves]
        if signal:
            assert all((np.diff(c) >= 0).all() and c[3] - c[0] > 0.2 for c in top1), top1
            assert (top1[0][:4] >= top1[1][:4] - 0.02).all(), (
                "noisy templates cannot beat true ones"
            )
        else:
            assert (
                all(c.max() < 0.3 for c in top1)
                and abs(np.mean(np.concatenate(top1)) - 1 / 12) < 0.06
            )
        assert [ranks.shape for ranks in curves] == [(5, 20, 12, 12), (4, 20, 12, 12)]


def test_the_ceiling_of_a_decoder_ignores_errors_that_it_makes_every_time():
    """A decoder that answers with another picture's place is useless, yet not because of noise."""
    rng = np.random.default_rng(9)
    eeg, groups, answers = recording(rng, signal=0.4)
    wrong = np.roll(np.eye(12), 1, axis=1)

    def decode(averages):
        flat = averages.reshape(12, -1) - averages.reshape(12, -1).mean(0)
        return (flat @ answers.reshape(12, -1).T) @ wrong

    actual = repetitions.repetition_curve(eeg, groups, decode, [8], rng)
    assert repetitions.hits(actual, 1).mean() < 0.1

    def compare(queries, templates):
        return -((decode(queries)[:, None] - decode(templates)[None]) ** 2).sum(-1)

    possible = repetitions.template_curve(eeg, groups, [8], rng, compare=compare)
    assert repetitions.hits(possible, 1).mean() > 0.9


def test_draws_are_nested_and_those_of_all_repetitions_are_equal():
    eeg, groups, _ = recording(np.random.default_rng(2), 5, 8)
    seen = []

    def decoder(averages):
        seen.append(averages)
        return averages.reshape(5, -1)[:, :5].astype(float)

    ranks = repetitions.repetition_curve(eeg, groups, decoder, [1, 8], np.random.default_rng(0), 3)
    assert (ranks[1] == ranks[1, :1]).all() and not (ranks[0] == ranks[0, :1]).all()
    whole = np.stack([eeg[g].mean(0) for g in groups])
    assert len(seen) == 6
    for single, average in zip(seen[::2], seen[1::2], strict=True):
        np.testing.assert_allclose(average, whole, atol=1e-6)
        for i, group in enumerate(groups):
            assert (eeg[group] == single[i]).all(axis=(1, 2)).sum() == 1
    again = repetitions.repetition_curve(eeg, groups, decoder, [1, 8], np.random.default_rng(0), 3)
    np.testing.assert_array_equal(ranks, again)


def test_hits_read_the_own_picture():
    ranks = np.array([[1, 2, 3], [3, 2, 1], [1, 2, 3]])
    assert repetitions.hits(ranks, 1).tolist() == [True, False, False]
    assert repetitions.hits(ranks[None], 2).tolist() == [[True, True, False]]


def test_usable_counts():
    groups = [np.arange(20), np.arange(12)]
    assert repetitions.usable_counts(groups, [80, 1, 4, 2, 10, 20, 4]) == [1, 2, 4, 10]
    with pytest.raises(ValueError, match="has 12 repetitions, the fewest asked for are 20"):
        repetitions.usable_counts(groups, [20, 80])
    with pytest.raises(ValueError, match="at least 1"):
        repetitions.usable_counts(groups, [0, 1])


def test_more_repetitions_than_there_are_are_refused():
    eeg, groups, answers = recording(np.random.default_rng(3), 4, 6)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="an item has only 6"):
        repetitions.repetition_curve(eeg, groups, lambda a: a, [1, 7], rng)
    with pytest.raises(ValueError, match="6 of 6 repetitions leave none"):
        repetitions.template_curve(eeg, groups, [1, 6], rng)
    with pytest.raises(ValueError, match="at least one draw"):
        repetitions.repetition_curve(eeg, groups, lambda a: a, [1], rng, n_draws=0)


# -- intervals


def test_the_interval_covers_studies_with_other_items_and_other_trials():
    """The same mean from new items and new draws lies inside about as often as from one study."""
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(200):
        chance = rng.beta(2, 2, 60)  # items differ in how often they are found
        scores = rng.random((15, 60)) < chance
        low, high = repetitions.curve_interval(scores, rng, 400)
        covered += low <= 0.5 <= high
    assert 0.93 <= covered / 200 <= 1


def test_the_interval_is_wider_where_draws_differ_and_a_plain_bootstrap_where_not():
    rng = np.random.default_rng(5)
    fixed = np.repeat((np.arange(50) % 2)[None].astype(float), 10, 0)
    low, high = repetitions.curve_interval(fixed, rng)
    half = 1.96 * math.sqrt(0.25 / 50)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.02)
    same_mean = np.full((10, 50), 0.5)
    assert repetitions.curve_interval(same_mean, rng) == (0.5, 0.5)
    varied = (rng.random((10, 50)) < 0.5).astype(float)
    wide = np.diff(repetitions.curve_interval(varied, rng))
    assert wide > 2 * np.diff(repetitions.curve_interval(varied.mean(0, keepdims=True), rng))
    with pytest.raises(ValueError, match="n_draws, n_items"):
        repetitions.curve_interval(np.ones(5), rng)


# -- reliability


def test_spearman_brown_by_hand_and_there_and_back():
    assert repetitions.spearman_brown(0.5, 2) == pytest.approx(2 / 3)
    assert repetitions.spearman_brown(0.3, 4) == pytest.approx(1.2 / 1.9)
    r = np.array([-0.2, 0.0, 0.4, 1.0])
    back = repetitions.spearman_brown(repetitions.spearman_brown(r, 1.5), 1 / 1.5)
    np.testing.assert_allclose(back, r, atol=1e-12)
    for r, f in ((-1, 2), (1.1, 2), (0.5, 0)):
        with pytest.raises(ValueError, match="positive factor"):
            repetitions.spearman_brown(r, f)


def test_pattern_reliability_and_ceiling_are_those_of_signal_and_noise():
    """Reliability of k repetitions is S / (S + N / k); the ceiling is met by the true answers."""
    rng = np.random.default_rng(6)
    eeg, groups, answers = recording(rng, 60, 16, signal=0.4)
    reliability, half = repetitions.split_half_pattern(eeg, groups, rng, 10)
    power = (answers - answers.mean(0)).var() * 60 / 59
    assert half == 8 and reliability == pytest.approx(power / (power + 1 / 8), abs=0.03)
    counts = [1, 4, 16]
    predicted = repetitions.pattern_ceiling(reliability, half, counts)
    for k, limit in zip(counts, predicted, strict=True):
        average = np.stack([eeg[g[:k]].mean(0) for g in groups])
        assert truth.pattern_correlation(average, answers) == pytest.approx(limit, abs=0.03)
    assert repetitions.pattern_ceiling(-0.1, 8, counts).tolist() == [0, 0, 0]


def test_pattern_reliability_agrees_with_the_one_per_channel_and_time():
    rng = np.random.default_rng(7)
    eeg, groups, _ = recording(rng, 200, 8, signal=0.6)
    ids = np.empty(len(eeg), object)
    for i, group in enumerate(groups):
        ids[group] = f"img-{i:03d}"
    each = quality.split_half_reliability(eeg, pd.DataFrame({"image_id": ids}), rng, 5)
    reliability, half = repetitions.split_half_pattern(eeg, groups, rng, 5)
    full = repetitions.spearman_brown(reliability, 8 / half)
    assert full == pytest.approx(each.mean(), abs=0.03)


def test_a_reliability_needs_repeated_items():
    eeg, groups, _ = recording(np.random.default_rng(8), 2, 4)
    with pytest.raises(ValueError, match="at least 3 items"):
        repetitions.split_half_pattern(eeg, groups, np.random.default_rng(0))
    with pytest.raises(ValueError, match="at least 3 items that were repeated"):
        repetitions.split_half_pattern(
            eeg, [np.array([i]) for i in range(5)], np.random.default_rng(0)
        )


def test_equivalent_repetitions():
    counts, curve = [1, 2, 4, 16], [0.1, 0.3, 0.5, 0.9]
    assert repetitions.equivalent_repetitions(counts, curve, 0.3) == pytest.approx(2)
    assert repetitions.equivalent_repetitions(counts, curve, 0.7) == pytest.approx(8)
    assert repetitions.equivalent_repetitions(counts, curve, 0.1) == 1
    assert repetitions.equivalent_repetitions(counts, curve, 0.05) is None
    assert repetitions.equivalent_repetitions(counts, curve, 0.95) is None
    assert repetitions.equivalent_repetitions(counts, [0.1, 0.4, 0.35, 0.9], 0.65) == pytest.approx(
        8
    )
    with pytest.raises(ValueError, match="must correspond"):
        repetitions.equivalent_repetitions([1, 2], [0.1], 0.1)
