#!/usr/bin/env bash
# A fixed random_state makes MNE's ICA repeatable up to rounding, one would guess, on one machine and from one to the
# next. It does not where the fit has not converged, which on EEG with more components than sources is the usual case: the
# number of threads of the linear algebra changes the order of its sums, 100 iterations of FastICA turn the last digit into
# other components, and the cleaned recording differs by about a percent of its standard deviation (single samples by
# much more). So the same script gives another recording on a laptop with another number of cores.
#
# Seen with blinks in 1/f noise of 63 channels; "auto" (1,000 iterations) does not converge either.
# Remedy: one thread (OPENBLAS_NUM_THREADS=1, or threadpoolctl) for the ICA, or as many components as there is to find.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet mne==1.13.2 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 2>/dev/null
cd "$folder"
cat > clean.py <<'PY'
import sys
import warnings

import mne
import numpy as np
import sklearn

warnings.simplefilter("ignore")
mne.set_log_level("error")
rng, n_channels, sfreq = np.random.default_rng(0), 63, 250
n_times = 60 * sfreq
frequency = np.maximum(np.fft.rfftfreq(n_times, 1 / sfreq), 1 / 60)
noise = np.fft.irfft(np.fft.rfft(rng.standard_normal((n_channels, n_times))) / frequency**0.5, n_times)
blinks = np.zeros(n_times)
for start in rng.integers(0, n_times - 75, 20):
    blinks[start : start + 75] += np.hanning(75)
eeg = rng.standard_normal((n_channels, n_channels)) @ (noise / noise.std())
eeg += np.outer(60 * rng.standard_normal(n_channels), blinks)
raw = mne.io.RawArray(1e-6 * eeg, mne.create_info(n_channels, sfreq, "eeg")).filter(1, 40)
ica = mne.preprocessing.ICA(20, method="fastica", random_state=97, max_iter=100).fit(raw)
follows = [abs(np.corrcoef(source, blinks)[0, 1]) for source in ica.get_sources(raw).get_data()]
ica.exclude = [int(np.argmax(follows))]
np.save(sys.argv[1], ica.apply(raw.copy()).get_data() / raw.get_data().std())
print("mne", mne.__version__, "numpy", np.__version__, "scikit-learn", sklearn.__version__, end=" | ")
print("iterations:", ica.n_iter_, f"| the excluded component follows the blinks: r = {max(follows):.3f}")
PY
for name in 1 1-again 2; do
    export OPENBLAS_NUM_THREADS="${name%-again}" OMP_NUM_THREADS="${name%-again}"
    echo "threads: $name"
    env -u PYTHONPATH "$folder/env/bin/python" clean.py "$name.npy"
done
cat > compare.py <<'PY'
import os

import numpy as np

once, again, other = (np.load(f"{name}.npy") for name in ("1", "1-again", "2"))
print("one thread, twice: largest difference", np.abs(once - again).max())
difference = np.abs(once - other)
print(f"one thread and two: mean difference {difference.mean():.4f} of the standard deviation, largest {difference.max():.3f}")
assert np.array_equal(once, again)
assert len(os.sched_getaffinity(0)) > 1, "this machine has one core: two threads are one here"
assert difference.mean() > 1e-4, "the number of threads does not matter any more"
PY
env -u PYTHONPATH "$folder/env/bin/python" compare.py
