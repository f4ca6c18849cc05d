"""Live epochs are those of the offline causal chain, and nothing that a stream does shifts them."""

from __future__ import annotations

import sys
import time
import uuid

import mne
import numpy as np
import pytest
from loopback import require_loopback

from sgdm_utils import signals
from sgdm_utils.signals import lsl
from sgdm_utils.signals.live import EpochCutter, LiveError

SFREQ, TMIN, TMAX, RATE = 100.0, -0.2, 0.6, 50.0
NAMES = ["Fp1", "Cz", "Pz", "O1", "Oz", "O2"]
BAD = "Pz"


def filtered(raw, phase="minimum"):
    raw = raw.copy().notch_filter([25.0], picks=["eeg"], phase=phase, verbose="error")
    return raw.filter(1.0, 40.0, picks=["eeg"], phase=phase, verbose="error")


def cleaned(raw):
    raw.info["bads"] = [BAD]
    raw.interpolate_bads(reset_bads=True, verbose="error")
    return raw.set_eeg_reference("average", verbose="error")


@pytest.fixture(scope="module")
def recording():
    """20 s with drift, mains and an offset; onsets every half second from 6 s on; what MNE makes of it."""
    rng = np.random.default_rng(0)
    n = 2000
    data = 1e-5 * rng.normal(size=(6, n)) + 2e-6 * rng.normal(size=(6, n)).cumsum(1) + 3e-4
    info = mne.create_info(NAMES, SFREQ, "eeg").set_montage("standard_1020")
    raw = mne.io.RawArray(data, info, verbose="error")
    onsets = np.arange(600, 1900, 50)
    offline, _ = signals.cut_epochs(
        cleaned(filtered(raw)), onsets, SFREQ, TMIN, TMAX, True, RATE, dtype=np.float64
    )
    return raw, onsets, 1e6 * offline


@pytest.fixture(scope="module")
def parts(recording):
    raw = recording[0]
    return signals.impulse_response(filtered, SFREQ), signals.spatial_operator(cleaned, raw.info)


def cutter(parts, **options):
    settings = {"resample_hz": RATE, "settle_s": 1.5} | options
    return EpochCutter(*parts, SFREQ, TMIN, TMAX, **settings)


def stream(cut, samples, stamps, markers, block):
    """Push blocks; markers are (label, stamp, index of the sample with which they arrive)."""
    epochs = []
    for start in range(0, len(stamps), block):
        for label, stamp, arrives in markers:
            if start <= arrives < start + block:
                cut.mark(label, stamp)
        rows = slice(start, start + block)
        cut.push(samples[:, rows], stamps[rows])
        epochs += cut.ready()
    return epochs


# ------------------------------------------------------------------------ without a stream


@pytest.mark.parametrize("block", [1, 7, 300, 2000])
def test_the_filter_of_a_stream_is_that_of_notebook_01(recording, parts, block):
    raw, taps = recording[0], parts[0]
    data = raw.get_data()
    live = signals.CausalFilter(taps)
    blocks = [live(data[:, i : i + block]) for i in range(0, data.shape[1], block)]
    inside = slice(len(taps), -1)  # at the edge MNE mirrors the recording
    expected = filtered(raw).get_data()[:, inside]
    assert np.allclose(np.concatenate(blocks, axis=1)[:, inside], expected, atol=1e-15)


def test_a_filter_that_looks_ahead_is_refused():
    with pytest.raises(LiveError, match="looks ahead.*filter_phase='minimum'"):
        signals.impulse_response(lambda raw: filtered(raw, "zero"), SFREQ)
    with pytest.raises(LiveError, match="give more seconds"):
        signals.impulse_response(filtered, SFREQ, seconds=5.0)


def test_the_matrix_of_a_cleaning_cleans(recording, parts):
    raw, operator = recording[0], parts[1]
    assert np.allclose(operator @ raw.get_data(), cleaned(raw.copy()).get_data(), atol=1e-12)


@pytest.mark.parametrize("lateness", [-30, 0, 59, 400], ids=["ahead", "on time", "last", "late"])
@pytest.mark.parametrize("block", [1, 13, 250])
def test_live_epochs_are_the_offline_ones(recording, parts, block, lateness):
    raw, onsets, offline = recording
    stamps = 1234.5 + raw.times
    markers = [(i, stamps[s] + 0.002, min(s + lateness, 1999)) for i, s in enumerate(onsets)]
    cut = cutter(parts)
    epochs = stream(cut, raw.get_data(), stamps, markers, block)
    assert [e.label for e in epochs] == sorted(e.label for e in epochs) and cut.waiting == 0
    for epoch in epochs:
        assert np.allclose(epoch.data, offline[epoch.label], atol=1e-6)  # microvolts
        assert np.isclose(epoch.last_sample, stamps[onsets[epoch.label] + 59])
    assert cut.counts["epochs"] == len(onsets) and cut.counts["lost_samples"] == 0
    assert (cut.counts["late_markers"] > 0) == (lateness == 400)


# A fault: what happens to samples, stamps and markers; counts expected; labels (onset = 600 + 50 label) that go
def _hole(samples, stamps, markers):
    keep = np.r_[0:1010, 1030:2000]
    return (
        samples[:, keep],
        stamps[keep],
        [(m[0], m[1], m[2] - 20 * (m[2] >= 1030)) for m in markers],
    )


def _nan(samples, stamps, markers):
    samples[2, 1010:1030] = np.nan
    return samples, stamps, markers


def _too_late(samples, stamps, markers):
    return samples, stamps, [(m[0], m[1], 1990 if m[0] == 0 else m[2]) for m in markers]


def _ahead(samples, stamps, markers):
    return samples, stamps, [(m[0], m[1] + 1e5 * (m[0] == 3), m[2]) for m in markers]


def _restart(samples, stamps, markers):
    stamps[1010:] += 1000.0  # longer than the buffer
    return samples, stamps, [(m[0], stamps[m[2]], m[2]) for m in markers]


def _unsettled(samples, stamps, markers):
    return samples, stamps, [("early", stamps[60], 60), *markers]


AROUND = {n for n in range(26) if 1010 - 60 < 600 + 50 * n < 1030 + 20 + 150}
FAULTS = {
    "samples lost": (_hole, {"lost_samples": 20, "gaps": 1, "dropped_lost": 1, "dropped_settling": 3}, AROUND),
    "not finite": (_nan, {"lost_samples": 20, "gaps": 0, "dropped_lost": 1, "dropped_settling": 3}, AROUND),
    "marker too late": (_too_late, {"dropped_outside": 1}, {0}),
    "marker of another clock": (_ahead, {"dropped_outside": 1}, {3}),
    "a clock that jumps": (_restart, {"restarts": 1, "gaps": 1}, AROUND),
    "not settled yet": (_unsettled, {"dropped_settling": 1}, set()),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_is_dropped_and_counted_and_shifts_nothing(recording, parts, fault):
    raw, onsets, offline = recording
    change, counted, lost = FAULTS[fault]
    stamps = 50.0 + raw.times
    markers = [(i, stamps[s], s) for i, s in enumerate(onsets)]
    samples, stamps, markers = change(raw.get_data().copy(), stamps.copy(), markers)
    cut = cutter(parts)
    epochs = stream(cut, samples, stamps, markers, 10)
    assert {name: cut.counts[name] for name in counted} == counted
    kept = {epoch.label for epoch in epochs}
    assert kept >= set(range(len(onsets))) - lost and not kept & ({0, 3} & lost)
    dropped = sum(n for name, n in cut.counts.items() if name.startswith("dropped"))
    assert len(epochs) + dropped + cut.waiting == len(markers)
    for epoch in epochs:  # after a loss the memory of the filter fades: a tenth of the noise
        assert np.allclose(epoch.data, offline[epoch.label], atol=1.0)


def test_blocks_and_buffers_that_cannot_be_used_are_refused(parts):
    with pytest.raises(LiveError, match=r"shape \(5, 3\) and 3 stamps"):
        cutter(parts).push(np.zeros((5, 3)), np.arange(3))
    with pytest.raises(LiveError, match="buffer_s is 0.5, an epoch takes 0.8 s"):
        cutter(parts, buffer_s=0.5)


def test_without_mne_lsl_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mne_lsl", None)
    monkeypatch.setitem(sys.modules, "mne_lsl.lsl", None)
    with pytest.raises(LiveError, match=r"pip install -e '.\[live\]'"):
        lsl.require_lsl()


# ------------------------------------------------------------------------ through LSL


@pytest.fixture(scope="module")
def loopback():
    """The module mne_lsl.lsl, where a stream of this process is found by it."""
    return require_loopback()


class Source:
    """An amplifier and what shows the pictures, as two LSL streams of this process."""

    def __init__(self, module, names=NAMES, sfreq=SFREQ, unit="volts", markers="string"):
        self.module, self.name = module, uuid.uuid4().hex
        info = module.StreamInfo(self.name, "EEG", len(NAMES), sfreq, "float64", self.name)
        if names is not None:
            info.set_channel_names(list(names))
        if unit is not None:
            info.set_channel_units(unit)
        self.eeg, self.markers = module.StreamOutlet(info), None
        if markers is not None:
            beside = f"{self.name}-annotations"
            self.markers = module.StreamOutlet(
                module.StreamInfo(beside, "annotations", 1, 0.0, markers, beside)
            )

    def receiver(self, **options):
        settings = {"channels": NAMES, "sfreq": SFREQ, "timeout_s": 10.0} | options
        return lsl.LSLReceiver(self.name, **settings)

    def send(self, samples):
        assert self.eeg.wait_for_consumers(10.0)
        self.eeg.push_chunk(np.ascontiguousarray(samples.T), self.module.local_clock())


def fetched(receiver, n, seconds=15.0):
    """At least n samples of a receiver."""
    parts, end = [], time.monotonic() + seconds
    while sum(part.shape[1] for part in parts) < n and time.monotonic() < end:
        parts.append(receiver.pull()[0])
        time.sleep(0.005)
    return np.concatenate(parts, axis=1)


REFUSED = {
    "another rate": ({"sfreq": 250.0}, {}, "has 250 Hz, the decoder was fitted on 100 Hz: set the amp"),
    "other channels": ({"names": ["Fp1", "CZ", "Pz", "O1", "Oz", "X"]}, {}, "lacks Cz, O2.*CZ for Cz"),
    "a channel twice": ({"names": ["Fp1", "Cz", "Cz", "O1", "Oz", "O2"]}, {"channels": ["Cz"]}, "Cz twice"),
    "no names": ({"names": None}, {}, "does not name its channels"),
    "no unit": ({"unit": None}, {}, "does not say in which unit.*unit='microvolts'"),
    "no markers": ({"markers": None}, {"timeout_s": 1.0}, "no LSL stream .*-annotations' with markers.*annotations are set"),
    "markers as numbers": ({"markers": "float64"}, {}, "holds numbers .float64.*annotations_encoding='string'"),
    "no stream": ({}, {"name": "nobody", "timeout_s": 1.0}, "no LSL stream 'nobody' with EEG.*give the name of one that is there"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_stream_that_cannot_be_understood_is_refused(loopback, case):
    source, options, message = REFUSED[case]
    source, options = Source(loopback, **source), dict(options)
    source.name = options.pop("name", source.name)
    with pytest.raises(LiveError, match=message):
        source.receiver(**options)


def test_other_order_of_channels_and_microvolts_are_put_right(loopback):
    order = [4, 2, 0, 5, 1, 3]
    source = Source(loopback, names=[NAMES[i] for i in order], unit="microvolts")
    receiver = source.receiver()
    data = 1e-5 * np.random.default_rng(0).normal(size=(6, 150))
    source.send(1e6 * data[order])
    assert np.allclose(fetched(receiver, 150), data)


@pytest.mark.parametrize(("said", "sent", "advice"), [("volts", 1e6, "microvolts"), ("microvolts", 1.0, "volts")])  # fmt: skip
def test_a_wrong_unit_is_seen_and_the_advice_is_right(loopback, said, sent, advice):
    data = 1e-5 * np.random.default_rng(0).normal(size=(6, 150))
    source = Source(loopback, unit=said)
    receiver = source.receiver()
    source.send(sent * data)
    with pytest.raises(LiveError, match=f"give unit='{advice}'"):
        fetched(receiver, 150)
    source = Source(loopback, unit=said)
    receiver = source.receiver(unit=advice)
    source.send(sent * data)
    assert np.allclose(fetched(receiver, 150), data)


def test_a_stream_whose_markers_are_silent_is_an_error_after_a_while(loopback):
    source = Source(loopback)
    receiver = source.receiver(patience_s=2.0)
    source.send(1e-5 * np.random.default_rng(0).normal(size=(6, 250)))
    with pytest.raises(LiveError, match="2 s of EEG and no marker.*Start what shows the pictures"):
        fetched(receiver, 250)


def test_a_played_recording_gives_the_offline_epochs_and_its_end_is_a_lost_stream(
    loopback, recording, parts
):
    """mne-lsl's player stamps a marker one sample before the sample that it belongs to."""
    from mne_lsl.player import PlayerLSL

    raw, onsets, _ = recording
    played = raw.copy().crop(5.0, 9.99)
    stamped = (onsets[:6] - 500) / SFREQ
    played.set_annotations(mne.Annotations(stamped, 0, [f"picture {i}" for i in range(6)]))
    eog = mne.io.RawArray(np.zeros((1, played.n_times)), mne.create_info(["EOG"], SFREQ, "eog"), verbose="error")  # fmt: skip
    played.add_channels([eog], force_update_info=True).reorder_channels(["EOG", *NAMES[::-1]])
    name = uuid.uuid4().hex
    player = PlayerLSL(played, 5, n_repeat=1, name=name, source_id=name, annotations_encoding="string")  # fmt: skip
    player.start()
    receiver = lsl.LSLReceiver(name, NAMES, SFREQ, timeout_s=1.5)
    cut, epochs, heard = cutter(parts, marker_delay_s=1 / SFREQ, settle_s=0.2), [], []
    with pytest.raises(signals.StreamLost, match="What was decoded before stays|broke off"):
        while True:
            samples, stamps, markers = receiver.pull()
            for label, stamp in markers:
                cut.mark(label, stamp)
            cut.push(samples, stamps)
            heard.append(samples)
            epochs += cut.ready()
            if len(epochs) == 4 and player is not None:
                player.stop()  # in the middle of the recording
                player = None
            time.sleep(0.002)
    assert len(epochs) >= 4 and cut.counts["lost_samples"] == 0
    got = np.concatenate(heard, axis=1)
    data = raw.get_data()
    start = int(np.flatnonzero(np.isclose(data[0], got[0, 0], atol=1e-15))[0])
    assert np.array_equal(got, data[:, start : start + got.shape[1]])  # by name, nothing else
    stamps = raw.times[: got.shape[1]]
    markers = [(e.label, stamps[onsets[int(e.label.split()[1])] - start], 0) for e in epochs]
    for epoch, same in zip(
        epochs, stream(cutter(parts, settle_s=0.2), got, stamps, markers, 999), strict=True
    ):
        assert np.allclose(epoch.data, same.data, atol=1e-6)
