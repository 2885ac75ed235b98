//! Mean loss over prepared shards: what training validates with and `eval --task val` prints.

use anyhow::Result;
use data_prep::TokenSplit;
use model::{LanguageModel, Pass};

use crate::rows::{inputs_and_targets, read_rows};

/// A mean over sequences of equal length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Validated {
    /// Mean cross-entropy in nats per token.
    pub loss: f64,
    /// Tokens that were predicted.
    pub tokens: u64,
}

/// Mean loss over the non-overlapping sequences of a split, `batch` at a time; over the
/// first `max_sequences`, or all for 0. `progress(done, all)` hears of each batch and says
/// whether to go on; `None` when it does not.
///
/// # Errors
/// When the split is too short for one sequence, a shard holds a foreign id, or libtorch
/// refuses.
pub fn validate(
    model: &LanguageModel,
    split: &TokenSplit,
    sequence_length: usize,
    batch: u64,
    max_sequences: u64,
    pass: Pass,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Option<Validated>> {
    split.require_sequence(sequence_length)?;
    let present = split.sequences(sequence_length);
    let all = if max_sequences == 0 { present } else { present.min(max_sequences) };
    let (mut sum, mut done) = (0.0, 0);
    while done < all {
        if !progress(done, all) {
            return Ok(None);
        }
        let count = batch.clamp(1, all - done);
        let rows = read_rows(split, done..done + count, sequence_length)?;
        let (ids, targets) = inputs_and_targets(&rows, sequence_length, model.device())?;
        let loss = tch::no_grad(|| model.loss(&ids, &targets, pass))?.f_double_value(&[])?;
        sum += loss * count as f64;
        done += count;
    }
    Ok(Some(Validated { loss: sum / all as f64, tokens: all * sequence_length as u64 }))
}
