"""What tests of networks and of the suite share."""

from __future__ import annotations

import pytest


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """Empty caches of weights; the value is a temporary folder."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    return tmp_path
