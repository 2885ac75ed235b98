# The common beginning of the job scripts: where the checkout is, the site's settings, the
# program. Sourced.
# shellcheck shell=bash
set -u
BACKPACK_ROOT=${BACKPACK_ROOT:-$SLURM_SUBMIT_DIR}
export BACKPACK_ROOT
fail() { echo "error: job $SLURM_JOB_ID: $*" >&2; exit 1; }
cd "$BACKPACK_ROOT" || fail "the checkout $BACKPACK_ROOT cannot be entered on $(hostname)"
. scripts/slurm/site.sh || fail "scripts/slurm/site.sh of $BACKPACK_ROOT cannot be read, or one of its commands failed"
export BACKPACK_BINARY MIN_FREE_GB
[ -x "$BACKPACK_BINARY" ] ||
  fail "there is no program $BACKPACK_BINARY: build it with \`cargo build --release --locked\`, or name it in BACKPACK_BINARY"
# srun does not take this over from sbatch (since Slurm 22.05).
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
revision=$(git describe --always --dirty 2>/dev/null || echo unknown)
echo "job $SLURM_JOB_ID, attempt $((${SLURM_RESTART_COUNT:-0} + 1)), $(date '+%F %T'): $SLURM_JOB_NUM_NODES node(s) $SLURM_JOB_NODELIST, revision $revision"

# option NAME ARGUMENT...: the value of that flag among the program's arguments.
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
