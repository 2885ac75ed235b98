//! The device of this process.

use anyhow::{Result, bail};

use crate::config::Device;

/// The device to compute on, CUDA loaded where it is to be used.
///
/// # Errors
/// For `device = "cuda"`: what is missing.
pub fn select_device(device: Device) -> Result<tch::Device> {
    if device == Device::Cpu {
        return Ok(tch::Device::Cpu);
    }
    let loaded = torch_ext::load_cuda();
    if loaded.is_ok() && tch::Cuda::is_available() {
        return Ok(tch::Device::Cuda(0));
    }
    match (device, loaded) {
        (Device::Cuda, Err(error)) => {
            bail!(
                "the device \"cuda\" is asked for, but CUDA cannot be loaded ({error}): run `scripts/setup.sh --cuda`, or use \"cpu\""
            )
        }
        (Device::Cuda, Ok(())) => {
            bail!(
                "the device \"cuda\" is asked for, and CUDA is loaded, but no GPU can be used: check `nvidia-smi`, or use \"cpu\""
            )
        }
        _ => Ok(tch::Device::Cpu),
    }
}
