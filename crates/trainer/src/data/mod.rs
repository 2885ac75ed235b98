//! The training data: its splits, the division into micro-batches, and reading ahead.

pub(crate) mod batch;
pub(crate) mod batch_reader;
pub(crate) mod prefetch;

use anyhow::Result;
use data_prep::{DataConfig, SequenceOrder, Split, TokenSplit};

/// Both splits and the order of the training sequences.
pub(crate) struct DataSplits {
    pub(crate) train: TokenSplit,
    pub(crate) val: TokenSplit,
    pub(crate) order: SequenceOrder,
    /// Training sequences per epoch.
    pub(crate) sequences_per_epoch: u64,
}

impl DataSplits {
    /// Opens both splits and derives the order of the training sequences from `seed`.
    ///
    /// # Errors
    /// A split is missing, damaged or shorter than a sequence, or it holds ids outside the
    /// vocabulary.
    pub(crate) fn open(config: &DataConfig, vocab_size: usize, seed: u64) -> Result<Self> {
        let length = config.sequence_length;
        let open = |which| -> Result<TokenSplit> {
            let split = TokenSplit::open(&config.path, which, vocab_size)?;
            split.require_sequence(length)?;
            Ok(split)
        };
        let (train, val) = (open(Split::Train)?, open(Split::Val)?);
        let sequences_per_epoch = train.num_sequences(length);
        let order = SequenceOrder::new(config.order, sequences_per_epoch, seed);
        Ok(DataSplits { train, val, order, sequences_per_epoch })
    }
}
