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
