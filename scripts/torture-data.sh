#!/usr/bin/env bash
# Prepares a synthetic corpus of several shapes (2 GB by default), once undisturbed and once
# killed with SIGKILL at random moments, and holds the results against each other; then a
# full disk, a second process, changed arguments. Prints a table; exits with 1 when anything
# was lost or memory went past 2 GB.
#
#   scripts/torture-data.sh [MEGABYTES] [KILLS]     default: 2000 20; some minutes, 4 GB of disk
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
megabytes=${1:-2000} kills=${2:-20}

scripts/setup.sh
cargo build --release --locked
backpack=${CARGO_TARGET_DIR:-target}/release/backpack
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
row() { printf '%-44s %s\n' "$1" "$2"; case "$2" in LOST*) failed=1 ;; esac; }
# An array, not a function: what runs in the background must be the process that is killed.
prepare=("$backpack" prepare-data --input "$work/corpus" --val-fraction 0.01 --shard-tokens 20000000 --output)
same() { diff -r "$work/whole" "$1" >/dev/null && echo "the same bytes" || echo "LOST: other bytes"; }
now() { date +%s.%N; }

echo "making $megabytes MB of text"
python3 scripts/bench/synthetic_corpus.py "$work/corpus" "$megabytes"

# Undisturbed, with its peak memory and the disk it needs on the way.
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
[ "$memory" -lt 2000000 ] && row "peak memory (VmHWM)" "$((memory / 1000)) MB" || row "peak memory (VmHWM)" "LOST: $((memory / 1000)) MB"
[ "$spool" -le "$output" ] && row "temporary file" "$((spool / 1000000)) MB" || row "temporary file" "LOST: $((spool / 1000000)) MB"
"$backpack" verify-data "$work/whole" >/dev/null && row "verify-data" "holds"

# Killed again and again; a preparation that got to its end is held against the undisturbed
# one and begun anew.
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
  if grep -q 'going on after' "$work/log"; then resumed=$((resumed + 1)); fi
done
"${prepare[@]}" "$work/killed" >"$work/log" 2>&1
finish
row "$kills kills at random moments" "$resumed went on where they were, $ended preparations ended, $result"
"${prepare[@]}" "$work/killed" 2>/dev/null | grep -q 'was there already' && row "a finished folder" "is recognised and left alone" || row "a finished folder" "LOST"

# A full disk: a file-size limit stands for it where tmpfs cannot be mounted.
mkdir "$work/small"
if mount -t tmpfs -o size=$((output / 2)) tmpfs "$work/small" 2>/dev/null; then
  how="a full disk (tmpfs)"
  "${prepare[@]}" "$work/small/out" >"$work/log" 2>&1 && code=0 || code=$?
  said=$(grep '^error' "$work/log" || true)
  umount "$work/small"
else
  how="a full disk (file-size limit)"
  (ulimit -f $((output / 2048)); "${prepare[@]}" "$work/small/out") >"$work/log" 2>&1 && code=0 || code=$?
  said=$(grep '^error' "$work/log" || true)
fi
case "$code $said" in "1 error: "*"cannot be written"*) row "$how" "one line, exit code 1" ;; *) row "$how" "LOST: exit code $code: $said" ;; esac
(ulimit -f $((output / 4096)); "${prepare[@]}" "$work/limited") >"$work/log" 2>&1 && code=0 || code=$?
"${prepare[@]}" "$work/limited" >/dev/null 2>&1
row "after a limit (exit code $code), the same command" "$(same "$work/limited")"

# Two at once, and other arguments for what was begun.
"${prepare[@]}" "$work/two" >/dev/null 2>&1 &
pid=$!
sleep 1
"${prepare[@]}" "$work/two" >"$work/log" 2>&1 && code=0 || code=$?
grep -q 'another process' "$work/log" && row "two at once" "the second is refused (exit code $code)" || row "two at once" "LOST"
kill -KILL $pid; wait $pid 2>/dev/null || true
"${prepare[@]}" "$work/two" --split-seed 7 >"$work/log" 2>&1 && code=0 || code=$?
grep -q 'split_seed is 7 now' "$work/log" && row "other arguments" "refused (exit code $code)" || row "other arguments" "LOST"
touch "$work/corpus/a-passages.jsonl"
"${prepare[@]}" "$work/two" >"$work/log" 2>&1 && code=0 || code=$?
row "an input whose time changed" "$(grep -o 'has changed since it was read' "$work/log" || same "$work/two")"
exit $failed
