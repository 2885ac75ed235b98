#!/usr/bin/env bash
# How fast the sense explorer answers: each question of its API by one client, then by 50 at once.
#
#   scripts/bench-serve.sh [MODEL]   a model folder; without one, a fresh model of the shapes of
#                                    configs/owt/micro.toml is made in runs/bench-serve
#
# Prints a Markdown table. Give the machine nothing else to do. BACKPACK_BINARY names the binary
# to measure; unset, one is built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0; fi

if [ -z "${BACKPACK_BINARY:-}" ]; then
  scripts/setup.sh
  cargo build --release --locked
  BACKPACK_BINARY=$(realpath "${CARGO_TARGET_DIR:-target}")/release/backpack
fi
export BACKPACK_BINARY
model=${1:-runs/bench-serve/run/checkpoints/step-00000001}
if [ $# -eq 0 ] && [ ! -f "$model/config.json" ]; then
  # How fast it answers does not depend on what the weights are: one step is enough.
  rm -rf runs/bench-serve
  "$BACKPACK_BINARY" prepare-data --input data/demo.jsonl --output runs/bench-serve/data --val-fraction 0.05 >&2
  "$BACKPACK_BINARY" train --config configs/owt/micro.toml --run-dir runs/bench-serve/run \
    --set data.path=runs/bench-serve/data --set schedule.warmup_steps=1 --set schedule.max_steps=1 \
    --set batch.tokens=512 --set batch.micro_batch=1 --set validation.max_sequences=1 >&2
fi
exec python3 -B scripts/bench/serve.py "$model"
