//! Process groups and the gradient reducer of PyTorch (`c10d`), without Python.
//!
//! [`ProcessGroup::join`] finds the other ranks through a store that rank 0 serves, and connects
//! every rank with every other: with Gloo for CPU tensors and with NCCL for CUDA tensors.
//! [`Reducer`] averages gradients over the ranks during the backward pass, as
//! `DistributedDataParallel` does.
//!
//! All ranks must make the same calls in the same order. A failed call breaks the group
//! permanently: the process should report the error and end ([`exit_now`]). All ranks can then be
//! started again.

mod network;
mod process_group;
mod reducer;
mod rendezvous;

pub use network::{host_name, interfaces, local_address, loopback_address};
pub use process_group::{ProcessGroup, ReduceOp};
pub use reducer::{Reducer, ReducerStatistics};
pub use rendezvous::Rendezvous;

pub use crate::error::CollectiveFailure;
pub use crate::runtime::{exit_now, set_cuda_device};
