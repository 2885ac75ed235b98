//! The `[distributed]` section of the configuration.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// The `[distributed]` section: runs of more than one process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DistributedConfig {
    /// Seconds to wait for all processes at the start, and for what they do before the first step.
    pub init_timeout_seconds: u64,
    /// Seconds that an exchange between the processes may take from then on.
    pub timeout_seconds: u64,
    /// The network interface that Gloo uses; empty for the one that leads to rank 0.
    pub interface: String,
    /// Gradients that are reduced together, in MiB.
    pub bucket_mb: u64,
    /// Reduce gradients while the backward pass goes on, not after it.
    pub overlap: bool,
}

impl Default for DistributedConfig {
    fn default() -> Self {
        DistributedConfig {
            init_timeout_seconds: 900, // nodes of a cluster start minutes apart
            timeout_seconds: 600,      // the slowest pass or validation batch of another rank
            interface: String::new(),
            bucket_mb: 25, // DistributedDataParallel's
            overlap: true,
        }
    }
}

impl DistributedConfig {
    /// Refuses values that cannot be meant.
    ///
    /// # Errors
    /// Naming the key.
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

    /// [`DistributedConfig::bucket_mb`] in bytes.
    pub(crate) fn bucket_bytes(&self) -> usize {
        (self.bucket_mb as usize) << 20
    }
}
