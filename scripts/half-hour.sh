#!/usr/bin/env bash
# Trains for half an hour on the text in data/, on two CPU cores, and records the run.
#
#   scripts/half-hour.sh [DIRECTORY]     where the record goes (runs/half-hour-record)
#
# The record holds the configuration, the output of `backpack plan`, the metrics and the log, the
# loss curve as SVG and PNG, the output of `backpack status`, generated text, and a description of
# the machine. After a stop or a kill, run the same command again: it resumes the training. If the
# training is finished, the command only writes the record again. RESTART=1 starts over.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"
[ $# -le 1 ] || usage_error "it takes at most one directory"

config=configs/half-hour.toml data=runs/half-hour-data run=runs/half-hour record=${1:-runs/half-hour-record}
reference='uniform (ln V)=10.825' # ln 50,264: the loss of a uniform distribution over the vocabulary

# Copies standard input to standard output without the paths of the checkout, the build, the cache
# and the home directory, and without the host name.
remove_machine_paths() {
  sed -e "s|$PWD/||g" -e "s|$(realpath .)/||g" -e "s|$(realpath "${CARGO_TARGET_DIR:-target}")/|target/|g" \
    -e "s|$(dirname "$(realpath .libtorch)")/|~/.cache/backpack/|g" -e "s|${XDG_CACHE_HOME:-$HOME/.cache}/|~/.cache/|g" \
    -e "s|$HOME/|~/|g" -e "s|\b$(uname -n)\b|localhost|g"
}

step 'Build'
build_backpack
if [ "${RESTART:-}" = 1 ]; then rm -rf "$data" "$run"; fi
mkdir -p "$record"

step 'Prepare the data'
[ -f "$data/manifest.json" ] ||
  "$backpack" prepare-data --input data/demo.jsonl --output "$data" --val-fraction 0.05

step 'Plan'
"$backpack" plan --config "$config" | remove_machine_paths | tee "$record/plan.txt"

step 'Environment'
# A resumed run keeps the description from its start.
[ -d "$run" ] || rm -f "$record/environment.txt"
if [ ! -f "$record/environment.txt" ]; then
  {
    date -u '+%Y-%m-%d %H:%M UTC'
    "$backpack" --version
    "$backpack" doctor
    uname -sr
    lscpu | grep -E '^(Model name|CPU\(s\)|Thread|Core)' || true
    grep MemTotal /proc/meminfo
    echo "load average before: $(cut -d ' ' -f 1-3 /proc/loadavg)"
  } | remove_machine_paths >"$record/environment.txt.partial"
  mv "$record/environment.txt.partial" "$record/environment.txt"
fi
cat "$record/environment.txt"

step 'Train'
# --profile 5 writes the time of each part of five steps to the log and to profile.json.
"$backpack" train --config "$config" --resume auto --profile 5
grep -q '^load average after' "$record/environment.txt" ||
  echo "load average after: $(cut -d ' ' -f 1-3 /proc/loadavg)" >>"$record/environment.txt"

step 'Record'
"$backpack" status "$run" | remove_machine_paths | tee "$record/status.txt"
"$backpack" status "$run" --json | remove_machine_paths >"$record/status.json"
"$backpack" plot "$run" --reference "$reference" --output "$record/plot.svg"
"$backpack" plot "$run" --reference "$reference" --output "$record/plot.png"
checkpoints=("$run"/checkpoints/step-*)
"$backpack" generate --model "${checkpoints[-1]}" --prompt 'She was' \
  --max-new-tokens 80 --top-k 40 --temperature 0.8 --seed 1 | tee "$record/generated.txt"
for file in config.toml metrics.jsonl log.txt sessions.json; do
  remove_machine_paths <"$run/$file" >"$record/$file"
done
step "Done: $record"
