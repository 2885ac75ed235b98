#!/usr/bin/env bash
# How fast training is: our step, in turns with the same model in PyTorch. Writes its part of
# docs/benchmarks.md.
#
#   scripts/bench-train.sh [--config micro|small]...   throughput, memory, utilisation, time by part
#   scripts/bench-train.sh --memory-growth             memory for each token more in a pass
#   scripts/bench-train.sh --trend                     whether 500 steps stay as fast as they began
#   scripts/bench-train.sh --agreement                 the losses of both kernels over 100 steps
#
#   --peers DIR   a folder with bench_torch.py (its tokens are ours then, too); without it
#                 nothing is compared. Runs in the Python environment of scripts/test-interop.sh
#   --rounds N    turns of a comparison (3); --steps N timed steps of each turn (5)
#   --quick       a smoke run: few steps, one peer, docs/benchmarks.md left alone
#
# Give the machine nothing else to do. BACKPACK_BINARY names the binary to measure; unset, one
# is built. Every figure goes to runs/bench/training.json, which keeps the newest of each kind;
# the section is written from it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for argument in "$@"; do
  case "$argument" in -h | --help) sed -n '2,20s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
done

if [ -z "${BACKPACK_BINARY:-}" ]; then
  scripts/setup.sh
  cargo build --release --locked
  BACKPACK_BINARY=$(realpath "${CARGO_TARGET_DIR:-target}")/release/backpack
fi
export BACKPACK_BINARY
exec python3 -B scripts/bench/train.py "$@"
