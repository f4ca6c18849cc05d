"""Copies of a recording are found however they were saved; recordings that are alike are let through."""

from __future__ import annotations

from pathlib import Path

import mne
import mne_bids
import numpy as np
import pandas as pd
import pytest
from small_bids import CHANNELS, ONSETS, PICTURES, add_recording

from sgdm_utils.datasets import bids, bids_recordings
from sgdm_utils.datasets.alljoined import forms
from sgdm_utils.datasets.same_signal import require_different
from sgdm_utils.datasets.things_eeg2.design import CHANNELS as CAP
from sgdm_utils.datasets.things_eeg2.design import RecordingList
from sgdm_utils.errors import DatasetError

SFREQ, SECONDS = 250.0, 150


def signal(seed: int, background: bool = True) -> np.ndarray:
    """(n_channels, n_samples) in volts: pink noise, alpha, blinks and mains, as EEG has them."""
    rng, n = np.random.default_rng(seed), round(SECONDS * SFREQ)
    hertz, t = np.fft.rfftfreq(n, 1 / SFREQ), np.arange(n) / SFREQ
    waves = np.fft.rfft(rng.normal(size=(len(CHANNELS), n)))
    noise = np.fft.irfft(waves / np.sqrt(np.maximum(hertz, hertz[1])), n)
    data = 15e-6 * noise / noise.std() * background
    data += 10e-6 * np.sin(2 * np.pi * 10.2 * t + rng.uniform(0, 6)) + 30e-6 * np.sin(
        100 * np.pi * t
    )
    for blink in rng.uniform(2, SECONDS - 2, SECONDS // 4):
        data[:2] += 150e-6 * np.exp(-(((t - blink) / 0.1) ** 2))
    return data


def raw_of(data: np.ndarray) -> mne.io.RawArray:
    return mne.io.RawArray(data, mne.create_info(CHANNELS, SFREQ, "eeg"), verbose="error")


def save(raw: mne.io.BaseRaw, file: Path) -> Path:
    if file.suffix == ".fif":
        raw.save(file, overwrite=True, verbose="error")
    else:
        mne.export.export_raw(file, raw, overwrite=True, verbose="error")
    return file


def events(seed: int, regular: bool = False) -> pd.DataFrame:
    """Onsets with intervals of their own, or one each 200 ms and pictures of their own."""
    rng = np.random.default_rng(100 + seed)
    onset = np.arange(2, SECONDS - 2, 0.2) if regular else np.cumsum(rng.uniform(0.8, 1.4, 100))
    images = rng.integers(0, 9, len(onset)).astype(str)
    return pd.DataFrame({"onset_s": onset, "image_id": images}).query("onset_s < @SECONDS - 1")


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("two")
    return [save(raw_of(signal(seed)), folder / f"run{seed}_raw.fif") for seed in (0, 1)]


def as_it_is(raw):
    return raw, 0.0


def cropped(raw):
    return raw.crop(1.0), 1.0


def resampled(raw):
    """To 256 Hz and back, and a second short: no sample is what it was."""
    return raw.resample(256, verbose="error").resample(SFREQ, verbose="error").crop(1.012), 1.012


def scaled(raw):
    return raw.filter(0.5, 40, verbose="error").apply_function(lambda x: x / 2), 0.0


def half(raw):
    return raw.crop(70.0), 70.0


def late(raw):
    """With half a minute of zeros before it, as of an amplifier that is not connected yet."""
    zeros = np.zeros((len(CHANNELS), round(30 * SFREQ)))
    return raw_of(np.concatenate([zeros, raw.get_data()], axis=1)), -30.0


@pytest.mark.parametrize("regular", [False, True])
@pytest.mark.parametrize("change", [as_it_is, cropped, resampled, scaled, half, late])
def test_a_copy_is_found(two, tmp_path, change, regular):
    raw, shift = change(mne.io.read_raw_fif(two[1], preload=True, verbose="error"))
    file = save(raw, tmp_path / ("copy_raw.edf" if shift >= 0 else "copy_raw.fif"))
    shown = [events(seed, regular) for seed in (0, 1)]
    copied = shown[1].assign(onset_s=shown[1]["onset_s"] - shift).query("onset_s > 0")
    with pytest.raises(DatasetError, match=r"copy_raw.* and .*run1_raw.*same signal") as refused:
        require_different([*two, file], [*shown, copied.reset_index(drop=True)], CHANNELS)
    assert f"from {max(shift, 0):.1f} s of run1_raw" in str(refused.value)
    require_different(two, shown, CHANNELS)  # what is left when one of them is removed


def test_recordings_that_are_alike_are_no_copies(two, tmp_path):
    """The same order and timing, 30 s of zeros before, or the same flicker in one electrode."""
    require_different(two, [events(0)] * 2, CHANNELS)
    require_different(two, [events(0, True)] * 2, CHANNELS)
    for before, drift in ((np.zeros, 0.0), (np.ones, 0.0), (np.zeros, 5e-3)):
        course = drift * np.linspace(0, 1, round(SECONDS * SFREQ)) ** 2  # of 5 mV
        files = [
            save(
                raw_of(np.hstack([before((5, 7500)), signal(seed) + course])),
                tmp_path / f"{seed}_raw.fif",
            )
            for seed in (0, 1)
        ]
        require_different(files, [events(0)] * 2, CHANNELS)
    flicker = 80e-6 * np.sin(2 * np.pi * 7 * np.arange(SECONDS * SFREQ) / SFREQ)
    for seed, file in enumerate(files):
        data = 1e-7 * np.random.default_rng(seed).normal(size=(5, len(flicker)))
        data[3] = flicker
        save(raw_of(data), file)
    require_different(files, [events(0)] * 2, CHANNELS)
    for file in files:  # nothing at all: `check_signal` has the word for it
        save(raw_of(np.zeros((5, 2500))), file)
    require_different(files, [events(0)] * 2, CHANNELS)


def test_a_copy_in_a_study_is_named_and_can_be_removed(tmp_path):
    """EDF in place of BrainVision, a second short, under another subject."""
    add_recording(tmp_path, "01", seed=1)
    add_recording(tmp_path, "02", seed=2)
    first = bids_recordings.find_recordings(tmp_path).iloc[0]
    raw = bids_recordings.read_recording(first, tmp_path).crop(0.5)
    raw.set_annotations(mne.Annotations(ONSETS - 0.5, 0.1, ["image"] * len(ONSETS)))
    copy = mne_bids.BIDSPath(root=tmp_path, subject="03", task="see", run="01", datatype="eeg")
    mne_bids.write_raw_bids(raw, copy, format="EDF", allow_preload=True, verbose="error")
    table = next((tmp_path / "sub-03").rglob("*_events.tsv"))
    pd.read_csv(table, sep="\t").assign(stim_file=PICTURES).to_csv(table, sep="\t", index=False)
    with pytest.raises(DatasetError, match=r"sub-03_.*\.edf and .*sub-01_.* hold the same signal"):
        bids.read_study(tmp_path, bids.EventMapping())
    recordings, _ = bids.read_study(tmp_path, bids.EventMapping(), subjects=["01", "02"])
    assert len(recordings) == 2


def test_published_forms_do_not_take_silence_for_a_copy():
    """They compare bits of a stretch at the beginning, where an amplifier may write zeros."""
    for block, copied in ((np.zeros((63, 100)), False), (signal(0)[:1, :100], True)):
        found = RecordingList(63)
        found.add({"path": "a"}, CAP, 1000.0, block)
        if copied:
            with pytest.raises(DatasetError, match="b and a hold the same signal"):
                found.add({"path": "b"}, CAP, 1000.0, block)
        else:
            found.add({"path": "b"}, CAP, 1000.0, block)
    first, seen = [], {}
    for digest in ("", "", "abc"):
        forms._compare(Path("a"), CHANNELS, digest, first, seen, None)
    with pytest.raises(DatasetError, match="hold the same signal"):
        forms._compare(Path("b"), CHANNELS, "abc", first, seen, None)
