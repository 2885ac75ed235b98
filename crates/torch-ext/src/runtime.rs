//! Process-wide settings of libtorch: memory, CUDA libraries, and build information.

use std::ffi::c_char;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, check, take_string};

unsafe extern "C" {
    fn bpx_keep_freed_memory() -> i32;
    fn bpx_load_cuda() -> *mut c_char;
    fn bpx_has_cuda_hooks(result: *mut i32) -> *mut c_char;
    fn bpx_build_info(text: *mut *mut c_char) -> *mut c_char;
    fn bpx_set_cuda_device(index: i64) -> *mut c_char;
    fn bpx_allows_tf32(allows: *mut i32) -> *mut c_char;
    fn _exit(code: i32) -> !;
}

/// Keeps large freed blocks in the process instead of returning them to the kernel. A training step
/// frees and allocates the same gigabytes repeatedly, and page faults would take up to a third of
/// its time. The resident memory stays at its peak. Returns whether malloc supports the settings
/// (glibc does). Call it before threads start.
pub fn keep_freed_memory() -> bool {
    // SAFETY: mallopt only changes thresholds of the allocator.
    unsafe { bpx_keep_freed_memory() == 1 }
}

/// Why the CUDA part of libtorch cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadCudaError {
    /// `libtorch_cuda.so` or one of its dependencies is missing.
    Library(Error),
    /// A function of libtorch queried CUDA before CUDA was loaded. `tch::manual_seed` and most
    /// functions of `tch::Cuda` do so. libtorch then has no GPU for the rest of the process.
    TooLate,
}

impl fmt::Display for LoadCudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadCudaError::Library(error) => error.fmt(f),
            LoadCudaError::TooLate => f.write_str(
                "CUDA was loaded too late: the random generator or another function of libtorch had already queried CUDA in this process",
            ),
        }
    }
}

impl std::error::Error for LoadCudaError {}

impl From<LoadCudaError> for Error {
    fn from(error: LoadCudaError) -> Self {
        Error(error.to_string())
    }
}

/// Loads libtorch's CUDA libraries into this process, which links only the CPU ones. Call it before
/// any function of libtorch that queries CUDA.
///
/// # Errors
/// A library is missing, or the call is too late.
pub fn load_cuda() -> Result<(), LoadCudaError> {
    // SAFETY: dlopen runs the constructors of the library. Those of libtorch support this.
    check(unsafe { bpx_load_cuda() }).map_err(LoadCudaError::Library)?;
    require_cuda_hooks()
}

/// Loads CUDA and returns the number of GPUs that this process can use. It is 0 without a driver.
///
/// # Errors
/// CUDA cannot be loaded.
pub fn usable_gpus() -> Result<usize, LoadCudaError> {
    load_cuda()?;
    Ok(gpus_of_loaded_cuda())
}

#[allow(clippy::disallowed_methods)] // CUDA is loaded
fn gpus_of_loaded_cuda() -> usize {
    usize::try_from(tch::Cuda::device_count()).unwrap_or(0)
}

/// Returns an error if libtorch does not use the CUDA libraries.
fn require_cuda_hooks() -> Result<(), LoadCudaError> {
    let mut has_hooks = 0;
    // SAFETY: the shim writes one number.
    check(unsafe { bpx_has_cuda_hooks(&mut has_hooks) }).map_err(LoadCudaError::Library)?;
    if has_hooks == 1 { Ok(()) } else { Err(LoadCudaError::TooLate) }
}

/// Returns whether libtorch's CUDA libraries are in the directory of its CPU libraries. Does not
/// load them.
pub fn cuda_is_installed() -> bool {
    loaded_library("libtorch_cpu.so").is_some_and(|path| path.with_file_name("libtorch_cuda.so").exists())
}

/// Returns the path of a library that is loaded into this process.
pub fn loaded_library(file_name: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mut paths = maps.lines().filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])));
    paths.find(|path| path.file_name().is_some_and(|name| name == file_name)).map(Path::to_owned)
}

/// Makes a GPU the default GPU of this process, which streams and NCCL use. Call it before any use
/// of a GPU.
///
/// # Errors
/// CUDA is not loaded, or the GPU does not exist.
pub fn set_cuda_device(index: usize) -> Result<(), Error> {
    // SAFETY: a number.
    check(unsafe { bpx_set_cuda_device(index as i64) })
}

/// Returns whether libtorch may round the operands of fp32 matrix products on a GPU to TF32, which
/// has 10 bits of mantissa instead of 23. It does so only if the environment variable
/// `TORCH_ALLOW_TF32_CUBLAS_OVERRIDE` is 1. The call needs no GPU.
///
/// # Errors
/// libtorch cannot read its settings.
pub fn allows_tf32() -> Result<bool, Error> {
    let mut allows = 0;
    // SAFETY: stores a number.
    check(unsafe { bpx_allows_tf32(&mut allows) })?;
    Ok(allows != 0)
}

/// Sets environment variables of this process, which libraries in C and C++ read.
///
/// # Errors
/// The process has more than one thread. Another thread could then read the environment at the same
/// time, which C does not permit. No variable is set in this case.
pub fn set_environment_variables<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(), Error> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    if threads != 1 {
        return Err(Error(format!("environment variables cannot be set: the process has {threads} threads, not 1")));
    }
    for (name, value) in variables {
        // SAFETY: this is the only thread.
        unsafe { std::env::set_var(name, value) }
    }
    Ok(())
}

/// Flushes stdout and ends the process at once. No destructors run, because some would wait for
/// ranks that have stopped.
pub fn exit_now(code: i32) -> ! {
    let _ = std::io::stdout().flush();
    // SAFETY: ends the process.
    unsafe { _exit(code) }
}

/// Versions and features of libtorch and of the kernels of this crate.
#[derive(Debug, Clone)]
pub struct BuildInfo {
    /// Version of libtorch, for example `2.13.0`.
    pub version: String,
    /// Vector instructions that the kernels of libtorch use on this machine.
    pub cpu_capability: String,
    /// Version of oneDNN, the library for bf16 matrix products.
    pub onednn: String,
    /// Version of MKL, the BLAS.
    pub mkl: String,
    /// Instruction set of the kernels of this crate: `avx512`, `avx2` or `baseline`.
    pub kernels: String,
}

/// Returns versions and features of libtorch.
pub fn build_info() -> Result<BuildInfo, Error> {
    let mut text = std::ptr::null_mut();
    // SAFETY: on success, the shim has stored a string, which is now ours.
    let text = unsafe {
        check(bpx_build_info(&mut text))?;
        take_string(text)
    };
    let mut lines = text.lines().map(|line| line.trim().to_owned());
    let mut next = || lines.next().unwrap_or_default();
    Ok(BuildInfo { version: next(), cpu_capability: next(), onednn: next(), mkl: next(), kernels: next() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_info_has_version_and_instruction_set() {
        let info = build_info().unwrap();
        assert!(info.version.starts_with("2.13.0"));
        assert!(["avx512", "avx2", "baseline"].contains(&info.kernels.as_str()));
    }

    #[test]
    fn environment_is_not_changed_while_other_threads_run() {
        // Tests run in threads.
        let error = set_environment_variables([("BACKPACK_TEST_VARIABLE", "1")]).unwrap_err().to_string();
        assert!(error.contains("environment variables cannot be set: the process has "), "{error}");
        assert!(std::env::var_os("BACKPACK_TEST_VARIABLE").is_none());
    }

    #[test]
    fn loaded_libraries_are_found_by_name() {
        let libtorch = loaded_library("libtorch_cpu.so").unwrap();
        assert!(libtorch.is_file(), "{}", libtorch.display());
        assert_eq!(loaded_library("libnone.so"), None);
    }

    #[test]
    fn fp32_products_are_not_rounded_to_tf32() {
        assert!(!allows_tf32().unwrap());
    }

    #[test]
    fn cuda_is_loaded_or_the_missing_library_is_named() {
        match load_cuda() {
            Ok(()) => require_cuda_hooks().unwrap(),
            Err(error) => {
                assert!(error.to_string().contains(".so"), "{error}");
                // The state after a function queried CUDA before it was loaded.
                let error = require_cuda_hooks().unwrap_err();
                assert_eq!(error, LoadCudaError::TooLate);
                assert!(error.to_string().starts_with("CUDA was loaded too late: the random generator"));
            }
        }
    }
}
