//! The `[batch]` section, and how a step's sequences are divided into micro-batches.

use anyhow::{Result, ensure};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The `[batch]` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchConfig {
    /// Tokens per step over all ranks.
    pub tokens_per_step: u64,
    /// Sequences per rank and micro-batch.
    pub micro_batch_size: MicroBatchSize,
}

impl Default for BatchConfig {
    fn default() -> Self {
        // The published run: 1,024 sequences of 512 tokens.
        BatchConfig { tokens_per_step: 524_288, micro_batch_size: MicroBatchSize::Auto }
    }
}

/// The size of a micro-batch in sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MicroBatchSize {
    /// When training on a GPU: the largest divisor of the rank's sequences of a step that fits into
    /// its memory and has at most 65,536 tokens. Otherwise: the largest divisor of at most 8,192
    /// tokens.
    Auto,
    /// A fixed number of sequences.
    Sequences(u64),
}

/// Maximum tokens of an automatic micro-batch that is not searched for. A step of the small model in
/// fp32 then takes about 9.6 GB.
pub(crate) const MAX_AUTO_TOKENS: u64 = 8_192;

impl Serialize for MicroBatchSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            MicroBatchSize::Auto => serializer.serialize_str("auto"),
            MicroBatchSize::Sequences(n) => serializer.serialize_u64(*n),
        }
    }
}

impl<'de> Deserialize<'de> for MicroBatchSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum RawMicroBatchSize {
            Number(i64),
            Text(String),
        }
        let found = match RawMicroBatchSize::deserialize(deserializer)? {
            RawMicroBatchSize::Number(n @ 1..) => return Ok(MicroBatchSize::Sequences(n as u64)),
            RawMicroBatchSize::Text(text) if text == "auto" => return Ok(MicroBatchSize::Auto),
            RawMicroBatchSize::Number(n) => n.to_string(),
            RawMicroBatchSize::Text(text) => format!("\"{text}\""),
        };
        Err(serde::de::Error::custom(format!("it is {found}: it must be a whole number of at least 1 or \"auto\"")))
    }
}

/// The division of a step's sequences among ranks and micro-batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchLayout {
    /// Sequences per step over all ranks.
    pub sequences: u64,
    /// Sequences per micro-batch.
    pub micro_batch: u64,
    /// Micro-batches per step and rank.
    pub accumulation: u64,
}

impl BatchConfig {
    /// Returns how a step of sequences of this length is divided among `world_size` ranks.
    ///
    /// # Errors
    /// A size does not divide the next larger one; the message gives sizes that do.
    pub(crate) fn layout(&self, sequence_length: u64, world_size: u64) -> Result<BatchLayout> {
        let tokens = self.tokens_per_step;
        ensure!(
            tokens > 0 && tokens.is_multiple_of(sequence_length),
            "batch.tokens_per_step {tokens} is not a multiple of data.sequence_length {sequence_length}: use {} or {}",
            (tokens / sequence_length).max(1) * sequence_length,
            ((tokens / sequence_length).max(1) + 1) * sequence_length
        );
        let sequences = tokens / sequence_length;
        ensure!(
            sequences.is_multiple_of(world_size),
            "batch.tokens_per_step {tokens} are {sequences} sequences, which do not divide among {world_size} ranks"
        );
        let per_rank = sequences / world_size;
        let micro_batch = match self.micro_batch_size {
            MicroBatchSize::Sequences(n) => n,
            MicroBatchSize::Auto => {
                let max = (MAX_AUTO_TOKENS / sequence_length).clamp(1, per_rank);
                (1..=max).rev().find(|n| per_rank.is_multiple_of(*n)).unwrap_or(1)
            }
        };
        ensure!(
            micro_batch > 0 && per_rank.is_multiple_of(micro_batch),
            "batch.micro_batch_size {micro_batch} does not divide the {per_rank} sequences per step and rank \
             (batch.tokens_per_step {tokens} / data.sequence_length {sequence_length} / {world_size} ranks)"
        );
        Ok(BatchLayout { sequences, micro_batch, accumulation: per_rank / micro_batch })
    }
}

impl BatchLayout {
    /// Returns the number of the first sequence of each micro-batch of a rank, over `steps` steps
    /// from the one whose first sequence is `first_sequence`. Each rank takes consecutive sequences
    /// of a step, in the order of the ranks.
    pub(crate) fn micro_batches(
        self,
        first_sequence: u64,
        steps: u64,
        rank: u64,
    ) -> impl Iterator<Item = u64> + Send + 'static {
        let first = first_sequence + rank * self.micro_batch * self.accumulation;
        let micro_batch = move |step, i| first + step * self.sequences + i * self.micro_batch;
        (0..steps).flat_map(move |step| (0..self.accumulation).map(move |i| micro_batch(step, i)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(tokens: u64, micro_batch: MicroBatchSize, world_size: u64) -> Result<BatchLayout, String> {
        BatchConfig { tokens_per_step: tokens, micro_batch_size: micro_batch }
            .layout(512, world_size)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn accumulation_is_derived() {
        let published = |micro, world| layout(524_288, micro, world).unwrap();
        assert_eq!(
            published(MicroBatchSize::Sequences(32), 4),
            BatchLayout { sequences: 1024, micro_batch: 32, accumulation: 8 }
        );
        assert_eq!(
            published(MicroBatchSize::Auto, 1),
            BatchLayout { sequences: 1024, micro_batch: 16, accumulation: 64 }
        );
        assert_eq!(layout(512 * 6, MicroBatchSize::Auto, 1).unwrap().micro_batch, 6);
        assert_eq!(layout(512 * 34, MicroBatchSize::Auto, 1).unwrap().micro_batch, 2);
    }

    #[test]
    fn micro_batches_are_consecutive_across_steps() {
        let layout = BatchLayout { sequences: 6, micro_batch: 2, accumulation: 3 };
        assert_eq!(layout.micro_batches(12, 2, 0).collect::<Vec<_>>(), [12, 14, 16, 18, 20, 22]);
        assert_eq!(layout.micro_batches(12, 0, 0).count(), 0);
    }

    #[test]
    fn any_world_size_takes_the_same_sequences() {
        for world in [1, 2, 3, 4, 6] {
            let layout = layout(512 * 12, MicroBatchSize::Sequences(1), world).unwrap();
            let mut taken: Vec<Vec<u64>> = vec![Vec::new(); 3];
            for rank in 0..world {
                for (i, first) in layout.micro_batches(24, 3, rank).enumerate() {
                    taken[i / layout.accumulation as usize].extend(first..first + layout.micro_batch);
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
    fn sizes_that_do_not_divide_are_errors() {
        let error = layout(1000, MicroBatchSize::Auto, 1).unwrap_err();
        assert_eq!(error, "batch.tokens_per_step 1000 is not a multiple of data.sequence_length 512: use 512 or 1024");
        assert!(layout(0, MicroBatchSize::Auto, 1).is_err());
        let error = layout(512 * 6, MicroBatchSize::Sequences(4), 1).unwrap_err();
        assert!(error.contains("micro_batch_size 4 does not divide the 6"), "{error}");
        assert!(layout(512 * 6, MicroBatchSize::Sequences(0), 1).is_err());
        let error = layout(512 * 6, MicroBatchSize::Auto, 4).unwrap_err();
        assert!(error.contains("6 sequences, which do not divide among 4"), "{error}");
    }
}
