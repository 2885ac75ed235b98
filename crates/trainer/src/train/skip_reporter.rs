//! Log lines about skipped steps and loss spikes.

use crate::logging::run_logger::RunLogger;
use crate::optim::step_guard::{StepGuardState, StepStats};

/// Logs each skipped step and loss spike once, even if the figures of a step are read seldom or
/// twice.
pub(crate) struct SkipReporter {
    skipped: u64,
    spikes: u64,
    /// The step up to which both are counted.
    step: u64,
}

impl SkipReporter {
    /// Returns a reporter for a session that starts after `step` steps. Earlier events are already
    /// logged.
    pub(crate) fn new(step: u64, state: &StepGuardState) -> Self {
        SkipReporter { skipped: state.skipped, spikes: state.stats.spikes, step }
    }

    /// Logs the skipped steps and the spikes since the last call, given the figures of this step.
    pub(crate) fn report(&mut self, step: u64, stats: &StepStats, spike_z_score: f64, log: &mut RunLogger) {
        let (skipped, spikes) = (stats.skipped - self.skipped, stats.spikes - self.spikes);
        let first = (self.step + 1).min(step);
        *self = SkipReporter { skipped: stats.skipped, spikes: stats.spikes, step };
        let StepStats { loss, grad_norm, z_score, steps_since_update, .. } = *stats;
        // A single event may belong to an earlier step, if the run does not log every step.
        match spikes {
            0 => {}
            1 if z_score > spike_z_score => log.info(&format!(
                "spike       step {step}: loss {loss:.4}, {z_score:.1} standard deviations above the recent mean"
            )),
            _ => log.info(&format!("spike       {spikes} loss spikes in steps {first}-{step}")),
        }
        let scale = stats.loss_scale.map(|scale| format!(", the loss scale is now {scale}")).unwrap_or_default();
        match skipped {
            0 => {}
            1 if steps_since_update > 0 => {
                log.info(&format!("skipped     step {step}: loss {loss:.4}, gradient norm {grad_norm:.2}{scale}"));
            }
            _ => log.info(&format!("skipped     {skipped} of the steps {first}-{step}{scale}")),
        }
    }
}
