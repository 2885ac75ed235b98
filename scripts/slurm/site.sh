# Settings that differ between clusters; every script in this folder reads them. Edit this file once
# for your cluster. A variable that is already set in the environment overrides the value here.
# shellcheck shell=bash
#
# Partition, account, quality of service and GPU type cannot be set here, because sbatch reads its
# options before it runs any line. Pass them to sbatch (`sbatch --partition=gpu --account=lab ...`),
# or set the variables of sbatch in your ~/.bashrc:
#
#     export SBATCH_PARTITION=gpu SBATCH_ACCOUNT=lab
#
# The checkout is the directory in which sbatch is called. To use another one, set BACKPACK_ROOT in
# the environment.

# The program. Every node must be able to read this path.
: "${BACKPACK_BINARY:=$BACKPACK_ROOT/target/release/backpack}"

# Maximum number of times that a training is requeued, for any reason. A limit of one day for a run
# of four days needs 4; preemption needs many more. The limit ends an endless loop of restarts.
: "${MAX_RESTARTS:=50}"

# Minimum free space, in GB, on the disk of the run directory. Each checkpoint of the published run
# has 2 GB, and up to 9 exist at the same time.
: "${MIN_FREE_GB:=25}"

# A directory on the local disk of each node (/tmp, /scratch/$SLURM_JOB_ID, ...), if there is one.
# If it is set, the shards in the directory STAGE_DATA are copied there before training, once per
# node.
: "${LOCAL_SCRATCH:=}"

# The network interface (ib0, eth0, ...) for the collectives of CPU ranks and for the start of GPU
# ranks. Empty: the interface that leads to the host name of rank 0, which may be a slow one.
: "${BACKPACK_INTERFACE:=}"

# NCCL selects its interfaces itself. Set one only if `NCCL_DEBUG=INFO` shows a wrong selection.
: "${NCCL_DEBUG:=WARN}"
export NCCL_DEBUG
# export NCCL_SOCKET_IFNAME==ib0
# export NCCL_IB_HCA=mlx5

# The address of rank 0, for clusters whose nodes cannot resolve the node names of Slurm.
# export MASTER_ADDR=10.0.0.1

# Environment modules, if they provide the GPU driver, the runtime of gcc, or Python.
# module purge
# module load gcc/12
