#!/usr/bin/env bash
# Stops the Slurm that tests/slurm/start.sh started in DIR, with all its jobs. Uses the process IDs
# in DIR/run, and only if the process is still that daemon with files in DIR.
set -uo pipefail
[ $# -eq 1 ] || { echo "usage: tests/slurm/stop.sh DIR" >&2; exit 2; }
dir=$(cd "$1" 2>/dev/null && pwd) || exit 0
export SLURM_CONF=$dir/slurm.conf
is_ours() { # PID NAME
  [ "$(cat "/proc/$1/comm" 2>/dev/null)" = "$2" ] && tr '\0' ' ' <"/proc/$1/cmdline" | grep -qF "$dir/"
}
stop() { # PID_FILE NAME
  local pid
  pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] && is_ours "$pid" "$2" || return 0
  kill -TERM "$pid"
  for _ in $(seq 50); do is_ours "$pid" "$2" || return 0; sleep 0.1; done
  kill -KILL "$pid"
}
# Jobs are canceled first, because the slurmstepd of a job survives its slurmd.
if is_ours "$(cat "$dir/run/slurmctld.pid" 2>/dev/null || echo 0)" slurmctld; then
  timeout 10 squeue -h -o %A | sort -u | xargs -r timeout 10 scancel
  for _ in $(seq 80); do [ -n "$(timeout 5 squeue -h -o %A)" ] || break; sleep 0.25; done
fi 2>/dev/null
for node in n1 n2; do stop "$dir/run/slurmd-$node.pid" slurmd; done
stop "$dir/run/slurmctld.pid" slurmctld
stop "$dir/run/munged.pid" munged
