#!/usr/bin/env bash
# Checks a node before a training; runs as one task per node. Prints the resources of the node in
# one line, or an error with exit code 1. Then copies the token shards to the local disk, if
# requested.
#
#   preflight.sh RUN_DIR [SHARDS COPY]     copies the directory SHARDS to COPY
set -u
trap '' USR1 # the training handles the signal of a time limit that is already near
run_dir=$1 node=${SLURMD_NODENAME:-$(hostname)}
fail() { echo "error: node $node: $*" >&2; exit 1; }

version=$("$BACKPACK_BINARY" --version 2>&1) || fail "$BACKPACK_BINARY does not start: $version"

visible=0
if [ "$GPUS_PER_NODE" -gt 0 ]; then
  visible=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU')
  [ "$visible" -ge "$GPUS_PER_NODE" ] || fail "$visible of $GPUS_PER_NODE GPUs are visible (nvidia-smi --list-gpus)"
  [ "$visible" -ge "$TASKS_PER_NODE" ] ||
    fail "$visible GPUs for $TASKS_PER_NODE tasks: pass the same number to sbatch as --ntasks-per-node and --gpus-per-node"
fi

existing=$run_dir
while [ ! -e "$existing" ]; do existing=$(dirname "$existing"); done
free=$(($(df -P -k "$existing" | awk 'NR == 2 { print $4 }') / 1000000))
[ "$free" -ge "$MIN_FREE_GB" ] ||
  fail "$free GB are free in $existing, less than MIN_FREE_GB=$MIN_FREE_GB: free some space, or lower MIN_FREE_GB in scripts/slurm/site.sh"

echo "node $node: $version, $(nproc) CPUs, $visible GPUs, $free GB free in $existing"
if [ "${SLURM_NODEID:-0}" = 0 ]; then
  "$BACKPACK_BINARY" doctor || fail "\`backpack doctor\` failed"
fi

[ $# -eq 3 ] || exit 0
shards=$2 copy=$3
[ -d "$shards" ] || fail "the directory $shards (STAGE_DATA) does not exist"
mkdir -p "$(dirname "$copy")" || fail "cannot create the directory $(dirname "$copy") (LOCAL_SCRATCH)"
# Another job on this node may be copying the same shards.
exec 9>"$copy.lock"
flock 9
if ! cmp -s "$shards/manifest.json" "$copy/manifest.json"; then
  # The manifest is copied last: a copy that has it is complete.
  { rm -rf "$copy" && mkdir "$copy" && cp "$shards"/*.bin "$copy/" && cp "$shards/manifest.json" "$copy/"; } ||
    fail "cannot copy $shards to $copy"
  echo "node $node: copied $shards to $copy"
fi
