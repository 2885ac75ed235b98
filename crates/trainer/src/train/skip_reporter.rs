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
            _ => log.info(&format!("spike       in steps {first}-{step}: {spikes}")),
        }
        let scale = stats.loss_scale.map(|scale| format!(", the loss scale is now {scale}")).unwrap_or_default();
        match skipped {
            0 => {}
            1 if steps_since_update > 0 => {
                log.info(&format!("skipped     step {step}: loss {loss:.4}, gradient norm {grad_norm:.2}{scale}"));
            }
            _ => log.info(&format!("skipped     in steps {first}-{step}: {skipped}{scale}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logging::run_dir::RunDir;

    /// Reports these steps (step, skipped, steps since the last update, spikes, z-score) of a session
    /// that starts after step 10 with 2 skipped steps and 1 spike, and returns the log.
    fn log_of(steps: &[(u64, u64, u64, u64, f64)]) -> Vec<String> {
        let scratch = tempfile::tempdir().unwrap();
        let mut log = RunLogger::open(RunDir::open(scratch.path()).unwrap()).unwrap();
        let mut state = StepGuardState { skipped: 2, ..StepGuardState::default() };
        state.stats.spikes = 1;
        let mut reporter = SkipReporter::new(10, &state);
        for &(step, skipped, steps_since_update, spikes, z_score) in steps {
            let stats = StepStats {
                loss: 3.5,
                grad_norm: 1.25,
                z_score,
                skipped,
                steps_since_update,
                consecutive_bad_steps: steps_since_update,
                spikes,
                scale_search_skips: 0,
                loss_scale: None,
            };
            reporter.report(step, &stats, 6.0, &mut log);
        }
        let text = std::fs::read_to_string(scratch.path().join("log.txt")).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn events_are_logged_once_with_their_steps() {
        // Nothing new, although the resumed session has counts from before.
        assert_eq!(log_of(&[(11, 2, 0, 1, 0.0)]), [""; 0]);
        // The step itself was skipped. It is read twice.
        let skip = (12, 3, 1, 1, 0.0);
        assert_eq!(log_of(&[skip, skip]), ["skipped     step 12: loss 3.5000, gradient norm 1.25"]);
        // One step since step 10 was skipped, but not the last one.
        assert_eq!(log_of(&[(15, 3, 0, 1, 0.0)]), ["skipped     in steps 11-15: 1"]);
        assert_eq!(
            log_of(&[(12, 2, 0, 2, 7.5), (20, 2, 0, 4, 7.5)]),
            [
                "spike       step 12: loss 3.5000, 7.5 standard deviations above the recent mean",
                "spike       in steps 13-20: 2"
            ]
        );
    }
}
