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
mod kernel;
mod nvrtc;

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::Device;

use crate::error::{Error, c_string, check};

use kernel::{ErrorFunction, LaunchFunction, LoadedModule, Module};

pub use emulator::Emulation;
pub use kernel::CudaKernel;

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
}
