#!/usr/bin/env bash
# Tests the job scripts of scripts/slurm on a real Slurm: two nodes with two tasks each, all on the
# CPU of this machine. One training runs undisturbed. The others are signaled, requeued, preempted,
# canceled, killed or stopped by the time limit, and must end with the same bits. Prints a table.
# Exits with 1 if a case failed. Takes some minutes on two cores.
#
#   scripts/test-slurm.sh            all files are in a folder in /tmp, which is deleted at the end
#   scripts/test-slurm.sh --keep     keeps that folder: logs, run directories, the logs of Slurm
#
# If Slurm is missing, root installs it from Debian's packages. If it is installed, any user can run
# the test. Set BACKPACK_BINARY to test an existing binary; otherwise one is built.

# Functions are called by name through run_case and wait_until; ko exits.
# shellcheck disable=SC2329,SC2015
set -uo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "${1:-}"
keep=0
case "${1:-}" in
  '') ;;
  --keep) keep=1 ;;
  *) usage_error "unknown argument '$1'" ;;
esac
began=$SECONDS
readonly STEPS=150 MIDDLE=65 # no validation and no checkpoint is near step 65
readonly ENDED='COMPLETED|FAILED|CANCELLED|TIMEOUT|PREEMPTED|NODE_FAIL'

if ! PATH=$PATH:/usr/sbin command -v slurmctld slurmd sbatch munged >/dev/null; then
  [ "$(id -u)" = 0 ] || fail "Slurm is missing and only root can install it: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
  # RUNLEVEL=1: the packages start no daemons.
  apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null || exit 1
fi
use_backpack_binary
export BACKPACK_ROOT=$PWD MIN_FREE_GB=1

work=$(mktemp -d -t backpack-slurm.XXXXXX)
clean_up() {
  jobs -p | xargs -r kill 2>/dev/null
  tests/slurm/stop.sh "$work/slurm"
  if [ "$keep" = 1 ]; then echo "all files are in $work"; else rm -rf "$work"; fi
}
trap clean_up EXIT
trap 'exit 130' INT TERM
mkdir "$work/logs" "$work/runs"
tests/slurm/start.sh "$work/slurm" || exit 1
# shellcheck source=/dev/null
. "$work/slurm/env.sh"

# Validation every 50 steps, a checkpoint every 30; dropout is on.
cat >"$work/run.toml" <<TOML
[run]
seed = 7
precision = "fp32"
device = "cpu"
threads = 1
[model]
n_embd = 32
n_head = 2
n_layer = 2
num_senses = 4
n_positions = 64
dropout = 0.1
[data]
path = "$work/data"
sequence_length = 64
[optimizer]
learning_rate = 2e-3
[schedule]
warmup_steps = 20
max_steps = $STEPS
[batch]
tokens_per_step = 512
micro_batch_size = 1
[validation]
every_steps = 50
max_sequences = 32
[checkpoint]
every_steps = 30
TOML

# --- helper functions ---
ko() { echo "FAILED: $*"; exit 1; } # ends a case, which runs in a subshell
# submit NAME [SBATCH OPTION...] [-- TRAIN ARGUMENT...]: prints the job ID.
submit() {
  local name=$1 options=()
  shift
  while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
  shift $(($# > 0))
  sbatch --parsable --job-name="$name" --output="$work/logs/$name.out" --nodes=2 --ntasks-per-node=2 --gpus-per-node=0 \
    --cpus-per-task=1 --time=20 ${options[@]+"${options[@]}"} \
    scripts/slurm/train.sbatch --config "$work/run.toml" --run-dir "$work/runs/$name" "$@"
}
of_job() { scontrol show job "$1" -o | grep -o " $2=[^ ]*" | head -n 1 | cut -d= -f2; }
job_log() { cat "$work/logs/$1.out" 2>/dev/null; }
last_step() { tail -n 1 "$work/runs/$1/metrics.jsonl" 2>/dev/null | grep -o '^{"step":[0-9]*' | cut -d: -f2; }
# wait_until SECONDS WHAT COMMAND...
wait_until() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ $SECONDS -lt $end ] || ko "no $what in time"
    sleep 0.1
  done
}
reached() { local now; now=$(last_step "$1"); [ "${now:-0}" -ge "$2" ]; }
wait_for_the_middle() { wait_until 120 "step $MIDDLE of $1" reached "$1" "$MIDDLE"; }
in_state() { [[ $(of_job "$1" JobState) =~ ^($2)$ ]]; }
# A job that is being requeued can be in such a state for a moment, so the state is read twice.
has_ended() { in_state "$1" "$ENDED" && sleep 1 && in_state "$1" "$ENDED"; }
# wait_for_success JOB NAME
wait_for_success() {
  wait_until 240 "end of job $2" has_ended "$1"
  [ "$(of_job "$1" JobState)" = COMPLETED ] || ko "job $2 is $(of_job "$1" JobState): $(job_log "$2" | tail -n 1)"
}
restarts() { of_job "$1" Restarts; }
processes() { pgrep -f -- "--run-dir $work/runs/$1( |$)"; }
none_left() { ! processes "$1" >/dev/null; }
# rank_process NAME RANK: prints the process ID of a rank. srun has the same arguments, but is in no
# job step.
rank_process() {
  local pid
  for pid in $(pgrep -f -- "(^| )$BACKPACK_BINARY train .*--run-dir $work/runs/$1( |$)"); do
    if grep -qz "^SLURM_PROCID=$2$" "/proc/$pid/environ" && grep -qz '^SLURM_STEP_ID=' "/proc/$pid/environ"; then echo "$pid"; fi
  done 2>/dev/null | head -n 1
}
# same NAME: the weights, optimizer moments and metrics of the run are those of the undisturbed run,
# bit for bit.
same() {
  local file number
  number=$(printf 'checkpoints/step-%08d' $STEPS)
  for file in model.safetensors optimizer.safetensors config.json; do
    cmp -s "$work/runs/reference/$number/$file" "$work/runs/$1/$number/$file" || ko "$file of $1 differs from the undisturbed run's"
  done
  python3 -B tests/slurm/same_metrics.py "$work/runs/reference/metrics.jsonl" "$work/runs/$1/metrics.jsonl" || exit 1
}
resumed_at() { job_log "$1" | grep -o 'resuming .* at step [0-9]*' | tail -n 1 | grep -o '[0-9]*$'; }
# saved_at_the_stop NAME: the run saved a checkpoint at the stop request, not only every 30 steps.
saved_at_the_stop() { [ "$(resumed_at "$1")" -ge "$MIDDLE" ] || ko "it resumed at step $(resumed_at "$1"), not at the step of the stop request"; }

# --- the cases; each prints its outcome ---
case_prepare() {
  local job
  job=$(sbatch --parsable --output="$work/logs/prepare.out" --cpus-per-task=2 scripts/slurm/prepare-data.sbatch \
    --input data/demo.jsonl --output "$work/data" --val-fraction 0.05) || ko "sbatch failed"
  wait_for_success "$job" prepare
  job_log prepare | grep -q 'manifest' || ko "the shards are not verified"
  echo "shards written and verified"
}
case_reference() {
  local job
  job=$(submit reference) || ko "sbatch failed"
  wait_for_success "$job" reference
  [ "$(restarts "$job")" = 0 ] && [ "$(last_step reference)" = "$STEPS" ] || ko "it did not finish in one attempt"
  job_log reference | grep -q '^[1-3]: step' && ko "a rank other than 0 logged its steps"
  echo "$STEPS steps on 4 ranks"
}
case_signal() {
  local job
  job=$(submit signal) || ko "sbatch failed"
  wait_for_the_middle signal
  scancel --signal=USR1 "$job"
  wait_for_success "$job" signal
  [ "$(restarts "$job")" = 1 ] || ko "requeued $(restarts "$job") times"
  saved_at_the_stop signal
  same signal || exit 1
  echo "requeued, resumed at $(resumed_at signal), same bits"
}
# The tasks are suspended, so that the time limit comes before the last step. Slurm's signal resumes
# them.
case_limit() {
  local job rank pid
  job=$(submit limit --time=2 --signal=USR1@60) || ko "sbatch failed"
  wait_until 120 "step 20 of limit" reached limit 20
  for rank in 0 1 2 3; do
    pid=$(rank_process limit $rank)
    [ -n "$pid" ] || ko "rank $rank is not running"
    kill -STOP "$pid"
  done
  wait_for_success "$job" limit
  # More than once if the machine is too slow for the remaining steps.
  [ "$(restarts "$job")" -ge 1 ] || ko "it was not requeued"
  same limit || exit 1
  echo "resumed and stopped by --signal=USR1@60, requeued, resumed at $(resumed_at limit), same bits"
}
case_requeue() {
  local job
  job=$(LOCAL_SCRATCH="$work/node" STAGE_DATA="$work/data" submit requeue) || ko "sbatch failed"
  wait_for_the_middle requeue
  scontrol requeue "$job"
  wait_until 30 "restart of requeue" in_state "$job" PENDING
  wait_for_success "$job" requeue
  [ "$(restarts "$job")" = 1 ] || ko "requeued $(restarts "$job") times"
  saved_at_the_stop requeue
  [ "$(job_log requeue | grep -c "copied $work/data to ")" = 1 ] || ko "the shards were not copied exactly once"
  same requeue || exit 1
  echo "read the copied shards, resumed at $(resumed_at requeue), same bits"
}
case_preemption() {
  local job high
  job=$(submit preemption --partition=low) || ko "sbatch failed"
  wait_for_the_middle preemption
  high=$(sbatch --parsable --output="$work/logs/high.out" --partition=high --nodes=2 --exclusive --wrap 'sleep 3')
  wait_until 60 "start of the job with the higher priority" in_state "$high" 'RUNNING|COMPLETED'
  wait_for_success "$job" preemption
  [ "$(restarts "$job")" = 1 ] || ko "requeued $(restarts "$job") times"
  saved_at_the_stop preemption
  same preemption || exit 1
  echo "preempted, resumed at $(resumed_at preemption), same bits"
}
case_cancel() {
  local job again
  job=$(submit cancel) || ko "sbatch failed"
  wait_for_the_middle cancel
  scancel "$job"
  wait_until 20 "end of the canceled job" has_ended "$job"
  wait_until 10 "end of its processes" none_left cancel
  sleep 2
  in_state "$job" CANCELLED || ko "the state of the canceled job is $(of_job "$job" JobState)"
  again=$(submit cancel) || ko "sbatch failed"
  wait_for_success "$again" cancel
  job_log cancel | grep -q 'checkpoints/step-[0-9]*: ' && ko "its last checkpoint did not verify"
  saved_at_the_stop cancel
  same cancel || exit 1
  echo "no process left; submitted again, resumed at $(resumed_at cancel), same bits"
}
case_killed_task() {
  local job pid start seconds again
  job=$(submit kill) || ko "sbatch failed"
  wait_for_the_middle kill
  pid=$(rank_process kill 2)
  [ -n "$pid" ] || ko "rank 2 is not running"
  start=$(date +%s%N)
  kill -KILL "$pid"
  wait_until 30 "end of the job" has_ended "$job"
  seconds=$((($(date +%s%N) - start) / 1000000))
  wait_until 10 "end of its processes" none_left kill
  [ "$(of_job "$job" JobState)" = FAILED ] && [ "$(restarts "$job")" = 0 ] || ko "the job is $(of_job "$job" JobState)"
  [ "$seconds" -lt 15000 ] || ko "the job took $seconds ms to end"
  job_log kill | grep -q '^[013]: error: rank [013]: ' || ko "no other rank logged an error"
  again=$(submit kill) || ko "sbatch failed"
  wait_for_success "$again" kill
  job_log kill | grep -q 'checkpoints/step-[0-9]*: ' && ko "its last checkpoint did not verify"
  same kill || exit 1
  echo "the job ended after $seconds ms; submitted again, resumed at $(resumed_at kill), same bits"
}
case_refusals() {
  local job
  job=$(MIN_FREE_GB=1000000 submit full) || ko "sbatch failed"
  wait_until 30 "end of the job on a full disk" has_ended "$job"
  job_log full | grep -q 'GB are free in .*, less than MIN_FREE_GB' || ko "the preflight accepted a full disk"
  [ ! -e "$work/runs/full" ] || ko "a training started on a full disk"
  job=$(MAX_RESTARTS=0 submit cap) || ko "sbatch failed"
  wait_until 60 "step 5 of cap" reached cap 5
  scancel --signal=USR1 "$job"
  wait_until 30 "end of the job that must not be requeued" has_ended "$job"
  [ "$(of_job "$job" ExitCode)" = 85:0 ] || ko "its exit code is $(of_job "$job" ExitCode)"
  job_log cap | grep -q 'not requeued after 0 restarts' || ko "it did not log why it was not requeued"
  echo "a full disk; no restarts left"
}
case_eval() {
  local output job number results
  output=$(SBATCH_GPUS_PER_NODE=0 SBATCH_OUTPUT="$work/logs/eval.out" scripts/slurm/eval.sbatch "$work/runs/reference" \
    --task val --data "$work/data" --limit 32) || ko "eval.sbatch failed"
  job=$(echo "$output" | grep -o '[0-9]*$')
  number=$(find "$work/runs/reference/checkpoints" -maxdepth 1 -name 'step-*' | wc -l)
  results=$work/runs/reference/eval
  all_there() { [ "$(find "$results" -name '*.val.json' 2>/dev/null | wc -l)" -eq "$number" ]; }
  wait_until 60 "results of $number checkpoints" all_there
  python3 -B tests/slurm/same_validation.py "$work/runs/reference/metrics.jsonl" "$results" "$STEPS" || exit 1
  echo "the array $job evaluated $number checkpoints; the last loss equals that of the training"
}

table=()
failed=0
add() { # TITLE SECONDS OUTCOME CODE
  table+=("$(printf '%-34s %5s  %s' "$1" "$2" "$3")")
  [ "$4" = 0 ] || failed=1
  echo "${table[-1]}"
}
run_case() { # TITLE FUNCTION
  local start=$SECONDS outcome code
  outcome=$($2)
  code=$?
  add "$1" $((SECONDS - start)) "$(echo "$outcome" | tail -n 1)" $code
}

run_case "prepare-data.sbatch" case_prepare
run_case "undisturbed" case_reference
if [ $failed = 0 ]; then
  # It sleeps most of the time, so it runs in the background of the next cases.
  limit_start=$SECONDS
  { case_limit; } >"$work/limit.outcome" &
  limit=$!
  run_case "SIGUSR1 to the tasks" case_signal
  run_case "scontrol requeue" case_requeue
  wait $limit
  code=$?
  add "time limit" $((SECONDS - limit_start)) "$(tail -n 1 "$work/limit.outcome")" $code
  run_case "preemption" case_preemption
  run_case "scancel" case_cancel
  run_case "SIGKILL of a task" case_killed_task
  run_case "refusals" case_refusals
  run_case "eval.sbatch" case_eval
fi

printf '\n%-34s %5s  %s\n' case s outcome
printf '%s\n' "${table[@]}"
echo "total: $((SECONDS - began)) s"
[ "$failed" = 0 ] || [ "$keep" = 1 ] || echo "run it with --keep to read the logs"
exit "$failed"
