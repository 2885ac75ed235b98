//! Extensions of tch over the same libtorch, behind a small C++ shim: fused operations of a
//! training step, their CUDA kernels, AdamW with clipping, process groups, NCCL, and profiling.
//!
//! This is the only crate whose `unsafe` code uses tensors. Where C++ throws an exception,
//! functions return an [`Error`] with the message of libtorch; only [`profiler::mark`] panics with
//! it. The C functions of the shim have the prefix `bpx_`, which stands for "backpack extension".
#![allow(unsafe_code)]

mod adamw;
pub mod cuda_kernels;
pub mod cuda_memory;
pub mod distributed;
mod error;
mod mmap;
pub mod nccl;
mod operation_counter;
mod ops;
pub mod profiler;
mod runtime;

pub use adamw::{AdamW, AdamWTensors, UpdateGuard, UpdateStats, clear_grad, clipped_adamw};
pub use error::{Error, panic_text};
pub use mmap::MappedFile;
pub use operation_counter::{OperationCount, count_operations};
pub use ops::{
    LayerOutput, MAX_SENSES, MatmulWeight, add_layer_norm, attention, embedding, linear, linear_cross_entropy, mlp,
    product, share_gradient, weighted_sum_of_senses, weighted_sum_of_senses_on_gpu,
};
pub use runtime::{
    BuildInfo, LoadCudaError, allows_tf32, build_info, cuda_is_installed, exit_now, keep_freed_memory, load_cuda,
    loaded_library, set_cuda_device, set_environment_variables, usable_gpus,
};
