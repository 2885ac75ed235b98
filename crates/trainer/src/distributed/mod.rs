//! Runs with several processes: the identity of each process, the collectives, and gradient
//! averaging.
//!
//! `world` finds out the rank and world size from command-line flags, the variables of a launcher
//! (`env`, `local_ranks`) or Slurm (`slurm`, `slurm_hostlist`). `collectives` wraps the process
//! group. `grad_reducer` averages the gradients of the ranks. `flight_recorder` prepares the dumps of
//! NCCL for ranks that hang.

pub(crate) mod collectives;
pub(crate) mod config;
pub(crate) mod env;
pub(crate) mod flight_recorder;
pub(crate) mod grad_reducer;
pub(crate) mod local_ranks;
pub(crate) mod slurm;
pub(crate) mod slurm_hostlist;
pub(crate) mod world;
