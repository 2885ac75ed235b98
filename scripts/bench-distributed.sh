#!/usr/bin/env bash
# What a second process gives: training steps of one rank and of two, each of one thread, in
# turns; gradients reduced during the backward pass and after it; how soon a rank's death is
# noticed. Writes the measured part of docs/scaling.md.
#
#   scripts/bench-distributed.sh [--rounds N]     turns (2)
#   scripts/bench-distributed.sh --quick          a smoke run, which leaves docs/scaling.md alone
#
# Needs two cores that have nothing else to do. BACKPACK_BINARY names the binary to measure;
# unset, one is built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for argument in "$@"; do
  case "$argument" in -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
done

if [ -z "${BACKPACK_BINARY:-}" ]; then
  scripts/setup.sh
  cargo build --release --locked
  BACKPACK_BINARY=$(realpath "${CARGO_TARGET_DIR:-target}")/release/backpack
fi
export BACKPACK_BINARY
exec python3 -B scripts/bench/distributed.py "$@"
