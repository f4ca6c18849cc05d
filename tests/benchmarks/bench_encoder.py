"""One alignment step of the EEG encoders at the size of THINGS-EEG2, side by side.

    pytest tests/benchmarks/bench_encoder.py

(256, 63, 250) float32 epochs at 250 Hz to 1024 dimensions, symmetric InfoNCE against 1024-d targets,
AdamW. The encoders take turns in one process, `SGDM_BENCH_ROUNDS` times (default 7); the rate is the
median. Peak memory is measured in a process for each: what it needs beyond the imports, epochs and
optimiser included. What is asked for is a ratio, since seconds are the machine's.

`nice` computes layer by layer, as it was published; `nice merged` joins its two linear layers, which
gives the same numbers. `sgdm` is ours with one subject and all electrodes; `sgdm, ten people` has a
subject layer for each of ten people in the batch and leaves out electrodes at random, as training does;
`sgdm, for a card` is what `config/things_eeg2.yaml` trains on a graphics card, wider and without a bottleneck.
Results go to `reports/benchmarks/encoder.csv`, one row for each encoder and number of cores
(`OMP_NUM_THREADS`).
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from sgdm_utils.decoding import encoders, training
from sgdm_utils.experiments import nice_encoder
from sgdm_utils.workflow import machine, paths
from sgdm_utils.workflow.atomic import atomic_file

CORES = int(os.environ.get("OMP_NUM_THREADS", "2"))
ROUNDS = int(os.environ.get("SGDM_BENCH_ROUNDS", "7"))
BATCH, N_CHANS, N_TIMES, N_OUTPUTS, SFREQ = 256, 63, 250, 1024, 250.0
RATIO, MAX_PARAMETERS, MAX_GB = 10, 4_000_000, 1.0


def positions() -> np.ndarray:
    points = np.random.default_rng(0).standard_normal((N_CHANS, 3))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def build(name: str) -> torch.nn.Module:
    """One of the encoders, in training mode."""
    torch.manual_seed(0)
    if name.startswith("nice"):
        return nice_encoder.NICEEncoder(
            N_CHANS, N_OUTPUTS, N_TIMES, sfreq=SFREQ, merge_linear="merged" in name
        )
    options = {"width": 64, "bottleneck": N_OUTPUTS} if "card" in name else {}
    options |= {"n_subjects": 10 if "ten" in name else 1, "positions": positions()}
    return encoders.SGDMEncoder(N_CHANS, N_OUTPUTS, N_TIMES, sfreq=SFREQ, **options)


def stepper(name: str, encoder: torch.nn.Module) -> Callable[[], float]:
    """A function that makes one training step and returns the loss."""
    generator = torch.Generator().manual_seed(0)
    eeg = torch.randn(BATCH, N_CHANS, N_TIMES, generator=generator)
    target = F.normalize(torch.randn(BATCH, N_OUTPUTS, generator=generator), dim=1)
    subject = torch.arange(BATCH) % (10 if "ten" in name else 1)
    scale = torch.nn.Parameter(torch.tensor(2.3))
    optimizer = torch.optim.AdamW([*encoder.parameters(), scale], lr=1e-4, fused=True)
    same = torch.arange(BATCH)

    def step() -> float:
        mask = None
        if "ten" in name:
            mask = training.keep_electrodes(BATCH, N_CHANS, 0.03, generator)
        logits = scale.exp() * F.normalize(encoder(eeg, subject, mask=mask), dim=1) @ target.T
        loss = (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def latency_ms(encoder: torch.nn.Module) -> float:
    """Median time of one epoch through the encoder, without gradients."""
    encoder.eval()
    eeg, subject = torch.randn(1, N_CHANS, N_TIMES), torch.tensor([0])
    with torch.inference_mode():
        times = [seconds(lambda: encoder(eeg, subject)) for _ in range(60)]
    encoder.train()
    return 1000 * statistics.median(times[10:])


def peak_gb() -> float:
    """Largest resident memory of this process so far (Linux; ru_maxrss would be the parent's)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e9


def measured_gb(name: str) -> float:
    """Peak growth of a process of its own that makes six steps."""
    done = subprocess.run(
        [sys.executable, __file__, name],
        env=os.environ | {"OMP_NUM_THREADS": str(CORES)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def growth_gb(name: str) -> float:
    torch.set_num_threads(CORES)
    before = peak_gb()
    step = stepper(name, build(name))
    for _ in range(6):
        step()
    return peak_gb() - before


NAMES = ("nice", "nice merged", "sgdm", "sgdm, ten people", "sgdm, for a card")


def test_one_alignment_step_of_each_encoder():
    torch.set_num_threads(CORES)
    models = {name: build(name) for name in NAMES}
    steps = {name: stepper(name, model) for name, model in models.items()}
    times = {name: [] for name in NAMES}
    for turn in range(ROUNDS + 1):
        for name in NAMES:
            once = [seconds(steps[name]) for _ in range(1 if name == "nice" else 3)]
            times[name] += once if turn else []  # the first turn warms up
    rate = {name: BATCH / statistics.median(times[name]) for name in NAMES}
    rows = [
        {
            "encoder": name,
            "parameters": sum(p.numel() for p in models[name].parameters()),
            "samples_per_s": f"{rate[name]:.4g}",
            "ratio_to_nice": f"{rate[name] / rate['nice']:.3g}",
            "peak_gb": f"{measured_gb(name):.3g}",
            "forward_1_ms": f"{latency_ms(models[name]):.3g}",
            "cores": CORES,
            "processor": machine.processor(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        }
        for name in NAMES
    ]
    write(rows)
    print(f"\n{pd.DataFrame(rows).to_string(index=False)}")
    assert rate["sgdm"] / rate["nice"] >= RATIO
    ours = pd.DataFrame(rows)
    ours = ours[ours["encoder"].str.startswith("sgdm")]
    assert ours["parameters"].astype(int).max() <= MAX_PARAMETERS
    assert ours["peak_gb"].astype(float).max() <= MAX_GB


def write(rows: list[dict]) -> None:
    """Put rows into the table of results, in place of older ones for the same machine."""
    path = paths.project_root() / "reports" / "benchmarks" / "encoder.csv"
    new = pd.DataFrame(rows).astype(str)
    old = pd.read_csv(path, dtype=str) if path.is_file() else new[:0]
    key = ["encoder", "cores", "processor", "capability"]
    table = pd.concat([old, new]).drop_duplicates(key, keep="last")
    with atomic_file(path) as part:
        table.to_csv(part, index=False, lineterminator="\n")


if __name__ == "__main__":
    print(json.dumps(growth_gb(sys.argv[1])))
