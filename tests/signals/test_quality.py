"""Preprocessing against independent implementations and hand-made cases."""

from __future__ import annotations

import mne
import numpy as np
import pandas as pd
import pytest

from sgdm_utils.datasets.tables import check_signal
from sgdm_utils.errors import ChannelError
from sgdm_utils.signals import quality
from sgdm_utils.simulation.recording import EEG_CHANNELS


@pytest.fixture
def raw():
    rng = np.random.default_rng(0)
    info = mne.create_info(EEG_CHANNELS, 200.0, "eeg")
    shared = rng.normal(size=(8, 20_000))
    data = rng.normal(size=(63, 8)) @ shared + rng.normal(size=(63, 20_000))
    return mne.io.RawArray(data * 1e-6, info, verbose="error")


@pytest.mark.parametrize("fault", ["loud", "lonely"])
def test_bad_channels_are_found_and_good_ones_kept(raw, fault):
    assert quality.find_bad_channels(raw) == []
    noise = np.random.default_rng(2).normal(size=20_000) * 1e-6
    scale = {"loud": 60.0, "lonely": raw._data[10].std() / noise.std()}[fault]
    raw._data[10] = noise * scale
    assert quality.find_bad_channels(raw) == [EEG_CHANNELS[10]]


@pytest.mark.parametrize(
    ("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), ("flat", "no signal")]
)
def test_a_broken_channel_is_named(value, word):
    data = np.random.default_rng(0).normal(size=(3, 50))
    data[1] = 2.0 if value == "flat" else data[1]
    if value != "flat":
        data[1, 7] = value
    with pytest.raises(ChannelError, match=word) as error:
        check_signal(data, ["Oz", "O1", "O2"], "run-01.vhdr")
    assert "O1" in str(error.value) and "run-01.vhdr" in str(error.value)


def table(n_images, repetitions):
    ids = np.repeat([f"p{i}" for i in range(n_images)], repetitions)
    return pd.DataFrame({"subject": "sub-01", "image_id": ids, "concept": ids, "split": "test"})


def test_averages_belong_to_their_images():
    trials = table(3, 4).sample(frac=1, random_state=0).reset_index(drop=True)
    values = trials["image_id"].str[1:].astype(float).to_numpy()
    eeg = np.broadcast_to(values[:, None, None], (12, 2, 5)).astype(np.float32)
    average, means = quality.average_repetitions(eeg, trials)
    assert means["image_id"].tolist() == ["p0", "p1", "p2"]
    assert average[:, 0, 0].tolist() == [0, 1, 2]
    assert means["n_averaged"].tolist() == [4, 4, 4]
    _, some = quality.average_repetitions(eeg, trials, max_repetitions=2)
    assert some["n_averaged"].tolist() == [2, 2, 2]


def test_reliability_is_zero_for_noise_and_matches_theory_for_signal():
    rng = np.random.default_rng(0)
    trials = table(200, 8)
    signal = np.repeat(rng.normal(size=(200, 1, 1)), 8, axis=0)
    noise = rng.normal(size=(1600, 1, 4)) * 2.0
    none = quality.split_half_reliability(noise, trials, np.random.default_rng(1))
    assert np.abs(none).mean() < 0.25
    found = quality.split_half_reliability(signal + noise, trials, np.random.default_rng(1))
    expected = 1 / (1 + 4 / 8)  # signal variance 1, noise variance 4 over 8 repetitions
    assert found == pytest.approx(expected, abs=0.08)


@pytest.mark.parametrize("n_images", [20, 40])
def test_reliability_has_bounds_and_next_to_no_bias(n_images):
    """Spearman and Brown's own formula is at -1.3 in the mean here, and at -40 in places."""
    trials, rng = table(n_images, 8), np.random.default_rng(0)
    noise = rng.normal(size=(8 * n_images, 1, 1000))
    shared = np.repeat(rng.normal(size=(n_images, 1, 1000)), 8, axis=0)
    for true, signal in ((0.0, 0 * shared), (0.3, shared), (0.6, shared), (0.9, shared)):
        scale = np.sqrt(8 * (1 - true) / true) if true else 1.0
        found = quality.split_half_reliability(signal + scale * noise, trials, rng)
        assert np.abs(found).max() <= 1
        assert found.mean() == pytest.approx(true, abs=0.05)


def test_too_few_repeated_images_have_no_ceiling():
    few = pd.concat([table(quality.MIN_CEILING_IMAGES - 1, 2), table(500, 1)])
    assert quality.n_repeated_images(few) == quality.MIN_CEILING_IMAGES - 1
    with pytest.raises(ValueError, match="19 images were repeated: a noise ceiling takes 20"):
        quality.split_half_reliability(np.zeros((len(few), 1, 1)), few, np.random.default_rng(0))
