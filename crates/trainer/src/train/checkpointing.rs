//! Reading the figures of a step, detecting bad steps, and saving checkpoints.

use anyhow::{Result, bail};

use super::Trainer;
use crate::optim::step_guard::StepStats;
use crate::train::step::StepResult;

impl Trainer<'_> {
    /// Reads the figures of a step and logs skipped steps and spikes. Waits for the device.
    ///
    /// # Errors
    /// Too many consecutive steps were bad. A checkpoint from before these steps is saved.
    pub(super) fn read_step_stats(&mut self, result: &StepResult) -> Result<StepStats> {
        let stats = self.context.step_guard.read_stats(&result.loss, &result.grad_norm, &result.z_score)?;
        self.skip_reporter.report(self.state.step, &stats, self.config.step_guard.spike_z_score, &mut self.log);
        let max = self.config.step_guard.max_consecutive_bad_steps;
        if max > 0 && stats.consecutive_bad_steps >= max {
            let step = self.state.step;
            let remedy = self.save_before_streak(stats.steps_since_update)?;
            let StepStats { loss, grad_norm, consecutive_bad_steps: bad, .. } = stats;
            bail!(
                "{bad} consecutive bad steps up to step {step}, the last with loss {loss} and gradient norm {grad_norm} (step_guard.max_consecutive_bad_steps is {max}): lower optimizer.learning_rate or lengthen the warm-up, and {remedy}"
            );
        }
        Ok(stats)
    }

    /// Saves the state before the last `steps` steps, none of which changed the weights. Returns how
    /// to resume.
    fn save_before_streak(&mut self, steps: u64) -> Result<String> {
        self.state.step_guard = self.context.step_guard.state()?;
        let before = self.state.before(steps, self.config.batch.tokens_per_step, self.summary.layout.sequences);
        if before.step == 0 {
            return Ok("start again, because no step before the bad ones was good".to_owned());
        }
        // A checkpoint that was saved since then has the same weights.
        let newest = self.checkpoints.wait_for_newest_step(&mut self.log)?;
        let step = match newest.filter(|newest| *newest >= before.step) {
            Some(newest) => newest,
            None => {
                self.state = before;
                if let Err(error) = self.save_state_last() {
                    return Ok(format!(
                        "resume from the newest checkpoint; none from just before the bad steps could be saved: {error:#}"
                    ));
                }
                self.state.step
            }
        };
        Ok(format!("resume with --resume auto from step {step}, which has the weights from before the bad steps"))
    }

    /// Starts to save a checkpoint.
    pub(super) fn save(&mut self) -> Result<()> {
        self.state.step_guard = self.context.step_guard.state()?;
        self.start_save()?;
        self.checkpoints.poll(&mut self.log);
        self.timer.restart_interval();
        Ok(())
    }

    /// Saves a checkpoint and waits until it is complete.
    pub(super) fn save_last(&mut self) -> Result<()> {
        self.state.step_guard = self.context.step_guard.state()?;
        self.save_state_last()
    }

    fn save_state_last(&mut self) -> Result<()> {
        self.start_save()?;
        self.checkpoints.wait_for_save(&mut self.log)
    }

    fn start_save(&mut self) -> Result<()> {
        self.checkpoints.save(&self.context.model, &self.context.optimizer, &self.state, &mut self.log)
    }
}
