"""Which electrodes a smaller montage keeps, and that nothing of the others is left in its signal."""

from __future__ import annotations

import mne
import numpy as np
import pytest

from sgdm_utils.datasets.electrodes import STANDARD_MONTAGE, electrode_positions
from sgdm_utils.datasets.things_eeg2.design import CHANNELS
from sgdm_utils.experiments import low_density
from sgdm_utils.signals import whitening


@pytest.fixture(scope="module")
def positions():
    info = mne.create_info(list(CHANNELS), 100.0, "eeg")
    info.set_montage(STANDARD_MONTAGE)
    return electrode_positions(info["chs"])


def names(rows):
    return {CHANNELS[i] for i in rows}


def test_seventeen_posterior_electrodes_are_the_published_ones(positions):
    expected = set("Pz P3 P7 O1 Oz O2 P4 P8 P1 P5 PO7 PO3 POz PO4 PO8 P6 P2".split())
    assert names(low_density.pick(positions, 17, "posterior", CHANNELS)) == expected


def test_small_posterior_sets_lie_over_visual_cortex_with_and_without_names(positions):
    eight = set("O1 Oz O2 PO7 PO3 POz PO4 PO8".split())
    for ch_names in (CHANNELS, None):
        assert names(low_density.pick(positions, 8, "posterior", ch_names)) == eight
        assert names(low_density.pick(positions, 4, "posterior", ch_names)) >= {"O1", "Oz", "O2"}
    back = positions[low_density.pick(positions, 32, "posterior")][:, 1]
    rest = positions[low_density.ranking(positions, "posterior")[32:]][:, 1]
    assert back.max() <= rest.min() + 1e-6


@pytest.mark.parametrize("kind", low_density.KINDS)
def test_smaller_sets_are_nested_and_ordered_as_recorded(positions, kind):
    larger = set(range(63))
    for n in low_density.SIZES:
        chosen = low_density.pick(positions, n, kind, CHANNELS)
        assert len(chosen) == n and (np.diff(chosen) > 0).all() and set(chosen) <= larger
        larger = set(chosen)


def test_the_order_of_the_channels_does_not_matter(positions):
    shuffle = np.random.default_rng(0).permutation(63)
    shuffled_names = [CHANNELS[i] for i in shuffle]
    for kind in low_density.KINDS:
        for n in (8, 17, 32):
            chosen = low_density.pick(positions[shuffle], n, kind, shuffled_names)
            assert {shuffled_names[i] for i in chosen} == names(
                low_density.pick(positions, n, kind, CHANNELS)
            )


def test_a_spread_set_covers_the_head_better_than_chance(positions):
    """Largest distance from any electrode to the nearest that is kept, against random sets."""

    def gap(rows):
        return (1 - (positions @ positions[rows].T).max(1)).max()

    rng = np.random.default_rng(0)
    for n in (4, 8, 17, 32):
        random = [gap(rng.permutation(63)[:n]) for _ in range(200)]
        assert gap(low_density.pick(positions, n, "spread")) < np.quantile(random, 0.1)


def test_a_spread_order_on_a_circle_by_hand():
    """Squared chords are 2 - 2 cos: 40 degrees 0.468, 80 1.653, 90 2.000, 130 3.286, 170 3.970."""
    angle = np.deg2rad([0, 40, 80, 170])
    points = np.column_stack([np.cos(angle), np.zeros(4), np.sin(angle)])
    # sums 6.09, 4.22, 4.12, 9.26: 80 is first; 170 leaves 2.12 of it, 0 and 40 leave 2.47; 0 = 40
    assert low_density.ranking(points, "spread").tolist() == [2, 3, 0, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: low_density.pick(p, 64, "spread"), "64 electrodes out of 63"),
        (lambda p: low_density.pick(p, 1, "spread"), "1 electrodes out of 63"),
        (lambda p: low_density.pick(p, 8, "left"), "unknown kind of montage 'left'"),
        (lambda p: low_density.pick(p, 8, "spread", CHANNELS[:5]), "5 channel names for 63"),
        (lambda p: low_density.ranking(p[:, :2], "spread"), "expected \\(n_channels, 3\\)"),
        (
            lambda p: low_density.ranking(np.where(p == p[3], np.nan, p), "spread"),
            "channels \\[3\\]",
        ),
        (lambda p: low_density.reduction(np.ones((3, 2)), np.arange(2)), "square matrix"),
    ],
)
def test_bad_input_is_refused(positions, call, message):
    with pytest.raises(ValueError, match=message):
        call(positions)


@pytest.fixture(scope="module")
def recording():
    """Trials of 12 channels with shared noise, average reference, and their whitener."""
    rng = np.random.default_rng(1)
    raw = np.einsum("ij,kjt->kit", rng.normal(size=(12, 12)), rng.normal(size=(400, 12, 30)))
    raw -= raw.mean(1, keepdims=True)
    condition = np.arange(400) // 2
    matrix = whitening.whitening_matrix(whitening.noise_covariance(raw, condition))
    return raw, condition, matrix, (matrix @ raw).astype(np.float32)


def test_reduced_trials_are_what_the_electrodes_alone_would_have_recorded(recording):
    raw, _, matrix, white = recording
    chosen = np.array([1, 4, 5, 9])
    alone = raw[:, chosen] - raw[:, chosen].mean(1, keepdims=True)
    reduced = low_density.reduce_trials(white, matrix, chosen)
    assert reduced.dtype == np.float32
    np.testing.assert_allclose(reduced, alone, atol=1e-3)


def test_nothing_of_an_electrode_that_is_gone_is_left(recording):
    """A wave on electrode 0 alone, average reference and whitener as ever: the rest must not see it."""
    raw, _, matrix, _ = recording
    chosen = np.array([1, 4, 5, 9])
    wave = np.zeros((1, 12, 30))
    wave[:, 0] = np.sin(np.arange(30))
    wave -= wave.mean(1, keepdims=True)
    white = (matrix @ wave).astype(np.float32)
    assert np.abs(white[:, chosen]).max() > 0.01  # a row of whitened data does see it
    assert np.abs(low_density.reduce_trials(white, matrix, chosen)).max() < 1e-4
    assert np.abs(low_density.reduction(matrix, chosen) @ white).max() < 1e-4


def test_the_reduction_whitens_and_agrees_with_an_estimate_from_the_trials(recording):
    raw, condition, matrix, white = recording
    chosen = np.array([0, 2, 3, 7, 8, 11])
    operator = low_density.reduction(matrix, chosen)
    projection = np.eye(6) - 1 / 6  # all but the mean, which the reference has taken
    np.testing.assert_allclose(operator @ operator.T, projection, atol=1e-5)
    reduced = low_density.reduce_trials(white, matrix, chosen)
    estimated = whitening.whitening_matrix(whitening.noise_covariance(reduced, condition))
    a, b = (operator @ white).ravel(), (estimated @ reduced).ravel()
    assert np.corrcoef(a, b)[0, 1] > 0.98


def test_all_electrodes_reduce_to_themselves(recording):
    _, _, matrix, white = recording
    operator = low_density.reduction(matrix, np.arange(12))
    a, b = (operator @ white).ravel(), white.ravel()
    assert np.corrcoef(a, b)[0, 1] > 0.99  # the mean direction was shrunk before, now it is out
