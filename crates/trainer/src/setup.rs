//! Threads and device of this process.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Result, bail, ensure};

use crate::config::Device;

/// Physical cores that this process may run on; hyper-threads count once.
pub fn physical_cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    let siblings =
        |cpu: usize| fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")).ok();
    // Cores differ in which hyper-threads they list.
    let cores: BTreeSet<String> = (0..).map_while(siblings).collect();
    match cores.len() {
        0 => allowed,
        n => n.min(allowed),
    }
}

/// More threads than any machine has cores: libtorch falls over at some tens of thousands.
const MOST_THREADS: usize = 4_096;

/// Sets libtorch's CPU threads; 0 for the physical cores. Gives the number. Before any
/// other work in libtorch.
///
/// # Errors
/// When there are too many.
pub fn set_threads(threads: usize) -> Result<usize> {
    ensure!(
        threads <= MOST_THREADS,
        "{threads} threads are asked for: at most {MOST_THREADS} are possible, and 0 means the physical cores"
    );
    let threads = if threads == 0 { physical_cores() } else { threads };
    tch::set_num_threads(threads as i32);
    Ok(threads)
}

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

#[cfg(test)]
mod tests {
    use super::physical_cores;

    #[test]
    fn there_is_a_core_and_no_more_than_allowed() {
        let cores = physical_cores();
        assert!(cores >= 1 && cores <= std::thread::available_parallelism().unwrap().get());
    }
}
