"""The simulated recording: its truth, its signal-to-noise ratio, and what is left at zero."""

from __future__ import annotations

import mne
import numpy as np
import pandas as pd
import pytest

from sgdm_utils.simulation import recording, truth
from sgdm_utils.simulation.brain import make_brain, make_info, retinotopic_features, scaled_features

N = 24


@pytest.fixture(scope="module")
def world():
    info = make_info(125.0)
    rng = np.random.default_rng(3)
    components = {"early": 112, "shape": 12, "semantic": 10}
    brain = make_brain(info, components, np.random.default_rng(1), np.random.default_rng(2))
    features = rng.normal(size=(N, 135)).astype(np.float32)
    features[:, -1] = 1
    ids = [f"p{i}" for i in range(N)]
    table = pd.DataFrame({"stim_file": [f"{i}.png" for i in ids], "concept": ids})
    return info, brain, features, table


def record(world, snr, repetitions=6, seed=0):
    info, brain, features, table = world
    scaled = scaled_features(brain, features, snr, info["sfreq"])
    stream = recording.make_stream(
        np.repeat(np.arange(N), repetitions), np.random.default_rng(seed)
    )
    raw = recording.simulate_run(
        info, brain, scaled, stream, table, np.random.default_rng(seed), "P1"
    )
    return raw, stream, scaled


def test_potentials_of_early_visual_dipoles_are_posterior(world):
    info, brain, *_ = world
    strength = np.abs(brain.topographies[:, brain.stage == "early"]).mean(1)
    y = np.array([info["chs"][i]["loc"][1] for i in range(63)])
    assert strength[y < -0.05].mean() > 2 * strength[y > 0.05].mean()


def test_blinks_are_frontal_and_saccades_have_opposite_sides(world):
    patterns = world[1].noise_patterns
    names = recording.EEG_CHANNELS
    assert np.abs(patterns["blink"][:, 0]).argmax() in [
        names.index(n) for n in ("Fp1", "Fp2", "AFz", "AF3", "AF4")
    ]
    left, right = (patterns["saccade"][names.index(n), 0] for n in ("F7", "F8"))
    assert left * right < 0


def test_stages_follow_one_another(world):
    info, brain, *_ = world
    peak = {}
    for stage in ("early", "shape", "semantic"):
        power = (brain.time_courses[brain.stage == stage] ** 2).mean(0)
        peak[stage] = (power * np.arange(len(power))).sum() / power.sum() / info["sfreq"]
    assert 0.08 < peak["early"] < peak["shape"] < peak["semantic"] < 0.35


def test_a_stream_shows_every_picture_equally_often_and_never_twice_in_a_row():
    stream = recording.make_stream(np.repeat(np.arange(7), 30), np.random.default_rng(0))
    shown = stream.row[stream.row >= 0]
    assert np.bincount(shown).tolist() == [30] * 7
    assert (stream.row == -1).sum() > 0
    assert (np.diff(shown) != 0).all()
    assert np.diff(stream.onset_s).min() == pytest.approx(0.2)
    assert stream.duration_s > stream.onset_s[-1] + recording.RESPONSE_S


def test_annotations_name_the_picture_that_was_shown(world):
    raw, stream, _ = record(world, 0.2, repetitions=2)
    assert len(raw.annotations) == len(stream.row)
    assert raw.annotations.onset == pytest.approx(stream.onset_s, abs=0.5 / 125)
    for row, kind, extra in zip(
        stream.row, raw.annotations.description, raw.annotations.extras, strict=True
    ):
        assert (kind == "target") == (row < 0)
        assert extra["stim_file"] == ("n/a" if row < 0 else f"p{row}.png")


def test_snr_is_the_ratio_that_was_asked_for(world):
    info, brain, features, table = world
    scaled = scaled_features(brain, features, 0.3, 125.0)
    silent = scaled_features(brain, features, 0.0, 125.0)
    assert np.all(silent[:, :-1] == 0) and np.all(silent[:, -1] == 1)
    signal = brain.evoked(scaled * (brain.stage != "onset"))
    window = slice(int(0.08 * 125), int(0.35 * 125))
    rms = np.sqrt(((signal - signal.mean(0))[..., window] ** 2).mean())
    patterns = brain.noise_patterns
    rng = np.random.default_rng(5)
    noise = patterns["cortex"] @ recording._pink(rng, 90, 20_000, 125.0) * 0.75e-6
    noise = mne.filter.filter_data(noise.astype(float), 125.0, 1, 30, verbose="error")
    assert 0.15 < rms / noise.std() < 0.6  # alpha is not part of this noise


def test_averages_approach_the_stored_truth_and_only_with_signal(world, tmp_path):
    info, brain, _, table = world
    similarity = {}
    for snr in (0.0, 1.0):
        raw, stream, scaled = record(world, snr, repetitions=20)
        ids = table["concept"].tolist()
        truth.save_truth(tmp_path / "t.npz", brain, scaled, ids, 125.0)
        known = truth.load_truth(tmp_path / "t.npz")
        data = mne.filter.filter_data(raw.get_data(range(63)), 125.0, 1, 30, verbose="error") * 1e6
        data -= data.mean(0)
        start = np.round(stream.onset_s * 125).astype(int)
        average = np.stack(
            [
                np.mean([data[:, s : s + 60] for s in start[stream.row == r]], axis=0)
                for r in range(N)
            ]
        )
        good = [i for i in range(63) if recording.EEG_CHANNELS[i] != "P1"]
        times = np.arange(60) / 125
        if snr == 0:  # nothing differs between pictures in the truth itself
            assert np.ptp(known.evoked(ids, times), axis=0).max() < 1e-5
            scaled = scaled_features(brain, world[2], 1.0, 125.0)
            known = truth.Truth(brain, scaled, ids, 125.0)
        expected = known.evoked(ids, times)
        similarity[snr] = truth.pattern_correlation(average[:, good], expected[:, good])
    assert similarity[1.0] > 0.5
    assert abs(similarity[0.0]) < 0.15


def test_the_ideal_decoder_names_noise_free_answers(world):
    _, brain, features, table = world
    known = truth.Truth(brain, features, table["concept"].tolist(), 125.0)
    templates = known.evoked(table["concept"], np.arange(60) / 125)
    scores = truth.template_retrieval(templates, templates)
    assert (scores.argmax(1) == np.arange(N)).all()


def test_pictures_that_nobody_is_shown_do_not_change_the_gain(world):
    _, brain, features, _ = world
    more = np.concatenate([features, 5 * features[:4]])
    scaled = scaled_features(brain, more, 0.5, 125.0, np.arange(N))
    np.testing.assert_array_equal(scaled[:N], scaled_features(brain, features, 0.5, 125.0))
    np.testing.assert_allclose(scaled[N:, :-1], 5 * scaled[:4, :-1], rtol=1e-6)


def test_truth_of_a_picture_of_another_study_is_refused(world):
    known = truth.Truth(world[1], world[2], world[3]["concept"].tolist(), 125.0)
    with pytest.raises(KeyError, match="never"):
        known.evoked(["never"], np.arange(10) / 125)


def test_the_same_seed_gives_the_same_recording(world):
    first, second, other = (record(world, 0.2, 2, seed)[0].get_data() for seed in (4, 4, 5))
    assert np.array_equal(first, second)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_retinotopic_features_know_where_and_which_orientation():
    pictures = np.full((2, 64, 64, 3), 255, np.uint8)
    pictures[0, :16, :16] = 0  # dark upper left
    pictures[1, :, ::4] = 0  # vertical stripes
    maps = retinotopic_features(pictures)
    assert maps[0, 0].argmin() == 0
    horizontal_gradient, vertical_gradient = maps[1, 3].mean(), maps[1, 5].mean()
    assert horizontal_gradient > 10 * vertical_gradient
