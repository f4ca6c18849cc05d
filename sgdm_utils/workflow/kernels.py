"""Kernels whose client ends when they do.

A client asks its kernel every second whether it is alive, in a thread, and when the kernel has ended it waits
for that thread. With jupyter_client 8.10.0 the thread was once seen waiting for an answer of a kernel that
had just left, for ever, and with it the notebook that was complete, the engine and everything after it. A
thread like that ends with its process, so nothing is lost by not waiting for it.
"""

from __future__ import annotations

from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.channels import HBChannel
from jupyter_client.manager import AsyncKernelManager
from traitlets import Type

PATIENCE_S = 5.0


class Heartbeat(HBChannel):
    """A heartbeat that is waited for no longer than `PATIENCE_S`."""

    def join(self, timeout: float | None = None) -> None:
        """Wait for the thread; seconds, `PATIENCE_S` where nothing is said."""
        super().join(PATIENCE_S if timeout is None else timeout)


class KernelClient(AsyncKernelClient):
    """The client of jupyter_client with that heartbeat."""

    hb_channel_class = Type(Heartbeat)


class KernelManager(AsyncKernelManager):
    """The manager of jupyter_client with that client."""

    client_factory = Type(KernelClient, klass=AsyncKernelClient)
