"""Epochs against MNE's own, the published choice of repetitions, and the whole official chain."""

from __future__ import annotations

import mne
import numpy as np
import pytest
from published_recipe import SEED, TARGET, epochs_of, official_chain, picked
from sklearn.utils import shuffle

from sgdm_utils.errors import DatasetError
from sgdm_utils.signals import epoching, whitening

# rows 0-62 of the raw THINGS-EEG2 files, in recording order
RECORDED = (
    "Fp1 F3 F7 FT9 FC5 FC1 C3 T7 TP9 CP5 CP1 Pz P3 P7 O1 Oz O2 P4 P8 TP10 CP6 CP2 Cz C4 T8 FT10 "
    "FC6 FC2 F4 F8 Fp2 AF7 AF3 AFz F1 F5 FT7 FC3 FCz C1 C5 TP7 CP3 P1 P5 PO7 PO3 POz PO4 PO8 P6 P2 "
    "CPz CP4 TP8 C6 C2 FC4 FT8 F6 F2 AF4 AF8"
).split()
OFFICIAL = "Pz P3 P7 O1 Oz O2 P4 P8 P1 P5 PO7 PO3 POz PO4 PO8 P6 P2".split()


def recording(n_channels=5, seconds=12.0, sfreq=1000.0, offset=0.0, seed=0):
    """Slow drifts, a 10 Hz rhythm and noise, some 30 microvolts, on an offset; volts."""
    rng = np.random.default_rng(seed)
    n = int(seconds * sfreq)
    drift = rng.normal(size=(n_channels, n)).cumsum(1) * 0.3
    rhythm = 10 * np.sin(2 * np.pi * 10 * np.arange(n) / sfreq + rng.uniform(0, 6, (n_channels, 1)))
    return (drift + rhythm + rng.normal(0, 5, (n_channels, n))) * 1e-6 + offset


def raw_of(data, sfreq=1000.0, types="eeg", names=None):
    names = names or [f"EEG{i}" for i in range(len(data))]
    return mne.io.RawArray(data, mne.create_info(names, sfreq, types), verbose="error")


def events_at(sample):
    return np.stack([sample, np.zeros_like(sample), np.ones_like(sample)], axis=1)


SAMPLE = np.array([200, 900, 1100, 1300, 1301, 6000, 11199])  # the ends just fit
CASES = {
    "published": {"resample_hz": 100.0, "baseline": True},
    "250 Hz": {"resample_hz": 250.0, "baseline": True},
    "no baseline": {"resample_hz": 100.0, "baseline": False},
    "no resampling": {"resample_hz": 0.0, "baseline": True},
    "odd rate": {"resample_hz": 120.0, "baseline": True},
}


# ------------------------------------------------------------------------ MNE's numbers


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("offset", [0.0, 0.05])
def test_epochs_are_mne_s(case, offset):
    data, options = recording(offset=offset), CASES[case]
    theirs = epochs_of(
        raw_of(data), events_at(SAMPLE), resample_hz=options["resample_hz"],
        baseline=(None, 0) if options["baseline"] else None,
    )  # fmt: skip
    for dtype, tolerance in ((np.float64, 1e-16 + 1e-14 * offset), (np.float32, 1e-9)):
        if offset and dtype == np.float32 and not options["baseline"]:
            tolerance = 4e-9  # half a unit in the last place of 50 mV
        mine, times = epoching.cut_epochs(
            data, SAMPLE, 1000.0, -0.2, 0.8, end="inclusive", dtype=dtype, **options
        )
        assert mine.dtype == dtype and mine.shape == theirs.get_data().shape
        np.testing.assert_allclose(times, theirs.times, rtol=0, atol=1e-12)
        np.testing.assert_allclose(mine, theirs.get_data(), rtol=0, atol=tolerance)


def test_the_published_epoch_has_100_samples():
    data = recording(2)
    epochs, times = epoching.cut_epochs(data, SAMPLE, 1000, -0.2, 0.8, True, 100, end="inclusive")
    assert epochs.shape == (7, 2, 100)
    np.testing.assert_allclose(times, np.arange(-20, 80) / 100, atol=1e-12)
    assert epoching.epoch_map(1001, 1000.0, -0.2, 100.0, True).matrix.shape == (1001, 100)
    shorter, times = epoching.cut_epochs(data, SAMPLE, 1000, -0.2, 0.8, True, 100)
    assert shorter.shape == (7, 2, 100) and times[-1] == pytest.approx(0.79)
    assert not np.array_equal(shorter, epochs)


@pytest.mark.parametrize(("sfreq", "tmax"), [(200.0, 0.6), (256.0, 0.6), (512.0, 0.8)])
def test_the_end_is_exclusive_as_in_mne_with_one_sample_less(sfreq, tmax):
    data = recording(3, sfreq=sfreq)
    sample = np.array([500, 700])
    theirs = epochs_of(raw_of(data, sfreq), events_at(sample), -0.2, tmax - 1 / sfreq, 100.0)
    mine, times = epoching.cut_epochs(
        data, sample, sfreq, -0.2, tmax, True, 100.0, dtype=np.float64
    )
    np.testing.assert_allclose(mine, theirs.get_data(), rtol=0, atol=1e-16)
    np.testing.assert_allclose(times, theirs.times, rtol=0, atol=1e-12)


def test_without_time_before_onset_nothing_is_subtracted():
    data = recording(2, offset=1e-4)
    mine, _ = epoching.cut_epochs(data, SAMPLE, 1000.0, 0.0, 0.5, True, 0.0, dtype=np.float64)
    expected = np.stack([data[:, s : s + 500] for s in SAMPLE])
    np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-16)


# -------------------------------------------------------------------- where it is read from


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_order_chunks_and_sources_do_not_matter(chunk, tmp_path):
    data = recording(4)
    shuffled = np.random.default_rng(0).permutation(SAMPLE)
    expected, _ = epoching.cut_epochs(
        data, SAMPLE, 1000.0, -0.2, 0.8, True, 100.0, dtype=np.float64
    )
    expected = expected[np.argsort(np.argsort(shuffled))]
    np.save(tmp_path / "raw.npy", data)
    raw = raw_of(np.vstack([data, np.zeros((1, data.shape[1]))]), types=["eeg"] * 4 + ["stim"])
    raw.info["bads"] = ["EEG1"]  # would be left out by MNE without a word
    raw.save(tmp_path / "some_raw.fif", fmt="double", verbose="error")
    sources = {
        "array": data,
        "memory map": np.load(tmp_path / "raw.npy", mmap_mode="r"),
        "Raw": raw,
        "Raw on the disk": mne.io.read_raw_fif(tmp_path / "some_raw.fif", verbose="error"),
    }
    for name, source in sources.items():
        mine, _ = epoching.cut_epochs(
            source, shuffled, 1000.0, -0.2, 0.8, True, 100.0, dtype=np.float64, chunk=chunk
        )
        np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-17, err_msg=name)


def test_picks_give_the_order_of_channels():
    data = recording(5)
    everything, _ = epoching.cut_epochs(data, SAMPLE, 1000.0, -0.2, 0.8, True, 100.0)
    for source in (data, raw_of(data)):
        some, _ = epoching.cut_epochs(source, SAMPLE, 1000.0, -0.2, 0.8, True, 100.0, picks=[3, 0])
        np.testing.assert_allclose(some, everything[:, [3, 0]], rtol=0, atol=2e-10)


def test_a_cropped_raw_counts_from_its_first_sample():
    data = recording(2)
    cropped = raw_of(data).crop(2.0)
    assert cropped.first_samp == 2000
    mine, _ = epoching.cut_epochs(cropped, SAMPLE[:5] + 1000, 1000.0, -0.2, 0.8, True, 100.0)
    whole, _ = epoching.cut_epochs(data, SAMPLE[:5] + 3000, 1000.0, -0.2, 0.8, True, 100.0)
    np.testing.assert_array_equal(mine, whole)


def test_epochs_go_where_they_are_told(tmp_path):
    data = recording(3)
    arguments = (1000.0, -0.2, 0.8, True, 100.0)
    expected, _ = epoching.cut_epochs(data, SAMPLE, *arguments)
    out = np.lib.format.open_memmap(tmp_path / "eeg.npy", "w+", np.float32, expected.shape)
    assert epoching.cut_epochs(data, SAMPLE, *arguments, out=out)[0] is out
    np.testing.assert_array_equal(np.load(tmp_path / "eeg.npy"), expected)
    blocks = []
    epoching.cut_epochs(data, SAMPLE, *arguments, out=blocks, chunk=2)
    np.testing.assert_allclose(np.concatenate(blocks), expected, rtol=0, atol=2e-10)
    with pytest.raises(DatasetError, match="ascending order"):
        epoching.cut_epochs(data, SAMPLE[::-1], *arguments, out=[])
    with pytest.raises(DatasetError, match="the place for them"):
        epoching.cut_epochs(data, SAMPLE, *arguments, out=np.empty((1, 3, 100)))


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("sample", "word"),
    [
        (
            [150, 5000],
            r"1 of 2 events .* from -0.2 to 0.8 s \(first: event 0 at 0.150 s\).*margin_s of 00_data, 0.8 here",
        ),
        ([5000, 11201, 11300], r"2 of 3 events .*\(first: event 1 at 11.201 s\)"),
        ([5000, 6000, 5000], r"1 samples carry .*events 0 and 2 at 5.000 s"),
        ([5000.5], "whole numbers"),
        ([[5000]], "whole numbers"),
    ],
)
def test_events_that_cannot_be_cut_are_named(sample, word):
    with pytest.raises(DatasetError, match=word):
        epoching.cut_epochs(recording(2), np.array(sample), 1000.0, -0.2, 0.8, True, 100.0)


def test_recordings_that_cannot_be_cut_are_refused():
    data = recording(2)
    arguments = (-0.2, 0.8, True, 100.0)
    with pytest.raises(DatasetError, match="at 1000 Hz, not at 500 Hz"):
        epoching.cut_epochs(raw_of(data), SAMPLE, 500.0, *arguments)
    with pytest.raises(DatasetError, match="no EEG channel"):
        epoching.cut_epochs(raw_of(data, types="misc"), SAMPLE, 1000.0, *arguments)
    referenced = raw_of(data).set_eeg_reference(projection=True, verbose="error")
    with pytest.raises(DatasetError, match="projector .* was not applied"):
        epoching.cut_epochs(referenced, SAMPLE, 1000.0, *arguments)
    with pytest.raises(ValueError, match="unknown end 'open'"):
        epoching.cut_epochs(data, SAMPLE, 1000.0, *arguments, end="open")
    with pytest.raises(DatasetError, match="has 0 samples"):
        epoching.cut_epochs(data, SAMPLE, 1000.0, 0.1, 0.1, True, 100.0)


def test_no_event_gives_no_epoch():
    epochs, times = epoching.cut_epochs(
        recording(2), np.array([], int), 1000.0, -0.2, 0.8, True, 100.0
    )
    assert epochs.shape == (0, 2, 100) and len(times) == 100


# ------------------------------------------------------------- channels and repetitions


def test_the_published_channels():
    assert [RECORDED[i] for i in epoching.published_channels(RECORDED)] == OFFICIAL
    assert picked(RECORDED) == OFFICIAL
    with pytest.raises(DatasetError, match="case sensitive"):
        epoching.published_channels([name.lower() for name in RECORDED])


@pytest.mark.parametrize(
    ("n", "k", "expected"),
    [
        (2, 2, [1, 0]),
        (3, 2, [1, 2]),
        (4, 2, [2, 1]),
        (20, 20, [11, 1, 17, 0, 12, 10, 18, 14, 5, 19, 9, 16, 6, 15, 2, 3, 7, 13, 4, 8]),
    ],
)
def test_the_published_draw(n, k, expected):
    assert epoching.choose_repetitions(np.full(n, 7), k).tolist() == [expected]


def test_repetitions_are_chosen_as_with_scikit_learn():
    rng = np.random.default_rng(3)
    condition = rng.permutation(np.repeat(np.arange(100, 140), rng.integers(20, 23, 40)))
    mine = epoching.choose_repetitions(condition, 20)
    for row, c in zip(mine, np.unique(condition), strict=True):
        index = np.flatnonzero(condition == c)
        assert row.tolist() == shuffle(index, random_state=SEED, n_samples=20).tolist()
    other = epoching.choose_repetitions(condition, 20, seed=1)
    index = np.flatnonzero(condition == 100)
    assert other[0].tolist() == shuffle(index, random_state=1, n_samples=20).tolist()


def test_a_condition_shown_too_rarely_is_named():
    with pytest.raises(DatasetError, match=r"1 of 2 conditions .* 2 repetitions .*5.* with 1\)"):
        epoching.choose_repetitions(np.array([4, 5, 4]), 2)


def merge_order(condition: np.ndarray, seed: int = SEED) -> np.ndarray:
    """Order of the repetitions once the sessions are joined, by the published draw.

    Parameters
    ----------
    condition : array of shape (n_trials,)
        Of the chosen trials of all sessions, session after session, each in the order of
        `choose_repetitions`.
    seed : int, the published one by default

    Returns
    -------
    int array of shape (n_conditions, n_repetitions), row numbers; conditions in sorted order, the
    same permutation of the repetitions for all ([2, 1, 3, 0] for the four of THINGS-EEG2 training)

    Raises
    ------
    DatasetError
        When the conditions do not all have the same number of repetitions.
    """
    label, count = np.unique(np.asarray(condition), return_counts=True)
    if len(label) and count.min() != count.max():
        few, many = count.argmin(), count.argmax()
        raise DatasetError(
            f"condition {label[few]!r} has {count[few]} repetitions over all sessions, "
            f"{label[many]!r} has {count[many]}: is a session missing or given twice?"
        )
    return epoching.choose_repetitions(condition, int(count[0]) if len(count) else 0, seed)


def test_merged_training_repetitions_are_permuted_in_common():
    sessions = np.concatenate([np.repeat([1, 2], 2), np.repeat([2, 1], 2)])
    assert merge_order(sessions).tolist() == [
        [[0, 1, 6, 7][i] for i in (2, 1, 3, 0)],
        [[2, 3, 4, 5][i] for i in (2, 1, 3, 0)],
    ]
    condition = np.tile(np.repeat(np.arange(200), 20), 4)  # test: 4 sessions x 20
    joined = np.arange(80) % 20 + np.arange(80) // 20 * 4000
    expected = shuffle(joined, random_state=SEED)
    order = merge_order(condition)
    assert order.shape == (200, 80)
    np.testing.assert_array_equal(order, expected + 20 * np.arange(200)[:, None])


def test_a_missing_session_is_seen_when_merging():
    with pytest.raises(DatasetError, match=r"8.* has 2 .*7.* has 4: is a session missing"):
        merge_order(np.array([7, 7, 8, 8, 7, 7]))


# -------------------------------------------------------------------- the official chain


def miniature(rng):
    """Four sessions of one subject: 2 test images, 4 training images each in two sessions."""
    halves = rng.permutation(4), rng.permutation(4)
    sessions = []
    for s in range(4):
        training = halves[s // 2][2 * (s % 2) : 2 * (s % 2) + 2] + 1
        sessions.append({
            "test": partition(rng, np.repeat([1, 2], [5, 6])),
            "training": partition(rng, np.append(np.repeat(training, 2), training[:1])),
        })  # fmt: skip
    return sessions


def partition(rng, shown):
    """A recording of 63 channels with one-sample pulses that hold image numbers or targets."""
    shown = rng.permutation(np.append(shown, TARGET))
    data = recording(63, 0.2 * len(shown) + 1.2, seed=int(rng.integers(1 << 30)), offset=3e-4)
    stim = np.zeros((1, data.shape[1]))
    stim[0, 300 + 200 * np.arange(len(shown))] = shown
    return raw_of(np.vstack([data, stim]), types=["eeg"] * 63 + ["stim"], names=[*RECORDED, "stim"])


@pytest.mark.parametrize(
    ("mode", "fit_on"), [("time", "train+test"), ("epochs", "train+test"), ("epochs", "train")]
)
def test_the_official_chain(mode, fit_on):
    sessions = miniature(np.random.default_rng(11))
    keep = {"test": 5, "training": 2}
    theirs = official_chain(sessions, mode, keep, fit_on)
    assert theirs["training"].shape == (4, 4, 17, 100) and theirs["test"].shape == (2, 20, 17, 100)

    white, shown = {"test": [], "training": []}, {"test": [], "training": []}
    for session in sessions:
        eeg, condition, covariance = {}, {}, {}
        for part, raw in session.items():
            stim = raw.get_data([63])[0]
            sample = np.flatnonzero((stim != 0) & (stim != TARGET))
            rows = epoching.choose_repetitions(stim[sample].astype(int), keep[part]).ravel()
            eeg[part], _ = epoching.cut_epochs(
                raw, sample[rows], 1000.0, -0.2, 0.8, True, 100.0, end="inclusive",
                picks=epoching.published_channels(raw.ch_names), dtype=np.float64,
            )  # fmt: skip
            condition[part] = stim[sample[rows]].astype(int)
            covariance[part] = whitening.noise_covariance(eeg[part], condition[part], mode)
        whitener = whitening.session_whitener(
            covariance["training"], covariance["test"] if fit_on == "train+test" else None
        )
        assert whitener.fitted_on == fit_on
        for part in session:
            white[part].append(whitening.apply(eeg[part], whitener.matrix, dtype=np.float64))
            shown[part].append(condition[part])
    for part in theirs:
        order = merge_order(np.concatenate(shown[part]))
        mine = np.concatenate(white[part])[order]
        assert np.abs(mine - theirs[part]).max() < 1e-10 * np.abs(theirs[part]).max()
