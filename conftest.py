"""What holds for tests and for notebooks alike when pytest runs them."""

import os

# Set before any library starts its threads; two is what the smallest machine in mind has, and of two
# workers each takes one.
# Threads that wait in a loop keep a busy neighbour off the core; the digits are the same.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")


def pytest_collectstart(collector):
    """Let nbval compare what is the same on every machine: no warnings, no styled tables."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr", "text/html")
