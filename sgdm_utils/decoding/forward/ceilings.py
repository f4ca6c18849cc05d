"""Ceilings of a simulation: a decoder that knows every noise-free answer, and the noise in full.

A ceiling has to know what the recording went through. Templates pass the same filter, baseline and
resampling as the trials, noise is whitened over channels *and* time, and what cleaning took of the
answers (eye components, interpolated electrodes) is measured on training trials as a gain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sgdm_utils.signals.noise import NoiseError, NoiseModel
from sgdm_utils.simulation.truth import Truth

Filter = Callable[[np.ndarray], np.ndarray]


def filtered_templates(
    brain_evoked: np.ndarray,
    sfreq: float,
    times: np.ndarray,
    filtered: Filter,
    baseline: bool = True,
    pad_s: float = 4.0,
    block: int = 32,
) -> np.ndarray:
    """Noise-free answers as the preprocessing of the trials would have left them.

    Parameters
    ----------
    brain_evoked : array of shape (n, n_channels, n_samples), answers from onset on, average reference
    sfreq : float, Hz, of these answers
    times : array of shape (n_times,), seconds from onset, of the trials
    filtered : callable
        The filter of the recording: (n_channels, n_samples) at `sfreq` to the same shape. It is
        applied to answers with `pad_s` seconds of silence on both sides.
    baseline : bool, subtract the mean before onset, as from the trials
    pad_s : float, at least the length of the filter
    block : int, answers that are filtered in one go

    Returns
    -------
    float64 array of shape (n, n_channels, n_times), unit of `brain_evoked`
    """
    n, n_channels, n_samples = brain_evoked.shape
    pad = round(pad_s * sfreq)
    if times[0] < -pad_s or times[-1] > pad_s:
        raise ValueError(f"the trials reach beyond {pad_s} s around onset: give a longer pad_s")
    length = n_samples + 2 * pad
    grid = (np.arange(length) - pad) / sfreq
    result = np.empty((n, n_channels, len(times)))
    for start in range(0, n, block):
        some = brain_evoked[start : start + block]
        silent = np.zeros((len(some), n_channels, length))
        silent[..., pad : pad + n_samples] = some
        clean = filtered(silent.reshape(-1, length)).reshape(silent.shape)
        if baseline:
            before = (grid >= times[0] - 1e-9) & (grid <= 1e-9)
            clean = clean - clean[..., before].mean(-1, keepdims=True)
        # what is left of the band is far below the half of any usual rate: linear interpolation does
        place = np.interp(times, grid, np.arange(length))
        low = np.minimum(place.astype(int), length - 2)
        share = place - low
        result[start : start + len(some)] = (1 - share) * clean[..., low] + share * clean[
            ..., low + 1
        ]
    return result


def cleaned_components(truth: Truth, times: np.ndarray, settings: Mapping[str, Any]) -> np.ndarray:
    """What one unit of each simulated feature evokes, as notebook 01 leaves the trials.

    Answers are sums of features times these, and cleaning is linear, so a few hundred components
    stand for any number of pictures.

    Parameters
    ----------
    truth : Truth of the person
    times : array of shape (n_times,), seconds from onset, of the trials
    settings : parameters of 01_preprocessing (`l_freq`, `h_freq`, `notch_hz`, `baseline`)

    Returns
    -------
    float64 array of shape (n_components, n_channels, n_times), microvolts for each unit of a feature;
    what eye components and interpolation took is not in it, see `measured_gain`
    """
    from mne.filter import filter_data, notch_filter

    sfreq, brain = truth.sfreq, truth.brain

    def filtered(samples: np.ndarray) -> np.ndarray:
        if settings["notch_hz"]:
            harmonics = np.arange(settings["notch_hz"], sfreq / 2, settings["notch_hz"])
            samples = notch_filter(samples, sfreq, harmonics, verbose="error")
        edges = settings["l_freq"] or None, settings["h_freq"] or None
        return filter_data(samples, sfreq, *edges, verbose="error")

    answers = 1e6 * brain.topographies.T[:, :, None] * brain.time_courses[:, None].astype(float)
    return filtered_templates(answers, sfreq, times, filtered, settings["baseline"])


def cleaned_templates(
    truth: Truth, image_ids: Sequence[str], times: np.ndarray, settings: Mapping[str, Any]
) -> np.ndarray:
    """Noise-free answers to pictures of the study as notebook 01 leaves the trials, in microvolts.

    `image_ids` names the pictures; the other arguments are those of `cleaned_components`.

    Returns
    -------
    float64 array of shape (n, n_channels, n_times)
    """
    features = truth.features[truth.rows_of(image_ids)].astype(float)
    return np.tensordot(features, cleaned_components(truth, times, settings), 1)


def measured_gain(averages: np.ndarray, templates: np.ndarray, noise: NoiseModel) -> float:
    """How much of the templates is in the averages: slope of the whitened averages on them.

    Parameters
    ----------
    averages : array of shape (n, n_channels, n_times), averaged *training* trials
    templates : array of the same shape, of the same pictures
    noise : NoiseModel of these trials
    """
    if averages.shape != templates.shape:
        raise NoiseError(f"averages {averages.shape} and templates {templates.shape} differ")
    a, t = noise.whiten(averages), noise.whiten(templates)
    a, t = a - a.mean(0), t - t.mean(0)
    power = float((t**2).sum())
    if not power > 0:
        raise NoiseError(
            "all templates are alike (snr 0?): there is nothing that a decoder could use"
        )
    return float((a * t).sum() / power)


def ideal_log_likelihood(
    average: np.ndarray,
    templates: np.ndarray,
    noise: NoiseModel,
    n_repetitions: float,
    training_average: np.ndarray | None = None,
    training_template: np.ndarray | None = None,
) -> np.ndarray:
    """Log-likelihood, up to a constant of each row, of every template given averaged trials.

    Parameters
    ----------
    average : array of shape (n, n_channels, n_times), averages of n_repetitions trials
    templates : array of shape (n_gallery, n_channels, n_times), filtered and multiplied by the gain
    noise : NoiseModel
    n_repetitions : float
    training_average, training_template : arrays of shape (n_channels, n_times), optional
        Mean over training pictures, taken off what was recorded and what was expected (inductive).
        Without them the means of the test set itself are taken off: *transductive*, label it so.

    Returns
    -------
    float64 array of shape (n, n_gallery)
    """
    if (training_average is None) != (training_template is None):
        raise ValueError("give both training means (inductive) or neither (transductive)")
    if not n_repetitions > 0:
        raise ValueError(f"n_repetitions is {n_repetitions}: an average has at least one")
    off = average.mean(0) if training_average is None else training_average
    expected = templates.mean(0) if training_template is None else training_template
    b = noise.whiten(average - off).reshape(len(average), -1).astype(np.float64)
    p = noise.whiten(templates - expected).reshape(len(templates), -1).astype(np.float64)
    return n_repetitions * (b @ p.T - 0.5 * (p**2).sum(1))


def ideal_log_likelihood_of_features(
    average: np.ndarray,
    features: np.ndarray,
    components: np.ndarray,
    noise: NoiseModel,
    n_repetitions: float,
    training_average: np.ndarray,
    training_features: np.ndarray,
) -> np.ndarray:
    """`ideal_log_likelihood` (inductive) of very many pictures, without a template for each.

    Parameters
    ----------
    average : array of shape (n, n_channels, n_times), averages of n_repetitions trials
    features : array of shape (n_gallery, n_components), `Truth.features`
    components : array of shape (n_components, n_channels, n_times)
        `cleaned_components` times the gain.
    noise : NoiseModel
    n_repetitions : float
    training_average : array of shape (n_channels, n_times), mean over the training pictures shown
    training_features : array of shape (n_components,), theirs

    Returns
    -------
    float64 array of shape (n, n_gallery), up to a constant of each row
    """
    k = noise.whiten(components).reshape(len(components), -1).astype(np.float64)
    b = noise.whiten(average - training_average).reshape(len(average), -1).astype(np.float64)
    x = np.asarray(features, np.float64) - training_features
    power = np.einsum("ij,ij->i", x @ (k @ k.T), x)
    return n_repetitions * ((b @ k.T) @ x.T - 0.5 * power)
