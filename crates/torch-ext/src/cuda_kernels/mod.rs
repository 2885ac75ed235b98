//! The CUDA kernels of the `cuda` directory: compiled at run time for the GPU at hand, with shapes
//! as constants, and registered for the fused operations.
//!
//! The operations of [`crate::mlp`] and its neighbors launch these kernels for tensors on a GPU. A
//! caller first asks [`is_available`], which compiles and loads the kernel on first use. Without
//! the compiler (NVRTC) or for a shape that a kernel does not cover, the caller uses operations of
//! libtorch, and [`problems`] returns the reason.
//!
//! The kernels are global state of the process, as the GPU and the libraries of CUDA are.

mod cache;
mod driver;
mod emulator;
mod nvrtc;

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::Device;

use crate::error::{Error, c_string, check};

pub use emulator::Emulation;

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
struct Module {
    /// Name of the source file.
    file: &'static str,
    /// Macros that the source needs.
    macros: Vec<(&'static str, i64)>,
    /// The kernels of the source.
    functions: &'static [&'static str],
    /// Threads per block of these kernels.
    threads: i64,
}

/// The largest shapes that the kernels cover: a row, or its share per thread, is kept in registers.
const MAX_VOCAB_SIZE: i64 = 131_072;
const MAX_WIDTH: i64 = 4_096;
const MAX_SENSES: i64 = 64;
const MAX_LENGTH: i64 = 2_048;

impl CudaKernel {
    /// The module of this kernel. Shapes share one if the kernel receives their difference as a
    /// parameter.
    fn module(self) -> Result<Module, Error> {
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
    fn shape(self) -> Vec<i64> {
        match self {
            CudaKernel::CrossEntropy { vocab_size } => vec![vocab_size],
            CudaKernel::AddLayerNorm { width } => vec![width],
            CudaKernel::BiasGelu => vec![],
            CudaKernel::SenseWeights { num_senses, length } => vec![num_senses, length],
        }
    }
}

impl Module {
    /// The source, and the header that it includes.
    fn source(&self) -> &'static str {
        match self.file {
            "cross_entropy.cu" => include_str!("../../cuda/cross_entropy.cu"),
            "layer_norm.cu" => include_str!("../../cuda/layer_norm.cu"),
            "gelu.cu" => include_str!("../../cuda/gelu.cu"),
            "sense_weights.cu" => include_str!("../../cuda/sense_weights.cu"),
            file => unreachable!("no module has the source {file}"),
        }
    }

    /// The macros as arguments of a compiler.
    fn definitions(&self) -> impl Iterator<Item = String> {
        self.macros.iter().map(|(name, value)| format!("-D{name}={value}"))
    }
}

/// The header that all sources include.
const COMMON_HEADER: &str = include_str!("../../cuda/common.cuh");
const COMMON_HEADER_NAME: &str = "common.cuh";

/// The signature of cuLaunchKernel.
type LaunchFunction = unsafe extern "C" fn(
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
type ErrorFunction = unsafe extern "C" fn() -> *const c_char;

/// The loaded functions of a module, in the order of [`Module::functions`]. They are never
/// unloaded.
#[derive(Debug, Clone)]
struct LoadedModule {
    functions: Vec<usize>,
    launch: LaunchFunction,
    error: ErrorFunction,
}

unsafe extern "C" {
    fn bpx_register_cuda_kernel(
        name: *const c_char,
        shape: *const i64,
        dimensions: usize,
        device: c_int,
        function: *mut c_void,
        threads: c_uint,
        launch: LaunchFunction,
        error: ErrorFunction,
    ) -> *mut c_char;
}

/// What has been loaded, or the reason why it cannot be.
#[derive(Debug, Default)]
struct Loaded {
    modules: BTreeMap<(Module, c_int), LoadedModule>,
    kernels: BTreeMap<(CudaKernel, c_int), Result<(), Error>>,
}

static LOADED: Mutex<Loaded> = Mutex::new(Loaded { modules: BTreeMap::new(), kernels: BTreeMap::new() });

fn loaded() -> MutexGuard<'static, Loaded> {
    // A panic leaves the maps complete, because each insertion is one call.
    LOADED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns whether the fused operations can use a kernel on a device. On first use, compiles the
/// kernel (about a second, or nothing if the user's cache has it) and loads it. The first failure
/// is final: later calls return false at once.
pub fn is_available(kernel: CudaKernel, device: Device) -> bool {
    let index = match device {
        Device::Cuda(index) => index as c_int,
        _ if emulator::is_on() => emulator::DEVICE,
        _ => return false,
    };
    let mut loaded = loaded();
    if let Some(result) = loaded.kernels.get(&(kernel, index)) {
        return result.is_ok();
    }
    let result = load(&mut loaded.modules, kernel, index);
    let is_ok = result.is_ok();
    loaded.kernels.insert((kernel, index), result);
    is_ok
}

/// The kernels that could not be used so far, each with the reason.
pub fn problems() -> Vec<(CudaKernel, Error)> {
    let loaded = loaded();
    loaded.kernels.iter().filter_map(|((kernel, _), result)| Some((*kernel, result.clone().err()?))).collect()
}

/// Returns the version of the compiler of the kernels, for example `13.0`. Call it after CUDA is
/// loaded, because it is searched for in the directories of CUDA.
///
/// # Errors
/// The compiler is missing.
pub fn compiler_version() -> Result<String, Error> {
    Ok(nvrtc::Nvrtc::load(&driver::nvrtc_directories())?.version().to_owned())
}

/// Whether the fused operations run the CUDA kernels on the CPU, which tests turn on.
pub fn is_emulated() -> bool {
    emulator::is_on()
}

fn load(modules: &mut BTreeMap<(Module, c_int), LoadedModule>, kernel: CudaKernel, device: c_int) -> Result<(), Error> {
    let module = kernel.module()?;
    let key = (module, device);
    if !modules.contains_key(&key) {
        let loaded = if device == emulator::DEVICE { emulator::load(&key.0)? } else { driver::load(&key.0, device)? };
        modules.insert(key.clone(), loaded);
    }
    let (module, LoadedModule { functions, launch, error }) = (&key.0, &modules[&key]);
    let shape = kernel.shape();
    for (name, function) in module.functions.iter().zip(functions) {
        let name = c_string(name)?;
        // SAFETY: the name and the shape outlive the call, which copies them. The function is a
        // loaded kernel that is never unloaded.
        check(unsafe {
            bpx_register_cuda_kernel(
                name.as_ptr(),
                shape.as_ptr(),
                shape.len(),
                device,
                *function as *mut c_void,
                module.threads as c_uint,
                *launch,
                *error,
            )
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_no_kernel_is_available() {
        assert!(!is_available(CudaKernel::BiasGelu, Device::Cpu));
        if crate::usable_gpus().unwrap_or(0) == 0 {
            assert!(!is_available(CudaKernel::BiasGelu, Device::Cuda(0)));
            let problems = problems();
            let (_, reason) = problems.iter().find(|(kernel, _)| *kernel == CudaKernel::BiasGelu).unwrap();
            assert!(reason.to_string().contains(".so"), "{reason}");
        }
    }

    #[test]
    fn shapes_outside_the_limits_are_named() {
        let error = |kernel: CudaKernel| kernel.module().unwrap_err().to_string();
        assert_eq!(
            error(CudaKernel::CrossEntropy { vocab_size: 200_000 }),
            "the vocabulary size 200000 is not in 1..=131072"
        );
        assert_eq!(error(CudaKernel::AddLayerNorm { width: 8_192 }), "the width 8192 is not in 1..=4096");
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
