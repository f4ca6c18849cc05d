"""The forward model as a component: it says what the models say, and refuses what it cannot read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sgdm_utils.decoding import forward
from sgdm_utils.generation import EEGPosterior, sharpened_maps
from sgdm_utils.signals import NoiseModel

C, T, N, REPS, KINDS, SHARE, LABELS = 5, 16, 90, 4, 3, 0.3, 0.2


@pytest.fixture(scope="module")
def study():
    """A linear brain, its model, what is known of the pictures, and a whitener that was applied."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 12)) / 12**0.5
    answers = (x @ rng.normal(size=(12, 6)) @ rng.normal(size=(6, C * T))).reshape(N, C, T)
    picture = np.repeat(np.arange(N), REPS)
    microvolts = answers[picture] + rng.normal(size=(N * REPS, C, T))
    noise = NoiseModel.fit(microvolts, picture)
    responses = forward.measure_responses(microvolts, picture, noise, n_outputs=30)
    model = forward.ForwardModel.fit(x, responses, 0.1)
    left = np.eye(C) + 0.2 * rng.normal(size=(C, C))  # undoes the whitening of notebook 01
    whitened = np.linalg.inv(left) @ microvolts.reshape(N, REPS, C, T).mean(1)
    known = {
        "embeddings": rng.normal(size=(N, 4)),
        "silhouettes": rng.random((N, 16, 16)),
        "colours": rng.random((N, 3, 2, 2)),
        "both": rng.random((N, 6)),
        "category": rng.integers(-1, KINDS, N),
    }
    with_labels = forward.with_category(x, known["category"], KINDS, LABELS)
    labelled = forward.ForwardModel.fit(with_labels, responses, 0.1)
    component = EEGPosterior.from_models(
        {"sub-01": model}, {"sub-01": (left, np.eye(T))}, x, **known,
        labelled_models={"sub-01": labelled}, category_share=LABELS,
        channels=[f"E{i}" for i in range(C)], n_times=T, sfreq=100.0,
        gallery_ids=[f"pic-{i}" for i in range(N)], categories=["a", "b", "c"], temperature=0.5,
        largest_weight=0.3, largest_look_weight=0.2, look_temperature=0.4, colour_mode=0.4, colour_bandwidth=0.3,
        linear_share=SHARE,
    )  # fmt: skip
    models = {False: (model, x), True: (labelled, with_labels)}
    return component, models, known, microvolts.reshape(N, REPS, C, T).mean(1), left, whitened


@pytest.mark.parametrize("labelled", [False, True])
def test_the_component_gives_the_likelihood_of_its_models(study, labelled):
    component, models, _, averages, _, whitened = study
    model, x = models[labelled]
    expected = model.log_likelihood(model.space.project(averages[:6]), x, REPS)
    found = component.log_likelihood(whitened[:6], "sub-01", REPS, labelled).numpy()
    difference = found - expected
    assert np.allclose(difference, difference[:, :1], atol=1e-3), "equal but for a constant"


def test_the_component_says_what_the_models_say(study):
    """Silhouette and category by the model with labels, embedding and colours by the other."""
    component, models, known, averages, _, whitened = study
    outputs = models[False][0].space.project(averages[:6])
    look, kind = (m.log_likelihood(outputs, x, REPS) for m, x in (models[False], models[True]))
    by_look = forward.spread_out(forward.posterior_weights(look, 0.4), 0.2)
    by_kind = forward.posterior_weights(kind, 0.5)
    by_kind = forward.spread_out(forward.favour_categories(by_kind, known["category"], 1.0), 0.3)

    def mean(labelled, name):
        """Weighted mean, moved by the evidence in what it leaves of the EEG."""
        model, x = models[labelled]
        weights = by_kind if labelled else by_look
        evidence = model.unexplained(outputs, weights @ x, REPS, SHARE)
        covariance = forward.cross_covariance(x, known[name])
        return np.tensordot(weights, known[name], 1) + np.tensordot(evidence, covariance, 1)

    decoded = component(whitened[:6], "sub-01", REPS)
    assert np.allclose(decoded.embedding, mean(False, "embeddings"), atol=1e-3)
    assert not np.allclose(decoded.embedding, by_look @ known["embeddings"], atol=0.05)
    one_hot = np.eye(KINDS + 1)[known["category"] + 1][:, 1:]
    assert np.allclose(decoded.category, by_kind @ one_hot, atol=1e-3)
    silhouettes = torch.from_numpy(mean(True, "silhouettes")).float()
    assert np.allclose(decoded.maps, sharpened_maps(silhouettes), atol=0.05)  # stored with 8 bits
    assert (decoded.maps >= 0).all() and (decoded.maps <= 1).all()
    densest = [forward.posterior_mode(by_look, known["both"][:, i : i + 3], 0.3) for i in (0, 3)]
    share = torch.nn.functional.adaptive_avg_pool2d(decoded.maps[:, :1], 2).numpy()
    on_map = share * densest[0][:, :, None, None] + (1 - share) * densest[1][:, :, None, None]
    layout = 0.4 * on_map + 0.6 * mean(False, "colours").clip(0, 1)
    assert np.allclose(decoded.colours, layout, atol=1e-3)


def test_without_labels_one_model_says_everything(study):
    component, models, known, _, left, whitened = study
    config = {k: component.config[k] for k in ("channels", "n_times", "sfreq", "gallery_ids")}
    plain = EEGPosterior.from_models(
        {"sub-01": models[False][0]}, {"sub-01": (left, np.eye(T))}, models[False][1], **known,
        categories=["a", "b", "c"], **config,
    )  # fmt: skip
    again = component.refitted(
        {"sub-01": models[False][0]}, {"sub-01": (left, np.eye(T))}, category_share=0.0
    )
    assert again.config.category_share == 0 and again.config.linear_share == SHARE
    looks = (c.log_likelihood(whitened[:2], "sub-01", REPS) for c in (plain, component))
    assert torch.equal(*looks)
    asked = plain.log_likelihood(whitened[:2], "sub-01", REPS, labelled=True)
    assert torch.equal(asked, plain.log_likelihood(whitened[:2], "sub-01", REPS))
    assert plain(whitened[:2], "sub-01", REPS).maps.shape == (2, 2, 16, 16)


def test_a_model_with_labels_comes_with_a_share_and_the_other_way_round(study):
    component, models, known, _, left, _ = study
    config = {k: component.config[k] for k in ("channels", "n_times", "sfreq", "gallery_ids")}
    for more in ({"category_share": 0.2}, {"labelled_models": {"sub-01": models[True][0]}}):
        with pytest.raises(ValueError, match="if, and only if, there is a share"):
            EEGPosterior.from_models(
                {"sub-01": models[False][0]}, {"sub-01": (left, np.eye(T))}, models[False][1],
                **known, categories=["a", "b", "c"], **config, **more,
            )  # fmt: skip


def test_the_densest_colour_is_one_that_pictures_have():
    """Nine orange and nine blue pictures with a lighter weight: the mean is grey, the mode orange."""
    orange, blue = np.array([0.9, 0.5, 0.1]), np.array([0.1, 0.5, 0.9])
    rng = np.random.default_rng(0)
    colours = np.concatenate([c + 0.02 * rng.standard_normal((9, 3)) for c in (orange, blue)])
    weights = np.repeat([0.6 / 9, 0.4 / 9], 9)[None]
    assert np.allclose(forward.posterior_mode(weights, colours, 0.1), orange, atol=0.03)
    with pytest.raises(ValueError, match="bandwidth is 0"):
        forward.posterior_mode(weights, colours, 0)


def test_draws_lie_around_the_mean_and_differ(study):
    component, *_, whitened = study
    mean = component(whitened[:4], "sub-01", REPS)
    draws = component.draws(whitened[:4], "sub-01", REPS, 40, np.random.default_rng(0))
    category = torch.stack([d.category for d in draws])
    assert (category.std(0).amax(1) > 0.01).all(), "each epoch has its spread"
    assert (category.mean(0) - mean.category).abs().max() < 0.1
    (again,) = component.draws(whitened[:4], "sub-01", REPS, 1, np.random.default_rng(0))
    assert torch.equal(again.category, draws[0].category)


def test_more_trials_make_it_surer(study):
    component, *_, whitened = study
    spread = [
        (component.log_likelihood(whitened, "sub-01", n) * 0.5).softmax(1).amax(1).mean()
        for n in (1, REPS)
    ]
    assert spread[1] > spread[0]


def test_saved_and_loaded_it_says_the_same(study, tmp_path):
    component, *_, whitened = study
    component.save_pretrained(tmp_path)
    again = EEGPosterior.from_pretrained(tmp_path)
    models, left = study[1], study[4]
    assert np.allclose(again.labelled_features(), models[True][1], atol=1e-6)
    both = ({"sub-01": models[labelled][0]} for labelled in (False, True))
    refitted = again.refitted(next(both), {"sub-01": (left, np.eye(T))}, next(both))
    before, *after = (c(whitened[:3], "sub-01", REPS).maps for c in (component, again, refitted))
    assert all(torch.equal(before, maps) for maps in after)


def test_what_is_kept_between_epochs_is_of_the_weights_that_are_there(study, tmp_path):
    """Predictions of the set are kept for the next epoch; other weights must not meet old ones."""
    study[0].save_pretrained(tmp_path)
    component, epoch = EEGPosterior.from_pretrained(tmp_path), study[-1][:1]
    first = component.log_likelihood(epoch, "sub-01", REPS)
    assert torch.equal(component.log_likelihood(epoch, "sub-01", REPS), first)
    other = {k: -v if k == "coefficients_0" else v for k, v in component.state_dict().items()}
    component.load_state_dict(other)
    changed = component.log_likelihood(epoch, "sub-01", REPS)
    assert not torch.allclose(changed, first)
    assert not torch.equal(component.half().log_likelihood(epoch, "sub-01", REPS), changed)


def test_answers_do_not_depend_on_what_was_asked_before(study, tmp_path):
    """What the averages leave unexplained is weighed for this number of trials and these weights."""
    study[0].save_pretrained(tmp_path)
    epoch = study[-1][:1]

    def fresh(n):
        return EEGPosterior.from_pretrained(tmp_path)(epoch, "sub-01", n).embedding

    component = EEGPosterior.from_pretrained(tmp_path)
    component.n_kept = 1
    asked = {n: component(epoch, "sub-01", n).embedding for n in (REPS, 1, 2, REPS)}
    assert all(torch.equal(answer, fresh(n)) for n, answer in asked.items())
    assert not torch.equal(asked[1], asked[REPS])
    other = {k: 2 * v if k == "with_gallery" else v for k, v in component.state_dict().items()}
    component.load_state_dict(other)
    assert not torch.equal(component(epoch, "sub-01", REPS).embedding, asked[REPS])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subject": "sub-09"}, "no forward model of 'sub-09'.*conditions='encoder'"),
        ({"n_averaged": None}, "how many trials each epoch is the average of"),
        ({"n_averaged": 0}, "how many trials"),
        ({"eeg": np.zeros((2, C - 1, T))}, "all electrodes in the order"),
        ({"eeg": np.zeros((0, C, T))}, "all electrodes in the order"),
        ({"eeg": np.full((2, C, T), np.nan)}, "NaN or infinity, first in epochs .0, 1."),
    ],
)
def test_what_cannot_be_read_is_refused(study, change, message):
    arguments = {"eeg": np.zeros((2, C, T)), "subject": "sub-01", "n_averaged": 1} | change
    with pytest.raises(ValueError, match=message):
        study[0](**arguments)


def test_parts_of_different_sets_are_refused(study):
    _, models, known, *_ = study
    model, x = models[False]
    config = {"channels": ["E"] * C, "n_times": T, "sfreq": 100.0, "categories": ["a", "b", "c"]}
    with pytest.raises(ValueError, match="and 89 ids"):
        EEGPosterior.from_models(
            {"sub-01": model}, {"sub-01": (np.eye(C), np.eye(T))}, x, **known, **config,
            gallery_ids=["p"] * (N - 1),
        )  # fmt: skip


def test_sharpened_maps_have_an_outline_inside_the_figure():
    grey = torch.full((1, 8, 8), 0.1)
    grey[0, 2:6, 3:8] = 0.8  # touches the frame
    made = sharpened_maps(grey, threshold=0.4, steepness=60.0)
    figure, edges = made[0].round().bool()
    assert figure.sum() == 20 and figure[2:6, 3:8].all()
    assert edges[figure].sum() == 20 - 6 and not edges[~figure].any()
    assert not edges[3:5, 4:7].any(), "four neighbours inside: no edge"
    with pytest.raises(ValueError, match="threshold 1"):
        sharpened_maps(grey, 1.0)
