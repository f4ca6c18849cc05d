"""What a process says about the machine, and how much of it it takes."""

import subprocess
import sys
import threading

import pytest

from sgdm_utils.workflow import machine

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


@pytest.mark.parametrize(("processors", "threads"), [(1, "1"), (2, "1"), (3, "1"), (8, "4")])
def test_a_notebook_takes_half_of_the_processors(monkeypatch, processors, threads):
    monkeypatch.setattr(machine, "n_processors", lambda: processors)
    environment = {"OMP_NUM_THREADS": ""}
    machine.share_processors(environment)
    expected = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
    assert environment == expected


@pytest.mark.parametrize("name", machine.THREAD_VARIABLES)
def test_whoever_says_how_many_threads_is_obeyed(name):
    told = {name: "3", "OMP_WAIT_POLICY": "active"}
    machine.share_processors(environment := dict(told))
    assert environment == told


def test_items_are_computed_side_by_side_as_if_each_were_alone(monkeypatch):
    import torch

    monkeypatch.setattr(machine, "n_processors", lambda: 2)
    before, together = torch.get_num_threads(), threading.Barrier(2, timeout=60)
    torch.set_num_threads(3)

    def compute(item):
        together.wait()  # breaks where two do not compute at once
        return item, torch.get_num_threads()

    try:
        assert machine.side_by_side(compute, range(4)) == [(i, 1) for i in range(4)]
        assert torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError):
            machine.side_by_side(lambda item: 1 / item, (1, 0))
        assert torch.get_num_threads() == 3
        fresh = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        found = []
        fresh.start()
        fresh.join()
        assert found == [3]
    finally:
        torch.set_num_threads(before)
