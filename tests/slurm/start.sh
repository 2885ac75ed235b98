#!/usr/bin/env bash
# Starts a real Slurm on this machine for tests: munged, slurmctld, and one slurmd for each of two
# "nodes" with 16 CPUs. They are background processes that listen only on the loopback interface and
# keep all files under DIR. Needs no systemd, cgroups or root.
#
#   tests/slurm/start.sh DIR    then run `. DIR/env.sh` and use sbatch, squeue, scontrol, ...
#   tests/slurm/stop.sh DIR
#
# Partitions: `normal`, `low` and `high`. A job in `high` preempts jobs in `low`, which are
# requeued.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: tests/slurm/start.sh DIR" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
PATH=$PATH:/usr/sbin:/sbin
fail() { echo "slurm: $*" >&2; exit 1; }
for tool in munged mungekey slurmctld slurmd sinfo; do
  command -v "$tool" >/dev/null || fail "$tool is missing: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
done
# The system limits the path of a socket to 108 characters.
[ ${#dir} -lt 80 ] || fail "the path $dir is too long for a socket: use a shorter one"

# slurmctld listens on the first port, the nodes on the next two, and srun on ports 100 to 199 above
# the first.
taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
port=16817
while taken "$port" || taken $((port + 1)) || taken $((port + 2)); do
  port=$((port + 300))
  [ "$port" -lt 30000 ] || fail "no free ports between 16817 and 30000"
done

me=$(id -un) host=$(hostname -s)
mkdir -p "$dir"/{run,log,state/ctld,state/n1,state/n2,munge}
chmod 755 "$dir" "$dir/run" && chmod 700 "$dir/munge"
mungekey --create --force --keyfile="$dir/munge/key" && chmod 600 "$dir/munge/key"
printf '%s\n' CgroupAutomount=no ConstrainCores=no ConstrainRAMSpace=no ConstrainDevices=no >"$dir/cgroup.conf"
cat >"$dir/slurm.conf" <<CONF
ClusterName=backpack-test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SrunPortRange=$((port + 100))-$((port + 199))
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also the delay before a requeued job may start: 120 s by default, at least 5 s.
AuthInfo=socket=$dir/run/munge.sock,cred_expire=5
StateSaveLocation=$dir/state/ctld
SlurmdSpoolDir=$dir/state/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
# config_overrides: the machine may have fewer CPUs and less memory than the nodes. Processes are
# tracked through /proc, not cgroups.
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
MinJobAge=900
ReturnToService=2
# Seconds between SIGTERM and SIGKILL; the default is 30.
KillWait=5
SlurmctldTimeout=60
SlurmdTimeout=60
MessageTimeout=20
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=16 RealMemory=65536 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=16 RealMemory=65536 State=UNKNOWN
PartitionName=normal Nodes=n[1-2] Default=YES MaxTime=1-00:00:00 PriorityTier=10 PreemptMode=OFF
PartitionName=low    Nodes=n[1-2] MaxTime=1-00:00:00 PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=high   Nodes=n[1-2] MaxTime=1-00:00:00 PriorityTier=20 PreemptMode=OFF
CONF
# The node names exist only inside Slurm, so the address of rank 0 must be set.
cat >"$dir/env.sh" <<ENV
export SLURM_CONF=$dir/slurm.conf MASTER_ADDR=127.0.0.1
PATH=\$PATH:/usr/sbin
ENV
export SLURM_CONF=$dir/slurm.conf

munged --force --num-threads=2 --socket="$dir/run/munge.sock" --key-file="$dir/munge/key" \
  --pid-file="$dir/run/munged.pid" --log-file="$dir/log/munged.log" --seed-file="$dir/munge/seed"
slurmctld -i -f "$SLURM_CONF"
for node in n1 n2; do slurmd -N $node -f "$SLURM_CONF"; done
for _ in $(seq 150); do
  [ "$(sinfo -h -N -p normal -t idle -o %n 2>/dev/null | wc -l)" -eq 2 ] && exit 0
  sleep 0.2
done
tail -n 5 "$dir"/log/*.log >&2
fail "the two nodes did not start within 30 s; the last lines of the logs in $dir/log are above"
