"""Noise normalisation against scikit-learn, one estimate after another, and hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest
from published_recipe import covariance as published
from sklearn.discriminant_analysis import _cov

from sgdm_utils.errors import ChannelError, DatasetError
from sgdm_utils.signals import whitening


def trials(n_trials, n_channels, n_times, seed=0, offset=0.0):
    """Channels of unlike size that share a source, heavy-tailed so that estimates get shrunken."""
    rng = np.random.default_rng(seed)
    own = rng.standard_t(5, size=(n_trials, n_channels, n_times))
    shared = rng.normal(size=(n_trials, 1, n_times))
    return (own + shared) * np.arange(1, n_channels + 1)[:, None] + offset


def relative(mine, theirs):
    return np.abs(mine - theirs).max() / np.abs(theirs).max()


def grouped(eeg, condition):
    return [eeg[condition == c] for c in np.unique(condition)]


# ------------------------------------------------------------------ the estimator itself


@pytest.mark.parametrize("n_channels", [1, 7, 30])
@pytest.mark.parametrize("n", [2, 3, 4, 20, 100])
def test_one_estimate_is_scikit_learn_s(n, n_channels):
    one = trials(1, n_channels, n, seed=n, offset=3.0)
    theirs = _cov(one[0].T, shrinkage="auto")
    over_time = whitening.noise_covariance(one, np.zeros(1, int), "epochs")
    over_repetitions = whitening.noise_covariance(
        one.transpose(2, 1, 0), np.zeros(n, int), "time"
    )  # the time points as repetitions of one instant
    assert relative(over_time, theirs) < 1e-10
    assert relative(over_repetitions, theirs) < 1e-10


@pytest.mark.parametrize("mode", ["epochs", "time"])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e3])
def test_a_constant_column_is_treated_as_scikit_learn_does(mode, constant):
    eeg = trials(8, 4, 6)
    eeg[:, 2] = constant  # 0.1 is no binary fraction: its variance is not exactly 0
    condition = np.repeat([0, 1], 4)
    mine = whitening.noise_covariance(eeg, condition, mode)
    assert relative(mine, published(grouped(eeg, condition), mode)) < 1e-10


def test_with_two_repetitions_nothing_is_shrunken():
    eeg = trials(6, 5, 4)
    condition = np.array([3, 1, 2, 1, 3, 2])
    expected = np.zeros((5, 5))
    for c in (1, 2, 3):
        a, b = eeg[condition == c]
        expected += (a - b) @ (a - b).T / 4 / 4 / 3  # biased: half of the unbiased estimate
    mine = whitening.noise_covariance(eeg, condition, "time")
    np.testing.assert_allclose(mine, expected, rtol=1e-13, atol=1e-13)
    two = trials(2, 5, 1)  # rank 1 exactly: no multiple of the identity was added
    assert np.linalg.matrix_rank(whitening.noise_covariance(two, np.zeros(2, int), "time")) == 1


# ------------------------------------------------------------- means over what was shown


@pytest.mark.parametrize("mode", ["epochs", "time"])
@pytest.mark.parametrize("n_channels", [3, 12])
def test_unequal_repetition_counts(mode, n_channels):
    rng = np.random.default_rng(5)
    condition = rng.permutation(np.repeat([10, 20, 30, 40, 50], [2, 2, 3, 7, 5]))
    eeg = trials(len(condition), n_channels, 9, offset=-2.0)
    eeg[condition == 40] *= 3  # the condition shown most must not weigh most
    mine = whitening.noise_covariance(eeg, condition, mode)
    theirs = published(grouped(eeg, condition), mode)
    assert relative(mine, theirs) < 1e-10
    if mode == "epochs":
        plain = np.mean([_cov(t.T, shrinkage="auto") for t in eeg], axis=0)
        assert relative(plain, theirs) > 0.1, "the case must tell the two means apart"


@pytest.mark.parametrize("mode", ["epochs", "time"])
def test_chunks_rows_and_files_do_not_matter(mode, tmp_path):
    condition = np.tile(np.arange(9), 5)
    eeg = trials(45, 6, 11).astype(np.float32)
    np.save(tmp_path / "eeg.npy", eeg)
    file = np.load(tmp_path / "eeg.npy", mmap_mode="r")
    rows = np.random.default_rng(1).permutation(45)[:40]
    rows = rows[np.isin(condition[rows], np.arange(8))]
    theirs = published(grouped(eeg[np.sort(rows)].astype(float), condition[np.sort(rows)]), mode)
    for chunk in (None, 1, 7, 1000):
        mine = whitening.noise_covariance(file, condition, mode, rows, chunk)
        assert relative(mine, theirs) < 1e-10


class Trials:
    """What a file of trials offers: a shape, and trials for an array of row numbers."""

    def __init__(self, eeg):
        self.eeg, self.shape, self.most = eeg, eeg.shape, 0

    def __getitem__(self, rows):
        assert isinstance(rows, np.ndarray) and rows.ndim == 1
        self.most = max(self.most, len(rows))
        return self.eeg[rows]


@pytest.mark.parametrize("mode", ["epochs", "time"])
def test_a_file_of_trials_is_never_read_whole(mode):
    eeg, condition = trials(40, 4, 10), np.repeat(np.arange(10), 4)
    source = Trials(eeg)
    mine = whitening.noise_covariance(source, condition, mode, chunk=8)
    assert source.most == 8
    np.testing.assert_allclose(mine, whitening.noise_covariance(eeg, condition, mode), rtol=1e-12)
    out = []
    source.most = 0
    whitening.apply(source, np.eye(4), out=out, chunk=8)  # a list has append, too
    assert source.most == 8 and np.concatenate(out).shape == eeg.shape


def test_training_estimates_of_mode_time_are_half_as_large():
    """White noise: 1/2 over 19/20 in mode 'time' with 2 and 20 repetitions, 1 in mode 'epochs'."""
    rng = np.random.default_rng(0)
    training, test = rng.normal(size=(600, 8, 50)), rng.normal(size=(400, 8, 50))
    shown = {"training": np.repeat(np.arange(300), 2), "test": np.repeat(np.arange(20), 20)}
    ratio = {
        mode: np.trace(whitening.noise_covariance(training, shown["training"], mode))
        / np.trace(whitening.noise_covariance(test, shown["test"], mode))
        for mode in ("time", "epochs")
    }
    assert ratio["time"] == pytest.approx(0.5 / 0.95, abs=0.01)
    assert ratio["epochs"] == pytest.approx(1.0, abs=0.01)


# --------------------------------------------------------------------------- the whitener


@pytest.mark.parametrize("mode", ["epochs", "time"])
def test_whitened_training_trials_have_the_identity_as_covariance(mode):
    eeg, condition = trials(200, 6, 40), np.repeat(np.arange(100), 2)
    whitener = whitening.session_whitener(whitening.noise_covariance(eeg, condition, mode))
    assert np.allclose(whitener.matrix, whitener.matrix.T)
    white = whitening.apply(eeg, whitener.matrix, dtype=np.float64)
    if mode == "time":  # no shrinkage: the estimate itself is the identity
        again = whitening.noise_covariance(white, condition, mode)
        np.testing.assert_allclose(again, np.eye(6), atol=1e-9)
    shrunken = whitening.noise_covariance(eeg, condition, mode)
    np.testing.assert_allclose(whitener.matrix @ shrunken @ whitener.matrix, np.eye(6), atol=1e-9)


def test_the_published_whitener_is_labelled():
    a, b = np.diag([1.0, 4.0]), np.diag([3.0, 14.0])
    own = whitening.session_whitener(a)
    assert (own.fitted_on, own.transductive) == ("train", False)
    np.testing.assert_allclose(own.matrix, np.diag([1, 1 / 2]))
    both = whitening.session_whitener(a, test_cov=b)
    assert (both.fitted_on, both.transductive) == ("train+test", True)
    np.testing.assert_allclose(both.matrix, np.diag([1 / np.sqrt(2), 1 / 3]))


def test_trials_are_whitened_in_blocks(tmp_path):
    eeg, matrix = trials(23, 5, 7).astype(np.float32), np.random.default_rng(2).normal(size=(5, 5))
    expected = np.einsum("ij,kjt->kit", matrix, eeg.astype(float))
    np.testing.assert_allclose(
        whitening.apply(eeg, matrix, dtype=np.float64, chunk=4), expected, rtol=1e-12, atol=1e-12
    )
    out = np.lib.format.open_memmap(tmp_path / "white.npy", "w+", np.float32, eeg.shape)
    assert whitening.apply(eeg, matrix, out, chunk=4) is out
    np.testing.assert_array_equal(np.load(tmp_path / "white.npy"), expected.astype(np.float32))
    rows = np.array([20, 3, 3, 11])
    some = whitening.apply(eeg, matrix, rows=rows, chunk=3)
    assert some.dtype == np.float32
    np.testing.assert_array_equal(some, expected[rows].astype(np.float32))
    blocks = []
    whitening.apply(eeg, matrix, out=blocks, rows=rows, chunk=3)
    assert [b.dtype for b in blocks] == [np.float32] * 2
    np.testing.assert_array_equal(np.concatenate(blocks), some)
    whitening.apply(eeg, matrix, out=eeg, chunk=4)  # in place
    np.testing.assert_array_equal(eeg, expected.astype(np.float32))


# ------------------------------------------------------------------------------ bad input


def test_a_singular_covariance_is_refused():
    with pytest.raises(ChannelError, match="identical"):
        whitening.whitening_matrix(np.ones((3, 3)))
    eeg = trials(40, 4, 10)
    eeg[:, 3] = eeg[:, 1]
    covariance = whitening.noise_covariance(eeg, np.repeat(np.arange(20), 2), "time")
    with pytest.raises(ChannelError, match="two channels identical"):
        whitening.session_whitener(covariance)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="unknown mode 'times' .*: epochs or time"):
        whitening.noise_covariance(trials(2, 2, 3), np.zeros(2), "times")


def test_a_condition_with_one_repetition_is_refused_in_mode_time():
    eeg, condition = trials(5, 3, 4), np.array([7, 8, 7, 9, 9])
    with pytest.raises(DatasetError, match=r"1 of 3 conditions .* \(first: .*8.*\)"):
        whitening.noise_covariance(eeg, condition, "time")
    assert whitening.noise_covariance(eeg, condition, "epochs").shape == (3, 3)


@pytest.mark.parametrize("mode", ["epochs", "time"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_sample_that_is_no_number_is_named(mode, value):
    eeg = trials(9, 3, 4)
    eeg[2, 1, 3] = value
    with pytest.raises(ChannelError, match="trial 2, channel number 1 .*NaN or infinite"):
        whitening.noise_covariance(eeg, np.repeat([0, 1, 2], 3), mode)
    with pytest.raises(ChannelError, match="overflows"):
        whitening.noise_covariance(trials(9, 3, 4) * 1e300, np.repeat([0, 1, 2], 3), mode)


def test_what_does_not_fit_is_refused():
    eeg = trials(6, 3, 4)
    with pytest.raises(DatasetError, match="6 trials but conditions of shape"):
        whitening.noise_covariance(eeg, np.zeros(4), rows=np.arange(4))
    with pytest.raises(DatasetError, match="mask"):
        whitening.noise_covariance(eeg, np.zeros(6), rows=np.ones(6, bool))
    with pytest.raises(DatasetError, match="no trial"):
        whitening.noise_covariance(eeg, np.zeros(6), rows=np.arange(0))
    with pytest.raises(ChannelError, match=r"\(17, 17\), the trials have 3 channels"):
        whitening.apply(eeg, np.eye(17))
    with pytest.raises(DatasetError, match="the place for them"):
        whitening.apply(eeg, np.eye(3), out=np.empty((5, 3, 4)))
