"""What a newcomer's machine feels: a picture from one epoch, and a training step beside a busy neighbour.

    SGDM_DATA=FOLDER pytest tests/benchmarks/bench_laptop.py

`test_one_picture` needs a finished study (`SGDM_BENCH_STUDY`, demo by default): single test trials are
read by the forward model, which guides the generator, one at a time; each side of the comparison
(posterior, networks) takes its turn. Processor seconds of the median picture.

`test_busy_neighbour` makes training steps of a small convolutional network alone and beside a process at
full load on the first core, in turns, with each thread policy; wall seconds of the median step. It is
meaningless on a machine where anything else runs, and is skipped there. Results go to
`reports/benchmarks/laptop.csv`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest

from sgdm_utils.workflow import machine, paths
from sgdm_utils.workflow.atomic import atomic_file

STUDY = os.environ.get("SGDM_BENCH_STUDY", "demo")
ROUNDS = int(os.environ.get("SGDM_BENCH_ROUNDS", "5"))
#: Name of a policy -> environment of the kernel.
POLICIES = {
    "spinning": {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "2"},
    "passive": {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "2"},
    "one thread": {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"},
}
PICTURE_LIMIT_S, NEIGHBOUR_LIMIT = 0.3, 1.8


def write(rows: list[dict]) -> pd.DataFrame:
    """Put rows into the table of results, in place of older ones of the same cases."""
    path = paths.project_root() / "reports" / "benchmarks" / "laptop.csv"
    new = pd.DataFrame(rows).assign(processor=machine.processor())
    old = pd.read_csv(path) if path.is_file() else new[:0]
    table = pd.concat([old[~old["case"].isin(new["case"])], new]) if len(old) else new
    with atomic_file(path) as part:
        table.to_csv(part, index=False, float_format="%.3g", lineterminator="\n")
    print(f"\n{new.to_string(index=False)}")
    return new.set_index("case")


def test_one_picture():
    model = paths.stage_dir(STUDY, paths.JOINT, "pipeline", 0) / "model"
    if not (model / "model_index.json").is_file():
        pytest.skip(f"study {STUDY} has no pipeline yet: make study STUDY={STUDY}")
    import torch

    from sgdm_utils import generation, signals, workflow

    run = workflow.Run("experiments/18_sampling", {"study": STUDY, "seed": 0})
    people = run.read("data").notes["subjects"]
    trials = signals.load_trials(run, people)
    first = trials.table["subject"] == people[0]
    rows = np.flatnonzero((trials.table["split"] == "test") & first)[: ROUNDS + 1]
    pipe = generation.SGDMPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    times: dict[str, list[float]] = {"posterior": [], "encoder": []}
    for row in rows:
        epoch = trials.eeg[np.array([row])]
        for conditions, took in times.items():
            began = time.process_time()
            pipe(
                epoch, subject=people[0], conditions=conditions, n_averaged=1,
                generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
            took.append(time.process_time() - began)
    table = write(
        [
            {"case": f"one picture, {name}", "seconds": statistics.median(took[1:])}
            | {"threads": torch.get_num_threads()}
            for name, took in times.items()
        ]
    )
    assert table.loc["one picture, posterior", "seconds"] < PICTURE_LIMIT_S


def training_steps() -> float:
    """Median wall seconds of a step of a small convolutional network, in this process."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    network = nn.Sequential(
        *(layer for i, o in ((3, 48), (48, 64), (64, 64), (64, 3))
          for layer in (nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(1, o), nn.SiLU()))
    )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    pictures, times = torch.rand(32, 3, 32, 32), []
    for _ in range(12):
        began = time.perf_counter()
        loss = (network(pictures) - pictures).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def in_its_process(policy: str) -> float:
    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | POLICIES[policy],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_busy_neighbour():
    if psutil.cpu_percent(interval=2) > 20:
        pytest.skip("something else runs on this machine: nothing could be told from the times")
    alone = {policy: [] for policy in POLICIES}
    beside = {policy: [] for policy in POLICIES}
    for _ in range(ROUNDS):
        for policy in POLICIES:
            alone[policy].append(in_its_process(policy))
            neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            try:
                psutil.Process(neighbour.pid).cpu_affinity([0])
                beside[policy].append(in_its_process(policy))
            finally:
                neighbour.kill()
                neighbour.wait()
    fastest = min(map(statistics.median, alone.values()))
    table = write(
        [
            {
                "case": f"step beside a busy neighbour, {policy}",
                "seconds": statistics.median(beside[policy]),
                "alone_s": statistics.median(alone[policy]),
                "slower": statistics.median(beside[policy]) / fastest,
                "threads": int(POLICIES[policy]["OMP_NUM_THREADS"]),
            }
            for policy in POLICIES
        ]
    )
    assert table["slower"].min() < NEIGHBOUR_LIMIT


if __name__ == "__main__":
    print(json.dumps(training_steps()))
