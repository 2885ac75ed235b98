#!/usr/bin/env bash
# Measures training with two processes on one machine: the throughput of one rank and of two ranks
# with one thread each, gradient reduction during and after the backward pass, and how soon a rank
# detects that the other one was killed. Writes docs/measurements/scaling-gloo.md.
#
#   scripts/bench-distributed.sh [--rounds N]     number of alternating rounds (2)
#   scripts/bench-distributed.sh --quick          smoke test: few steps, prints, writes no document
#
# Needs two idle cores. Set BACKPACK_BINARY to measure an existing binary; otherwise one is built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for argument in "$@"; do
  case "$argument" in -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
done

if [ -z "${BACKPACK_BINARY:-}" ]; then
  scripts/setup.sh
  cargo build --release --locked
  BACKPACK_BINARY=$(realpath "${CARGO_TARGET_DIR:-target}")/release/backpack
fi
export BACKPACK_BINARY
exec python3 -B scripts/bench/distributed.py "$@"
