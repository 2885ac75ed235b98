#!/usr/bin/env bash
# Tests the exchange of models with Python programs (tests/interop): transformers 4.46.3, the newest
# tested transformers, the published Backpack code (pyvene), TensorBoard and lm-eval.
#
#   scripts/test-interop.sh
#
# The Python environments (0.9 GB to download, 2.7 GB on disk) are created once, in
# ${XDG_CACHE_HOME:-~/.cache}/backpack/interop. After that, the test takes about two minutes and
# needs no network. It can be killed and run again at any time. Set BACKPACK_BINARY to test an
# existing binary; otherwise one is built.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"
[ $# -eq 0 ] || fail "unknown argument '$1' (see --help)."
use_backpack_binary

cache=$(tests/interop/environments.sh 4.46 newest)

# Both environments run at the same time with one thread each, because most of the time goes into
# starting processes.
export OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1
make_work_folder
# Separate temporary folders: pytest deletes old ones in its default folder, even of running tests.
run() { "$cache/$1/bin/python" -m pytest -q -p no:cacheprovider --basetemp="$work/$1" "${@:2}"; }
log=$work/newest.log
run newest tests/interop/hugging_face >"$log" 2>&1 &
newest=$!
trap 'kill "$newest" 2>/dev/null || true; rm -rf "$work"' EXIT
failed=0
echo 'test-interop: transformers 4.46.3, pyvene, TensorBoard, lm-eval'
run 4.46 tests/interop || failed=1
echo 'test-interop: the newest tested transformers'
wait "$newest" || failed=1
cat "$log"
exit "$failed"
