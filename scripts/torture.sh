#!/usr/bin/env bash
# A short real training, disturbed in every way that a run of days may meet, and held against an
# undisturbed one bit for bit: SIGKILL at random moments, a full disk, a read-only folder, damaged
# checkpoints, a clock that jumps, two trainers on one folder, a process that is suspended. Prints a
# table of faults tried, survived and lost; exits with 1 when anything was lost.
#
#   scripts/torture.sh [--quick] [--kills N] [--seed N] [--keep]
#     --quick    10 kills and fewer damages: under a minute and a half
#     --kills N  so many (50)
#     --seed N   of the moments; without it one is drawn, and printed
#     --keep     leave the run folders, and say where
#
# What needs root, a C compiler or a system call that is not there is left out, with its reason.
# BACKPACK_BINARY names the binary; unset, one is built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for argument in "$@"; do
  case "$argument" in -h | --help) sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
done

if [ -z "${BACKPACK_BINARY:-}" ]; then
  scripts/setup.sh
  cargo build --release --locked
  BACKPACK_BINARY=$(realpath "${CARGO_TARGET_DIR:-target}")/release/backpack
fi
export BACKPACK_BINARY
exec python3 -B scripts/torture/torture.py "$@"
