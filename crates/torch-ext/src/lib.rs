//! What tch lacks, behind a small C++ shim over the same libtorch.
//!
//! The only crate with `unsafe` code that touches tensors. Every function gives an `Err`
//! with libtorch's own sentence instead of a C++ exception.
#![allow(unsafe_code)]

mod adamw;
pub mod distributed;
mod error;
mod mmap;
pub mod nccl;
mod ops;
pub mod profiler;
mod runtime;

pub use adamw::{AdamW, AdamWTensors, UpdateGuard, UpdateStats, clipped_adamw, forget_grad};
pub use error::{Error, first_line, panic_text};
pub use mmap::MappedFile;
pub use ops::{
    MOST_SENSES, ProductWeight, ResidualBranch, add_layer_norm, attention, embedding, linear, linear_cross_entropy,
    mix_senses, mlp, product, tie,
};
pub use runtime::{BuildInfo, describe, exit_now, keep_freed_memory, load_cuda, set_cuda_device};
