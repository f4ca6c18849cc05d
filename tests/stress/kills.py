"""Kill a running study again and again: does it end with the bytes of an undisturbed run?

    python tests/stress/kills.py --kills 200 --folder data/derived/.stress

Runs ``smoke`` (or ``--study``) as `make smoke` does and sends SIGKILL at random moments to everything, to one random
process of it, or to the engine alone; then starts it again. A study that is complete is compared, file by file,
with one that nobody disturbed, and begun anew until there were enough kills. By hand only: hours on two cores.
The folder is kept, and a second call goes on in it; the undisturbed run is computed once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path

import psutil

from sgdm_utils.workflow import config, paths

#: Files that say when and where something ran.
VOLATILE = ("report",)
LEFTOVERS = (".*.part", ".*.part.lock", "*.running.ipynb", "*_training", ".*.old")


def engine(root: Path, options: argparse.Namespace) -> psutil.Popen:
    """Start the engine for a study whose data and reports are below `root`."""
    environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"} | os.environ
    environment |= {"SGDM_DATA": str(root / "data"), "SGDM_REPORTS": str(root / "reports")}
    command = [sys.executable, "-m", "snakemake", "--profile", "config/profiles/local"]
    command += ["--cores", str(options.cores), "--resources", "gpu=2", "--config"]
    root.mkdir(parents=True, exist_ok=True)
    with (root / "engine.log").open("a") as log:
        return psutil.Popen(
            [*command, f"study={options.study}"],
            cwd=paths.project_root(), env=environment, stdout=log, stderr=log,
        )  # fmt: skip


def kill(process: psutil.Popen, rng: random.Random) -> str:
    """Kill all of an engine's processes, one of them, or the engine; returns what was killed."""
    family = [process, *process.children(recursive=True)]
    how = rng.choice(["all", "one", "engine"])
    for victim in {"all": family, "one": [rng.choice(family)], "engine": [process]}[how]:
        try:
            victim.kill()
        except psutil.Error:
            pass  # it ended a moment ago
    return how


def results(root: Path, study: str) -> dict[str, str]:
    """SHA-256 of every file of every result, by path, as their manifests tell them."""
    found = {}
    for manifest in sorted((root / "data" / "derived" / study).rglob("manifest.json")):
        told = json.loads(manifest.read_text(encoding="utf-8"))
        if told["identity"]["stage"] not in VOLATILE:
            place = manifest.parent.relative_to(root)
            found |= {f"{place}/{name}": facts["sha256"] for name, facts in told["files"].items()}
    return found


def leftovers(root: Path) -> list[str]:
    """What killed processes have left and no later start has removed."""
    return sorted(str(p.relative_to(root)) for pattern in LEFTOVERS for p in root.rglob(pattern))


def main() -> int:
    """Return 0 when every study that was killed ended as the undisturbed one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--study", default="smoke")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--longest", type=float, default=60.0, help="seconds until a kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, folder = random.Random(options.seed), options.folder.resolve()
    n_steps = len(config.plan(config.load_study(options.study)))
    if engine(folder / "undisturbed", options).wait():
        sys.exit(f"the undisturbed run failed: {folder / 'undisturbed' / 'engine.log'}")
    wanted = results(folder / "undisturbed", options.study)
    kills, rounds, wrong, how_often = 0, 0, 0, {}
    root = folder / "killed"
    while kills < options.kills or rounds == 0:
        process = engine(root, options)
        try:
            code = process.wait(rng.uniform(0, options.longest) if kills < options.kills else None)
        except psutil.TimeoutExpired:
            how = kill(process, rng)
            kills, how_often[how] = kills + 1, how_often.get(how, 0) + 1
            print(f"kill {kills} ({how})", flush=True)
            process.wait()
            continue
        if code:
            wrong += 1
            print(f"an undisturbed start failed with {code}: {root / 'engine.log'}", flush=True)
            time.sleep(5)
            continue
        found, left = results(root, options.study), leftovers(root)
        differ = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
        rounds, wrong = rounds + 1, wrong + bool(differ or left)
        print(f"round {rounds}: {n_steps} steps, {len(found)} files,", end=" ")
        print(f"{len(differ)} differ {differ[:5]}, {len(left)} left over {left[:5]}", flush=True)
        shutil.rmtree(root)
    print(f"{kills} kills ({how_often}), {rounds} complete studies, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
