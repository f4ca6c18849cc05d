#!/usr/bin/env bash
# Two small trainings side by side on two cores, each with the two threads that PyTorch takes by itself: one would guess that each
# takes twice as long as alone, since each gets half of the machine. With the processor to themselves two threads are faster than one, so
# nothing warns of it. But GNU's OpenMP lets a thread that waits for its partner turn in a loop, and with four threads on two cores
# the partner is often the one that does not run: each waits until the system takes the core away from the other. The layers of a small network
# are over in microseconds and the slices of a core last milliseconds, so a step takes not 2 but 10 to 100 times as long.
# It matters wherever seeds or folds are trained side by side: the sweep is slower than one after the other,
# by a factor that looks like a slow machine.
#
# The usual remedy, OMP_WAIT_POLICY=passive, lets threads sleep at once; then waking them costs so much that two threads are hardly faster
# than one even alone. What works is one thread for each training.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 2>/dev/null
cd "$folder"
cat > train.py <<'PY'
import statistics
import time

import torch
from torch import nn

torch.manual_seed(0)
layers = []
for _ in range(12):
    layers += [nn.Conv2d(48, 48, 3, padding=1), nn.GroupNorm(8, 48), nn.SiLU()]
network = nn.Sequential(*layers)
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
x, seconds, began = torch.randn(32, 48, 8, 8), [], time.time()
while time.time() - began < 12 or len(seconds) < 3:
    start = time.perf_counter()
    loss = network(x).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    seconds.append(time.perf_counter() - start)
print(1000 * statistics.median(seconds[1:]))
PY
python="$folder/env/bin/python"
cores="$(nproc)"
[ "$cores" -ge 2 ] || { echo "this machine has one core"; exit 1; }
run() { env -u PYTHONPATH -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT "$@" taskset -c 0,1 "$python" train.py; }
"$python" -c 'import torch; print("torch", torch.__version__, "|", torch.backends.cpu.get_cpu_capability())'
for policy in active passive; do
    for threads in 2 1; do
        setting="OMP_WAIT_POLICY=$policy OMP_NUM_THREADS=$threads"
        run OMP_WAIT_POLICY=$policy OMP_NUM_THREADS=$threads > alone-$policy-$threads
        run OMP_WAIT_POLICY=$policy OMP_NUM_THREADS=$threads > first & run OMP_WAIT_POLICY=$policy OMP_NUM_THREADS=$threads > second
        wait
        cat first second | sort -g | tail -1 > both-$policy-$threads
        echo "$setting: one training $(cat alone-$policy-$threads) ms a step, two side by side $(cat both-$policy-$threads)"
    done
done
"$python" - <<'PY'
read = lambda name: float(open(name).read())
waiting = read("both-active-2") / read("alone-active-2")
single = read("both-active-1") / read("alone-active-1")
print(f"side by side against alone: two threads {waiting:.1f} times as long, one thread {single:.2f}")
print(f"two threads side by side against one thread side by side: {read('both-active-2') / read('both-active-1'):.1f}")
assert single < 1.5, "something else runs on this machine: nothing can be told"
assert waiting > 4, "two trainings of two threads do no longer stand in each other's way"
PY
