"""LSL within one process: the module, or a reason to skip."""

from __future__ import annotations

import uuid
from types import ModuleType

import pytest


def require_loopback() -> ModuleType:
    """Return `mne_lsl.lsl` where a stream of this process is found by it; skip elsewhere."""
    module = pytest.importorskip("mne_lsl.lsl", reason="mne-lsl is not installed (extra live)")
    name = uuid.uuid4().hex
    outlet = module.StreamOutlet(module.StreamInfo(name, "EEG", 1, 100.0, "float64", name))
    if not module.resolve_streams(3.0, name=name):
        pytest.skip("LSL finds no stream of its own machine: no loopback or multicast here")
    del outlet
    return module
