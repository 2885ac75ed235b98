#!/usr/bin/env bash
# Measures training steps and writes the training section of docs/measurements/benchmarks.md.
#
#   scripts/bench-train.sh [--config micro|small]...   throughput, memory, MFU, time by part
#   scripts/bench-train.sh --memory-growth             peak memory by micro-batch size
#   scripts/bench-train.sh --trend                     drift of the step time over 500 steps
#   scripts/bench-train.sh --agreement                 losses of both kernels over 100 steps
#
#   --peers DIR   also time the same model in PyTorch, in alternating runs on the same tokens. DIR is
#                 not part of the repository; docs/benchmarks.md describes its files. It runs in the
#                 Python environment of scripts/test-interop.sh.
#   --rounds N    rounds of a comparison (3)
#   --steps N     timed steps per round (5)
#   --quick       smoke test: few steps, one PyTorch variant, prints, writes no document
#
# Needs an idle machine. Set BACKPACK_BINARY to measure an existing binary; otherwise one is built.
# All results go to runs/bench/training.json, which keeps the newest result of each kind. The
# section is generated from that file.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"

use_backpack_binary
exec python3 -B scripts/bench/train.py "$@"
