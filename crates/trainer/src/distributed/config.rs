//! The `[distributed]` section of the configuration.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// The `[distributed]` section: settings of runs with more than one process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DistributedConfig {
    /// Time limit in seconds for all processes to connect, and for each collective up to the first
    /// step.
    pub init_timeout_seconds: u64,
    /// Time limit in seconds of each collective after the first step.
    pub timeout_seconds: u64,
    /// Network interface of Gloo. If it is empty, Gloo uses the interface that leads to rank 0.
    pub interface: String,
    /// Size in MiB of the groups in which gradients are reduced.
    pub bucket_mb: u64,
    /// Reduces gradients during the backward pass instead of after it.
    pub overlap: bool,
}

impl Default for DistributedConfig {
    fn default() -> Self {
        DistributedConfig {
            init_timeout_seconds: 900, // nodes of a cluster start minutes apart
            timeout_seconds: 600,      // longer than the slowest micro-batch or validation batch of another rank
            interface: String::new(),
            bucket_mb: 25, // the default of PyTorch's DistributedDataParallel
            overlap: true,
        }
    }
}

impl DistributedConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// Names the key whose value is 0.
    pub(crate) fn validate(&self) -> Result<()> {
        for (key, value) in [
            ("init_timeout_seconds", self.init_timeout_seconds),
            ("timeout_seconds", self.timeout_seconds),
            ("bucket_mb", self.bucket_mb),
        ] {
            ensure!(value > 0, "distributed.{key} is 0: it must be at least 1");
        }
        Ok(())
    }

    /// Returns `bucket_mb` in bytes.
    pub(crate) fn bucket_bytes(&self) -> usize {
        (self.bucket_mb as usize) << 20
    }
}
