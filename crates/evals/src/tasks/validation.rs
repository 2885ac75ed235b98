//! Mean loss over the sequences of a validation split, for `train` and `eval --task val`.

use anyhow::Result;
use data_prep::{TokenSplit, read_rows};
use model::{ForwardOptions, HostBatch, LanguageModel};
use tch::{Kind, Tensor};

/// The share of a validation split that one rank computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankShard {
    /// The rank of this process, from 0.
    pub rank: u64,
    /// The number of ranks that share the split.
    pub world_size: u64,
}

impl RankShard {
    /// The whole split, for a single process.
    pub const WHOLE: RankShard = RankShard { rank: 0, world_size: 1 };
}

/// Which sequences of a split [`validate`] computes, and how many at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValidationOptions {
    /// Tokens per sequence.
    pub sequence_length: usize,
    /// The maximum number of sequences, taken from the start of the split; 0 means all.
    pub max_sequences: u64,
    /// Sequences per forward pass.
    pub batch_size: u64,
    /// The share of this process.
    pub shard: RankShard,
}

/// The summed losses of sequences of equal length. Sums of several ranks can be added.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ValidationResult {
    /// The sum of the sequences' mean cross-entropies, in nats per token.
    pub sum: f64,
    /// The number of sequences.
    pub sequences: u64,
    /// The number of predicted tokens.
    pub tokens: u64,
}

impl ValidationResult {
    /// Returns the mean cross-entropy in nats per token.
    pub fn loss(&self) -> f64 {
        self.sum / self.sequences as f64
    }
}

/// Computes the losses of this rank's share of a split's non-overlapping sequences.
///
/// The sequences are processed in rounds, in which every rank computes one batch. Before each
/// round, `progress(done, all)` is called; if it returns false, validation stops and the result is
/// `None`. All ranks have the same number of rounds, so `progress` may use collectives. The losses
/// are summed on the device of the model, so the host waits for a GPU only after the last batch.
///
/// # Errors
/// The split is too short for one sequence, a shard contains an id outside the vocabulary, or
/// `progress` fails.
pub fn validate(
    model: &LanguageModel,
    split: &TokenSplit,
    options: ValidationOptions,
    forward: ForwardOptions,
    progress: &mut dyn FnMut(u64, u64) -> Result<bool>,
) -> Result<Option<ValidationResult>> {
    let ValidationOptions { sequence_length, max_sequences, batch_size, shard } = options;
    split.require_sequence(sequence_length)?;
    let present = split.num_sequences(sequence_length);
    let all = if max_sequences == 0 { present } else { present.min(max_sequences) };
    let batch_size = batch_size.max(1);
    let mut sum = Tensor::f_zeros([0; 0], (Kind::Double, model.device()))?;
    let mut sequences = 0;
    let shares_senses = model.shares_senses(forward);
    for round in (0..all).step_by((batch_size * shard.world_size) as usize) {
        if !progress(round, all)? {
            return Ok(None);
        }
        let first = round + shard.rank * batch_size;
        let count = batch_size.min(all.saturating_sub(first));
        if count == 0 {
            continue;
        }
        let rows = read_rows(split, first..first + count, sequence_length)?;
        let (ids, targets) = HostBatch::new(rows, sequence_length, shares_senses).to_device(model.device())?;
        let loss = tch::no_grad(|| model.loss(ids, &targets, forward))?;
        sum = sum.f_add(&loss.f_to_kind(Kind::Double)?.f_mul_scalar(count as f64)?)?;
        sequences += count;
    }
    let tokens = sequences * sequence_length as u64;
    Ok(Some(ValidationResult { sum: sum.f_double_value(&[])?, sequences, tokens }))
}
