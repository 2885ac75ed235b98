//! Several processes as one: PyTorch's own engine (`c10d`), without Python.
//!
//! [`ProcessGroup::join`] meets the other ranks at a store that rank 0 serves, and connects
//! every rank with every other: by Gloo for CPU tensors, and by NCCL for CUDA tensors.
//! [`Reducer`] averages gradients over the ranks while the backward pass goes on, as
//! `DistributedDataParallel` does.
//!
//! Every rank has to make the same calls in the same order. A call that fails leaves the
//! group broken for good: the process should say so and end ([`exit_now`]), and be started
//! again with the others.

mod failure;
mod network;
mod process_group;
mod reducer;
pub(crate) mod rendezvous;

pub(crate) use failure::worded;
pub use failure::{Failure, failure};
pub use network::{host_name, interfaces, own_address};
pub use process_group::{ProcessGroup, ReduceOp};
pub use reducer::{Reducer, ReducerStatistics};
pub use rendezvous::Rendezvous;

pub use crate::runtime::{exit_now, set_cuda_device};
