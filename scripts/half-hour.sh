#!/usr/bin/env bash
# Half an hour of training on the text in data/, on two CPU cores, with its record:
#   scripts/half-hour.sh [FOLDER]
# FOLDER (default runs/half-hour-record) gets the configuration, what plan said before, the
# metrics and the log, the plot as SVG and PNG, what status said after, generated text, and what it
# ran on. Stopped or killed, it goes on where it was; with FOLDER there and the run finished, it
# only writes the record again. RESTART=1 starts over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0; fi
[ $# -le 1 ] || { echo "half-hour: it takes one folder at most (see --help)." >&2; exit 2; }

step() { printf '\n== %s\n' "$*"; }
config=configs/half-hour.toml data=runs/half-hour-data run=runs/half-hour record=${1:-runs/half-hour-record}

step 'Set-up and build'
scripts/setup.sh
cargo build --release --locked
backpack="${CARGO_TARGET_DIR:-target}/release/backpack"
if [ "${RESTART:-}" = 1 ]; then rm -rf "$data" "$run"; fi
mkdir -p "$record"

step 'Text to token shards'
[ -f "$data/manifest.json" ] ||
  "$backpack" prepare-data --input data/demo.jsonl --output "$data" --val-fraction 0.05

step 'What it will take'
"$backpack" plan --config "$config" | tee "$record/plan.txt"

step 'What it runs on'
{
  date -u '+%Y-%m-%d %H:%M UTC'
  "$backpack" --version
  "$backpack" doctor
  uname -sr
  lscpu | grep -E '^(Model name|CPU\(s\)|Thread|Core)' || true
  grep MemTotal /proc/meminfo
  echo "load average before: $(cut -d ' ' -f 1-3 /proc/loadavg)"
} | sed "s|$HOME/|~/|g" | tee "$record/environment.txt"

step 'Train'
# The time of a few steps by part goes into the log and into profile.json.
"$backpack" train --config "$config" --resume auto --profile 5

step 'Record'
"$backpack" status "$run" | tee "$record/status.txt"
"$backpack" status "$run" --json >"$record/status.json"
# ln 50,264: the loss of knowing nothing.
"$backpack" plot "$run" --reference 'knowing nothing=10.825' --output "$record/plot.svg"
"$backpack" plot "$run" --reference 'knowing nothing=10.825' --output "$record/plot.png"
"$backpack" generate --model "$(ls -d "$run"/checkpoints/step-* | tail -n 1)" --prompt 'She was' \
  --max-new-tokens 80 --top-k 40 --temperature 0.8 --seed 1 | tee "$record/generated.txt"
cp "$run/config.toml" "$run/metrics.jsonl" "$run/log.txt" "$run/sessions.json" "$record/"
echo "load average after: $(cut -d ' ' -f 1-3 /proc/loadavg)" >>"$record/environment.txt"
step "Done: $record"
