//! The `[data]` section of a run's configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::shards::shuffle::DataOrder;

/// The data that a run trains on, and its order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Directory that `prepare-data` wrote, relative to the working directory.
    pub path: PathBuf,
    /// Tokens per sequence.
    #[serde(default = "default_sequence_length")]
    pub sequence_length: usize,
    /// Order of the sequences.
    #[serde(default = "default_order")]
    pub order: DataOrder,
}

fn default_sequence_length() -> usize {
    512 // as in the published run
}

fn default_order() -> DataOrder {
    DataOrder::Shuffled
}
