"""The whole suite on folders of pictures: time of each network, peak memory, growth with n.

    SGDM_BENCH_PICTURES=200 pytest tests/benchmarks/bench_metrics.py

Weights are random: they cost what trained ones cost, and the scores mean nothing. The suite runs in a
process of its own on a quarter, a half and all of `SGDM_BENCH_PICTURES` pictures of 256 x 256 with
`SGDM_BENCH_SAMPLES` samples each (10 by default), in `SGDM_BENCH_PRECISION` (float32 or bfloat16, or
both separated by a comma). `SGDM_BENCH_GROUPS` leaves out networks ("pixels,alexnet_5"). When the
first is set, the results go to `reports/benchmarks/metrics.csv`, else into the test's folder.

`test_targets_are_computed_once` scores one reconstruction of each picture, then others of the same targets,
whose features were kept; its results go to `metrics_targets.csv` beside the other table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sgdm_utils.metrics import folders, networks, suite
from sgdm_utils.metrics.protocol import LPIPS_TRUNKS
from sgdm_utils.workflow import machine, paths
from sgdm_utils.workflow.atomic import atomic_file

PICTURES = int(os.environ.get("SGDM_BENCH_PICTURES", "8"))
SAMPLES = int(os.environ.get("SGDM_BENCH_SAMPLES", "10" if PICTURES > 8 else "2"))
PRECISIONS = os.environ.get("SGDM_BENCH_PRECISION", "float32").split(",")
GROUPS = os.environ.get("SGDM_BENCH_GROUPS", "")
SIDE = 256
LIMIT_S, LIMIT_GB = 600, 4.0


def write_weights(folder: Path) -> Path:
    """Random weights of every network, under the names the suite looks for."""
    from torchvision.models import vgg16

    folder.mkdir()
    torch.manual_seed(0)
    for spec in networks.TRUNKS.values():
        path = folder / f"{spec.file.split('.')[0]}.safetensors"
        if spec.layer and not path.exists():
            state = spec.build().state_dict()
            kept = {n: v.contiguous() for n, v in state.items() if not n.startswith(spec.unused)}
        elif not path.exists():
            with torch.device("meta"):
                shapes = {n: v.shape for n, v in spec.build().state_dict().items()}
            kept = {n: (0.02 * torch.randn(s)).half() for n, s in shapes.items()}
            kept |= {n: torch.ones(s) for n, s in shapes.items() if ".ln_" in n and "weight" in n}
        else:
            continue
        save_file(kept, path)
    with torch.device("meta"):
        shapes = {n: v.shape for n, v in vgg16().features.state_dict().items()}
    kept = {
        f"features.{n}": torch.randn(s) * (2 / max(1, s[1:].numel())) ** 0.5
        for n, s in shapes.items()
    }
    save_file(kept, folder / LPIPS_TRUNKS["lpips_vgg"].file.replace(".pth", ".safetensors"))
    return folder


def write_pictures(folder: Path, n: int, n_samples: int) -> tuple[Path, Path]:
    """Smooth random targets, and reconstructions that are blends of them with other ones."""
    rng = np.random.default_rng(0)
    pred, target = folder / "pred", folder / "target"
    for path in (pred, target):
        path.mkdir(parents=True)

    def smooth() -> Image.Image:
        coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)

    for i in range(n):
        picture = smooth()
        picture.save(target / f"{i:04}.png", compress_level=1)
        for s in range(n_samples):
            blend = Image.blend(picture, smooth(), 0.5)
            blend.save(pred / f"{i:04}_{s}.png", compress_level=1)
    return pred, target


def peak_gb() -> float:
    """Largest resident memory of this process; `ru_maxrss` counts that of its parent before it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def measure(
    pred: str, target: str, weights: str, precision: str, groups: str, keep: str = ""
) -> list[dict]:
    """Score the folders in this process; a row for each network and one for all."""
    chosen = groups.split(",") if groups else None
    names = [
        s.name for s in suite.METRICS
        if not s.needs_captions and (chosen is None or s.group in chosen)
    ]  # fmt: skip
    if len(list(Path(target).iterdir())) < suite.N_WAY:
        names = [name for name in names if not name.startswith("top1")]
    stamps: list[tuple[str, float, float]] = []

    def stamp(what: str) -> None:
        now = time.process_time() if keep else time.perf_counter()
        stamps.append((what, now, peak_gb()))

    load = folders.load_group

    def noting(group: str, *rest: object) -> object:
        stamp(group)
        return load(group, *rest)

    folders.load_group = noting
    stamp("reading")
    table = folders.score_folders(
        pred, target, weights, names, precision=precision, keep_targets=keep or None
    )
    stamp("all")
    assert table["value"].notna().all(), table[["metric", "value"]]
    rows = [
        dict(group=what, seconds=after - before, peak_gb=peak)
        for (what, before, _), (_, after, peak) in zip(stamps, stamps[1:], strict=False)
    ]
    total = stamps[-1][1] - stamps[0][1]
    return [*rows, dict(group="all", seconds=total, peak_gb=stamps[-1][2])]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    if "SGDM_BENCH_PICTURES" in os.environ:
        return paths.project_root() / "reports" / "benchmarks"
    return tmp_path_factory.mktemp("results")


@pytest.mark.timeout(0)  # as long as the pictures asked for take
def test_full_suite(tmp_path, results):
    weights = write_weights(tmp_path / "weights")
    tables = []
    counts = sorted({max(2, PICTURES // 4), max(2, PICTURES // 2), PICTURES})
    for n in counts:
        pred, target = write_pictures(tmp_path / str(n), n, SAMPLES)
        for precision in PRECISIONS:
            done = subprocess.run(
                [sys.executable, __file__, pred, target, weights, precision, GROUPS],
                cwd=paths.project_root(), capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            table = pd.DataFrame(json.loads(done.stdout.splitlines()[-1]))
            cells = dict(pictures=n, samples=SAMPLES, precision=precision)
            tables.append(table.assign(**cells, cores=machine.n_threads()))
            print(f"\n{tables[-1].round(2).to_string(index=False)}", flush=True)
    table = pd.concat(tables, ignore_index=True).round({"seconds": 2, "peak_gb": 2})
    path = results / "metrics.csv"
    with atomic_file(path) as part:
        table.to_csv(part, index=False, lineterminator="\n")
    print(f"\n{path}\n{table.to_string(index=False)}")
    whole = table[table["group"] == "all"]
    assert whole["peak_gb"].max() < LIMIT_GB
    for precision, rows in whole.groupby("precision"):
        seconds = rows.set_index("pictures")["seconds"]
        more, fewer = seconds[counts[-1]], seconds[counts[-2]]
        # linear, apart from what loading costs whatever the number of pictures
        assert more / fewer < 1.2 * counts[-1] / counts[-2], f"{precision}: worse than linear"
        if counts[-1] >= 200:
            print(f"{precision}: {more:.0f} s, the aim is {LIMIT_S} s")


@pytest.mark.timeout(0)
def test_targets_are_computed_once(tmp_path, results):
    """Of one reconstruction for each picture, what is left of the time; in processor seconds."""
    weights = write_weights(tmp_path / "weights")
    pred, target = write_pictures(tmp_path / "some", max(PICTURES, 2), 1)
    tables = []
    for scoring in ("first", "others"):
        done = subprocess.run(
            [sys.executable, __file__, pred, target, weights, PRECISIONS[0], GROUPS, tmp_path / "kept"],
            cwd=paths.project_root(), capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = pd.DataFrame(json.loads(done.stdout.splitlines()[-1])).set_index("group")
        tables.append(found["seconds"].rename(scoring))
    table = pd.concat(tables, axis=1).assign(
        share=lambda t: t["others"] / t["first"], pictures=PICTURES, precision=PRECISIONS[0],
        processor=machine.processor(),
    )  # fmt: skip
    with atomic_file(results / "metrics_targets.csv") as part:
        table.to_csv(part, float_format="%.3g", lineterminator="\n")
    print(f"\n{table.to_string()}")
    trunks = table[table.index.isin(networks.TRUNKS)]
    assert trunks["others"].sum() < 0.65 * trunks["first"].sum()


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
