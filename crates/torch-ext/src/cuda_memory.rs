//! The memory of GPUs.

use std::ffi::c_char;

use tch::Device;

use crate::error::{Error, check};

unsafe extern "C" {
    fn bpx_peak_gpu_memory(index: i64, bytes: *mut i64) -> *mut c_char;
    fn bpx_gpu_memory(index: i64, free: *mut i64, total: *mut i64) -> *mut c_char;
}

/// Returns the largest number of bytes that tensors have used on a GPU since the start of the
/// process; `None` for the CPU.
///
/// # Errors
/// Returns an error if CUDA is not loaded.
pub fn peak_device_memory(device: Device) -> Result<Option<u64>, Error> {
    let Device::Cuda(index) = device else { return Ok(None) };
    let mut bytes = 0;
    // SAFETY: the shim writes one number.
    check(unsafe { bpx_peak_gpu_memory(index as i64, &mut bytes) })?;
    Ok(u64::try_from(bytes).ok())
}

/// The size of a GPU's memory, and how much of it is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes that no process uses.
    pub free: u64,
    /// Bytes in total.
    pub total: u64,
}

/// Returns the free and total memory of a GPU; `None` for the CPU.
///
/// # Errors
/// Returns an error if CUDA is not loaded or the GPU does not exist.
pub fn device_memory(device: Device) -> Result<Option<DeviceMemory>, Error> {
    let Device::Cuda(index) = device else { return Ok(None) };
    let (mut free, mut total) = (0, 0);
    // SAFETY: the shim writes two numbers.
    check(unsafe { bpx_gpu_memory(index as i64, &mut free, &mut total) })?;
    Ok(Some(DeviceMemory { free: free as u64, total: total as u64 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_has_no_device_memory() {
        assert_eq!(peak_device_memory(Device::Cpu), Ok(None));
        assert_eq!(device_memory(Device::Cpu), Ok(None));
    }

    #[test]
    fn memory_of_a_missing_gpu_is_an_error() {
        if !tch::Cuda::is_available() {
            peak_device_memory(Device::Cuda(0)).unwrap_err();
            device_memory(Device::Cuda(0)).unwrap_err();
            crate::set_cuda_device(0).unwrap_err();
        }
    }
}
