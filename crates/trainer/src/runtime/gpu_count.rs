//! The number of GPUs of this machine, without loading CUDA, which takes seconds and memory on each
//! GPU.

use std::fs;

/// Directory of the NVIDIA driver with one subdirectory per GPU.
const DRIVER_GPUS: &str = "/proc/driver/nvidia/gpus";

/// Returns the number of GPUs that CUDA can use in this process: those of the machine, or those that
/// `CUDA_VISIBLE_DEVICES` selects. Returns `None` if the driver does not list its GPUs.
pub fn visible_gpus() -> Option<usize> {
    let installed = fs::read_dir(DRIVER_GPUS).ok()?.count();
    let selected = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    Some(selected.map_or(installed, |selected| count_selected(&selected, installed)))
}

/// Counts the entries of `CUDA_VISIBLE_DEVICES`, which are numbers below `installed`, or names like
/// `GPU-8932f937` and `MIG-7d0f2a5e`. CUDA ignores everything from the first invalid entry on.
fn count_selected(selected: &str, installed: usize) -> usize {
    let is_valid = |entry: &&str| {
        let is_number = entry.parse::<usize>().is_ok_and(|number| number < installed);
        is_number || entry.starts_with("GPU-") || entry.starts_with("MIG-")
    };
    selected.split(',').map(str::trim).take_while(is_valid).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_count_up_to_the_first_invalid_one() {
        for (selected, count) in [
            ("", 0),
            ("-1", 0),
            ("NoDevFiles", 0),
            ("0", 1),
            ("3,1", 2),
            (" 0, 2 ", 2),
            ("0,4,1", 1),
            ("0,-1,1", 1),
            ("GPU-8932f937-d72c,GPU-1f2e3d4c", 2),
            ("MIG-7d0f2a5e,MIG-1b2c3d4e,MIG-0a0b0c0d,MIG-11111111,MIG-22222222", 5),
        ] {
            assert_eq!(count_selected(selected, 4), count, "{selected:?}");
        }
    }
}
