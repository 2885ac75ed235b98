//! Reading of training sequences in their order.

use anyhow::Result;
use data_prep::{SequenceOrder, TokenSplit};

/// The training sequences in their order. Step k takes the sequences from number k x N on, with N
/// sequences per step, for any world size and micro-batch size.
#[derive(Debug)]
pub(crate) struct BatchReader {
    split: TokenSplit,
    order: SequenceOrder,
    sequence_length: usize,
}

impl BatchReader {
    /// Returns a reader of a split that holds at least one sequence.
    pub(crate) fn new(split: TokenSplit, order: SequenceOrder, sequence_length: usize) -> Self {
        BatchReader { split, order, sequence_length }
    }

    /// Returns the tokens T per sequence.
    pub(crate) fn sequence_length(&self) -> usize {
        self.sequence_length
    }

    /// Returns the sequences `first .. first + count`, each as a row of T inputs and the last
    /// target.
    ///
    /// # Errors
    /// A shard holds an id outside the vocabulary.
    pub(crate) fn read(&self, first: u64, count: u64) -> Result<Vec<i64>> {
        let blocks = (first..first + count).map(|sequence| self.order.block(sequence));
        data_prep::read_rows(&self.split, blocks, self.sequence_length)
    }
}
