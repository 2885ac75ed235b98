//! What a run will be, derived before it starts.

use std::fmt;

use anyhow::Result;
use model::ModelConfig;

use crate::config::Config;
use crate::data::batch_reader::BatchLayout;
use crate::perf::flops::flops_per_token;

/// The derived figures of a run.
#[derive(Debug, Clone)]
pub(crate) struct RunSummary {
    /// Trained values.
    pub(crate) parameters: i64,
    /// Training FLOPs per token, by the full formula.
    pub(crate) flops_per_token: f64,
    /// How a step is split.
    pub(crate) split: BatchLayout,
    /// Tokens of the whole run.
    pub(crate) tokens: u64,
    /// Sequences in an epoch.
    pub(crate) sequences_per_epoch: u64,
    /// Passes over the data.
    pub(crate) epochs: f64,
    max_steps: u64,
    sequence_length: u64,
}

impl RunSummary {
    /// Of `config` for a model of this shape (`config.model`'s, save for what it leaves to
    /// the weights it starts from).
    ///
    /// # Errors
    /// When the batch does not divide.
    pub(crate) fn new(config: &Config, model: &ModelConfig, sequences_per_epoch: u64, world_size: u64) -> Result<Self> {
        let sequence_length = config.data.sequence_length as u64;
        let split = config.batch.split(sequence_length, world_size)?;
        let max_steps = config.schedule.max_steps;
        Ok(RunSummary {
            parameters: model.num_parameters(),
            flops_per_token: flops_per_token(model, sequence_length),
            split,
            tokens: max_steps * config.batch.tokens_per_step,
            sequences_per_epoch,
            epochs: (max_steps * split.sequences) as f64 / sequences_per_epoch as f64,
            max_steps,
            sequence_length,
        })
    }
}

impl fmt::Display for RunSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BatchLayout { sequences, micro_batch, accumulation } = self.split;
        writeln!(f, "model       {} parameters, {:.1} MFLOP a token", self.parameters, self.flops_per_token / 1e6)?;
        writeln!(
            f,
            "step        {} tokens = {sequences} sequences of {} = {accumulation} x {micro_batch} (accumulation x micro-batch)",
            sequences * self.sequence_length,
            self.sequence_length
        )?;
        write!(
            f,
            "run         {} steps, {} tokens, {:.2} epochs of {} sequences",
            self.max_steps, self.tokens, self.epochs, self.sequences_per_epoch
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_run_is_5_80_epochs_of_openwebtext() {
        // (9,035,582,198 - 1) / 512 blocks.
        let config = Config::example();
        let plan = RunSummary::new(&config, &config.model, 17_647_621, 1).unwrap();
        assert_eq!(plan.tokens, 52_428_800_000);
        assert!((plan.epochs - 5.80).abs() < 0.005, "{}", plan.epochs);
        assert!(plan.to_string().contains("64 x 16 (accumulation x micro-batch)"), "{plan}");
    }
}
