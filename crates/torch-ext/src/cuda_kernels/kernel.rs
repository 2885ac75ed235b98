//! The kernels, their sources, and what is known about a loaded one.

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::error::Error;

/// A CUDA kernel with its gradient, for one shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CudaKernel {
    /// Cross-entropy of bf16 logits, which their gradient replaces.
    CrossEntropy {
        /// Number of logits per row.
        vocab_size: i64,
    },
    /// Residual sum with bias and dropout, and its LayerNorm.
    AddLayerNorm {
        /// Length of a row.
        width: i64,
    },
    /// GELU of a sum with a bias.
    BiasGelu,
    /// Causal softmax of the scores of the senses.
    SenseWeights {
        /// Number of senses per token.
        num_senses: i64,
        /// Number of positions of a sequence.
        length: i64,
    },
}

/// A source compiled for one shape.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Module {
    /// Name of the source file.
    pub(super) file: &'static str,
    /// Macros that the source needs.
    macros: Vec<(&'static str, i64)>,
    /// The kernels of the source.
    pub(super) functions: &'static [&'static str],
    /// Threads per block of these kernels.
    pub(super) threads: i64,
}

/// The largest shapes that the kernels cover: a row, or its share per thread, is kept in registers.
const MAX_VOCAB_SIZE: i64 = 131_072;
const MAX_WIDTH: i64 = 3_072;
const MAX_SENSES: i64 = 64;
const MAX_LENGTH: i64 = 2_048;

impl CudaKernel {
    /// The module of this kernel. Shapes share one if the kernel receives their difference as a
    /// parameter.
    pub(super) fn module(self) -> Result<Module, Error> {
        let within = |what: &str, value: i64, max: i64| {
            let is_covered = (1..=max).contains(&value);
            is_covered.then_some(()).ok_or_else(|| Error(format!("{what} {value} is not in 1..={max}")))
        };
        match self {
            CudaKernel::CrossEntropy { vocab_size } => {
                within("the vocabulary size", vocab_size, MAX_VOCAB_SIZE)?;
                // Two blocks fit on a multiprocessor.
                const THREADS: i64 = 512;
                let macros = vec![("VOCAB_SIZE", vocab_size), ("THREADS", THREADS)];
                Ok(Module { file: "cross_entropy.cu", macros, functions: &["cross_entropy"], threads: THREADS })
            }
            CudaKernel::AddLayerNorm { width } => {
                within("the width", width, MAX_WIDTH)?;
                const WARPS: i64 = 4;
                let macros = vec![("WIDTH", width), ("WARPS", WARPS)];
                let functions = &["add_layer_norm", "add_layer_norm_backward"];
                Ok(Module { file: "layer_norm.cu", macros, functions, threads: 32 * WARPS })
            }
            CudaKernel::BiasGelu => {
                const THREADS: i64 = 128;
                let functions = &["bias_gelu", "bias_gelu_backward"];
                Ok(Module { file: "gelu.cu", macros: vec![("THREADS", THREADS)], functions, threads: THREADS })
            }
            CudaKernel::SenseWeights { num_senses, length } => {
                within("the number of senses", num_senses, MAX_SENSES)?;
                within("the number of positions", length, MAX_LENGTH)?;
                let max_length = (length as u64).next_power_of_two().max(64) as i64;
                let warps = num_senses.min(8);
                let macros = vec![("NUM_SENSES", num_senses), ("MAX_LENGTH", max_length), ("WARPS", warps)];
                let functions = &["sense_weights", "sense_weights_backward"];
                Ok(Module { file: "sense_weights.cu", macros, functions, threads: 32 * warps })
            }
        }
    }

    /// A name for messages.
    pub fn name(self) -> &'static str {
        match self {
            CudaKernel::CrossEntropy { .. } => "cross-entropy",
            CudaKernel::AddLayerNorm { .. } => "LayerNorm",
            CudaKernel::BiasGelu => "GELU",
            CudaKernel::SenseWeights { .. } => "sense weights",
        }
    }

    /// The shape under which the fused operations find the kernel.
    pub(super) fn shape(self) -> Vec<i64> {
        match self {
            CudaKernel::CrossEntropy { vocab_size } => vec![vocab_size],
            CudaKernel::AddLayerNorm { width } => vec![width],
            CudaKernel::BiasGelu => vec![],
            CudaKernel::SenseWeights { num_senses, length } => vec![num_senses, length],
        }
    }
}

impl Module {
    /// The text of the source file.
    pub(super) fn source(&self) -> &'static str {
        match self.file {
            "cross_entropy.cu" => include_str!("../../cuda/cross_entropy.cu"),
            "layer_norm.cu" => include_str!("../../cuda/layer_norm.cu"),
            "gelu.cu" => include_str!("../../cuda/gelu.cu"),
            "sense_weights.cu" => include_str!("../../cuda/sense_weights.cu"),
            file => unreachable!("no module has the source {file}"),
        }
    }

    /// The macros as arguments of a compiler.
    pub(super) fn definitions(&self) -> impl Iterator<Item = String> {
        self.macros.iter().map(|(name, value)| format!("-D{name}={value}"))
    }
}

/// The header that all sources include.
pub(super) const COMMON_HEADER: &str = include_str!("../../cuda/common.cuh");
pub(super) const COMMON_HEADER_NAME: &str = "common.cuh";

/// The signature of cuLaunchKernel.
pub(super) type LaunchFunction = unsafe extern "C" fn(
    function: *mut c_void,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared_bytes: c_uint,
    stream: *mut c_void,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> c_int;
/// Returns a description of the last failed launch, or null.
pub(super) type ErrorFunction = unsafe extern "C" fn() -> *const c_char;

/// The loaded functions of a module, in the order of [`Module::functions`]. They are never
/// unloaded.
#[derive(Debug, Clone)]
pub(super) struct LoadedModule {
    pub(super) functions: Vec<usize>,
    pub(super) launch: LaunchFunction,
    pub(super) error: ErrorFunction,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_outside_the_limits_are_named() {
        let error = |kernel: CudaKernel| kernel.module().unwrap_err().to_string();
        assert_eq!(
            error(CudaKernel::CrossEntropy { vocab_size: 200_000 }),
            "the vocabulary size 200000 is not in 1..=131072"
        );
        assert_eq!(error(CudaKernel::AddLayerNorm { width: 8_192 }), "the width 8192 is not in 1..=3072");
        assert_eq!(
            error(CudaKernel::SenseWeights { num_senses: 65, length: 1 }),
            "the number of senses 65 is not in 1..=64"
        );
        assert_eq!(
            error(CudaKernel::SenseWeights { num_senses: 16, length: 4_096 }),
            "the number of positions 4096 is not in 1..=2048"
        );
    }

    #[test]
    fn lengths_up_to_a_power_of_two_share_a_module() {
        let module = |length| CudaKernel::SenseWeights { num_senses: 16, length }.module().unwrap();
        assert_eq!(module(300), module(512));
        assert_eq!(module(1), module(64));
        assert_ne!(module(512), module(513));
    }
}
