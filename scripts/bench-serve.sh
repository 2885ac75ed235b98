#!/usr/bin/env bash
# Measures the latency of the sense explorer: each request of its API from one client, then from
# 50 concurrent clients.
#
#   scripts/bench-serve.sh [MODEL]   model directory. Without it, the script creates a model with
#                                    the shapes of configs/owt/micro.toml in runs/bench-serve.
#
# Prints a Markdown table. Needs an idle machine. Set BACKPACK_BINARY to measure an existing binary;
# otherwise one is built.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"

use_backpack_binary
model=${1:-runs/bench-serve/run/checkpoints/step-00000001}
if [ $# -eq 0 ] && [ ! -f "$model/config.json" ]; then
  # The latency does not depend on the values of the weights, so one step is enough.
  rm -rf runs/bench-serve
  "$BACKPACK_BINARY" prepare-data --input data/demo.jsonl --output runs/bench-serve/data --val-fraction 0.05 >&2
  "$BACKPACK_BINARY" train --config configs/owt/micro.toml --run-dir runs/bench-serve/run \
    --set data.path=runs/bench-serve/data --set schedule.warmup_steps=1 --set schedule.max_steps=1 \
    --set batch.tokens_per_step=512 --set batch.micro_batch_size=1 --set validation.max_sequences=1 >&2
fi
exec python3 -B scripts/bench/serve.py "$model"
