#!/usr/bin/env bash
# From the text in data/ to a trained, exported Backpack that writes, in a few minutes on
# a CPU: set-up, build, prepare, train (stopped and resumed once), evaluate, export,
# generate, plot. Everything goes into runs/; run it again to start over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 0; fi
[ $# -eq 0 ] || { echo "quickstart: it takes no arguments (see --help)." >&2; exit 2; }

step() { printf '\n== %s\n' "$*"; }
config=configs/quickstart.toml data=runs/quickstart-data run=runs/quickstart model=runs/quickstart-model
plot=runs/quickstart-loss.svg

step 'Set-up'
scripts/setup.sh
step 'Build'
cargo build --release --locked
backpack="${CARGO_TARGET_DIR:-target}/release/backpack"
rm -rf "$data" "$run" "$model" "$plot"

step 'Text to token shards'
"$backpack" prepare-data --input data/demo.jsonl --output "$data" --val-fraction 0.05

step 'Train: the first 300 steps, then stop'
# Exit code 85 means: stopped early, checkpoint saved.
"$backpack" train --config "$config" --stop-after 300 || [ $? -eq 85 ]

step 'Train: resume and finish'
"$backpack" train --config "$config" --resume auto
checkpoint=$(ls -d "$run"/checkpoints/step-* | tail -n 1)

step 'Evaluate'
"$backpack" eval --model "$checkpoint" --task val --data "$data"

step 'Export, plot, generate'
"$backpack" export --checkpoint "$checkpoint" --output "$model"
"$backpack" plot "$run" --output "$plot"
"$backpack" generate --model "$model" --prompt 'She was' --max-new-tokens 60 --top-k 40 --temperature 0.8

cat <<END

Done. What is where:
  $data         token shards and their manifest
  $run              checkpoints, metrics.jsonl, TensorBoard events, log.txt, config.toml
  $plot     the loss
  $model        the model as a Hugging Face folder
Go on with:
  $backpack generate --model $model --prompt 'TEXT'
END
