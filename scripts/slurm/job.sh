# The common start of the job scripts: changes to the checkout, reads the settings of the site and
# checks the program. Sourced, not run.
# shellcheck shell=bash
set -u
BACKPACK_ROOT=${BACKPACK_ROOT:-$SLURM_SUBMIT_DIR}
export BACKPACK_ROOT
fail() { echo "error: job $SLURM_JOB_ID: $*" >&2; exit 1; }
cd "$BACKPACK_ROOT" || fail "cannot change to the checkout $BACKPACK_ROOT on $(hostname)"
# shellcheck source=scripts/slurm/site.sh
. scripts/slurm/site.sh || fail "cannot read $BACKPACK_ROOT/scripts/slurm/site.sh, or one of its commands failed"
export BACKPACK_BINARY MIN_FREE_GB
[ -x "$BACKPACK_BINARY" ] ||
  fail "the program $BACKPACK_BINARY does not exist: build it with \`cargo build --release --locked\`, or set BACKPACK_BINARY"
# Since Slurm 22.05, srun does not inherit this value from sbatch.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# The number of GPUs per node, for --gpus-per-node ("4", "a100:4" or, with several types,
# "a100:2,v100:2") and for --gres (Slurm then sets only SLURM_GPUS_ON_NODE).
GPUS_PER_NODE=0
for kind in $(echo "${SLURM_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}}" | tr , ' '); do
  GPUS_PER_NODE=$((GPUS_PER_NODE + ${kind##*:}))
done
export GPUS_PER_NODE
revision=$(git describe --always --dirty 2>/dev/null || echo unknown)
echo "job $SLURM_JOB_ID, attempt $((${SLURM_RESTART_COUNT:-0} + 1)), $(date '+%F %T'): $SLURM_JOB_NUM_NODES node(s) $SLURM_JOB_NODELIST, revision $revision"

# option NAME ARGUMENT...: prints the value of the flag NAME among the arguments of the program.
option() {
  local name=$1 value='' previous='' argument
  shift
  for argument in "$@"; do
    [ "$previous" != "$name" ] || value=$argument
    case "$argument" in "$name"=*) value=${argument#*=} ;; esac
    previous=$argument
  done
  echo "$value"
}
