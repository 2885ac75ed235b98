#!/usr/bin/env bash
# Tests the loss of a network connection. Two network namespaces of this machine act as two hosts,
# with one rank each. They train, the connection is cut, and both ranks must exit with an error
# within distributed.timeout_seconds. The last checkpoint must be intact. Takes half a minute.
#
#   scripts/test-network.sh
#
# Needs root (ip netns). Set BACKPACK_BINARY to test an existing binary; otherwise one is built.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"
[ $# -eq 0 ] || usage_error "unknown argument '$1'"
use_backpack_binary

make_work_folder
first=bp$$a second=bp$$b
ranks=()
clean_up() {
  [ ${#ranks[@]} = 0 ] || kill -KILL "${ranks[@]}" 2>/dev/null || true
  ip netns del "$first" 2>/dev/null || true
  ip netns del "$second" 2>/dev/null || true
  rm -rf "$work"
}
trap clean_up EXIT
for host in "$first" "$second"; do
  ip netns add "$host" || fail "cannot create network namespaces: run this as root, with iproute2 installed"
done
ip link add "$first" type veth peer name "$second"
for host in "$first" "$second"; do
  ip link set "$host" netns "$host"
  ip -n "$host" link set lo up
  ip -n "$host" link set "$host" up
done
ip -n "$first" addr add 10.77.0.1/24 dev "$first"
ip -n "$second" addr add 10.77.0.2/24 dev "$second"

"$BACKPACK_BINARY" prepare-data --input data/demo.jsonl --output "$work/data" --val-fraction 0.05 >/dev/null 2>&1
train=("$BACKPACK_BINARY" train --config configs/quickstart.toml --threads 1 --run-dir "$work/run" --set "data.path=$work/data"
  --set run.device=cpu --set checkpoint.every_steps=20 --set distributed.timeout_seconds=5
  --set distributed.init_timeout_seconds=60)
start() { # RANK HOST
  LOCAL_WORLD_SIZE=1 ip netns exec "$2" "${train[@]}" --rank "$1" --local-rank 0 --world-size 2 \
    --master-addr 10.77.0.1 --master-port 29611 >"$work/$1.log" 2>&1 &
  ranks+=($!)
}
start 0 "$first"
start 1 "$second"
lines() { cat "$work/run/metrics.jsonl" 2>/dev/null | wc -l; }
for _ in $(seq 600); do [ "$(lines)" -gt 30 ] && break; sleep 0.1; done
[ "$(lines)" -gt 30 ] || fail "the ranks do not train: $(tail -n 1 "$work/0.log"; tail -n 1 "$work/1.log")"

ip -n "$first" link set "$first" down
cut_at=$SECONDS
for rank in 0 1; do
  code=0
  wait "${ranks[$rank]}" || code=$?
  message=$(tail -n 1 "$work/$rank.log")
  [ $code = 1 ] || fail "rank $rank exited with $code, and its last message is: $message"
  [[ $message = "error: rank $rank: "*"another rank"* ]] || fail "the last message of rank $rank is: $message"
done
took=$((SECONDS - cut_at))
ranks=()
[ $took -le 12 ] || fail "the ranks exited $took s after the connection was cut; distributed.timeout_seconds is 5"
output=$("${train[@]}" --resume auto --stop-after 41 2>&1) || [ $? = 85 ] || fail "the run does not resume: $output"
[[ $output = *"resuming"*"at step "* ]] || fail "the run started from the beginning: $output"
echo "test-network: after the connection was cut, both ranks exited with an error within $took s, and the run resumed from its checkpoint"
