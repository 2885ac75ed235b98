#!/usr/bin/env bash
# Two ranks on two hosts, which are network namespaces of this machine joined by a cable: they
# train, the cable is pulled, both end within distributed.timeout with a sentence, and the last
# checkpoint is whole. Half a minute.
#
#   scripts/test-network.sh      needs root (ip netns); BACKPACK_BINARY names the program to test
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in
  '') ;;
  -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;;
  *) echo "test-network: unknown argument '$1' (see --help)" >&2; exit 2 ;;
esac
if [ -z "${BACKPACK_BINARY:-}" ]; then
  scripts/setup.sh
  cargo build --release --locked
  BACKPACK_BINARY=$(realpath "${CARGO_TARGET_DIR:-target}")/release/backpack
fi
fail() { echo "test-network: $*" >&2; exit 1; }

work=$(mktemp -d)
first=bp$$a second=bp$$b
ranks=()
at_end() {
  [ ${#ranks[@]} = 0 ] || kill -KILL "${ranks[@]}" 2>/dev/null || true
  ip netns del "$first" 2>/dev/null || true
  ip netns del "$second" 2>/dev/null || true
  rm -rf "$work"
}
trap at_end EXIT
ip netns add "$first" && ip netns add "$second" || fail "network namespaces cannot be made here: run this as root, with iproute2 installed"
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
  --set run.device=cpu --set checkpoint.every=20 --set distributed.timeout=5 --set distributed.start_timeout=60)
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
pulled=$SECONDS
for rank in 0 1; do
  code=0
  wait "${ranks[$rank]}" || code=$?
  said=$(tail -n 1 "$work/$rank.log")
  [ $code = 1 ] || fail "rank $rank ended with $code and said: $said"
  [[ $said = "error: rank $rank: "*"another rank did not answer"* ]] || fail "rank $rank said: $said"
done
took=$((SECONDS - pulled))
ranks=()
[ $took -le 12 ] || fail "the ranks ended $took s after the cable was pulled; distributed.timeout was 5"
said=$("${train[@]}" --resume auto --stop-after 41 2>&1) || [ $? = 85 ] || fail "the run does not go on: $said"
[[ $said = *"resuming"*"at step "* ]] || fail "the run began afresh: $said"
echo "test-network: the cable was pulled, both ranks said so within $took s, and the run went on from its checkpoint"
