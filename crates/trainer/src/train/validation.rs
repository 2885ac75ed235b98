//! Validation during training.

use anyhow::Result;
use evals::{RankShard, ValidationOptions};
use model::ForwardOptions;

use super::Trainer;
use crate::logging::metrics::ValidationMetrics;

impl Trainer<'_> {
    /// Computes the mean loss of the validation split, of which each rank takes a part. A stop
    /// request ends it early, except after the last step, so that the checkpoint is saved first.
    /// Also checks that the weights are equal on all ranks.
    pub(super) fn validate(&mut self, is_last: bool) -> Result<()> {
        const PHASE: &str = "validating";
        let (collectives, runtime, log) = (self.context.collectives, self.runtime, &mut self.log);
        let step = self.state.step;
        runtime.watchdog.progress(PHASE);
        log.heartbeat(step, PHASE);
        let options = ValidationOptions {
            sequence_length: self.config.data.sequence_length,
            max_sequences: self.config.validation.max_sequences,
            batch_size: self.summary.layout.micro_batch,
            shard: RankShard { rank: collectives.rank(), world_size: collectives.size() },
        };
        let forward_options = ForwardOptions { dropout: 0.0, ..self.context.forward_options };
        let mut on_progress = |done: u64, all: u64| {
            runtime.watchdog.progress(PHASE);
            log.heartbeat(step, PHASE);
            log.progress(false, || format!("validating  {done} of {all} sequences"));
            Ok(is_last || !collectives.any([runtime.stop.requested()])?[0])
        };
        let result =
            evals::validate(&self.context.model, &self.validation_data, options, forward_options, &mut on_progress)?;
        let Some(own) = result else {
            self.log.info("validation  skipped: stop requested");
            return Ok(());
        };
        let [sum, sequences] = collectives.sum([own.sum, own.sequences as f64])?;
        let loss = sum / sequences;
        // All ranks compute the weights from the same gradients. A difference is detected here,
        // before the weights are saved.
        collectives.require_equal_tensors("weights", self.context.model.parameters().iter())?;
        self.state.val_loss = Some(loss);
        if self.state.best_val_loss.is_none_or(|best| loss < best) {
            (self.state.best_val_loss, self.state.best_step) = (Some(loss), Some(step));
        }
        let metrics = ValidationMetrics { val_loss: loss, val_ppl: loss.exp() };
        self.log.validation(step, self.state.tokens, metrics);
        self.timer.restart_interval();
        Ok(())
    }
}
