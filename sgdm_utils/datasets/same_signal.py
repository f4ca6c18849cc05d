"""Is one recording a copy of another: saved again in another format, cropped, resampled, scaled?

Bits differ between such copies and headers do too. What stays is the course of the signal, so a
recording is reduced to a *trace*, a minute of a few electrodes at 1 to 15 Hz and a low rate, and two
traces are correlated at every shift. Where a copy was cropped by more than that, the intervals
between its events tell which minute of the other recording it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mne
import numpy as np
import pandas as pd
from scipy.signal import detrend
from scipy.signal.windows import tukey

from sgdm_utils.errors import DatasetError

RATE = 128.0  # Hz, of a trace: half a sample of misalignment costs 2 % of the correlation
LENGTH_S = 60.0
BAND = (1.0, 15.0)  # Hz: no drift, no mains
OVERLAP_S = 30.0  # least common stretch; shorter ones look alike by chance (a blink, alpha)
ALIKE = 0.9  # independent EEG reaches 0.4 at its best shift, copies lie above 0.97
N_CHANNELS = 4
N_INTERVALS = 12  # successive ones that tell a place in a recording
_LOOSE_S = 0.012  # rounding of onsets to samples, in both recordings


@dataclass(frozen=True)
class _Trace:
    """Some electrodes in the band, their spectra (padded) and cumulated power, from `start_s` on."""

    n: int
    spectrum: np.ndarray
    energy: np.ndarray
    start_s: float


def require_different(
    files: Sequence[Path], events: Sequence[pd.DataFrame], ch_names: Sequence[str]
) -> None:
    """Refuse two recordings that hold the same signal.

    Parameters
    ----------
    files : sequence of Path, one for each recording
    events : for each, DataFrame with `onset_s` and `image_id`, in ascending order
    ch_names : names of the EEG channels that they share; `N_CHANNELS` of them are compared

    Raises
    ------
    DatasetError
        Names both files, the stretch they share and how alike they are there.
    """
    names = sorted(ch_names)
    chosen = [names[i] for i in np.linspace(0, len(names) - 1, N_CHANNELS).astype(int)]
    chosen = list(dict.fromkeys(chosen))
    traces: list[_Trace | None] = []
    headers: dict[Path, mne.io.BaseRaw] = {}

    def opened(file: Path) -> mne.io.BaseRaw:
        """Header and events, which take longer to read than a minute of the signal, are kept."""
        raw = headers.get(file) or mne.io.read_raw(file, verbose="error")
        if not raw.preload:  # some formats are read whole
            headers[file] = raw
        return raw

    for i, file in enumerate(files):
        trace = _trace(opened(file), chosen)
        for j, other in enumerate(traces):
            _refuse(files[j], other, file, trace)
            shift = _shift(events[j], events[i])
            if shift is not None and abs(shift) > LENGTH_S - OVERLAP_S:
                start = max(0.0, -shift)
                _refuse(files[j], _trace(opened(files[j]), chosen, start + shift),
                        file, _trace(opened(file), chosen, start))  # fmt: skip
        traces.append(trace)


def _refuse(one: Path, a: _Trace | None, other: Path, b: _Trace | None) -> None:
    if a is None or b is None:
        return
    alike, lag = _likeness(a, b)
    if alike >= ALIKE:
        at = max(0.0, lag)  # of the first trace, where the common stretch begins
        raise DatasetError(
            f"{other} and {one} hold the same signal (correlation {alike:.2f} from "
            f"{a.start_s + at:.1f} s of {one.name} and {b.start_s + at - lag:.1f} s of {other.name} "
            "on): a recording was copied. Counted twice it would stand in training and test at "
            "once; remove one of them"
        )


def _trace(raw: mne.io.BaseRaw, ch_names: list[str], start_s: float = 0.0) -> _Trace | None:
    """Read a trace from `start_s` on, or from where a signal begins; None where there is none."""
    picks = [raw.ch_names.index(name) for name in ch_names if name in raw.ch_names]
    sfreq, start = raw.info["sfreq"], round(start_s * raw.info["sfreq"])
    n = round(LENGTH_S * sfreq)
    while start < raw.n_times:  # amplifiers write zeros until they are connected
        block = np.nan_to_num(raw.get_data(picks, start, min(start + n, raw.n_times)))
        moving = np.flatnonzero((block != block[:, :1]).any(0))
        if len(moving):
            break
        start += n
    else:
        return None
    start += int(moving[0]) if moving[0] > 1 else 0  # after the step from the constant
    block = np.nan_to_num(raw.get_data(picks, start, min(start + n, raw.n_times)))
    n_out = int(block.shape[1] / sfreq * RATE)
    if start_s and n_out < OVERLAP_S * RATE:
        return None  # the end of a recording tells too little
    # without the ends, drift would ring in the band, at the same place in every recording
    waves = np.fft.rfft(detrend(block, axis=1) * tukey(block.shape[1], 0.1))
    hertz = np.fft.rfftfreq(block.shape[1], 1 / sfreq)
    waves[:, (hertz < BAND[0]) | (hertz > BAND[1])] = 0
    kept = np.zeros((len(picks), n_out // 2 + 1), complex)
    shared = min(kept.shape[1], waves.shape[1])
    kept[:, :shared] = waves[:, :shared]
    values = np.fft.irfft(kept, n_out)
    spread = 1.4826 * np.median(np.abs(values), axis=1, keepdims=True)
    # a blink must not decide: beyond three robust standard deviations all values are alike
    values = np.clip(np.divide(values, spread, where=spread > 0, out=np.zeros_like(values)), -3, 3)
    size = 2 * round(LENGTH_S * RATE)
    energy = np.concatenate([[0.0], np.cumsum((values**2).sum(0))])
    spectrum = np.fft.rfft(values, size).astype(np.complex64)
    return _Trace(n_out, spectrum, energy, start / sfreq)


def _likeness(a: _Trace, b: _Trace) -> tuple[float, float]:
    """Highest correlation over all shifts, and the time in `a` at which `b` begins, seconds."""
    n_a, n_b = a.n, b.n
    size = 2 * round(LENGTH_S * RATE)
    product = np.fft.irfft((a.spectrum * b.spectrum.conj()).sum(0), size)
    least = min(round(OVERLAP_S * RATE), int(0.8 * min(n_a, n_b)))
    lags = np.arange(least - n_b, n_a - least + 1)
    from_a, to_a = np.maximum(lags, 0), np.minimum(n_a, n_b + lags)
    power = (a.energy[to_a] - a.energy[from_a]) * (b.energy[to_a - lags] - b.energy[from_a - lags])
    values = product[lags % size] / np.sqrt(np.maximum(power, 1e-12))
    best = int(values.argmax())
    return float(values[best]), lags[best] / RATE


def _shift(a: pd.DataFrame, b: pd.DataFrame) -> float | None:
    """Time in recording a minus time in recording b of the same events; None where none are known.

    Intervals that recur (a picture every 200 ms) tell no place; then the pictures have to.
    """
    if min(len(a), len(b)) <= N_INTERVALS:
        return None
    view = np.lib.stride_tricks.sliding_window_view
    onsets_a, onsets_b = (events["onset_s"].to_numpy() for events in (a, b))
    intervals_a, intervals_b = (view(np.diff(x), N_INTERVALS) for x in (onsets_a, onsets_b))
    for place in np.linspace(0, len(intervals_b) - 1, 5).astype(int):
        late = np.abs(intervals_a - intervals_b[place])
        found = np.flatnonzero((late <= 2 * _LOOSE_S).all(1))
        if len(found) > 1:
            wanted = b["image_id"].to_numpy()[place : place + N_INTERVALS]
            shown = view(a["image_id"].to_numpy(), N_INTERVALS)[found]
            found = found[(shown == wanted).all(1)]
        if len(found) == 1:
            return float(onsets_a[found[0]] - onsets_b[place])
    return None
