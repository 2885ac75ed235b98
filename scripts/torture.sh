#!/usr/bin/env bash
# Fault-injection test of training. Runs a short training under faults and compares the result, bit
# for bit, with an undisturbed run. The faults: SIGKILL at random moments, a full disk, a file-size
# limit, a read-only run directory, damaged checkpoints, a clock that jumps, two trainers in one run
# directory, and a suspended process. Prints a table of faults tried, survived and lost. Exits with
# 1 if anything was lost.
#
#   scripts/torture.sh [--quick] [--kills N] [--seed N] [--keep]
#     --quick    10 kills and fewer damaged checkpoints: less than 90 seconds
#     --kills N  number of kills (50)
#     --seed N   seed of the random moments; otherwise a random seed is drawn and printed
#     --keep     keep the run directories and print where they are
#
# A fault is skipped, with the reason, if it needs root, a C compiler or a system call that is not
# available. Set BACKPACK_BINARY to test an existing binary; otherwise one is built.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"
use_backpack_binary
exec python3 -B scripts/torture/torture.py "$@"
