//! The memory of GPUs, and copies between it and the host.

use std::ffi::c_char;

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use crate::error::{Error, check, handle};

unsafe extern "C" {
    fn bpx_peak_gpu_memory(index: i64, bytes: *mut i64) -> *mut c_char;
    fn bpx_gpu_memory(index: i64, free: *mut i64, total: *mut i64) -> *mut c_char;
    fn bpx_empty_gpu_cache() -> *mut c_char;
    fn bpx_copy_without_waiting(target: *mut C_tensor, source: *mut C_tensor) -> *mut c_char;
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

/// Returns the blocks that libtorch holds but does not use to the driver, so that later allocations
/// can use them in another size. Does nothing for the CPU.
///
/// # Errors
/// Returns an error if CUDA is not loaded.
pub fn empty_cache(device: Device) -> Result<(), Error> {
    if device == Device::Cpu {
        return Ok(());
    }
    // SAFETY: no arguments.
    check(unsafe { bpx_empty_gpu_cache() })
}

/// Returns a copy of a CPU tensor in page-locked memory. Copies between such memory and the GPU
/// `device` run at the full rate of the connection and concurrently with the GPU's work.
///
/// # Errors
/// CUDA is not loaded, or no memory can be locked.
pub fn page_locked(tensor: &Tensor, device: Device) -> Result<Tensor, Error> {
    // The inner operator is called because `pin_memory` warns whenever it is given a device, and tch
    // always gives one.
    Ok(tensor.f_internal_pin_memory(device)?)
}

/// Copies `source` to `target`, which has the same shape. If the source is on a GPU and the target
/// in page-locked host memory, the copy is complete only after [`crate::profiler::synchronize`].
///
/// # Errors
/// The shapes differ.
pub fn copy_without_waiting(target: &Tensor, source: &Tensor) -> Result<(), Error> {
    // SAFETY: two live tensors.
    check(unsafe { bpx_copy_without_waiting(handle(target), handle(source)) })
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn a_copy_on_the_cpu_is_complete_at_once() {
        let target = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        let source = Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3]);
        copy_without_waiting(&target, &source).unwrap();
        assert_eq!(target, source);
        copy_without_waiting(&target, &source.view([6]).narrow(0, 0, 5)).unwrap_err();
    }

    #[test]
    fn a_cpu_has_no_device_memory() {
        assert_eq!(peak_device_memory(Device::Cpu), Ok(None));
        assert_eq!(device_memory(Device::Cpu), Ok(None));
        assert_eq!(empty_cache(Device::Cpu), Ok(()));
    }

    #[test]
    fn memory_of_a_missing_gpu_is_an_error() {
        if crate::usable_gpus().unwrap_or(0) == 0 {
            peak_device_memory(Device::Cuda(0)).unwrap_err();
            device_memory(Device::Cuda(0)).unwrap_err();
            crate::set_cuda_device(0).unwrap_err();
        }
        // With the libraries of CUDA, an empty cache is not an error.
        assert_eq!(empty_cache(Device::Cuda(0)).is_ok(), crate::load_cuda().is_ok());
    }
}
