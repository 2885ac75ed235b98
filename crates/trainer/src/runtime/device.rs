//! The device of this process.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::distributed::local_ranks::LocalRanks;

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// A GPU where one can be used, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU; an error where none can be used.
    Cuda,
}

/// The device to compute on, CUDA loaded where it is to be used: of several GPUs, the one of
/// this `local` rank.
///
/// # Errors
/// For `device = "cuda"`: what is missing. For fewer GPUs than ranks on this host.
pub fn select_device(device: DeviceKind, local: LocalRanks) -> Result<tch::Device> {
    if device == DeviceKind::Cpu {
        return Ok(tch::Device::Cpu);
    }
    let loaded = torch_ext::load_cuda();
    if loaded.is_ok() && tch::Cuda::is_available() {
        let gpu = gpu_of(local, tch::Cuda::device_count().max(0) as usize)?;
        torch_ext::distributed::set_cuda_device(gpu)?;
        return Ok(tch::Device::Cuda(gpu));
    }
    match (device, loaded) {
        (DeviceKind::Cuda, Err(error)) => {
            bail!(
                "the device \"cuda\" is asked for, but CUDA cannot be loaded ({error}): run `scripts/setup.sh --cuda`, or use \"cpu\""
            )
        }
        (DeviceKind::Cuda, Ok(())) => {
            bail!(
                "the device \"cuda\" is asked for, and CUDA is loaded, but no GPU can be used: check `nvidia-smi`, or use \"cpu\""
            )
        }
        _ => Ok(tch::Device::Cpu),
    }
}

/// Which of the visible GPUs is this rank's.
fn gpu_of(local: LocalRanks, visible: usize) -> Result<usize> {
    match (local.count, local.rank, visible) {
        (1, _, _) => Ok(0),
        (_, Some(rank), visible) if rank < visible => Ok(rank),
        // A launcher that shows each rank its own GPU alone.
        (_, _, 1) => Ok(0),
        (count, rank, visible) => bail!(
            "this is local rank {} of {count}, but {visible} GPUs are visible here (CUDA_VISIBLE_DEVICES): start one process a GPU, or let all of a host's processes see all its GPUs",
            rank.map_or("?".to_owned(), |rank| rank.to_string())
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rank_has_a_gpu_of_its_own() {
        let gpu = |count, rank, visible| gpu_of(LocalRanks { count, rank }, visible).map_err(|e| e.to_string());
        assert_eq!(gpu(1, Some(0), 8), Ok(0));
        assert_eq!(gpu(4, Some(3), 4), Ok(3));
        // `--gpus-per-task=1`: every rank sees one.
        assert_eq!(gpu(4, Some(3), 1), Ok(0));
        let error = gpu(4, Some(3), 2).unwrap_err();
        assert!(error.starts_with("this is local rank 3 of 4, but 2 GPUs are visible"), "{error}");
    }
}
