"""What a newcomer's machine feels: a picture from one epoch, and a training step beside a busy neighbour.

    SGDM_DATA=FOLDER pytest tests/benchmarks/bench_laptop.py

`test_one_picture` needs a finished study (`SGDM_BENCH_STUDY`, demo by default): single test trials are
read by the forward model, which guides the generator, one at a time; each side of the comparison
(posterior, networks) takes its turn. Processor seconds of the median picture.

`test_busy_neighbour` makes training steps of the study's UNet and ControlNet alone, beside a process at
full load on the first core, and two at once, in turns, with each thread policy; wall seconds of the
median step. "notebook" is the policy that notebooks run with (`machine.share_processors`). It is
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
CAPABILITY = os.environ.get("ATEN_CPU_CAPABILITY", "native")
#: Name of a policy -> environment of the kernel.
POLICIES = {
    "spinning": {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "2"},
    "passive": {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "2"},
    "passive after 1,000 turns": {
        "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": "2",
    },
    "notebook": {},
}  # fmt: skip
machine.share_processors(POLICIES["notebook"])
THREADING = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
PICTURE_LIMIT_S, NEIGHBOUR_LIMIT = 0.3, 1.8


def write(rows: list[dict]) -> pd.DataFrame:
    """Put rows into the table of results, in place of older ones of the same cases."""
    path = paths.project_root() / "reports" / "benchmarks" / "laptop.csv"
    new = pd.DataFrame(rows).assign(processor=machine.processor(), capability=CAPABILITY)
    old = pd.read_csv(path) if path.is_file() else new[:0]
    table = pd.concat([old, new]).drop_duplicates(["case", "processor", "capability"], keep="last")
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
    """Median wall seconds of a training step of the generator, in this process."""
    import torch
    from bench_generator import diffusion_step

    from sgdm_utils.workflow import config

    torch.manual_seed(0)
    study = config.load_study("demo")
    step = diffusion_step(
        config.resolve(study, config.step(study, "05_diffusion_training", None, 0))
    )
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 12 or time.perf_counter() - started < 3:
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def in_processes(policy: str, n: int = 1) -> float:
    """Median step of some processes at once, the slowest of them."""
    ours = {name: value for name, value in os.environ.items() if name not in THREADING}
    command = [sys.executable, __file__]
    started = [
        subprocess.Popen(command, env=ours | POLICIES[policy], stdout=subprocess.PIPE, text=True)
        for _ in range(n)
    ]
    told = [process.communicate()[0] for process in started]
    assert not any(process.returncode for process in started)
    return max(json.loads(out.splitlines()[-1]) for out in told)


def beside_a_neighbour(policy: str) -> float:
    """The same beside a process at full load on the first core."""
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        psutil.Process(neighbour.pid).cpu_affinity([0])
        return in_processes(policy)
    finally:
        neighbour.kill()
        neighbour.wait()


def test_busy_neighbour():
    if psutil.cpu_percent(interval=2) > 20:
        pytest.skip("something else runs on this machine: nothing could be told from the times")
    cases = {
        "alone": in_processes,
        "beside": beside_a_neighbour,
        "two": lambda policy: in_processes(policy, 2),
    }
    seconds = {policy: {case: [] for case in cases} for policy in POLICIES}
    for _ in range(ROUNDS):
        for policy in POLICIES:
            for case, measure in cases.items():
                seconds[policy][case].append(measure(policy))
    rows = []
    for policy, of_case in seconds.items():
        took = {case: statistics.median(values) for case, values in of_case.items()}
        rows.append(
            {
                "case": f"generator's step, {policy}", "seconds": took["alone"],
                "beside_neighbour_s": took["beside"], "two_at_once_s": took["two"],
                "slower_beside": took["beside"] / took["alone"],
                "threads": int(POLICIES[policy]["OMP_NUM_THREADS"]),
            }
        )  # fmt: skip
    table = write(rows)
    assert table.loc["generator's step, notebook", "slower_beside"] < NEIGHBOUR_LIMIT


if __name__ == "__main__":
    print(json.dumps(training_steps()))
