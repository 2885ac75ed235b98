//! The `[data]` section of a run's TOML.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::shards::shuffle::DataOrder;

/// Which data a run trains on, and in what order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The folder that `prepare-data` wrote, relative to the working directory.
    pub path: PathBuf,
    /// Tokens of a sequence.
    #[serde(default = "default_sequence_length")]
    pub sequence_length: usize,
    /// Order of the sequences.
    #[serde(default = "default_order")]
    pub order: DataOrder,
}

fn default_sequence_length() -> usize {
    512 // the published run's
}

fn default_order() -> DataOrder {
    DataOrder::Shuffled
}
