"""From the start of a notebook's kernel to its first own line, for each notebook of the chain.

    SGDM_BENCH_BASE=FOLDER pytest tests/benchmarks/bench_imports.py

FOLDER is a checkout of the commit to compare with (git worktree add FOLDER COMMIT). Kernels of both
sides take turns, `SGDM_BENCH_ROUNDS` times (3 by default); each is started as the runner starts it and
executes what stands before the first own line: imports, parameters, `workflow.begin`, the figures'
style. The medians are processor time of the kernel, which a busy neighbour hardly lengthens. Results go
to `reports/benchmarks/imports.csv`; without FOLDER there is nothing to compare with, and none is written.
"""

from __future__ import annotations

import ast
import os
import statistics
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from jupyter_client.manager import KernelManager

from sgdm_utils.workflow import machine, paths, run
from sgdm_utils.workflow.atomic import atomic_file

ROUNDS = int(os.environ.get("SGDM_BENCH_ROUNDS", "3"))
BASE = os.environ.get("SGDM_BENCH_BASE", "")
#: Those that both sides have.
NOTEBOOKS = [
    p.stem for p in sorted(paths.notebook_dir().glob("0*.ipynb"))
    if not BASE or (Path(BASE) / "notebooks" / p.name).is_file()
]  # fmt: skip
SETTING_UP = ("workflow.begin", "workflow.require", "figures.use_style", "mne.set_log_level")


def before_first_own_line(notebook: Path) -> str:
    """Statements of a notebook up to the first that is neither an import nor setting up."""
    found = []
    for cell in nbformat.read(notebook, as_version=4).cells:
        for node in ast.parse(cell.source).body if cell.cell_type == "code" else ():
            call = node.value if isinstance(node, ast.Assign | ast.Expr) else None
            sets_up = isinstance(call, ast.Call) and ast.unparse(call.func) in SETTING_UP
            if not (sets_up or isinstance(node, ast.Import | ast.ImportFrom | ast.AnnAssign)):
                return "\n".join(found)
            found.append(ast.unparse(node))
    raise AssertionError(f"{notebook} has no line of its own")


def seconds(root: Path, notebook: str, arguments: tuple[str, ...]) -> float:
    """Processor time of a kernel in a checkout, from its start to the first own line."""
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(
        env=os.environ | {"PYTHONPATH": str(root), "MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        cwd=str(root / "notebooks"), extra_arguments=list(arguments),
    )  # fmt: skip
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=600)
        code = before_first_own_line(root / "notebooks" / f"{notebook}.ipynb")
        asked = {
            "took": "__import__('time').process_time()",
            "where": "__import__('sgdm_utils').__file__",
        }
        reply = client.execute(code, reply=True, timeout=600, user_expressions=asked)["content"]
        assert reply["status"] == "ok", reply
        assert all(v["status"] == "ok" for v in reply["user_expressions"].values()), reply
        answer = {k: v["data"]["text/plain"] for k, v in reply["user_expressions"].items()}
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert Path(ast.literal_eval(answer["where"])).is_relative_to(root)
    return float(answer["took"])


@pytest.mark.timeout(0)
def test_notebooks_start_sooner_than_before():
    sides = {"now": (paths.project_root(), run.KERNEL_ARGUMENTS)}
    if BASE:
        sides = {"before": (Path(BASE).resolve(), run.KERNEL_ARGUMENTS[:1])} | sides
    took = {(side, notebook): [] for side in sides for notebook in NOTEBOOKS}
    for _ in range(ROUNDS if BASE else 1):
        for (side, notebook), times in took.items():
            times.append(seconds(sides[side][0], notebook, sides[side][1]))
    table = pd.Series({k: statistics.median(v) for k, v in took.items()}).unstack(0)
    print(f"\n{table.round(2).to_string()}")
    if not BASE:
        return
    table.loc["all"] = table.sum()
    table["share"] = table["now"] / table["before"]
    table["processor"] = machine.processor()
    table = table.rename_axis("notebook").reset_index()
    with atomic_file(paths.project_root() / "reports" / "benchmarks" / "imports.csv") as part:
        table.to_csv(part, index=False, float_format="%.3g", lineterminator="\n")
    assert table["share"].iloc[-1] < 0.8
