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
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"

use_backpack_binary
exec python3 -B scripts/bench/distributed.py "$@"
