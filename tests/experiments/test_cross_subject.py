"""A person nobody trained on: what is shared, calibration, recovery, and every refusal."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

from sgdm_utils import metrics
from sgdm_utils.experiments import cross_subject as cross
from sgdm_utils.experiments import recovery
from sgdm_utils.experiments.cross_subject import CrossSubjectError
from sgdm_utils.metrics import tables
from sgdm_utils.signals.noise import NoiseModel
from sgdm_utils.workflow import artifacts, config, paths, run

C, T, F, N, REPS = 6, 12, 10, 120, 4
TEST = 40


@pytest.fixture(scope="module")
def people():
    """Five linear brains that share three quarters of their power; the last is the new person."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(N + TEST, F)) / np.sqrt(F)
    plan, picture = rng.normal(size=(F, C * T)), np.repeat(np.arange(N + TEST), REPS)
    eeg = []
    for _ in range(5):
        answer = features @ (plan + 0.6 * rng.normal(size=plan.shape)) + 0.3 * rng.normal(
            size=C * T
        )
        noise = 1.5 * rng.normal(size=(len(picture), C, T))
        eeg.append((answer[picture].reshape(-1, C, T) + noise).astype(np.float32))
    rows = np.flatnonzero(picture < N)
    noise = cross.pooled_noise([NoiseModel.fit(e, picture, rows) for e in eeg[:4]])
    halves = [cross.Halves.of(e, picture, rows) for e in eeg[:4]]
    others = cross.learn_from(halves, noise, features, n_outputs=40)
    tested = eeg[4][picture >= N].reshape(TEST, REPS, C, T).mean(1)
    return {
        "features": features, "picture": picture, "eeg": eeg, "rows": rows, "noise": noise,
        "halves": halves, "others": others, "outputs": others.read(tested),
    }  # fmt: skip


def top1(person, people):
    scores = person.log_likelihood(people["outputs"], people["features"][N:], REPS)
    return (scores.argmax(1) == np.arange(TEST)).mean()


def calibrated(people, n_trials, person=4):
    rows = np.random.default_rng(1).permutation(people["rows"])[:n_trials]
    outputs = people["others"].read(people["eeg"][person][rows])
    picture = people["picture"][rows]
    return cross.calibrate(people["others"], people["features"], picture, outputs)


def test_halves_average_to_what_all_repetitions_do(people):
    eeg, picture = people["eeg"][0], people["picture"]
    rows = np.flatnonzero((picture == 3) | (picture == 7))[:-1]  # four and three repetitions
    halves = cross.Halves.of(eeg, picture, rows[::-1])
    assert halves.pictures.tolist() == [3, 7] and halves.counts.tolist() == [[2, 2], [2, 1]]
    np.testing.assert_allclose(halves.mean[1], eeg[rows[4:]].mean(0), atol=1e-5)


def test_the_fast_reader_gives_what_the_space_gives(people):
    space = cross.measure_responses(
        people["eeg"][0], people["picture"], people["noise"], people["rows"]
    ).space
    epochs = people["eeg"][1][:9]
    np.testing.assert_allclose(cross.reader(space)(epochs), space.project(epochs), atol=1e-4)


def test_variance_between_people_is_that_which_was_drawn(people):
    others = people["others"]
    ratio = others.between.sum() / others.shared.space.signal_variance.sum()
    # of the mean of four people: 1 shared, and .36 / 4 of their own
    assert 0.2 < ratio < 0.45
    assert (
        cross.learn_from(
            people["halves"][:1] * 3, people["noise"], people["features"], 40
        ).between.sum()
        < 0.05 * others.between.sum()
    )


def test_an_unseen_person_is_above_chance_and_calibration_takes_over(people):
    none = top1(cross.new_person(people["others"]), people)
    some, much = (top1(calibrated(people, n), people) for n in (120, 480))
    assert none > 5 / TEST and some > none and much > some - 0.05
    wrong = top1(calibrated(people, 480, person=0), people)
    assert wrong < much
    one = cross.learn_from(people["halves"][:1], people["noise"], people["features"], 40)
    assert (one.between > 0).all()  # one other person does not tell how much people differ


def test_a_calibrated_model_has_white_noise_and_knows_its_error(people):
    person, rows = calibrated(people, 480), people["rows"]
    outputs = person.outputs(people["others"].read(people["eeg"][4][rows]))
    mean, variance = person.model.predict(people["features"][N:])
    error = person.outputs(people["outputs"]) - mean
    expected = variance + 1 / REPS
    assert 0.7 < (error**2).mean() / expected.mean() < 1.4
    rest = outputs - people["features"][people["picture"][rows]] @ person.model.coefficients
    assert np.abs(rest.var(0) - 1).mean() < 0.25


def test_recovery_brings_turned_points_back():
    rng = np.random.default_rng(3)
    gallery = rng.normal(size=(60, 8))
    turn = np.linalg.qr(np.eye(8) + 0.4 * rng.normal(size=(8, 8)))[0]
    turn = turn * np.sign(np.diagonal(turn))
    decoded = gallery @ turn + 0.3 * rng.normal(size=(60, 8))
    near = lambda z, g: -((z[:, None] - g[None]) ** 2).sum(-1) / 0.5  # noqa: E731
    hits = lambda z: (near(z, gallery).argmax(1) == np.arange(60)).mean()  # noqa: E731
    turned = recovery.recover_rotation(decoded, gallery, near, 0.2)
    assert hits(turned) > hits(decoded) + 0.1
    np.testing.assert_allclose(recovery.procrustes(gallery, gallery @ turn, 0.0), turn, atol=1e-8)
    np.testing.assert_allclose(
        recovery.procrustes(gallery, gallery @ turn, 1e9), np.eye(8), atol=1e-6
    )
    moved = recovery.match_moments(3 * decoded + 5, gallery)
    np.testing.assert_allclose((moved.mean(0), moved.std(0)), (gallery.mean(0), gallery.std(0)))
    trials = rng.normal(size=(20_000, 8)) @ np.diag(np.arange(1, 9))
    matrix = recovery.rewhitening(trials, np.eye(8), 0.0)
    np.testing.assert_allclose(matrix, np.diag(1 / np.arange(1, 9)), atol=0.02)


def test_csls_takes_the_lead_from_a_hub():
    similarity = np.array([[0.8, 0.1, 0.9], [0.1, 0.8, 0.9], [0.2, 0.1, 0.9]])
    assert similarity.argmax(1).tolist() == [2, 2, 2]
    assert metrics.csls(similarity, 2).argmax(1).tolist() == [0, 1, 2]


def test_identity_is_told_where_it_is_there_and_nowhere_else():
    rng = np.random.default_rng(4)
    person, item = np.repeat(np.arange(4), 50), np.tile(np.arange(50), 4)
    z = rng.normal(size=(200, 6))
    assert cross.identity_accuracy(z, person, item, rng).mean() < 0.4
    shifted = z + 3 * np.eye(4, 6)[person]
    assert cross.identity_accuracy(shifted, person, item, rng).mean() > 0.9
    # a shift is all there is, and taking it out must not tell either (below chance is telling)
    assert 0.1 < cross.identity_accuracy(shifted, person, item, rng, True).mean() < 0.4


def recording(minutes, onset=None):
    n = int(minutes * 200)
    onset = np.linspace(0, 60 * minutes, n) if onset is None else onset
    return pd.DataFrame(
        {"subject": "sub-04", "session": "01", "run": "01", "onset_s": onset}, index=range(n)
    )


def test_minutes_go_on_from_run_to_run_and_a_stretch_is_as_long_as_asked():
    two = pd.concat([recording(3), recording(2).assign(run="02")], ignore_index=True)
    recorded = cross.minutes_into_recording(two)
    assert (np.diff(recorded) > 0).all() and recorded[-1] == pytest.approx(5, rel=0.01)
    for seed in range(4):
        rows = cross.calibration_rows(recorded, 2, np.random.default_rng(seed), "sub-04")
        assert len(rows) == pytest.approx(400, abs=3)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda: cross.require_people(["sub-01"]), "sub-01 is the only person.*subjects: in the"),
        (
            lambda: cross.minutes_into_recording(recording(1, np.nan)),
            "sub-04.*onset_s.*continuous form",
        ),
        (lambda: stretch(2, 5), "sub-04: 5 minutes.*last 2.0. Take 5 out of minutes"),
        (
            lambda: stretch(2, 0.05),
            "sub-04: 0.05 minutes of calibration hold .* trials, 20 are needed",
        ),
        (lambda: stretch(0, 1), "sub-04: 1 minutes.*last 0.0"),
        (lambda: recovery.match_moments(np.ones((1, 2)), np.eye(2)), "decoded have shape .1, 2."),
        (lambda: recovery.procrustes(np.eye(2), np.eye(3)), "need one shape"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name_with_the_remedy(broken, message):
    with pytest.raises(CrossSubjectError, match=message):
        broken()


def stretch(length, minutes):
    recorded = cross.minutes_into_recording(recording(length)) if length else np.zeros(0)
    return cross.calibration_rows(recorded, minutes, np.random.default_rng(0), "sub-04")


def test_other_electrodes_are_refused(people):
    first, *rest = people["halves"]
    fewer = cross.Halves(first.pictures, first.epochs[:, :, :5], first.counts)
    with pytest.raises(CrossSubjectError, match="epochs of 5 electrodes.*noise of 6.*`channels`"):
        cross.learn_from([fewer, *rest], people["noise"], people["features"])


@pytest.mark.slow
def test_the_notebook_on_the_small_study(smoke_study, tmp_path, monkeypatch):
    shutil.copytree(smoke_study.data, tmp_path / "data")
    monkeypatch.setenv("SGDM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SGDM_REPORTS", str(tmp_path / "reports"))
    study = smoke_study.config
    name = "experiments/14_cross_subject"
    run.execute(study, config.step(study, name, None, study.seeds[0]))
    rows = tables.read_table(paths.report_dir("smoke") / "tables" / "cross_subject.csv")
    steps = rows["condition"].str.contains("re-whitening|moments|Procrustes|CSLS|, all")
    assert rows[steps]["transductive"].all()
    assert not rows[~steps & ~rows["model"].str.contains("moments")]["transductive"].any()
    one = rows[(rows["metric"] == "top1") & (rows["subject"] == "sub-02")]
    models = {
        "forward",
        "subject layer",
        "both",
        "own model",
        "ideal",
        "wrong person",
        "wrong model",
    }
    assert set(one["model"]) == models
    asked = study.notebooks[name]["minutes"]
    assert {f"{m:g} min" for m in [0, *sorted(asked)[:-1]]} <= set(one["condition"])
    shuffled = one[one["condition"] == "0 min, shuffled EEG"]
    assert (shuffled["p_value"] > 0.001).all() and (one["n"] == 24).all()
    too_long = rows[rows["metric"].str.startswith("top1 (the recording lasts")]
    assert set(too_long["condition"]) == {f"{max(asked):g} min"} and too_long["value"].isna().all()
    artifact = artifacts.read_artifact("smoke", "joint", "14_cross_subject", study.seeds[0])
    read = {place.rsplit("/", 1)[1] for place in artifact.identity["inputs"]}
    assert read == {"data", "preprocessing"} and set(artifact.notes["verdicts"])
