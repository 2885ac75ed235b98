#!/usr/bin/env bash
# Measures how long a training step waits for a checkpoint, and how long a plain memory copy of the
# same number of bytes takes. Trains the model of configs/owt/micro.toml on random ids, with one
# checkpoint per step. Prints the result.
#
#   scripts/bench-checkpoint.sh [CHECKPOINTS]     number of checkpoints (8)
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"

use_backpack_binary
make_work_folder
python3 - "$work" <<'PYTHON'
import array, random, sys
random.seed(1)
for name, ids in [("train", 200_000), ("val", 2_000)]:
    array.array("H", (random.randrange(50_257) for _ in range(ids))).tofile(open(f"{sys.argv[1]}/{name}.bin", "wb"))
PYTHON
"$BACKPACK_BINARY" train --config configs/owt/micro.toml --run-dir "$work/run" --set data.path="$work" --set run.device=cpu \
  --set batch.tokens_per_step=1024 --set batch.micro_batch_size=2 --set schedule.max_steps="${1:-8}" --set schedule.warmup_steps=1 \
  --set checkpoint.every_steps=1 --set validation.every_steps=0 --set validation.max_sequences=1 2>"$work/log" || { cat "$work/log"; exit 1; }
python3 - "$work/log" "$work/run/checkpoints" <<'PYTHON'
import glob, os, re, statistics, sys, time
text = open(sys.argv[1]).read()
copied, written = ([float(x) for x in re.findall(pattern, text)] for pattern in [r"copied in ([\d.]+) s", r"written in ([\d.]+) s"])
newest = sorted(glob.glob(sys.argv[2] + "/step-*"))[-1]
size = sum(os.path.getsize(f"{newest}/{name}.safetensors") for name in ("model", "optimizer"))
source, target = bytearray(b"\x01" * size), bytearray(b"\x02" * size)
def copy():
    begun = time.perf_counter()
    memoryview(target)[:] = source
    return time.perf_counter() - begun
plain = [copy() for _ in range(9)]
wait, alone = statistics.median(copied), statistics.median(plain)
print(f"checkpointed tensors  {size / 1e6:.0f} MB")
print(f"a step waits          {1e3 * wait:.0f} ms (median of {len(copied)}; {1e3 * min(copied):.0f} to {1e3 * max(copied):.0f})")
print(f"a memory copy takes   {1e3 * alone:.0f} ms (median of {len(plain)}; {1e3 * min(plain):.0f} to {1e3 * max(plain):.0f}), one thread")
print(f"ratio                 {wait / alone:.2f}")
print(f"background write      {statistics.median(written):.1f} s")
PYTHON
