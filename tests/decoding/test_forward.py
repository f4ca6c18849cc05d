"""Noise in full, signal space, forward model, likelihood, posterior, gradient, and every refusal."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sgdm_utils.decoding.forward import ceilings as ideal
from sgdm_utils.decoding.forward import model as forward
from sgdm_utils.decoding.forward import picture_features, signal_space
from sgdm_utils.decoding.forward import posterior as picture_posterior
from sgdm_utils.signals.noise import NoiseError, NoiseModel

C, T, N, REPS = 6, 20, 160, 4


def _covariances(rng):
    a = rng.normal(size=(C, C))
    lag = np.abs(np.subtract.outer(np.arange(T), np.arange(T)))
    return a @ a.T + 0.5 * np.eye(C), 0.8**lag


def _noise(rng, n):
    channel, time = _covariances(np.random.default_rng(5))
    left, right = np.linalg.cholesky(channel), np.linalg.cholesky(time)
    return left @ rng.normal(size=(n, C, T)) @ right.T


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(1)
    shown = np.empty((N + 30, 32, 32, 3), np.uint8)
    for i in range(len(shown)):
        x, y = rng.integers(2, 18, 2)
        shown[i] = rng.integers(150, 250, 3)
        shown[i, y : y + rng.integers(6, 12), x : x + rng.integers(6, 12)] = rng.integers(0, 120, 3)
    return shown


@pytest.fixture(scope="module")
def features(pictures):
    few = {"pixels": 12, "structure": 20, "orientation": 12}
    return picture_features.PictureFeatures(few).fit(pictures[:N])


@pytest.fixture(scope="module")
def study(pictures, features):
    """Training and held-out trials of a linear brain, and the model fitted on the former."""
    rng = np.random.default_rng(2)
    x = features.transform(pictures)
    answer = (x @ rng.normal(size=(x.shape[1], 8)) @ rng.normal(size=(8, C * T))).reshape(-1, C, T)
    picture = np.repeat(np.arange(len(x)), REPS)
    eeg = (1.2 * answer[picture] + _noise(rng, len(picture))).astype(np.float32)
    train = np.flatnonzero(picture < N)
    noise = NoiseModel.fit(eeg, picture, train)
    responses = signal_space.measure_responses(eeg, picture, noise, train, n_outputs=60)
    model = forward.ForwardModel.fit(x, responses, 0.1)
    held_out = eeg[picture >= N].reshape(-1, REPS, C, T).mean(1)
    return {
        "eeg": eeg, "picture": picture, "train": train, "noise": noise, "responses": responses,
        "model": model, "x": x, "held_out": held_out, "answer": answer,
    }  # fmt: skip


@pytest.mark.parametrize("method", ["flip-flop", "marginals"])
def test_held_out_noise_is_white_on_both_axes(method):
    rng = np.random.default_rng(3)
    condition = np.repeat(np.arange(300), 4)
    signal = 3 * rng.normal(size=(300, C, T))
    eeg = signal[condition] + _noise(rng, len(condition))
    model = NoiseModel.fit(eeg, condition, None, method, 0.0, 0.001)
    white = model.whiten(_noise(rng, 2000))
    over_channels = np.einsum("nct,ndt->cd", white, white) / (2000 * T)
    over_time = np.einsum("nct,ncu->tu", white, white) / (2000 * C)
    assert np.abs(over_channels - np.eye(C)).max() < 0.08
    assert np.abs(over_time - np.eye(T)).max() < 0.08


def test_two_repetitions_are_corrected_for_the_mean_they_lost():
    rng = np.random.default_rng(4)
    eeg = _noise(rng, 1200)
    model = NoiseModel.fit(eeg, np.repeat(np.arange(600), 2), None, "flip-flop", 0.0, 0.001)
    assert abs(model.whiten(_noise(rng, 2000)).var() - 1) < 0.05


def test_whitening_is_one_linear_map_that_can_be_undone(study, tmp_path):
    noise, x = study["noise"], study["eeg"][:7].astype(np.float64)
    np.testing.assert_allclose(noise.unwhiten(noise.whiten(x)), x, atol=1e-9)
    np.testing.assert_allclose(noise.whiten(x.mean(0)), noise.whiten(x).mean(0), atol=1e-10)
    noise.save(tmp_path / "noise.npz")
    again = NoiseModel.load(tmp_path / "noise.npz")
    np.testing.assert_array_equal(again.whiten(x), noise.whiten(x))
    assert (again.method, again.time_shrinkage) == (noise.method, noise.time_shrinkage)


def test_an_electrode_gone_bad_is_replaced_and_good_ones_are_left_alone():
    channel, time = _covariances(np.random.default_rng(5))
    noise, rng = NoiseModel(channel, time, 1), np.random.default_rng(7)
    clean = _noise(rng, 40)
    broken = clean.copy()
    broken[:20, 3] += 20 * rng.normal(size=(20, T))
    repaired, replaced = noise.repair(broken, 6.0)
    assert replaced[:20, 3].all() and replaced.sum() == 20
    np.testing.assert_array_equal(repaired[20:], clean[20:])
    rest = [0, 1, 2, 4, 5]
    expected = channel[3, rest] @ np.linalg.solve(channel[np.ix_(rest, rest)], clean[:20][:, rest])
    np.testing.assert_allclose(repaired[:20, 3], expected, atol=1e-8)
    with pytest.raises(NoiseError, match="threshold is 1"):
        noise.repair(clean, 1.0)


def test_fewer_electrodes_are_whitened_by_their_own_rows(study):
    few = study["noise"].select([0, 2, 5])
    white = few.whiten(_noise(np.random.default_rng(8), 2000)[:, [0, 2, 5]])
    covariance = np.einsum("nct,ndt->cd", white, white) / (2000 * T)
    assert np.abs(covariance - np.eye(3)).max() < 0.2
    better = study["noise"].log_likelihood(study["eeg"], study["picture"], study["train"])
    assert better > NoiseModel(np.eye(C), np.eye(T), 1).log_likelihood(
        study["eeg"], study["picture"], study["train"]
    )


def test_signal_space_holds_the_answers_and_epochs_come_back(study):
    space = study["responses"].space
    outputs = np.random.default_rng(6).normal(size=(5, space.n_outputs))
    np.testing.assert_allclose(
        space.project(space.epochs(outputs, center=True)), outputs, atol=1e-8
    )
    assert (np.diff(space.signal_variance) <= 0).all()
    assert 0.8 < space.noise_variance.mean() < 1.2


@pytest.mark.parametrize("kept", [True, False])
def test_answers_are_the_projected_averages_of_each_picture(study, kept, monkeypatch):
    gone = np.random.default_rng(4).random(len(study["train"])) < 0.4
    rows = np.random.default_rng(5).permutation(study["train"][~gone])
    n_bytes = 4 * C * T * REPS * 7  # seven pictures at once
    monkeypatch.setattr(signal_space, "_BLOCK_BYTES", n_bytes)
    if not kept:
        monkeypatch.setattr(signal_space, "_KEPT_BYTES", 0)
    eeg, picture = study["eeg"], study["picture"]
    found = signal_space.measure_responses(eeg, picture, study["noise"], rows, n_outputs=40)
    shown, count = np.unique(picture[rows], return_counts=True)
    assert set(count) == {1, 2, 3, 4}
    np.testing.assert_array_equal(found.pictures, shown)
    np.testing.assert_array_equal(found.n_repetitions, count)
    averages = np.stack([eeg[rows[picture[rows] == p]].mean(0) for p in shown])
    np.testing.assert_allclose(found.outputs, found.space.project(averages), atol=2e-4)


def test_a_trial_that_holds_nan_is_named(study):
    eeg = study["eeg"].copy()
    eeg[37, 2, 5] = np.nan
    with pytest.raises(NoiseError, match=r"trial 37 \(from 0\) holds NaN"):
        signal_space.measure_responses(eeg, study["picture"], study["noise"], study["train"])


def test_features_that_repeat_each_other_change_no_prediction(study):
    x = study["x"]
    half = np.concatenate([x[:, :5] / np.sqrt(2), x[:, 5:], x[:, :5] / np.sqrt(2)], axis=1)
    model = forward.ForwardModel.fit(half, study["responses"], 0.1)
    for found, expected in zip(model.predict(half[N:]), study["model"].predict(x[N:]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_prediction_follows_the_truth_and_knows_its_error(study):
    # this brain is linear in the features: nothing is left that they cannot explain
    model = forward.ForwardModel.fit(study["x"], study["responses"], 0.0)
    new = slice(N, None)
    mean, variance = model.predict(study["x"][new])
    truth = model.space.project(study["answer"][new] * 1.2)
    assert np.corrcoef(mean.ravel(), truth.ravel())[0, 1] > 0.8
    z = (model.space.project(study["held_out"]) - mean) ** 2
    assert 0.5 < (z / (variance + model.space.noise_variance / REPS)).mean() < 1.6


def test_log_likelihood_is_the_normal_density(study):
    model = study["model"]
    y, x = model.space.project(study["held_out"])[:3], study["x"][:4]
    mean, variance = model.predict(x)
    v = variance + model.space.noise_variance / REPS
    error = y[:, None] - mean[None]
    expected = -0.5 * (error**2 / v + np.log(2 * np.pi * v)).sum(2)
    np.testing.assert_allclose(model.log_likelihood(y, x, REPS), expected, rtol=1e-9)
    mixed = model.log_likelihood(y, x, np.array([1, REPS, 1]))
    np.testing.assert_allclose(mixed[1], expected[1], rtol=1e-9)
    assert not np.allclose(mixed[0], expected[0])


def test_identification_works_and_is_at_chance_for_exchanged_eeg(study):
    model, gallery = study["model"], study["x"][N:]
    y = model.space.project(study["held_out"])
    scores = model.log_likelihood(y, gallery, REPS)
    assert (forward.identify(scores) == 1).mean() > 0.5
    rng = np.random.default_rng(0)
    exchanged = [
        (forward.identify(scores[rng.permutation(len(scores))]) == 1).mean() for _ in range(200)
    ]
    assert abs(np.mean(exchanged) - 1 / 30) < 0.02


def test_posterior_equals_brute_force(study):
    model, n = study["model"], 4
    y = model.space.project(study["held_out"])[:5]
    mean, covariance = model.posterior(y, n)
    prior = model.prior_covariance + 1e-12 * np.eye(model.n_features)
    precision = 1 / (model.typical_variance + model.space.noise_variance / n)
    b = model.coefficients
    brute = np.linalg.inv(np.linalg.inv(prior) + (b * precision) @ b.T)
    expected = model.prior_mean + (y - model.prior_mean @ b) @ (b * precision).T @ brute
    np.testing.assert_allclose(mean, expected, atol=1e-5)
    np.testing.assert_allclose(covariance, brute, atol=1e-6)


def test_ridge_equals_the_closed_form(study):
    model, responses = study["model"], study["responses"]
    x, y = study["x"][:N], responses.outputs
    for j in (0, 7):
        v = model.space.noise_variance[j] / REPS + model.lack_of_fit[j]
        penalty = v / model.scale[j] * np.eye(x.shape[1])
        expected = np.linalg.solve(x.T @ x + penalty, x.T @ y[:, j])
        np.testing.assert_allclose(model.coefficients[:, j], expected, atol=1e-8)
        posterior = v * np.linalg.inv(x.T @ x + penalty)
        got = model.predict(study["x"][N:])[1][:, j] - model.lack_of_fit[j]
        new = study["x"][N:]
        np.testing.assert_allclose(got, ((new @ posterior) * new).sum(1), rtol=1e-6)


def test_density_and_gradient_agree_with_numpy_and_finite_differences(study, pictures, features):
    model, shown = study["model"], pictures[N : N + 2]
    y = model.space.project(study["held_out"])[:2]
    x = torch.from_numpy(shown.transpose(0, 3, 1, 2) / 255.0)
    density = model.log_density(x, y, features, REPS)
    expected = np.diagonal(model.log_likelihood(y, features.transform(shown), REPS))
    np.testing.assert_allclose(density.numpy(), expected, rtol=1e-4)
    gradient = model.gradient(x, y, features, REPS)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    step = 1e-6
    up, down = (model.log_density(x + s * step * direction, y, features, REPS) for s in (1, -1))
    slope = (gradient * direction).sum((1, 2, 3))
    np.testing.assert_allclose(slope.numpy(), ((up - down) / (2 * step)).numpy(), rtol=1e-4)
    assert torch.equal(model.gradient(x, y, features, REPS, 0.0), torch.zeros_like(x))


def test_save_and_load(study, features, pictures, tmp_path):
    study["model"].save(tmp_path)
    features.save(tmp_path)
    again = forward.ForwardModel.load(tmp_path)
    same = picture_features.PictureFeatures.load(tmp_path)
    x = same.transform(pictures[N:])
    np.testing.assert_array_equal(x, features.transform(pictures[N:]))
    y = again.space.project(study["held_out"])
    expected = study["model"].log_likelihood(y, x, REPS)
    np.testing.assert_array_equal(again.log_likelihood(y, x, REPS), expected)


def test_a_shared_model_helps_somebody_with_few_pictures(study):
    rng = np.random.default_rng(9)
    x, answer = study["x"], study["answer"]
    picture = np.repeat(np.arange(50), 2)
    eeg = answer[picture] + _noise(rng, len(picture))
    responses = signal_space.measure_responses(eeg, picture, study["noise"], n_outputs=40)
    new = answer[N:] + _noise(rng, 30) / 2

    def ranks(shared):
        model = forward.ForwardModel.fit(x, responses, 0.1, shared=shared)
        return forward.identify(model.log_likelihood(model.space.project(new), x[N:], 4)).mean()

    assert ranks(study["model"]) < ranks(None)


def test_families_have_their_share_of_the_variance(features, pictures):
    x = features.reweighted({"pixels": 1, "structure": 2, "orientation": 1}).transform(pictures[:N])
    assert abs((x**2).sum(1).mean() - 1) < 1e-3
    assert abs((x[:, features.slices["structure"]] ** 2).sum(1).mean() - 0.5) < 1e-3
    assert sum(picture_features.components_for(100).values()) < 100


def test_features_are_the_same_whether_computed_once_or_twice(features, pictures):
    again = picture_features.PictureFeatures(features.components)
    at_once = again.fit_transform(pictures, np.arange(N))
    np.testing.assert_allclose(at_once, features.transform(pictures), atol=1e-5)
    np.testing.assert_allclose(at_once, again.transform(pictures), atol=1e-5)


def test_embeddings_that_are_known_are_taken_and_those_of_other_pictures_refused(pictures):
    def embedder(batch):
        return batch.mean((2, 3))

    components = {"pixels": 4, "embedding": 3}
    computed = picture_features.PictureFeatures(components, embedder=embedder)
    expected = computed.fit_transform(pictures, np.arange(N))
    embeddings = pictures.mean((1, 2), dtype=np.float32) / 255
    known = picture_features.PictureFeatures(components, embedder=embedder)
    at_once = known.fit_transform(pictures, np.arange(N), embeddings)
    np.testing.assert_allclose(at_once, expected, atol=1e-4)
    for wrong in (embeddings[::-1].copy(), embeddings[:-1]):
        with pytest.raises(ValueError, match="in the order of the pictures"):
            known.fit_transform(pictures, np.arange(N), wrong)


def test_labels_have_their_share_and_a_place_beside_the_features(study):
    x, category = study["x"][:N], np.arange(N) % 4 - 1  # one in four has no label
    labelled = picture_posterior.with_category(x, category, 3, 0.2)
    assert labelled.shape == (N, x.shape[1] + 3)
    np.testing.assert_allclose(labelled[:, :-3], x * 0.8**0.5)
    assert not labelled[category < 0, -3:].any(), "without a label: what is common to all"
    np.testing.assert_allclose(labelled[:, -3:].mean(0), 0, atol=1e-12)
    assert (labelled[category >= 0, -3:] ** 2).sum(1).mean() == pytest.approx(0.2)
    unlabelled = picture_posterior.with_category(x, np.full(N, -1), 3, 0.2)
    assert not unlabelled[:, -3:].any()
    for n in (100, 3000):
        components = picture_features.components_for(n, n_beside=40)
        assert sum(components.values()) + 40 <= n
    for wrong, share, message in (
        (category, 1.0, "share is 1.0"),
        (category[1:], 0.2, "features of"),
        (category + 9, 0.2, "go from -1"),
    ):
        with pytest.raises(ValueError, match=message):
            picture_posterior.with_category(x, wrong, 3, share)


def test_what_only_the_label_evokes_is_read_with_labels_alone(study):
    """Answers to a category that no feature of the pixels stands for."""
    rng = np.random.default_rng(3)
    x, category = study["x"][:N], rng.integers(0, 3, N)
    answer = study["answer"][:N] + 3 * rng.normal(size=(3, C, T))[category]
    picture = np.repeat(np.arange(N), REPS)
    eeg = answer[picture] + _noise(rng, len(picture))
    responses = signal_space.measure_responses(eeg, picture, study["noise"], n_outputs=40)
    labelled, one_hot = picture_posterior.with_category(x, category, 3, 0.3), np.eye(3)[category]

    def named(features, shown):
        """Share of new answers to the same pictures whose category has most weight."""
        model = forward.ForwardModel.fit(features[:shown], _first(responses, shown), 0.1)
        new = answer[shown:] + _noise(rng, N - shown) / 2
        logs = model.log_likelihood(model.space.project(new), features[:shown], 4)
        weights = picture_posterior.posterior_weights(logs, 0.3)
        return ((weights @ one_hot[:shown]).argmax(1) == category[shown:]).mean()

    assert named(labelled, N - 30) > named(x, N - 30) + 0.1


def test_posterior_over_pictures():
    logs = np.array([[0.0, 2.0, -50.0], [5.0, 0.0, 0.0]])
    w = picture_posterior.posterior_weights(logs, 0.5)
    np.testing.assert_allclose(w[0, 1] / w[0, 0], np.e)
    values = np.arange(3.0)[:, None]
    np.testing.assert_allclose(picture_posterior.posterior_mean(w, values), w @ values, rtol=1e-5)
    assert (picture_posterior.effective_size(w) >= 1).all()
    favoured = picture_posterior.favour_categories(np.array([[0.4, 0.3, 0.3]]), np.array([0, 1, 1]))
    assert np.allclose(favoured, np.array([[0.16, 0.18, 0.18]]) / 0.52)
    spread = picture_posterior.spread_out(np.array([[0.9, 0.06, 0.03, 0.01]]), 0.4)
    assert spread.sum() == pytest.approx(1) and spread[0, 0] == pytest.approx(0.4, rel=2e-3)
    assert spread[0, 1] == pytest.approx(2 * spread[0, 2], rel=0.05) or spread[0, 1] >= 0.39
    even = np.full((1, 4), 0.25)
    assert np.allclose(picture_posterior.spread_out(even, 0.25), even)
    with pytest.raises(ValueError, match="give 0.25 or more"):
        picture_posterior.spread_out(even, 0.2)
    with pytest.raises(ValueError, match="power is -1"):
        picture_posterior.favour_categories(np.ones((1, 2)), np.zeros(2, int), -1)
    with pytest.raises(ValueError, match="2 pictures have weights, 3"):
        picture_posterior.favour_categories(np.ones((1, 2)), np.zeros(3, int))


def test_what_a_guess_leaves_unexplained_gives_the_gaussian_posterior(study):
    """From the prior's mean, with the whole prior variance, it is `posterior`; with none, nothing."""
    model = study["model"]
    outputs = model.space.project(study["held_out"])
    guess = np.tile(model.prior_mean, (len(outputs), 1))
    evidence = model.unexplained(outputs, guess, REPS, 1.0)
    mean, _ = model.posterior(outputs, REPS)
    np.testing.assert_allclose(guess + evidence @ model.prior_covariance, mean, atol=1e-9)
    assert not model.unexplained(outputs, guess, REPS, 0.0).any()
    x, values = np.random.default_rng(1).normal(size=(50, 3)), np.ones((50, 2, 2))
    values[:, 0, 1] = x[:, 2]
    covariance = picture_posterior.cross_covariance(x, values, block=16)
    assert covariance.shape == (3, 2, 2)
    np.testing.assert_allclose(covariance[:, 0, 1], np.cov(x.T, ddof=0)[:, 2], atol=1e-5)
    np.testing.assert_allclose(covariance[:, 1], 0, atol=1e-5)
    with pytest.raises(forward.ForwardError, match="share is -1"):
        model.unexplained(outputs, guess, REPS, -1)
    with pytest.raises(ValueError, match="50 pictures, values of 49"):
        picture_posterior.cross_covariance(x, values[1:])


def test_ideal_decoder_finds_pictures_and_undoes_nothing_but_the_filter(study):
    templates = study["answer"] * 2
    gain = ideal.measured_gain(
        study["eeg"][study["train"]].reshape(N, REPS, C, T).mean(1), templates[:N], study["noise"]
    )
    assert abs(gain - 0.6) < 0.05
    scores = ideal.ideal_log_likelihood(
        study["held_out"], gain * templates[N:], study["noise"], REPS,
        study["eeg"][study["train"]].mean(0), gain * templates[:N].mean(0),
    )  # fmt: skip
    assert (forward.identify(scores) == 1).mean() > 0.8
    # the same from components: answers are sums of them
    rng = np.random.default_rng(0)
    features, components = rng.normal(size=(N, 7)), rng.normal(size=(7, C, T))
    answers = np.tensordot(features, components, 1)
    at_once, by_template = (
        f(study["held_out"], *gallery, study["noise"], REPS, answers[0], mean)
        for f, gallery, mean in (
            (ideal.ideal_log_likelihood_of_features, (features, components), features.mean(0)),
            (ideal.ideal_log_likelihood, (answers,), answers.mean(0)),
        )
    )
    np.testing.assert_allclose(at_once, by_template, rtol=1e-6, atol=1e-6)
    times = np.arange(-5, 15) / 100
    wave = np.random.default_rng(0).normal(size=(2, C, 30))
    out = ideal.filtered_templates(wave, 100.0, times, lambda x: x, baseline=False, pad_s=1.0)
    np.testing.assert_allclose(out[..., 5:], wave[..., :15], atol=1e-9)
    np.testing.assert_allclose(out[..., :5], 0, atol=1e-9)


def _first(responses, n):
    """The same responses of the first pictures alone."""
    keep = responses.pictures < n
    parts = {k: getattr(responses, k)[keep] for k in ("pictures", "outputs", "n_repetitions")}
    return dataclasses.replace(responses, **parts)


def _nan(x):
    x = x.copy()
    x[3, 1, 2] = np.nan
    return x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e, c: NoiseModel.fit(e[:5], np.arange(5)), "none with two or more repetitions"),
        (lambda e, c: NoiseModel.fit(e[:, :, 0], c), "expected"),
        (lambda e, c: NoiseModel.fit(e, c[:-1]), "one condition for each"),
        (lambda e, c: NoiseModel.fit(e, c, c == 0), "rows is a mask"),
        (lambda e, c: NoiseModel.fit(_nan(e), c), "trial 3, channel number 1"),
        (lambda e, c: NoiseModel.fit(e[:, [0, 0]], c, channel_shrinkage=0.0), "singular"),
        (lambda e, c: NoiseModel.fit(e, c, time_shrinkage=1.0), "time_shrinkage"),
        (lambda e, c: NoiseModel(np.eye(3), np.eye(4), 1).whiten(e), "same preprocessing"),
        (lambda e, c: NoiseModel(np.eye(3), np.eye(4), 1).select([7]), "not among the 3"),
    ],
)
def test_noise_refusals(study, change, message):
    with pytest.raises(ValueError, match=message):
        change(study["eeg"][:200], study["picture"][:200])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s, m: forward.ForwardModel.fit(np.ones((N, 900)), s["responses"]),
            "900 features for",
        ),
        (
            lambda s, m: forward.ForwardModel.fit(s["x"][:9], s["responses"]),
            "features of 9 pictures",
        ),
        (lambda s, m: forward.ForwardModel.fit(s["x"] * np.nan, s["responses"]), "NaN"),
        (lambda s, m: forward.ForwardModel.fit(s["x"], s["responses"], -1), "lack_of_fit"),
        (lambda s, m: m.predict(np.ones((2, 3))), "same PictureFeatures"),
        (lambda s, m: m.log_likelihood(np.ones((2, 3)), s["x"], 4), "space.project"),
        (lambda s, m: m.log_likelihood(np.ones((2, 60)), s["x"], 0), "at least one"),
        (lambda s, m: m.log_likelihood(np.ones((2, 60)), s["x"][:0], 4), "no picture"),
        (lambda s, m: m.space.project(np.ones((2, C, T + 1))), "same preprocessing"),
        (lambda s, m: m.space.project(_nan(s["held_out"])), "epoch 3"),
        (lambda s, m: forward.identify(np.ones((5, 3))), "gallery of 3"),
        (lambda s, m: m.gradient(torch.zeros(1), None, None, 4, -1.0), "scale is -1"),
        (
            lambda s, m: signal_space.measure_responses(
                s["eeg"], s["picture"], s["noise"], np.arange(0)
            ),
            "no training trials",
        ),
        (lambda s, m: s["responses"].only(10_000), "n_outputs is 10000"),
    ],
)
def test_model_refusals(study, change, message):
    with pytest.raises(ValueError, match=message):
        change(study, study["model"])


def test_a_model_of_another_study_is_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="fit the forward model again"):
        forward.ForwardModel.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, f: picture_features.PictureFeatures({"sound": 3}), "families"),
        (lambda p, f: picture_features.PictureFeatures({"embedding": 3}), "embedder"),
        (lambda p, f: picture_features.PictureFeatures({"pixels": 50}).fit(p[:20]), "20 training"),
        (lambda p, f: picture_features.PictureFeatures({"pixels": 2}).fit(p[:, :20, :20]), "of 16"),
        (lambda p, f: f.reweighted({"pixels": 1}), "give one each"),
        (lambda p, f: f.transform(p[:2, :16, :16]), "fitted on"),
        (lambda p, f: f.transform(p[:2].astype(float)), "outside"),
        (lambda p, f: picture_posterior.posterior_weights(np.zeros((2, 3)), 0), "temperature"),
        (lambda p, f: picture_posterior.posterior_mean(np.zeros((2, 3)), p), "same set"),
    ],
)
def test_picture_refusals(pictures, features, change, message):
    with pytest.raises(ValueError, match=message):
        change(pictures, features)


def filtered_trials(n_pictures=12, n_repetitions=60, n_channels=4, n_times=102, kept=28):
    """Trials of few electrodes after a low-pass, picture of each, and held-out trials."""
    rng = np.random.default_rng(4)
    answers = rng.standard_normal((n_pictures, n_channels, n_times))
    picture = np.tile(np.arange(n_pictures), n_repetitions)
    eeg = 0.1 * answers[picture] + rng.standard_normal((len(picture), n_channels, n_times))
    waves = np.fft.rfft(eeg)
    fall = np.exp(-np.maximum(np.arange(waves.shape[-1]) - kept, 0) / 1.5)  # the skirt of a filter
    eeg = np.fft.irfft(waves * fall, n_times).astype(np.float32)
    held_out = picture.size // 6
    return eeg[:-held_out], picture[:-held_out], eeg[-held_out:], picture[-held_out:]


def test_directions_that_a_filter_emptied_have_no_say():
    """Rounding of stored trials moved the AUC of four real electrodes from .64 to .60."""
    eeg, picture, held_out, _ = filtered_trials()
    features = np.eye(12)
    found = []
    for seed in (None, 0, 1):
        trials = eeg
        if seed is not None:  # a change in the sixth digit
            factor = 1 + 1e-6 * np.random.default_rng(seed).standard_normal(eeg.shape)
            trials = (eeg * factor).astype(np.float32)
        noise = NoiseModel.fit(trials, picture)
        responses = signal_space.measure_responses(trials, picture, noise, n_outputs=400)
        assert responses.space.noise_variance.min() >= 1e-3
        assert responses.space.n_outputs > 100  # not thrown out with the empty ones
        model = forward.ForwardModel.fit(features, responses)
        found.append(model.log_likelihood(responses.space.project(held_out), features, 1))
    centred = [values - values.mean(1, keepdims=True) for values in found]
    spread = centred[0].std()
    for values in centred[1:]:
        assert np.abs(values - centred[0]).max() < 0.01 * spread
