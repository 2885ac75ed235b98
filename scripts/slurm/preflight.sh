#!/usr/bin/env bash
# One task a node, before a training: is this node fit for it? Says what it has in one line, or what
# is wrong, with exit code 1. Then copies the shards to the node's own disk, where that is wanted.
#
#   preflight.sh RUN_DIR [SHARDS COPY]
set -u
trap '' USR1 # a time limit that is close already is the training's matter
run_dir=$1 node=${SLURMD_NODENAME:-$(hostname)}
fail() { echo "error: node $node: $*" >&2; exit 1; }

version=$("$BACKPACK_BINARY" --version 2>&1) || fail "$BACKPACK_BINARY does not run here: $version"

# "4", "a100:4" or, of several kinds, "a100:2,v100:2".
wanted=0
for kind in $(echo "${SLURM_GPUS_PER_NODE:-0}" | tr , ' '); do wanted=$((wanted + ${kind##*:})); done
visible=0
if [ $wanted -gt 0 ]; then
  visible=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU')
  [ "$visible" -ge $wanted ] || fail "$visible of $wanted GPUs are visible (nvidia-smi --list-gpus)"
  [ "$visible" -ge "$TASKS_PER_NODE" ] ||
    fail "$visible GPUs for $TASKS_PER_NODE tasks: give sbatch the same number for --ntasks-per-node and --gpus-per-node"
fi

existing=$run_dir
while [ ! -e "$existing" ]; do existing=$(dirname "$existing"); done
free=$(($(df -P -k "$existing" | awk 'NR == 2 { print $4 }') / 1000000))
[ "$free" -ge "$MIN_FREE_GB" ] ||
  fail "$free GB are free where the run folder lies ($existing), less than MIN_FREE_GB=$MIN_FREE_GB: make room, or lower it in scripts/slurm/site.sh"

echo "node $node: $version, $(nproc) CPUs, $visible GPUs, $free GB free in $existing"
if [ "${SLURM_NODEID:-0}" = 0 ]; then
  "$BACKPACK_BINARY" doctor || fail "\`backpack doctor\` failed"
fi

[ $# -eq 3 ] || exit 0
shards=$2 copy=$3
[ -d "$shards" ] || fail "there is no folder $shards to copy (STAGE_DATA)"
mkdir -p "$(dirname "$copy")" || fail "$(dirname "$copy") cannot be made (LOCAL_SCRATCH)"
# Another job on this node may be at the same work.
exec 9>"$copy.lock"
flock 9
if ! cmp -s "$shards/manifest.json" "$copy/manifest.json"; then
  # The manifest comes last: with it, the copy is whole.
  rm -rf "$copy" && mkdir "$copy" && cp "$shards"/*.bin "$copy/" && cp "$shards/manifest.json" "$copy/" ||
    fail "$shards could not be copied to $copy"
  echo "node $node: copied $shards to $copy"
fi
