//! The figures of a run that follow from its configuration, as printed at the start.

use std::fmt;

use anyhow::Result;
use model::ModelConfig;

use crate::config::Config;
use crate::data::DataSplits;
use crate::data::batch::BatchLayout;
use crate::logging::run_logger::RunLogger;
use crate::perf::flops::flops_per_token;
use crate::train::options::TrainOptions;
use crate::train::runtime::Runtime;

/// The figures of a run that follow from its configuration.
#[derive(Debug, Clone)]
pub(crate) struct RunSummary {
    /// Trained parameters.
    parameters: i64,
    /// Training FLOPs per token.
    pub(crate) flops_per_token: f64,
    /// The division of a step into micro-batches.
    pub(crate) layout: BatchLayout,
    /// Tokens of the whole run.
    tokens: u64,
    /// Sequences per epoch.
    sequences_per_epoch: u64,
    /// Epochs of the whole run.
    epochs: f64,
    max_steps: u64,
    sequence_length: u64,
}

impl RunSummary {
    /// Derives the figures of a run with a model of this shape, which is `config.model`'s unless
    /// initial weights decide otherwise.
    ///
    /// # Errors
    /// The batch cannot be divided into micro-batches.
    pub(crate) fn new(config: &Config, model: &ModelConfig, sequences_per_epoch: u64, world_size: u64) -> Result<Self> {
        let sequence_length = config.data.sequence_length as u64;
        let layout = config.batch.layout(sequence_length, world_size)?;
        let max_steps = config.schedule.max_steps;
        Ok(RunSummary {
            parameters: model.num_parameters(),
            flops_per_token: flops_per_token(model, sequence_length),
            layout,
            tokens: max_steps * config.batch.tokens_per_step,
            sequences_per_epoch,
            epochs: (max_steps * layout.sequences) as f64 / sequences_per_epoch as f64,
            max_steps,
            sequence_length,
        })
    }
}

impl fmt::Display for RunSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BatchLayout { sequences, micro_batch, accumulation } = self.layout;
        writeln!(f, "model       {} parameters, {:.1} MFLOP per token", self.parameters, self.flops_per_token / 1e6)?;
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

/// Logs the summary of the run and its hardware.
pub(crate) fn log_start(
    config: &Config,
    options: &TrainOptions,
    runtime: &Runtime<'_>,
    data: &DataSplits,
    summary: &RunSummary,
    peak_flops: f64,
    log: &mut RunLogger,
) {
    log.info(&summary.to_string());
    if !data.train.has_manifest() {
        log.info("warning     the data has no manifest.json, so it could not be verified");
    }
    let (machine, precision, peak) = (runtime.describe(), config.run.precision, peak_flops / 1e9);
    log.info(&format!("{machine}, {precision} matrix products at up to {peak:.0} GFLOP/s"));
    if options.world.size > 1 {
        log.info(&format!("processes   {}, rank 0 on {}", options.world.size, options.world.host));
    }
    if runtime.time_limit.is_set() {
        log.info(&format!("time        {}; the run saves a checkpoint and stops before then", runtime.time_limit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// OpenWebText has 9,035,582,198 training tokens: (9,035,582,198 - 1) / 512 sequences.
    #[test]
    fn the_published_run_is_5_80_epochs_of_openwebtext() {
        let config = Config::example();
        let summary = RunSummary::new(&config, &config.model, 17_647_621, 1).unwrap();
        assert_eq!(summary.tokens, 52_428_800_000);
        assert!((summary.epochs - 5.80).abs() < 0.005, "{}", summary.epochs);
        assert!(summary.to_string().contains("64 x 16 (accumulation x micro-batch)"), "{summary}");
    }
}
