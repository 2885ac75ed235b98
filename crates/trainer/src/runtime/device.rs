//! The device on which this process computes.

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use torch_ext::LoadCudaError;

use crate::distributed::local_ranks::LocalRanks;

/// The value of `run.device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// A GPU if one is usable, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU. It is an error if none is usable.
    Cuda,
}

/// Selects the device, and loads CUDA unless `device` is `Cpu`. If several GPUs are visible, the
/// local rank selects one. fp32 products on the selected GPU do not use TF32. Call it before any
/// function of libtorch that queries CUDA, such as `tch::manual_seed`.
///
/// # Errors
/// Returns an error if `device` is `Cuda` and no GPU is usable, if there are fewer GPUs than local
/// ranks, if CUDA is loaded too late, or if the environment allows TF32.
pub fn select_device(device: DeviceKind, local_ranks: LocalRanks) -> Result<tch::Device> {
    if device == DeviceKind::Cpu {
        return Ok(tch::Device::Cpu);
    }
    match (torch_ext::usable_gpus(), device) {
        (Ok(gpus @ 1..), _) => {
            ensure!(
                !torch_ext::allows_tf32()?,
                "cannot use a GPU: libtorch would compute fp32 matrix products in TF32 (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE); unset this variable, and choose bf16 for fast products"
            );
            let gpu = select_gpu(local_ranks, gpus)?;
            torch_ext::distributed::set_cuda_device(gpu)?;
            Ok(tch::Device::Cuda(gpu))
        }
        (Err(error @ LoadCudaError::TooLate), _) => {
            bail!("cannot select a GPU: {error}; report this as a bug, or use the device \"cpu\"")
        }
        (Err(LoadCudaError::Library(error)), DeviceKind::Cuda) => {
            bail!(
                "cannot use the device \"cuda\": CUDA cannot be loaded ({error}); run `scripts/setup.sh --cuda`, or use \"cpu\""
            )
        }
        (Ok(0), DeviceKind::Cuda) => {
            bail!(
                "cannot use the device \"cuda\": CUDA is loaded, but no GPU is usable; check `nvidia-smi`, or use \"cpu\""
            )
        }
        _ => Ok(tch::Device::Cpu),
    }
}

/// Returns the type of a device as text: `cuda` or `cpu`.
pub fn device_type(is_cuda: bool) -> &'static str {
    if is_cuda { "cuda" } else { "cpu" }
}

/// Returns the number of the GPU for this process, among the visible ones.
fn select_gpu(local_ranks: LocalRanks, visible: usize) -> Result<usize> {
    match (local_ranks.count, local_ranks.rank, visible) {
        (1, _, _) => Ok(0),
        (_, Some(rank), visible) if rank < visible => Ok(rank),
        // The launcher makes a different GPU visible to each rank.
        (_, _, 1) => Ok(0),
        (count, rank, visible) => bail!(
            "cannot select a GPU for local rank {} of {count}: {visible} GPUs are visible (CUDA_VISIBLE_DEVICES); start one process per GPU, or make all GPUs of the host visible to all of its processes",
            rank.map_or("?".to_owned(), |rank| rank.to_string())
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_local_rank_selects_a_different_gpu() {
        let gpu = |count, rank, visible| select_gpu(LocalRanks { count, rank }, visible).map_err(|e| e.to_string());
        assert_eq!(gpu(1, Some(0), 8), Ok(0));
        assert_eq!(gpu(4, Some(3), 4), Ok(3));
        // `--gpus-per-task=1`: one GPU is visible to each rank.
        assert_eq!(gpu(4, Some(3), 1), Ok(0));
        let error = gpu(4, Some(3), 2).unwrap_err();
        assert!(error.starts_with("cannot select a GPU for local rank 3 of 4: 2 GPUs are visible"), "{error}");
    }
}
