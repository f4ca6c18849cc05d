"""A client of a kernel ends, whatever its heartbeat waits for."""

import asyncio
import time

import nbformat
import pytest
import zmq.asyncio

from sgdm_utils.workflow import kernels, run


class WaitsForEver(kernels.Heartbeat):
    """A heartbeat whose kernel left between question and answer."""

    n_started = 0

    async def _async_run(self) -> None:
        type(self).n_started += 1
        self._create_socket()
        self._running = True
        await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(kernels, "PATIENCE_S", 0.3)


def test_a_heartbeat_that_waits_for_ever_is_left_alone():
    context = zmq.asyncio.Context()
    heartbeat = WaitsForEver(context, None, ("127.0.0.1", 1))
    heartbeat.start()
    while heartbeat.socket is None:  # the thread has begun
        time.sleep(0.01)
    started = time.monotonic()
    heartbeat.stop()
    assert 0.2 < time.monotonic() - started < 5
    assert heartbeat.is_alive() and heartbeat.daemon  # it ends with the process
    context.destroy(linger=0)  # its socket does not hold the others up either


def test_a_notebook_ends_although_its_heartbeat_does_not(monkeypatch, tmp_path):
    import papermill

    monkeypatch.setattr(kernels.KernelClient.hb_channel_class, "default_value", WaitsForEver)
    monkeypatch.setattr(WaitsForEver, "n_started", 0)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(1 + 1)")])
    nbformat.write(book, tmp_path / "book.ipynb")
    done = papermill.execute_notebook(
        str(tmp_path / "book.ipynb"),
        str(tmp_path / "executed.ipynb"),
        kernel_name="python3",
        progress_bar=False,
        shutdown_kernel="graceful",
        kernel_manager_class=kernels.KernelManager,
    )
    assert done.cells[-1].outputs[0].text == "2\n"
    assert WaitsForEver.n_started == 1


@pytest.mark.parametrize(
    ("message", "n_deaths", "n_starts"),
    [
        ("Kernel didn't respond in 60 seconds", 2, 3),  # another kernel took its port
        ("Kernel died before replying to kernel_info", 1, 2),
        ("Kernel didn't respond in 60 seconds", 3, None),
        ("Kernel died", 1, None),  # in a cell: that is told, and not tried again
    ],
)
def test_a_kernel_that_does_not_come_to_life_is_followed_by_another(message, n_deaths, n_starts):
    started = []

    def execute_notebook(*arguments, **options):
        started.append((arguments, options))
        if len(started) <= n_deaths:
            raise RuntimeError(message)

    if n_starts is None:
        with pytest.raises(RuntimeError, match=message):
            run._with_a_port(execute_notebook, "notebook", parameters={})
        assert len(started) == (3 if "60" in message else 1)
    else:
        run._with_a_port(execute_notebook, "notebook", parameters={})
        assert started == [(("notebook",), {"parameters": {}})] * n_starts
