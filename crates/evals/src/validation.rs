//! Mean loss over prepared shards: what training validates with and `eval --task val` prints.

use anyhow::Result;
use data_prep::TokenSplit;
use model::{LanguageModel, Pass};
use tch::{Device, Tensor};

/// A mean over sequences of equal length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Validated {
    /// Mean cross-entropy in nats per token.
    pub loss: f64,
    /// Tokens that were predicted.
    pub tokens: u64,
}

/// Blocks of a split as inputs and targets, each `[blocks, T]` int64 on `device`: block i
/// holds tokens i T to i T + T, the targets are the inputs one token on.
///
/// # Errors
/// When a shard holds an id outside the vocabulary.
pub fn read_blocks(
    split: &TokenSplit,
    blocks: &[u64],
    sequence_length: usize,
    device: Device,
) -> Result<(Tensor, Tensor)> {
    let width = sequence_length + 1;
    let mut ids = vec![0i64; blocks.len() * width];
    for (row, block) in ids.chunks_exact_mut(width).zip(blocks) {
        split.read(block * sequence_length as u64, row)?;
    }
    let rows = Tensor::f_from_slice(&ids)?.f_view([blocks.len() as i64, width as i64])?.f_to_device(device)?;
    let length = sequence_length as i64;
    Ok((rows.f_narrow(1, 0, length)?, rows.f_narrow(1, 1, length)?))
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
        let blocks: Vec<u64> = (done..done + count).collect();
        let (ids, targets) = read_blocks(split, &blocks, sequence_length, model.device())?;
        let loss = tch::no_grad(|| model.loss(&ids, &targets, pass))?.f_double_value(&[])?;
        sum += loss * count as f64;
        done += count;
    }
    Ok(Some(Validated { loss: sum / all as f64, tokens: all * sequence_length as u64 }))
}
