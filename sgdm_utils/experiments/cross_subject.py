"""A person nobody trained on: what others share, minutes of calibration, and who is told apart.

The forward model of other people is the prior of a new person's. How much people differ is measured
among the others (their halves agree with themselves more than with each other), so a decoder knows
how little it knows about somebody new, and how fast the new person's trials should take over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sgdm_utils.decoding.forward import ForwardModel, Responses, SignalSpace, measure_responses
from sgdm_utils.metrics.tables import summarise
from sgdm_utils.signals.noise import NoiseModel

#: What is known of noise beforehand counts like so many trials: 200 outputs have 20,000 covariances.
NOISE_TRIALS = 400.0


class CrossSubjectError(ValueError):
    """People or minutes that cannot be used like this: the message says whose, and what to do."""


def require_people(subjects: Sequence[str]) -> None:
    """Refuse a study of one person: with that one left out nobody is left to learn from.

    Raises
    ------
    CrossSubjectError
    """
    if len(set(subjects)) < 2:
        raise CrossSubjectError(
            f"{' '.join(subjects) or 'nobody'} is the only person of this study: leaving one out takes "
            "two at least. List more under subjects: in the study's file in config/, or name a study "
            "that has them (people_study in the section of experiments/14_cross_subject)"
        )


def minutes_into_recording(trials: pd.DataFrame) -> np.ndarray:
    """When each trial of one person was recorded, runs one after the other.

    Parameters
    ----------
    trials : DataFrame with `subject`, `session`, `run`, `onset_s`, in the order of recording

    Returns
    -------
    float array of shape (n_trials,), minutes from the first trial; pauses between runs do not count

    Raises
    ------
    CrossSubjectError
        When the recording does not say when its trials were.
    """
    onset = trials["onset_s"].to_numpy(float)
    if not np.isfinite(onset).all():
        raise CrossSubjectError(
            f"{trials['subject'].iloc[0]}: the trials do not say when they were (onset_s is empty, as "
            "in recordings published as epochs), so minutes cannot be counted. Read the continuous form "
            "of the recording (dataset in the section of 00_data)"
        )
    minutes, passed = np.empty(len(onset)), 0.0
    groups = trials.reset_index(drop=True).groupby(["session", "run"], sort=True)
    for rows in groups.indices.values():
        minutes[rows] = passed + (onset[rows] - onset[rows].min()) / 60
        passed = np.nextafter(minutes[rows].max(), np.inf)
    return minutes


def calibration_rows(
    recorded: np.ndarray, minutes: float, rng: np.random.Generator, who: str, at_least: int = 20
) -> np.ndarray:
    """Trials of one stretch of a recording; it begins anywhere, and goes on at the start.

    Parameters
    ----------
    recorded : array of shape (n_trials,), `minutes_into_recording` of the trials to choose from
    minutes : float, above 0, length of the stretch
    rng : generator
    who : str, for messages
    at_least : int, trials without which nothing can be fitted

    Returns
    -------
    int array, ascending rows of `recorded`

    Raises
    ------
    CrossSubjectError
        When the recording is shorter, or the stretch holds too few trials.
    """
    length = float(np.ptp(recorded)) if len(recorded) else 0.0
    if not 0 < minutes <= length:
        raise CrossSubjectError(
            f"{who}: {minutes:g} minutes of calibration were asked for, the training runs last "
            f"{length:.1f}. Take {minutes:g} out of minutes, or record longer"
        )
    after = (recorded - recorded.min() - rng.uniform(0, length)) % length
    rows = np.flatnonzero(after < minutes)
    if len(rows) < at_least:
        raise CrossSubjectError(
            f"{who}: {minutes:g} minutes of calibration hold {len(rows)} trials, {at_least} are needed. "
            f"Take {minutes:g} out of minutes, or leave {who} out (subjects:)"
        )
    return rows


@dataclass(frozen=True)
class Halves:
    """Averages of even and of odd repetitions of the pictures that one person saw.

    Attributes
    ----------
    pictures : int array of shape (n,), ascending
    epochs : float32 array of shape (2, n, n_channels, n_times), zero where a half has no trial
    counts : array of shape (2, n), trials in each average
    """

    pictures: np.ndarray
    epochs: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, eeg: Any, picture: np.ndarray, rows: np.ndarray) -> Halves:
        """Average the trials `rows` of one person; `eeg` (n_trials, n_channels, n_times)."""
        order = rows[np.argsort(picture[rows], kind="stable")]
        pictures, index, shown = np.unique(picture[order], return_inverse=True, return_counts=True)
        half = np.concatenate([np.arange(n) % 2 for n in shown])
        sums = np.zeros((2, len(pictures), *eeg.shape[1:]), np.float32)
        counts = np.zeros((2, len(pictures)))
        for h in (0, 1):
            np.add.at(sums[h], index[half == h], eeg[order[half == h]])
            counts[h] = np.bincount(index[half == h], minlength=len(pictures))
        return cls(pictures, sums / np.maximum(counts, 1)[..., None, None], counts)

    @property
    def mean(self) -> np.ndarray:
        """Averages over all repetitions, (n, n_channels, n_times)."""
        return _weighted(self.epochs, self.counts)

    def apply(self, linear: Callable[[np.ndarray], np.ndarray]) -> Halves:
        """The same with a linear map of epochs applied, e.g. a whitener."""
        return replace(self, epochs=linear(self.epochs))


def pooled_noise(models: Sequence[NoiseModel]) -> NoiseModel:
    """Noise of nobody in particular: mean covariances over channels and over time."""
    first = models[0]
    channel, time = (
        np.mean([getattr(m, f"{axis}_covariance") for m in models], axis=0)
        for axis in ("channel", "time")
    )
    n_trials = sum(m.n_trials for m in models)
    shrinkage = first.channel_shrinkage, first.time_shrinkage
    return NoiseModel(channel, time, n_trials, first.method, *shrinkage)


def reader(space: SignalSpace) -> Callable[[np.ndarray], np.ndarray]:
    """`space.project` in single precision and for the selected directions only: many times faster.

    Returns
    -------
    callable
        Epochs (n, n_channels, n_times) to float64 outputs (n, n_outputs).
    """
    at_channel, at_time = np.divmod(space.selected, space.noise.n_times)
    channels, i = np.unique(at_channel, return_inverse=True)
    times, j = np.unique(at_time, return_inverse=True)
    left = (space.channel_basis[:, channels].T @ space.noise.channel_whitener).astype(np.float32)
    right = (space.noise.time_whitener @ space.time_basis[:, times]).astype(np.float32)

    def read(epochs: np.ndarray) -> np.ndarray:
        return (left @ epochs @ right)[:, i, j].astype(np.float64) - space.center

    return read


@dataclass(frozen=True)
class Others:
    """What other people share, and how much they differ.

    Attributes
    ----------
    shared : ForwardModel
        Of the mean person. Its outputs are those of `read`, in which noise has unit variance.
    read : callable, epochs (n, n_channels, n_times) to outputs (n, n_outputs)
    between : array of shape (n_outputs,), variance between people of the answer to a picture
    offset : array of shape (n_outputs,), variance between people of the mean answer
    """

    shared: ForwardModel
    read: Callable[[np.ndarray], np.ndarray]
    between: np.ndarray
    offset: np.ndarray


def learn_from(
    people: Sequence[Halves],
    noise: NoiseModel,
    features: np.ndarray,
    n_outputs: int = 200,
    lack_of_fit: float = 0.1,
) -> Others:
    """Forward model of what people have in common, and the variance between them.

    Parameters
    ----------
    people : sequence of Halves, of the same channels and samples
    noise : NoiseModel, `pooled_noise` of these people
    features : array of shape (n_pictures, n_features)
    n_outputs : int, whitened directions at most
    lack_of_fit : float, share of each output's signal that features cannot explain

    Notes
    -----
    With a and b the two halves of a person's answers in an output and the noise independent between
    them, the mean of (a - mean of a)(b - mean of b) over people, times m / (m - 1), is the variance
    between the m people without bias. With one person it cannot be measured; it is then taken to be
    half of the signal.
    """
    for person in people:
        if person.epochs.shape[2:] != (noise.n_channels, noise.n_times):
            raise CrossSubjectError(
                f"epochs of {person.epochs.shape[2]} electrodes and {person.epochs.shape[3]} samples, noise "
                f"of {noise.n_channels} and {noise.n_times}: people need the same electrodes in the same "
                "order. Run 01_preprocessing with the same `channels` for all"
            )
    pictures = np.unique(np.concatenate([p.pictures for p in people]))
    shape = (len(people), 2, len(pictures))
    counts = np.zeros(shape)
    where = [np.searchsorted(pictures, p.pictures) for p in people]
    for q, (person, at) in enumerate(zip(people, where, strict=True)):
        counts[q][:, at] = person.counts
    total = counts.sum(0)
    group = np.zeros((2, len(pictures), noise.n_channels, noise.n_times), np.float32)
    for person, at in zip(people, where, strict=True):
        share = person.counts / np.maximum(total[:, at], 1)
        group[:, at] += share[..., None, None].astype(np.float32) * person.epochs
    kept = total > 0
    halves = np.concatenate([group[h][kept[h]] for h in (0, 1)])
    number = np.concatenate([np.flatnonzero(kept[h]) for h in (0, 1)])
    space = measure_responses(halves, number, noise, n_outputs=n_outputs).space
    plain = reader(replace(space, center=np.zeros(space.n_outputs)))
    outputs = np.zeros((*shape, space.n_outputs))
    for q, (person, at) in enumerate(zip(people, where, strict=True)):
        for h in (0, 1):
            outputs[q, h, at] = plain(person.epochs[h])
    # what the two halves of a person do not share is noise; it is made white once more, over outputs
    both = (counts > 0).all(1)
    scale = np.sqrt((1 / np.maximum(counts, 1)).sum(1))
    rest = ((outputs[:, 0] - outputs[:, 1]) / scale[..., None])[both]
    white = inverse_root(
        (rest.T @ rest + NOISE_TRIALS * np.eye(rest.shape[1])) / (len(rest) + NOISE_TRIALS)
    )
    outputs = outputs @ white
    mean = _weighted(outputs.reshape(-1, *outputs.shape[2:]), counts.reshape(-1, len(pictures)))
    center = mean.mean(0)

    def read(epochs: np.ndarray) -> np.ndarray:
        return plain(epochs) @ white - center

    a, b = (_weighted(outputs[:, h], counts[:, h])[kept.all(0)] for h in (0, 1))
    signal = np.maximum(((a - a.mean(0)) * (b - b.mean(0))).mean(0), 1e-6)
    person_mean = np.stack([_weighted(o, c).mean(0) for o, c in _seen(outputs, counts)])
    between, offset = (
        _between(outputs, counts, both),
        person_mean.var(0, ddof=min(1, len(people) - 1)),
    )
    if len(people) == 1:
        between = offset = 0.5 * signal
    found = replace(
        space,
        signal_variance=signal,
        noise_variance=np.ones(len(signal)),
        center=np.zeros(len(signal)),
    )
    responses = Responses(found, pictures, mean - center, total.sum(0))
    shared = ForwardModel.fit(features, responses, lack_of_fit)
    return Others(shared, read, between, offset)


def _seen(outputs: np.ndarray, counts: np.ndarray):
    """Outputs and counts of each person, only of the pictures that they saw."""
    for o, c in zip(outputs, counts, strict=True):
        yield o[:, c.sum(0) > 0], c[:, c.sum(0) > 0]


def _between(outputs: np.ndarray, counts: np.ndarray, both: np.ndarray) -> np.ndarray:
    """Variance between people of the answers to a picture, each person's mean answer taken off."""
    m = both.sum(0)
    rows = np.flatnonzero(m > 1)
    if not len(rows):
        return np.zeros(outputs.shape[-1])
    present = both[:, None, rows, None]
    part = outputs[:, :, rows] * present
    mean_answer = part.sum(2, keepdims=True) / np.maximum(present.sum(2, keepdims=True), 1)
    part = (part - mean_answer) * present
    deviation = (part - part.sum(0) / m[rows][:, None]) * present
    product = (deviation[:, 0] * deviation[:, 1]).sum(0) / (m[rows] - 1)[:, None]
    return np.maximum(product.mean(0), 0)


def inverse_root(covariance: np.ndarray) -> np.ndarray:
    """Symmetric inverse square root of a covariance, (n, n)."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return (vectors / np.sqrt(np.maximum(values, 1e-6 * values[-1]))) @ vectors.T


def _weighted(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean over the first axis of values (k, n, ...), weighted by counts (k, n)."""
    weight = counts / np.maximum(counts.sum(0), 1)
    weight = weight.reshape(weight.shape + (1,) * (values.ndim - 2)).astype(values.dtype)
    return (weight * values).sum(0)


@dataclass(frozen=True)
class PersonModel:
    """The forward model of somebody the others know nothing of, with or without calibration.

    Attributes
    ----------
    model : ForwardModel, of outputs less `offset` times `mixing`
    offset : array of shape (n_outputs,), mean answer of this person beyond that of the others
    mixing : array of shape (n_outputs, n_outputs), makes this person's noise white
    """

    model: ForwardModel
    offset: np.ndarray
    mixing: np.ndarray

    def outputs(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs of `Others.read` as the model knows them."""
        return (outputs - self.offset) @ self.mixing

    def log_likelihood(
        self, outputs: np.ndarray, features: np.ndarray, n_repetitions: float | np.ndarray
    ) -> np.ndarray:
        """Log density of averaged epochs under every picture, (n, n_gallery); see `ForwardModel`."""
        return self.model.log_likelihood(self.outputs(outputs), features, n_repetitions)


def new_person(others: Others) -> PersonModel:
    """Nothing is known of this person: the others' model, as uncertain as people are different."""
    n = len(others.between)
    return _person(others, np.zeros(n), np.eye(n), others.offset)


def calibrate(
    others: Others,
    features: np.ndarray,
    picture: np.ndarray,
    outputs: np.ndarray,
    noise_trials: float = NOISE_TRIALS,
) -> PersonModel:
    """Adapt the model of other people with labelled trials of this one.

    Parameters
    ----------
    others : Others
    features : array of shape (n_pictures, n_features)
    picture : int array of shape (n_trials,), row of `features` that each trial shows
    outputs : array of shape (n_trials, n_outputs), `others.read` of single trials
    noise_trials : float
        The others' noise counts like so many trials of this person.

    Notes
    -----
    Coefficients of this person are those of the mean person plus a part with the variance `between`;
    given the trials that is ridge regression of what the others leave over, with a penalty of its
    own for each output.
    """
    picture, n = np.asarray(picture), len(outputs)
    if picture.shape != (n,) or not n:
        raise CrossSubjectError(
            f"{n} trials, {len(picture)} pictures: give the picture of each trial"
        )
    shared = others.shared
    left = outputs - features[picture] @ shared.coefficients
    offset = left.mean(0) * n * others.offset / (n * others.offset + 1)
    rest = left - offset
    covariance = (rest.T @ rest + noise_trials * np.eye(len(offset))) / (n + noise_trials)
    person = _person(others, offset, inverse_root(covariance), np.zeros_like(offset))
    shown, index, count = np.unique(picture, return_inverse=True, return_counts=True)
    sums = np.zeros((len(shown), outputs.shape[1]))
    np.add.at(sums, index, rest @ person.mixing)
    x = features[shown]
    square, vectors = np.linalg.eigh((x.T * count) @ x)
    keep = square > 1e-10 * square[-1]
    square, vectors = square[keep, None], vectors[:, keep]
    model = person.model
    power = model.scale * square
    shrinkage = power / (power + 1 + model.lack_of_fit)
    part = vectors @ (shrinkage * (vectors.T @ (x.T @ sums)) / square)
    told = {"n_trials": n, "n_pictures": len(shown)}
    model = replace(
        model, coefficients=model.coefficients + part, directions=vectors, shrinkage=shrinkage,
        notes=model.notes | told,
    )  # fmt: skip
    return replace(person, model=model)


def _person(
    others: Others, offset: np.ndarray, mixing: np.ndarray, lack: np.ndarray
) -> PersonModel:
    shared, squares = others.shared, mixing**2
    # what training on others has left open is open for this person, too
    scale = others.between + np.maximum(shared.typical_variance - shared.lack_of_fit, 0)
    none = np.zeros((shared.n_features, 0)), np.zeros((0, len(offset)))
    lack = (shared.lack_of_fit + lack) @ squares
    model = replace(
        shared, coefficients=shared.coefficients @ mixing, directions=none[0], shrinkage=none[1],
        scale=scale @ squares, lack_of_fit=lack, typical_variance=scale @ squares + lack,
        space=replace(shared.space, signal_variance=shared.space.signal_variance @ squares),
    )  # fmt: skip
    return PersonModel(model, offset, mixing)


def identity_accuracy(
    z: np.ndarray,
    person: np.ndarray,
    item: np.ndarray,
    rng: np.random.Generator,
    without_moments: bool = False,
    n_folds: int = 2,
) -> np.ndarray:
    """Does an embedding tell whose it is? Hits of a linear classifier on pictures it was not fitted on.

    Parameters
    ----------
    z : array of shape (n, d)
    person, item : arrays of shape (n,), who saw which picture
    rng : generator, which pictures are held out together
    without_moments : bool
        Take out every person's mean and spread over the pictures that are not held out. (Over all
        pictures, the means of the two parts would be each other's negative, and tell.)

    Returns
    -------
    float array of shape (n,), 1 where the right person was named; chance is 1 / number of people
    """
    people, code = np.unique(person, return_inverse=True)
    require_people(people.tolist())
    items, index = np.unique(item, return_inverse=True)
    fold = (rng.permutation(len(items)) % min(n_folds, len(items)))[index]
    hits = np.zeros(len(z))
    for held_out in np.unique(fold):
        test, x = fold == held_out, np.array(z, np.float64)
        for q in range(len(people) if without_moments else 0):
            fitted = x[(code == q) & ~test]
            x[code == q] = (x[code == q] - fitted.mean(0)) / np.maximum(fitted.std(0), 1e-9)
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=100))
        hits[test] = classifier.fit(x[~test], code[~test]).predict(x[test]) == code[test]
    return hits


def draw_batch(
    people: Sequence[Halves], size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random (person, picture) pairs, averaged over one half of the repetitions or over all.

    Returns
    -------
    epochs : float32 array of shape (size, n_channels, n_times)
    person, picture : int arrays of shape (size,), row of `people` and number of the picture
    """
    person = rng.integers(len(people), size=size)
    row = (rng.random(size) * np.array([len(people[q].pictures) for q in person])).astype(int)
    use = np.array([[1, 0], [0, 1], [1, 1]])[rng.integers(3, size=size)]
    counts = np.stack([people[q].counts[:, r] for q, r in zip(person, row, strict=True)])
    weight = np.where((counts * use).any(1, keepdims=True), counts * use, counts)
    weight = (weight / weight.sum(1, keepdims=True)).astype(np.float32)
    both = np.stack([people[q].epochs[:, r] for q, r in zip(person, row, strict=True)])
    epochs = (weight[..., None, None] * both).sum(1)
    return (
        epochs,
        person,
        np.array([people[q].pictures[r] for q, r in zip(person, row, strict=True)]),
    )


def mean_rows(
    ranks_of: Mapping[tuple[str, str, str, int], np.ndarray],
    n_gallery: int,
    *,
    study: str,
    transductive: bool,
    rng: np.random.Generator,
    n_resamples: int,
    ks: Sequence[int] = (1, 5),
) -> list[dict[str, object]]:
    """Table rows of all people: hits of a picture averaged over splits, then over people.

    Parameters
    ----------
    ranks_of : mapping of (model, condition, subject, split) to ranks of the seen pictures, (n,)

    Returns
    -------
    list of rows as `metrics.summarise` gives them; intervals resample people and pictures
    """
    keys = list(ranks_of)
    rows = []
    for model, condition in dict.fromkeys(key[:2] for key in keys):
        people = list(dict.fromkeys(k[2] for k in keys if k[:2] == (model, condition)))
        for k in ks:
            hits = [
                np.mean([ranks_of[key] <= k for key in keys if key[:3] == (model, condition, s)], 0)
                for s in people
            ]
            groups = np.repeat(people, [len(h) for h in hits])
            rows.append(
                summarise(
                    np.concatenate(hits), rng=rng, n_resamples=n_resamples, study=study, model=model,
                    groups=groups if len(people) > 1 else None, subject="all", seed=None,
                    condition=condition, metric=f"top{k}", chance=k / n_gallery,
                    transductive=transductive,
                )
            )  # fmt: skip
    return rows
