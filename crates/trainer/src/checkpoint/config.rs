//! The `[checkpoint]` section.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::checkpoint::retention::RetentionPolicy;

/// The `[checkpoint]` section. Defaults: the published run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Steps between checkpoints. 0: only after the last step.
    pub every_steps: u64,
    /// Minutes without a checkpoint after which an extra one is saved. It is deleted once the next
    /// one is complete. 0: never.
    pub every_minutes: u64,
    /// Newest checkpoints kept, at least 1.
    pub keep_last: usize,
    /// Checkpoints with the lowest validation loss kept.
    pub keep_best: usize,
    /// Checkpoints at multiples of this step are never deleted. 0: none.
    pub keep_every: u64,
    /// A model directory with the initial weights of a new run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        CheckpointConfig {
            every_steps: 1_000,
            every_minutes: 30,
            keep_last: 2,
            keep_best: 3,
            keep_every: 50_000,
            init_from: None,
        }
    }
}

impl CheckpointConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// A value is out of range; the message names its key.
    pub(crate) fn validate(&self) -> Result<()> {
        ensure!(
            self.keep_last > 0,
            "checkpoint.keep_last is 0: a run needs its last checkpoint to resume; use at least 1"
        );
        Ok(())
    }

    pub(crate) fn policy(&self) -> RetentionPolicy {
        RetentionPolicy { last: self.keep_last, best: self.keep_best, every: self.keep_every }
    }
}
