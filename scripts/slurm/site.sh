# What differs from one cluster to another; read by every script of this folder. Edit it once
# for yours. A value that is set in the environment already wins over the one here.
# shellcheck shell=bash
#
# Partition, account, quality of service and the kind of GPU cannot stand here, because sbatch
# reads its options before any line runs. Give them to sbatch (`sbatch --partition=gpu
# --account=lab ...`), or once and for all in your ~/.bashrc, as sbatch's own variables:
#
#     export SBATCH_PARTITION=gpu SBATCH_ACCOUNT=lab
#
# The checkout is where sbatch is called; BACKPACK_ROOT in the environment names it elsewhere.

# The program, which has to be visible from every node.
: "${BACKPACK_BINARY:=$BACKPACK_ROOT/target/release/backpack}"

# How often a training may be requeued, whoever asks for it: a day's limit on a four-day run
# needs 4, preemption many more. The cap ends what would go round in circles.
: "${MAX_RESTARTS:=50}"

# Least free space, in GB, where the run folder lies: the published run's checkpoints have 2 GB
# each, of which up to 9 are there at once.
: "${MIN_FREE_GB:=25}"

# A folder on a disk of each node's own, where there is one (/tmp, /scratch/$SLURM_JOB_ID, ...).
# Where it is set, the shards in the folder STAGE_DATA are copied there before training, once a node.
: "${LOCAL_SCRATCH:=}"

# The network interface over which ranks on CPUs, and the start of ranks on GPUs, talk (ib0,
# eth0); empty: the one that leads to rank 0's node by its name, which may be the slow one.
: "${BACKPACK_INTERFACE:=}"

# NCCL finds its interfaces by itself. Name one only where `NCCL_DEBUG=INFO` shows a wrong choice.
: "${NCCL_DEBUG:=WARN}"
export NCCL_DEBUG
# export NCCL_SOCKET_IFNAME==ib0
# export NCCL_IB_HCA=mlx5

# Where nodes cannot find each other by the names that Slurm has for them: rank 0's address.
# export MASTER_ADDR=10.0.0.1

# Modules, where the driver, gcc's runtime or Python come from one.
# module purge
# module load gcc/12
