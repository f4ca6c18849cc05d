#!/usr/bin/env bash
# MNE-LSL plays a recording as a live stream, and its annotations as a second stream of markers: the way to test a brain-computer interface
# without a person. One would guess that a marker carries the time stamp of the sample that its annotation points to.
#
# It carries the stamp of the sample before. A recording with an impulse exactly at the onset of each annotation is played, and both streams
# are read with their stamps: every marker is one sample period too early, at both sampling rates and block sizes tried. At 1000 Hz that is
# nothing, at the 125 or 100 Hz of many decoders it is 8 or 10 ms, and a decoder that was tuned on played recordings is off by it with a person.
#
# Remedy: add one sample period to the stamps of the player's markers (not to those of an amplifier), or mark events in a channel.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet mne==1.13.2 mne-lsl==1.14.0 2>/dev/null
cd "$folder"
cat > show.py <<'PY'
import time
import uuid
import warnings

import mne
import numpy as np

warnings.simplefilter("ignore")
import mne_lsl
from mne_lsl.lsl import StreamInlet, resolve_streams
from mne_lsl.player import PlayerLSL

mne.set_log_level("error")
mne_lsl.set_log_level("ERROR")
print("mne", mne.__version__, "mne_lsl", mne_lsl.__version__)


def play(sfreq, chunk_size):
    """Samples by which each marker's stamp lies before that of the impulse it stands for."""
    at = [int(1.0 * sfreq), int(1.9 * sfreq) + 3, int(2.7 * sfreq) + 1]
    samples = np.zeros((2, int(4 * sfreq)))
    samples[0, at] = 1e-3
    raw = mne.io.RawArray(samples, mne.create_info(["Oz", "Cz"], sfreq, "eeg"))
    raw.set_annotations(mne.Annotations(np.array(at) / sfreq, [0.0] * 3, ["a", "b", "c"]))
    name = uuid.uuid4().hex
    player = PlayerLSL(
        raw, chunk_size=chunk_size, n_repeat=1, name=name, source_id=name, annotations_encoding="string"
    )
    player.start()
    found = resolve_streams(10, source_id=name, minimum=2)
    eeg = StreamInlet(next(s for s in found if s.sfreq > 0))
    marks = StreamInlet(next(s for s in found if s.sfreq == 0))
    eeg.open_stream(5)
    marks.open_stream(5)
    values, stamps, marked, last = [], [], [], time.time()
    while time.time() - last < 1.5:
        try:
            data, times = eeg.pull_chunk(timeout=0, max_samples=1000)
            _, mark_times = marks.pull_chunk(timeout=0, max_samples=100)
        except Exception:  # the player has come to its end
            break
        marked += list(np.array(mark_times))
        if len(times):
            values.append(data[:, 0].copy())
            stamps.append(times.copy())
            last = time.time()
        time.sleep(0.001)
    values, stamps = np.concatenate(values), np.concatenate(stamps)
    impulses = stamps[values > 0]
    return [float(round((impulses[np.abs(impulses - m).argmin()] - m) * sfreq, 2)) for m in marked]


for sfreq, chunk_size in ((250.0, 10), (125.0, 5)):
    early = play(sfreq, chunk_size)
    print(f"{sfreq:g} Hz, blocks of {chunk_size}: markers before their impulse by {early} samples")
    assert len(early) >= 2 and np.allclose(early, 1, atol=0.2), "changed"
print("as described")
PY
"$folder/env/bin/python" show.py
