//! What is kept of a run: checkpoints, and an eye on the steps between them.

use anyhow::{Result, bail};

use super::Trainer;
use crate::checkpoint::manager::{CheckpointManager, Heard, SaveInputs};
use crate::optim::step_guard::StepStats;
use crate::train::step::StepResult;

impl<'a> Trainer<'a> {
    /// What a step came to. The one place where the host waits for the device.
    ///
    /// # Errors
    /// After too many bad steps in a row; a checkpoint from before them is saved.
    pub(super) fn look(&mut self, result: &StepResult) -> Result<StepStats> {
        let seen = self.stability.read_stats(&result.loss, &result.grad_norm, &result.z_score)?;
        self.tell(&seen);
        let most = self.config.step_guard.max_consecutive_bad_steps;
        if most > 0 && seen.consecutive_bad_steps >= most {
            let step = self.state.step;
            let before = self.save_from_before(seen.steps_since_update)?;
            let StepStats { loss, grad_norm, consecutive_bad_steps, .. } = seen;
            bail!(
                "the {consecutive_bad_steps} steps up to step {step} had a loss or gradient norm that could not be used, the last one loss {loss} and gradient norm {grad_norm} (step_guard.max_consecutive_bad_steps is {most}): lower optimizer.learning_rate or lengthen the warm-up, and {before}"
            );
        }
        Ok(seen)
    }

    /// Tells a person what was skipped, and of spikes.
    fn tell(&mut self, seen: &StepStats) {
        let (skipped, spikes) = (seen.skipped - self.told.0, seen.spikes - self.told.1);
        self.told = (seen.skipped, seen.spikes);
        // Where the run logs seldom, it may have been a step before this one.
        let (step, highest) = (self.state.step, self.config.step_guard.spike_z_score);
        let StepStats { loss, grad_norm, z_score, steps_since_update, .. } = *seen;
        if spikes > 0 {
            self.line(|| match spikes {
                1 if z_score > highest => format!(
                    "spike       step {step}: loss {loss:.4}, {z_score:.1} standard deviations above those before"
                ),
                _ => format!("spike       {spikes} since the last look, before step {step} or at it"),
            });
        }
        if skipped > 0 {
            let scale = seen.loss_scale.map(|scale| format!(", the loss scale is now {scale}")).unwrap_or_default();
            self.line(|| match skipped {
                1 if steps_since_update > 0 => {
                    format!("skipped     step {step}: loss {loss:.4}, gradient norm {grad_norm:.2}{scale}")
                }
                _ => format!("skipped     {skipped} since the last look, before step {step} or at it{scale}"),
            });
        }
    }

    /// Saves where the run stood before its last `steps` steps, none of which changed the weights;
    /// says how to go on.
    fn save_from_before(&mut self, steps: u64) -> Result<String> {
        self.state.step_guard = self.stability.state()?;
        let before = self.state.before(steps, self.config.batch.tokens_per_step, self.plan.split.sequences);
        if before.step == 0 {
            return Ok("start again: no step before them was good".to_owned());
        }
        let (saving, _, mut heard) = self.parts();
        // One that was saved since then has the same weights.
        let from = match saving.newest(&mut heard)?.filter(|newest| *newest >= before.step) {
            Some(newest) => newest,
            None => {
                self.state = before;
                let (saving, trained, mut heard) = self.parts();
                if let Err(error) = saving.save_last(trained, &mut heard) {
                    return Ok(format!(
                        "go on from the newest checkpoint, since there is none from before them: {error:#}"
                    ));
                }
                self.state.step
            }
        };
        Ok(format!("go on with --resume auto from step {from}, whose weights are those from before them"))
    }

    /// Begins to save a checkpoint.
    pub(super) fn save(&mut self) -> Result<()> {
        self.state.step_guard = self.stability.state()?;
        let (saving, trained, mut heard) = self.parts();
        saving.save(trained, &mut heard)?;
        self.restart_clock();
        Ok(())
    }

    /// Saves one and waits until it is written.
    pub(super) fn save_last(&mut self) -> Result<()> {
        self.state.step_guard = self.stability.state()?;
        let (saving, trained, mut heard) = self.parts();
        saving.save_last(trained, &mut heard)
    }

    fn parts(&mut self) -> (&mut CheckpointManager<'a>, SaveInputs<'_>, Heard<'_>) {
        let saved = SaveInputs { model: &self.model, optimizer: &self.optimizer, state: &self.state };
        (&mut self.saving, saved, Heard { recorder: &mut self.recorder, watchdog: &self.watchdog })
    }
}
