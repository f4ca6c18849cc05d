"""Fixtures that several test modules share."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from chain import SmokeRun, once


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Refuse connections to other machines: the tests need none, and must not come to need one."""
    connect = socket.socket.connect

    def only_here(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            raise OSError(f"a test tried to reach {address[0]}; tests do without the network")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_here)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def tmp_study(tmp_path, monkeypatch):
    """Let artifacts and reports go to a temporary folder; the folder is the fixture's value."""
    monkeypatch.setenv("SGDM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SGDM_REPORTS", str(tmp_path / "reports"))
    return tmp_path


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory) -> SmokeRun:
    """Run the whole chain of ``config/smoke.yaml`` once."""
    return once("smoke", tmp_path_factory)


@pytest.fixture(scope="session")
def null_run(tmp_path_factory) -> SmokeRun:
    """Run the decoders of ``config/smoke_null.yaml``, where the EEG says nothing, once."""
    return once("smoke_null", tmp_path_factory)


@pytest.fixture
def smoke_study(smoke_run, monkeypatch) -> SmokeRun:
    """The smoke run, with the environment set so that its artifacts are found."""
    monkeypatch.setenv("SGDM_DATA", str(smoke_run.data))
    monkeypatch.setenv("SGDM_REPORTS", str(smoke_run.reports))
    return smoke_run


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
