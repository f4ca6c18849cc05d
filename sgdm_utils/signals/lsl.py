"""A stream of LSL, checked before it is believed: rate, channels, unit, markers, and whether it still runs.

mne-lsl (the extra `live`) is imported when somebody connects, so that nobody else needs it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from sgdm_utils.datasets.tables import LARGEST_V, SMALLEST_V
from sgdm_utils.signals.live import LiveError

#: Volts in one unit, by the names that streams use (numbers are powers of ten, as mne-lsl writes them).
UNITS = dict.fromkeys(("v", "volt", "volts", "0"), 1.0)
UNITS |= dict.fromkeys(("mv", "millivolt", "millivolts", "-3"), 1e-3)
UNITS |= dict.fromkeys(("uv", "µv", "μv", "microvolt", "microvolts", "-6"), 1e-6)
_BLOCK_S = (
    0.5  # that are fetched at once: a decoder that lags cuts epochs before they leave its buffer
)


class StreamLost(LiveError):
    """No sample has come for too long; what was decoded before is not touched by it."""


def require_lsl() -> ModuleType:
    """The module `mne_lsl.lsl`.

    Raises
    ------
    LiveError
        When mne-lsl is not installed or finds no liblsl.
    """
    try:
        import mne_lsl.lsl
    except (ImportError, OSError, RuntimeError) as error:
        raise LiveError(
            f"streams need mne-lsl, which cannot be imported ({error}): pip install -e '.[live]', or "
            "install requirements.lock, which holds it"
        ) from error
    return mne_lsl.lsl


class LSLReceiver:
    """Samples in volts, in the order of the calibration, and markers, from one pair of LSL streams.

    Parameters
    ----------
    name : str, of the stream with the EEG
    channels : sequence of str, in the order in which the decoder was fitted; others are left out
    sfreq : float, Hz, of the recordings that the decoder was fitted on
    markers : str, name of the stream with the markers, one string each; default the one that the player
        of mne-lsl opens beside `name`
    unit : str, "volts", "millivolts" or "microvolts", where the stream does not say it or is wrong
    timeout_s : float, seconds to look for the streams, and without a sample until the stream is lost
    patience_s : float, seconds of EEG without any marker until that is an error

    Raises
    ------
    LiveError
        No such stream, or several; another rate; channels without names, missing or twice; an unknown
        unit; no stream of markers.
    """

    def __init__(
        self,
        name: str,
        channels: Sequence[str],
        sfreq: float,
        markers: str | None = None,
        unit: str | None = None,
        timeout_s: float = 5.0,
        patience_s: float = 60.0,
    ) -> None:
        self.name, self.sfreq = name, float(sfreq)
        self.timeout_s, self.patience_s = timeout_s, patience_s
        self._lsl = require_lsl()
        described = self._find(name, "EEG", "start the amplifier's LSL application")
        if described.dtype == "string" or abs(described.sfreq - sfreq) > 1e-3 * sfreq:
            raise LiveError(
                f"the stream {name!r} has {described.sfreq:g} Hz, the decoder was fitted on "
                f"{sfreq:g} Hz: set the amplifier to {sfreq:g} Hz, or calibrate on recordings of the "
                "stream's rate. Resampling a stream would need a filter and a delay of its own"
            )
        beside = markers or f"{name}-annotations"
        remedy = (
            "start what shows the pictures first, and let it send a string for each onset; a file is "
            "played with its markers when its annotations are set (annotations_encoding='string')"
        )
        marker_info = self._find(beside, "markers", remedy)
        if marker_info.dtype != "string":
            raise LiveError(
                f"the stream {beside!r} holds numbers ({np.dtype(marker_info.dtype).name}), not one string "
                "for each marker: send strings (mne-lsl's player: annotations_encoding='string')"
            )
        self._eeg = self._open(described)
        self._markers = self._open(marker_info)
        full = self._eeg.get_sinfo(timeout_s)
        self.rows = _order(name, full.get_channel_names(), channels)
        units = full.get_channel_units()
        self.scale = _volts(name, [(units or [""] * full.n_channels)[i] for i in self.rows], unit)
        self._unit = unit
        self._first_second: list[np.ndarray] | None = []
        self._n, self._any_marker, self._last = 0, False, time.monotonic()

    def pull(self) -> tuple[np.ndarray, np.ndarray, list[tuple[str, float]]]:
        """Fetch what has arrived, without waiting.

        Returns
        -------
        samples : float64 array of shape (n_channels, n), volts; n may be 0
        stamps : float64 array of shape (n,), seconds on this machine's LSL clock
        markers : list of (label, stamp)

        Raises
        ------
        StreamLost
            No sample for `timeout_s`.
        LiveError
            The size of the first second is not that of EEG; no marker for `patience_s`.
        """
        try:
            n = max(1, round(_BLOCK_S * self.sfreq))
            chunk, stamps = self._eeg.pull_chunk(timeout=0.0, max_samples=n)
            labels, at = self._markers.pull_chunk(timeout=0.0, max_samples=1024)
        except RuntimeError as error:
            raise StreamLost(f"the stream {self.name!r} broke off: {error}") from error
        markers = [(label[0], float(stamp)) for label, stamp in zip(labels, at, strict=True)]
        now = time.monotonic()
        if not len(stamps):
            if now - self._last > self.timeout_s:
                raise StreamLost(
                    f"no sample of {self.name!r} for {self.timeout_s:g} s: the amplifier, its LSL "
                    "application or the network has stopped. What was decoded before stays; connect "
                    "again when the stream is back"
                )
            return np.empty((len(self.rows), 0)), np.empty(0), markers
        self._last, self._n = now, self._n + len(stamps)
        self._any_marker |= bool(markers)
        if not self._any_marker and self._n > self.patience_s * self.sfreq:
            raise LiveError(
                f"{self.patience_s:g} s of EEG and no marker: the decoder cannot know when a picture "
                "was shown. Start what shows the pictures, or have its markers sent as strings"
            )
        samples = self.scale[:, None] * np.array(chunk, np.float64).T[self.rows]
        self._check_size(samples)
        return samples, np.array(stamps), markers

    def close(self) -> None:
        """Let go of both streams."""
        self._eeg = self._markers = None

    def _find(self, name: str, what: str, remedy: str):
        found = self._lsl.resolve_streams(self.timeout_s, name=name)
        if len(found) == 1:
            return found[0]
        if found:
            raise LiveError(
                f"{len(found)} streams with {what} are called {name!r} (sources "
                f"{', '.join(sorted(f.source_id for f in found))}): give one of them another name"
            )
        there = sorted({info.name for info in self._lsl.resolve_streams(1.0)})
        raise LiveError(
            f"no LSL stream {name!r} with {what} within {self.timeout_s:g} s (there are: "
            f"{', '.join(there) or 'none'}): {remedy}, or give the name of one that is there"
        )

    def _open(self, described):
        inlet = self._lsl.StreamInlet(described, max_buffered=60, processing_flags=["clocksync"])
        inlet.open_stream(timeout=self.timeout_s)
        # the first estimate takes most of a second, which the first samples would have to wait for
        inlet.time_correction(timeout=max(self.timeout_s, 5.0))
        return inlet

    def _check_size(self, samples: np.ndarray) -> None:
        """Compare the first second with what electrodes on a scalp give."""
        if self._first_second is None:
            return
        self._first_second.append(samples)
        first = np.concatenate(self._first_second, axis=1)
        if first.shape[1] < self.sfreq:
            return
        self._first_second = None
        typical = float(np.nanmedian(np.ptp(first, axis=1)))
        if typical and not SMALLEST_V <= typical <= LARGEST_V:
            said = f"unit={self._unit!r} was given" if self._unit else "the stream says so"
            other = "microvolts" if typical > LARGEST_V else "volts"
            raise LiveError(
                f"{self.name!r} spans {typical:.2g} V within its first second, EEG some 10 to 300 "
                f"microvolts ({said}): give unit={other!r} if that is what it sends, or look at the "
                "electrodes and the gain"
            )


def _order(name: str, names: Sequence[str | None] | None, channels: Sequence[str]) -> list[int]:
    """Row of the stream for each channel of the calibration."""
    if not names or None in names:
        raise LiveError(
            f"the stream {name!r} does not name its channels, so their order is not known: have the "
            f"amplifier's application send labels ({', '.join(channels[:3])}, ...)"
        )
    twice = sorted({n for n in names if list(names).count(n) > 1 and n in channels})
    missing = [c for c in channels if c not in names]
    if twice or missing:
        fold = {n.casefold(): n for n in names}
        alike = [f"{fold[c.casefold()]} for {c}" for c in missing if c.casefold() in fold]
        raise LiveError(
            f"the stream {name!r} "
            + (f"lacks {', '.join(missing)}" if missing else f"has {', '.join(twice)} twice")
            + f" of the {len(channels)} channels of the calibration: "
            + (
                f"it has {', '.join(alike)}; rename them in the amplifier's application, or "
                if alike
                else ""
            )
            + "calibrate on recordings with the channels of the stream"
        )
    return [list(names).index(c) for c in channels]


def _volts(name: str, units: Sequence[str | None], unit: str | None) -> np.ndarray:
    """Volts in the unit of each channel."""
    given = [unit or u or "" for u in units]
    unknown = sorted({u for u in given if u.casefold() not in UNITS})
    if unknown:
        raise LiveError(
            f"the stream {name!r} does not say in which unit its channels are ({unknown[0]!r}): give "
            "unit='microvolts' (what most amplifiers send) or unit='volts'"
        )
    return np.array([UNITS[u.casefold()] for u in given])
