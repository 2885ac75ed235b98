#!/usr/bin/env bash
# Tests the sense explorer in headless Chromium: clicks through every view of the page over a
# trained model and compares what it shows with the output of the program's commands.
#
#   scripts/test-browser.sh [MODEL]   model directory. Without it, the script trains a small
#                                     Backpack on the text in data/ first (half a minute).
#
# Writes screenshots to runs/browser and prints the response time of each request. If Chromium and
# its driver are missing, root installs them from Debian's packages; other users skip the test. The
# Python environment is created once, in ${XDG_CACHE_HOME:-~/.cache}/backpack/browser. Set
# BACKPACK_BINARY to test an existing binary; otherwise one is built.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "${1:-}"

find_chromium() {
  CHROMIUM=$(command -v chromium || command -v chromium-browser || command -v google-chrome) && CHROMEDRIVER=$(command -v chromedriver)
}
if ! find_chromium; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo 'test-browser: skipped: Chromium or its driver is not installed (Debian: apt-get install chromium chromium-driver; Ubuntu and Fedora: chromium and chromedriver)'
    exit 0
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core >/dev/null
  find_chromium
fi
use_backpack_binary
make_python_environment browser tests/browser/requirements.txt --no-deps
make_work_folder

model=${1:-}
# Runs a command of the program; prints its output only if it fails.
quietly() { "$BACKPACK_BINARY" "$@" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }; }
if [ -z "$model" ]; then
  quietly prepare-data --input data/demo.jsonl --output "$work/data" --val-fraction 0.05
  quietly train --config configs/quickstart.toml --run-dir "$work/run" --set data.path="$work/data" \
    --set model.n_embd=64 --set model.n_layer=2 --set schedule.warmup_steps=20 --set schedule.max_steps=150 \
    --set validation.every_steps=0 --set checkpoint.every_steps=0
  model=$work/run/checkpoints/step-00000150
fi
export CHROMIUM CHROMEDRIVER PYTHONDONTWRITEBYTECODE=1
export BACKPACK_MODEL=$model SCREENSHOTS=$PWD/runs/browser
mkdir -p "$SCREENSHOTS"
"$environment/bin/python" -m pytest -q --tb=short -p no:cacheprovider --basetemp="$work/pytest" tests/browser
