"""What a process says about the machine, and how much of it it takes."""

import subprocess
import sys

PROGRAM = """
from sgdm_utils import workflow
workflow.one_thread()
import mne, numpy, scipy.linalg, sklearn.decomposition
from threadpoolctl import threadpool_info
print([p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"])
"""


def test_every_library_of_linear_algebra_keeps_to_one_thread(monkeypatch):
    """numpy and scipy bring a library each; what is loaded later must not bring threads back."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.strip("[]\n").split(", ")) == {"1"}
