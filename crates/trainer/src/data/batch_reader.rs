//! Which sequences a step takes.

use anyhow::{Result, ensure};
use data_prep::{SequenceOrder, TokenSplit};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The `[batch]` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchConfig {
    /// Tokens of a step over all processes.
    pub tokens_per_step: u64,
    /// Sequences per process and pass.
    pub micro_batch_size: MicroBatch,
}

impl Default for BatchConfig {
    fn default() -> Self {
        // The published run: 1,024 sequences of 512 tokens.
        BatchConfig { tokens_per_step: 524_288, micro_batch_size: MicroBatch::Auto }
    }
}

/// Sequences per process and pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MicroBatch {
    /// On a GPU, for training: the largest that divides the step and fits. Else: the largest
    /// that divides the step and is at most 8,192 tokens long.
    Auto,
    /// This many.
    Sequences(u64),
}

/// Tokens of an automatic micro-batch: the small model's activations for these are about
/// 9 GB in fp32.
pub(crate) const AUTO_TOKENS: u64 = 8_192;

impl Serialize for MicroBatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            MicroBatch::Auto => serializer.serialize_str("auto"),
            MicroBatch::Sequences(n) => serializer.serialize_u64(*n),
        }
    }
}

impl<'de> Deserialize<'de> for MicroBatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(i64),
            Word(String),
        }
        let is = match Either::deserialize(deserializer)? {
            Either::Number(n @ 1..) => return Ok(MicroBatch::Sequences(n as u64)),
            Either::Word(word) if word == "auto" => return Ok(MicroBatch::Auto),
            Either::Number(n) => n.to_string(),
            Either::Word(word) => format!("\"{word}\""),
        };
        Err(serde::de::Error::custom(format!("it is {is}: it must be a whole number of at least 1 or \"auto\"")))
    }
}

/// How a step's sequences are split into passes, derived once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLayout {
    /// Sequences of a step over all processes.
    pub sequences: u64,
    /// Sequences per pass.
    pub micro_batch: u64,
    /// Passes per step.
    pub accumulation: u64,
}

impl BatchConfig {
    /// Derives the accumulation for `world_size` processes.
    ///
    /// # Errors
    /// When something does not divide, with what would.
    pub fn split(&self, sequence_length: u64, world_size: u64) -> Result<BatchLayout> {
        let tokens = self.tokens_per_step;
        ensure!(
            tokens > 0 && tokens.is_multiple_of(sequence_length),
            "batch.tokens_per_step {tokens} is no multiple of data.sequence_length {sequence_length}: use {} or {}",
            (tokens / sequence_length).max(1) * sequence_length,
            ((tokens / sequence_length).max(1) + 1) * sequence_length
        );
        let sequences = tokens / sequence_length;
        ensure!(
            sequences.is_multiple_of(world_size),
            "batch.tokens_per_step {tokens} are {sequences} sequences, which do not divide among {world_size} processes"
        );
        let own = sequences / world_size;
        let micro_batch = match self.micro_batch_size {
            MicroBatch::Sequences(n) => n,
            MicroBatch::Auto => {
                let most = (AUTO_TOKENS / sequence_length).clamp(1, own);
                (1..=most).rev().find(|n| own.is_multiple_of(*n)).unwrap_or(1)
            }
        };
        ensure!(
            micro_batch > 0 && own.is_multiple_of(micro_batch),
            "batch.micro_batch_size {micro_batch} does not divide the {own} sequences of a step and process \
             (batch.tokens_per_step {tokens} / data.sequence_length {sequence_length} / {world_size} processes)"
        );
        Ok(BatchLayout { sequences, micro_batch, accumulation: own / micro_batch })
    }
}

impl BatchLayout {
    /// Numbers of the first sequence of each pass of a rank, for `steps` steps of which the
    /// first begins with the sequence numbered `from`. A step's sequences are divided among
    /// the ranks in runs, by rank.
    pub fn passes(self, from: u64, steps: u64, rank: u64) -> impl Iterator<Item = u64> + Send + 'static {
        let own = from + rank * self.micro_batch * self.accumulation;
        let pass = move |step, i| own + step * self.sequences + i * self.micro_batch;
        (0..steps).flat_map(move |step| (0..self.accumulation).map(move |i| pass(step, i)))
    }
}

/// The training sequences in their order: step k takes those numbered from
/// `sequences` x k, whatever the number of processes and the size of a pass.
#[derive(Debug)]
pub(crate) struct BatchReader {
    split: TokenSplit,
    order: SequenceOrder,
    sequence_length: usize,
}

impl BatchReader {
    /// Over a split that holds at least one sequence.
    pub(crate) fn new(split: TokenSplit, order: SequenceOrder, sequence_length: usize) -> Self {
        BatchReader { split, order, sequence_length }
    }

    /// Tokens T of a sequence.
    pub(crate) fn sequence_length(&self) -> usize {
        self.sequence_length
    }

    /// Sequences numbered `first .. first + count`, each a row of T inputs and the last target.
    ///
    /// # Errors
    /// When a shard holds an id outside the vocabulary.
    pub(crate) fn read(&self, first: u64, count: u64) -> Result<Vec<i64>> {
        let blocks = (first..first + count).map(|sequence| self.order.block(sequence));
        data_prep::read_rows(&self.split, blocks, self.sequence_length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(tokens: u64, micro_batch: MicroBatch, world_size: u64) -> Result<BatchLayout, String> {
        BatchConfig { tokens_per_step: tokens, micro_batch_size: micro_batch }
            .split(512, world_size)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn accumulation_is_derived() {
        let published = |micro, world| split(524_288, micro, world).unwrap();
        assert_eq!(
            published(MicroBatch::Sequences(32), 4),
            BatchLayout { sequences: 1024, micro_batch: 32, accumulation: 8 }
        );
        assert_eq!(published(MicroBatch::Auto, 1), BatchLayout { sequences: 1024, micro_batch: 16, accumulation: 64 });
        assert_eq!(split(512 * 6, MicroBatch::Auto, 1).unwrap().micro_batch, 6);
        assert_eq!(split(512 * 34, MicroBatch::Auto, 1).unwrap().micro_batch, 2);
    }

    #[test]
    fn passes_follow_one_another_across_steps() {
        let split = BatchLayout { sequences: 6, micro_batch: 2, accumulation: 3 };
        assert_eq!(split.passes(12, 2, 0).collect::<Vec<_>>(), [12, 14, 16, 18, 20, 22]);
        assert_eq!(split.passes(12, 0, 0).count(), 0);
    }

    #[test]
    fn the_ranks_of_any_world_take_the_same_sequences() {
        for world in [1, 2, 3, 4, 6] {
            let split =
                BatchConfig { tokens_per_step: 512 * 12, micro_batch_size: MicroBatch::Sequences(1) }.split(512, world);
            let split = split.unwrap();
            let mut taken: Vec<Vec<u64>> = vec![Vec::new(); 3];
            for rank in 0..world {
                for (i, first) in split.passes(24, 3, rank).enumerate() {
                    taken[i / split.accumulation as usize].extend(first..first + split.micro_batch);
                }
            }
            for (step, sequences) in taken.iter_mut().enumerate() {
                sequences.sort_unstable();
                let from = 24 + 12 * step as u64;
                assert_eq!(*sequences, (from..from + 12).collect::<Vec<_>>(), "{world} ranks, step {step}");
            }
        }
    }

    #[test]
    fn what_does_not_divide_is_refused() {
        let error = split(1000, MicroBatch::Auto, 1).unwrap_err();
        assert_eq!(error, "batch.tokens_per_step 1000 is no multiple of data.sequence_length 512: use 512 or 1024");
        assert!(split(0, MicroBatch::Auto, 1).is_err());
        assert!(
            split(512 * 6, MicroBatch::Sequences(4), 1).unwrap_err().contains("micro_batch 4 does not divide the 6")
        );
        assert!(split(512 * 6, MicroBatch::Sequences(0), 1).is_err());
        assert!(split(512 * 6, MicroBatch::Auto, 4).unwrap_err().contains("6 sequences, which do not divide among 4"));
    }
}
