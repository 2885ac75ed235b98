//! Several processes: rank and world size, the collectives, and gradient averaging.

pub(crate) mod collectives;
pub(crate) mod config;
pub(crate) mod env;
pub(crate) mod grad_reducer;
pub(crate) mod local_ranks;
pub(crate) mod slurm;
pub(crate) mod slurm_hostlist;
pub(crate) mod world;
