//! The host memory of this process and of the machine, as counted by the kernel.

use anyhow::{Context, Result};

/// Returns the peak resident memory of this process in bytes.
///
/// # Errors
/// `/proc/self/status` cannot be read, or lacks the value.
pub(crate) fn peak_resident_memory() -> Result<u64> {
    read_bytes("/proc/self/status", "VmHWM")
}

/// Returns the memory of this machine in bytes.
///
/// # Errors
/// `/proc/meminfo` cannot be read, or lacks the value.
pub(crate) fn machine_memory() -> Result<u64> {
    read_bytes("/proc/meminfo", "MemTotal")
}

/// Reads a line `KEY: N kB` of a file in `/proc`.
fn read_bytes(path: &str, key: &str) -> Result<u64> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{path} cannot be read"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let kib = value.and_then(|value| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(1_024 * kib.with_context(|| format!("{path} has no {key} in kB"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_in_bytes() {
        let before = peak_resident_memory().unwrap();
        let block = vec![1u8; 64 << 20];
        let after = peak_resident_memory().unwrap();
        assert!(after >= block.len() as u64 && after >= before);
        assert!(machine_memory().unwrap() > after);
    }

    #[test]
    fn a_missing_value_is_an_error() {
        let error = read_bytes("/proc/self/status", "Missing").unwrap_err().to_string();
        assert_eq!(error, "/proc/self/status has no Missing in kB");
    }
}
