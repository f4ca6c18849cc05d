"""A recording whose truth is known: forward-modelled EEG of people who watch the study's pictures.

The generative model has three stages that follow one another in time and place, as in the ventral
visual stream: *early* retinotopic features (occipital, about 80-130 ms), *shape* components of the
structure map (lateral occipital, 120-200 ms) and *semantic* components of what is seen (ventral
temporal, 150-350 ms). Each feature drives one dipole (or one bilateral pair) with a time course of
its own; a spherical head carries the dipoles to 63 electrodes. On top lie the things that make EEG
hard: pink background, alpha, blinks and eye movements, line noise, drifts, a bad channel, and the
responses to the neighbouring pictures of a 5 Hz stream.

Nothing here knows the decoder: the features are computed from pixels, masks and drawn attributes,
never from a network of the study.
"""

from __future__ import annotations

from dataclasses import dataclass

import mne
import numpy as np
import pandas as pd
from scipy.fft import irfft, next_fast_len
from scipy.ndimage import gaussian_filter1d

from sgdm_utils.simulation.brain import (
    EEG_CHANNELS,
    EOG_CHANNELS,
    RESPONSE_S,
    Brain,
    make_brain,
    make_info,
    retinotopic_features,
    scaled_features,
    source_features,
)

# the parts of the simulation that notebooks use, in one place
__all__ = [
    "EEG_CHANNELS",
    "EOG_CHANNELS",
    "RESPONSE_S",
    "Brain",
    "Presentation",
    "make_brain",
    "make_info",
    "make_stream",
    "retinotopic_features",
    "scaled_features",
    "simulate_run",
    "source_features",
]


@dataclass(frozen=True)
class Presentation:
    """The picture stream of one run: what came when.

    Attributes
    ----------
    onset_s : array of shape (n_events,), float64, seconds from the start of the run
    row : array of shape (n_events,), int, row of the picture in the stimulus table, -1 for a target
    duration_s : float, length of the run in seconds
    """

    onset_s: np.ndarray
    row: np.ndarray
    duration_s: float


def make_stream(
    rows: np.ndarray, rng: np.random.Generator, soa_s: float = 0.2, per_sequence: int = 20
) -> Presentation:
    """Order pictures into rapid sequences, never the same picture twice in a row.

    Parameters
    ----------
    rows : int array, stimulus rows with repetitions
    rng : generator
    soa_s : float, stimulus onset asynchrony in seconds
    per_sequence : int, pictures per sequence; every second sequence holds one target besides

    Returns
    -------
    Presentation
    """
    order = rng.permutation(rows)
    for _ in range(100):  # an exchange can make a new pair: repeat until there is none
        twice = np.flatnonzero(order[1:] == order[:-1]) + 1
        if not len(twice):
            break
        for i in twice:
            j = rng.integers(len(order))
            order[i], order[j] = order[j], order[i]
    else:
        raise ValueError("too few different pictures to avoid showing one twice in a row")
    onset, shown, clock = [], [], 2.0
    for s in range(0, len(order), per_sequence):
        sequence = list(order[s : s + per_sequence])
        if (s // per_sequence) % 2:
            sequence.insert(int(rng.integers(2, len(sequence) + 1)), -1)
        onset += [clock + i * soa_s for i in range(len(sequence))]
        shown += sequence
        clock = onset[-1] + soa_s + rng.uniform(1.1, 1.5)
    return Presentation(np.array(onset), np.array(shown), clock + 1.0)


def _pink(rng, n_rows: int, n: int, sfreq: float, exponent: float = 1.0) -> np.ndarray:
    """Unit-variance noise with a 1/f**exponent power spectrum, flat below 0.5 Hz."""
    length = next_fast_len(
        n, real=True
    )  # a prime number of samples would take a hundred times longer
    freq = np.fft.rfftfreq(length, 1 / sfreq)
    amplitude = (np.maximum(freq, 0.5) ** (-exponent / 2)).astype(np.float32)
    amplitude[0] = 0
    parts = rng.standard_normal((2, n_rows, len(freq)), dtype=np.float32)
    x = irfft(amplitude * (parts[0] + 1j * parts[1]), length)[:, :n]
    return (x / x.std(axis=1, keepdims=True)).astype(np.float32)


def background(
    info: mne.Info, brain: Brain, n_samples: int, rng: np.random.Generator, bad_channel: str
) -> np.ndarray:
    """Everything that would be there without pictures.

    Returns
    -------
    float32 array of shape (n_eeg + n_eog, n_samples), volts
    """
    sfreq, p = info["sfreq"], brain.noise_patterns
    t = np.arange(n_samples) / sfreq
    eeg = (p["cortex"] @ _pink(rng, p["cortex"].shape[1], n_samples, sfreq)) * 0.75e-6
    envelope = np.abs(_pink(rng, 6, n_samples, sfreq, exponent=2.0))
    phase = 2 * np.pi * (10.0 + rng.normal(0, 0.4, (6, 1))) * t + rng.uniform(0, 6.28, (6, 1))
    eeg += (p["alpha"] @ (envelope * np.cos(phase)).astype(np.float32)) * 1.5e-6
    impulses = (rng.random(n_samples) < 0.2 / sfreq).astype(np.float32)  # a blink every 5 s
    blink = gaussian_filter1d(impulses, 0.055 * sfreq)
    blink = blink / max(blink.max(), 1e-12) * 150e-6
    steps = (rng.random(n_samples) < 0.4 / sfreq) * rng.normal(size=n_samples)
    gaze = np.cumsum(steps)
    gaze = (gaze - gaussian_filter1d(gaze, 1.5 * sfreq)).astype(np.float32) * 30e-6
    eeg += p["blink"] * blink + p["saccade"] * gaze
    mains = np.sin(2 * np.pi * 50 * t).astype(np.float32)
    eeg += p["mains"] * mains * 3e-6
    eeg += _pink(rng, len(eeg), n_samples, sfreq, exponent=2.5) * 6e-6  # electrode drift
    eeg += rng.normal(size=eeg.shape).astype(np.float32) * 0.8e-6
    bad = EEG_CHANNELS.index(bad_channel)
    eeg[bad] += rng.normal(size=n_samples).astype(np.float32) * 60e-6
    eog = np.stack([blink * 1.6, gaze * 2.0]) + rng.normal(size=(2, n_samples)) * 3e-6
    eog += mains * 2e-6
    return np.concatenate([eeg, eog]).astype(np.float32)


def simulate_run(
    info: mne.Info,
    brain: Brain,
    features: np.ndarray,
    stream: Presentation,
    table: pd.DataFrame,
    rng: np.random.Generator,
    bad_channel: str,
) -> mne.io.RawArray:
    """One continuous run with its events as annotations.

    Parameters
    ----------
    info, brain : the cap and the subject
    features : float array of shape (n_pictures, n_components), from `scaled_features`
    stream : Presentation, `row` refers to rows of `features` and `table`
    table : stimulus table with `stim_file` and `concept`
    rng : generator
    bad_channel : str, an EEG channel that goes bad in this run

    Returns
    -------
    mne.io.RawArray in volts, annotations 'image' and 'target' with extras `stim_file`, `concept`
    """
    sfreq = info["sfreq"]
    n_samples = int(np.ceil(stream.duration_s * sfreq))
    data = background(info, brain, n_samples, rng, bad_channel)
    shown = np.unique(stream.row[stream.row >= 0])
    evoked = dict(zip(shown, brain.evoked(features[shown]), strict=True))
    target = 1.3 * brain.evoked(np.eye(1, features.shape[1], features.shape[1] - 1))[0]
    n_eeg = len(EEG_CHANNELS)
    start = np.round(stream.onset_s * sfreq).astype(int)
    for s, row in zip(start, stream.row, strict=True):
        response = target if row < 0 else evoked[row]
        data[:n_eeg, s : s + response.shape[1]] += response
    raw = mne.io.RawArray(data, info, verbose="error")
    columns = ("stim_file", "concept")
    told = table[list(columns)].to_dict("records")
    nothing = dict.fromkeys(columns, "n/a")
    extras = [nothing if row < 0 else told[row] for row in stream.row]
    kind = np.where(stream.row < 0, "target", "image")
    raw.set_annotations(mne.Annotations(start / sfreq, 0.1, kind, extras=extras))
    return raw
