"""Attribution against cases whose answer is known: linear decoders, polynomials, planted sources."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import block_diag

from sgdm_utils.decoding import encoders
from sgdm_utils.experiments import attribution
from sgdm_utils.experiments import ideal_decoder as truths
from sgdm_utils.simulation.brain import make_info

TIMES = np.arange(-20, 60) / 100


def epochs(n=6, n_channels=5, n_times=12, seed=0):
    return np.random.default_rng(seed).normal(size=(n, n_channels, n_times)).astype(np.float32)


def linear(weights):
    """A decoder whose prediction is linear in the EEG, (d, n_channels, n_times)."""
    w = torch.from_numpy(np.asarray(weights, np.float32))
    return lambda eeg, keep=None: torch.einsum("dct,nct->nd", w, eeg)


# ------------------------------------------------------------------ windows, masks


def test_windows_cover_the_epoch_once_and_a_small_rest_joins_the_last():
    windows = attribution.time_windows(TIMES, 0.05)
    assert len(windows) == 16
    assert np.concatenate([np.arange(80)[w] for w in windows]).tolist() == list(range(80))
    assert [w.stop - w.start for w in attribution.time_windows(TIMES[:12], 0.05)] == [5, 7]
    assert [w.stop - w.start for w in attribution.time_windows(TIMES[:13], 0.05)] == [5, 5, 3]
    for width in (0.002, 0.9):
        with pytest.raises(ValueError, match="can be divided into windows of 0.01 to 0.8 s"):
            attribution.time_windows(TIMES, width)


def test_masks_divide_the_samples_of_their_regions():
    letters = np.array(["a", "b", "a", "c"])
    windows = attribution.time_windows(TIMES, 0.1)
    masks = attribution.occlusion_masks({x: letters == x for x in "ac"}, windows, 80)
    assert masks.shape == (2, 8, 4, 80)
    assert (masks.sum((0, 1)) == np.array([1, 0, 1, 1])[:, None]).all()
    assert masks[0, 2].any(1).tolist() == [True, False, True, False]
    with pytest.raises(ValueError, match="no electrode lies in d: leave it out"):
        attribution.occlusion_masks({x: letters == x for x in "ad"}, windows, 80)
    with pytest.raises(ValueError, match="no electrode lies in any region"):
        attribution.occlusion_masks({}, windows, 80)


# ------------------------------------------------------------------ occlusion


def test_occluding_a_linear_decoder_removes_what_the_samples_contributed():
    eeg, weights = epochs(), epochs(3, seed=1)
    baseline, masks = epochs(1, seed=2)[0], epochs(7, seed=3) > 0.5
    predict = linear(weights)
    said = attribution.occluded_predictions(predict, eeg, baseline, masks, batch=10)
    change = np.einsum("dct,nct,mct->mnd", weights, eeg - baseline, masks)
    whole = np.einsum("dct,nct->nd", weights, eeg)
    assert said.shape == (7, 6, 3)
    assert np.allclose(said, whole - change, atol=1e-4)
    reshaped = masks[:6].reshape(2, 3, 5, 12)
    assert attribution.occluded_predictions(predict, eeg, baseline, reshaped).shape == (2, 3, 6, 3)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    info = make_info(100.0)
    return encoders.SGDMEncoder(63, 8, 40, chs_info=info["chs"][:63], width=8).eval()


def test_absent_electrodes_are_those_that_were_never_there(encoder):
    eeg, absent = epochs(3, 63, 40), np.zeros((2, 63), bool)
    absent[0, [3, 40]] = absent[1, :50] = True

    def predict(x, keep):
        return encoder(x, torch.zeros(len(x), dtype=torch.long), mask=keep)

    said = attribution.absent_predictions(predict, eeg, absent, batch=2)
    for off, mine in zip(absent, said, strict=True):
        few = torch.from_numpy(eeg[:, ~off])
        where = encoder.default_positions[torch.from_numpy(~off)]
        with torch.no_grad():
            alone = encoder(few, torch.zeros(3, dtype=torch.long), positions=where)
        assert torch.allclose(mine, alone, atol=1e-5)
    with pytest.raises(ValueError, match="set 1 takes every electrode off"):
        attribution.absent_predictions(predict, eeg, np.stack([absent[0], np.ones(63, bool)]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda eeg, base, masks: (eeg[:, :4], base, masks), "epochs of shape"),
        (lambda eeg, base, masks: (eeg[:0], base, masks), "epochs of shape"),
        (lambda eeg, base, masks: (eeg * np.nan, base, masks), "NaN"),
        (lambda eeg, base, masks: (eeg, base, masks[..., :3]), "masks end with shape"),
    ],
)
def test_epochs_that_do_not_fit_are_refused(change, message):
    given = change(epochs(), epochs(1)[0], epochs(2) > 0)
    with pytest.raises(ValueError, match=message):
        attribution.occluded_predictions(linear(epochs(2)), *given)


# ------------------------------------------------------------------ scores


def test_margin_by_hand_and_its_mean_over_all_pairings_is_zero():
    matrix = torch.tensor([[0.9, 0.1, 0.2], [0.0, 0.5, 0.4], [0.3, 0.3, 0.3]])
    own = torch.arange(3)
    assert torch.allclose(attribution.margin(matrix, own), torch.tensor([0.75, 0.3, 0.0]))
    stacked = attribution.margin(torch.stack([matrix, matrix * 2]), own)
    assert torch.allclose(stacked[1], 2 * stacked[0])
    every = [attribution.margin(matrix, own.roll(k)).mean() for k in range(3)]
    assert abs(float(sum(every))) < 1e-6
    with pytest.raises(ValueError, match="at least 2 pictures"):
        attribution.margin(torch.ones(2, 1), torch.zeros(2, dtype=torch.long))


def test_similarity_is_the_cosine_or_the_correlation():
    a, b = torch.from_numpy(epochs(1)[0]), torch.from_numpy(epochs(1, seed=1)[0])
    correlation = attribution.similarity(a, b, centred=True)
    assert np.isclose(correlation[1, 2], np.corrcoef(a[1], b[2])[0, 1], atol=1e-6)
    cosine = attribution.similarity(a, b, centred=False)
    assert np.isclose(cosine[0, 3], a[0] @ b[3] / a[0].norm() / b[3].norm(), atol=1e-6)


# ------------------------------------------------------------------ integrated gradients


def test_integrated_gradients_of_a_linear_score_are_weight_times_change():
    eeg, weights, baseline = epochs(), epochs(1, seed=1)[0], epochs(1, seed=2)[0]

    def score(x, items):
        return (x * torch.from_numpy(weights)).sum((1, 2)) + items

    for n_steps in (1, 5):
        a, gap = attribution.integrated_gradients(score, eeg, baseline, n_steps, batch=4)
        assert np.allclose(a, weights * (eeg - baseline), atol=1e-5)
        assert np.abs(gap).max() < 1e-4


def test_integrated_gradients_of_a_polynomial_are_exact_with_few_nodes_and_not_with_fewer():
    eeg, baseline = epochs(), epochs(1, seed=2)[0]

    def score(x, items):
        return (x**4).sum((1, 2))

    a, gap = attribution.integrated_gradients(score, eeg, baseline, n_steps=2)
    assert np.allclose(a, eeg**4 - baseline**4, atol=1e-3)
    assert np.abs(gap).max() < 1e-3
    assert np.abs(attribution.integrated_gradients(score, eeg, baseline, n_steps=1)[1]).max() > 0.1
    with pytest.raises(ValueError, match="at least 1 node"):
        attribution.integrated_gradients(score, eeg, baseline, n_steps=0)


def test_attributions_of_an_encoder_s_margin_are_complete(encoder):
    eeg, wanted = epochs(5, 63, 40), torch.from_numpy(epochs(1, 5, 8, seed=3)[0])

    def score(x, items):
        z = encoder(x, torch.zeros(len(x), dtype=torch.long))
        return attribution.margin(attribution.similarity(z, wanted, False), items)

    # a baseline that is a signal: at zero the normalisation layers have a kink, which no rule likes
    a, gap = attribution.integrated_gradients(score, eeg, epochs(1, 63, 40, seed=4)[0], 32)
    with torch.no_grad():
        whole = score(torch.from_numpy(eeg), torch.arange(5)).numpy()
    assert np.abs(gap).max() < 0.01 * np.abs(whole).max()
    assert encoder.stem.weight.grad is None, "asking leaves no gradients behind"


# ------------------------------------------------------------------ the ideal decoder


def ar_noise(n_times, r=0.7):
    return r ** np.abs(np.subtract.outer(np.arange(n_times), np.arange(n_times)))


def test_noise_covariance_is_found_below_answers_that_repeat():
    rng = np.random.default_rng(0)
    noise, condition = ar_noise(8), np.repeat(np.arange(150), [2, 3, 4, 1, 5] * 30)
    answers = 5 * rng.normal(size=(150, 4, 8))
    drawn = rng.multivariate_normal(np.zeros(8), noise, size=(len(condition), 4))
    eeg, order = answers[condition] + drawn, rng.permutation(len(condition))
    found = truths.noise_autocovariance(eeg[order], condition[order], floor=0.0)
    assert np.abs(found - noise).max() < 0.1
    names = np.array([f"picture {c}" for c in condition])[order]
    floored = truths.noise_autocovariance(eeg[order], names, floor=0.5)
    assert np.allclose(floored, found + 0.5 * np.trace(found) / 8 * np.eye(8))
    with pytest.raises(ValueError, match="no picture has two trials"):
        truths.noise_autocovariance(eeg[:3], np.arange(3))


@pytest.fixture(scope="module")
def small():
    """Three channels, six samples, four features, a target that depends on them linearly."""
    rng = np.random.default_rng(3)
    mix = rng.normal(size=(4, 4))
    features = rng.normal(size=(4000, 4)) @ mix
    readout = rng.normal(size=(4, 2))
    targets = features @ readout + 0.5 * rng.normal(size=(4000, 2))
    ideal = truths.ideal_decoder(
        rng.normal(size=(3, 4)), rng.normal(size=(4, 6)), ar_noise(6), 2.5, features, targets
    )
    return ideal, features, targets


def test_explained_variance_is_that_of_the_regression_on_dense_covariances(small):
    ideal, features, targets = small
    pattern = np.einsum("ck,kt->kct", ideal.topographies, ideal.courses).reshape(4, 18)
    noise = block_diag(*[ideal.noise] * 3) / 2.5
    signal = pattern.T @ np.cov(features.T, bias=True) @ pattern
    shared = (ideal.root @ ideal.readout).T @ pattern  # covariance of target and response, (2, 18)
    rng = np.random.default_rng(0)
    for keep in [np.ones((3, 6), bool), *(rng.random((5, 3, 6)) < 0.5)]:
        k = np.flatnonzero(keep)
        inverse = np.linalg.inv(signal[np.ix_(k, k)] + noise[np.ix_(k, k)])
        share = np.trace(shared[:, k] @ inverse @ shared[:, k].T) / ideal.target_variance
        assert np.isclose(ideal.explained(keep), share, atol=1e-8)
    everything = shared @ np.linalg.inv(signal + noise)
    assert np.allclose(ideal.weights().reshape(2, 18), everything, atol=1e-8)
    assert np.isclose(ideal.explained(np.zeros((3, 6), bool)), 0.0)


def test_explained_variance_is_what_its_weights_reach_on_drawn_trials(small):
    ideal, features, targets = small
    rng = np.random.default_rng(1)
    answer = np.einsum("nk,ck,kt->nct", features, ideal.topographies, ideal.courses)
    noise = rng.multivariate_normal(np.zeros(6), ideal.noise / 2.5, size=(4000, 3))
    said = np.einsum("dct,nct->nd", ideal.weights(), answer + noise)
    reached = 1 - ((targets - targets.mean(0) - said) ** 2).sum() / targets.var(0).sum() / 4000
    assert abs(reached - ideal.explained(np.ones((3, 6), bool))) < 0.02


def test_expected_losses_are_differences_and_a_larger_hole_costs_more(small):
    ideal = small[0]
    masks = np.zeros((2, 2, 3, 6), bool)
    masks[0, 0, 0], masks[0, 1, 0, :2], masks[1, 1] = True, True, True
    losses = ideal.expected_losses(masks)
    whole = ideal.explained(np.ones((3, 6), bool))
    assert np.isclose(losses[0, 0], whole - ideal.explained(~masks[0, 0]))
    assert losses[1, 0] == 0 and np.isclose(losses[1, 1], whole)
    assert 0 < losses[0, 1] < losses[0, 0] < whole


def test_a_simulation_without_signal_has_no_ideal_decoder():
    with pytest.raises(ValueError, match="nothing to decode"):
        truths.ideal_decoder(
            np.ones((3, 2)), np.ones((2, 6)), np.eye(6), 1, np.ones((9, 2)), np.ones((9, 1))
        )


# ------------------------------------------------------------------ agreement


def test_agreement_is_spearman_s_and_its_null_all_places():
    a, b = epochs(2, 3, 5)
    test = truths.map_agreement(a, b, np.random.default_rng(0))
    literal = [
        stats.spearmanr(np.roll(a[list(order)], -shift, axis=1).ravel(), b.ravel())[0]
        for order in itertools.permutations(range(3))
        for shift in range(5)
    ]
    assert test.exact and len(test.null) == 30
    assert np.isclose(test.statistic, stats.spearmanr(a.ravel(), b.ravel())[0])
    assert np.allclose(test.null, literal)
    assert test.p_value == np.mean(np.array(literal) >= literal[0] - 1e-12)
    assert np.isclose(truths.map_agreement(a, a, np.random.default_rng(0)).p_value, 1 / 30)


def test_many_arrangements_are_drawn_and_give_nearly_the_same_p():
    a, b = epochs(2, 6, 10)
    b = b + a
    exact, drawn = (
        truths.map_agreement(a, b, np.random.default_rng(0), n_draws=n) for n in (7200, 3000)
    )
    assert exact.exact and not drawn.exact and len(drawn.null) == 3000
    assert abs(exact.p_value - drawn.p_value) < 0.01


def test_maps_without_a_rank_or_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="expected map is constant"):
        truths.map_agreement(epochs(1)[0], np.ones((5, 12)), np.random.default_rng(0))
    with pytest.raises(ValueError, match="n_regions, n_windows"):
        truths.map_agreement(epochs(1)[0], np.ones((5, 11)), np.random.default_rng(0))


def test_bootstrap_interval_of_the_agreement_narrows_with_pictures():
    rng = np.random.default_rng(0)
    expected = epochs(1, 4, 8)[0]
    width = []
    for n in (10, 1000):
        losses = expected[..., None] + 3 * rng.normal(size=(4, 8, n))
        low, high = truths.bootstrap_agreement(losses, expected, rng, 300)
        rho = stats.spearmanr(losses.mean(2).ravel(), expected.ravel())[0]
        assert low < rho <= high + 0.1
        width.append(high - low)
    assert width[1] < width[0] / 3
    with pytest.raises(ValueError, match="at least 2 pictures"):
        truths.bootstrap_agreement(losses[..., :1], expected, rng)


# ------------------------------------------------------------------ planted sources, end to end


def test_occlusion_finds_planted_sources_and_a_random_decoder_does_not():
    """Two features in regions and windows of their own; a decoder fitted to drawn trials."""
    rng = np.random.default_rng(7)
    electrodes = {x: np.repeat(list("abc"), 2) == x for x in "abc"}
    windows = attribution.time_windows(TIMES[:40], 0.05)
    topographies, courses = np.zeros((6, 2)), np.zeros((2, 40))
    topographies[:2, 0] = topographies[4:, 1] = 1
    courses[0, windows[3]], courses[1, windows[5]] = 1, 0.4
    features = rng.normal(size=(600, 2))
    turn = np.linalg.qr(rng.normal(size=(12, 2)))[0].T  # both features count alike
    targets = features @ turn
    answers = np.einsum("nk,ck,kt->nct", features, topographies, courses)
    eeg = (answers + rng.normal(size=(600, 6, 40))).astype(np.float32)
    flat = eeg[:500].reshape(500, -1)
    fitted = np.linalg.solve(flat.T @ flat + 300 * np.eye(240), flat.T @ targets[:500])
    masks = attribution.occlusion_masks(electrodes, windows, 40)
    ideal = truths.ideal_decoder(
        topographies, courses, np.eye(40), 1, features[:500], targets[:500]
    )
    expected, mean = ideal.expected_losses(masks), eeg[:500].mean(0)
    assert np.unravel_index(expected.argmax(), expected.shape) == (0, 3)

    def measured(weights):
        predict = linear(np.moveaxis(weights.reshape(6, 40, 12), -1, 0))
        whole = np.zeros((1, 6, 40), bool)
        said = [
            attribution.occluded_predictions(predict, eeg[500:], mean, m) for m in (whole, masks)
        ]
        matrices = [
            attribution.similarity(s, torch.from_numpy(targets[500:]).float(), False) for s in said
        ]
        full, less = (attribution.margin(m, torch.arange(100)).numpy() for m in matrices)
        return (full - less).mean(-1)

    found = measured(fitted)
    strongest = [np.unravel_index(i, found.shape) for i in np.argsort(found.ravel())[-2:]]
    assert {tuple(map(int, place)) for place in strongest} == {(0, 3), (2, 5)}
    draw = np.random.default_rng(0)
    assert truths.map_agreement(found, expected, draw).p_value < 0.05
    wrong = [
        truths.map_agreement(measured(rng.normal(size=(240, 12))), expected, draw) for _ in range(5)
    ]
    assert (
        np.mean([w.statistic for w in wrong])
        < truths.map_agreement(found, expected, draw).statistic - 0.2
    )
