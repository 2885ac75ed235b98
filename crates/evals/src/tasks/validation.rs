//! Mean loss over prepared shards: what training validates with and `eval --task val` prints.

use anyhow::Result;
use data_prep::{TokenSplit, read_rows};
use model::{ForwardOptions, LanguageModel, inputs_and_targets};

/// Which sequences of a split are this process's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankShard {
    /// This process, from 0.
    pub rank: u64,
    /// Processes that divide the split among them.
    pub of: u64,
}

impl RankShard {
    /// All of it.
    pub const WHOLE: RankShard = RankShard { rank: 0, of: 1 };
}

/// Which sequences are validated on, and how many at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequences {
    /// Tokens of one.
    pub length: usize,
    /// The first so many of the split; 0 for all.
    pub most: u64,
    /// Computed at once.
    pub batch: u64,
    /// This process's.
    pub share: RankShard,
}

/// Losses of sequences of equal length, ready to be added to those of other shares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ValidationResult {
    /// Sum of the sequences' mean cross-entropies, in nats per token.
    pub sum: f64,
    /// How many they were.
    pub sequences: u64,
    /// Tokens that were predicted.
    pub tokens: u64,
}

impl ValidationResult {
    /// Mean cross-entropy in nats per token.
    pub fn loss(&self) -> f64 {
        self.sum / self.sequences as f64
    }
}

/// The losses of this share of a split's non-overlapping sequences. `progress(done, all)` hears of each round, in which
/// every share has its batch, and says whether to go on; `None` when it does not. All shares
/// have as many rounds, so that `progress` may exchange words with the others.
///
/// # Errors
/// When the split is too short for one sequence, a shard holds a foreign id, libtorch
/// refuses, or `progress` fails.
pub fn validate(
    model: &LanguageModel,
    split: &TokenSplit,
    sequences: Sequences,
    pass: ForwardOptions,
    progress: &mut dyn FnMut(u64, u64) -> Result<bool>,
) -> Result<Option<ValidationResult>> {
    let Sequences { length, most, batch, share } = sequences;
    split.require_sequence(length)?;
    let present = split.num_sequences(length);
    let all = if most == 0 { present } else { present.min(most) };
    let batch = batch.max(1);
    let mut validated = ValidationResult { sum: 0.0, sequences: 0, tokens: 0 };
    for round in (0..all).step_by((batch * share.of) as usize) {
        if !progress(round, all)? {
            return Ok(None);
        }
        let first = round + share.rank * batch;
        let count = batch.min(all.saturating_sub(first));
        if count == 0 {
            continue;
        }
        let rows = read_rows(split, first..first + count, length)?;
        let (ids, targets) = inputs_and_targets(&rows, length, model.device())?;
        let loss = tch::no_grad(|| model.loss(&ids, &targets, pass))?.f_double_value(&[])?;
        validated.sum += loss * count as f64;
        validated.sequences += count;
    }
    validated.tokens = validated.sequences * length as u64;
    Ok(Some(validated))
}
