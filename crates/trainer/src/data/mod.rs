//! The data of a run, checked.

pub(crate) mod batch_reader;
pub(crate) mod prefetch;

use anyhow::Result;
use data_prep::{SequenceOrder, Split, TokenSplit};

use crate::config::Config;

/// Both splits, and the order of the training sequences.
pub(crate) struct DataSplits {
    pub(crate) train: TokenSplit,
    pub(crate) val: TokenSplit,
    pub(crate) order: SequenceOrder,
}

impl DataSplits {
    /// # Errors
    /// When a split is not there, damaged, too short for a sequence, or has ids that the
    /// model does not know.
    pub(crate) fn open(config: &Config) -> Result<Self> {
        let (path, length) = (&config.data.path, config.data.sequence_length);
        let open = |which| -> Result<TokenSplit> {
            let split = TokenSplit::open(path, which, config.model.vocab_size as usize)?;
            split.require_sequence(length)?;
            Ok(split)
        };
        let (train, val) = (open(Split::Train)?, open(Split::Val)?);
        let order = SequenceOrder::new(config.data.order, train.num_sequences(length), config.run.seed);
        Ok(DataSplits { train, val, order })
    }

    /// Training sequences of an epoch.
    pub(crate) fn sequences(&self, config: &Config) -> u64 {
        self.train.num_sequences(config.data.sequence_length)
    }
}
