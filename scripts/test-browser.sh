#!/usr/bin/env bash
# The sense explorer in a real browser: headless Chromium clicks through every view of the page over
# a trained model and holds what it shows against the program's own commands.
#
#   scripts/test-browser.sh [MODEL]   a model folder; without one, a small Backpack is trained on
#                                     the corpus in data/ first (half a minute)
#
# Screenshots go to runs/browser, and how long each question of the page took is printed. Chromium
# and its driver are Debian's, installed where they are missing and this is root; the Python
# environment is made once, in ${XDG_CACHE_HOME:-~/.cache}/backpack/browser. BACKPACK_BINARY names
# the binary to test; unset, one is built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0; fi

find_chromium() {
  CHROMIUM=$(command -v chromium || command -v chromium-browser || command -v google-chrome) && CHROMEDRIVER=$(command -v chromedriver)
}
if ! find_chromium; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo 'test-browser: left out: there is no Chromium with its driver; install them (Debian: apt-get install chromium chromium-driver; Ubuntu and Fedora: chromium and chromedriver)'
    exit 0
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core >/dev/null
  find_chromium
fi
if [ -z "${BACKPACK_BINARY:-}" ]; then
  scripts/setup.sh
  cargo build --release --locked
  BACKPACK_BINARY=$(realpath "${CARGO_TARGET_DIR:-target}")/release/backpack
fi
BACKPACK_BINARY=$(realpath "$BACKPACK_BINARY")

environment=${XDG_CACHE_HOME:-$HOME/.cache}/backpack/browser
mkdir -p "$environment"
exec 9>"$environment.lock"
flock 9 # another run may be making it
if ! cmp -s tests/browser/requirements.txt "$environment/MADE"; then
  python3 -m venv --clear "$environment"
  "$environment/bin/pip" install --quiet --disable-pip-version-check --no-deps -r tests/browser/requirements.txt
  # Copied last: the environment is whole, or made again.
  cp tests/browser/requirements.txt "$environment/MADE"
fi
exec 9>&-

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
model=${1:-}
if [ -z "$model" ]; then
  "$BACKPACK_BINARY" prepare-data --input data/demo.jsonl --output "$work/data" --val-fraction 0.05 >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
  "$BACKPACK_BINARY" train --config configs/quickstart.toml --run-dir "$work/run" --set data.path="$work/data" \
    --set model.n_embd=64 --set model.n_layer=2 --set schedule.warmup_steps=20 --set schedule.max_steps=150 \
    --set validation.every=0 --set checkpoint.every=0 >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
  model=$work/run/checkpoints/step-00000150
fi
export BACKPACK_BINARY CHROMIUM CHROMEDRIVER PYTHONDONTWRITEBYTECODE=1
export BACKPACK_MODEL=$model SCREENSHOTS=$PWD/runs/browser
mkdir -p "$SCREENSHOTS"
"$environment/bin/python" -m pytest -q --tb=short -p no:cacheprovider --basetemp="$work/pytest" tests/browser
