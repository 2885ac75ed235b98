#!/usr/bin/env bash
# The job scripts of scripts/slurm on a real Slurm: two nodes of two tasks each, all on this
# machine's CPU. One training is left alone; the others are signalled, requeued, preempted,
# cancelled, killed or run out of time, and have to end with the same bits. Prints a table; exits
# with 1 when a case failed. Some minutes on two cores.
#
#   scripts/test-slurm.sh            everything under a folder in /tmp, which is removed at the end
#   scripts/test-slurm.sh --keep     leave that folder: logs, run folders, Slurm's own logs
#
# Installs Slurm from Debian's packages where it is missing, which needs root; else any user can
# run it. BACKPACK_BINARY names the program to test; unset, one is built.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
keep=0
case "${1:-}" in
  '') ;;
  --keep) keep=1 ;;
  -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;;
  *) echo "test-slurm: unknown argument '$1' (see --help)" >&2; exit 2 ;;
esac
began=$SECONDS
readonly STEPS=150 MIDDLE=65 # no step near the middle is validated or saved
readonly ENDED='COMPLETED|FAILED|CANCELLED|TIMEOUT|PREEMPTED|NODE_FAIL'

if ! PATH=$PATH:/usr/sbin command -v slurmctld slurmd sbatch munged >/dev/null; then
  [ "$(id -u)" = 0 ] || { echo "test-slurm: Slurm is missing and only root can install it: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge" >&2; exit 1; }
  # RUNLEVEL=1: the packages start no daemons.
  apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null || exit 1
fi
if [ -z "${BACKPACK_BINARY:-}" ]; then
  scripts/setup.sh && cargo build --release --locked || exit 1
  BACKPACK_BINARY=$(realpath "${CARGO_TARGET_DIR:-target}")/release/backpack
fi
export BACKPACK_BINARY BACKPACK_ROOT=$PWD MIN_FREE_GB=1

work=$(mktemp -d -t backpack-slurm.XXXXXX)
at_end() {
  jobs -p | xargs -r kill 2>/dev/null
  tests/slurm/stop.sh "$work/slurm"
  if [ $keep = 1 ]; then echo "everything is in $work"; else rm -rf "$work"; fi
}
trap at_end EXIT
trap 'exit 130' INT TERM
mkdir "$work/logs" "$work/runs"
tests/slurm/start.sh "$work/slurm" || exit 1
. "$work/slurm/env.sh"

# Two steps in a hundred are validated, three saved; dropout is on.
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
tokens = 512
micro_batch = 1
[validation]
every = 50
max_sequences = 32
[checkpoint]
every = 30
TOML

# --- what the cases are made of ---
ko() { echo "FAILED: $*"; exit 1; } # ends a case, which runs in a subshell
# submit NAME [OPTION OF SBATCH...] [-- ARGUMENT OF TRAIN...]: prints the job's number.
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
log() { cat "$work/logs/$1.out" 2>/dev/null; }
step() { tail -n 1 "$work/runs/$1/metrics.jsonl" 2>/dev/null | grep -o '^{"step":[0-9]*' | cut -d: -f2; }
# wait_until SECONDS WHAT COMMAND...
wait_until() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ $SECONDS -lt $end ] || ko "no $what in time"
    sleep 0.1
  done
}
reached() { local now; now=$(step "$1"); [ "${now:-0}" -ge "$2" ]; }
wait_for_the_middle() { wait_until 120 "step $MIDDLE of $1" reached "$1" $MIDDLE; }
in_state() { [[ $(of_job "$1" JobState) =~ ^($2)$ ]]; }
# A job that is being requeued may look ended for a moment: looked at twice.
has_ended() { in_state "$1" "$ENDED" && sleep 1 && in_state "$1" "$ENDED"; }
# wait_for_success JOB NAME
wait_for_success() {
  wait_until 240 "end of job $2" has_ended "$1"
  [ "$(of_job "$1" JobState)" = COMPLETED ] || ko "job $2 is $(of_job "$1" JobState): $(log "$2" | tail -n 1)"
}
restarts() { of_job "$1" Restarts; }
processes() { pgrep -f -- "--run-dir $work/runs/$1( |$)"; }
none_left() { ! processes "$1" >/dev/null; }
# The process of a rank: in a step, unlike srun, which has the same arguments.
rank_process() { # NAME RANK
  local pid
  for pid in $(pgrep -f -- "(^| )$BACKPACK_BINARY train .*--run-dir $work/runs/$1( |$)"); do
    if grep -qz "^SLURM_PROCID=$2$" "/proc/$pid/environ" && grep -qz '^SLURM_STEP_ID=' "/proc/$pid/environ"; then echo "$pid"; fi
  done 2>/dev/null | head -n 1
}
# The run NAME has the undisturbed one's weights, moments and metrics, to the bit.
same() { # NAME [loss-only]
  local file number
  number=$(printf 'checkpoints/step-%08d' $STEPS)
  for file in model.safetensors optimizer.safetensors config.json; do
    cmp -s "$work/runs/reference/$number/$file" "$work/runs/$1/$number/$file" || ko "$file of $1 differs from the undisturbed run's"
  done
  python3 -B tests/slurm/same_metrics.py "$work/runs/reference/metrics.jsonl" "$work/runs/$1/metrics.jsonl" || exit 1
}
resumed_at() { log "$1" | grep -o 'resuming .* at step [0-9]*' | tail -n 1 | grep -o '[0-9]*$'; }
# The run NAME saved a checkpoint when it was told to stop, and not only every 30 steps.
saved_at_the_stop() { [ "$(resumed_at "$1")" -ge $MIDDLE ] || ko "it went on from step $(resumed_at "$1"), not from where it was told to stop"; }

# --- the cases: each prints its outcome ---
case_prepare() {
  local job
  job=$(sbatch --parsable --output="$work/logs/prepare.out" --cpus-per-task=2 scripts/slurm/prepare-data.sbatch \
    --input data/demo.jsonl --output "$work/data" --val-fraction 0.05) || ko "sbatch refused it"
  wait_for_success "$job" prepare
  log prepare | grep -q 'is what its manifest says' || ko "the shards are not verified"
  echo "shards written and verified"
}
case_reference() {
  local job
  job=$(submit reference) || ko "sbatch refused it"
  wait_for_success "$job" reference
  [ "$(restarts "$job")" = 0 ] && [ "$(step reference)" = $STEPS ] || ko "it did not run through at once"
  log reference | grep -q '^[1-3]: step' && ko "a rank other than 0 wrote of its steps"
  echo "$STEPS steps on 4 ranks"
}
case_signal() {
  local job
  job=$(submit signal) || ko "sbatch refused it"
  wait_for_the_middle signal
  scancel --signal=USR1 "$job"
  wait_for_success "$job" signal
  [ "$(restarts "$job")" = 1 ] || ko "requeued $(restarts "$job") times"
  saved_at_the_stop signal
  same signal || exit 1
  echo "requeued, resumed at $(resumed_at signal), same bits"
}
# Tasks that are stopped, so that the limit comes before the end: Slurm's signal wakes them.
case_limit() {
  local job rank pid
  job=$(submit limit --time=2 --signal=USR1@60) || ko "sbatch refused it"
  wait_until 120 "step 20 of limit" reached limit 20
  for rank in 0 1 2 3; do
    pid=$(rank_process limit $rank)
    [ -n "$pid" ] || ko "rank $rank is not running"
    kill -STOP "$pid"
  done
  wait_for_success "$job" limit
  # Twice on a machine that is too slow for the rest of the steps.
  [ "$(restarts "$job")" -ge 1 ] || ko "it was not requeued"
  same limit || exit 1
  echo "woken and stopped by --signal=USR1@60, requeued, resumed at $(resumed_at limit), same bits"
}
case_requeue() {
  local job
  job=$(LOCAL_SCRATCH="$work/node" STAGE_DATA="$work/data" submit requeue) || ko "sbatch refused it"
  wait_for_the_middle requeue
  scontrol requeue "$job"
  wait_until 30 "restart of requeue" in_state "$job" PENDING
  wait_for_success "$job" requeue
  [ "$(restarts "$job")" = 1 ] || ko "requeued $(restarts "$job") times"
  saved_at_the_stop requeue
  [ "$(log requeue | grep -c "copied $work/data to ")" = 1 ] || ko "the shards were not copied once"
  same requeue || exit 1
  echo "read copied shards, resumed at $(resumed_at requeue), same bits"
}
case_preemption() {
  local job high
  job=$(submit preemption --partition=low) || ko "sbatch refused it"
  wait_for_the_middle preemption
  high=$(sbatch --parsable --output="$work/logs/high.out" --partition=high --nodes=2 --exclusive --wrap 'sleep 3')
  wait_until 60 "start of the job that is more important" in_state "$high" 'RUNNING|COMPLETED'
  wait_for_success "$job" preemption
  [ "$(restarts "$job")" = 1 ] || ko "requeued $(restarts "$job") times"
  saved_at_the_stop preemption
  same preemption || exit 1
  echo "gave way, resumed at $(resumed_at preemption), same bits"
}
case_cancel() {
  local job again
  job=$(submit cancel) || ko "sbatch refused it"
  wait_for_the_middle cancel
  scancel "$job"
  wait_until 20 "end of a cancelled job" has_ended "$job"
  wait_until 10 "end of its processes" none_left cancel
  sleep 2
  in_state "$job" CANCELLED || ko "the job that was cancelled is $(of_job "$job" JobState)"
  again=$(submit cancel) || ko "sbatch refused it"
  wait_for_success "$again" cancel
  log cancel | grep -q 'passed over' && ko "its last checkpoint did not verify"
  saved_at_the_stop cancel
  same cancel || exit 1
  echo "nothing left running; submitted again, resumed at $(resumed_at cancel), same bits"
}
case_killed_task() {
  local job pid start seconds again
  job=$(submit kill) || ko "sbatch refused it"
  wait_for_the_middle kill
  pid=$(rank_process kill 2)
  [ -n "$pid" ] || ko "rank 2 is not running"
  start=$(date +%s%N)
  kill -KILL "$pid"
  wait_until 30 "end of the job" has_ended "$job"
  seconds=$((($(date +%s%N) - start) / 1000000))
  wait_until 10 "end of its processes" none_left kill
  [ "$(of_job "$job" JobState)" = FAILED ] && [ "$(restarts "$job")" = 0 ] || ko "the job is $(of_job "$job" JobState)"
  [ $seconds -lt 15000 ] || ko "the job took $seconds ms to end"
  log kill | grep -q '^[013]: error: rank [013]: ' || ko "no other rank said a sentence"
  again=$(submit kill) || ko "sbatch refused it"
  wait_for_success "$again" kill
  log kill | grep -q 'passed over' && ko "its last checkpoint did not verify"
  same kill || exit 1
  echo "the job ended after $seconds ms; submitted again, resumed at $(resumed_at kill), same bits"
}
case_refusals() {
  local job
  job=$(MIN_FREE_GB=1000000 submit full) || ko "sbatch refused it"
  wait_until 30 "end of a job without room" has_ended "$job"
  log full | grep -q 'GB are free where the run folder lies' || ko "the preflight let a full disk pass"
  [ ! -e "$work/runs/full" ] || ko "a training began on a full disk"
  job=$(MAX_RESTARTS=0 submit cap) || ko "sbatch refused it"
  wait_until 60 "step 5 of cap" reached cap 5
  scancel --signal=USR1 "$job"
  wait_until 30 "end of a job that must not be requeued" has_ended "$job"
  [ "$(of_job "$job" ExitCode)" = 85:0 ] || ko "its exit code is $(of_job "$job" ExitCode)"
  log cap | grep -q 'not requeued after 0 restarts' || ko "it did not say why it was not requeued"
  echo "a full disk; no restarts left"
}
case_eval() {
  local said job number results
  said=$(SBATCH_GPUS_PER_NODE=0 SBATCH_OUTPUT="$work/logs/eval.out" scripts/slurm/eval.sbatch "$work/runs/reference" \
    --task val --data "$work/data" --max-sequences 32) || ko "it was not submitted"
  job=$(echo "$said" | grep -o '[0-9]*$')
  number=$(find "$work/runs/reference/checkpoints" -maxdepth 1 -name 'step-*' | wc -l)
  results=$work/runs/reference/eval
  all_there() { [ "$(find "$results" -name '*.val.json' 2>/dev/null | wc -l)" -eq "$number" ]; }
  wait_until 60 "results of $number checkpoints" all_there
  python3 -B tests/slurm/same_validation.py "$work/runs/reference/metrics.jsonl" "$results" $STEPS || exit 1
  echo "$number checkpoints measured by the array $job, the last with the training's own loss"
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
  # It sleeps for most of its time, beside the next cases.
  limit_start=$SECONDS
  { case_limit; } >"$work/limit.outcome" &
  limit=$!
  run_case "SIGUSR1 to the tasks" case_signal
  run_case "scontrol requeue from outside" case_requeue
  wait $limit
  code=$?
  add "time limit" $((SECONDS - limit_start)) "$(tail -n 1 "$work/limit.outcome")" $code
  run_case "preemption" case_preemption
  run_case "scancel" case_cancel
  run_case "a task killed by SIGKILL" case_killed_task
  run_case "what is refused" case_refusals
  run_case "eval.sbatch" case_eval
fi

printf '\n%-34s %5s  %s\n' case s outcome
printf '%s\n' "${table[@]}"
echo "$((SECONDS - began)) s in all"
[ $failed = 0 ] || [ $keep = 1 ] || echo "run it with --keep to read the logs"
exit $failed
