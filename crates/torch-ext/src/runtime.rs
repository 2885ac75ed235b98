//! libtorch as a part of this process: its memory, its CUDA half, its description.

use std::ffi::c_char;
use std::io::Write;

use crate::error::{Error, check, take};

unsafe extern "C" {
    fn bpx_keep_freed_memory() -> i32;
    fn bpx_load_cuda() -> *mut c_char;
    fn bpx_describe(text: *mut *mut c_char) -> *mut c_char;
    fn bpx_set_cuda_device(index: i64) -> *mut c_char;
    fn _exit(code: i32) -> !;
}

/// Keeps large freed blocks in the process instead of handing each back to the kernel: a
/// training step frees and takes the same gigabytes over and over, and faulting them in
/// again costs up to a third of it. Raises the resident memory to its peak. Gives whether
/// malloc agreed (glibc does). Call it first, before threads start.
pub fn keep_freed_memory() -> bool {
    // SAFETY: mallopt only changes thresholds of the allocator.
    unsafe { bpx_keep_freed_memory() == 1 }
}

/// Loads libtorch's CUDA libraries into this process, which links only the CPU ones.
///
/// # Errors
/// With the loader's sentence when `libtorch_cuda.so` or something it needs is missing.
pub fn load_cuda() -> Result<(), Error> {
    // SAFETY: dlopen runs library constructors; libtorch's are made to be loaded this way.
    check(unsafe { bpx_load_cuda() })
}

/// Makes a GPU the one that this process uses where nothing else is said. Streams and NCCL
/// go by it: set it before anything touches a GPU.
///
/// # Errors
/// When CUDA is not loaded, or there is no such GPU.
pub fn set_cuda_device(index: usize) -> Result<(), Error> {
    // SAFETY: a number.
    check(unsafe { bpx_set_cuda_device(index as i64) })
}

/// Ends the process at once: no destructors run, so that nothing waits for ranks that are
/// gone. What stdout and stderr still hold is written.
pub fn exit_now(code: i32) -> ! {
    let _ = std::io::stdout().flush();
    // SAFETY: ends the process.
    unsafe { _exit(code) }
}

/// What libtorch says of itself.
#[derive(Debug, Clone)]
pub struct BuildInfo {
    /// libtorch's version, for instance `2.13.0`.
    pub version: String,
    /// The vector instructions its kernels use on this machine.
    pub cpu_capability: String,
    /// The matrix-product library for bf16 and convolutions.
    pub onednn: String,
    /// The BLAS.
    pub mkl: String,
    /// The instruction set of this crate's own kernels.
    pub kernels: String,
}

/// Asks libtorch for its version and what it was built with.
///
/// # Errors
/// When libtorch throws.
pub fn describe() -> Result<BuildInfo, Error> {
    let mut text = std::ptr::null_mut();
    // SAFETY: on success the shim stored a string that is now ours.
    let text = unsafe {
        check(bpx_describe(&mut text))?;
        take(text)
    };
    let mut lines = text.lines().map(|line| line.trim().to_owned());
    let mut next = || lines.next().unwrap_or_default();
    Ok(BuildInfo { version: next(), cpu_capability: next(), onednn: next(), mkl: next(), kernels: next() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_describes_itself() {
        let description = describe().unwrap();
        assert!(description.version.starts_with("2.13.0"));
        assert!(["avx512", "avx2", "baseline"].contains(&description.kernels.as_str()));
    }

    #[test]
    fn loading_cuda_works_or_says_what_is_missing() {
        if let Err(error) = load_cuda() {
            assert!(error.to_string().contains(".so"), "{error}");
        }
    }
}
