#!/usr/bin/env bash
# Fault-injection test of prepare-data. Prepares a synthetic corpus of several file formats (2 GB by
# default), once undisturbed and once killed with SIGKILL at random moments, and compares the
# results. Then tests a full disk, a second process and changed arguments. Prints a table. Exits
# with 1 if anything was lost or the memory exceeded 2 GB.
#
#   scripts/torture-data.sh [MEGABYTES] [KILLS]     default: 2000 20
#
# Takes some minutes and 4 GB of disk. Set BACKPACK_BINARY to test an existing binary; otherwise one
# is built.

# Functions are called by name through row_if.
# shellcheck disable=SC2329
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "${1:-}"
megabytes=${1:-2000} kills=${2:-20}

use_backpack_binary
make_work_folder
failed=0
row() { printf '%-44s %s\n' "$1" "$2"; case "$2" in LOST*) failed=1 ;; esac; }
# row_if NAME OUTCOME LOST COMMAND...: prints OUTCOME if the command succeeds, else LOST.
row_if() { if "${@:4}"; then row "$1" "$2"; else row "$1" "$3"; fi; }
# An array and not a function, so that the process ID of a background job is the program's.
prepare=("$BACKPACK_BINARY" prepare-data --input "$work/corpus" --val-fraction 0.01 --shard-tokens 20000000 --output)
# run_prepare ARGUMENT...: writes the output to $work/log and sets `code` to the exit code.
run_prepare() { code=0; "${prepare[@]}" "$@" >"$work/log" 2>&1 || code=$?; }
same() { diff -r "$work/whole" "$1" >/dev/null && echo "the same bytes" || echo "LOST: other bytes"; }
now() { date +%s.%N; }

echo "writing $megabytes MB of text"
python3 scripts/bench/synthetic_corpus.py "$work/corpus" "$megabytes"

# Undisturbed: measures the peak memory and the size of the temporary file.
start=$(now)
"${prepare[@]}" "$work/whole" 2>"$work/log" &
pid=$! memory=0 spool=0
while kill -0 $pid 2>/dev/null; do
  m=$(awk '/VmHWM/{print $2}' "/proc/$pid/status" 2>/dev/null || true)
  s=$(stat -c %s "$work/.whole.partial/spool.bin" 2>/dev/null || true)
  memory=${m:-$memory} spool=${s:-$spool}
  sleep 0.1
done
wait $pid
seconds=$(python3 -c "print(f'{$(now) - $start:.2f}')")
output=$(cat "$work"/whole/*.bin | wc -c)
row "undisturbed" "$seconds s, $((output / 1000000)) MB of shards"
row_if "peak memory (VmHWM)" "$((memory / 1000)) MB" "LOST: $((memory / 1000)) MB" [ "$memory" -lt 2000000 ]
row_if "temporary file" "$((spool / 1000000)) MB" "LOST: $((spool / 1000000)) MB" [ "$spool" -le "$output" ]
verify() { "$BACKPACK_BINARY" verify-data "$1" >/dev/null; }
row_if "verify-data" "passes" "LOST" verify "$work/whole"

# Killed repeatedly. A finished preparation is compared with the undisturbed one, then deleted, and
# the next one starts from the beginning.
resumed=0 ended=0 result="the same bytes"
finish() {
  ended=$((ended + 1))
  case "$(same "$work/killed")" in LOST*) result="LOST: other bytes in preparation $ended" ;; esac
}
for _ in $(seq "$kills"); do
  if [ -d "$work/killed" ]; then finish; rm -rf "$work/killed"; fi
  "${prepare[@]}" "$work/killed" >"$work/log" 2>&1 &
  pid=$!
  sleep "$(python3 -c "import random; print(0.2 + 0.8 * $seconds * random.random())")"
  kill -KILL $pid 2>/dev/null || true
  wait $pid 2>/dev/null || true
  if grep -q 'after [0-9,]* documents' "$work/log"; then resumed=$((resumed + 1)); fi
done
"${prepare[@]}" "$work/killed" >"$work/log" 2>&1
finish
row "$kills kills at random moments" "$resumed resumed, $ended preparations finished, $result"
unchanged() {
  touch "$work/before"
  "${prepare[@]}" "$1" >/dev/null 2>&1 && [ -z "$(find "$1" -type f -newer "$work/before")" ]
}
row_if "a finished output directory" "not changed" "LOST" unchanged "$work/killed"

# A full disk. Where tmpfs cannot be mounted, a file-size limit replaces it.
mkdir "$work/small"
if mount -t tmpfs -o size=$((output / 2)) tmpfs "$work/small" 2>/dev/null; then
  how="a full disk (tmpfs)"
  run_prepare "$work/small/out"
  umount "$work/small"
else
  how="a full disk (file-size limit)"
  code=0
  (ulimit -f $((output / 2048)); "${prepare[@]}" "$work/small/out") >"$work/log" 2>&1 || code=$?
fi
message=$(grep '^error' "$work/log" || true)
case "$code $message" in "1 error: "*"No space left"* | "1 error: "*"File too large"*) row "$how" "one line, exit code 1" ;; *) row "$how" "LOST: exit code $code: $message" ;; esac
code=0
(ulimit -f $((output / 4096)); "${prepare[@]}" "$work/limited") >"$work/log" 2>&1 || code=$?
"${prepare[@]}" "$work/limited" >/dev/null 2>&1
row "after a limit (exit code $code), the same command" "$(same "$work/limited")"

# Two processes with one output directory, and other arguments for a preparation that has begun.
"${prepare[@]}" "$work/two" >/dev/null 2>&1 &
pid=$!
sleep 1
run_prepare "$work/two"
row_if "two processes" "the second is refused (exit code $code)" "LOST" grep -q 'another process' "$work/log"
kill -KILL $pid
wait $pid 2>/dev/null || true
run_prepare "$work/two" --split-seed 7
row_if "other arguments" "refused (exit code $code)" "LOST" grep -q 'split_seed' "$work/log"
touch "$work/corpus/a-passages.jsonl"
run_prepare "$work/two"
row_if "an input with a new modification time" "refused (exit code $code)" "$(same "$work/two")" grep -q 'a-passages.jsonl' "$work/log"
exit $failed
