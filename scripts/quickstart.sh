#!/usr/bin/env bash
# Trains a small Backpack on the text in data/, in a few minutes on a CPU: builds the program,
# prepares the data, trains (with one stop and resume), evaluates, exports, plots and generates
# text. All output goes to runs/. Each call starts over.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"
[ $# -eq 0 ] || usage_error "it takes no arguments"

config=configs/quickstart.toml data=runs/quickstart-data run=runs/quickstart model=runs/quickstart-model
plot=runs/quickstart-loss.svg

step 'Build'
build_backpack
rm -rf "$data" "$run" "$model" "$plot"

step 'Prepare the data'
"$backpack" prepare-data --input data/demo.jsonl --output "$data" --val-fraction 0.05

step 'Train: the first 300 steps, then stop'
# Exit code 85: stopped early, with a checkpoint saved.
"$backpack" train --config "$config" --stop-after 300 || [ $? -eq 85 ]

step 'Train: resume and finish'
"$backpack" train --config "$config" --resume auto
checkpoints=("$run"/checkpoints/step-*)
checkpoint=${checkpoints[-1]}

step 'Evaluate'
"$backpack" eval --model "$checkpoint" --task val --data "$data"

step 'Export, plot, generate'
"$backpack" export --checkpoint "$checkpoint" --output "$model"
"$backpack" plot "$run" --output "$plot"
"$backpack" generate --model "$model" --prompt 'She was' --max-new-tokens 60 --top-k 40 --temperature 0.8

cat <<END

Done. The output:
  $data         token shards and their manifest
  $run              checkpoints, metrics.jsonl, TensorBoard events, log.txt, config.toml
  $plot     the loss curve
  $model        the model in Hugging Face format
Next:
  $backpack generate --model $model --prompt 'TEXT'
END
