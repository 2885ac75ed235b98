#!/usr/bin/env bash
# What the Python world makes of our models, and we of its: transformers 4.46.3 and the newest
# one tested, the published Backpack code (pyvene), TensorBoard and lm-eval on tests/interop.
#
#   scripts/test-interop.sh     BACKPACK_BINARY names the binary to test; unset, one is built
#
# The Python environments (0.9 GB to download, 2.7 GB on disk) are made once, in
# ${XDG_CACHE_HOME:-~/.cache}/backpack/interop; then it takes about two minutes, offline. Safe
# to kill and to run again at any time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
fail() { printf 'test-interop: %s\n' "$*" >&2; exit 1; }
case "${1:-}" in
  '') ;;
  -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
  *) fail "unknown argument '$1' (see --help)." ;;
esac

if [ -z "${BACKPACK_BINARY:-}" ]; then
  scripts/setup.sh
  cargo build --release --locked
  BACKPACK_BINARY=$(realpath "${CARGO_TARGET_DIR:-target}")/release/backpack
fi
BACKPACK_BINARY=$(realpath "$BACKPACK_BINARY")
[ -x "$BACKPACK_BINARY" ] || fail "BACKPACK_BINARY is $BACKPACK_BINARY, which cannot be run."

cache=$(tests/interop/environments.sh 4.46 newest)

# One thread each, side by side: most of the time goes into starting processes.
export BACKPACK_BINARY OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1
work=$(mktemp -d)
# Folders of its own: pytest's common one is swept by whoever runs pytest next.
run() { "$cache/$1/bin/python" -m pytest -q -p no:cacheprovider --basetemp="$work/$1" "${@:2}"; }
log=$work/newest.log
run newest tests/interop/hugging_face >"$log" 2>&1 &
newest=$!
trap 'kill "$newest" 2>/dev/null || true; rm -rf "$work"' EXIT
failed=0
echo 'test-interop: transformers 4.46.3, pyvene, TensorBoard, lm-eval'
run 4.46 tests/interop || failed=1
echo 'test-interop: the newest transformers'
wait "$newest" || failed=1
cat "$log"
exit "$failed"
